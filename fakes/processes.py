"""Start the stand-ins and the service as real processes on free ports, and stop them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = re.compile(r"Listening (?:on|at:) (http://127\.0\.0\.1:\d+)")
START_SECONDS = 30
STRIPE_KEY = "sk_test_standin"
WEBHOOK_SECRET = "whsec_standin"  # noqa: S105 - the stand-in's, not a secret

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
T = TypeVar("T")


class Failed(Exception):
    """A step did not do what it should."""


class Process:
    """A running process, its address and what it printed so far."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.output: IO[str] = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed by stop
        self.popen = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=self.output, stderr=subprocess.STDOUT
        )

    def printed(self) -> str:
        """Return all that the process printed."""
        self.output.seek(0)
        return self.output.read()

    def address(self) -> str:
        """Wait for the address that the process listens on."""

        def found() -> str | None:
            match = ADDRESS.search(self.printed())
            if match is None and self.popen.poll() is not None:
                raise Failed(f"{self.name} did not start:\n{self.printed()}")
            return match and match.group(1)

        return wait_for(found, f"{self.name} to listen", START_SECONDS)

    def stop(self) -> None:
        """End the process, by force if it does not go."""
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.output.close()


class Processes:
    """Both stand-ins and the service; leaving the `with` block ends what was started.

    With the address of an OpenMeter, that takes the place of its stand-in. The options, `--host`
    and `--port`, are for the stand-ins of Stripe and of OpenMeter.
    """

    def __init__(self, openmeter: str = "", options: Sequence[Sequence[str]] = ((), ())) -> None:
        self.stand_ins = dict(zip(("Stripe", "OpenMeter"), options, strict=True))
        self.running: list[Process] = []
        self.stripe = self.service = ""
        self.openmeter = openmeter

    def __enter__(self) -> "Processes":
        try:
            stripe = self.start_stand_in("Stripe")
            if not self.openmeter:
                self.openmeter = self.start_stand_in("OpenMeter").address()
            self.stripe = stripe.address()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all that was started, the last one first."""
        while self.running:
            self.running.pop().stop()

    def start(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> Process:
        """Start a process."""
        process = Process(name, command, env or dict(os.environ))
        self.running.append(process)
        return process

    def start_stand_in(self, name: str) -> Process:
        """Start the stand-in of Stripe or OpenMeter."""
        command = [sys.executable, "-m", f"fakes.{name.lower()}_api", *self.stand_ins[name]]
        return self.start(f"the {name} stand-in", command)

    def environment(self) -> dict[str, str]:
        """Return an environment that leads to the stand-ins, whatever a `.env` file says."""
        usual = {
            "INVOICE_GRACE_HOURS": "0",
            "LOG_FORMAT": "text",
            "METRICS": "0",
            "STRIPE_RATE_SHARE": "0",
        }
        return {
            **os.environ,
            **{name: os.environ.get(name) or value for name, value in usual.items()},
            "STRIPE_KEY": STRIPE_KEY,
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "STRIPE_API_BASE": self.stripe,
            "OPENMETER_URL": self.openmeter,
            "OPENMETER_TOKEN": "standin",
            "OPENMETER_WINDOW_SIZE": "HOUR",
            "USAGE_ROUNDING": "down",
            "HOST": "localhost",
            "PORT": "4242",
            "no_proxy": "127.0.0.1",
            "GUNICORN_CMD_ARGS": "",
        }

    def start_service(self, *options: str, **webhook: Any) -> Process:
        """Start the service under gunicorn and tell the Stripe stand-in where it is."""
        command = [sys.executable, "-m", "service", "--bind", "127.0.0.1:0", *options]
        process = self.start("the service", command, self.environment())
        self.service = process.address()
        wait_for(lambda: answers(f"{self.service}/healthz"), "the service", START_SECONDS)
        endpoint = {"url": f"{self.service}/webhook", "secret": WEBHOOK_SECRET, **webhook}
        call("POST", f"{self.stripe}/_fake/webhook", endpoint)
        return process

    def seed(self, *options: str) -> str:
        """Run setup_stripe.py for the meter m1; return what it printed."""
        done = subprocess.run(
            [sys.executable, "setup_stripe.py", "--meter", "m1", *options],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise Failed(f"setup_stripe.py ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def join_pages(self) -> None:
        """Tell each stand-in's pages where the other's are."""
        call("POST", f"{self.stripe}/test/neighbour", f"url={self.openmeter}".encode())
        call("POST", f"{self.openmeter}/metering/neighbour", f"url={self.stripe}".encode())

    def stripe_call(self, method: str, path: str, form: str = "", version: str = "") -> Any:
        """Call the Stripe stand-in as a user would."""
        headers = {"Authorization": f"Bearer {STRIPE_KEY}"}
        if version:
            headers["Stripe-Version"] = version
        return call(method, self.stripe + path, form.encode() or None, headers)

    def deliveries(self, count: int, seconds: float = 30) -> list[dict[str, Any]]:
        """Wait until no delivery is under way and at least `count` were made; return all."""

        def settled() -> list[dict[str, Any]] | None:
            state = call("GET", f"{self.stripe}/_fake/deliveries")
            done: list[dict[str, Any]] = state["deliveries"]
            return done if state["pending"] == 0 and len(done) >= count else None

        return wait_for(settled, f"{count} deliveries", seconds)


def wait_for(ready: Callable[[], T | None], what: str, seconds: float) -> T:
    """Poll until there is a result; raise Failed when the time is up."""
    deadline = time.perf_counter() + seconds  # which no test sets
    while time.perf_counter() < deadline:
        result = ready()
        if result is not None and result is not False:
            return result
        time.sleep(0.02)
    raise Failed(f"waited {seconds:g} s for {what}")


def answers(url: str) -> bool:
    """Say whether a URL answers 200."""
    try:
        call("GET", url)
    except (Failed, OSError):
        return False
    return True


def call(method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    """Make an HTTP call with a JSON body (bytes go as a form); return the answer's JSON."""
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
    try:
        with DIRECT.open(
            urllib.request.Request(url, body, sent, method=method), timeout=60
        ) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise Failed(f"{method} {url} answered {error.code}: {error.read().decode()}") from error
