"""The `flask report` command: report, or compare, every subscription that can still be billed."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from threading import BoundedSemaphore, Lock
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

import usage
from billing.closings import as_it_is, invoice_reports
from billing.commands import (
    DIFFERENT,
    FAILED,
    INTERRUPTED,
    UNREAD,
    account_option,
    connections,
    ends_with_its_reader,
    logs_json,
    metrics_option,
    say,
    subscription_option,
    with_patience,
    workers_option,
)
from billing.comparing import Compared, Comparison, compare, sentence
from billing.items import MeteredItem, overlap
from billing.listing import (
    fetch_complete,
    fetch_draft_invoices,
    iter_billable_subscriptions,
    iter_billable_subscriptions_by_id,
    iter_running_subscriptions,
)
from billing.progress import Progress, progress, unseen
from billing.reports import Outcome, PendingReport, Services, log, report_in_order
from billing.stripe_api import Json, ReportFailed, ReportRefused
from billing.subscriptions import (
    fail_items_that_overwrite,
    read_fetched_items,
    warn_of_double_billing,
)
from service.watching import Ended, Figure, tell_watchers

# How long ago somebody must have had usage in a meter, for nobody's to be believed.
USED_DAYS = 35
WORST_FIRST = (INTERRUPTED, UNREAD, FAILED, DIFFERENT)
COUNTED = ("subscriptions", "items", "reported", "skipped", "warnings", "failed")
SAID = {"warnings": "warned"}


@dataclass
class Run:
    """One run: what to do with each subscription, and what became of them so far."""

    services: Services
    dry: bool = False
    moving: bool = False
    only_some: bool = False
    show: Callable[[Mapping[str, Any]], None] = lambda _: None
    progress: Progress = field(default_factory=unseen)
    is_unread: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    compared: Compared = field(default_factory=Compared)
    owners: dict[tuple[str, str], MeteredItem] = field(default_factory=dict)
    counting: dict[tuple[str, usage.Whose], list[MeteredItem]] = field(default_factory=dict)
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
                        compared.append(compare(report, self.services, moving=self.moving))
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
        if job.cancelled():
            return
        if error := job.exception():
            self.run.fail(name, f"could not be worked on ({type(error).__name__})")
        with self.run.lock:
            self.run.progress.advance()

    def finish(self) -> None:
        """Wait for what has begun, or has a place."""
        wait(list(self.pending))

    def finish_begun(self) -> None:
        """Let no other subscription begin, and wait for what has begun."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.finish()


def source_of(run: Run, ids: list[str]) -> Iterator[tuple[Json, int]]:
    """Return what to work on: the subscriptions of the ids, or all.

    Yields each with the UTC second of reading. Raises ReportRefused or ReportFailed.
    """
    expect = run.progress.expect
    if not ids:
        return iter_billable_subscriptions(run.services, expect)
    return iter_billable_subscriptions_by_id(run.services, ids, run.fail, expect)


def run_to_exit_status(run: Run, ids: list[str], workers: int) -> int:
    """Work on all subscriptions, or those of the ids, `workers` at a time; return the exit status.

    An interrupt lets those that have begun finish, and no other begin. So does a reader of the
    output who leaves.
    """
    pool, last = WorkPool(run, workers), "the first"
    with pool.threads:
        try:
            for subscription, as_of in source_of(run, ids):
                last = str(subscription["id"])
                pool.submit(subscription, as_of)
                if run.is_unread:
                    pool.finish_begun()
                    break
            run.progress.expect_no_more()
            pool.finish()
        except (ReportRefused, ReportFailed) as error:
            run.fail(f"the list of subscriptions after {last}", str(error))
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            log.warning("interrupted: what has begun is finished, the rest is not reported")
            pool.finish_begun()
            return INTERRUPTED
    return run.exit_status()


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    dry: bool
    moving: bool
    show_all: bool
    as_json: bool
    quiet: bool
    workers: int


@click.command("report", short_help="Report all subscriptions' usage, or compare it.")
@subscription_option
@click.option("--dry-run", "dry", is_flag=True, help="Write nothing; compare both services.")
@click.option("--all", "show_all", is_flag=True, help="With --dry-run: show what agrees, too.")
@click.option(
    "--moving",
    is_flag=True,
    help="With --dry-run: take what usage records hold as another reporter's, which stays.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--quiet", is_flag=True, help="Say nothing but warnings, failures and differences.")
@workers_option("Subscriptions that are worked on")
@account_option
@metrics_option
@with_appcontext
@ends_with_its_reader
def report_command(
    ids: list[str], accounts: list[str], metrics_file: str | None, **how: Any
) -> None:
    """Report the running period of every subscription that can still be billed.

    With a Billing Meter, the closed period too, while its invoice is a draft.

    Exit status: 0; 1 if something failed; 3 if --dry-run found a difference; 130 if interrupted;
    141 if nobody reads on.
    """
    options = Options(**how)
    require_options_that_fit(options)
    options = replace(options, as_json=options.as_json or (logs_json() and not options.quiet))
    is_whole = not (ids or options.dry)
    if metrics_file and not is_whole:
        raise click.UsageError("--metrics is for whole runs: leave out --subscription, --dry-run")
    services = with_patience(current_app.extensions["services"])
    statuses, counts = [], Counter[str]()
    for each in connections(services, accounts):
        statuses.append(run_on_account(each, ids, options, counts))
        if statuses[-1] in (INTERRUPTED, UNREAD):
            break
    status = next((status for status in WORST_FIRST if status in statuses), 0)
    if options.dry and is_told(status, options):
        said = sentence(counts, is_whole=status != INTERRUPTED)
        say(said, err=options.as_json)
    if is_whole:
        ended = Ended("report", status, accounts, figures(counts))
        tell_watchers(ended, metrics_file, current_app.config["HEARTBEAT_URL"])
    sys.exit(status)


def figures(totals: Counter[str]) -> list[Figure]:
    """Return what a run counted, for those who watch it."""
    names = [(name, SAID.get(name, name)) for name in COUNTED]
    return [Figure(said, f"{said.title()} in the last run", totals[name]) for name, said in names]


def require_options_that_fit(options: Options) -> None:
    """See that each option has one to go with, and none that it contradicts.

    Raises click.UsageError.
    """
    if options.as_json and options.quiet:
        raise click.UsageError("choose one of --json and --quiet")
    for name, is_given in (("--all", options.show_all), ("--moving", options.moving)):
        if is_given and not options.dry:
            raise click.UsageError(f"{name} needs --dry-run")


def is_told(status: int, options: Options) -> bool:
    """Say whether a run's end is printed."""
    return status != UNREAD and (status != 0 or not options.quiet)


def run_on_account(
    services: Services, ids: list[str], options: Options, counts: Counter[str]
) -> int:
    """Make one run with one account; print what became of it, and return the exit status.

    Adds to the counts.
    """
    began = time.monotonic()
    with progress(quiet=options.quiet) as shown:
        run = Run(services, options.dry, options.moving, only_some=bool(ids), progress=shown)
        run.compared.show_all = options.show_all
        if options.as_json:
            run.show = lambda entry: shown.say(json.dumps(entry, default=plain_decimal))
        status = run_to_exit_status(run, ids, options.workers)
    counts.update(run.counts + run.compared.counts)
    if is_told(status, options):
        if options.dry and not options.as_json and run.compared.sums:
            click.echo(run.compared.table())
        of_account = "".join(f"{account}: " for account in services.stripe.scope.values())
        say(of_account + run.summary(time.monotonic() - began), err=options.as_json)
    return status


def plain_decimal(value: object) -> object:
    """Return a value as JSON shows it: an amount in plain digits."""
    return f"{value:f}" if isinstance(value, Decimal) else value
