"""Seed a Stripe account, once, with Epsilon: a product billed by its execution duration."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import stripe
from dotenv import dotenv_values

# The last API version that makes a metered price without a meter
# (docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing).
API_VERSION = "2025-02-24.acacia"
LOOKUP_KEY = "epsilon_execution_duration"
KINDS = ("product", "price", "customer", "subscription")
LIVE_KEYS = ("sk_live_", "rk_live_")


def main(argv: list[str] | None = None) -> None:
    """Create what is missing and print a link to each object; end with status 1 on an error."""
    options = parse_options(argv)
    environment = {**dotenv_values(Path(__file__).with_name(".env")), **os.environ}
    client = connect(environment, live_allowed=options.live)
    dashboard = "https://dashboard.stripe.com" + ("" if options.live else "/test")
    done: list[str] = []
    try:
        for kind, key, is_new in seed(client, options.meter):
            done.append(f"{kind} {key}")
            state = "created" if is_new else "already there"
            print(f"Stripe {kind} {state}: {dashboard}/{kind}s/{key}", flush=True)
    except stripe.StripeError as error:
        by_then = ", ".join(done) or "nothing"
        sys.exit(f"Stripe {KINDS[len(done)]} not created: {reason(error)} Done by then: {by_then}.")


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Return `meter` and `live`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--meter", default="m1", type=meter, help="OpenMeter's meter (m1)")
    parser.add_argument("--live", action="store_true", help="accept a live key")
    return parser.parse_args(argv)


def meter(slug: str) -> str:
    """Accept a meter's slug."""
    if not re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)*", slug):
        raise argparse.ArgumentTypeError("a slug has a-z, 0-9 and single underscores")
    return slug


def connect(environment: Mapping[str, str | None], *, live_allowed: bool) -> stripe.StripeClient:
    """Return a client of the key's account, or end before any call if the key will not do."""
    key = environment.get("STRIPE_KEY") or ""
    if not re.fullmatch(r"[!-~]+", key):
        sys.exit("STRIPE_KEY is missing or not valid: copy .env.example to .env and set it there.")
    if key.startswith(LIVE_KEYS) and not live_allowed:
        sys.exit("STRIPE_KEY is a live key: use a test key, or give --live if you mean it.")
    stripe.enable_telemetry = False
    base = environment.get("STRIPE_API_BASE") or "https://api.stripe.com"
    return stripe.StripeClient(
        key,
        stripe_version=API_VERSION,
        base_addresses={"api": base.rstrip("/")},
        max_network_retries=1,
        http_client=stripe.RequestsClient(timeout=(3, 8)),
    )


def seed(client: stripe.StripeClient, meter_slug: str) -> Iterator[tuple[str, str, bool]]:
    """Yield kind, id and whether it is new, for each object as soon as it is there."""
    known = client.v1.prices.list({"lookup_keys": [LOOKUP_KEY], "active": True, "limit": 1}).data
    if known:
        price_id = known[0].id
        yield "product", str(known[0].product), False
        yield "price", price_id, False
    else:
        product_id = client.v1.products.create({"name": "Epsilon"}).id
        yield "product", product_id, True
        price_id = create_price(client, product_id)
        yield "price", price_id, True
    customer_id = client.v1.customers.create({"name": "Epsilon's first customer"}).id
    yield "customer", customer_id, True
    subscription = client.v1.subscriptions.create(
        {
            "customer": customer_id,
            "items": [{"price": price_id, "metadata": {"om_meter_id": meter_slug}}],
        }
    )
    yield "subscription", subscription.id, True


def create_price(client: stripe.StripeClient, product_id: str) -> str:
    """Create the price, $0.10 per unit and month, and return its id."""
    price = client.v1.prices.create(
        {
            "product": product_id,
            "currency": "usd",
            "unit_amount": 10,
            "recurring": {"interval": "month", "usage_type": "metered"},
            "lookup_key": LOOKUP_KEY,
            "transfer_lookup_key": True,
        }
    )
    return price.id


def reason(error: stripe.StripeError) -> str:
    """Say on one line, without showing a part of the key, what failed and what to do."""
    if isinstance(error, stripe.APIConnectionError):
        cause = type(error.__cause__).__name__
        return f"no answer ({cause}). Check STRIPE_API_BASE and the network, then run this again."
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return f"Stripe answered {error.http_status}. Check STRIPE_KEY and its permissions."
    if isinstance(error, stripe.APIError):
        return f"Stripe answered {error.http_status}. Run this again in a while."
    said = " ".join(str(error.user_message).split())[:300]
    if "backed by meters" in said:
        return f"{said} This account has no usage records any more (see README.md, Limits)."
    return f"Stripe answered {error.http_status}: {said} Mend that, then run this again."


if __name__ == "__main__":
    main()
