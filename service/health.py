"""Whether the services that this one depends on answer, remembered so that probes cost little."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from threading import Lock

REMEMBERED_SECONDS = 10

# Returns `ok`, or why a service does not answer.
Check = Callable[[], str]


class Readiness:
    """What each service answered last."""

    def __init__(self, checks: Mapping[str, Check], pool: Executor) -> None:
        self.checks, self.pool = checks, pool
        self.lock = Lock()
        self.expires = 0.0
        self.answers: dict[str, str] = {}

    def current_answers(self) -> dict[str, str]:
        """Return `ok` or a reason for each service; ask them if the last answers are too old."""
        with self.lock:
            if time.monotonic() >= self.expires:
                self.answers = self.ask_all()
                self.expires = time.monotonic() + REMEMBERED_SECONDS
            return self.answers

    def ask_all(self) -> dict[str, str]:
        """Ask all at the same time."""
        jobs = {name: self.pool.submit(check) for name, check in self.checks.items()}
        return {name: job.result() for name, job in jobs.items()}
