"""The time of a subject's usage that lines and running items count: its gaps and overlaps.

Nothing is called here. Times are UTC seconds, spans are [start, end).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeVar

from usage import Whose

# Where the span of a running item ends: nobody knows yet.
OPEN_END = 253_402_300_799

Kept = TypeVar("Kept")


class Counted(NamedTuple):
    """Whose usage is counted: a meter, and a subject or a whole customer of OpenMeter's."""

    meter: str
    subject: Whose


@dataclass(frozen=True, slots=True)
class Span:
    """A time whose usage a line bills, or a running item is going to.

    `invoice` is empty while it runs. One of no length says only which price applied then. `bills`
    is False where the usage costs nothing: in a trial, which has no price either, or on an invoice
    that was voided.
    """

    start: int
    end: int
    account: str
    customer: str
    subscription: str
    item: str
    price: str
    invoice: str = ""
    bills: bool = True


@dataclass(frozen=True, slots=True)
class Life:
    """From when to when a subscription has, or had, an item that counts."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A time that no span covers.

    `before` is the span that came last. `is_inside` says whether a subscription had an item then:
    that time was to be billed. With `knows_price`, the price of `before` still applied.
    """

    start: int
    end: int
    before: Span | None
    is_inside: bool
    knows_price: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """A time that two spans bill."""

    start: int
    end: int
    first: Span
    second: Span


@dataclass
class Coverage:
    """The spans, lives and changes of price that are known, by what they count.

    `owners` has the customer of OpenMeter's that a subject is of: what counts the customer counts
    the subject, too.
    """

    spans: dict[Counted, list[Span]] = field(default_factory=lambda: defaultdict(list))
    lives: dict[Counted, list[Life]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[Counted, list[int]] = field(default_factory=lambda: defaultdict(list))
    owners: dict[Counted, Counted] = field(default_factory=dict)

    @property
    def counted(self) -> set[Counted]:
        """Return whose usage anything counts, or counted."""
        return self.spans.keys() | self.lives.keys() | self.owners.keys()

    @property
    def meters(self) -> list[str]:
        """Return the meters in use."""
        return sorted({counted.meter for counted in self.counted})

    def add(self, other: "Coverage") -> None:
        """Take over what another one has: lines once each, the rest where it is new."""
        for counted, spans in other.spans.items():
            mine = self.spans[counted]
            mine += [span for span in spans if span.price or span not in mine]
        for counted, lives in other.lives.items():
            add_new(lives, self.lives[counted])
        for counted, changes in other.changes.items():
            add_new(changes, self.changes[counted])

    def gaps(self, counted: Counted, since: int, until: int) -> list[Gap]:
        """Return the gaps in what is counted of a subject, or a customer, between two seconds.

        Where no subscription counts a customer, each of its subjects is looked at by itself.
        """
        spans, lives = [*self.spans.get(counted, [])], self.lives.get(counted, [])
        if owner := self.owners.get(counted):
            spans += self.spans.get(owner, [])
            spans += [known_gap(gap) for gap in self.gaps(owner, since, until)]
        found = gaps(spans, lives, self.changes.get(counted, []), since, until)
        of_subject = isinstance(counted.subject, str)
        return [gap for gap in found if of_subject or gap.is_inside]

    def overlaps(self, counted: Counted, since: int, until: int) -> list[Overlap]:
        """Return where usage of a subject, or a customer, between two seconds is billed twice.

        What two items of its customer bill twice is the customer's.
        """
        spans = self.spans.get(counted, [])
        if owner := self.owners.get(counted):
            theirs = self.spans.get(owner, [])
            among_them = overlaps(theirs, since, until)
            found = overlaps([*spans, *theirs], since, until)
            return [overlap for overlap in found if overlap not in among_them]
        return overlaps(spans, since, until)


def add_new(some: list[Kept], known: list[Kept]) -> None:
    """Add to a list what is not in it yet."""
    known += [each for each in some if each not in known]


def gaps(
    spans: Iterable[Span], lives: Iterable[Life], changes: Iterable[int], since: int, until: int
) -> list[Gap]:
    """Return the times in [since, until) that no span covers.

    They are cut where lives begin and end, and where prices changed.
    """
    known = sorted(spans, key=lambda span: (span.start, span.end))
    lives, changes = list(lives), sorted(changes)
    cuts = {*changes, *(at for life in lives for at in (life.start, life.end))}
    found = []
    for start, end in uncovered(known, since, until):
        edges = [start, *sorted(at for at in cuts if start < at < end), end]
        found += [gap(known, lives, changes, *edge) for edge in pairwise(edges)]
    return found


def known_gap(gap: Gap) -> Span:
    """Return the time of a gap as one that is not to be found again."""
    return Span(gap.start, gap.end, "", "", "", "", "", bills=False)


def gap(spans: list[Span], lives: list[Life], changes: list[int], start: int, end: int) -> Gap:
    """Return what is known of a time that no span covers."""
    earlier = [span for span in spans if span.price and span.end <= start]
    before = max(earlier, key=lambda span: span.end, default=None)
    changed = before is not None and any(before.end <= at <= start for at in changes)
    is_inside = any(life.start <= start and end <= life.end for life in lives)
    return Gap(start, end, before, is_inside, before is not None and not changed)


def uncovered(spans: list[Span], since: int, until: int) -> Iterator[tuple[int, int]]:
    """Yield the times in [since, until) that no span covers; spans come by their start."""
    reached = since
    for span in spans:
        if span.end > span.start:
            if min(span.start, until) > reached:
                yield reached, min(span.start, until)
            reached = max(reached, span.end)
    if until > reached:
        yield reached, until


def overlaps(spans: Iterable[Span], since: int, until: int) -> list[Overlap]:
    """Return where two spans bill the same time in [since, until), each pair once."""
    found: list[Overlap] = []
    running: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.subscription)):
        if not span.bills or span.end <= span.start:
            continue
        running = [other for other in running if other.end > span.start]
        for other in running:
            start, end = max(span.start, since), min(span.end, other.end, until)
            if start < end:
                found.append(Overlap(start, end, other, span))
        running.append(span)
    return found
