"""How gunicorn serves app.py; options on its command line win."""

import atexit
import os
import shutil
import tempfile
from typing import Any

from service.cores import stay_on_one_core
from service.settings import NOTES_FOLDER, load_environment, read_settings

settings = read_settings(load_environment())

bind = f"{settings['HOST']}:{settings['PORT']}"
control_socket_disable = True
worker_class = "service.serving.Worker"
workers = settings["WEB_CONCURRENCY"]
threads = 64
graceful_timeout = 30
# Nothing goes by what a proxy says of a request, so no peer is looked up among those to believe.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
forwarded_allow_ips = "*"
if settings["LOG_FORMAT"] == "json":
    logger_class = "service.serving.JsonLogger"

# The folders in which the workers count together, and note things for each other. They have to be
# known before anything is imported that counts, and are kept at a reload.
FOLDERS = ("PROMETHEUS_MULTIPROC_DIR", NOTES_FOLDER) if settings["METRICS"] else (NOTES_FOLDER,)


def remove(folder: str, maker: int) -> None:
    """Remove a folder when the process ends that made it, but not when a worker does."""
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)


for name in FOLDERS:
    if name not in os.environ:
        os.environ[name] = tempfile.mkdtemp(prefix="openmeter-stripe-")
        atexit.register(remove, os.environ[name], os.getpid())


def post_fork(server: Any, worker: Any) -> None:
    """Give a worker its core, and tell it how many share what one machine may ask of Stripe."""
    stay_on_one_core(worker.age)
    os.environ["WEB_CONCURRENCY"] = str(server.num_workers)
