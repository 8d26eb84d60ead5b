"""Stripe's time, and the second that a report carries. Times are UTC seconds."""

import logging
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

HOUR = 3_600
# What was so that long ago is taken to be so now.
FRESH_SECONDS = 5
# Beyond it, somebody should set the host's clock; it is said once an hour.
OFF_SECONDS = 30
# Answers overtake each other, and their `Date` has whole seconds: so much is no step back.
JITTER_SECONDS = 2
# In a period's first minutes, and in those after its end, each second has one of its own; later,
# two seconds of a running period share one, and so does a minute after its end.
FINE_SECONDS, RUNNING_SHARE, CLOSED_SHARE = 300, 2, 60

log = logging.getLogger("app")


class Heard(NamedTuple):
    """Stripe's second, and what this host's clocks showed when it was heard."""

    date: int
    monotonic: float
    host: float


@lru_cache(maxsize=8)
def date_second(date: str) -> int:
    """Return the UTC second of a `Date`, which answers of the same second share.

    Raises ValueError or OverflowError.
    """
    return int(parsedate_to_datetime(date).timestamp())


def report_steps(seconds: int, share: int) -> int:
    """Return how many seconds a report moves on while these pass."""
    fine = min(seconds, FINE_SECONDS)
    return fine + (seconds - fine) // share


# For how long after a period's end its reports are told apart: 72 h that a draft can be held, and
# as much again that a team can let it wait; and a day.
KEPT_SECONDS = 7 * 24 * HOUR
# What is kept free for them before the end.
RESERVED_SECONDS = report_steps(KEPT_SECONDS, CLOSED_SHARE) + 1


def report_second(start: int, end: int, known_at: int) -> int:
    """Return the UTC second in (start, end) that a report carries which is known at another.

    Whichever way Stripe reads "last" of a Billing Meter, a report that knows more wins: what is
    known a minute later has a later second, before and after the end. So reports of a running
    period lag, and leave its last RESERVED_SECONDS to those that come after the end, whenever
    that is. A period of six hours keeps them all apart for a week, one of 2 h 40 min for 72 h, one
    of an hour for 22 h; then they share its last second. Boundaries are left out.
    """
    until = min(known_at, end)
    lagging = max(start + report_steps(until - start, RUNNING_SHARE), until - RESERVED_SECONDS)
    if known_at < end:
        return max(start + 1, min(lagging, end - 2))
    return min(max(start + 1, lagging) + report_steps(known_at - end, CLOSED_SHARE), end - 1)


class StripeClock:
    """What Stripe's clock says: the `Date` of one of its answers, and the seconds since.

    Seconds are named by this host's monotonic clock. Until Stripe has answered, and after this
    host was asleep, it is the host's own time.
    """

    def __init__(self) -> None:
        self.heard: Heard | None = None
        self.warned_at: float | None = None
        self.lock = Lock()

    def hear(self, headers: Mapping[str, Any] | None, sent_at: float) -> None:
        """Take the time from the headers of the answer to a call sent at a monotonic second."""
        try:
            date = date_second(str((headers or {})["Date"]))
        except (KeyError, ValueError, OverflowError):
            return
        with self.lock:
            now = self.now()
            fits = self.at(sent_at) - JITTER_SECONDS <= date <= now
            if not fits or not self.is_known:
                self.heard, now = Heard(date, time.monotonic(), time.time()), date
            self.warn_if_host_is_off(int(time.time()) - now)

    @property
    def is_known(self) -> bool:
        """Say whether Stripe's time is known, and this host's clocks went on together since."""
        heard = self.heard
        if heard is None:
            return False
        apart = (time.time() - heard.host) - (time.monotonic() - heard.monotonic)
        return abs(apart) <= JITTER_SECONDS

    def at(self, monotonic: float) -> int:
        """Return Stripe's second at one of the monotonic clock's."""
        heard = self.heard
        if heard is None or not self.is_known:
            return int(time.time() - (time.monotonic() - monotonic))
        return int(heard.date + monotonic - heard.monotonic)

    def now(self) -> int:
        """Return Stripe's second now."""
        return self.at(time.monotonic())

    def host_is_ahead(self) -> int:
        """Return by how many seconds this host's clock is ahead of Stripe's; 0 if not known."""
        return int(time.time()) - self.now()

    def warn_if_host_is_off(self, ahead: int) -> None:
        """Warn, once an hour, of a host's clock that is so many seconds ahead of Stripe's."""
        if abs(ahead) <= OFF_SECONDS:
            return
        now = time.monotonic()
        if self.warned_at is not None and now - self.warned_at < HOUR:
            return
        self.warned_at = now
        side = "ahead of" if ahead > 0 else "behind"
        cure = "set it; until then, reports go by Stripe's"
        reason = f"this host's clock is {abs(ahead)} seconds {side} Stripe's: {cure}"
        log.warning("%s", reason, extra={"warning": "clock", "outcome": "warned"})
