"""What final invoices have to bill, by what OpenMeter knew when reports asked it.

Nothing of the service is asked: what it did went over the wire (`model_hosts`). Times are UTC
seconds.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any, NamedTuple

from tests.stories.model_hosts import Report

WINDOWS = {"MINUTE": 60, "HOUR": 3_600}
# Two reports of which one knew less than this many seconds more may tie, or overtake each other.
TIE = 60

Record = dict[str, Any]


@dataclass
class Use:
    """Units used in a second; `sent` is when OpenMeter took them."""

    at: int
    units: Decimal
    sent: float | None = None


class Line(NamedTuple):
    """What a final invoice bills of an item: [start, end) in Stripe.

    `counts_until` is when Stripe counted its meter for the last time.
    """

    invoice: str
    where: tuple[str, ...]
    usage: tuple[str, str]
    subscription: str
    start: int
    end: int
    quantity: Decimal
    counts_until: int
    was_draft: bool

    @property
    def by_meter(self) -> bool:
        """Say whether a Billing Meter counted it."""
        return len(self.where) > 1


@dataclass
class Knowledge:
    """What was used, when OpenMeter and Stripe count it, and where periods begin to the second."""

    window: int
    openmeter_lag: int
    stripe_lag: int
    by_arrival: bool
    uses: dict[tuple[str, str], list[Use]] = field(default_factory=lambda: defaultdict(list))
    # By subscription: where it began, and the boundaries that are not rounded to the window.
    began: dict[str, int] = field(default_factory=dict)
    exact: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def boundary(self, subscription: str, instant: int, by_meter: bool) -> int:
        """Return from or until when usage counts that belongs to a period's start or end.

        A renewal's is rounded down to the window, as far as no exact one comes before it. With a
        Billing Meter the subscription's start is exact, too.
        """
        exact = self.exact[subscription] | ({self.began[subscription]} if by_meter else set())
        latest = max((at for at in exact if at <= instant), default=0)
        return max(instant - instant % self.window, latest)

    def span(self, line: Line) -> tuple[int, int]:
        """Return from when to when usage counts for a line."""
        start, end = (
            self.boundary(line.subscription, at, line.by_meter) for at in (line.start, line.end)
        )
        return start, end

    def metered(
        self, usage: tuple[str, str], span: tuple[int, int], known_at: float | None = None
    ) -> Decimal:
        """Return what was used in a span, as OpenMeter knew it at a second, or knows it by now."""
        return sum(
            (
                use.units
                for use in self.uses[usage]
                if span[0] <= use.at < span[1]
                and use.sent is not None
                and (known_at is None or use.sent + self.openmeter_lag <= known_at)
            ),
            Decimal(0),
        )

    def counted(self, line: Line, reports: Iterable[Report]) -> list[Report]:
        """Return the reports of a line's period that Stripe counted when it billed it.

        It refuses the usage records of a period that is over, which `reports` leaves out.
        """
        since, _ = self.span(line)
        lag = self.stripe_lag if line.by_meter else 0
        return [
            report
            for report in reports
            if report.where == line.where
            and report.query.since == since
            and int(report.at) + lag <= line.counts_until
        ]

    def check_line(self, line: Line, reports: Iterable[Report]) -> bool:
        """Check a line; say whether it bills all that was metered.

        It bills what OpenMeter knew when last asked, but for what it knew not for a minute then;
        and a draft is asked about after its period's end.
        """
        span = self.span(line)
        used = self.metered(line.usage, span)
        # What is used in the very second of a reset can be reported before it.
        most = self.metered(line.usage, (span[0], span[1] + (not line.was_draft)))
        assert line.quantity <= most, (f"{most} metered in {span}", line)
        counted = self.counted(line, reports)
        # Which came first of what Stripe did in one second, nobody can say.
        surely = [report for report in counted if int(report.at) < line.counts_until]
        last = max(surely, key=lambda report: report.query.at, default=None)
        latest = last.query.at if last else 0.0
        if line.was_draft and line.by_meter:
            assert latest >= line.end, ("nothing closed it", f"{used} metered in {span}", line)
        values = {report.value for report in counted if self.may_stand(report, last, line.by_meter)}
        known = self.metered(line.usage, span, latest)
        assert line.quantity in (values if last else values | {Decimal(0)}), (
            f"reports within a minute before {latest:.1f} had {sorted(values)}",
            f"{known} known then in {span}, {used} in the end",
            line,
        )
        return line.quantity == used

    def may_stand(self, report: Report, last: Report | None, by_meter: bool) -> bool:
        """Say whether a report may win over the one that knew most.

        Within a process one follows the other, and where the last to arrive counts, it stays so.
        """
        if last is None or report is last or report.query.at > last.query.at:
            return True
        keeps_order = self.by_arrival or not by_meter
        if keeps_order and report.host is last.host:
            return False
        return report.query.at >= last.query.at - TIE

    def check_order(self, reports: Iterable[Report]) -> int:
        """Check that a process writes no older total after a newer one; count where that mattered.

        `reports` are in the order in which Stripe took them.
        """
        beside = 0
        latest: dict[tuple[object, ...], Report] = {}
        for report in reports:
            key = (report.where, report.query.since, report.host)
            former = latest.setdefault(key, report)
            ordered = former.query.at <= report.query.at
            assert ordered, ("an older total was written after a newer one", former, report)
            beside += report.query.at - former.at < TIE and report.value != former.value
            latest[key] = report
        return beside

    def check_overlaps(self, lines: Iterable[Line]) -> None:
        """Check that no unit is on two lines."""
        spans: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
        for line in lines:
            start, end = self.span(line)
            # A usage record's first period is rounded down, over the customer's former one.
            start = max(start, self.began[line.subscription])
            if line.quantity and start < end:
                spans[line.usage].append((start, end, line.invoice))
        for found in spans.values():
            for before, after in pairwise(sorted(found)):
                assert before[1] <= after[0], ("a unit is on two lines", before, after)
