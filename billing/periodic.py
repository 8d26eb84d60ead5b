"""The `flask report` command: report, or compare, every subscription that can still be billed."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext
from pyrate_limiter import Duration, Limiter, Rate
from tabulate import tabulate
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from billing import stripe_api, ways
from billing.events import (
    closed_reports_for_invoice,
    is_renewal_draft,
    read_reportable_items,
    refetch_subscription_as_of,
)
from billing.items import STRIPE_ID, InvalidSubscription, MeteredItem
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
from service.transport import MAX_CONNECTIONS

BILLABLE = ("active", "trialing", "past_due", "unpaid")
# Of Stripe's 25 requests a second in a sandbox and 100 live (docs.stripe.com/rate-limits).
TEST_RATE, LIVE_RATE = 20, 80
# A run can wait longer than a delivery while Stripe is busy.
BUSY_SECONDS = 60
# The longest that a draft stays one (docs.stripe.com/invoicing/integration/workflow-transitions).
DRAFT_SECONDS = 72 * 3_600
FAILED, DIFFERENT, INTERRUPTED = 1, 3, 130


@dataclass(frozen=True)
class Comparison:
    """One period of an item in OpenMeter and in Stripe, None where Stripe's is unknown.

    The difference is what a report would add to the value that Stripe holds.
    """

    subscription: str
    item: str
    meter: str
    subject: str
    period: str
    openmeter: Decimal
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
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def work_on(self, subscription: Json, as_of: int) -> None:
        """Report or compare the items of a subscription, known since a UTC second."""
        outcome, compared, reports = Outcome(), list[Comparison](), list[PendingReport]()
        with outcome.record_errors(str(subscription["id"])):
            try:
                reports = self.due_reports(subscription, as_of, outcome)
            except InvalidSubscription as error:
                outcome.fail(str(subscription["id"]), str(error))
        if self.dry:
            for report in reports:
                with outcome.record_errors(report.item.id):
                    compared.append(compare(report, self.services))
        else:
            outcome.add(report_in_order(reports, self.services))
        self.note(len({report.item.id for report in reports}), outcome, compared)

    def due_reports(self, subscription: Json, as_of: int, outcome: Outcome) -> list[PendingReport]:
        """Return what to report: the periods that drafts still bill, then the running ones."""
        if subscription.get("test_clock"):
            subscription, as_of = refetch_subscription_as_of(subscription, self.services)
        items = read_reportable_items(subscription, self.services, outcome)
        items = [item for item in items if self.claim_billing_meter(item, outcome)]
        closed = []
        if any(item.billing_meter for item in items):
            for invoice in renewal_draft_invoices(subscription, as_of, self.services):
                closed += closed_reports_for_invoice(
                    invoice, subscription, items, self.services, outcome
                )
        return closed + [PendingReport(item, as_of) for item in items]

    def claim_billing_meter(self, item: MeteredItem, outcome: Outcome) -> bool:
        """Take an item's Billing Meter for it; fail it if another of its customer has that meter.

        A run over some subscriptions reads the customer's others from Stripe first.
        """
        if not item.billing_meter:
            return True
        if self.only_some:
            self.claim_meters_of_other_items(item)
        with self.lock:
            owner = self.owners.setdefault((item.customer, item.billing_meter), item.id)
        if owner != item.id:
            reason = f"would overwrite each other's totals on Billing Meter {item.billing_meter}"
            outcome.fail(f"{owner} and {item.id}", f"{reason}, which counts per customer")
        return owner == item.id

    def claim_meters_of_other_items(self, item: MeteredItem) -> None:
        """Take their Billing Meters for the other items of an item's customer."""
        for subscription, _ in iter_billable_subscriptions(self.services, customer=item.customer):
            for other in read_reportable_items(subscription, self.services, Outcome()):
                if other.id != item.id and other.billing_meter:
                    with self.lock:
                        self.owners.setdefault((other.customer, other.billing_meter), other.id)

    def note(self, items: int, outcome: Outcome, compared: list[Comparison]) -> None:
        """Count and show what became of a subscription."""
        with self.lock:
            self.counts["subscriptions"] += 1
            self.counts["items"] += items + len(outcome.skipped)
            for name in ("reported", "skipped", "warnings", "failed"):
                self.counts[name] += len(getattr(outcome, name))
            self.counts["different"] += sum(found.difference != 0 for found in compared)
            self.failures += outcome.failed
            self.tick(items + len(outcome.skipped))
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
        if self.counts["failed"]:
            return FAILED
        return DIFFERENT if self.counts["different"] else 0

    def summary(self, seconds: float) -> str:
        """Return the last line."""
        names = ("subscriptions", "items", "reported", "skipped", "warnings", "failed")
        said = {"warnings": "warned"}
        counts = [f"{said.get(name, name)}: {self.counts[name]}" for name in names]
        return ", ".join([*counts, f"seconds: {seconds:.1f}"])


def compare(report: PendingReport, services: Services) -> Comparison:
    """Return both services' values for a period. Raises ReportRefused or ReportFailed."""
    item = report.item
    total = measure(services, item) or Decimal(0)
    value = ways.rounded_value(services.stripe, item, total)
    held = ways.fetch_held_value(services.stripe, item, report.as_of)
    fields = report_fields(item, total)
    return Comparison(
        item.subscription,
        item.id,
        item.meter,
        item.subject,
        f"{fields['from']} - {fields['to']}".replace(" +0000 UTC", ""),
        total.normalize(),
        None if held is None else held.normalize(),
        None if held is None else (value - held).normalize(),
    )


def renewal_draft_invoices(subscription: Json, as_of: int, services: Services) -> list[Json]:
    """Return the drafts of a subscription's renewals, as a rule without asking Stripe again.

    Its latest invoice comes with it. An older one can still be a draft only if another invoice
    followed within the time that a draft lasts.
    """
    latest = subscription.get("latest_invoice")
    if isinstance(latest, Mapping):
        if latest.get("created", 0) < as_of - DRAFT_SECONDS:
            return []
        is_renewal = latest.get("billing_reason") == "subscription_cycle"
        length = latest.get("period_end", 0) - latest.get("period_start", 0)
        if is_renewal and length > DRAFT_SECONDS:
            return [latest] if is_renewal_draft(latest) else []
    found = stripe_api.list_draft_invoices(services.stripe, str(subscription["id"]))
    return [invoice for invoice in reversed(found) if is_renewal_draft(invoice)]


def iter_billable_subscriptions(services: Services, **filters: str) -> Iterator[tuple[Json, int]]:
    """Yield subscriptions that can be billed, and since which UTC second they are known.

    A page is read while the one before is worked on. Raises ReportRefused or ReportFailed.
    """

    def read_page(after: str | None) -> tuple[Page, int]:
        as_of = int(time.time())
        return stripe_api.list_subscriptions_with_latest_invoice(
            services.stripe, after, **filters
        ), as_of

    with ThreadPoolExecutor(1) as reader:
        coming: Future[tuple[Page, int]] | None = reader.submit(read_page, None)
        while coming:
            page, as_of = coming.result()
            coming = reader.submit(read_page, page.entries[-1]["id"]) if page.has_more else None
            for subscription in page.entries:
                if subscription.get("status") in BILLABLE:
                    yield subscription, as_of


def iter_billable_subscriptions_by_id(
    services: Services, ids: list[str], run: Run
) -> Iterator[tuple[Json, int]]:
    """Yield the subscriptions of these ids with the second of reading; fail those that are over."""
    for subscription_id in ids:
        as_of = int(time.time())
        try:
            found = stripe_api.fetch_subscription(services.stripe, subscription_id)
        except (ReportRefused, ReportFailed) as error:
            run.fail(subscription_id, str(error))
            continue
        if found.get("status") in BILLABLE:
            yield found, as_of
        else:
            run.fail(subscription_id, f"is {found.get('status')}: nothing more can be billed")


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


def with_batch_limits(services: Services, rate: int) -> Services:
    """Return the services with `rate` requests a second to Stripe (0: no limit), and patience."""
    account = replace(services.stripe, busy_seconds=BUSY_SECONDS)
    if rate:
        limiter = Limiter(Rate(rate, Duration.SECOND), buffer_ms=5)
        account = replace(account, pace=partial(limiter.try_acquire, "stripe"))
    return replace(services, stripe=account)


def parse_subscription_ids(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> list[str]:
    """Accept ids, each once."""
    for subscription_id in given:
        if not STRIPE_ID.fullmatch(subscription_id):
            raise click.BadParameter(f"{subscription_id!r} is no id")
    return list(dict.fromkeys(given))


def plain_decimal(value: object) -> object:
    """Return a value as JSON and the table show it: an amount in plain digits."""
    return f"{value:f}" if isinstance(value, Decimal) else value


def comparison_table(rows: list[Mapping[str, Any]]) -> str:
    """Return comparisons as a table; `?` stands for what Stripe's summaries cannot tell."""
    cells = [{name: plain_decimal(value) for name, value in row.items()} for row in rows]
    cells.sort(key=lambda row: (row["subscription"], row["item"], row["period"]))
    text = str(tabulate(cells, headers="keys", disable_numparse=True, missingval="?"))
    return "\n".join(line.rstrip() for line in text.splitlines())


@click.command("report", short_help="Report all subscriptions' usage, or compare it.")
@click.option(
    "--subscription",
    "ids",
    multiple=True,
    metavar="SUB",
    callback=parse_subscription_ids,
    help="Only this subscription; may be given more than once.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Write nothing; compare both services.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--workers",
    default=16,
    type=click.IntRange(1, MAX_CONNECTIONS),
    show_default=True,
    help="Subscriptions that are worked on at the same time.",
)
@click.option(
    "--rate",
    type=click.IntRange(0),
    metavar="N",
    help=f"Requests a second to Stripe; 0: no limit.  [default: {TEST_RATE} with a test key, "
    f"{LIVE_RATE} with a live one]",
)
@with_appcontext
def report_command(
    ids: list[str], dry: bool, as_json: bool, workers: int, rate: int | None
) -> None:
    """Report the running period of every subscription that can still be billed.

    With a Billing Meter, the closed period too, while its invoice is a draft.

    Exit status: 0; 1 if something failed; 3 if --dry-run found a difference; 130 if interrupted.
    """
    began = time.monotonic()
    services: Services = current_app.extensions["services"]
    if rate is None:
        rate = LIVE_RATE if services.is_live else TEST_RATE
    rows: list[Mapping[str, Any]] = []
    with tqdm(unit=" items", disable=None) as bar, logging_redirect_tqdm([log]):
        run = Run(with_batch_limits(services, rate), dry, only_some=bool(ids), tick=bar.update)
        if as_json:
            run.show = lambda entry: bar.write(json.dumps(entry, default=plain_decimal))
        elif dry:
            run.show = lambda entry: rows.append(entry) if "difference" in entry else None
        status = run_to_exit_status(run, ids, workers)
    if rows:
        click.echo(comparison_table(rows))
    for entry in run.failures:
        click.echo(f"failed: {entry['item']}: {entry['error']}", err=True)
    click.echo(run.summary(time.monotonic() - began), err=as_json)
    sys.exit(status)
