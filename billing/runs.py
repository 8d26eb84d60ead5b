"""A run over subscriptions: what to do with each, and the threads that do it."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

import usage
from billing.batches import (
    MOST_WAITING,
    WAIT_SECONDS,
    Due,
    WaitingRoom,
    ask_together,
    with_batches_of,
)
from billing.claims import Claims
from billing.closings import as_it_is, invoice_reports
from billing.commands import (
    DIFFERENT,
    FAILED,
    INTERRUPTED,
    UNREAD,
)
from billing.comparing import Compared, Comparison, compare
from billing.items import InvalidStripeObject, MeteredItem
from billing.listing import (
    fetch_complete,
    fetch_draft_invoices,
    is_outdated,
    iter_billable_subscriptions,
    iter_billable_subscriptions_by_id,
    iter_running_subscriptions,
)
from billing.progress import Progress, unseen
from billing.reports import Outcome, PendingReport, Services, log, report_in_order
from billing.stripe_api import Json, ReportFailed, ReportRefused
from billing.subscriptions import (
    Subscription,
    fail_items_that_overwrite,
    fetch_current,
    listed_entries,
    read_fetched_items,
)
from usage import MAX_SUBJECTS

# How long ago somebody must have had usage in a meter, for nobody's to be believed.
USED_DAYS = 35
COUNTED = ("subscriptions", "items", "reported", "skipped", "warnings", "failed")
SAID = {"warnings": "warned"}


@dataclass
class Run:
    """One run: what to do with each subscription, and what became of them so far."""

    services: Services
    dry: bool = False
    moving: bool = False
    only_some: bool = False
    ending_within: int | None = None
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    progress: Progress = field(default_factory=unseen)
    is_unread: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    compared: Compared = field(default_factory=Compared)
    claims: Claims = field(default_factory=Claims)
    meters_in_use: dict[str, bool] = field(default_factory=dict)
    waiting: WaitingRoom = field(default_factory=WaitingRoom)
    lock: Lock = field(default_factory=Lock)
    meters_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.services = replace(self.services, trust_no_rows=self.trust_no_rows, expects_idle=True)

    def leaves_out(self, subscription: Json, read_at: float) -> bool:
        """Say whether none of a listed subscription's periods ends as soon as the run is about.

        What it does not show may. Its Billing Meters are taken all the same.
        """
        if self.ending_within is None or subscription.get("test_clock"):
            return False
        try:
            entries = listed_entries(subscription)
        except InvalidStripeObject:
            return False  # whose failure is said
        listed = Subscription(subscription, entries, self.services.stripe.clock.at(read_at))
        is_whole = not subscription["items"].get("has_more")
        if not is_whole or listed.soonest_end - listed.as_of <= self.ending_within:
            return False
        with suppress(ReportFailed):
            for item in read_fetched_items(listed, self.services, Outcome()):
                self.claims.take_billing_meter(item)
        return True

    def look_at(self, subscription: Json, read_at: float) -> None:
        """See what is to be reported of a subscription that was read at a monotonic second.

        It waits for others of which OpenMeter is asked the same, if there is something to ask.
        """
        read = partial(fetch_complete, subscription, read_at, self.services)
        due = self.due(str(subscription["id"]), read, Outcome())
        if due.reports and due.read_at is not None:
            self.waiting.add(due, self.services.stripe.clock.now())
        else:
            self.settle(due)

    def due(self, subscription_id: str, read: Callable[[], Subscription], outcome: Outcome) -> Due:
        """Return what is to be reported of a subscription; nothing if that failed."""
        with outcome.record_errors(subscription_id):
            current = read()
            reports = [
                replace(report, read_at=current.read_at)
                for report in self.due_reports(current, outcome)
            ]
            return Due(subscription_id, reports, outcome, current.read_at, current.soonest_end)
        return Due(subscription_id, [], outcome)

    def settle(self, due: Due) -> None:
        """Report or compare the items of a subscription; read it again if it waited for long."""
        if due.read_at is not None and is_outdated(due.read_at, due.end, self.services):
            name, outcome = due.subscription, due.outcome
            read = partial(fetch_current, name, self.services, "latest_invoice")
            due = with_batches_of(self.due(name, read, outcome), due)
        compared = list[Comparison]()
        if self.dry:
            for report in due.reports:
                if report.writes:
                    with due.outcome.record_errors(report.item.id):
                        compared.append(compare(report, self.services, moving=self.moving))
        else:
            due.outcome.add(report_in_order(due.reports, self.services))
        self.note({report.item.id for report in due.reports}, due.outcome, compared)

    def due_reports(self, current: Subscription, outcome: Outcome) -> list[PendingReport]:
        """Return what to report: the periods that drafts still bill, then the running ones.

        Raises ReportRefused or ReportFailed.
        """
        items = read_fetched_items(current, self.services, outcome) if current.is_running else []
        kept = fail_items_that_overwrite(items, outcome)
        kept = [item for item in kept if self.may_send(item, outcome)]
        for item in kept:
            self.claims.warn_of_double_billing(item, outcome)
        refused = {item.id for item in items} - {item.id for item in kept}
        closed = []
        for invoice in fetch_draft_invoices(current, self.services):
            closed += invoice_reports(invoice, as_it_is(current), self.services, outcome)
        return [report for report in closed if report.item.id not in refused] + [
            PendingReport(item, current.as_of) for item in kept
        ]

    def may_send(self, item: MeteredItem, outcome: Outcome) -> bool:
        """Take an item's Billing Meter for it; fail it if another one sends that other totals.

        A run over some subscriptions reads the customer's others from Stripe first.
        """
        if item.billing_meter and self.only_some:
            self.claim_meters_of_customer(item)
        return self.claims.may_send(item, outcome)

    def claim_meters_of_customer(self, item: MeteredItem) -> None:
        """Take their Billing Meters for the other items of an item's customer."""
        found = iter_running_subscriptions(self.services, customer=item.customer)
        for subscription, read_at in found:
            other_items = read_fetched_items(
                fetch_complete(subscription, read_at, self.services), self.services, Outcome()
            )
            for other in other_items:
                if other.id != item.id:
                    self.claims.take_billing_meter(other)

    def trust_no_rows(self, report: PendingReport) -> bool:
        """Say whether no rows are no usage: whether anybody had some in that meter of late.

        An OpenMeter that is empty, or the wrong one, would otherwise set everybody to 0.
        """
        meter = report.item.meter
        with self.meters_lock:
            if meter not in self.meters_in_use:
                self.meters_in_use[meter] = has_recent_usage(meter, report.as_of, self.services)
                if not self.meters_in_use[meter]:
                    self.warn_of_empty_meter(meter)
            return self.meters_in_use[meter]

    def warn_of_empty_meter(self, meter: str) -> None:
        """Warn that no zeros of a meter are written."""
        outcome = Outcome()
        reason = f"nobody had usage in it in the last {USED_DAYS} days, so no item without usage"
        cure = "is OPENMETER_URL right, and OpenMeter complete?"
        outcome.warn(f"meter {meter}", f"{reason} was reported as 0: {cure}", "empty meter")
        with self.lock:
            self.counts["warnings"] += 1
            self.counts["empty"] += 1
            self.tell(outcome.warnings[0])

    def tell(self, entry: Mapping[str, Any]) -> None:
        """Show what became of an item, unless nobody reads on."""
        if self.is_unread:
            return
        try:
            self.show(entry)
        except BrokenPipeError:
            self.is_unread = True

    def note(self, items: set[str], outcome: Outcome, compared: list[Comparison]) -> None:
        """Count and show what became of a subscription."""
        with self.lock:
            self.counts["subscriptions"] += 1
            self.counts["items"] += len(items.union(outcome.skipped))
            for name in ("reported", "skipped", "warnings", "failed"):
                self.counts[name] += len(getattr(outcome, name))
            for entry in [*outcome.reported, *outcome.warnings, *outcome.failed]:
                self.tell(entry)
            for found in compared:
                self.compared.add(found)
                self.tell(found.shown())
            self.progress.advance()

    def fail(self, name: str, reason: str) -> None:
        """Note what failed outside of a subscription's items."""
        outcome = Outcome()
        outcome.fail(name, reason)
        with self.lock:
            self.counts["failed"] += 1
            self.tell(outcome.failed[0])

    def exit_status(self) -> int:
        """Return the exit status."""
        if self.is_unread:
            return UNREAD
        if self.counts["failed"] or self.counts["empty"]:
            return FAILED
        return DIFFERENT if self.compared.counts["different"] else 0

    def summary(self, seconds: float) -> str:
        """Return the last line."""
        names = [name for name in COUNTED if not self.dry or name != "reported"]
        counts = [f"{SAID.get(name, name)}: {self.counts[name]}" for name in names]
        return ", ".join([*counts, f"seconds: {seconds:.1f}"])


def has_recent_usage(meter: str, as_of: int, services: Services) -> bool:
    """Say whether anybody had usage in a meter in the days until a UTC second, or in its minute.

    Raises ReportFailed.
    """
    end = datetime.fromtimestamp(as_of + 60, UTC)
    start = end - timedelta(days=USED_DAYS)
    try:
        return bool(usage.total(services.openmeter, meter, None, start, end))
    except usage.QueryFailed as error:
        raise ReportFailed(str(error)) from error


class WorkPool:
    """Threads that work on subscriptions, a few of them in turn, while others wait."""

    def __init__(self, run: Run, workers: int) -> None:
        self.run, self.workers, self.threads = run, workers, ThreadPoolExecutor(workers)
        self.places, self.pending = BoundedSemaphore(2 * workers), set[Future[None]]()
        self.has_begun, self.seconds_each = False, 0.0

    def look_at(self, subscription: Json, read_at: float) -> None:
        """Hand a subscription over that was read at a monotonic second; then those due by now."""
        name = str(subscription["id"])
        self.submit(name, partial(self.run.look_at, subscription, read_at))
        self.settle_due(self.most_waiting)

    def settle_due(self, most: Callable[[], int]) -> None:
        """Hand over those that waited for long enough, and more until at most so many wait."""
        while not self.run.is_unread and (group := self.run.waiting.take(most())):
            self.has_begun = True
            for due in ask_together(group, self.run.services):
                self.submit(due.subscription, partial(self.settle, due))

    def settle(self, due: Due) -> None:
        """Work on a subscription that waited, and note how long a report takes."""
        began = time.monotonic()
        self.run.settle(due)
        each = (time.monotonic() - began) / len(due.reports)
        with self.run.lock:
            self.seconds_each = (7 * (self.seconds_each or each) + each) / 8

    def most_waiting(self) -> int:
        """Return how many reports may wait: what is written in some seconds, or one query asks.

        Of more, many would be so old at their turn that they had to be read again. The first one
        shows how long that takes.
        """
        if not self.seconds_each:
            return MOST_WAITING if self.has_begun else MAX_SUBJECTS
        written = WAIT_SECONDS / 2 * self.workers / self.seconds_each
        return int(min(max(written, MAX_SUBJECTS), MOST_WAITING))

    def submit(self, name: str, work: Callable[[], None]) -> None:
        """Hand work on a subscription over as soon as there is a place for it."""
        if self.run.is_unread:
            return
        self.places.acquire()
        job = self.threads.submit(work)
        self.pending.add(job)
        job.add_done_callback(partial(self.forget, name))

    def forget(self, name: str, job: Future[None]) -> None:
        """Give a place back, and note a mistake of ours as a failure of one subscription."""
        self.places.release()
        self.pending.discard(job)
        if not job.cancelled() and (error := job.exception()):
            self.run.fail(name, f"could not be worked on ({type(error).__name__})")
            with self.run.lock:
                self.run.progress.advance()

    def finish(self) -> None:
        """Wait for all that is under way, or waits; or for what has begun, if nobody reads on."""
        wait(list(self.pending))
        self.settle_due(lambda: 0)
        if self.run.is_unread:
            self.finish_begun()
        wait(list(self.pending))

    def finish_begun(self) -> None:
        """Let no other subscription begin, and wait for what has begun."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        wait(list(self.pending))


def source_of(run: Run, ids: list[str]) -> Iterator[tuple[Json, float]]:
    """Return what to work on: the subscriptions of the ids, all, or all that run.

    Yields each with the monotonic second of reading. Raises ReportRefused or ReportFailed.
    """
    expect = run.progress.expect
    if not ids and run.ending_within is not None:
        return iter_running_subscriptions(run.services, expect)
    if not ids:
        return iter_billable_subscriptions(run.services, expect)
    return iter_billable_subscriptions_by_id(run.services, ids, run.fail, expect)


def run_to_exit_status(run: Run, ids: list[str], workers: int) -> int:
    """Work on all subscriptions, or those of the ids, `workers` at a time; return the exit status.

    An interrupt lets those that have begun finish, and no other begin. So does a reader of the
    output who leaves.
    """
    pool = WorkPool(run, workers)
    with pool.threads:
        try:
            look_at_all(run, ids, pool)
            pool.finish()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            log.warning("interrupted: what has begun is finished, the rest is not reported")
            pool.finish_begun()
            return INTERRUPTED
    return run.exit_status()


def look_at_all(run: Run, ids: list[str], pool: WorkPool) -> None:
    """Hand over all subscriptions, or those of the ids, until the list ends or nobody reads on."""
    last = "the first"
    try:
        for subscription, read_at in source_of(run, ids):
            last = str(subscription["id"])
            if run.leaves_out(subscription, read_at):
                run.progress.expect(-1)
            else:
                pool.look_at(subscription, read_at)
            if run.is_unread:
                return
    except (ReportRefused, ReportFailed) as error:
        run.fail(f"the list of subscriptions after {last}", str(error))
    else:
        run.progress.expect_no_more()
