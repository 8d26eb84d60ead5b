"""The `flask report` command: report, or compare, every subscription that can still be billed."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

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
    span_seconds,
    subscription_option,
    with_patience,
    workers_option,
)
from billing.comparing import sentence
from billing.progress import progress
from billing.reports import Services
from billing.runs import COUNTED, SAID, Run, run_to_exit_status
from service.watching import Ended, Figure, tell_watchers

WORST_FIRST = (INTERRUPTED, UNREAD, FAILED, DIFFERENT)


@dataclass(frozen=True)
class Options:
    """What the command was asked for."""

    dry: bool
    moving: bool
    show_all: bool
    as_json: bool
    quiet: bool
    workers: int
    ending_within: int | None


def parse_ending(_: click.Context, __: click.Parameter, given: str | None) -> int | None:
    """Accept a time such as 10m or 1h, and return its seconds."""
    if given is None:
        return None
    if not (seconds := span_seconds(given)):
        raise click.BadParameter(f"{given!r} is no time such as 10m or 1h")
    return seconds


@click.command("report", short_help="Report all subscriptions' usage, or compare it.")
@subscription_option
@click.option(
    "--ending-within",
    metavar="TIME",
    callback=parse_ending,
    help="Only subscriptions of which a period ends as soon as that: 10m, 1h.",
)
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
    is_whole = not (ids or options.dry or options.ending_within)
    if metrics_file and not is_whole:
        left_out = "--subscription, --ending-within, --dry-run"
        raise click.UsageError(f"--metrics is for whole runs: leave out {left_out}")
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
        run.compared.show_all, run.ending_within = options.show_all, options.ending_within
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
