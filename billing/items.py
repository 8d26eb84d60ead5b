"""A subscription item and the period it is billed for, read from Stripe's objects.

Objects go in as plain data. Times are UTC seconds since the epoch. Nothing is called here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from billing.stripe_api import Json
from usage import METER, WINDOW_SECONDS, window_start_at

LATEST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one that a datetime holds
STRIPE_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
UTC_TIME = "%Y-%m-%d %H:%M:%S +0000 UTC"


class InvalidSubscription(ValueError):
    """Say which field of a genuine event is missing or cannot be billed."""


@dataclass(frozen=True)
class MeteredItem:
    """A subscription item to report, with one billing period [start, end) in UTC seconds.

    `unrounded` has the boundaries that are not rounded down; `billing_meter` is the Billing Meter
    behind the price, or None where usage records are billed.
    """

    id: str
    subscription: str
    price: str
    customer: str
    subject: str
    meter: str
    billing_meter: str | None
    window: int
    start: int
    end: int
    unrounded: frozenset[int] = frozenset()

    @property
    def window_start(self) -> datetime:
        """Return the period's start, rounded down to the window."""
        return self._query_boundary(self.start)

    @property
    def window_end(self) -> datetime:
        """Return the period's end, rounded down to the window."""
        return self._query_boundary(self.end)

    def _query_boundary(self, boundary: int) -> datetime:
        return window_start_at(boundary, 1 if boundary in self.unrounded else self.window)


def read_item(item: Json, subscription: Json, path: str, window_size: str) -> MeteredItem | None:
    """Return what to report for an entry of `items.data`, or None where there is nothing to.

    `path` is the entry's place in the event, for errors; `window_size` holds unless the item
    names another one. Raises InvalidSubscription.
    """
    price = require_object(item, "price", path)
    recurring = price.get("recurring")
    if not isinstance(recurring, Mapping) or recurring.get("usage_type") != "metered":
        return None
    meter = read_meter(item, price, path)
    if meter is None:
        return None
    window = read_window(item, price, path, window_size)
    start, end = read_period(item, subscription, path)
    customer = require_expandable_id(subscription, "customer")
    return MeteredItem(
        id=require_id(item, "id", path),
        subscription=require_id(subscription, "id", ""),
        price=require_id(price, "id", f"{path}.price"),
        customer=customer,
        subject=read_metadata(subscription, {}, "om_subject", "") or customer,
        meter=meter,
        billing_meter=read_billing_meter(recurring, path),
        window=window,
        start=start,
        end=end,
        unrounded=reset_anchor_boundary(subscription)
        | unrounded_subscription_start(subscription, recurring),
    )


def read_meter(item: Json, price: Json, path: str) -> str | None:
    """Return OpenMeter's meter, if the item or its price names one. Raises InvalidSubscription."""
    meter = read_metadata(item, price, "om_meter_id", path)
    if meter and not METER.fullmatch(meter):
        raise InvalidSubscription(
            f"{path}.metadata.om_meter_id is no meter's id or slug: {meter!r}"
        )
    return meter


def read_window(item: Json, price: Json, path: str, window_size: str) -> int:
    """Return the length of the item's window in seconds. Raises InvalidSubscription."""
    window_size = read_metadata(item, price, "om_window_size", path) or window_size
    if window_size not in WINDOW_SECONDS:
        wanted = ", ".join(WINDOW_SECONDS)
        raise InvalidSubscription(f"{path}.metadata.om_window_size must be one of {wanted}")
    return WINDOW_SECONDS[window_size]


def read_period(item: Json, subscription: Json, path: str) -> tuple[int, int]:
    """Return start and end; since 2025-03-31.basil they stand on the item.

    Raises InvalidSubscription
    (docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end).
    """
    on_item = item.get("current_period_start") is not None
    holder, path = (item, path) if on_item else (subscription, "")
    seconds = []
    for name in ("current_period_start", "current_period_end"):
        value = holder.get(name)
        if type(value) is not int or not 0 <= value < LATEST_SECOND:
            raise InvalidSubscription(f"{field_path(path, name)} is missing or is no time")
        seconds.append(value)
    if seconds[1] < seconds[0]:
        end = field_path(path, "current_period_end")
        raise InvalidSubscription(f"{end} lies before the start")
    return seconds[0], seconds[1]


def read_billing_meter(recurring: Json, path: str) -> str | None:
    """Return the Billing Meter behind a price, if there is one. Raises InvalidSubscription."""
    if recurring.get("meter") is None:
        return None
    return require_id(recurring, "meter", f"{path}.price.recurring")


def reset_anchor_boundary(subscription: Json) -> frozenset[int]:
    """Return the billing cycle anchor unless it is where the subscription began.

    A reset moves it to its own instant, and Stripe invoices at once what had been reported by
    then: rounded down, the new period would bill a part of that again. A date given at the
    start is one where both periods that meet there agree
    (docs.stripe.com/billing/subscriptions/billing-cycle).
    """
    anchor, began = subscription.get("billing_cycle_anchor"), subscription.get("start_date")
    if type(anchor) is int and type(began) is int and anchor != began:
        return frozenset([anchor])
    return frozenset()


def unrounded_subscription_start(subscription: Json, recurring: Json) -> frozenset[int]:
    """Return where a subscription began, if a Billing Meter counts its usage.

    Rounded down, it would bill again what the customer's last one was billed for to the second.
    """
    began = subscription.get("start_date")
    by_meter = recurring.get("meter") is not None
    return frozenset([began]) if by_meter and type(began) is int else frozenset()


def find_closed_period(item: MeteredItem, previous: object) -> tuple[MeteredItem, bool] | None:
    """Return an item with the period that ended where its running one starts, if one did.

    `previous` is an event's `previous_attributes`: a period has closed only if its start moved
    forward, and it ends there whatever its scheduled end was. The flag says that it ended
    early, by a reset, which Stripe has invoiced by now (docs.stripe.com/api/events/object).
    """
    if not isinstance(previous, Mapping):
        return None
    old = previous_item(previous, item.id) or previous
    start, scheduled_end = old.get("current_period_start"), old.get("current_period_end", item.end)
    if type(start) is not int or type(scheduled_end) is not int or not 0 <= start < item.start:
        return None
    anchor = previous.get("billing_cycle_anchor")
    unrounded = item.unrounded | ({anchor} if type(anchor) is int else set())
    closed = replace(item, start=start, end=item.start, unrounded=unrounded)
    return closed, item.start < scheduled_end


def previous_item(previous: Json, item_id: str) -> Json | None:
    """Return the item of `previous_attributes.items`, where periods stand since basil."""
    items = previous.get("items")
    entries = items.get("data") if isinstance(items, Mapping) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("id") == item_id:
            return entry
    return None


def cut_at_end(item: MeteredItem, subscription: Json) -> MeteredItem:
    """Return an item with the period that its subscription's end cut off.

    No later period would bill what rounding leaves out, so the end is not rounded. Raises
    InvalidSubscription.
    """
    ended_at = subscription.get("ended_at")
    if type(ended_at) is not int or not item.start <= ended_at < LATEST_SECOND:
        raise InvalidSubscription("ended_at is missing or is no time")
    end = min(ended_at, item.end)
    return replace(item, end=end, unrounded=item.unrounded | {end})


def invoiced_period(
    item: MeteredItem, lines: list[Json], subscription: Json, resets: frozenset[int]
) -> MeteredItem | None:
    """Return an item with the closed period that an invoice's line bills, if one does.

    `resets` has the UTC seconds at which resets ended periods. A line that reaches the end of
    the running period of a subscription that has ended bills its last one, which the end cut off.
    """
    item = replace(item, unrounded=item.unrounded | resets)
    periods = [line_period(line) for line in lines if line_item(line) == item.id]
    closed = [replace(item, start=start, end=end) for start, end in filter(None, periods)]
    if not closed:
        return None
    latest = max(closed, key=lambda found: found.end)
    is_last = type(subscription.get("ended_at")) is int and latest.end >= item.end
    return cut_at_end(latest, subscription) if is_last else latest


def line_period(line: Json) -> tuple[int, int] | None:
    """Return start and end of the period that an invoice line bills, if it has one."""
    period = line.get("period")
    if not isinstance(period, Mapping):
        return None
    start, end = period.get("start"), period.get("end")
    if type(start) is int and type(end) is int and 0 <= start < end < LATEST_SECOND:
        return start, end
    return None


def line_price(line: Json) -> object:
    """Return the id of an invoice line's price, which since basil stands in its pricing.

    (docs.stripe.com/changelog/basil/2025-03-31/invoice-line-item-pricing)
    """
    pricing = line.get("pricing")
    details = pricing.get("price_details") if isinstance(pricing, Mapping) else None
    price = (details if isinstance(details, Mapping) else line).get("price")
    return price.get("id") if isinstance(price, Mapping) else price


def line_item(line: Json) -> object:
    """Return the subscription item of an invoice line, which since basil stands in its parent."""
    parent = line.get("parent")
    details = parent.get("subscription_item_details") if isinstance(parent, Mapping) else None
    return (details if isinstance(details, Mapping) else line).get("subscription_item")


def invoice_subscription_id(invoice: Json) -> str:
    """Return the id of the subscription that an invoice is of. Raises InvalidSubscription."""
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, Mapping) else None
    holder = details if isinstance(details, Mapping) else invoice
    return require_expandable_id(holder, "subscription")


def field_path(path: str, name: str) -> str:
    """Return the place of a field in an event, for an error."""
    return f"{path}.{name}" if path else name


def require_object(holder: Json, name: str, path: str) -> Json:
    """Return a field that holds an object. Raises InvalidSubscription."""
    value = holder.get(name)
    if not isinstance(value, Mapping):
        raise InvalidSubscription(f"{field_path(path, name)} is missing")
    return value


def require_id(holder: Json, name: str, path: str) -> str:
    """Return a field that holds an id of Stripe's. Raises InvalidSubscription."""
    value = holder.get(name)
    if not isinstance(value, str) or not STRIPE_ID.fullmatch(value):
        raise InvalidSubscription(f"{field_path(path, name)} is missing or is no id")
    return value


def require_expandable_id(holder: Json, name: str) -> str:
    """Return the id in a field that holds an id or an expanded object.

    Raises InvalidSubscription (docs.stripe.com/expand).
    """
    value = holder.get(name)
    if isinstance(value, Mapping):
        return require_id(value, "id", name)
    return require_id(holder, name, "")


def read_metadata(first: Json, second: Json, key: str, path: str) -> str | None:
    """Return a key of the metadata of one object, or else of the other; empty is not set.

    Raises InvalidSubscription.
    """
    for holder in (first, second):
        metadata = holder.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise InvalidSubscription(f"{field_path(path, 'metadata')} is no object")
        value = metadata.get(key)
        if value is not None and not is_utf8_text(value):
            raise InvalidSubscription(f"{field_path(path, 'metadata')}.{key} is no text")
        if value:
            return str(value)
    return None


def is_utf8_text(value: object) -> bool:
    """Say whether a value is text that UTF-8 can carry; a lone surrogate of JSON's is not."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def period_name(item: MeteredItem) -> str:
    """Return the item's period and subscription, for a person."""
    start, end = (
        datetime.fromtimestamp(at, UTC).strftime(UTC_TIME) for at in (item.start, item.end)
    )
    return f"the period from {start} to {end} of {item.subscription}"
