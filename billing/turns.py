"""Reports of one item, one at a time: each asks OpenMeter and tells Stripe before the next asks.

Otherwise the one that asked first could be told last, and take the place of the later total.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from billing.stripe_api import ReportFailed
from service.transport import seconds_left

# The longest that a report waits for another one of its item: two calls and their repetitions.
TURN_SECONDS = 60
# Of how many items a process remembers how late the last report knew them.
MOST_TURNS = 10_000


class Turn:
    """What keeps an item's reports apart, and the latest UTC second of which one told.

    `asked_at` is the monotonic second at which the last total that was told had been asked for.
    """

    def __init__(self) -> None:
        self.lock, self.latest, self.asked_at = Lock(), 0, 0.0

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Wait until no other report of the item is under way. Raises ReportFailed."""
        if not self.lock.acquire(timeout=max(0, min(TURN_SECONDS, seconds_left()))):
            raise ReportFailed("another report of it was under way for too long")
        try:
            yield
        finally:
            self.lock.release()

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
    """The turns of the items that this process reported of late."""

    def __init__(self) -> None:
        self.lock, self.turns = Lock(), OrderedDict[tuple[str, ...], Turn]()

    def of(self, key: tuple[str, ...]) -> Turn:
        """Return the turn of an item, which an account and its id name."""
        with self.lock:
            turn = self.turns.setdefault(key, Turn())
            self.turns.move_to_end(key)
            if len(self.turns) > MOST_TURNS:
                self.turns.popitem(last=False)
            return turn
