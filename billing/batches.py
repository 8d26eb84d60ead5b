"""Which subscriptions wait to be reported together, and OpenMeter's totals of all of them at once.

Monotonic seconds say when something was read or asked for.
"""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from threading import Lock
from typing import NamedTuple

import usage
from billing.items import MeteredItem
from billing.listing import ends_soon
from billing.reports import (
    ASK_AGAIN_SECONDS,
    Asked,
    Outcome,
    PendingReport,
    Services,
    measure,
)
from usage import MAX_SUBJECTS

# Reports that wait for others at most: with their time spread over a month's 720 hours, seven for
# each of these.
MOST_WAITING = 5_000
# How long a subscription waits for others, and one of which a period ends soon.
WAIT_SECONDS, SOON_WAIT_SECONDS = 26, 2


class Span(NamedTuple):
    """The time in which a meter's usage counts: what one query can ask for."""

    meter: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Due:
    """A subscription as it was read at a monotonic second, and what is to be reported of it.

    Without `read_at` it cannot wait. `end` is the UTC second at which its first period ends.
    """

    subscription: str
    reports: list[PendingReport]
    outcome: Outcome
    read_at: float | None = None
    end: int = 0


def span_of(item: MeteredItem) -> Span:
    """Return the time in which an item's usage counts."""
    return Span(item.meter, item.window_start, item.window_end)


def spans_of(due: Due) -> tuple[Span, ...]:
    """Return what has to be the same in subscriptions that are reported together."""
    return tuple(span_of(report.item) for report in due.reports)


class Batch:
    """OpenMeter's totals of several subjects in one span.

    They are asked for by the first report that needs its own, so just before it is written, and
    once more by the first one that finds them too old. If that fails, each is asked for alone.
    """

    def __init__(self, span: Span, subjects: list[str], services: Services) -> None:
        self.span, self.subjects, self.services = span, subjects, services
        self.lock, self.is_split = Lock(), False
        self.found, self.asked_at = dict[str, Decimal](), float("-inf")

    def ask(self, item: MeteredItem, since: float) -> Asked:
        """Return an item's total of the last seconds, asked for not before a monotonic second.

        Raises ReportFailed.
        """
        with self.lock:
            is_old = time.monotonic() - self.asked_at > ASK_AGAIN_SECONDS
            if not self.is_split and (is_old or self.asked_at < since):
                self.ask_together()
            if not self.is_split:
                return Asked(self.found.get(str(item.subject)), self.asked_at)
        at = time.monotonic()
        return Asked(measure(self.services, item), at)

    def ask_together(self) -> None:
        """Ask for all totals in one query, or let each be asked for alone."""
        self.asked_at = time.monotonic()
        try:
            self.found = usage.totals(
                self.services.openmeter,
                self.span.meter,
                self.subjects,
                self.span.start,
                self.span.end,
            )
        except usage.QueryFailed:
            self.is_split = True


def ask_together(group: list[Due], services: Services) -> list[Due]:
    """Let subscriptions with the same spans, 100 at most, ask for their totals together.

    One alone asks as ever. So does a customer of OpenMeter's, for one that it does not know fails
    the whole query, and a span without time, of which it knows nothing.
    """
    if len(group) == 1:
        return group
    subjects: dict[Span, dict[str, None]] = {}
    for due in group:
        for item in (report.item for report in due.reports):
            if isinstance(item.subject, str):
                subjects.setdefault(span_of(item), {})[item.subject] = None
    batches = {
        span: Batch(span, list(names), services)
        for span, names in subjects.items()
        if span.start < span.end
    }
    return [with_batches(due, batches) for due in group]


def with_batches(due: Due, batches: dict[Span, Batch]) -> Due:
    """Let a subscription's reports ask for their totals in the batches of their spans."""
    reports = []
    for report in due.reports:
        is_subject = isinstance(report.item.subject, str)
        batch = batches.get(span_of(report.item)) if is_subject else None
        ask = partial(batch.ask, report.item) if batch else None
        reports.append(replace(report, ask=ask))
    return replace(due, reports=reports)


def with_batches_of(due: Due, before: Due) -> Due:
    """Let a subscription that was read again ask for its totals as it would have before."""
    asks = {
        (span_of(report.item), report.item.subject): report.ask
        for report in before.reports
        if report.ask
    }
    reports = [
        replace(report, ask=asks.get((span_of(report.item), report.item.subject)))
        for report in due.reports
    ]
    return replace(due, reports=reports)


class WaitingRoom:
    """Subscriptions that wait for others with the same spans, each group in the order it came."""

    def __init__(self) -> None:
        self.lock, self.count = Lock(), 0
        self.full = deque[list[Due]]()
        self.soon = OrderedDict[tuple[Span, ...], list[Due]]()
        self.later = OrderedDict[tuple[Span, ...], list[Due]]()

    def add(self, due: Due, now: int) -> None:
        """Let a subscription wait; `now` is Stripe's second."""
        spans = spans_of(due)
        with self.lock:
            self.count += len(due.reports)
            groups = self.soon if ends_soon(due.end, now) else self.later
            group = groups.setdefault(spans, [])
            group.append(due)
            if len(group) == MAX_SUBJECTS:
                self.full.append(groups.pop(spans))

    def take(self, most: int) -> list[Due]:
        """Return a group whose turn it is, if there is one: it is full, or has waited for long.

        With more reports than `most` the one that waits longest has its turn.
        """
        with self.lock:
            group: list[Due] = []
            if self.full:
                group = self.full.popleft()
            else:
                is_over = self.count > most
                for groups, seconds in (
                    (self.soon, SOON_WAIT_SECONDS),
                    (self.later, WAIT_SECONDS),
                ):
                    if groups and (is_over or has_waited(groups, seconds)):
                        _, group = groups.popitem(last=False)
                        break
            self.count -= sum(len(due.reports) for due in group)
        return group


def has_waited(groups: OrderedDict[tuple[Span, ...], list[Due]], seconds: float) -> bool:
    """Say whether the first one of some groups was read so many seconds ago."""
    read_at = next(iter(groups.values()))[0].read_at or 0
    return time.monotonic() - read_at > seconds
