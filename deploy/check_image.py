"""Build the image without Docker and without a registry of images, and try it.

Debian's debootstrap makes the base, and buildah builds on it what the Dockerfile says. The service
runs as it would in a cluster: process 1, the image's user, a root that cannot be written to.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from http.client import OK
from pathlib import Path
from typing import Any

from fakes.demo import ENDIVE, seed, use
from fakes.processes import (
    ROOT,
    WEBHOOK_SECRET,
    Failed,
    Process,
    Processes,
    answers,
    call,
    wait_for,
)

IMAGE = "openmeter-stripe"
HOUSE = "/srv/openmeter-stripe"
TOOLS = ("buildah", "debootstrap", "unshare", "chroot")
# What a base for Python needs; the rest of the image is the Dockerfile's.
PACKAGES = "--include=python3,python3-venv,ca-certificates"
BUILD_TOOLS = ("cc", "gcc", "make", "pip", "pip3")
# Run in the image: what it has of Python packages, and which of them its start does not import.
PYTHON_PACKAGES = """
import json, pathlib, sys
import gunicorn.app.wsgiapp, service.serving, service.watching
import app
there = pathlib.Path(gunicorn.__file__).parent.parent
used = {name.partition(".")[0] for name in sys.modules}
size = lambda path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
print(json.dumps([[path.name, size(path), path.name in used]
    for path in there.iterdir() if path.is_dir() and path.suffix != ".dist-info"
    and path.name != "__pycache__"]))
"""
STOP_SECONDS = 35
MB = 1_000_000


def main() -> None:
    """Build the image and try it; any step that goes wrong ends it with exit status 1."""
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking or os.geteuid() != 0:
        sys.exit(f"This needs root, and Debian's buildah and debootstrap; missing: {lacking}")
    scratch = Path(tempfile.mkdtemp(prefix="openmeter-stripe-image-"))
    os.environ["BUILDAH_ISOLATION"] = "chroot"
    try:
        check(scratch)
    except (Failed, subprocess.CalledProcessError) as error:
        sys.exit(f"The check failed: {error}")
    finally:
        # Not past a mount, should one be left: behind it are this machine's own files.
        subprocess.run(["rm", "-rf", "--one-file-system", str(scratch)], check=False)


def check(scratch: Path) -> None:
    """Build the image, look at what it says and has, and run the service in it."""
    tell("base", build_base(scratch))
    tell("image", build_image(scratch))
    config = json.loads(buildah(scratch, "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = buildah(scratch, "from", "--pull-never", IMAGE).strip()
    root = Path(buildah(scratch, "mount", container).strip())
    try:
        see_its_user(scratch, container, config)
        try_service(scratch, container, root, config)
        list_contents(scratch, container, root)
    finally:
        buildah(scratch, "umount", container)
    print("The image does what it should.")


def tell(what: str, seconds: float) -> None:
    """Say how long something took to build."""
    print(f"Built the {what} in {seconds:.0f} s", flush=True)


def buildah(scratch: Path, *command: str) -> str:
    """Run buildah with a store of its own; return what it printed. Raises Failed."""
    # vfs copies folders, where other drivers mount them, which not every machine lets them.
    store = ["--root", str(scratch / "store"), "--storage-driver", "vfs"]
    store += ["--runroot", str(scratch / "run")]
    done = subprocess.run(
        ["buildah", *store, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"buildah {command[0]} ended with {done.returncode}:\n{done.stderr[-3_000:]}")
    return done.stdout


def build_base(scratch: Path) -> float:
    """Make a small Debian and give it the name of the Dockerfile's base; return the seconds."""
    began = time.monotonic()
    (name,) = re.findall(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    folder = str(scratch / "rootfs")
    command = ["debootstrap", "--variant=minbase", PACKAGES, "bookworm", folder]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    container = buildah(scratch, "from", "scratch").strip()
    buildah(scratch, "add", "--quiet", container, folder, "/")
    buildah(scratch, "commit", "--quiet", "--rm", container, name)
    shutil.rmtree(folder)
    return time.monotonic() - began


def build_image(scratch: Path) -> float:
    """Build what the Dockerfile says, in Docker's format, which has a HEALTHCHECK."""
    began = time.monotonic()
    options = ["--pull-never", "--format", "docker", "--tag", IMAGE, *pip_mounts(scratch)]
    buildah(scratch, "build", *options, ".")
    return time.monotonic() - began


def pip_mounts(scratch: Path) -> list[str]:
    """Return what lends the build how this machine's pip is set up, and the files that names."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^\S+\.([\w-]+)='(.*)'$", listed, re.M))
    config = scratch / "pip.conf"
    lines = [f"{name} = {value}\n" for name, value in found.items()]
    config.write_text("".join(["[global]\n", *lines]))
    named = {value: value for value in found.values() if Path(value).exists()}
    lent = {str(config): "/etc/pip.conf", **named}
    return [f"--volume={here}:{there}:ro" for here, there in lent.items()]


def see_its_user(scratch: Path, container: str, config: dict[str, Any]) -> None:
    """See that the image has a user without rights, who can write to no file of it."""
    user = str(config["User"])
    if user.partition(":")[0] in ("", "0", "root"):
        raise Failed("the image's user is root")
    found = inside(scratch, container, "id -u; find / -xdev -writable ! -type l 2>/dev/null")
    uid, *writable = found.split("\n")
    others = [path for path in writable if path and not is_for_all(path)]
    if uid != user.partition(":")[0] or others:
        raise Failed(f"user {uid} can write to {others[:5]}")
    print(f"Its user is {uid}, who can write to folders for all only")


def is_for_all(path: str) -> bool:
    """Say whether a path is of those that anybody may write to on any Debian."""
    return path.startswith(("/tmp", "/var/tmp", "/run/lock", "/dev", "/proc", "/sys"))


def inside(scratch: Path, container: str, script: str, *env: str) -> str:
    """Run a shell's script in the container, as the image's user; return what it printed."""
    options = [part for pair in env for part in ("--env", pair)]
    # `find` ends with 1 where it may not look; what is wrong with a script, its text shows.
    return buildah(scratch, "run", *options, container, "--", "sh", "-c", f"{script}; true")


def try_service(scratch: Path, container: str, root: Path, config: dict[str, Any]) -> None:
    """Send the service a signed delivery against the stand-ins, run a command, and stop it."""
    with Processes() as processes:
        port = free_port()
        settings = {**processes.environment(), "METRICS": "1", "PORT": str(port)}
        ours = {"STRIPE_", "OPENMETER", "METRICS", "PORT", "no_proxy"}
        env = [f"{k}={v}" for k, v in settings.items() if k.startswith(tuple(ours))]
        service = processes.start("the service", confined(root, config, env))
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{address}/healthz"), "the service", 60)
        endpoint = {"url": f"{address}/webhook", "secret": WEBHOOK_SECRET, "api_version": ENDIVE}
        call("POST", f"{processes.stripe}/_fake/webhook", endpoint)
        deliver(processes)
        run_commands(scratch, container, config, env)
        stop(service)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def confined(root: Path, config: dict[str, Any], env: list[str]) -> list[str]:
    """Return what runs the image's command as process 1, on a root that cannot be written to."""
    at, command = shlex.quote(str(root)), shlex.join(config["Cmd"])
    work, user = shlex.quote(config["WorkingDir"]), shlex.quote(config["User"])
    script = f"""set -e
        mount --bind {at} {at}
        mount -o remount,ro,bind {at}
        mount -t tmpfs tmpfs {at}/tmp
        mount -t proc proc {at}/proc
        exec chroot --userspec={user} {at} env -i {shlex.join([*config["Env"], *env])} \\
            sh -c 'cd "$0" && exec "$@"' {work} {command}"""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]


def deliver(processes: Processes) -> None:
    """Let a subscription's update bill usage, and see how its delivery was answered."""
    ids = seed(processes)
    path = f"/v1/subscriptions/{ids['subscription']}"
    start = processes.stripe_call("GET", path)["items"]["data"][0]["current_period_start"]
    use(processes, ids["customer"], "1", start, 10)
    before = len(processes.deliveries(0))
    processes.stripe_call("POST", path, "metadata[plan]=a")
    last = processes.deliveries(before + 1)[-1]
    told = json.loads(last["answer"])["reported"] if last["status"] == OK else []
    if [report["quantity"] for report in told] != [10]:
        raise Failed(f"the delivery was answered {last}")
    print("A signed delivery was answered 200, and reported 10 units")


def run_commands(scratch: Path, container: str, config: dict[str, Any], env: list[str]) -> None:
    """Run the health check and `flask report` in the image."""
    _, *health = config["Healthcheck"]["Test"]
    for command in (health, ["flask", "report", "--dry-run"]):
        options = [part for pair in env for part in ("--env", pair)]
        printed = buildah(scratch, "run", *options, container, "--", *command)
    if not printed.endswith("all agree\n"):
        raise Failed(f"flask report said:\n{printed}")
    print("The health check is content, and flask report says that all agree")


def stop(service: Process) -> None:
    """Stop the service by SIGTERM to its process 1."""
    unshare = service.popen.pid
    (first,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
    began = time.monotonic()
    os.kill(int(first), signal.SIGTERM)
    status = service.popen.wait(STOP_SECONDS)
    if status:
        raise Failed(f"at SIGTERM it ended with {status}:\n{service.printed()}")
    print(f"SIGTERM to process 1 stopped it in {time.monotonic() - began:.1f} s")


def list_contents(scratch: Path, container: str, root: Path) -> None:
    """Print the image's size, and what is in it that need not be."""
    house = root / HOUSE.lstrip("/")
    whole, ours = disk_usage(root), disk_usage(house)
    print(f"It has {whole / MB:.0f} MB: {ours / MB:.0f} MB over its base")
    script = f"cd {HOUSE} && python -c {shlex.quote(PYTHON_PACKAGES)}"
    packages = json.loads(inside(scratch, container, script, "STRIPE_KEY=sk_test_1"))
    for name, size, used in sorted(packages, key=lambda package: -package[1]):
        if not used or size > MB:
            print(f"  {size / MB:5.1f} MB  {name}{'' if used else ', which no start imports'}")
    search = "; ".join(f"command -v {tool}" for tool in BUILD_TOOLS)
    tools = inside(scratch, container, search).split()
    if tools:
        raise Failed(f"it has tools to build with: {tools}")
    sent = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M))
    theirs = (sent - {"requirements-run.lock"}) | {".venv"}
    if {path.name for path in house.iterdir()} != theirs:
        raise Failed(f"{HOUSE} has {sorted(path.name for path in house.iterdir())}")


def disk_usage(folder: Path) -> int:
    """Return the bytes of all files of one file system in a folder."""
    done = subprocess.run(["du", "-sxb", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


if __name__ == "__main__":
    main()
