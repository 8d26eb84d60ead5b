"""The `flask report` command: report, or compare, every subscription that can still be billed."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext
from tabulate import tabulate
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import usage
from billing import stripe_api, ways
from billing.clock import FRESH_SECONDS
from billing.closings import as_it_is, invoice_reports
from billing.commands import (
    DIFFERENT,
    FAILED,
    INTERRUPTED,
    account_option,
    connections,
    metrics_option,
    rate_option,
    subscription_option,
    with_batch_limits,
)
from billing.invoices import invoice_subscription_id, is_subscription_draft
from billing.items import InvalidStripeObject, MeteredItem, overlap
from billing.reports import (
    Outcome,
    PendingReport,
    Services,
    log,
    measure,
    report_fields,
    report_in_order,
)
from billing.stripe_api import Json, Page, ReportFailed, ReportRefused
from billing.subscriptions import (
    RUNNING,
    Subscription,
    fail_items_that_overwrite,
    fetch_all_entries,
    fetch_current,
    read_fetched_items,
    warn_of_double_billing,
)
from service.transport import MAX_CONNECTIONS
from service.watching import Ended, Figure, tell_watchers

# The longest that a draft stays one (docs.stripe.com/invoicing/integration/workflow-transitions).
DRAFT_SECONDS = 72 * 3_600
# How long ago somebody must have had usage in a meter, for nobody's to be believed.
USED_DAYS = 35
WORST_FIRST = (INTERRUPTED, FAILED, DIFFERENT)
COUNTED = ("subscriptions", "items", "reported", "skipped", "warnings", "failed")
SAID = {"warnings": "warned"}


@dataclass(frozen=True)
class Comparison:
    """One period of an item in OpenMeter and in Stripe.

    None stands for no rows in OpenMeter, and for what Stripe's summaries cannot tell. The
    difference is what a report would add to the value that Stripe holds.
    """

    subscription: str
    item: str
    meter: str
    subject: str
    period: str
    openmeter: Decimal | None
    stripe: Decimal | None
    difference: Decimal | None


@dataclass
class Run:
    """One run: what to do with each subscription, and what became of them so far."""

    services: Services
    dry: bool = False
    only_some: bool = False
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    tick: Callable[[int], object] = lambda _: None
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)
    owners: dict[tuple[str, str], MeteredItem] = field(default_factory=dict)
    counting: dict[tuple[str, str], list[MeteredItem]] = field(default_factory=dict)
    meters_in_use: dict[str, bool] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    meters_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.services = replace(self.services, trust_no_rows=self.trust_no_rows, expects_idle=True)

    def work_on(self, subscription: Json, as_of: int) -> None:
        """Report or compare the items of a subscription, known since a UTC second."""
        outcome, compared, reports = Outcome(), list[Comparison](), list[PendingReport]()
        with outcome.record_errors(str(subscription["id"])):
            reports = self.due_reports(subscription, as_of, outcome)
        if self.dry:
            for report in reports:
                if report.writes:
                    with outcome.record_errors(report.item.id):
                        compared.append(compare(report, self.services))
        else:
            outcome.add(report_in_order(reports, self.services))
        self.note({report.item.id for report in reports}, outcome, compared)

    def due_reports(self, subscription: Json, as_of: int, outcome: Outcome) -> list[PendingReport]:
        """Return what to report: the periods that drafts still bill, then the running ones.

        Raises ReportRefused or ReportFailed.
        """
        current = fetch_complete(subscription, as_of, self.services)
        items = read_fetched_items(current, self.services, outcome) if current.is_running else []
        kept = fail_items_that_overwrite(items, outcome)
        kept = [item for item in kept if self.claim_billing_meter(item, outcome)]
        for item in kept:
            self.warn_of_double_billing_in_run(item, outcome)
        refused = {item.id for item in items} - {item.id for item in kept}
        closed = []
        for invoice in fetch_draft_invoices(current, self.services):
            closed += invoice_reports(invoice, as_it_is(current), self.services, outcome)
        return [report for report in closed if report.item.id not in refused] + [
            PendingReport(item, current.as_of) for item in kept
        ]

    def claim_billing_meter(self, item: MeteredItem, outcome: Outcome) -> bool:
        """Take an item's Billing Meter for it; fail it if another one sends that other totals.

        A run over some subscriptions reads the customer's others from Stripe first.
        """
        if not item.billing_meter:
            return True
        if self.only_some:
            self.claim_meters_of_customer(item)
        with self.lock:
            owner = self.owners.setdefault((item.customer, item.billing_meter), item)
        if fail_items_that_overwrite([owner, item], outcome):
            return True
        return owner.id == item.id

    def claim_meters_of_customer(self, item: MeteredItem) -> None:
        """Take their Billing Meters for the other items of an item's customer."""
        found = iter_running_subscriptions(self.services, customer=item.customer)
        for subscription, as_of in found:
            other_items = read_fetched_items(
                fetch_complete(subscription, as_of, self.services), self.services, Outcome()
            )
            for other in other_items:
                if other.id != item.id and other.billing_meter:
                    with self.lock:
                        self.owners.setdefault((other.customer, other.billing_meter), other)

    def warn_of_double_billing_in_run(self, item: MeteredItem, outcome: Outcome) -> None:
        """Warn of an item that bills the same usage as one before it in this run."""
        with self.lock:
            alike = self.counting.setdefault((item.meter, item.subject), [])
            others = [other for other in alike if overlap([other, item])]
            alike.append(item)
        for other in others:
            warn_of_double_billing([other, item], outcome)

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
            self.show(outcome.warnings[0])

    def note(self, items: set[str], outcome: Outcome, compared: list[Comparison]) -> None:
        """Count and show what became of a subscription."""
        count = len(items.union(outcome.skipped))
        with self.lock:
            self.counts["subscriptions"] += 1
            self.counts["items"] += count
            for name in ("reported", "skipped", "warnings", "failed"):
                self.counts[name] += len(getattr(outcome, name))
            self.counts["different"] += sum(found.difference != 0 for found in compared)
            self.failures += outcome.failed
            self.tick(count)
            for entry in [*outcome.reported, *outcome.warnings, *outcome.failed]:
                self.show(entry)
            for found in compared:
                self.show(asdict(found))

    def fail(self, name: str, reason: str) -> None:
        """Note what failed outside of a subscription's items."""
        outcome = Outcome()
        outcome.fail(name, reason)
        with self.lock:
            self.counts["failed"] += 1
            self.failures += outcome.failed
            self.show(outcome.failed[0])

    def exit_status(self) -> int:
        """Return the exit status."""
        if self.counts["failed"] or self.counts["empty"]:
            return FAILED
        return DIFFERENT if self.counts["different"] else 0

    def summary(self, seconds: float) -> str:
        """Return the last line."""
        counts = [f"{SAID.get(name, name)}: {self.counts[name]}" for name in COUNTED]
        return ", ".join([*counts, f"seconds: {seconds:.1f}"])


def compare(report: PendingReport, services: Services) -> Comparison:
    """Return both services' values for a period. Raises ReportRefused or ReportFailed."""
    item = report.item
    found = measure(services, item)
    total = max(found or Decimal(0), Decimal(0))
    value = ways.rounded_value(services.stripe, item, total)
    held = ways.fetch_held_value(services.stripe, item, report.as_of)
    is_written = found is not None or services.trust_no_rows(report)
    fields = report_fields(item, total)
    return Comparison(
        item.subscription,
        item.id,
        item.meter,
        item.subject,
        f"{fields['from']} - {fields['to']}".replace(" +0000 UTC", ""),
        None if found is None else found.normalize(),
        None if held is None else held.normalize(),
        None if held is None else (value - held).normalize() if is_written else Decimal(0),
    )


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


def fetch_complete(subscription: Json, as_of: int, services: Services) -> Subscription:
    """Return a listed subscription with all of its items.

    It is read again if it is on a test clock, or its page was read a while ago: a period can have
    ended since, by itself or by a reset. Raises ReportRefused or ReportFailed.
    """
    is_old = services.stripe.clock.now() - as_of > FRESH_SECONDS
    if is_old or subscription.get("test_clock"):
        return fetch_current(str(subscription["id"]), services, "latest_invoice")
    try:
        return Subscription(subscription, fetch_all_entries(subscription, services), as_of)
    except InvalidStripeObject as error:
        raise ReportFailed(str(error)) from error


def fetch_draft_invoices(subscription: Subscription, services: Services) -> list[Json]:
    """Return a subscription's drafts, oldest first, as a rule without asking Stripe again.

    Its latest invoice comes with it: if that is older than a draft can be, or is its first one
    and final, there is none. Raises ReportRefused or ReportFailed.
    """
    latest, oldest = subscription.fields.get("latest_invoice"), subscription.as_of - DRAFT_SECONDS
    if isinstance(latest, Mapping):
        is_first = latest.get("billing_reason") == "subscription_create"
        is_old = latest.get("created", 0) < oldest
        if is_old or (is_first and latest.get("status") != "draft"):
            return []
    found = stripe_api.list_draft_invoices(services.stripe, str(subscription.fields["id"]))
    return [invoice for invoice in found[::-1] if is_subscription_draft(invoice)]


def iter_running_subscriptions(services: Services, **filters: str) -> Iterator[tuple[Json, int]]:
    """Yield subscriptions that can be billed, and since which UTC second they are known.

    A page is read while the one before is worked on. Raises ReportRefused or ReportFailed.
    """

    def read_page(after: str | None) -> tuple[Page, int]:
        began = time.monotonic()
        page = stripe_api.list_subscriptions_with_latest_invoice(services.stripe, after, **filters)
        return page, services.stripe.clock.at(began)

    with ThreadPoolExecutor(1) as reader:
        coming: Future[tuple[Page, int]] | None = reader.submit(read_page, None)
        while coming:
            page, as_of = coming.result()
            coming = reader.submit(read_page, page.entries[-1]["id"]) if page.has_more else None
            for subscription in page.entries:
                if subscription.get("status") in RUNNING:
                    yield subscription, as_of


def iter_recently_ended(services: Services, seen: set[str]) -> Iterator[tuple[Json, int]]:
    """Yield subscriptions that are over, but whose last invoice is still a draft.

    `seen` has those of which the run knows that they are not over. Raises ReportRefused or
    ReportFailed.
    """
    since = services.stripe.clock.now() - DRAFT_SECONDS
    for invoice in stripe_api.list_recent_drafts(services.stripe, since):
        try:
            subscription_id = invoice_subscription_id(invoice)
        except InvalidStripeObject:
            continue  # a draft of no subscription
        if subscription_id not in seen:
            seen.add(subscription_id)
            began = time.monotonic()
            found = stripe_api.fetch_subscription(services.stripe, subscription_id)
            yield found, services.stripe.clock.at(began)


def iter_billable_subscriptions(services: Services) -> Iterator[tuple[Json, int]]:
    """Yield all subscriptions that can still be billed. Raises ReportRefused or ReportFailed."""
    seen = set[str]()
    for subscription, as_of in iter_running_subscriptions(services):
        seen.add(str(subscription["id"]))
        yield subscription, as_of
    yield from iter_recently_ended(services, seen)


def iter_billable_subscriptions_by_id(
    services: Services, ids: list[str], run: Run
) -> Iterator[tuple[Json, int]]:
    """Yield the subscriptions of these ids with the second of reading; fail those that are over.

    One is over when it has ended and none of its invoices is a draft any more.
    """
    for subscription_id in ids:
        began = time.monotonic()
        try:
            found = stripe_api.fetch_subscription(services.stripe, subscription_id)
            is_over = found.get("status") not in RUNNING and not stripe_api.list_draft_invoices(
                services.stripe, subscription_id
            )
        except (ReportRefused, ReportFailed) as error:
            run.fail(subscription_id, str(error))
            continue
        if is_over:
            run.fail(subscription_id, f"is {found.get('status')}: nothing more can be billed")
        else:
            yield found, services.stripe.clock.at(began)


class WorkPool:
    """Threads that work on subscriptions, never many of them in memory."""

    def __init__(self, run: Run, workers: int) -> None:
        self.run, self.threads = run, ThreadPoolExecutor(workers)
        self.places, self.pending = BoundedSemaphore(4 * workers), set[Future[None]]()

    def submit(self, subscription: Json, as_of: int) -> None:
        """Hand a subscription over as soon as there is a place for it."""
        self.places.acquire()
        job = self.threads.submit(self.run.work_on, subscription, as_of)
        self.pending.add(job)
        job.add_done_callback(partial(self.forget, str(subscription["id"])))

    def forget(self, name: str, job: Future[None]) -> None:
        """Give a place back, and note a mistake of ours as a failure of one subscription."""
        self.places.release()
        self.pending.discard(job)
        if not job.cancelled() and (error := job.exception()):
            self.run.fail(name, f"could not be worked on ({type(error).__name__})")

    def finish(self) -> None:
        """Wait for what has begun, or has a place."""
        wait(list(self.pending))

    def cancel_waiting(self) -> None:
        """Let no other subscription begin."""
        self.threads.shutdown(wait=False, cancel_futures=True)


def run_to_exit_status(run: Run, ids: list[str], workers: int) -> int:
    """Work on all subscriptions, or those of the ids, `workers` at a time; return the exit status.

    An interrupt lets those that have begun finish, and no other begin.
    """
    pool, last = WorkPool(run, workers), "the first"
    services = run.services
    source = (
        iter_billable_subscriptions_by_id(services, ids, run)
        if ids
        else iter_billable_subscriptions(services)
    )
    with pool.threads:
        try:
            for subscription, as_of in source:
                last = str(subscription["id"])
                pool.submit(subscription, as_of)
            pool.finish()
        except (ReportRefused, ReportFailed) as error:
            run.fail(f"the list of subscriptions after {last}", str(error))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            pool.cancel_waiting()
            log.warning("interrupted: what has begun is finished, the rest is not reported")
            pool.finish()
            return INTERRUPTED
    return run.exit_status()


def plain_decimal(value: object) -> object:
    """Return a value as JSON and the table show it: an amount in plain digits."""
    return f"{value:f}" if isinstance(value, Decimal) else value


def comparison_table(rows: list[Mapping[str, Any]]) -> str:
    """Return comparisons as a table.

    `-` stands for no rows in OpenMeter, `?` for what Stripe's summaries cannot tell.
    """
    cells = [{name: plain_decimal(value) for name, value in row.items()} for row in rows]
    for row in cells:
        row["openmeter"] = row["openmeter"] or "-"
    cells.sort(key=lambda row: (row["subscription"], row["item"], row["period"]))
    text = str(tabulate(cells, headers="keys", disable_numparse=True, missingval="?"))
    return "\n".join(line.rstrip() for line in text.splitlines())


@click.command("report", short_help="Report all subscriptions' usage, or compare it.")
@subscription_option
@click.option("--dry-run", "dry", is_flag=True, help="Write nothing; compare both services.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--workers",
    default=16,
    type=click.IntRange(1, MAX_CONNECTIONS),
    show_default=True,
    help="Subscriptions that are worked on at the same time.",
)
@rate_option
@account_option
@metrics_option
@with_appcontext
def report_command(
    ids: list[str], accounts: list[str], rate: int | None, metrics_file: str | None, **how: Any
) -> None:
    """Report the running period of every subscription that can still be billed.

    With a Billing Meter, the closed period too, while its invoice is a draft.

    Exit status: 0; 1 if something failed; 3 if --dry-run found a difference; 130 if interrupted.
    """
    is_whole = not (ids or how["dry"])
    if metrics_file and not is_whole:
        raise click.UsageError("--metrics is for whole runs: leave out --subscription, --dry-run")
    services = with_batch_limits(current_app.extensions["services"], rate)
    statuses, totals = [], Counter[str]()
    for each in connections(services, accounts):
        status, counts = run_on_account(each, ids, **how)
        statuses.append(status)
        totals.update(counts)
        if status == INTERRUPTED:
            break
    status = next((status for status in WORST_FIRST if status in statuses), 0)
    if is_whole:
        ended = Ended("report", status, accounts, figures(totals))
        tell_watchers(ended, metrics_file, current_app.config["HEARTBEAT_URL"])
    sys.exit(status)


def figures(totals: Counter[str]) -> list[Figure]:
    """Return what a run counted, for those who watch it."""
    names = [(name, SAID.get(name, name)) for name in COUNTED]
    return [Figure(said, f"{said.title()} in the last run", totals[name]) for name, said in names]


def run_on_account(
    services: Services, ids: list[str], *, dry: bool, as_json: bool, workers: int
) -> tuple[int, Counter[str]]:
    """Make one run with one account; print it, and return its exit status and what it counted."""
    began = time.monotonic()
    rows: list[Mapping[str, Any]] = []
    with tqdm(unit=" items", disable=None) as bar, logging_redirect_tqdm([log]):
        run = Run(services, dry, only_some=bool(ids), tick=bar.update)
        if as_json:
            run.show = lambda entry: bar.write(json.dumps(entry, default=plain_decimal))
        elif dry:
            run.show = lambda entry: rows.append(entry) if "difference" in entry else None
        status = run_to_exit_status(run, ids, workers)
    if rows:
        click.echo(comparison_table(rows))
    for entry in run.failures:
        click.echo(f"failed: {entry['item']}: {entry['error']}", err=True)
    of_account = "".join(f"{account}: " for account in services.stripe.scope.values())
    click.echo(of_account + run.summary(time.monotonic() - began), err=as_json)
    return status, run.counts
