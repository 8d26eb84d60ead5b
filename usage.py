"""What to bill: the period, the subject and the total of one subscription item.

Stripe's objects go in as plain data, items and exact totals come out. Stripe's times are UTC
seconds since the epoch. Nothing here writes, or reads a setting, a request or the clock.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal
from http.client import FORBIDDEN, OK, UNAUTHORIZED
from typing import Any
from urllib.parse import urlencode

import openmeter
from corehttp.exceptions import BaseError, HttpResponseError, IncompleteReadError
from corehttp.rest import HttpRequest

WINDOW_SECONDS = {"MINUTE": 60, "HOUR": 3_600, "DAY": 86_400}
ROUNDING = {"down": ROUND_DOWN, "half-up": ROUND_HALF_UP, "up": ROUND_UP}

# Above it, a JSON number is no longer exact (OpenMeter's value is a JSON double).
MAX_QUANTITY = 2**53
UTC_TIME = "%Y-%m-%d %H:%M:%S +0000 UTC"
NINE_DECIMALS = Decimal("1e-9")
LATEST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one that a datetime holds

STRIPE_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
# A slug or a ULID, as OpenMeter's API document has it for {meterIdOrSlug}.
METER = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")

Json = Mapping[str, Any]


class InvalidSubscription(ValueError):
    """Say which field of a genuine event is missing or cannot be billed."""


class NotReported(Exception):
    """Say why an item could not be reported; `request_id` is Stripe's, if it answered."""

    def __init__(self, reason: str, request_id: str | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id


class ReportFailed(NotReported):
    """Say why an item could not be reported now; a later try may succeed."""


class ReportRefused(NotReported):
    """Say why Stripe does not take an item's record; no later try can succeed."""


class PeriodClosed(ReportRefused):
    """Say that an item's period can no longer be written."""


@dataclass(frozen=True)
class MeteredItem:
    """A subscription item to report, with one billing period [start, end) in UTC seconds.

    `exact` has the boundaries that are not rounded down; `stripe_meter` is the Billing Meter
    behind the price, or None where usage records are billed.
    """

    id: str
    subscription: str
    price: str
    customer: str
    subject: str
    meter: str
    stripe_meter: str | None
    window: int
    start: int
    end: int
    exact: frozenset[int] = frozenset()

    @property
    def window_start(self) -> datetime:
        """Return the period's start, rounded down to the window."""
        return self._rounded(self.start)

    @property
    def window_end(self) -> datetime:
        """Return the period's end, rounded down to the window."""
        return self._rounded(self.end)

    def _rounded(self, boundary: int) -> datetime:
        return round_down(boundary, 1 if boundary in self.exact else self.window)


def round_down(seconds: int, window: int) -> datetime:
    """Return the start of the window (its length in seconds) that holds a UTC second."""
    return datetime.fromtimestamp(seconds - seconds % window, UTC)


def metered_item(item: Json, subscription: Json, path: str, window_size: str) -> MeteredItem | None:
    """Return what to report for an entry of `items.data`, or None where there is nothing to.

    `path` is the entry's place in the event, for errors; `window_size` holds unless the item
    names another one. Raises InvalidSubscription.
    """
    price = _object(item, "price", path)
    recurring = price.get("recurring")
    if not isinstance(recurring, Mapping) or recurring.get("usage_type") != "metered":
        return None
    meter = _metadata(item, price, "om_meter_id", path)
    if not meter:
        return None
    if not METER.fullmatch(meter):
        raise InvalidSubscription(
            f"{path}.metadata.om_meter_id is no meter's id or slug: {meter!r}"
        )
    window_size = _metadata(item, price, "om_window_size", path) or window_size
    if window_size not in WINDOW_SECONDS:
        wanted = ", ".join(WINDOW_SECONDS)
        raise InvalidSubscription(f"{path}.metadata.om_window_size must be one of {wanted}")
    start, end = _period(item, subscription, path)
    customer = reference(subscription, "customer")
    return MeteredItem(
        id=stripe_id(item, "id", path),
        subscription=stripe_id(subscription, "id", ""),
        price=stripe_id(price, "id", f"{path}.price"),
        customer=customer,
        subject=_metadata(subscription, {}, "om_subject", "") or customer,
        meter=meter,
        stripe_meter=_stripe_meter(recurring, path),
        window=WINDOW_SECONDS[window_size],
        start=start,
        end=end,
        exact=moved_anchor(subscription) | _exact_start(subscription, recurring),
    )


def closed_item(item: MeteredItem, previous: object) -> tuple[MeteredItem, bool] | None:
    """Return an item with the period that ended where its running one starts, if one did.

    `previous` is an event's `previous_attributes`: a period has closed only if its start moved
    forward, and it ends there whatever its scheduled end was. The flag says that it ended
    early, by a reset, which Stripe has invoiced by now (docs.stripe.com/api/events/object).
    """
    if not isinstance(previous, Mapping):
        return None
    old = _previous_item(previous, item.id) or previous
    start, scheduled_end = old.get("current_period_start"), old.get("current_period_end", item.end)
    if type(start) is not int or type(scheduled_end) is not int or not 0 <= start < item.start:
        return None
    anchor = previous.get("billing_cycle_anchor")
    exact = item.exact | ({anchor} if type(anchor) is int else set())
    closed = replace(item, start=start, end=item.start, exact=exact)
    return closed, item.start < scheduled_end


def ended_item(item: MeteredItem, subscription: Json) -> MeteredItem:
    """Return an item with the period that its subscription's end cut off.

    No later period would bill what rounding leaves out, so the end is not rounded. Raises
    InvalidSubscription.
    """
    ended_at = subscription.get("ended_at")
    if type(ended_at) is not int or not item.start <= ended_at < LATEST_SECOND:
        raise InvalidSubscription("ended_at is missing or is no time")
    end = min(ended_at, item.end)
    return replace(item, end=end, exact=item.exact | {end})


def invoiced_item(
    item: MeteredItem, lines: list[Json], subscription: Json, resets: frozenset[int]
) -> MeteredItem | None:
    """Return an item with the closed period that an invoice's line bills, if one does.

    `resets` has the UTC seconds at which resets ended periods.
    """
    item = replace(item, exact=item.exact | resets)
    periods = [_line_period(line) for line in lines if line_item(line) == item.id]
    closed = [replace(item, start=start, end=end) for start, end in filter(None, periods)]
    if not closed:
        return None
    latest = max(closed, key=lambda found: found.end)
    is_last = type(subscription.get("ended_at")) is int and latest.end >= item.end
    return ended_item(latest, subscription) if is_last else latest


def _line_period(line: Json) -> tuple[int, int] | None:
    period = line.get("period")
    if not isinstance(period, Mapping):
        return None
    start, end = period.get("start"), period.get("end")
    if type(start) is int and type(end) is int and 0 <= start < end < LATEST_SECOND:
        return start, end
    return None


def line_price(line: Json) -> object:
    """Return the id of an invoice line's price, which since basil stands in its pricing."""
    pricing = line.get("pricing")
    details = pricing.get("price_details") if isinstance(pricing, Mapping) else None
    price = (details if isinstance(details, Mapping) else line).get("price")
    return price.get("id") if isinstance(price, Mapping) else price


def line_item(line: Json) -> object:
    """Return the subscription item of an invoice line, which since basil stands in its parent."""
    parent = line.get("parent")
    details = parent.get("subscription_item_details") if isinstance(parent, Mapping) else None
    return (details if isinstance(details, Mapping) else line).get("subscription_item")


def invoiced_subscription(invoice: Json) -> str:
    """Return the id of the subscription that an invoice is of. Raises InvalidSubscription."""
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, Mapping) else None
    holder = details if isinstance(details, Mapping) else invoice
    return reference(holder, "subscription")


def _previous_item(previous: Json, item_id: str) -> Json | None:
    """Return the item of `previous_attributes.items`, where periods stand since basil."""
    items = previous.get("items")
    entries = items.get("data") if isinstance(items, Mapping) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and entry.get("id") == item_id:
            return entry
    return None


def _field(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _object(holder: Json, name: str, path: str) -> Json:
    value = holder.get(name)
    if not isinstance(value, Mapping):
        raise InvalidSubscription(f"{_field(path, name)} is missing")
    return value


def stripe_id(holder: Json, name: str, path: str) -> str:
    """Return a field that holds an id of Stripe's. Raises InvalidSubscription."""
    value = holder.get(name)
    if not isinstance(value, str) or not STRIPE_ID.fullmatch(value):
        raise InvalidSubscription(f"{_field(path, name)} is missing or is no id")
    return value


def _metadata(first: Json, second: Json, key: str, path: str) -> str | None:
    """Return a key of the metadata of one object, or else of the other; empty is not set."""
    for holder in (first, second):
        metadata = holder.get("metadata") or {}
        if not isinstance(metadata, Mapping):
            raise InvalidSubscription(f"{_field(path, 'metadata')} is no object")
        value = metadata.get(key)
        if value is not None and not _is_text(value):
            raise InvalidSubscription(f"{_field(path, 'metadata')}.{key} is no text")
        if value:
            return str(value)
    return None


def _is_text(value: object) -> bool:
    """Say whether a value is text that UTF-8 can carry; a lone surrogate of JSON's is not."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def reference(holder: Json, name: str) -> str:
    """Return the id in a field that holds an id or an expanded object."""
    value = holder.get(name)
    if isinstance(value, Mapping):
        return stripe_id(value, "id", name)
    return stripe_id(holder, name, "")


def _period(item: Json, subscription: Json, path: str) -> tuple[int, int]:
    """Return start and end; since 2025-03-31.basil they stand on the item."""
    on_item = item.get("current_period_start") is not None
    holder, path = (item, path) if on_item else (subscription, "")
    seconds = []
    for name in ("current_period_start", "current_period_end"):
        value = holder.get(name)
        if type(value) is not int or not 0 <= value < LATEST_SECOND:
            raise InvalidSubscription(f"{_field(path, name)} is missing or is no time")
        seconds.append(value)
    if seconds[1] < seconds[0]:
        raise InvalidSubscription(f"{_field(path, 'current_period_end')} lies before the start")
    return seconds[0], seconds[1]


def _stripe_meter(recurring: Json, path: str) -> str | None:
    if recurring.get("meter") is None:
        return None
    return stripe_id(recurring, "meter", f"{path}.price.recurring")


def moved_anchor(subscription: Json) -> frozenset[int]:
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


def _exact_start(subscription: Json, recurring: Json) -> frozenset[int]:
    """Return where a subscription began, if a Billing Meter counts its usage.

    Rounded down, it would bill again what the customer's last one was billed for to the second.
    """
    began = subscription.get("start_date")
    by_meter = recurring.get("meter") is not None
    return frozenset([began]) if by_meter and type(began) is int else frozenset()


def total_usage(client: openmeter.Client, item: MeteredItem) -> Decimal | None:
    """Ask OpenMeter for the item's total over its rounded period, in the meter's own aggregation.

    None means an answer without rows: no usage, or a subject that OpenMeter does not know.
    Raises ReportFailed, naming the meter.
    """
    if item.window_start >= item.window_end:
        return Decimal(0)  # OpenMeter refuses an empty period
    query = {
        "subject": item.subject,
        "from": item.window_start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "to": item.window_end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    try:
        body = _answer(client, f"/api/v1/meters/{item.meter}/query?{urlencode(query)}")
    except ReportFailed as error:
        raise _meter_failed(item, str(error)) from error
    return _total(item, body)


def check_openmeter(client: openmeter.Client) -> None:
    """See whether OpenMeter answers. Raises ReportFailed."""
    _answer(client, "/api/v1/meters?pageSize=1")


def _answer(client: openmeter.Client, target: str) -> str:
    """Return the body that OpenMeter answers with. Raises ReportFailed."""
    try:
        # Not the typed call: it turns the numbers into floats before anybody can see them.
        response = client.send_request(HttpRequest("GET", target))
    except IncompleteReadError as error:
        raise ReportFailed("OpenMeter did not answer (IncompleteReadError)") from error
    except (HttpResponseError, RecursionError) as error:
        status = getattr(error, "status_code", None) or "unknown"
        raise ReportFailed(f"OpenMeter's answer is unreadable (status {status})") from error
    except BaseError as error:
        cause = type(error.inner_exception or error).__name__
        raise ReportFailed(f"OpenMeter did not answer ({cause})") from error
    body = str(response.text())
    if response.status_code != OK:
        raise ReportFailed(f"OpenMeter answered {_problem(response.status_code, body)}")
    return body


def _meter_failed(item: MeteredItem, reason: str) -> ReportFailed:
    return ReportFailed(f"meter {item.meter}: {reason}")


def _problem(status: int, body: str) -> str:
    """Return the status, and the detail that OpenMeter's `application/problem+json` gives."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return str(status)
    return str(status) if status in (UNAUTHORIZED, FORBIDDEN) else f"{status}: {one_line(detail)}"


def one_line(text: object) -> str:
    """Return a text on one printable line of 300 characters at most."""
    printable = "".join(char if char.isprintable() else " " for char in str(text)[:1_000])
    return " ".join(printable.split())[:300]


def _total(item: MeteredItem, body: str) -> Decimal | None:
    try:
        rows = json.loads(body, parse_float=Decimal, parse_int=Decimal)["data"]
        values = [row["value"] for row in rows]
    except (ValueError, LookupError, TypeError, RecursionError, ArithmeticError) as error:
        raise _meter_failed(item, "OpenMeter's answer is unreadable") from error
    if not isinstance(rows, list):
        raise _meter_failed(item, "OpenMeter's answer is unreadable")
    if not values:
        return None
    if len(values) > 1:
        raise _meter_failed(item, f"OpenMeter answered {len(values)} totals instead of one")
    try:
        return exact(values[0])
    except ValueError as error:
        raise _meter_failed(item, str(error)) from error


def exact(value: object) -> Decimal:
    """Return OpenMeter's value without float noise, which is all beyond nine decimals.

    Raises ValueError if it is no number, not finite, negative or above 2**53.
    """
    if not isinstance(value, Decimal) or not value.is_finite():
        raise ValueError(f"the total is no finite number: {one_line(value)}")
    if not -MAX_QUANTITY <= value <= MAX_QUANTITY:
        raise ValueError(f"the total {one_line(value)} is beyond 2**53 and no longer exact")
    total = value.quantize(NINE_DECIMALS)
    if total < 0:
        raise ValueError(f"the total {total} is negative")
    return abs(total)


def quantity(total: Decimal, rounding: str) -> int:
    """Return the integer that a usage record needs, rounded `down`, `half-up` or `up`."""
    return int(total.to_integral_value(ROUNDING[rounding]))


def report_fields(item: MeteredItem, total: Decimal) -> dict[str, str]:
    """Return what a report's log line says, in its order."""
    return {
        "stripe_customer": item.customer,
        "stripe_price": item.price,
        "meter": item.meter,
        "total_usage": f"{total:.6f}",
        "from": item.window_start.strftime(UTC_TIME),
        "to": item.window_end.strftime(UTC_TIME),
    }


def period_name(item: MeteredItem) -> str:
    """Return the item's period and subscription, for a person."""
    start, end = (
        datetime.fromtimestamp(at, UTC).strftime(UTC_TIME) for at in (item.start, item.end)
    )
    return f"the period from {start} to {end} of {item.subscription}"
