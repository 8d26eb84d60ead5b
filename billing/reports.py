"""Carry reports over: measure in OpenMeter, write to Stripe, and note what became of each."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import openmeter

import usage
from billing import ways
from billing.invoices import InvoicedPeriod
from billing.items import UTC_TIME, MeteredItem, period_name
from billing.stripe_api import (
    GoneFromStripe,
    NotReported,
    PeriodClosed,
    ReportFailed,
    ReportRefused,
    StripeConnection,
)
from billing.turns import Turns
from service.health import OK, LastAnswer
from service.logs import bound_log_fields
from service.transport import seconds_left

# A total that is older is asked again before it goes out.
ASK_AGAIN_SECONDS = 3
# In a period that is older, a report's second lags by more than a report can wait: a few minutes.
YOUNG_SECONDS = 1_800
# A period's first record is for its second second; Stripe's clock is known to a second.
FIRST_SECONDS = 2
# Of how many items a process remembers that they had no usage.
MOST_IDLE = 10_000

log = logging.getLogger("app")


@dataclass
class LastQuery(LastAnswer):
    """What OpenMeter answered last, and the meter that it told a total of."""

    meter: str = ""


@dataclass(frozen=True)
class Services:
    """What a process reports with: OpenMeter, Stripe, the usual window and a pool of threads.

    `account_option` is how Stripe is told of another account: an organization's key needs
    `stripe_context`. `trust_no_rows` says whether an answer of OpenMeter's without rows is no
    usage. `turns` keeps reports of one item apart. `noted` has the subscriptions of which this
    process noted a change of late, and when (monotonic seconds), `idle` what it counted of items
    without usage; with `expects_idle`, such items are nothing to look at. `queried` is what
    OpenMeter answered last. `grace_seconds` is how long after a period's end its draft waits for
    late usage; 0: as Stripe has it.
    """

    openmeter: openmeter.Client
    stripe: StripeConnection
    window_size: str
    pool: Executor
    is_live: bool
    account_option: str = "stripe_account"
    trust_no_rows: Callable[["PendingReport"], bool] = lambda _: True
    turns: Turns = field(default_factory=Turns)
    noted: dict[tuple[str, ...], float] = field(default_factory=dict)
    idle: OrderedDict[tuple[Hashable, ...], None] = field(default_factory=OrderedDict)
    expects_idle: bool = False
    queried: LastQuery = field(default_factory=LastQuery)
    grace_seconds: int = 0

    def knows_as_idle(self, item: MeteredItem) -> bool:
        """Say whether an item without usage is nothing new, and remember it."""
        key = (*self.stripe.key_of(item.id), item.meter, item.subject)
        known = key in self.idle
        self.idle[key] = None
        if len(self.idle) > MOST_IDLE:
            self.idle.popitem(last=False)
        return known or self.expects_idle


class Asked(NamedTuple):
    """A total as OpenMeter told it, None without rows; asked for at a monotonic second."""

    total: Decimal | None
    at: float


@dataclass(frozen=True)
class PendingReport:
    """One period of an item to report, and the UTC second at which it was known to be so.

    That is the second of a fresh event, or one before the item was read, on Stripe's clock;
    `read_at` is that moment on the monotonic one, where the report may wait. Without `writes` it
    is only measured. `check`, if any, is told the item, its total as Stripe would be told it, and
    the outcome, and warns. `invoiced`, if any, is what an invoice bills of it so far. `ask`, if
    any, asks for its total together with others', not before a monotonic second.
    """

    item: MeteredItem
    as_of: int
    writes: bool = True
    check: Callable[[MeteredItem, Decimal, "Outcome"], None] | None = None
    invoiced: InvoicedPeriod | None = None
    read_at: float | None = None
    ask: Callable[[float], Asked] | None = None

    @property
    def counts_until_final(self) -> bool:
        """Say whether a draft bills it that counts what is reported until it becomes final."""
        return self.invoiced is not None and self.invoiced.is_draft and not self.invoiced.is_fixed


@dataclass(frozen=True)
class Outcome:
    """What became of each item of one delivery; `gone` has those that Stripe does not know."""

    reported: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def warn(
        self,
        item: str,
        reason: str,
        kind: str,
        outcome: str = "warned",
        level: int = logging.WARNING,
    ) -> None:
        """Note and log what somebody should look at, though no retry would help."""
        fields = {"item": item, "outcome": outcome, "warning": kind}
        log.log(level, "%s: %s", item, reason, extra=fields)
        self.warnings.append({"item": item, "warning": reason})

    def fail(self, item: str, reason: str) -> None:
        """Note and log what Stripe has to send again."""
        entry = {"item": item, "error": reason}
        if entry not in self.failed:
            log.error("%s: %s", item, reason, extra={"item": item, "outcome": "failed"})
            self.failed.append(entry)

    @contextmanager
    def record_errors(self, item: str, *, refusal_is_final: bool = True) -> Iterator[None]:
        """Note a report that Stripe refuses, or that fails, and go on behind the `with`.

        Without `refusal_is_final` a refusal counts as a failure, too.
        """
        try:
            yield
        except NotReported as error:
            answered = {"request_id": error.request_id} if error.request_id else {}
            with bound_log_fields(**answered):
                self._record(item, error, refusal_is_final=refusal_is_final)

    def _record(self, item: str, error: NotReported, *, refusal_is_final: bool) -> None:
        if not refusal_is_final or isinstance(error, ReportFailed):
            self.fail(item, str(error))
        else:
            kind = "closed" if isinstance(error, PeriodClosed) else "refused"
            self.warn(item, str(error), kind, "refused")
            if isinstance(error, GoneFromStripe):
                self.gone.add(item)

    def as_json(self) -> dict[str, Any]:
        """Return what a delivery is answered with."""
        return {name: getattr(self, name) for name in ("reported", "skipped", "warnings", "failed")}

    def __str__(self) -> str:
        counts = [len(self.reported), len(self.skipped), len(self.warnings), len(self.failed)]
        return "reported {}, skipped {}, warned {}, failed {}".format(*counts)

    def add(self, other: "Outcome") -> None:
        """Take over what became of other items."""
        self.reported.extend(other.reported)
        self.skipped.extend(other.skipped)
        self.warnings.extend(other.warnings)
        self.failed.extend(other.failed)
        self.gone.update(other.gone)


def measure(services: Services, item: MeteredItem) -> Decimal | None:
    """Return OpenMeter's total for an item's period, rounded to windows; None without rows.

    Raises ReportFailed.
    """
    start, end = item.window_start, item.window_end
    try:
        found = usage.total(services.openmeter, item.meter, item.subject, start, end)
    except usage.QueryFailed as error:
        services.queried.forget()  # it may be this meter's fault alone
        raise ReportFailed(str(error)) from error
    if start < end:  # else nobody was asked
        services.queried.meter = item.meter
        services.queried.note(OK)
    return found


def ask_total(report: PendingReport, services: Services, since: float = 0) -> Asked:
    """Ask for a report's total, not before a monotonic second. Raises ReportFailed."""
    if report.ask:
        return report.ask(since)
    at = time.monotonic()
    return Asked(measure(services, report.item), at)


def report_until_deadline(
    reports: list[PendingReport], services: Services, outcome: Outcome
) -> None:
    """Report items at the same time, but the periods of one item in their order.

    What has not begun when the delivery's time is used up never does, and what still runs is not
    waited for; both count as failed. One item alone needs no other thread: its calls and waits
    have that same bound.
    """
    by_item: dict[str, list[PendingReport]] = {}
    for report in reports:
        by_item.setdefault(report.item.id, []).append(report)
    if len(by_item) == 1:
        outcome.add(report_in_order(reports, services))
    else:
        report_at_the_same_time(by_item, services, outcome)
    written = {report.item.id for report in reports if report.writes}
    if written and written <= outcome.gone:
        names = " and ".join(sorted(written))
        outcome.fail(names, "nothing of this is in the account of STRIPE_KEY: is it another's?")


def report_at_the_same_time(
    by_item: dict[str, list[PendingReport]], services: Services, outcome: Outcome
) -> None:
    """Report each item in a thread, and wait for them until the delivery's time is used up."""
    jobs: dict[str, Future[Outcome]] = {}
    for item, periods in by_item.items():
        run = copy_context().run
        jobs[item] = services.pool.submit(run, report_in_order, periods, services)
    wait(jobs.values(), max(0, seconds_left()))
    for item, job in jobs.items():
        if job.done():
            outcome.add(job.result())
        else:
            job.cancel()
            outcome.fail(item, "not reported within the time of a delivery")


def report_in_order(reports: list[PendingReport], services: Services) -> Outcome:
    """Report one after the other, whatever becomes of each."""
    outcome = Outcome()
    for report in reports:
        with bound_log_fields(**item_fields(report.item)), outcome.record_errors(report.item.id):
            report_one(report, services, outcome)
    return outcome


def item_fields(item: MeteredItem) -> dict[str, str]:
    """Return what the log says of an item besides its id."""
    return {
        "subscription": item.subscription,
        "customer": item.customer,
        "meter": item.meter,
        "subject": str(item.subject),
        "period": f"{item.window_start.isoformat()}/{item.window_end.isoformat()}",
        "way": "meter event" if item.billing_meter else "usage record",
    }


def report_fields(item: MeteredItem, total: Decimal) -> dict[str, str]:
    """Return what a report's log line says, in its order."""
    return {
        "stripe_customer": item.customer,
        "stripe_price": item.price,
        "meter": item.meter,
        "total_usage": f"{total:.6f}",
        "from": item.window_start.strftime(UTC_TIME),
        "to": item.window_end.strftime(UTC_TIME),
    }


class LatestTotal:
    """OpenMeter's total of an item's period, asked again once it is some seconds old.

    `began` is the monotonic second at which its report began; of two reports of an item, the
    later one's total is asked for after `since`, when the first one's was.
    """

    def __init__(
        self, report: PendingReport, services: Services, began: float, since: float
    ) -> None:
        self.report, self.services = report, services
        self.began = began if report.read_at is None else report.read_at
        self.found, self.asked_at = ask_total(report, services, since)

    @property
    def billable(self) -> Decimal:
        """Return it as it can be billed: no rows are 0, and so is one that fell below it.

        Stripe bills a negative total as 0, too
        (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
        """
        return max(self.found or Decimal(0), Decimal(0))

    def current(self) -> Decimal:
        """Return it once more, asked again if it has waited. Raises ReportFailed."""
        if time.monotonic() - self.asked_at > ASK_AGAIN_SECONDS:
            again, self.asked_at = ask_total(self.report, self.services, self.asked_at)
            self.found = self.found if again is None else again
        return self.billable

    def known_at(self) -> int:
        """Return the UTC second at which it was asked, in the item's period as it was known.

        A running period may have ended since. A young one keeps its second, for a later one could
        lie behind that end; those of others lag by more than any report waits.
        """
        as_of, item = self.report.as_of, self.report.item
        moved = as_of + int(self.asked_at - self.began)
        if as_of >= item.end:
            return moved
        is_young = as_of - item.counted_from < YOUNG_SECONDS
        return as_of if is_young else min(moved, item.end - 1)


def report_one(report: PendingReport, services: Services, outcome: Outcome) -> None:
    """Report one period of an item. Raises ReportRefused or ReportFailed.

    Of two reports of an item, the later one asks OpenMeter when the first has gone out.
    """
    began, item = time.monotonic(), report.item
    with services.turns.wait(services.stripe.key_of(item.id)) as turn:
        if report.writes and turn.is_overtaken(report.as_of, item.end):
            log.info("%s: a later report of it came first", item.id, extra={"item": item.id})
            outcome.skipped.append(item.id)
            return
        total = LatestTotal(report, services, began, turn.asked_at)
        if total.found is None and report.writes and not services.trust_no_rows(report):
            outcome.skipped.append(item.id)
            return
        if report.writes:
            turn.note(report.as_of, item.end)
            try:
                write(report, total, services, outcome, began)
            except ReportRefused:
                check_total(report, total, services, outcome)
                raise
            finally:
                turn.asked_at = total.asked_at
    warn_of_total(report, total, services, outcome)
    check_total(report, total, services, outcome)


def check_total(
    report: PendingReport, total: LatestTotal, services: Services, outcome: Outcome
) -> None:
    """Let a report's check look at a total, whether Stripe took it or not."""
    if report.check:
        value = ways.rounded_value(services.stripe, report.item, total.billable)
        report.check(report.item, value, outcome)


def warn_of_total(
    report: PendingReport, total: LatestTotal, services: Services, outcome: Outcome
) -> None:
    """Warn of a total that is missing, or below zero."""
    item, found = report.item, total.found
    if found is None and report.writes:
        whose = usage.whose_text(item.subject)
        reason = f"OpenMeter has no rows for meter {item.meter} and {whose}"
        level = logging.INFO if services.knows_as_idle(item) else logging.WARNING
        outcome.warn(item.id, f"{reason}: no usage, or a wrong subject", "no rows", level=level)
    if found is not None and found < 0:
        reason = f"the total {found:f} in {period_name(item)} is below zero"
        outcome.warn(item.id, f"{reason}, and was taken as 0", "below zero")


def write(
    report: PendingReport, total: LatestTotal, services: Services, outcome: Outcome, began: float
) -> None:
    """Tell Stripe a total, and log it; `began` is the monotonic second at which this began.

    Raises ReportRefused or ReportFailed.
    """
    item = report.item
    if not item.billing_meter:
        wait_for_first_second(item, services)
    sent = ways.report_total(services.stripe, item, total.current, total.known_at)
    fields = report_fields(item, total.billable)
    line = ", ".join([f"{name}: {value}" for name, value in fields.items()])
    taken = {"total": f"{total.billable:f}", "milliseconds": milliseconds_since(began)}
    log.info(line, extra={"item": item.id, "outcome": "reported", **taken})
    outcome.reported.append({"item": item.id, "quantity": sent, **fields})


def milliseconds_since(began: float) -> float:
    """Return the time since a monotonic second, for the log."""
    return round(1_000 * (time.monotonic() - began), 1)


def wait_for_first_second(item: MeteredItem, services: Services) -> None:
    """Sleep until the record's timestamp: Stripe takes none that lies in the future."""
    seconds = ways.record_timestamp(item) - services.stripe.clock.now()
    if 0 < seconds <= FIRST_SECONDS:
        time.sleep(seconds)
