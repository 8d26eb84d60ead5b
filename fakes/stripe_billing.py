"""The rules of the Stripe stand-in: subscriptions, usage records, periods and invoices.

No HTTP here. Times are UTC seconds. Objects are kept in one shape and rendered in the shape of
an API version by `render`; `changed` is called with the state before and after each update.
"""

import calendar
import itertools
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

BASIL = "2025-03-31"
FLEXIBLE_DEFAULT = "2025-09-30"
DRAFT_SECONDS = 3_600
EVENT_ITEMS = 10
CLOSED = (
    "Cannot create the usage record with this timestamp because timestamps must be after the "
    "subscription's last invoice period (or current period start time)."
)
NEEDS_METER = (
    "Starting with Stripe version `2025-03-31.basil`, metered prices must be backed by meters."
)

Record = dict[str, Any]


class StripeError(Exception):
    """An error answer of Stripe's."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        kind = "idempotency_error" if code == "idempotency" else "invalid_request_error"
        self.status = status
        self.body = {"type": kind, "message": message, "param": param, "code": code}


def missing(kind: str, key: object, param: str) -> StripeError:
    """Return Stripe's answer for an object that is not there."""
    name = kind.replace("_", " ")
    return StripeError(404, f"No such {name}: '{key}'", param, "resource_missing")


def add_intervals(anchor: int, interval: str, count: int) -> int:
    """Return the anchor plus `count` intervals; a month keeps the anchor's day where it can."""
    start = datetime.fromtimestamp(anchor, UTC)
    if interval in ("day", "week"):
        days = count * (7 if interval == "week" else 1)
        return int((start + timedelta(days=days)).timestamp())
    months = start.month - 1 + count * (12 if interval == "year" else 1)
    year, month = start.year + months // 12, months % 12 + 1
    day = min(start.day, calendar.monthrange(year, month)[1])
    return int(start.replace(year=year, month=month, day=day).timestamp())


def integer(value: object, name: str) -> int:
    """Return a form's whole number."""
    try:
        return int(str(value))
    except ValueError as error:
        raise StripeError(
            400, f"Invalid integer: {value}", name, "parameter_invalid_integer"
        ) from error


class Account:
    """One Stripe account: all objects, by kind and id, oldest first."""

    def __init__(self, changed: Callable[[Record, Record], None]) -> None:
        self.changed = changed
        self.objects: dict[str, dict[str, Record]] = {}
        self.records: dict[str, dict[int, int]] = {}
        self.ahead = 0
        self.numbers = itertools.count(1)

    def now(self, test_clock: str | None = None) -> int:
        """Return the time of a test clock, or else the real one plus what was skipped."""
        if test_clock:
            return int(self.get("test_clock", test_clock)["frozen_time"])
        return int(time.time()) + self.ahead

    def add(self, kind: str, prefix: str, **fields: Any) -> Record:
        """Store a new object."""
        key = f"{prefix}_{next(self.numbers):08d}"
        created = self.now(fields.get("test_clock"))
        record = {"id": key, "created": created, "livemode": False, "metadata": {}, **fields}
        self.objects.setdefault(kind, {})[key] = record
        return record

    def get(self, kind: str, key: object, param: str = "id") -> Record:
        """Return an object, or raise Stripe's 404."""
        record = self.objects.get(kind, {}).get(str(key))
        if record is None:
            raise missing(kind, key, param)
        return record

    def all(self, kind: str) -> list[Record]:
        """Return the objects of a kind, oldest first."""
        return list(self.objects.get(kind, {}).values())

    # Products and prices

    def create_price(self, form: Record, version: str) -> Record:
        """Create a recurring price; since basil a metered one needs a meter."""
        recurring = form.get("recurring", {})
        if recurring.get("usage_type") == "metered" and version >= BASIL:
            raise StripeError(400, NEEDS_METER, "recurring[meter]")
        if recurring.get("interval") not in ("day", "week", "month", "year"):
            raise StripeError(400, "Missing required param: recurring[interval].", "recurring")
        self.get("product", form.get("product"), "product")
        self.free_lookup_key(form)
        return self.add(
            "price",
            "price",
            active=True,
            currency=form.get("currency", "usd"),
            lookup_key=form.get("lookup_key"),
            metadata=form.get("metadata", {}),
            product=form["product"],
            recurring={
                "interval": recurring["interval"],
                "interval_count": 1,
                "meter": None,
                "usage_type": recurring.get("usage_type", "licensed"),
            },
            type="recurring",
            unit_amount=integer(form.get("unit_amount"), "unit_amount"),
        )

    def free_lookup_key(self, form: Record) -> None:
        """Take the lookup key from the price that has it, if the form asks for that."""
        for price in self.all("price"):
            if form.get("lookup_key") and price["lookup_key"] == form["lookup_key"]:
                if form.get("transfer_lookup_key") != "true":
                    message = f"A price with the lookup key `{price['lookup_key']}` already exists."
                    raise StripeError(400, message, "lookup_key")
                price["lookup_key"] = None

    # Subscriptions

    def create_subscription(self, form: Record, version: str) -> Record:
        """Start a subscription now and invoice what is due in advance."""
        customer = self.get("customer", form.get("customer"), "customer")
        entries = form.get("items") or []
        if not entries:
            raise StripeError(400, "Missing required param: items.", "items")
        now = self.now(customer["test_clock"])
        mode = "flexible" if version >= FLEXIBLE_DEFAULT else "classic"
        subscription = self.add(
            "subscription",
            "sub",
            anchor=now,
            billing_mode=form.get("billing_mode", {}).get("type", mode),
            cancel_at=None,
            cancel_at_period_end=False,
            customer=customer["id"],
            ended_at=None,
            items=[],
            latest_invoice=None,
            metadata=form.get("metadata", {}),
            start=now,
            start_date=now,
            status="active",
            test_clock=customer["test_clock"],
        )
        for n, entry in enumerate(entries):
            self.add_item(subscription, entry, n)
        subscription["end"] = self.next_end(subscription)
        self.invoice(subscription, "subscription_create", now, now)
        return subscription

    def add_item(self, subscription: Record, entry: Mapping[str, Any], n: int) -> Record:
        """Add an item to a subscription."""
        price = self.get("price", entry.get("price"), f"items[{n}][price]")
        metered = price["recurring"]["usage_type"] == "metered"
        if metered and "quantity" in entry:
            message = "Quantity should not be specified where usage_type is `metered`."
            raise StripeError(400, message, f"items[{n}][quantity]")
        item = self.add(
            "subscription_item",
            "si",
            metadata=entry.get("metadata", {}),
            price=price["id"],
            quantity=None if metered else integer(entry.get("quantity", 1), "quantity"),
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
        )
        subscription["items"].append(item["id"])
        self.records[item["id"]] = {}
        return item

    def next_end(self, subscription: Record) -> int:
        """Return the first billing date after the running period's start."""
        first = self.get("price", self.get("subscription_item", subscription["items"][0])["price"])
        interval = first["recurring"]["interval"]
        dates = (add_intervals(subscription["anchor"], interval, n) for n in itertools.count(1))
        return next(date for date in dates if date > subscription["start"])

    def update_subscription(self, subscription: Record, form: Record) -> Record:
        """Apply an update; with `billing_cycle_anchor` the running period ends now."""
        before = deepcopy(self.state(subscription))
        for n, entry in enumerate(form.get("items", [])):
            self.update_item(subscription, entry, n)
        merge_metadata(subscription, form)
        if "cancel_at_period_end" in form:
            subscription["cancel_at_period_end"] = form["cancel_at_period_end"] == "true"
        if "cancel_at" in form:
            at = form["cancel_at"]
            subscription["cancel_at"] = integer(at, "cancel_at") if at else None
        anchor = form.get("billing_cycle_anchor")
        if anchor == "now" or (isinstance(anchor, dict) and anchor.get("type") == "now"):
            self.reset(subscription, form.get("proration_behavior", "create_prorations"))
        self.notify(before, subscription)
        return subscription

    def update_item(self, subscription: Record, entry: Mapping[str, Any], n: int) -> None:
        """Change, add or remove an item."""
        if "id" not in entry:
            self.add_item(subscription, entry, n)
            return
        item = self.get("subscription_item", entry["id"], f"items[{n}][id]")
        if entry.get("deleted") == "true":
            subscription["items"].remove(item["id"])
            del self.objects["subscription_item"][item["id"]]
            return
        merge_metadata(item, entry)
        if "price" in entry:
            item["price"] = self.get("price", entry["price"], f"items[{n}][price]")["id"]
        if "quantity" in entry:
            item["quantity"] = integer(entry["quantity"], "quantity")

    def reset(self, subscription: Record, proration_behavior: str) -> None:
        """End the period now and invoice it at once, without a draft hour."""
        flexible = subscription["billing_mode"] == "flexible"
        if flexible and proration_behavior != "always_invoice":
            message = "This stand-in resets flexible subscriptions with always_invoice only."
            raise StripeError(400, message, "proration_behavior")
        now = self.now(subscription["test_clock"])
        invoice = self.invoice(subscription, "subscription_update", subscription["start"], now)
        subscription.update(latest_invoice=invoice["id"], anchor=now, start=now)
        subscription["end"] = self.next_end(subscription)

    def cancel_subscription(self, subscription: Record, form: Record) -> Record:
        """Cancel at once; metered usage is billed with `invoice_now` only."""
        now = self.now(subscription["test_clock"])
        if form.get("invoice_now") == "true":
            self.invoice(subscription, "subscription_update", subscription["start"], now)
        subscription.update(status="canceled", ended_at=now)
        return subscription

    # Usage records

    def create_usage_record(self, item: Record, form: Record) -> Record:
        """Set or increment the usage at one instant of the running period."""
        subscription = self.get("subscription", item["subscription"])
        if subscription["status"] == "canceled":
            raise missing("subscription_item", item["id"], "subscription_item")
        price = self.get("price", item["price"])
        if price["recurring"]["usage_type"] != "metered":
            raise StripeError(400, "Usage records need a metered price.", "subscription_item")
        quantity = integer(form.get("quantity"), "quantity")
        if quantity < 0:
            raise StripeError(400, "This value must be greater than or equal to 0.", "quantity")
        now = self.now(subscription["test_clock"])
        given = form.get("timestamp", "now")
        timestamp = now if given == "now" else integer(given, "timestamp")
        if timestamp <= subscription["start"]:
            raise StripeError(400, CLOSED, "timestamp")
        if timestamp > now:
            message = "Cannot create the usage record with a timestamp in the future."
            raise StripeError(400, message, "timestamp")
        action = form.get("action", "increment")
        if action not in ("set", "increment"):
            raise StripeError(400, "Invalid action: must be set or increment", "action")
        records = self.records[item["id"]]
        records[timestamp] = quantity + (records.get(timestamp, 0) if action == "increment" else 0)
        return {
            "id": f"mbur_{item['id']}_{timestamp}",
            "object": "usage_record",
            "livemode": False,
            "quantity": quantity,
            "subscription_item": item["id"],
            "timestamp": timestamp,
        }

    def usage(self, item: str, start: int, end: int) -> int:
        """Return the sum of the usage in (start, end]."""
        return sum(q for at, q in self.records[item].items() if start < at <= end)

    def usage_summaries(self, item: Record) -> list[Record]:
        """Return the usage of each period, the running one first."""
        subscription = self.get("subscription", item["subscription"])
        periods = [(None, subscription["start"], subscription["end"])]
        for invoice in reversed(self.all("invoice")):
            for line in invoice["lines"]:
                if line["item"] == item["id"] and line["start"] < line["end"]:
                    periods.append((invoice["id"], line["start"], line["end"]))
        return [
            {
                "id": f"sis_{item['id']}_{start}",
                "object": "usage_record_summary",
                "invoice": invoice,
                "livemode": False,
                "period": {"start": start, "end": end},
                "subscription_item": item["id"],
                "total_usage": self.usage(item["id"], start, end),
            }
            for invoice, start, end in periods
        ]

    # Invoices and time

    def invoice(self, subscription: Record, reason: str, start: int, end: int) -> Record:
        """Bill the metered usage of (start, end]; only a renewal's invoice starts as a draft."""
        lines = []
        for key in subscription["items"]:
            item = self.get("subscription_item", key)
            price = self.get("price", item["price"])
            usage = self.usage(key, start, end)
            quantity = usage if item["quantity"] is None else item["quantity"]
            amount = Decimal(quantity * price["unit_amount"]).quantize(Decimal(1), ROUND_HALF_UP)
            line = {"item": key, "price": price["id"], "quantity": quantity, "amount": int(amount)}
            lines.append({**line, "start": start, "end": end})
        invoice = self.add(
            "invoice",
            "in",
            billing_reason=reason,
            customer=subscription["customer"],
            lines=lines,
            period_end=end,
            period_start=start,
            status="draft",
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
            total=sum(line["amount"] for line in lines),
        )
        invoice["created"] = end
        subscription["latest_invoice"] = invoice["id"]
        if reason != "subscription_cycle":
            self.finalize(invoice)
        return invoice

    def finalize(self, invoice: Record) -> None:
        """Close a draft; one over nothing is paid at once."""
        invoice["status"] = "open" if invoice["total"] else "paid"

    def advance(self, test_clock: Record, frozen_time: int) -> Record:
        """Move a test clock, and all that hangs on it, forward."""
        if frozen_time <= test_clock["frozen_time"]:
            message = "The time to advance to must be after the test clock's present one."
            raise StripeError(400, message, "frozen_time")
        test_clock["frozen_time"] = frozen_time
        self.catch_up()
        return test_clock

    def catch_up(self) -> None:
        """Let happen what has come due: renewals, ends and finalizations, in order."""
        while due := sorted(self.due(), key=lambda entry: entry[0]):
            due[0][1]()

    def due(self) -> list[tuple[int, Callable[[], None]]]:
        """Return what has come due, with its time."""
        found: list[tuple[int, Callable[[], None]]] = []
        for invoice in self.all("invoice"):
            at = invoice["created"] + DRAFT_SECONDS
            if invoice["status"] == "draft" and at <= self.now(invoice["test_clock"]):
                found.append((at, lambda invoice=invoice: self.finalize(invoice)))  # type: ignore[misc]
        for subscription in self.all("subscription"):
            at = min(subscription["end"], subscription["cancel_at"] or subscription["end"])
            running = subscription["status"] == "active"
            if running and at <= self.now(subscription["test_clock"]):
                found.append((at, lambda s=subscription, at=at: self.renew(s, at)))  # type: ignore[misc]
        return found

    def renew(self, subscription: Record, at: int) -> None:
        """Close the period with a draft invoice, and start the next one or end."""
        before = deepcopy(self.state(subscription))
        self.invoice(subscription, "subscription_cycle", subscription["start"], at)
        if subscription["cancel_at_period_end"] or subscription["cancel_at"] == at:
            subscription.update(status="canceled", ended_at=at)
            return
        subscription["start"] = at
        subscription["end"] = self.next_end(subscription)
        self.notify(before, subscription)

    # What a subscription looks like

    def state(self, subscription: Record) -> Record:
        """Return a subscription with its items and their prices in place."""
        items = [self.get("subscription_item", key) for key in subscription["items"]]
        whole = [{**item, "price": self.get("price", item["price"])} for item in items]
        return {**subscription, "items": whole}

    def notify(self, before: Record, subscription: Record) -> None:
        """Tell of an update if there was one."""
        after = deepcopy(self.state(subscription))
        if after != before:
            self.changed(before, after)


def merge_metadata(record: Record, form: Mapping[str, Any]) -> None:
    """Merge a form's metadata; an empty value removes a key."""
    merged = {**record["metadata"], **form.get("metadata", {})}
    record["metadata"] = {key: value for key, value in merged.items() if value != ""}


def render_price(price: Record) -> Record:
    """Return a price as the API does."""
    return {"object": "price", **price, "unit_amount_decimal": str(price["unit_amount"])}


def render_item(item: Record, subscription: Record, version: str) -> Record:
    """Return a subscription item; since basil it carries the period."""
    hidden = {"livemode", "test_clock"} | ({"quantity"} if item["quantity"] is None else set())
    shown = {key: value for key, value in item.items() if key not in hidden}
    shown |= {"object": "subscription_item", "price": render_price(item["price"])}
    if version >= BASIL:
        shown["current_period_start"] = subscription["start"]
        shown["current_period_end"] = subscription["end"]
    return shown


def render_subscription(state: Record, version: str) -> Record:
    """Return a subscription in a version's shape, with its first ten items."""
    items = [render_item(item, state, version) for item in state["items"]]
    hidden = ("anchor", "start", "end", "billing_mode")
    shown = {key: value for key, value in state.items() if key not in hidden}
    shown |= {
        "object": "subscription",
        "billing_cycle_anchor": state["anchor"],
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


def render_invoice(invoice: Record, price_of: Callable[[str], Record], version: str) -> Record:
    """Return an invoice in a version's shape, with its first ten lines."""
    lines = [
        {
            "id": f"il_{invoice['id']}_{line['item']}",
            "object": "line_item",
            "amount": line["amount"],
            "currency": price_of(line["price"])["currency"],
            "quantity": line["quantity"],
            "period": {"start": line["start"], "end": line["end"]},
            **line_references(line, invoice, price_of, version),
        }
        for line in invoice["lines"]
    ]
    shown = {**invoice, "object": "invoice", "amount_due": invoice["total"], "currency": "usd"}
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


def line_references(
    line: Record, invoice: Record, price_of: Callable[[str], Record], version: str
) -> Record:
    """Return what an invoice line refers to, where the version puts it."""
    price = price_of(line["price"])
    if version < BASIL:
        return {
            "price": render_price(price),
            "subscription": invoice["subscription"],
            "subscription_item": line["item"],
        }
    details = {"subscription": invoice["subscription"], "subscription_item": line["item"]}
    return {
        "parent": {"type": "subscription_item_details", "subscription_item_details": details},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
        },
    }


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
