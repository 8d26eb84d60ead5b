"""Start what is measured, and read what it took."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.deliveries import connection, exchange
from fakes.processes import ADDRESS, STRIPE_KEY, Failed, Process, Processes, call, wait_for

OPENMETER_MS, STRIPE_MS = 20, 100
# What `flask audit` exits with where something is missing.
DIFFERENT = 3
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KIB_PER_MB = 1_000_000 / 1_024
# Our share of Stripe's limits where they are measured, in percent.
SHARE = 80
SERVICE = "the service"
LIVE_KEY = STRIPE_KEY.replace("test", "live")
START_SECONDS, QUIET_SECONDS = 30, 0.3


@dataclass(frozen=True)
class Ran:
    """A run of a command: seconds of the whole of it and of CPU, MB at most, and the counts."""

    seconds: float
    cpu: float
    memory: float
    counts: dict[str, Any]

    @property
    def rate(self) -> float:
        """Return the writes a second, from the first to the last one."""
        return float((self.counts["writes"] - 1) / (self.counts["last"] - self.counts["first"]))


class Stage(Processes):
    """The upstream with its latency, and what is measured in front of it.

    With `live`, Stripe has a live account's limits and the service our share of them; without it,
    neither has any.
    """

    def __init__(
        self,
        *flags: str,
        latency: bool = False,
        live: bool = False,
        subscriptions: int = 0,
        invoices: int = 0,
    ) -> None:
        super().__init__()
        self.live, self.subscriptions, self.invoices = live, subscriptions, invoices
        self.options = ["--subscriptions", str(subscriptions), "--invoices", str(invoices), *flags]
        self.options += ["--live"] if live else []
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

    def stop(self) -> None:
        """End all that was started, also workers that are busy for longer than their service."""
        services = [each for each in self.running if each.name == SERVICE]
        busy = [pid for each in services if each.popen.poll() is None for pid in workers_of(each)]
        super().stop()
        for pid in busy:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def settings(self, workers: int = 1, redis: str = "") -> dict[str, str]:
        """Return what the service starts with."""
        key, share = (LIVE_KEY, SHARE) if self.live else (STRIPE_KEY, 0)
        return self.environment() | {
            "STRIPE_KEY": key,
            "STRIPE_RATE_SHARE": str(share),
            "WEB_CONCURRENCY": str(workers),
            "RATE_LIMIT_REDIS": redis,
        }

    def serve(self, workers: int = 1, redis: str = "") -> Process:
        """Start the service as `make run` does, and return once it answers."""
        command = [sys.executable, "-m", "service", "--bind", "127.0.0.1:0"]
        process = self.start(SERVICE, command, self.settings(workers, redis))
        self.service = process.address()
        with closing(connection(self.service)) as http:
            exchange(http, "GET", "/healthz")
        if workers > 1:
            wait_for_quiet(process, workers)
        return process

    def start_redis(self) -> str:
        """Start a Redis that keeps nothing, and return its URL."""
        port = str(free_port())
        options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
        self.start("redis-server", ["redis-server", *options])
        wait_for(lambda: listens(int(port)), "redis-server", START_SECONDS)
        return f"redis://127.0.0.1:{port}/0"

    def counts(self) -> dict[str, Any]:
        """Return what came to the upstream so far."""
        found: dict[str, Any] = call("GET", f"{self.stripe}/_bench/counts")
        return found

    def report(self, workers: int) -> Ran:
        """Run `flask report` to its end, so many subscriptions at a time."""
        process, ran = self.run("report", "--workers", str(workers))
        if process.popen.returncode or ran.counts["writes"] != self.subscriptions:
            said = process.printed()[-2_000:]
            raise Failed(f"flask report wrote {ran.counts['writes']}:\n{said}")
        return ran

    def audit(self) -> Ran:
        """Run `flask audit` to its end; one line in a hundred invoices lacks a unit."""
        process, ran = self.run("audit", "--since", "38d", "--csv", os.devnull)
        expected = f"{self.invoices} invoices, "
        if process.popen.returncode != DIFFERENT or expected not in process.printed():
            raise Failed(f"flask audit did not see all:\n{process.printed()[-2_000:]}")
        return ran

    def run(self, *command: str) -> tuple[Process, Ran]:
        """Run a flask command to its end; return it and what it took."""
        began = time.monotonic()
        whole = [sys.executable, "-m", "flask", "--app", "app", *command]
        process = self.start(f"flask {command[0]}", whole, self.settings())
        _, status, used = os.wait4(process.popen.pid, 0)
        process.popen.returncode = os.waitstatus_to_exitcode(status)
        seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
        return process, Ran(seconds, cpu, used.ru_maxrss / KIB_PER_MB, self.counts())

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


def has_redis() -> bool:
    """Say whether there is a redis-server to start."""
    return shutil.which("redis-server") is not None


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def listens(port: int) -> bool:
    """Say whether somebody listens on a port of this machine."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def wait_for_quiet(gunicorn: Process, count: int) -> None:
    """Wait until so many workers are there and have done with their start."""

    def is_quiet() -> bool:
        before = cpu_of(workers_of(gunicorn))
        time.sleep(QUIET_SECONDS)
        found = workers_of(gunicorn)
        return len(found) == count and cpu_of(found) == before > 0

    wait_for(is_quiet, f"{count} workers", START_SECONDS)


def seconds_to_first_answer(stage: Stage) -> float:
    """Start the service, and return the seconds until it has answered /healthz."""
    began = time.monotonic()
    stage.serve()
    seconds = time.monotonic() - began
    stage.running.pop().stop()
    return seconds


def workers_of(gunicorn: Process) -> list[int]:
    """Return the process ids of gunicorn's workers."""
    master = gunicorn.popen.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [int(child) for child in children]


def cpu_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes took so far, in user and system mode."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in status if line.startswith("VmRSS:"))
    return int(kib) / KIB_PER_MB
