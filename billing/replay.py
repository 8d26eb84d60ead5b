"""The `flask replay` command: work on the events whose deliveries failed, as the webhook would."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

from billing import stripe_api
from billing.commands import (
    FAILED,
    UNITS,
    account_option,
    connections,
    ends_with_its_reader,
    logs_json,
    say,
    span_seconds,
    with_patience,
)
from billing.events import EVENTS, report_event
from billing.items import InvalidStripeObject, utc_text
from billing.reports import Outcome, Services
from billing.stripe_api import Json, ReportFailed, ReportRefused
from service.transport import limit_time_of_calls

# An event is worked on within the time of a delivery.
EVENT_SECONDS = 38
# Stripe lists events for so long (docs.stripe.com/api/events/list).
MOST_DAYS = 30
# Thin events are in no list of these: what they tell is in the log, or in Stripe's dashboard.
TYPES = [kind for kind in EVENTS if not kind.startswith("v1.")]


def parse_span(_: click.Context, __: click.Parameter, given: str) -> int:
    """Accept a time such as 12h or 2d, and return its seconds."""
    seconds = span_seconds(given)
    if not 0 < seconds <= MOST_DAYS * UNITS["d"]:
        raise click.BadParameter(f"{given!r} is no time such as 12h or 2d, up to {MOST_DAYS}d")
    return seconds


def iter_undelivered_events(services: Services, since: int) -> Iterator[Json]:
    """Yield the events since a UTC second whose deliveries failed, oldest first.

    Stripe lists the newest first: its pages are read once to find the oldest, and again from there
    on. Raises ReportRefused or ReportFailed.
    """
    read_page = partial(stripe_api.list_undelivered_events, services.stripe, TYPES, since)
    cursors: list[str | None] = [None]
    while (oldest := read_page(cursors[-1])).has_more:
        cursors.append(str(oldest.entries[-1]["id"]))
    seen = set[str]()
    for page in chain([oldest], map(read_page, cursors[-2::-1])):
        for event in reversed(page.entries):
            if event["id"] not in seen:
                seen.add(event["id"])
                yield event


def replay_event(event: Json, services: Services) -> Outcome:
    """Do what the webhook does with an event; an event that it ignores has an empty outcome."""
    outcome = Outcome()
    with limit_time_of_calls(EVENT_SECONDS):
        try:
            outcome.add(report_event(event, services) or Outcome())
        except InvalidStripeObject as error:
            outcome.fail(str(event["id"]), str(error))
    return outcome


def event_fields(event: Json) -> dict[str, Any]:
    """Return what is shown of an event besides its outcome."""
    created = event.get("created")
    carried = event.get("data") if isinstance(event.get("data"), dict) else {}
    subject = carried.get("object") if isinstance(carried, dict) else None
    return {
        "event": event["id"],
        "type": event.get("type"),
        "created": utc_text(created) if type(created) is int else None,
        "object": subject.get("id") if isinstance(subject, dict) else None,
    }


def show(fields: Mapping[str, Any], outcome: Outcome | None, *, as_json: bool) -> None:
    """Print a line for an event; without an outcome, it is only named."""
    if as_json:
        click.echo(json.dumps({**fields, **(outcome.as_json() if outcome else {})}))
        return
    became = "" if outcome is None else f": {outcome}"
    click.echo(f"{fields['created']} {fields['event']} {fields['type']} {fields['object']}{became}")


@click.command("replay", short_help="Work on the events whose deliveries failed.")
@click.option(
    "--since",
    "seconds",
    default="3d",
    show_default=True,
    metavar="TIME",
    callback=parse_span,
    help=f"How far back: 12h, 2d, up to {MOST_DAYS}d.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Name the events; do nothing with them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@account_option
@with_appcontext
@ends_with_its_reader
def replay_command(seconds: int, dry: bool, as_json: bool, accounts: list[str]) -> None:
    """Work on each event whose delivery failed, oldest first, as the webhook would have.

    What is lost for good, because its invoice is final, is said with its units.

    Exit status: 0; 1 if something failed.
    """
    services, as_json = (
        with_patience(current_app.extensions["services"]),
        as_json or logs_json(),
    )
    counts = Counter[str]()
    for each in connections(services, accounts):
        try:
            since = stripe_api.fetch_now(each.stripe) - seconds
            for event in iter_undelivered_events(each, since):
                outcome = None if dry else replay_event(event, each)
                show(event_fields(event), outcome, as_json=as_json)
                counts["events"] += 1
                counts["warned"] += len(outcome.warnings) if outcome else 0
                counts["failed"] += len(outcome.failed) if outcome else 0
        except (ReportRefused, ReportFailed) as error:
            counts["failed"] += 1
            say(f"failed: the list of events: {error}", err=True, level=logging.ERROR)
    said = [f"{name}: {counts[name]}" for name in ("events", "warned", "failed")]
    say(", ".join(said), err=as_json)
    sys.exit(FAILED if counts["failed"] else 0)
