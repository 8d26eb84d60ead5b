"""The `flask audit` command: what was metered against what was invoiced, and what nobody bills."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import IO, Any

import click
from flask import current_app
from flask.cli import with_appcontext
from tqdm import tqdm

from audit import pricing
from audit.figures import figures
from audit.lines import Audit
from audit.page import Page, time_text
from audit.reading import Source
from audit.repair import Repair, create, plan
from audit.report import HEADER, WIDTHS, CsvSink, Spool, Sums, sums_table, table_row
from audit.rows import LINE, Row
from audit.unbilled import find_unbilled
from billing import stripe_api
from billing.commands import (
    DIFFERENT,
    FAILED,
    INTERRUPTED,
    UNITS,
    account_option,
    connections,
    ends_with_its_reader,
    logs_json,
    metrics_option,
    say,
    span_seconds,
    subscription_option,
    with_patience,
    workers_option,
)
from billing.stripe_api import NotReported
from billing.tables import cells, many
from service.watching import Ended, tell_watchers


def parse_time(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """Accept a time such as 35d or 2026-11-01."""
    if given is not None:
        second_of(given, 0)
    return given


def second_of(given: str, now: int) -> int:
    """Return the UTC second that a time such as 35d (before now) or 2026-11-01 names."""
    if seconds := span_seconds(given):
        return now - seconds
    try:
        return int(datetime.strptime(given, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError as error:
        raise click.BadParameter(f"{given!r} is no time such as 35d or 2026-11-01") from error


def parse_units(_: click.Context, __: click.Parameter, given: str) -> Decimal:
    """Accept a number of units."""
    try:
        found = Decimal(given)
    except InvalidOperation as error:
        raise click.BadParameter(f"{given!r} is no number of units") from error
    if not found.is_finite() or found < 0:
        raise click.BadParameter(f"{given!r} is no number of units")
    return found


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    since: str
    until: str | None
    differing: bool
    show_all: bool
    as_json: bool
    csv_file: IO[str] | None
    html_file: IO[str] | None
    tolerance: Decimal
    workers: int
    repair: bool
    yes: bool
    live: bool


class Output:
    """Where rows go: a table, lines of JSON, or a file; and what could not be read."""

    def __init__(self, options: Options, page: Page, say: Callable[[str], object]) -> None:
        self.options, self.page, self.say = options, page, say
        self.sums = Sums(options.tolerance)
        self.csv = CsvSink(options.csv_file) if options.csv_file else None
        self.failures: list[str] = []
        self.repairs: list[Row] = []
        self.has_table = self.is_interrupted = False

    def fail(self, name: str, reason: str) -> None:
        """Note what could not be read."""
        said = f"failed: {name}: {reason}"
        if said not in self.failures:
            self.failures.append(said)

    def show(self, row: Row) -> None:
        """Show a row where it goes, at once or later."""
        differs = row.differs(self.sums.tolerance)
        if row.repair and differs:
            self.repairs.append(row)
        if self.options.differing and not differs and row.is_compared:
            return
        is_first = differs or row.repaired > 0 or row.kind != LINE or not row.is_compared
        if self.options.as_json:
            self.say(json.dumps(row.shown()))
        elif self.csv:
            self.csv.write(row)
        elif self.options.html_file:
            self.page.add(row, is_first=is_first)
        elif is_first:
            self.say_row(table_row(row))
        elif self.options.show_all:
            self.page.agreeing.write(table_row(row))

    def fail_at_once(self, name: str, reason: str) -> None:
        """Note what could not be done, and print it."""
        self.fail(name, reason)
        say(self.failures[-1], err=True, level=logging.ERROR)

    def tell(self, text: str) -> None:
        """Print what is no row."""
        say(text, err=self.options.as_json)

    def say_row(self, text: str) -> None:
        """Print a row of the table, below its header."""
        if not self.has_table:
            self.has_table = True
            self.say(cells(HEADER, WIDTHS))
        self.say(text)

    def finish(self, about: dict[str, str]) -> None:
        """Print what comes after all rows: those that agree, sums, failures, the sentence."""
        if self.options.html_file:
            self.page.write(self.options.html_file, self.sums, **about, failures=self.failures)
        else:
            for text in self.page.agreeing:
                self.say_row(text)
        if not (self.options.as_json or logs_json()) and self.sums.counts[LINE]:
            self.tell("\n" + sums_table(self.sums))
        for said in self.failures:
            say(said, err=True, level=logging.ERROR)
        self.tell(self.sums.sentence())

    def exit_status(self) -> int:
        """Return the exit status."""
        if self.is_interrupted:
            return INTERRUPTED
        if self.failures:
            return FAILED
        return DIFFERENT if self.sums.differing > self.sums.counts["mended"] else 0


class Progress:
    """A bar over the days that the invoices, newest first, have reached."""

    def __init__(self, bar: Any, until: int, since: int) -> None:
        self.bar, self.until = bar, until
        bar.total = max(1, -(-(until - since) // UNITS["d"]))

    def reach(self, second: int) -> None:
        """Move on to the day of a UTC second."""
        days = min(self.bar.total, (self.until - second) // UNITS["d"])
        self.bar.update(max(0, days - self.bar.n))


@click.command("audit", short_help="Compare all invoices with what was metered.")
@click.option(
    "--since",
    default="35d",
    show_default=True,
    metavar="TIME",
    callback=parse_time,
    help="Invoices created since then: 35d, 12h, or a day such as 2026-11-01 (UTC).",
)
@click.option(
    "--until",
    metavar="TIME",
    callback=parse_time,
    help="And before then; a test clock's can be ahead of now.",
)
@subscription_option
@account_option
@click.option("--differing", is_flag=True, help="Show only what differs.")
@click.option("--all", "show_all", is_flag=True, help="Show every line in the table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--csv", "csv_file", type=click.File("w", lazy=False), help="Write a CSV file.")
@click.option("--html", "html_file", type=click.File("w", lazy=False), help="Write a page.")
@click.option(
    "--tolerance",
    default="0",
    show_default=True,
    metavar="UNITS",
    callback=parse_units,
    help="So many units more or less are no difference.",
)
@click.option(
    "--repair", is_flag=True, help="List invoice items that bill it; make them after a yes."
)
@click.option("--yes", is_flag=True, help="With --repair: ask nothing.")
@click.option("--live", is_flag=True, help="With --repair: do so with a live key.")
@workers_option("Calls that are made")
@metrics_option
@with_appcontext
@ends_with_its_reader
def audit_command(
    ids: list[str], accounts: list[str], metrics_file: str | None, **how: Any
) -> None:
    """Compare each metered line of the invoices of some time with OpenMeter's total now.

    And show usage that no line bills, or two do. Without --repair it writes nothing.

    Exit status: 0; 1 if something could not be read; 3 if something is missing or over; 130 if
    interrupted.
    """
    services, options = current_app.extensions["services"], Options(**how)
    if options.as_json + bool(options.csv_file) + bool(options.html_file) > 1:
        raise click.UsageError("choose one of --json, --csv and --html")
    if logs_json() and not (options.csv_file or options.html_file):
        options = replace(options, as_json=True)
    if options.repair and services.is_live and not options.live:
        raise click.UsageError("--repair with a live key needs --live")
    if metrics_file and (ids or options.repair):
        raise click.UsageError("--metrics is for whole audits: leave out --subscription, --repair")
    services = with_patience(services)
    each = connections(services, accounts)
    sources = [Source(one, name) for one, name in zip(each, accounts or [""], strict=True)]
    output = run(sources, set(ids) or None, options)
    status = output.exit_status()
    if not ids:
        ended = Ended("audit", status, accounts, figures(output.sums, len(output.failures)))
        tell_watchers(ended, metrics_file, current_app.config["HEARTBEAT_URL"])
    sys.exit(status)


def run(sources: list[Source], ids: set[str] | None, options: Options) -> Output:
    """Make an audit, show what it finds, and return that."""
    with ExitStack() as stack:
        page = Page(*(Spool(stack.enter_context(temporary_file())) for _ in range(2)))
        with tqdm(unit=" days", disable=None) as bar, ThreadPoolExecutor(options.workers) as pool:
            output = Output(options, page, bar.write)
            audit = audit_of(sources, ids, options, output, pool)
            audit.tick = Progress(bar, audit.until, audit.since).reach
            try:
                work(audit, output)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                output.is_interrupted = True
                output.fail("interrupted", "this is not all")
        output.finish(about(audit))
    if options.repair and not output.is_interrupted:
        repair_rows(output, {source.name: source for source in sources})
    return output


def repair_rows(output: Output, sources: dict[str, Source]) -> None:
    """List the invoice items that bill what is missing, and create them after a yes."""
    planned = list(plans(output, sources))
    for repair in planned:
        output.tell(repair_text(repair))
    if not planned:
        output.tell("nothing to repair")
        return
    question = f"Create {many(len(planned), 'invoice item')} over {total_text(planned)}?"
    if not output.options.yes and not click.confirm(question, err=True):
        return
    for repair in planned:
        try:
            made = create(repair, sources[repair.row.account])
        except NotReported as error:
            output.fail_at_once(repair.row.item, str(error))
        else:
            output.sums.counts["mended"] += 1
            output.tell(f"created {made} for {repair.row.invoice or 'a gap'}")


def plans(output: Output, sources: dict[str, Source]) -> Iterator[Repair]:
    """Yield the invoice items to create; what cannot be read fails alone."""
    for row in output.repairs:
        try:
            yield plan(row, sources[row.account])
        except NotReported as error:
            output.fail_at_once(row.item, str(error))


def repair_text(repair: Repair) -> str:
    """Return what is to be created, for a person."""
    form, row = repair.form, repair.row
    where = form.get("subscription") or f"no subscription ({row.subscription} is over)"
    amount = pricing.money(Decimal(repair.amount), row.currency)
    return f"{row.customer}, {where}: {amount}\n  {form['description']}"


def total_text(planned: list[Repair]) -> str:
    """Return what invoice items come to in each currency."""
    sums: dict[str, int] = {}
    for repair in planned:
        sums[repair.row.currency] = sums.get(repair.row.currency, 0) + repair.amount
    return " and ".join(pricing.money(Decimal(sums[one]), one) for one in sorted(sums))


def temporary_file() -> IO[str]:
    """Return a file that is gone when it is closed."""
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def about(audit: Audit) -> dict[str, str]:
    """Return what a page says of an audit besides its rows."""
    names = ", ".join(source.name for source in audit.sources)
    times = {"since": time_text(audit.since), "until": time_text(audit.until)}
    return {**times, "accounts": names}


def audit_of(
    sources: list[Source],
    ids: set[str] | None,
    options: Options,
    output: Output,
    pool: Executor,
) -> Audit:
    """Return what is to be audited, by Stripe's time."""
    now = stripe_api.fetch_now(sources[0].services.stripe)
    until = second_of(options.until, now) if options.until else now
    since = second_of(options.since, now)
    return Audit(since, until, sources, pool, output.show, output.fail, wanted=ids)


def work(audit: Audit, output: Output) -> None:
    """Show and sum up all that there is."""
    for rows in audit.run():
        output.sums.add_invoice(rows)
        for row in rows:
            output.show(row)
    for row in find_unbilled(audit):
        output.sums.add(row)
        output.show(row)
