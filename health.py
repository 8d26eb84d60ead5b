"""GET /healthz, whether this process answers, and GET /readyz, whether both services do."""

import time
from collections.abc import Callable
from threading import Lock

from flask import Flask

import billing
import usage
from settings import Services

REMEMBERED_SECONDS = 10


class Readiness:
    """What both services answered last, remembered so that probes cost them little."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.lock = Lock()
        self.until = 0.0
        self.found: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """Return `ok` or a reason for each service; ask them if the last answers are too old."""
        with self.lock:
            if time.monotonic() >= self.until:
                self.found = self.ask()
                self.until = time.monotonic() + REMEMBERED_SECONDS
            return self.found

    def ask(self) -> dict[str, str]:
        """Ask both at the same time."""
        checks: dict[str, Callable[[], None]] = {
            "openmeter": lambda: usage.check_openmeter(self.services.openmeter),
            "stripe": lambda: billing.check_stripe(self.services.stripe),
        }
        jobs = {name: self.services.pool.submit(state, check) for name, check in checks.items()}
        return {name: job.result() for name, job in jobs.items()}


def state(check: Callable[[], None]) -> str:
    """Return `ok`, or why a check failed."""
    try:
        check()
    except usage.NotReported as error:
        return str(error)
    return "ok"


def register(app: Flask, services: Services) -> None:
    """Answer probes."""
    readiness = Readiness(services)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answer 200 without calling anybody."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> tuple[dict[str, str], int]:
        """Answer 200 if both services answered within the last seconds, or 503 and why not."""
        found = readiness.look()
        return found, 200 if set(found.values()) == {"ok"} else 503
