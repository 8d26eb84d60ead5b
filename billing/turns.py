"""Reports of one item, one at a time: each asks OpenMeter and tells Stripe before the next asks.

Otherwise the one that asked first could be told last, and take the place of the later total.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

from billing.stripe_api import ReportFailed
from service.transport import seconds_left

# The longest that a report waits for another one of its item: two calls and their repetitions.
TURN_SECONDS = 60
# Of how many items, and at most of twice as many, a process remembers what their last reports told.
MOST_TOLD = 5_000
NOTHING_TOLD = (0, 0.0)


@dataclass
class Turn:
    """One report of an item while no other is under way, and what those before it told.

    That is the latest UTC second of which one told, and the monotonic second at which the last
    total that was told had been asked for.
    """

    latest: int
    asked_at: float

    def is_overtaken(self, as_of: int, end: int) -> bool:
        """Say whether a report of a running period comes after one that told of a later second.

        The item may be another one by then, with another meter or period. What is known of a
        period after its end stays so.
        """
        return as_of < min(self.latest, end)

    def note(self, as_of: int, end: int) -> None:
        """Note a report: it tells of the item until then, or until its period's end."""
        self.latest = max(self.latest, min(as_of, end))


class Turns:
    """The turns of a process's reports, and what the last ones told of each item."""

    def __init__(self) -> None:
        self.changed, self.under_way = Condition(), set[int]()
        self.told, self.told_before = dict[int, tuple[int, float]](), dict[int, tuple[int, float]]()

    @contextmanager
    def wait(self, key: tuple[str, ...]) -> Iterator[Turn]:
        """Wait until no other report of an item is under way, which an account and its id name.

        Raises ReportFailed.
        """
        name, seconds = hash(key), max(0, min(TURN_SECONDS, seconds_left()))
        with self.changed:
            if not self.changed.wait_for(lambda: name not in self.under_way, seconds):
                raise ReportFailed("another report of it was under way for too long")
            self.under_way.add(name)
            turn = Turn(*(self.told.get(name) or self.told_before.get(name) or NOTHING_TOLD))
        try:
            yield turn
        finally:
            with self.changed:
                self.remember(name, turn)
                self.under_way.remove(name)
                self.changed.notify_all()

    def remember(self, name: int, turn: Turn) -> None:
        """Remember what was told of an item; forget those that were not reported for longest."""
        if len(self.told) >= MOST_TOLD:
            self.told, self.told_before = {}, self.told
        self.told[name] = (turn.latest, turn.asked_at)
