"""How fast Stripe may be asked: what it allows, how much of that is ours, and whose turn it is.

What Stripe allows an account in a second is shared with everything else that calls for it, such
as a checkout (docs.stripe.com/rate-limits).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Protocol

from pyrate_limiter import BucketFactory, InMemoryBucket, Limiter, MonotonicClock, Rate, RateItem

SECOND_MS = 1_000
# Those that a full second let go reach Stripe some milliseconds sooner or later than each other:
# ours is that much longer.
LONGER = 1.03
# Requests a second: of each endpoint, of all together, and of meter events, which live have a
# limit of their own.
ENDPOINT, ALL_LIVE, ALL_TEST, METER_EVENTS_LIVE = 25, 100, 25, 1_000
METER_EVENTS, OWN_METER_EVENTS = "POST /v1/billing/meter_events", "meter events"
ALL = "all requests"
# Before these a path has no id.
NAMESPACES = ("billing", "test_helpers")
# What a 429 is about (docs.stripe.com/rate-limits); any other reason is an object's own.
OF_ENDPOINT = ("endpoint-rate", "endpoint-concurrency")
OF_ALL = ("global-rate", "global-concurrency")
# Where so many go out in a second, those that wait need no distance: none is that exact.
SPACED_RATE = 100
# How much slower after a 429, at most, and how long until half of that is forgiven.
MOST_SLOWED, FORGIVEN_SECONDS = 16, 10

log = logging.getLogger("app")


class NoTurn(Exception):
    """Say that no turn came in time."""


class SharedBudget(Protocol):
    """A budget that several processes draw on; it can be gone."""

    def take(self, name: str, per_second: float, seconds: float, distance: float) -> bool | None:
        """Take a turn within so many seconds; say whether there was one, None if it is gone.

        `distance` is how many seconds have to lie between it and the last one of all processes.
        """

    def let_deliveries_pass(self, name: str) -> None:
        """Wait, for a while, until no delivery waits for a turn of this name."""

    def tell_waiting(self, name: str) -> None:
        """Tell other processes that a delivery waits for a turn of this name."""

    def is_gone(self) -> bool:
        """Say whether it did not answer just now."""


def endpoint_of(method: str, path: str) -> str:
    """Return the endpoint that a call counts for: its path without the ids."""
    version, *parts = path.strip("/").split("/")
    first = 1 if parts[0] in NAMESPACES else 0
    known = ["*" if n >= first and (n - first) % 2 else part for n, part in enumerate(parts)]
    return f"{method.upper()} /{'/'.join([version, *known])}"


def limits_of(endpoint: str, *, is_live: bool, is_scoped: bool) -> dict[str, int]:
    """Return what a call counts for, its endpoint before all, with requests a second.

    `is_scoped`: it is for another account, by Stripe-Account or Stripe-Context.
    """
    if endpoint == METER_EVENTS and is_live and not is_scoped:
        return {OWN_METER_EVENTS: METER_EVENTS_LIVE}
    return {endpoint: ENDPOINT, ALL: ALL_LIVE if is_live else ALL_TEST}


def names_in(reason: str | None, limits: list[str]) -> list[str]:
    """Return which of a call's limits, its endpoint's and that of all, a 429's reason is about."""
    if reason in OF_ENDPOINT:
        return limits[:1]
    return limits[-1:] if reason in OF_ALL else []


class OwnBuckets(BucketFactory):
    """What this process took in the last second, by limit."""

    def __init__(self, rate_of: Callable[[str], float]) -> None:
        self.rate_of, self.clock = rate_of, MonotonicClock()
        self.buckets: dict[str, InMemoryBucket] = {}

    def wrap_item(self, name: str, weight: int = 1) -> RateItem:
        """Return a turn of now."""
        return RateItem(name, self.clock.now(), weight)

    def get(self, item: RateItem) -> InMemoryBucket:
        """Return the bucket of a limit."""
        if item.name not in self.buckets:
            bucket = InMemoryBucket([window(self.rate_of(item.name))])
            self.schedule_leak(bucket)
            self.buckets[item.name] = bucket
        return self.buckets[item.name]


def window(per_second: float) -> Rate:
    """Return a rate as so many whole requests in a window of little more than a second."""
    count = max(1, int(per_second))
    return Rate(count, round(LONGER * count / per_second * SECOND_MS))


def acquire(limiter: Limiter, name: str, seconds: float) -> bool:
    """Take a turn from a limiter within so many seconds; say whether there was one."""
    if seconds:
        return limiter.try_acquire(name, timeout=seconds) is True
    # Else it would say no, too, while another thread is being told.
    lock: Any = limiter.lock
    with lock:
        return limiter.try_acquire(name, blocking=False) is True


class Lane:
    """Turns within one limit, so many a second.

    Whoever finds it free goes at once. Who has to wait goes in single file and at a distance, for
    those that a full second let go together would otherwise come together in each second after.
    """

    def __init__(self, per_second: float, take: Callable[[float, float], bool]) -> None:
        self.per_second, self.take_within = per_second, take
        self.file, self.waiting, self.next_at = Lock(), deque[None](), 0.0
        self.slowed, self.slowed_at = 1.0, 0.0

    def take(self, until: float, wait: Callable[[], object]) -> bool:
        """Take a turn before a monotonic second, and say whether it came; `wait` is told of it."""
        is_free = self.slowness() == 1 and not self.waiting
        if is_free and self.take_within(0, 0):
            return True
        wait()
        with self.in_single_file(until) as is_first:
            sleep_until(min(self.next_at, until))
            left, distance = until - time.monotonic(), self.distance()
            if not is_first or left <= 0 or not self.take_within(left, distance):
                return False
            self.next_at = time.monotonic() + distance
            return True

    @contextmanager
    def in_single_file(self, until: float) -> Iterator[bool]:
        """Wait for those before, until a monotonic second; tell whether they have gone."""
        self.waiting.append(None)
        is_first = self.file.acquire(timeout=max(0, until - time.monotonic()))
        try:
            yield is_first
        finally:
            if is_first:
                self.file.release()
            self.waiting.pop()

    def distance(self) -> float:
        """Return how many seconds lie between two that have to wait."""
        slowness = self.slowness()
        is_fine = slowness == 1 and self.per_second > SPACED_RATE
        return 0 if is_fine else slowness / self.per_second

    def slowness(self) -> float:
        """Return how many times slower than usual it is since the last 429."""
        forgiven = int((time.monotonic() - self.slowed_at) // FORGIVEN_SECONDS)
        return max(1.0, self.slowed * 0.5**forgiven)

    def slow_down(self, times: int) -> bool:
        """Go so many times slower, and say whether it was as fast as usual before."""
        before = self.slowness()
        self.slowed = min(MOST_SLOWED, before * times)
        self.slowed_at = time.monotonic()
        return before == 1


def sleep_until(second: float) -> None:
    """Sleep until a monotonic second."""
    time.sleep(max(0, second - time.monotonic()))


class Rates:
    """Our share of what Stripe allows, and its turns.

    `share` is in percent; 0: no limit of ours. One process has its part of it where `processes`
    share it unseen; with `shared`, a budget for all, it asks that first. A command, which
    `is_command` says, lets deliveries go first, and slows down more.
    """

    def __init__(
        self,
        share: int = 0,
        *,
        is_live: bool = False,
        is_command: bool = False,
        processes: int = 1,
        shared: SharedBudget | None = None,
    ) -> None:
        self.share, self.is_live, self.is_command = share / 100, is_live, is_command
        self.processes, self.shared = processes, shared
        self.limits: dict[str, int] = {}
        self.lanes: dict[str, Lane] = {}
        self.lock = Lock()
        self.own = Limiter(OwnBuckets(lambda name: self.ours(name) / processes), buffer_ms=1)

    def ours(self, name: str) -> float:
        """Return our share of a limit, in requests a second."""
        return self.limits[name] * self.share

    def limits_of(self, method: str, path: str, *, is_scoped: bool) -> dict[str, int]:
        """Return the limits that a call counts for: none, where none is ours."""
        endpoint = endpoint_of(method, path)
        known = limits_of(endpoint, is_live=self.is_live, is_scoped=is_scoped)
        return known if self.share else {}

    def take_turn(self, method: str, path: str, *, until: float, is_scoped: bool = False) -> None:
        """Wait until a call may go out, at most until a monotonic second. Raises NoTurn."""
        for name, limit in self.limits_of(method, path, is_scoped=is_scoped).items():
            if self.shared and self.is_command:
                self.shared.let_deliveries_pass(name)
            if not self.lane(name, limit).take(until, partial(self.tell_waiting, name)):
                ours = f"{self.ours(name):g} requests a second"
                raise NoTurn(f"no turn for {name} came in time: our share of Stripe's is {ours}")

    def tell_waiting(self, name: str) -> None:
        """Let commands of other processes know that a delivery waits."""
        if self.shared and not self.is_command:
            self.shared.tell_waiting(name)

    def lane(self, name: str, limit: int) -> Lane:
        """Return the lane of a limit."""
        with self.lock:
            if name not in self.lanes:
                self.limits[name] = limit
                part = self.ours(name) / (1 if self.shared else self.processes)
                self.lanes[name] = Lane(part, partial(self.take, name))
            return self.lanes[name]

    def take(self, name: str, seconds: float, distance: float) -> bool:
        """Take a turn within so many seconds from what all share, or from our own part."""
        if self.shared:
            taken = self.shared.take(name, self.ours(name), seconds, distance)
            if taken is not None:
                return taken
        return acquire(self.own, name, seconds)

    def slow_down(
        self, method: str, path: str, reason: str | None, *, is_scoped: bool = False
    ) -> None:
        """Ask less often for a while what Stripe's 429 says that it was asked too often."""
        limits = self.limits_of(method, path, is_scoped=is_scoped)
        for name in names_in(reason, list(limits)):
            if self.lane(name, limits[name]).slow_down(4 if self.is_command else 2):
                log.warning("Stripe limits %s (%s): slower for a while", name, reason)
