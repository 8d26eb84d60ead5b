"""What Stripe's objects look like in the shape of an API version."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from fakes.stripe_invoices import finalization
from fakes.stripe_prices import parts
from fakes.stripe_store import BASIL, Record

EVENT_ITEMS = 10
ITEM_TRIALS = QUANTITY_DECIMAL = "2026-03"
OF_ITEMS = {"began", "changed", "counted_from", "current_trial", "end", "livemode", "start",
            "test_clock"}  # fmt: skip
OF_SUBSCRIPTIONS = {"anchor", "billing_mode", "due", "end", "fixed_anchor", "start", "switch"}

PriceOf = Callable[[str], Record]


def render_price(price: Record, tiers: bool = False) -> Record:
    """Return a price as the API does: its tiers only where they are expanded."""
    shown = {"object": "price", **price}
    if not tiers:
        del shown["tiers"]
    return shown


def render_item(item: Record, subscription: Record, version: str) -> Record:
    """Return a subscription item; since basil it carries its period."""
    hidden = OF_ITEMS | ({"quantity"} if item["quantity"] is None else set())
    shown = {key: value for key, value in item.items() if key not in hidden}
    shown |= {"object": "subscription_item", "price": render_price(item["price"]), "discounts": []}
    if version >= BASIL:
        shown["current_period_start"] = item["start"]
        shown["current_period_end"] = item["end"]
    if version >= ITEM_TRIALS:
        shown["current_trial"] = item["current_trial"]
    return shown


def render_subscription(state: Record, version: str) -> Record:
    """Return a subscription in a version's shape, with its first ten items."""
    items = [render_item(item, state, version) for item in state["items"]]
    shown = {key: value for key, value in state.items() if key not in OF_SUBSCRIPTIONS}
    shown |= {
        "object": "subscription",
        "billing_cycle_anchor": state["anchor"],
        "collection_method": "charge_automatically",
        "currency": items[0]["price"]["currency"] if items else "usd",
        "discounts": [],
        "items": {
            "object": "list",
            "data": items[:EVENT_ITEMS],
            "has_more": len(items) > EVENT_ITEMS,
            "url": f"/v1/subscription_items?subscription={state['id']}",
        },
    }
    if version >= BASIL:
        return shown | {"billing_mode": {"type": state["billing_mode"]}}
    return shown | {"current_period_start": state["start"], "current_period_end": state["end"]}


def line_parts(line: Record, price: Record | None) -> list[tuple[Decimal, int]]:
    """Return the quantity and amount of each line that Stripe shows for one of ours.

    Graduated tiers give one for each tier. A line over another amount than its price's, as a
    proration or a trial's, stays whole.
    """
    if price is not None:
        found = parts(price, line["quantity"])
        if sum(amount for _, amount in found) == line["amount"]:
            return found
    return [(line["quantity"], line["amount"])]


def render_lines(invoice: Record, price_of: PriceOf, version: str) -> list[Record]:
    """Return an invoice's lines in a version's shape."""
    lines = []
    for n, line in enumerate(invoice["lines"]):
        price = price_of(line["price"]) if line["price"] else None
        for m, (quantity, amount) in enumerate(line_parts(line, price)):
            lines.append(
                {
                    "id": f"il_{invoice['id']}_{n}" + (f"_{m}" if m else ""),
                    "object": "line_item",
                    "amount": amount,
                    "currency": price["currency"] if price else line["currency"],
                    "description": line.get("description"),
                    "discountable": not line.get("proration", False),
                    "discounts": [],
                    "invoice": invoice["id"],
                    "livemode": False,
                    "metadata": line.get("metadata", {}),
                    "period": {"start": line["start"], "end": line["end"]},
                    "quantity": int(quantity),
                    **line_references(line, invoice, price, version),
                }
            )
            if version >= BASIL:
                lines[-1]["subtotal"] = amount
            if version >= QUANTITY_DECIMAL:
                lines[-1]["quantity_decimal"] = f"{quantity:f}"
    return lines


def line_references(line: Record, invoice: Record, price: Record | None, version: str) -> Record:
    """Return what an invoice line refers to, where the version puts it."""
    if version < BASIL:
        found = {
            "price": price and render_price(price),
            "proration": line.get("proration", False),
            "subscription": invoice["subscription"],
            "type": line["type"],
        }
        found |= {"subscription_item": line["item"]} if line["item"] else {}
        return found | ({"invoice_item": line["invoice_item"]} if "invoice_item" in line else {})
    about: Record = {
        "proration": line.get("proration", False),
        "subscription": invoice["subscription"],
    }
    if line["type"] == "invoiceitem":
        about["invoice_item"] = line["invoice_item"]
        parent = {"type": "invoice_item_details", "invoice_item_details": about}
    else:
        about |= {"invoice_item": None, "subscription_item": line["item"]}
        parent = {"type": "subscription_item_details", "subscription_item_details": about}
    details = price and {"price": price["id"], "product": price["product"]}
    pricing = details and {"type": "price_details", "price_details": details}
    return {"parent": parent, "pricing": pricing}


def render_invoice(invoice: Record, price_of: PriceOf, version: str) -> Record:
    """Return an invoice in a version's shape, with its first ten lines."""
    lines = render_lines(invoice, price_of, version)
    hidden = ("accepted_at", "finalized_at")
    shown = {key: value for key, value in invoice.items() if key not in hidden}
    shown |= {"object": "invoice", "amount_due": max(0, invoice["total"]), "currency": "usd"}
    shown |= {"subtotal": invoice["total"], "discounts": []}
    shown["number"] = None if invoice["status"] == "draft" else f"N-{invoice['id'][3:]}"
    is_scheduled = invoice["status"] == "draft" and invoice["auto_advance"]
    shown["automatically_finalizes_at"] = finalization(invoice) if is_scheduled else None
    shown["status_transitions"] = {"finalized_at": invoice["finalized_at"]}
    shown["lines"] = {
        "object": "list",
        "data": lines[:EVENT_ITEMS],
        "has_more": len(lines) > EVENT_ITEMS,
        "url": f"/v1/invoices/{invoice['id']}/lines",
    }
    if version >= BASIL:
        subscription = shown.pop("subscription")
        shown["parent"] = {
            "type": "subscription_details",
            "subscription_details": {"subscription": subscription},
        }
    return shown


def render_invoice_item(item: Record, price_of: PriceOf, version: str) -> Record:
    """Return an invoice item, which waits for an invoice or is on one."""
    line = item["line"]
    price = price_of(line["price"]) if line["price"] else None
    hidden = ("created", "line", "subscription")
    shown = {key: value for key, value in item.items() if key not in hidden}
    shown |= {
        "object": "invoiceitem",
        "amount": line["amount"],
        "currency": price["currency"] if price else line["currency"],
        "date": item["created"],
        "discountable": not item["proration"],
        "period": {"start": line["start"], "end": line["end"]},
        "quantity": int(line["quantity"]),
    }
    if version >= QUANTITY_DECIMAL:
        shown["quantity_decimal"] = f"{line['quantity']:f}"
    subscription = item["subscription"]
    if version < BASIL:
        return shown | {"price": price and render_price(price), "subscription": subscription}
    details = price and {"price": price["id"], "product": price["product"]}
    about = {"subscription": subscription, "subscription_item": None}
    parent = subscription and {"type": "subscription_details", "subscription_details": about}
    pricing = details and {"type": "price_details", "price_details": details}
    return shown | {"parent": parent, "pricing": pricing}


def previous_attributes(before: Record, after: Record) -> Record:
    """Return the old values of what changed between two renderings of an object."""
    previous: Record = {}
    for key in before.keys() | after.keys():
        old: Any = before.get(key)
        new: Any = after.get(key)
        if old == new:
            continue
        if key == "metadata":
            names = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
            previous[key] = {name: old.get(name) for name in names}
        elif key == "items":
            previous[key] = {"data": old["data"]}
        else:
            previous[key] = old
    return previous
