"""Stripe's objects as the measurements need them: small, and the same each time."""

import time
from collections.abc import Callable
from typing import Any

HOUR, DAY = 3_600, 86_400
NOW = int(time.time())
PERIOD_START = NOW - 10 * DAY
PERIOD_END = PERIOD_START + 30 * DAY
# A month's hours, over which anchors are spread.
ANCHORS = 720
# Stripe puts no more items than this into an event.
EVENT_ITEMS = 10

Json = dict[str, Any]
Query = dict[str, str]


def item(number: int, subscription: str, meter: str | None) -> Json:
    """Return a metered subscription item; `meter` is the Billing Meter behind its price."""
    recurring = {"interval": "month", "usage_type": "metered"}
    return {
        "id": f"si_{subscription}_{number}",
        "object": "subscription_item",
        "metadata": {"om_meter_id": f"meter_{number}"},
        "price": {
            "id": "price_metered",
            "object": "price",
            "recurring": recurring | ({"meter": meter} if meter else {}),
        },
    }


def name_of(items: int) -> str:
    """Return the name of a subscription that has so many items."""
    return f"sub_of_{items}"


def items_of(name: str) -> int:
    """Return how many items a subscription has, as its name says; one if it says nothing."""
    return int(name.removeprefix("sub_of_")) if name.startswith("sub_of_") else 1


def subscription(name: str, items: int = 1, meter: str | None = None) -> Json:
    """Return a subscription as acacia has it, with its first ten items."""
    entries = [item(number, name, meter) for number in range(min(items, EVENT_ITEMS))]
    return {
        "id": name,
        "object": "subscription",
        "billing_cycle_anchor": PERIOD_START,
        "current_period_end": PERIOD_END,
        "current_period_start": PERIOD_START,
        "customer": f"cus_{name}",
        "items": {"object": "list", "data": entries, "has_more": items > EVENT_ITEMS},
        "latest_invoice": f"in_{name}",
        "metadata": {},
        "start_date": PERIOD_START,
        "status": "active",
        "test_clock": None,
    }


def anchor(number: int) -> int:
    """Return when a subscription's month of 31 days began, where they are spread over hours."""
    return NOW - HOUR * (1 + number % ANCHORS)


def listed_subscription(number: int, meter: str | None, start: int) -> Json:
    """Return one of the list's subscriptions, with its invoice, which is no draft any more."""
    name = f"sub_{number}"
    first = {
        "id": f"in_{name}",
        "object": "invoice",
        "billing_reason": "subscription_create",
        "created": start,
        "period_end": start,
        "period_start": start,
        "status": "paid",
    }
    times = {"billing_cycle_anchor": start, "start_date": start, "current_period_start": start}
    times["current_period_end"] = start + 31 * DAY
    return subscription(name, meter=meter) | times | {"latest_invoice": first}


def ended(number: int) -> int:
    """Return when the period of one of the invoices ended: they are minutes apart."""
    return PERIOD_START - 4 * 60 * number


def audited_subscription(number: int) -> Json:
    """Return a subscription with two items, as newer versions have it."""
    name, end = f"sub_{number}", ended(number)
    found = subscription(name, 2) | {"billing_cycle_anchor": end - 30 * DAY}
    for entry in found["items"]["data"]:
        entry |= {"current_period_start": end, "current_period_end": end + 30 * DAY}
        entry["price"] |= {"currency": "usd", "unit_amount_decimal": "10"}
    return found | {"start_date": end - 30 * DAY, "created": end - 30 * DAY}


def line(name: str, item_id: str, end: int, quantity: str) -> Json:
    """Return the line of a metered item for the month of 30 days that ended."""
    details = {"subscription_item": item_id}
    return {
        "id": name,
        "object": "line_item",
        "amount": 100,
        "parent": {"type": "subscription_item_details", "subscription_item_details": details},
        "period": {"start": end - 30 * DAY, "end": end},
        "pricing": {"price_details": {"price": "price_metered"}},
        "quantity_decimal": quantity,
    }


def invoice(name: str, lines: list[Json], end: int, owner: Json | str, status: str) -> Json:
    """Return a renewal's invoice of a subscription, which is an id or an object."""
    details = {"subscription": owner}
    return {
        "id": name,
        "object": "invoice",
        "billing_reason": "subscription_cycle",
        "created": end,
        "lines": {"object": "list", "data": lines, "has_more": False},
        "parent": {"type": "subscription_details", "subscription_details": details},
        "period_end": end,
        "status": status,
    }


def audited_invoice(number: int) -> Json:
    """Return a final invoice with two metered lines; each hundredth lacks a unit."""
    name, end = f"sub_{number}", ended(number)
    lines = [
        line(f"il_{number}_{n}", f"si_{name}_{n}", end, "9" if number % 100 == n else "10")
        for n in range(2)
    ]
    found = invoice(f"in_{number}", lines, end, audited_subscription(number), "paid")
    return found | {"number": f"N-{number}"}


def billing_meter(meter_id: str) -> Json:
    """Return a Billing Meter that bills the last value."""
    return {
        "id": meter_id,
        "object": "billing.meter",
        "customer_mapping": {"event_payload_key": "stripe_customer_id"},
        "default_aggregation": {"formula": "last"},
        "event_name": f"openmeter_{meter_id}",
        "status": "active",
        "value_settings": {"event_payload_key": "value"},
    }


def page_of(query: Query, count: int, entry: Callable[[int], Json]) -> Json:
    """Return a page of a list of so many, after the one that is named."""
    start = int(query.get("starting_after", "_-1").rpartition("_")[2]) + 1
    end = min(start + int(query["limit"]), count)
    entries = [entry(number) for number in range(start, end)]
    return {"object": "list", "data": entries, "has_more": end < count}
