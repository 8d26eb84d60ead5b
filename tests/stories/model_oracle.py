"""What the model's histories know by themselves: usage, tenures, answers; and what follows.

Nothing of the service is asked. A history notes each use with its second, and each second at
which an item got or lost a price. What a final invoice's line has to bill follows from these.
Times are UTC seconds.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

HOUR = 3_600
NEVER = 10**12
# What warnings say: of an invoice that lacks units, and of usage that may be on none.
LACKS = re.compile(r"([\d.]+) metered, ([\d.]+) on invoice (\w+): ([\d.]+) units .*not billed")
METERED = re.compile(r"([\d.]+) units were metered")

Record = dict[str, Any]


@dataclass
class Use:
    """Units used in a second; `arrived` is the turn in which OpenMeter was told."""

    at: int
    units: Decimal
    arrived: int = NEVER


@dataclass
class Tenure:
    """From when to when an item had a metered price.

    `prices` are several where usage records went over. `is_first` says that the item began with
    its subscription.
    """

    item: str
    prices: set[str]
    subscription: str
    usage: tuple[str, str]
    by_meter: bool
    start: int
    began_by: str
    end: int = NEVER
    ended_by: str = ""

    @property
    def is_first(self) -> bool:
        return self.began_by == "start"


class Loss(NamedTuple):
    """A period that ended where no invoice may bill it."""

    tenure: Tenure
    start: int
    end: int
    by: str


class Line(NamedTuple):
    """A final invoice's line; `final` is the turn by which it was."""

    invoice: Record
    fields: Record
    final: int


@dataclass
class Delivery:
    """A delivery and what its answer said."""

    turn: int
    at: int
    event: str
    kind: str
    subscription: str
    status: int
    reported: list[Record]
    warnings: list[Record]


def utc(second: int) -> str:
    """Return a UTC second as the service prints it."""
    return time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(second))


@dataclass
class Oracle:
    """What a history noted."""

    tie: str
    whole_quantities: bool
    turn: int = 0
    uses: dict[tuple[str, str], list[Use]] = field(default_factory=lambda: defaultdict(list))
    tenures: list[Tenure] = field(default_factory=list)
    # By subscription: seconds at which its items' periods begin or end as they stand, and trials.
    exact: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    trials: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    deliveries: list[Delivery] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def next_turn(self) -> int:
        """Return a number that is higher than all before."""
        self.turn += 1
        return self.turn

    # What was metered

    def running(self, item: str) -> Tenure | None:
        """Return the tenure that an item has now."""
        return next((t for t in self.tenures if t.item == item and t.end == NEVER), None)

    def tenure_of(self, line: Record) -> Tenure:
        """Return the tenure that a line bills: the last of its item and price before its end."""
        fitting = [
            tenure
            for tenure in self.tenures
            if tenure.item == line["item"]
            and line["price"] in tenure.prices
            and tenure.start < line["end"]
        ]
        return fitting[-1]

    def boundary(self, tenure: Tenure, instant: int) -> int:
        """Return from or until when usage counts that belongs to a period's start or end.

        A natural renewal's is rounded down to the hour, as far as the tenure goes back.
        """
        exact = self.exact[tenure.subscription] | {tenure.end}
        if not tenure.is_first or tenure.by_meter:
            exact |= {tenure.start}
        if instant in exact:
            return instant
        begun = max((at for at in exact if at <= instant), default=0)
        return max(instant - instant % HOUR, begun)

    def span(self, tenure: Tenure, start: int, end: int) -> tuple[int, int]:
        """Return from when to when usage counts for a tenure in a period."""
        return (
            self.boundary(tenure, max(start, tenure.start)),
            self.boundary(tenure, end),
        )

    def metered(self, tenure: Tenure, span: tuple[int, int], turn: int = NEVER - 1) -> Decimal:
        """Return what was used in a span, as far as OpenMeter had been told by a turn."""
        return sum(
            (
                use.units
                for use in self.uses[tenure.usage]
                if span[0] <= use.at < span[1] and use.arrived <= turn
            ),
            Decimal(0),
        )

    def is_free(self, tenure: Tenure, start: int, end: int) -> bool:
        """Say whether a period lies in a trial."""
        trials = self.trials[tenure.subscription]
        return any(begins <= start and end <= ends for begins, ends in trials)

    # What was said

    def warnings(self, item: str) -> Iterator[tuple[int, str]]:
        """Return what was warned of an item, each with its delivery's turn."""
        for delivery in self.deliveries:
            for entry in delivery.warnings:
                if entry["item"] == item:
                    yield delivery.turn, entry["warning"]

    def last_reported(self, item: str, start: int, end: int) -> Decimal:
        """Return the total that was last reported for a period before it ended."""
        found = [
            Decimal(entry["quantity"])
            for delivery in self.deliveries
            for entry in delivery.reported
            if delivery.at < end and (entry["item"], entry["from"]) == (item, utc(start))
        ]
        return found[-1] if found else Decimal(0)

    def is_told_whole(self, tenure: Tenure, start: int, end: int) -> bool:
        """Say whether a warning told all that was metered in a period that a turn ended."""
        span = self.span(tenure, start, end)
        for turn, text in self.warnings(tenure.item):
            found = METERED.search(text)
            whole = self.metered(tenure, span, turn)
            if found and Decimal(found[1]) == whole and utc(end) in text:
                return True
        return False

    def was_closed_empty(self, tenure: Tenure, start: int, end: int) -> bool:
        """Say whether a period was closed when OpenMeter had been told of no usage in it."""
        span = self.span(tenure, start, end)
        return any(
            report["item"] == tenure.item
            and report["to"] == utc(end)
            and self.metered(tenure, span, delivery.turn) == 0
            for delivery in self.deliveries
            for report in delivery.reported
        )

    def is_told_missing(self, tenure: Tenure, line: Line, span: tuple[int, int]) -> bool:
        """Say whether a warning told by how much an invoice's line is too low."""
        quantity = line.fields["quantity"]
        for turn, text in self.warnings(tenure.item):
            found = LACKS.search(text)
            if found and found[3] == line.invoice["id"]:
                metered, billed, missing = (Decimal(found[n]) for n in (1, 2, 4))
                rightly = metered == self.metered(tenure, span, turn)
                if rightly and billed in (quantity, int(quantity)) and missing == metered - billed:
                    return True
        return False

    def is_late(
        self, tenure: Tenure, line: Line, span: tuple[int, int], last_turn: int = NEVER
    ) -> bool:
        """Say whether all that a line lacks came after the period had been closed."""
        closings = [
            delivery.turn
            for delivery in self.deliveries
            if delivery.subscription == tenure.subscription
            and delivery.at >= line.fields["end"]
            and delivery.turn <= last_turn
        ]
        totals = [self.metered(tenure, span, turn) for turn in closings]
        return line.fields["quantity"] in totals

    # What has to hold

    def check(self) -> None:
        """Check all lines, and what is on none."""
        for line in self.lines:
            self.check_line(line)
        self.check_overlaps()
        for loss in self.losses:
            self.check_loss(loss)

    def check_line(self, line: Line) -> None:
        """Check that a line has what was metered, or that what it lacks was told."""
        fields = line.fields
        tenure, quantity = self.tenure_of(fields), fields["quantity"]
        where = (line.invoice["id"], line.invoice["billing_reason"], fields, tenure)
        if self.is_free(tenure, fields["start"], fields["end"]):
            assert quantity == 0, ("a trial is billed", where)
            return
        span = self.span(tenure, fields["start"], fields["end"])
        used = self.metered(tenure, span)
        assert quantity <= used, (f"{quantity} billed, {used} metered in {span}", where)
        self.count(line, tenure)
        if quantity == used:
            return
        why = f"{quantity} billed, {used} metered in {span}, not said"
        fixed = not tenure.by_meter or line.fields["arrived_before"] or not line.fields["draft"]
        if fixed:
            told = self.is_told_missing(tenure, line, span)
            told = told or self.is_told_whole(tenure, fields["start"], fields["end"])
            fraction = self.whole_quantities and int(quantity) == int(used)
            assert told or fraction or self.is_late(tenure, line, span), (why, where)
            last = self.last_reported(tenure.item, span[0], fields["end"])
            assert quantity >= last, (f"{last} had been reported", why, where)
        else:
            assert self.is_late(tenure, line, span, line.final), (why, where)

    def check_overlaps(self) -> None:
        """Check that no unit is on two lines."""
        spans = defaultdict(set)
        for line in self.lines:
            fields = line.fields
            tenure = self.tenure_of(fields)
            if fields["quantity"] and not self.is_free(tenure, fields["start"], fields["end"]):
                start, end = self.span(tenure, fields["start"], fields["end"])
                # A usage record's first period is rounded down, over the customer's former one.
                spans[tenure.usage].add((max(start, tenure.start), end, line.invoice["id"]))
        for found in spans.values():
            for before, after in pairwise(sorted(span for span in found if span[0] < span[1])):
                assert before[1] <= after[0], ("a unit is on two lines", before, after)

    def check_loss(self, loss: Loss) -> None:
        """Check that usage which is on no invoice was told."""
        tenure, start, end, _ = loss
        if self.is_free(tenure, start, end) or any(
            line.fields["item"] == tenure.item and line.fields["end"] == end for line in self.lines
        ):
            return
        used = self.metered(tenure, self.span(tenure, start, end))
        if used:
            self.seen[f"told {loss.by}"] += 1
            told = self.is_told_whole(tenure, start, end)
            # What came later still is the audit's.
            told = told or self.was_closed_empty(tenure, start, end)
            assert told, (f"{used} units on no invoice", loss)

    def count(self, line: Line, tenure: Tenure) -> None:
        """Count what a line that bills something shows."""
        if not line.fields["quantity"]:
            return
        way = "meter" if tenure.by_meter else "record"
        self.seen[f"{way} {line.invoice['billing_reason']}"] += 1
        if tenure.start >= line.fields["start"]:
            self.seen[f"billed from {tenure.began_by}"] += 1
        if tenure.end == line.fields["end"]:
            self.seen[f"billed until {tenure.ended_by}"] += 1
        if any(line.fields["start"] == ends for _, ends in self.trials[tenure.subscription]):
            self.seen["billed after trial"] += 1
