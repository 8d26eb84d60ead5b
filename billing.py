"""Where it goes in Stripe: a usage record, or an event of a Billing Meter.

The price decides. A way to report takes an item and its total, and returns what it sent; to add
one, write its function and name it in `report`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal
from http.client import BAD_REQUEST, CONFLICT, TOO_MANY_REQUESTS
from typing import Any, NamedTuple

import stripe
from tenacity import Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from usage import (
    Json,
    MeteredItem,
    PeriodClosed,
    ReportFailed,
    ReportRefused,
    one_line,
    quantity,
)

# The last API version that has usage records
# (docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing).
USAGE_RECORD_VERSION = "2025-02-24.acacia"
MAX_PAGES = 10
MINUTE = 60
# A meter event's value has at most 15 digits (docs.stripe.com/api/billing/meter-event).
MAX_DIGITS = 15
# How long a call is repeated while Stripe is busy: within the time of one delivery.
BUSY_SECONDS = 3
RESET_REASON = "subscription_update"


class Page(NamedTuple):
    """A page of a list of Stripe's, and whether more follow."""

    entries: list[Json]
    has_more: bool


class StripeBusy(ReportFailed):
    """Say that Stripe asks to come again soon (409, 429)."""


def at_once() -> None:
    """Let a request go without waiting."""


@dataclass(frozen=True)
class Account:
    """Stripe's client, how totals are rounded for it, and the Billing Meters read so far.

    `pace` is called before each request, to wait for its turn; while Stripe is busy (409, 429), a
    call is repeated for `busy_seconds`.
    """

    client: stripe.StripeClient
    rounding: str
    meters: dict[str, Json] = field(default_factory=dict)
    busy_seconds: float = BUSY_SECONDS
    pace: Callable[[], object] = at_once


def report(account: Account, item: MeteredItem, total: Decimal, as_of: int) -> int | str:
    """Tell Stripe an item's total for its period, and return the value that was sent.

    `as_of` is the UTC second at which the period was known to be as the item says. Reports may
    repeat: each replaces the one before. Raises ReportRefused or ReportFailed.
    """
    if item.stripe_meter is None:
        return set_usage_record(account, item, total)
    return send_meter_event(account, item, total, as_of)


def record_timestamp(item: MeteredItem) -> int:
    """Return the one second of a period at which its usage record is set."""
    return item.start + 1


def set_usage_record(account: Account, item: MeteredItem, total: Decimal) -> int:
    """Set the one usage record of the item's period, and return its integer quantity.

    Raises ReportRefused if the period has closed or the item is gone, else ReportFailed
    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage).
    """
    units = quantity(total, account.rounding)
    record = _call(
        account,
        "post",
        f"/v1/subscription_items/{item.id}/usage_records",
        quantity=units,
        timestamp=record_timestamp(item),
        action="set",
        stripe_version=USAGE_RECORD_VERSION,
    )
    if record.get("object") != "usage_record":
        raise ReportFailed("Stripe's answer is no usage record")
    return units


def send_meter_event(account: Account, item: MeteredItem, total: Decimal, as_of: int) -> str:
    """Send the total as an event of the item's Billing Meter, and return its value.

    The meter bills the last value of a period. Raises ReportRefused or ReportFailed
    (docs.stripe.com/api/billing/meter-event/create).
    """
    if item.end - item.start <= 1:
        raise ReportRefused("the billing period is too short to hold a meter event")
    meter = billing_meter(account, str(item.stripe_meter))
    value = meter_value(total)
    event = _call(
        account,
        "post",
        "/v1/billing/meter_events",
        event_name=meter["event_name"],
        timestamp=event_timestamp(item, as_of),
        payload={
            meter["customer_mapping"]["event_payload_key"]: item.customer,
            meter["value_settings"]["event_payload_key"]: value,
        },
    )
    if event.get("object") != "billing.meter_event":
        raise ReportFailed("Stripe's answer is no meter event")
    return value


def value_to_send(account: Account, item: MeteredItem, total: Decimal) -> Decimal:
    """Return the value that a report of this total would send. Raises ReportFailed."""
    if item.stripe_meter is None:
        return Decimal(quantity(total, account.rounding))
    return Decimal(meter_value(total))


def value_held(account: Account, item: MeteredItem, as_of: int) -> Decimal | None:
    """Read what Stripe holds for the item's period, or None where its summaries cannot tell.

    Raises ReportRefused or ReportFailed.
    """
    if item.stripe_meter is None:
        return _record_held(account, item)
    return _meter_held(account, item, as_of)


def _record_held(account: Account, item: MeteredItem) -> Decimal:
    """Read the summary of the running period, the first one listed and not yet invoiced."""
    path = f"/v1/subscription_items/{item.id}/usage_record_summaries"
    page = _page(account, path, None, stripe_version=USAGE_RECORD_VERSION)
    running = [entry for entry in page.entries if entry.get("invoice") is None][:1]
    return sum((_number(entry, "total_usage") for entry in running), Decimal(0))


def _meter_held(account: Account, item: MeteredItem, as_of: int) -> Decimal | None:
    """Read the summary of the period's events.

    It goes by full minutes (docs.stripe.com/api/billing/meter-event-summary): one of a closed
    period that ends within a minute would show the next period's first event.
    """
    is_closed = as_of >= item.end
    if is_closed and item.end % MINUTE:
        return None
    end = item.end if is_closed else as_of + MINUTE - as_of % MINUTE
    meter = billing_meter(account, str(item.stripe_meter))
    page = _page(
        account,
        f"/v1/billing/meters/{meter['id']}/event_summaries",
        None,
        customer=item.customer,
        start_time=item.start - item.start % MINUTE,
        end_time=end,
    )
    return sum((_number(entry, "aggregated_value") for entry in page.entries), Decimal(0))


def _number(entry: Json, name: str) -> Decimal:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportFailed(f"Stripe's answer has no {name}")
    return Decimal(str(value))


def event_timestamp(item: MeteredItem, as_of: int) -> int:
    """Return the UTC second of a period's meter event.

    Whichever way Stripe reads "last", a later report wins: its second is never an earlier one,
    and that of a closed period comes after all before. Boundaries are left out.
    """
    if as_of >= item.end:
        return item.end - 1
    return max(item.start + 1, min(as_of, item.end - 2))


def meter_value(total: Decimal) -> str:
    """Return a total as Stripe takes it: a plain decimal of at most 15 digits, cut to fit."""
    whole = len(f"{int(total)}")
    if whole > MAX_DIGITS:
        raise ReportFailed(f"the total {total:f} has more than {MAX_DIGITS} digits")
    cut = total.quantize(Decimal(1).scaleb(max(whole - MAX_DIGITS, -9)), ROUND_DOWN)
    return f"{cut:f}".rstrip("0").rstrip(".") if cut % 1 else f"{int(cut)}"


def billing_meter(account: Account, meter_id: str) -> Json:
    """Return a Billing Meter, read once: but for its name it cannot change.

    Raises ReportFailed if running totals cannot be sent to it.
    """
    if meter_id not in account.meters:
        try:
            meter = _call(account, "get", f"/v1/billing/meters/{meter_id}")
        except ReportRefused as error:
            raise ReportFailed(str(error), error.request_id) from error
        account.meters[meter_id] = _usable(meter, meter_id)
    return account.meters[meter_id]


def _usable(meter: Json, meter_id: str) -> Json:
    try:
        formula = meter["default_aggregation"]["formula"]
        names = (
            meter["event_name"],
            meter["customer_mapping"]["event_payload_key"],
            meter["value_settings"]["event_payload_key"],
        )
    except (LookupError, TypeError) as error:
        raise ReportFailed("Stripe's answer is no Billing Meter") from error
    if not all(isinstance(name, str) and name for name in names):
        raise ReportFailed("Stripe's answer is no Billing Meter")
    if formula != "last":
        reason = f"has the formula {one_line(formula)!r}, which would add up totals sent twice"
    elif meter.get("status") != "active":
        reason = "is deactivated"
    else:
        return meter
    cure = "make one with the formula 'last' and a price for it"
    raise ReportFailed(f"Billing Meter {meter_id} {reason}: {cure}")


def check_stripe(account: Account) -> None:
    """See whether Stripe answers, and knows the key. Raises ReportRefused or ReportFailed."""
    _call_once(account, "get", "/v1/subscriptions", limit=1)


def subscription(account: Account, subscription_id: str) -> Json:
    """Read a subscription as it is now. Raises ReportRefused or ReportFailed."""
    found = _call(account, "get", f"/v1/subscriptions/{subscription_id}")
    if found.get("object") != "subscription":
        raise ReportFailed("Stripe's answer is no subscription")
    return found


def test_clock_time(account: Account, test_clock_id: str) -> int:
    """Read the UTC second at which a test clock stands. Raises ReportRefused or ReportFailed."""
    found = _call(account, "get", f"/v1/test_helpers/test_clocks/{test_clock_id}")
    if type(found.get("frozen_time")) is not int:
        raise ReportFailed("Stripe's answer is no test clock")
    return int(found["frozen_time"])


def subscription_items(account: Account, subscription_id: str) -> list[Json]:
    """Read all items of a subscription. Raises ReportRefused or ReportFailed."""
    return _pages(account, "/v1/subscription_items", subscription=subscription_id)


def reset_instants(account: Account, subscription_id: str) -> frozenset[int]:
    """Read the UTC seconds at which resets ended periods: each has its invoice.

    Raises ReportRefused or ReportFailed.
    """
    invoices = _pages(account, "/v1/invoices", subscription=subscription_id)
    ends = [i.get("period_end") for i in invoices if i.get("billing_reason") == RESET_REASON]
    return frozenset(end for end in ends if type(end) is int)


def invoice_lines(account: Account, invoice_id: str) -> list[Json]:
    """Read all lines of an invoice. Raises ReportRefused or ReportFailed."""
    return _pages(account, f"/v1/invoices/{invoice_id}/lines")


def draft_invoices(account: Account, subscription_id: str) -> list[Json]:
    """Read the drafts among a subscription's invoices. Raises ReportRefused or ReportFailed."""
    return _pages(account, "/v1/invoices", subscription=subscription_id, status="draft")


def subscriptions(account: Account, after: str | None = None, **filters: str) -> Page:
    """Read up to 100 subscriptions that have not ended, with each one's latest invoice.

    `after` is the last id of the page before. Raises ReportRefused or ReportFailed.
    """
    return _page(account, "/v1/subscriptions", after, expand=["data.latest_invoice"], **filters)


def _page(account: Account, path: str, after: str | None, **filters: Any) -> Page:
    start = {"starting_after": after} if after else {}
    page = _call(account, "get", path, limit=100, **filters, **start)
    entries = page.get("data")
    if not isinstance(entries, list) or not all(_has_id(entry) for entry in entries):
        raise ReportFailed("Stripe's answer is no list")
    return Page(entries, bool(page.get("has_more") and entries))


def _pages(account: Account, path: str, **filters: Any) -> list[Json]:
    found: list[Json] = []
    for _ in range(MAX_PAGES):
        after = found[-1]["id"] if found else None
        page = _page(account, path, after, **filters)
        found += page.entries
        if not page.has_more:
            return found
    raise ReportFailed(f"Stripe lists more than {len(found)} at {path}")


def _has_id(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("id"), str)


def _call(account: Account, method: str, path: str, **options: Any) -> Json:
    """Call Stripe and return the answer as plain data. Raises ReportRefused or ReportFailed.

    While Stripe is busy, call again with growing, jittered waits.
    """
    patiently = Retrying(
        retry=retry_if_exception_type(StripeBusy),
        wait=wait_random_exponential(multiplier=0.1, max=1),
        stop=stop_before_delay(account.busy_seconds),
        reraise=True,
    )
    return patiently(_call_once, account, method, path, **options)


def _call_once(account: Account, method: str, path: str, **options: Any) -> Json:
    account.pace()
    try:
        answer = account.client.raw_request(method, path, **options).data
    except stripe.InvalidRequestError as error:
        raise _refused_or_failed(error) from error
    except stripe.StripeError as error:
        # Whatever its Stripe-Should-Retry says: that is about the same request, ours is a new one.
        is_busy = error.http_status in (CONFLICT, TOO_MANY_REQUESTS)
        kind = StripeBusy if is_busy else ReportFailed
        raise kind(_reason(error), error.request_id) from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # stripe-python trips over a body that is no UTF-8, or an `error` that is no object.
        raise ReportFailed("Stripe's answer is unreadable") from error
    return answer if isinstance(answer, Mapping) else {}


def _refused_or_failed(error: stripe.InvalidRequestError) -> ReportRefused | ReportFailed:
    """Say whether a later try could succeed.

    It could where the timestamp "must not be in the future" (docs.stripe.com/api/usage_records).
    """
    reason = _reason(error)
    if error.param == "timestamp" and error.http_status == BAD_REQUEST and "future" not in reason:
        return PeriodClosed(f"the billing period has closed: {reason}", error.request_id)
    if error.code == "resource_missing":
        return ReportRefused(f"gone from Stripe: {reason}", error.request_id)
    return ReportFailed(reason, error.request_id)


def _reason(error: stripe.StripeError) -> str:
    """Say what failed, without an answer's body or anything that shows a part of the key."""
    if isinstance(error, stripe.APIConnectionError):
        return f"Stripe did not answer ({type(error.__cause__).__name__})"
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return f"Stripe answered {error.http_status}: STRIPE_KEY is wrong or lacks a permission"
    if isinstance(error, stripe.APIError):
        return f"Stripe answered {error.http_status} and no usable answer"
    return f"Stripe answered {error.http_status}: {one_line(error.user_message)}"
