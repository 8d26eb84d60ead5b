"""The rules of the Stripe stand-in: subscriptions, usage records, periods and invoices.

No HTTP here. Times are UTC seconds. Objects are kept in one shape and rendered in the shape of
an API version. `tell` is called with an event's type and the state after and before it.
"""

import calendar
import itertools
import re
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

BASIL = "2025-03-31"
FLEXIBLE_DEFAULT = "2025-09-30"
DRAFT_SECONDS = 3_600
HOLD_SECONDS = 72 * 3_600
EVENT_ITEMS = 10
CLOSED = (
    "Cannot create the usage record with this timestamp because timestamps must be after the "
    "subscription's last invoice period (or current period start time)."
)
NOT_LEGACY = (
    "Cannot create a usage record for `{}` because it is not on the legacy metered billing "
    "system. Call /v1/billing/meter_events instead."
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

    def __init__(self, tell: Callable[[str, Record, Record], bool]) -> None:
        self.tell = tell
        self.objects: dict[str, dict[str, Record]] = {}
        self.records: dict[str, dict[int, int]] = {}
        self.meters = Meters(self)
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
        metered, meter = recurring.get("usage_type") == "metered", recurring.get("meter")
        if metered and not meter and version >= BASIL:
            raise StripeError(400, NEEDS_METER, "recurring[meter]")
        if meter:
            self.get("meter", meter, "recurring[meter]")
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
                "meter": meter,
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
        self.end(subscription, now)
        return subscription

    def end(self, subscription: Record, at: int) -> None:
        """End a subscription and tell."""
        subscription.update(status="canceled", ended_at=at)
        state = deepcopy(self.state(subscription))
        self.tell("customer.subscription.deleted", state, state)

    # Usage records

    def create_usage_record(self, item: Record, form: Record) -> Record:
        """Set or increment the usage at one instant of the running period."""
        subscription = self.get("subscription", item["subscription"])
        if subscription["status"] == "canceled":
            raise missing("subscription_item", item["id"], "subscription_item")
        price = self.get("price", item["price"])
        if price["recurring"]["usage_type"] != "metered":
            raise StripeError(400, "Usage records need a metered price.", "subscription_item")
        if price["recurring"]["meter"]:
            raise StripeError(400, NOT_LEGACY.format(item["id"]), "subscription_item")
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
        items = [self.get("subscription_item", key) for key in subscription["items"]]
        lines = [
            {"item": item["id"], "price": item["price"], "start": start, "end": end}
            | {"quantity": Decimal(item["quantity"] or 0), "amount": 0}
            for item in items
        ]
        invoice = self.add(
            "invoice",
            "in",
            accepted_at=end,
            billing_reason=reason,
            customer=subscription["customer"],
            lines=lines,
            period_end=end,
            period_start=start,
            status="draft",
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
        )
        invoice["created"] = end
        self.refresh(invoice)
        subscription["latest_invoice"] = invoice["id"]
        if reason != "subscription_cycle":
            self.finalize(invoice)
        if self.tell("invoice.created", invoice, invoice):
            invoice["accepted_at"] = None
        return invoice

    def refresh(self, invoice: Record) -> None:
        """Count the metered usage of an invoice's lines and sum them up."""
        for line in invoice["lines"]:
            price = self.get("price", line["price"])
            if price["recurring"]["meter"]:
                who, meter = invoice["customer"], price["recurring"]["meter"]
                line["quantity"] = self.meters.usage(meter, who, line["start"], line["end"])
            elif price["recurring"]["usage_type"] == "metered":
                line["quantity"] = Decimal(self.usage(line["item"], line["start"], line["end"]))
            amount = (line["quantity"] * price["unit_amount"]).quantize(Decimal(1), ROUND_HALF_UP)
            line["amount"] = int(amount)
        invoice["total"] = sum(line["amount"] for line in invoice["lines"])

    def finalize(self, invoice: Record) -> None:
        """Count once more and close a draft; one over nothing is paid at once."""
        self.refresh(invoice)
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
            at = self.finalization(invoice)
            if invoice["status"] == "draft" and at <= self.now(invoice["test_clock"]):
                found.append((at, lambda invoice=invoice: self.finalize(invoice)))  # type: ignore[misc]
        for subscription in self.all("subscription"):
            at = min(subscription["end"], subscription["cancel_at"] or subscription["end"])
            running = subscription["status"] == "active"
            if running and at <= self.now(subscription["test_clock"]):
                found.append((at, lambda s=subscription, at=at: self.renew(s, at)))  # type: ignore[misc]
        return found

    def finalization(self, invoice: Record) -> int:
        """Return when a draft is due: an hour after its event was taken, in 72 h at most."""
        latest = int(invoice["created"]) + HOLD_SECONDS
        accepted = invoice["accepted_at"]
        return latest if accepted is None else min(int(accepted) + DRAFT_SECONDS, latest)

    def renew(self, subscription: Record, at: int) -> None:
        """Close the period with a draft invoice, and start the next one or end."""
        before = deepcopy(self.state(subscription))
        self.invoice(subscription, "subscription_cycle", subscription["start"], at)
        if subscription["cancel_at_period_end"] or subscription["cancel_at"] == at:
            self.end(subscription, at)
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
            self.tell("customer.subscription.updated", after, before)


class Meters:
    """Billing Meters and their events.

    What Stripe leaves unknown can be read either way: whether "last" goes by `timestamp` or by
    `arrival`, whether the `first` or the `last` of equal timestamps wins, and whether an event
    at a boundary counts in the `earlier` or the `later` period.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.events: list[Record] = []
        self.identifiers: set[str] = set()
        self.errors: list[Record] = []
        self.readings = {"last_by": "timestamp", "tie": "first", "boundary": "later"}

    def create(self, form: Record, version: str) -> Record:
        """Create a Billing Meter; the formula `last` is younger than acacia."""
        formula = form.get("default_aggregation", {}).get("formula")
        formulas = ("sum", "count", "last") if version >= BASIL else ("sum", "count")
        if formula not in formulas:
            message = f"Invalid default_aggregation[formula]: must be one of {', '.join(formulas)}"
            raise StripeError(400, message, "default_aggregation[formula]")
        if any(m["event_name"] == form.get("event_name") for m in self.account.all("meter")):
            raise StripeError(400, "An active meter with this event_name exists.", "event_name")
        meter = self.account.add(
            "meter",
            "mtr",
            customer_mapping=form.get(
                "customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}
            ),
            default_aggregation={"formula": formula},
            display_name=form.get("display_name"),
            event_name=form.get("event_name"),
            status="active",
            value_settings=form.get("value_settings", {"event_payload_key": "value"}),
        )
        del meter["metadata"]
        return meter

    def send(self, form: Record) -> Record:
        """Take an event; what it names is checked later."""
        payload, identifier = form.get("payload", {}), form.get("identifier")
        if identifier in self.identifiers:
            message = f"An event already exists with identifier {identifier}."
            raise StripeError(400, message, "identifier")
        meters = [m for m in self.account.all("meter") if m["event_name"] == form["event_name"]]
        key = meters[0]["customer_mapping"]["event_payload_key"] if meters else None
        who = self.account.objects.get("customer", {}).get(payload.get(key))
        now = self.account.now(who["test_clock"] if who else None)
        at = integer(form.get("timestamp", now), "timestamp")
        if who and not now - 35 * 86_400 <= at <= now + 300:
            message = "The timestamp must be within the past 35 days or up to 5 minutes ahead."
            raise StripeError(400, message, "timestamp")
        event = {"event_name": form["event_name"], "payload": payload, "timestamp": at}
        if meters and who:
            value = decimal_value(payload.get(meters[0]["value_settings"]["event_payload_key"]))
            self.events.append(event | {"meter": meters[0]["id"], "who": who["id"], "value": value})
        else:
            self.errors.append(event)
        identifier = identifier or f"event-{len(self.events) + len(self.errors)}"
        self.identifiers.add(identifier)
        shown = {"object": "billing.meter_event", "created": now, "livemode": False}
        return event | shown | {"identifier": identifier}

    def usage(self, meter: str, who: str, start: int, end: int) -> Decimal:
        """Return what a meter counts for a customer in a period."""
        early, late = (0, 1) if self.readings["boundary"] == "earlier" else (-1, 0)
        found = [
            (event["timestamp"], n, event["value"])
            for n, event in enumerate(self.events)
            if (event["meter"], event["who"]) == (meter, who)
            and start + early < event["timestamp"] < end + late
        ]
        formula = self.account.get("meter", meter)["default_aggregation"]["formula"]
        if formula == "count":
            return Decimal(len(found))
        if formula == "sum":
            return max(Decimal(0), sum((value for _, _, value in found), Decimal(0)))
        if self.readings["last_by"] == "arrival":
            found = [(n, n, value) for _, n, value in found]
        sign = 1 if self.readings["tie"] == "last" else -1
        return max(
            found, key=lambda event: (event[0], sign * event[1]), default=(0, 0, Decimal(0))
        )[2]

    def summary(self, meter: str, query: Record) -> Record:
        """Return a meter's event summary for a customer and time."""
        start = integer(query.get("start_time"), "start_time")
        end = integer(query.get("end_time"), "end_time")
        for name, second in (("start_time", start), ("end_time", end)):
            if second % 60:
                raise StripeError(400, "This value must align with minute boundaries.", name)
        who = self.account.get("customer", query.get("customer"), "customer")["id"]
        return {
            "id": f"mtrusg_{meter}_{start}",
            "object": "billing.meter_event_summary",
            "aggregated_value": float(self.usage(meter, who, start, end)),
            "start_time": start,
            "end_time": end,
            "livemode": False,
            "meter": meter,
        }


def decimal_value(text: object) -> Decimal:
    """Return a meter event's value, a plain decimal of at most 15 digits."""
    if not re.fullmatch(r"-?\d+(\.\d+)?", str(text)) or len(re.sub(r"\D", "", str(text))) > 15:
        raise StripeError(400, f"Invalid value: {text}", "payload")
    return Decimal(str(text))


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


def render_lines(invoice: Record, price_of: Callable[[str], Record], version: str) -> list[Record]:
    """Return an invoice's lines in a version's shape."""
    return [
        {
            "id": f"il_{invoice['id']}_{line['item']}",
            "object": "line_item",
            "amount": line["amount"],
            "currency": price_of(line["price"])["currency"],
            "quantity": int(line["quantity"]),
            "period": {"start": line["start"], "end": line["end"]},
            **line_references(line, invoice, price_of, version),
        }
        for line in invoice["lines"]
    ]


def render_invoice(invoice: Record, price_of: Callable[[str], Record], version: str) -> Record:
    """Return an invoice in a version's shape, with its first ten lines."""
    lines = render_lines(invoice, price_of, version)
    shown = {key: value for key, value in invoice.items() if key != "accepted_at"}
    shown |= {"object": "invoice", "amount_due": invoice["total"], "currency": "usd"}
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
        "quantity_decimal": str(line["quantity"]),
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
