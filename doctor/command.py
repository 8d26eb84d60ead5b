"""The `flask doctor` command: what is not as it has to be, without writing anything."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click
from flask import current_app
from flask.cli import with_appcontext

from billing.commands import (
    FAILED,
    ends_with_its_reader,
    logs_json,
    with_patience,
)
from billing.reports import Services
from doctor.destinations import check_destinations
from doctor.findings import Finding, fine, to_do
from doctor.meters import check_billing_meters, check_meters, check_reading
from doctor.reached import (
    check_clock,
    check_openmeter,
    check_rights,
    check_shared_budget,
    check_stripe,
)
from doctor.reading import read_account


@click.command("doctor", short_help="See that all is set up as it has to be.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--webhook",
    metavar="URL",
    help="Where Stripe delivers to; unless given, any address that ends in /webhook.",
)
@click.option(
    "--no-webhooks", is_flag=True, help="Leave out where events go, as where `stripe listen` runs."
)
@with_appcontext
@ends_with_its_reader
def doctor_command(as_json: bool, webhook: str | None, no_webhooks: bool) -> None:
    """See that all is set up as it has to be, and say of each thing `ok`, or what to do.

    It writes nothing. Exit status: 0; 1 if there is something to do.
    """
    services = with_patience(current_app.extensions["services"])
    hide, as_json, status = current_app.extensions["secrets"].hide, as_json or logs_json(), 0
    for finding in find(services, current_app.config, webhook, looks_at_webhooks=not no_webhooks):
        click.echo(hide(json.dumps(finding.as_json()) if as_json else str(finding)))
        status = status if finding.is_ok else FAILED
    sys.exit(status)


def find(
    services: Services, config: Any, webhook: str | None, *, looks_at_webhooks: bool
) -> Iterator[Finding]:
    """Yield what each check finds; where a service does not answer, what needs it is left out."""
    secrets = config["WEBHOOK_SECRETS"]
    yield check_settings(config["KEY_KIND"], secrets, services, serves=looks_at_webhooks)
    openmeter = check_openmeter(services, config["OPENMETER_URL"])
    yield openmeter
    if services.account_option != "stripe_account":
        said = "an organization's key names no account: try it with a key of the account"
        yield to_do("stripe", said)
        return
    stripe = check_stripe(services.stripe, config["STRIPE_API_BASE"])
    yield stripe
    if not stripe.is_ok:
        return
    yield from check_shared_budget(services.stripe)
    yield check_clock(services.stripe)
    yield from check_rights(services)
    reading = read_account(services)
    if looks_at_webhooks:
        uses = bool(reading.billing_meters)
        yield from check_destinations(services.stripe, webhook, secrets, uses_billing_meters=uses)
    yield from check_reading(reading)
    if openmeter.is_ok:
        yield from check_meters(reading, services)
    yield from check_billing_meters(reading, services)


def check_settings(kind: str, secrets: int, services: Services, *, serves: bool) -> Finding:
    """Tell what the key is, and see that deliveries can be verified; all else is checked before."""
    if serves and not secrets:
        return to_do("settings", "missing: STRIPE_WEBHOOK_SECRET, which deliveries need")
    return fine(
        "settings", f"STRIPE_KEY is {kind} of {'live' if services.is_live else 'test'} mode"
    )
