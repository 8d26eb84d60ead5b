"""Whether the services that this one depends on answer, so that probes cost little.

Seconds are the monotonic clock's.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from threading import Lock

from pyrate_limiter import Limiter, Rate

REMEMBERED_SECONDS = 10
OK = "ok"


@dataclass
class LastAnswer:
    """What a service answered last, to whatever call: `ok`, or why not; empty if to none yet."""

    said: str = ""
    at: float = 0.0

    def note(self, said: str) -> None:
        """Take a newer answer."""
        self.said, self.at = said, time.monotonic()

    def forget(self) -> None:
        """Know nothing any more."""
        self.said = ""

    def is_younger_than(self, seconds: float) -> bool:
        """Say whether it came within so many seconds."""
        return bool(self.said) and time.monotonic() - self.at < seconds


@dataclass
class Check:
    """How a service is asked whether it answers, and how often.

    `ask` returns `ok` or why not. What calls for other reasons have told is in `last`: an `ok`
    holds for `ok_seconds`, a failure for REMEMBERED_SECONDS. With `rate`, it is asked no oftener.
    """

    ask: Callable[[], str]
    last: LastAnswer = field(default_factory=LastAnswer)
    ok_seconds: float = REMEMBERED_SECONDS
    rate: Rate | None = None

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.rate) if self.rate else None

    def is_due(self) -> bool:
        """Say whether to ask, and count it."""
        seconds = self.ok_seconds if self.last.said == OK else REMEMBERED_SECONDS
        if self.last.is_younger_than(seconds):
            return False
        return self.limiter is None or self.limiter.try_acquire("probe", blocking=False) is True


class Readiness:
    """What each service answered last."""

    def __init__(self, checks: Mapping[str, Check], pool: Executor) -> None:
        self.checks, self.pool = checks, pool
        self.lock = Lock()

    def current_answers(self) -> dict[str, str]:
        """Return `ok` or a reason for each service; ask those of which too little is known."""
        with self.lock:
            due = {name: check for name, check in self.checks.items() if check.is_due()}
            jobs = {name: self.pool.submit(check.ask) for name, check in due.items()}
            for name, job in jobs.items():
                self.checks[name].last.note(job.result())
            return {name: check.last.said for name, check in self.checks.items()}
