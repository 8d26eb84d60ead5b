"""Seed a Stripe account, once, with Epsilon: a product billed by its execution duration."""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import stripe
from dotenv import dotenv_values

# The last API version that makes a metered price without a meter
# (docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing).
USAGE_RECORD_VERSION = "2025-02-24.acacia"
STRIPE = "https://api.stripe.com"
KEYS = re.compile(r"(sk|rk|sk_org)_[!-~]+")
HOUR = 3_600
ODD_ANSWER = (AttributeError, LookupError, TypeError, ValueError)
DASHBOARD = {
    "meter": "meters",
    "product": "products",
    "price": "prices",
    "test clock": "test-clocks",
    "customer": "customers",
    "subscription": "subscriptions",
}


class SeededObject(NamedTuple):
    """An object that is there now."""

    kind: str
    id: str
    is_new: bool = True
    period_start: int = 0
    period_end: int = 0


def main(argv: list[str] | None = None) -> None:
    """Create what is missing and print a link to each object; end with status 1 on an error."""
    options = parse_options(argv)
    found = environment()
    client = connect(found, options)
    dashboard = dashboard_of(found) + ("" if options.live else "/test")
    done: list[SeededObject] = []
    try:
        for made in seed(client, options):
            done.append(made)
            state = "created" if made.is_new else "already there"
            link = f"{dashboard}/{DASHBOARD[made.kind]}/{made.id}"
            print(f"Stripe {made.kind} {state}: {link}", flush=True)
    except stripe.StripeError as error:
        sys.exit(failure_message(done, options, error_message(error, base_url(found))))
    except ODD_ANSWER:
        said = "the answer is not Stripe's. Check STRIPE_API_BASE, then run this again."
        sys.exit(failure_message(done, options, said))
    except KeyboardInterrupt:
        sys.exit(failure_message(done, options, "interrupted."))
    if options.test_clock:
        print_walk(done)


def environment() -> dict[str, str | None]:
    """Return what is set in the environment over the `.env` file beside this script."""
    try:
        file = dotenv_values(Path(__file__).with_name(".env"))
    except UnicodeError:
        sys.exit(".env is not UTF-8.")
    except OSError:
        sys.exit(".env cannot be read by this user.")
    return {**file, **{name: value for name, value in os.environ.items() if value}}


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Return `meter`, `billing`, `test_clock` and `live`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--meter", default="m1", type=meter_slug, help="OpenMeter's meter (m1)")
    parser.add_argument(
        "--billing",
        default="usage-records",
        choices=["usage-records", "meter"],
        help="what the price bills: usage records, or a Billing Meter",
    )
    parser.add_argument("--test-clock", action="store_true", help="put the customer on one")
    parser.add_argument("--live", action="store_true", help="accept a live key")
    options = parser.parse_args(argv)
    if options.live and options.test_clock:
        parser.error("there are no test clocks with a live key")
    return options


def meter_slug(slug: str) -> str:
    """Accept a meter's slug."""
    if not re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)*", slug):
        raise argparse.ArgumentTypeError("a slug has a-z, 0-9 and single underscores")
    return slug


def dashboard_of(found: Mapping[str, str | None]) -> str:
    """Return where the links lead: to Stripe's dashboard, or where another Stripe answers."""
    base = base_url(found)
    if base == STRIPE:
        return "https://dashboard.stripe.com"
    print(f"STRIPE_API_BASE is not Stripe's: the links lead to {base}.", flush=True)
    return base


def connect(found: Mapping[str, str | None], options: argparse.Namespace) -> stripe.StripeClient:
    """Return a client of the key's account, or end before any call if the key will not do."""
    key = found.get("STRIPE_KEY") or ""
    if not key:
        sys.exit("STRIPE_KEY is missing: copy .env.example to .env and set it there.")
    if not KEYS.fullmatch(key):
        sys.exit("STRIPE_KEY is no secret key (sk_...) and no restricted one (rk_...).")
    if "_live_" in key and not options.live:
        sys.exit("STRIPE_KEY is a live key: use a test key, or give --live if you mean it.")
    if "_live_" not in key and options.live:
        sys.exit("STRIPE_KEY is no live key: leave out --live, or use a live key.")
    stripe.enable_telemetry = False
    return stripe.StripeClient(
        key,
        stripe_version=None if options.billing == "meter" else USAGE_RECORD_VERSION,
        base_addresses={"api": base_url(found)},
        max_network_retries=1,
        http_client=stripe.RequestsClient(timeout=(3, 8)),
    )


def base_url(found: Mapping[str, str | None]) -> str:
    """Return where Stripe's API answers, or end if it is no address."""
    base = (found.get("STRIPE_API_BASE") or STRIPE).rstrip("/")
    if not re.match("https?://", base):
        sys.exit("STRIPE_API_BASE lacks http:// or https:// before it.")
    return base


def seed(client: stripe.StripeClient, options: argparse.Namespace) -> Iterator[SeededObject]:
    """Yield each object as soon as it is there."""
    price_id = ""
    for made in find_or_create_price(client, options):
        yield made
        price_id = made.id
    customer_id = ""
    for made in seed_customer(client, on_test_clock=options.test_clock):
        yield made
        customer_id = made.id
    subscription = client.v1.subscriptions.create(
        {
            "customer": customer_id,
            "items": [{"price": price_id, "metadata": {"om_meter_id": options.meter}}],
        }
    )
    start, end = period(subscription)
    yield SeededObject("subscription", subscription.id, period_start=start, period_end=end)


def find_or_create_price(
    client: stripe.StripeClient, options: argparse.Namespace
) -> Iterator[SeededObject]:
    """Yield the price, the last one, after what it needs; find what an earlier run made."""
    lookup_key, recurring = "epsilon_execution_duration", {}
    if options.billing == "meter":
        meter = find_or_create_billing_meter(client, f"openmeter_{options.meter}")
        yield meter
        lookup_key, recurring = f"epsilon_{meter.id}", {"meter": meter.id}
    known = client.v1.prices.list({"lookup_keys": [lookup_key], "active": True, "limit": 1}).data
    if known:
        yield SeededObject("product", str(known[0].product), is_new=False)
        yield SeededObject("price", known[0].id, is_new=False)
        return
    product_id = client.v1.products.create({"name": "Epsilon"}).id
    yield SeededObject("product", product_id)
    yield SeededObject("price", create_price(client, product_id, lookup_key, recurring))


def seed_customer(client: stripe.StripeClient, *, on_test_clock: bool) -> Iterator[SeededObject]:
    """Yield a new customer, the last one, after the test clock that it is on."""
    customer: dict[str, str] = {"name": "Epsilon's first customer"}
    if on_test_clock:
        clock = client.v1.test_helpers.test_clocks.create({"frozen_time": int(time.time())})
        yield SeededObject("test clock", clock.id)
        customer["test_clock"] = clock.id
    customer_id = client.v1.customers.create(customer).id  # type: ignore[arg-type]
    yield SeededObject("customer", customer_id)


def period(subscription: stripe.Subscription) -> tuple[int, int]:
    """Return start and end of the running period, which since basil stand on the item."""
    holder = subscription if "current_period_end" in subscription else subscription["items"].data[0]
    return int(holder["current_period_start"]), int(holder["current_period_end"])


def find_or_create_billing_meter(client: stripe.StripeClient, event_name: str) -> SeededObject:
    """Find or create the Billing Meter that bills the last total of a period."""
    found = client.v1.billing.meters.list({"status": "active", "limit": 100})
    for known in found.auto_paging_iter():
        if known.event_name == event_name:
            if known.default_aggregation.formula != "last":
                sys.exit(
                    f"Billing Meter {known.id} adds totals up: deactivate it, and run this again."
                )
            return SeededObject("meter", known.id, is_new=False)
    made = client.v1.billing.meters.create(
        {
            "display_name": event_name,
            "event_name": event_name,
            "default_aggregation": {"formula": "last"},
        }
    )
    return SeededObject("meter", made.id)


def create_price(
    client: stripe.StripeClient, product_id: str, lookup_key: str, recurring: Mapping[str, str]
) -> str:
    """Create the price, $0.10 per unit and month, and return its id."""
    price = client.v1.prices.create(
        {
            "product": product_id,
            "currency": "usd",
            "unit_amount": 10,
            "recurring": {"interval": "month", "usage_type": "metered", **recurring},  # type: ignore[typeddict-item]
            "lookup_key": lookup_key,
            "transfer_lookup_key": True,
        }
    )
    return price.id


def failure_message(done: list[SeededObject], options: argparse.Namespace, said: str) -> str:
    """Say on one line what was not created, why, and what had been by then."""
    kinds = [
        kind
        for kind in DASHBOARD
        if (kind != "meter" or options.billing == "meter")
        and (kind != "test clock" or options.test_clock)
    ]
    by_then = ", ".join(f"{made.kind} {made.id}" for made in done) or "nothing"
    return f"Stripe {kinds[len(done)]} not created: {said} Done by then: {by_then}."


def error_message(error: stripe.StripeError, base: str) -> str:
    """Say on one line, without showing a part of the key, what failed and what to do."""
    if isinstance(error, stripe.APIConnectionError):
        cause = f"{type(error.__cause__).__name__} at {base}"
        return f"no answer ({cause}). Check STRIPE_API_BASE and the network, then run this again."
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return f"Stripe answered {error.http_status}. Check STRIPE_KEY and its permissions."
    if isinstance(error, stripe.APIError | stripe.RateLimitError):
        return f"Stripe answered {error.http_status}. Run this again in a while."
    said = " ".join(str(error.user_message).split())[:300]
    if "backed by meters" in said:
        return f"{said} This account takes no usage records: run this with --billing meter."
    return f"Stripe answered {error.http_status}: {said} Mend that, then run this again."


def print_walk(done: list[SeededObject]) -> None:
    """Print what to do in which order, from usage to the final invoice.

    Stripe takes no usage record of a period's first second, at which the test clock stands, nor of
    one that has ended: so its time has to go on, but not past the period, before the report.
    """
    ids = {made.kind: made.id for made in done}
    start, end = done[-1].period_start, done[-1].period_end
    advance = f"stripe post /v1/test_helpers/test_clocks/{ids['test clock']}/advance -d frozen_time"
    print(
        f"# 1. Use: send OpenMeter usage of the subject {ids['customer']}, as of now",
        "# 2. Advance, within the period",
        f"{advance}={min(start + HOUR, end - 1)}",
        "# 3. Report",
        f".venv/bin/flask report --subscription {ids['subscription']}",
        "# 4. Advance over the renewal, then past the draft hour: the invoice is final",
        f"{advance}={end + 60}",
        f"{advance}={end + 3 * HOUR}",
        sep="\n",
    )


if __name__ == "__main__":
    main()
