"""Start what is measured, load it from this process, and read what it took."""

import json
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stripe import WebhookSignature

from bench.upstream import subscription
from fakes.processes import (
    ADDRESS,
    WEBHOOK_SECRET,
    Failed,
    Process,
    Processes,
    call,
)

OPENMETER_MS, STRIPE_MS = 20, 100
WARM_UP = 5
# What `flask audit` exits with where something is missing.
DIFFERENT = 3
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KIB_PER_MB = 1_000_000 / 1_024


@dataclass(frozen=True)
class Ran:
    """A run of a command: seconds of the whole of it, MB at most, writes a second."""

    seconds: float
    memory: float
    rate: float


class Stage(Processes):
    """The upstream with its latency, and what is measured in front of it."""

    def __init__(self, *, latency: bool, subscriptions: int = 0, invoices: int = 0) -> None:
        super().__init__()
        self.options = ["--subscriptions", str(subscriptions), "--invoices", str(invoices)]
        if latency:
            self.options += ["--stripe-ms", str(STRIPE_MS), "--openmeter-ms", str(OPENMETER_MS)]

    def __enter__(self) -> "Stage":
        command = [sys.executable, "-m", "bench.upstream", *self.options]
        upstream = self.start("the upstream", command)
        try:
            upstream.address()
            self.stripe, self.openmeter = ADDRESS.findall(upstream.printed())
        except BaseException:
            self.stop()
            raise
        return self

    def serve(self) -> Process:
        """Start the service as `make run` does, and return once it answers."""
        command = [sys.executable, "-m", "service", "--bind", "127.0.0.1:0"]
        process = self.start("the service", command, self.environment())
        self.service = process.address()
        with closing(connection(self.service)) as http:
            exchange(http, "GET", "/healthz")
        return process

    def report(self, rate: int) -> Ran:
        """Run `flask report` to its end."""
        process, seconds, memory = self.run("report", "--rate", str(rate))
        status = process.popen.returncode
        counts = call("GET", f"{self.stripe}/_bench/counts")
        if status or str(counts["writes"]) != self.options[1]:
            raise Failed(f"flask report wrote {counts['writes']}:\n{process.printed()[-2_000:]}")
        writes_a_second = (counts["writes"] - 1) / (counts["last"] - counts["first"])
        return Ran(seconds, memory, writes_a_second)

    def audit(self) -> Ran:
        """Run `flask audit` to its end; one line in a hundred invoices lacks a unit."""
        process, seconds, memory = self.run("audit", "--since", "38d", "--csv", os.devnull)
        expected = f"{self.options[3]} invoices, "
        if process.popen.returncode != DIFFERENT or expected not in process.printed():
            raise Failed(f"flask audit did not see all:\n{process.printed()[-2_000:]}")
        return Ran(seconds, memory, 0)

    def run(self, *command: str) -> tuple[Process, float, float]:
        """Run a flask command to its end; return it, its seconds and its MB at most."""
        began = time.monotonic()
        whole = [sys.executable, "-m", "flask", "--app", "app", *command]
        process = self.start(f"flask {command[0]}", whole, self.environment())
        _, status, used = os.wait4(process.popen.pid, 0)
        process.popen.returncode = os.waitstatus_to_exitcode(status)
        return process, time.monotonic() - began, used.ru_maxrss / KIB_PER_MB

    def floor(self, count: int) -> list[float]:
        """Return the seconds that one query and one write take without the service."""
        query = "/api/v1/meters/meter_0/query?subject=cus&from=0&to=1"
        write = "/v1/subscription_items/si_0/usage_records"
        found = []
        with closing(connection(self.openmeter)) as om, closing(connection(self.stripe)) as stripe:
            for _ in range(count):
                began = time.perf_counter()
                exchange(om, "GET", query)
                exchange(stripe, "POST", write, b"quantity=10")
                found.append(time.perf_counter() - began)
        return found

    def deliver(self, count: int, items: int = 1, meter: str | None = None) -> list[float]:
        """Deliver events one after the other; return the seconds that each answer took."""
        with closing(connection(self.service)) as http:
            taken = [deliver(http, n, items, meter) for n in range(count + WARM_UP)]
        return taken[WARM_UP:]


def seconds_to_first_answer(stage: Stage) -> float:
    """Start the service, and return the seconds until it has answered /healthz."""
    began = time.monotonic()
    stage.serve()
    seconds = time.monotonic() - began
    stage.running.pop().stop()
    return seconds


def connection(url: str) -> HTTPConnection:
    """Return a connection that is kept alive."""
    return HTTPConnection(urlsplit(url).netloc, timeout=60)


def exchange(
    http: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Make a request and return the answer's JSON. Raises Failed unless it is a 200."""
    http.request(method, path, body, headers or {})
    answer = http.getresponse()
    text = answer.read()
    if answer.status != HTTPStatus.OK:
        raise Failed(f"{method} {path} answered {answer.status}: {text.decode()}")
    return json.loads(text)


def signed(number: int, items: int, meter: str | None) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an update's delivery."""
    event = {
        "id": f"evt_{number}",
        "object": "event",
        "created": int(time.time()),
        "data": {
            "object": subscription(f"sub_of_{items}", items, meter),
            "previous_attributes": {"metadata": {"plan": None}},
        },
        "type": "customer.subscription.updated",
    }
    body = json.dumps(event)
    signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    return body.encode(), {"Content-Type": "application/json", "Stripe-Signature": signature}


def deliver(http: HTTPConnection, number: int, items: int, meter: str | None) -> float:
    """Deliver an event; return the seconds until its answer, which has to report all items."""
    body, headers = signed(number, items, meter)
    began = time.perf_counter()
    outcome = exchange(http, "POST", "/webhook", body, headers)
    seconds = time.perf_counter() - began
    if len(outcome["reported"]) != items:
        raise Failed(f"not all of {items} items are reported: {outcome}")
    return seconds


def worker(gunicorn: Process) -> int:
    """Return the process id of gunicorn's one worker."""
    master = gunicorn.popen.pid
    (child,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(child)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process took so far, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in status if line.startswith("VmRSS:"))
    return int(kib) / KIB_PER_MB
