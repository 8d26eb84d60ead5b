"""What the commands share: ids, accounts, patience with Stripe, and how they end."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
from flask import current_app

from billing.items import STRIPE_ID
from billing.reports import Services

# A command can wait longer than a delivery while Stripe is busy.
BUSY_SECONDS = 60
# So many that with a tenth of a second for each they take all of our share of meter events.
MAX_WORKERS = 128
# The last is what a shell shows of a program that SIGPIPE ended.
FAILED, DIFFERENT, INTERRUPTED, UNREAD = 1, 3, 130, 141
SPAN = re.compile(r"([1-9][0-9]{0,4})([mhd])")
UNITS = {"m": 60, "h": 3_600, "d": 86_400}


log = logging.getLogger("app")


def logs_json() -> bool:
    """Say whether each line has to be an object of JSON: the log's are."""
    return bool(current_app.config["LOG_FORMAT"] == "json")


def say(text: str, *, err: bool = False, level: int = logging.INFO) -> None:
    """Print a line for a person; where the log is JSON, log it."""
    if logs_json():
        log.log(level, text.strip())
    else:
        click.echo(text, err=err)


def parse_ids(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> list[str]:
    """Accept ids of Stripe's, each once."""
    for one in given:
        if not STRIPE_ID.fullmatch(one):
            raise click.BadParameter(f"{one!r} is no id")
    return list(dict.fromkeys(given))


def span_seconds(given: str) -> int:
    """Return the seconds of a time such as 10m, 12h or 2d; 0 if it is none."""
    match = SPAN.fullmatch(given)
    return int(match[1]) * UNITS[match[2]] if match else 0


def subscription_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take subscriptions."""
    return click.option(
        "--subscription",
        "ids",
        multiple=True,
        metavar="SUB",
        callback=parse_ids,
        help="Only this subscription; may be given more than once.",
    )(command)


def workers_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command take how much it does at the same time."""
    return click.option(
        "--workers",
        default=16,
        type=click.IntRange(1, MAX_WORKERS),
        show_default=True,
        help=f"{what} at the same time.",
    )


def account_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take accounts."""
    return click.option(
        "--account",
        "accounts",
        multiple=True,
        metavar="ACCT",
        callback=parse_ids,
        help="This connected account instead of the key's own; may be given more than once.",
    )(command)


def ends_with_its_reader(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command end quietly once nobody reads what it prints, as behind `| head -1`.

    SIGPIPE would do so, too, but it would also end a run whose connection to Stripe was closed.
    """

    @wraps(command)
    def ended(*given: Any, **named: Any) -> None:
        try:
            try:
                command(*given, **named)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            give_up_unread_output()
            sys.exit(UNREAD)

    return ended


def give_up_unread_output() -> None:
    """Let what nobody reads any more go nowhere, or Python would complain of it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parse_file_to_write(_: click.Context, __: click.Parameter, given: str | None) -> str | None:
    """Accept a file that can be put into its folder."""
    if given is not None and not os.access(Path(given).parent, os.W_OK | os.X_OK):
        raise click.BadParameter(f"{given!r} is in no folder that can be written to")
    return given


def metrics_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command write its figures."""
    return click.option(
        "--metrics",
        "metrics_file",
        metavar="FILE",
        callback=parse_file_to_write,
        help="Write what became of it to this file, for node_exporter.",
    )(command)


def connections(services: Services, accounts: list[str]) -> Iterator[Services]:
    """Yield the services of each account, or of the key's own."""
    for account in accounts:
        scope = {services.account_option: account}
        yield replace(services, stripe=services.stripe.for_scope(**scope))
    if not accounts:
        yield services


def with_patience(services: Services) -> Services:
    """Return the services with the time that a command has while Stripe is busy."""
    return replace(services, stripe=replace(services.stripe, busy_seconds=BUSY_SECONDS))
