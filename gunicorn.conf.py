"""How gunicorn serves app.py; options on its command line win."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from service.cores import stay_on_one_core
from service.settings import NOTES, load_environment, read_settings

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

# Where the workers count together, and note things for each other. It has to be known before they
# start, and is kept at a reload.
COUNTS, OURS = "PROMETHEUS_MULTIPROC_DIR", "openmeter-stripe-"
for name in (NOTES, COUNTS) if settings["METRICS"] else (NOTES,):
    if name not in os.environ:
        os.environ[name] = tempfile.mkdtemp(prefix=OURS)


def post_fork(server: Any, worker: Any) -> None:
    """Give a worker its core, and tell it how many share what one machine may ask of Stripe."""
    stay_on_one_core(worker.age)
    os.environ["WEB_CONCURRENCY"] = str(server.num_workers)


def on_exit(_: Any) -> None:
    """Remove what the workers have counted and noted."""
    for folder in map(Path, filter(None, map(os.environ.get, (NOTES, COUNTS)))):
        if folder.name.startswith(OURS):
            shutil.rmtree(folder, ignore_errors=True)
