"""Stripe's limits of a live account: a second that slides, for each endpoint and for all.

Each endpoint takes 25 requests a second and all together 100; meter events have 1,000 of their
own (docs.stripe.com/rate-limits). This knows nothing of how the service keeps to them.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

ENDPOINT, ALL, METER_EVENTS = 25, 100, 1_000
ALL_NAME, METER_EVENTS_NAME = "all", "POST /v1/billing/meter_events"
# What somebody else sends on the same account: a checkout.
CHECKOUT = "POST /v1/payment_intents"
SECOND = 1.0


@dataclass
class LastSecond:
    """How many came within a second, and the most that did."""

    came: deque[float] = field(default_factory=deque)
    most: int = 0

    def count(self, now: float) -> int:
        """Return how many came in the second before a monotonic second."""
        while self.came and self.came[0] <= now - SECOND:
            self.came.popleft()
        return len(self.came)

    def add(self, now: float) -> None:
        """Note one that comes now."""
        self.came.append(now)
        self.most = max(self.most, self.count(now))


@dataclass
class Limits:
    """What was taken of each limit, what of it came from the service, and who was refused."""

    taken: defaultdict[str, LastSecond] = field(default_factory=lambda: defaultdict(LastSecond))
    ours: defaultdict[str, LastSecond] = field(default_factory=lambda: defaultdict(LastSecond))
    refused: int = 0
    checkouts: int = 0
    checkouts_refused: int = 0

    def refusal(self, endpoint: str, now: float) -> str:
        """Take a request, or return the reason of its 429; what is refused takes nothing."""
        names, is_checkout = limits_of(endpoint), endpoint == CHECKOUT
        self.checkouts += is_checkout
        for name in names:
            if not is_checkout:
                self.ours[name].add(now)
        full = [name for name, most in names.items() if self.taken[name].count(now) >= most]
        if full:
            self.refused += not is_checkout
            self.checkouts_refused += is_checkout
            return "global-rate" if full[0] == ALL_NAME else "endpoint-rate"
        for name in names:
            self.taken[name].add(now)
        return ""

    def used(self) -> dict[str, float]:
        """Return the largest use of each limit that the service made in any second, in percent."""
        return {name: 100 * each.most / most_of(name) for name, each in self.ours.items()}


def limits_of(endpoint: str) -> dict[str, int]:
    """Return the limits that a request counts for, in requests a second."""
    if endpoint == METER_EVENTS_NAME:
        return {endpoint: METER_EVENTS}
    return {endpoint: ENDPOINT, ALL_NAME: ALL}


def most_of(name: str) -> int:
    """Return how many requests a second one of the limits allows."""
    return ALL if name == ALL_NAME else limits_of(name)[name]
