"""What to bill: the period, the subject and the quantity of one subscription item.

An event's subscription goes in as plain data, a usage record comes out. Stripe's times are
UTC seconds since the epoch. Nothing here reads a setting, a request or the clock.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal
from http.client import BAD_REQUEST, FORBIDDEN, OK, UNAUTHORIZED
from typing import Any
from urllib.parse import urlencode

import openmeter
import stripe
from corehttp.exceptions import BaseError, HttpResponseError
from corehttp.rest import HttpRequest

WINDOW_SECONDS = {"MINUTE": 60, "HOUR": 3_600, "DAY": 86_400}
ROUNDING = {"down": ROUND_DOWN, "half-up": ROUND_HALF_UP, "up": ROUND_UP}

# The last API version that has usage records
# (docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing).
USAGE_RECORD_VERSION = "2025-02-24.acacia"
# Above it, a JSON number is no longer exact (OpenMeter's value is a JSON double).
MAX_QUANTITY = 2**53
NINE_DECIMALS = Decimal("1e-9")
LATEST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one that a datetime holds
MAX_ITEM_PAGES = 10

STRIPE_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
# A slug or a ULID, as OpenMeter's API document has it for {meterIdOrSlug}.
METER = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")

Json = Mapping[str, Any]


class InvalidSubscription(ValueError):
    """Say which field of a genuine event is missing or cannot be billed."""


class ReportFailed(Exception):
    """Say why an item could not be reported now; a later try may succeed."""


class ReportRefused(Exception):
    """Say why Stripe does not take an item's record; no later try can succeed."""


@dataclass(frozen=True)
class MeteredItem:
    """A subscription item to report, with its billing period [start, end) in UTC seconds."""

    id: str
    price: str
    customer: str
    subject: str
    meter: str
    window: int
    start: int
    end: int
    anchor: int | None = None

    @property
    def window_start(self) -> datetime:
        """Return the period's start, rounded down to the window."""
        return self._rounded(self.start)

    @property
    def window_end(self) -> datetime:
        """Return the period's end, rounded down to the window."""
        return self._rounded(self.end)

    def _rounded(self, boundary: int) -> datetime:
        """Round a boundary down, unless it is a billing cycle anchor that was moved.

        A reset moves the anchor to its own instant, and Stripe invoices at once what had been
        reported by then: rounded down, the new period would bill a part of that again.
        """
        return round_down(boundary, 1 if boundary == self.anchor else self.window)

    @property
    def record_timestamp(self) -> int:
        """Return the one second of the period at which its usage record is set."""
        return self.start + 1


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
    meter = _metadata(item, price, "om_meter_id", path)
    if not isinstance(recurring, Mapping) or recurring.get("usage_type") != "metered" or not meter:
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
    customer = _customer(subscription)
    return MeteredItem(
        id=stripe_id(item, "id", path),
        price=stripe_id(price, "id", f"{path}.price"),
        customer=customer,
        subject=_metadata(subscription, {}, "om_subject", "") or customer,
        meter=meter,
        window=WINDOW_SECONDS[window_size],
        start=start,
        end=end,
        anchor=_moved_anchor(subscription),
    )


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
        value = metadata.get(key) if isinstance(metadata, Mapping) else metadata
        if value is not None and not _is_text(value):
            raise InvalidSubscription(f"{_field(path, 'metadata')}.{key} is no text")
        if value:
            return str(value)
    return None


def _is_text(value: object) -> bool:
    """Say whether a value is text that UTF-8 can carry; a lone surrogate of JSON's is not."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _customer(subscription: Json) -> str:
    customer = subscription.get("customer")
    if isinstance(customer, Mapping):
        return stripe_id(customer, "id", "customer")
    return stripe_id(subscription, "customer", "")


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


def _moved_anchor(subscription: Json) -> int | None:
    """Return the billing cycle anchor if it is not where the subscription began, else None.

    It is a reset's instant, or a date given at the start, where both periods that meet there
    agree on it (docs.stripe.com/billing/subscriptions/billing-cycle).
    """
    anchor, began = subscription.get("billing_cycle_anchor"), subscription.get("start_date")
    moved = type(anchor) is int and type(began) is int and anchor != began
    return anchor if moved else None


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
    request = HttpRequest("GET", f"/api/v1/meters/{item.meter}/query?{urlencode(query)}")
    try:
        # Not the typed call: it turns the numbers into floats before anybody can see them.
        response = client.send_request(request)
    except (HttpResponseError, RecursionError) as error:
        status = getattr(error, "status_code", None) or "unknown"
        raise _meter_failed(item, f"OpenMeter's answer is unreadable (status {status})") from error
    except BaseError as error:
        cause = type(error.inner_exception or error).__name__
        raise _meter_failed(item, f"OpenMeter did not answer ({cause})") from error
    body = response.text()
    if response.status_code != OK:
        problem = _problem(response.status_code, body)
        raise _meter_failed(item, f"OpenMeter answered {problem}")
    return _total(item, body)


def _meter_failed(item: MeteredItem, reason: str) -> ReportFailed:
    return ReportFailed(f"meter {item.meter}: {reason}")


def _problem(status: int, body: str) -> str:
    """Return the status, and the detail that OpenMeter's `application/problem+json` gives."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return str(status)
    return str(status) if status in (UNAUTHORIZED, FORBIDDEN) else f"{status}: {_one_line(detail)}"


def _one_line(text: object) -> str:
    return " ".join(str(text).encode(errors="replace").decode().split())[:300]


def _total(item: MeteredItem, body: str) -> Decimal | None:
    try:
        rows = json.loads(body, parse_float=Decimal, parse_int=Decimal)["data"]
        values = [row["value"] for row in rows]
    except (ValueError, LookupError, TypeError, RecursionError, ArithmeticError) as error:
        raise _meter_failed(item, "OpenMeter's answer is unreadable") from error
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
        raise ValueError(f"the total is no finite number: {_one_line(value)}")
    if not -MAX_QUANTITY <= value <= MAX_QUANTITY:
        raise ValueError(f"the total {_one_line(value)} is beyond 2**53 and no longer exact")
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
        "from": item.window_start.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
        "to": item.window_end.strftime("%Y-%m-%d %H:%M:%S +0000 UTC"),
    }


def set_usage_record(client: stripe.StripeClient, item: MeteredItem, quantity: int) -> None:
    """Set the item's one usage record of its period, which replaces what stood there.

    The same quantity sent again changes nothing, so events may repeat. Raises ReportRefused
    if the period has closed or the item is gone, else ReportFailed
    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage).
    """
    record = _stripe_call(
        client,
        "post",
        f"/v1/subscription_items/{item.id}/usage_records",
        quantity=quantity,
        timestamp=item.record_timestamp,
        action="set",
        stripe_version=USAGE_RECORD_VERSION,
    )
    if record.get("object") != "usage_record":
        raise ReportFailed("Stripe's answer is no usage record")


def subscription_items(client: stripe.StripeClient, subscription: str) -> list[Json]:
    """Read all items of a subscription, page by page. Raises ReportRefused or ReportFailed."""
    items: list[Json] = []
    for _ in range(MAX_ITEM_PAGES):
        after = {"starting_after": items[-1]["id"]} if items else {}
        page = _stripe_call(
            client, "get", "/v1/subscription_items", subscription=subscription, limit=100, **after
        )
        entries = page.get("data")
        if not isinstance(entries, list) or not all(_is_item(entry) for entry in entries):
            raise ReportFailed("Stripe's answer is no list of subscription items")
        items += entries
        if not page.get("has_more") or not entries:
            return items
    raise ReportFailed(f"the subscription has more than {len(items)} items")


def _is_item(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("id"), str)


def _stripe_call(client: stripe.StripeClient, method: str, path: str, **options: Any) -> Json:
    """Call Stripe and return the answer as plain data. Raises ReportRefused or ReportFailed."""
    try:
        answer = client.raw_request(method, path, **options).data
    except stripe.InvalidRequestError as error:
        raise _refused_or_failed(error) from error
    except stripe.StripeError as error:
        raise ReportFailed(_stripe_reason(error)) from error
    except (AttributeError, RecursionError) as error:
        # stripe-python trips over an `error` that is no object.
        raise ReportFailed("Stripe's answer is unreadable") from error
    return answer if isinstance(answer, Mapping) else {}


def _refused_or_failed(error: stripe.InvalidRequestError) -> ReportRefused | ReportFailed:
    """Say whether a later try could succeed.

    It could where the timestamp "must not be in the future" (docs.stripe.com/api/usage_records).
    """
    reason = _stripe_reason(error)
    if error.param == "timestamp" and error.http_status == BAD_REQUEST and "future" not in reason:
        return ReportRefused(f"the billing period has closed: {reason}")
    if error.code == "resource_missing":
        return ReportRefused(f"gone from Stripe: {reason}")
    return ReportFailed(reason)


def _stripe_reason(error: stripe.StripeError) -> str:
    """Say what failed, without an answer's body or anything that shows a part of the key."""
    if isinstance(error, stripe.APIConnectionError):
        return f"Stripe did not answer ({type(error.__cause__).__name__})"
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return f"Stripe answered {error.http_status}: STRIPE_KEY is wrong or lacks a permission"
    if isinstance(error, stripe.APIError):
        return f"Stripe answered {error.http_status} and no usable answer"
    return f"Stripe answered {error.http_status}: {_one_line(error.user_message)}"
