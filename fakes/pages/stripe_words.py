"""What the pages of Stripe's stand-in say: amounts, prices, invoices, deliveries."""

import json
from decimal import Decimal
from typing import Any

from fakes.pages import when
from fakes.stripe_billing import RENEWING, Account
from fakes.stripe_http import Api
from fakes.stripe_invoices import finalization
from fakes.stripe_render import line_parts
from fakes.stripe_store import Record
from fakes.stripe_webhooks import Endpoint

MOST_EVENTS = 15
REASONS = {
    "subscription_create": "start",
    "subscription_cycle": "renewal",
    "subscription_update": "update or reset",
}


def money(cents: int | Decimal, currency: str = "usd") -> str:
    """Return an amount in cents, of which parts may be given."""
    amount = abs(Decimal(cents)) / 100
    text = f"{amount.normalize():f}" if amount * 100 % 1 else f"{amount:.2f}"
    sign = "-" if cents < 0 else ""
    return f"{sign}${text}" if currency == "usd" else f"{sign}{text} {currency.upper()}"


def number(value: Decimal | int) -> str:
    """Return a quantity without zeros at its end."""
    text = f"{Decimal(value):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def way(account: Account, price: Record) -> str:
    """Say how usage of a price comes to Stripe."""
    if meter := price["recurring"]["meter"]:
        return f"Billing Meter {account.get('meter', meter)['event_name']}"
    return "usage records" if price["recurring"]["usage_type"] == "metered" else "licensed"


def price_text(account: Account, price: Record) -> str:
    """Return what a price costs, how often, and for what."""
    recurring = price["recurring"]
    every = f"{recurring['interval_count']} {recurring['interval']}s"
    often = recurring["interval"] if recurring["interval_count"] == 1 else every
    if price["tiers"]:
        cost = f"{price['tiers_mode']} tiers"
    else:
        cost = f"{money(Decimal(price['unit_amount_decimal']), price['currency'])} a unit"
    return f"{cost} and {often}, {way(account, price)}"


def item_row(account: Account, subscription: Record, item: Record) -> Record:
    """Return an item with its price, and what its running period has so far."""
    price = account.get("price", item["price"])
    row = {**item, "price": price, "price_text": price_text(account, price), "usage": None}
    names = (item["metadata"], price["metadata"])
    row["meter"] = next((held["om_meter_id"] for held in names if "om_meter_id" in held), "")
    if account.metered(item) and subscription["status"] in RENEWING:
        line = account.closing_line(item, item["end"])
        account.count(line, subscription["customer"])
        row |= {"usage": number(line["quantity"]), "amount": money(line["amount"])}
    return row


def line_rows(account: Account, line: Record) -> list[Record]:
    """Return a line of an invoice, or one for each tier that it reaches."""
    price = account.get("price", line["price"]) if line["price"] else None
    notes = []
    if line.get("usage"):
        notes.append("usage up to a change of the price")
    if line.get("proration"):
        notes.append("for a part of the period")
    if (since := line.get("counted_from")) and since != line["start"]:
        notes.append(f"counts from {when(since)}")
    what = line.get("description") or (price_text(account, price) if price else "an amount")
    times = {"start": line["start"], "end": line["end"]}
    return [
        {"what": what, "note": ", ".join(notes), "quantity": number(quantity), **times}
        | {"item": line["item"], "price": line["price"], "amount": money(amount)}
        for quantity, amount in line_parts(line, price)
    ]


def invoice_row(account: Account, invoice: Record) -> Record:
    """Return an invoice with its lines, and in words when a draft becomes final."""
    lines = [row for line in invoice["lines"] for row in line_rows(account, line)]
    is_draft, goes_on = invoice["status"] == "draft", invoice["auto_advance"]
    due = finalization(invoice) if is_draft and goes_on else None
    of_its_own = invoice["accepted_at"] is not None or invoice["automatically_finalizes_at"]
    return {
        **invoice,
        "lines": lines,
        "total_text": money(invoice["total"]),
        "reason": REASONS[invoice["billing_reason"]],
        "due": due,
        "waits": due is not None and not of_its_own,
        "stays": is_draft and not goes_on,
    }


def invoices_of(account: Account, **fields: Any) -> list[Record]:
    """Return the invoices that have these fields, the newest first."""
    found = [
        invoice
        for invoice in account.all("invoice")[::-1]
        if all(invoice[name] == value for name, value in fields.items())
    ]
    return [invoice_row(account, invoice) for invoice in found]


def waiting_rows(account: Account, subscription: Record) -> list[Record]:
    """Return the lines that wait for a subscription's next invoice."""
    return [
        row
        for item in account.pending(subscription)
        for row in line_rows(account, {**item["line"], "description": item["description"]})
    ]


def answer_parts(text: str) -> list[tuple[str, list[str]]]:
    """Return what a webhook answered: each name in its JSON that has something, and that."""
    try:
        found = json.loads(text)
    except ValueError:
        return [("", [text])] if text else []
    if not isinstance(found, dict):
        return [("", [text])]
    return [
        (name, [words(one) for one in (value if isinstance(value, list) else [value])])
        for name, value in found.items()
        if value not in ([], {}, "", None)
    ]


def words(value: Any) -> str:
    """Return a JSON value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(one)}" for name, one in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def event_row(endpoint: Endpoint, event: Record) -> Record:
    """Return an event with each of its deliveries so far."""
    tries = [done for done in endpoint.deliveries if done["event"] == event["id"]]
    return {
        "id": event["id"],
        "type": event["type"],
        "created": event["created"],
        "changed": ", ".join(event.get("data", {}).get("previous_attributes", {})),
        "is_held": event["id"] in endpoint.held,
        "tries": [{**done, "parts": answer_parts(done["answer"])} for done in tries],
        "json": json.dumps(event, indent=1),
    }


def is_about(account: Account, event: Record, subscription: str) -> bool:
    """Say whether an event is of a subscription, or of one of its invoices."""
    about = event.get("data", {}).get("object", {})
    if about.get("object") == "invoice":
        return bool(account.get("invoice", about["id"])["subscription"] == subscription)
    return bool(about.get("id") == subscription)


def webhook_rows(api: Api, subscription: str | None = None) -> Record:
    """Return where events go, and the newest of all or of a subscription."""
    endpoint = api.endpoint
    with endpoint.lock:
        found = [
            event
            for event in list(endpoint.events.values())[::-1]
            if subscription is None or is_about(api.account, event, subscription)
        ]
        shown = [event_row(endpoint, event) for event in found[:MOST_EVENTS]]
        pending = endpoint.pending
    return {
        "url": endpoint.url,
        "version": endpoint.api_version,
        "types": endpoint.enabled_events,
        "events": shown,
        "older": len(found) - len(shown),
        "pending": pending,
    }
