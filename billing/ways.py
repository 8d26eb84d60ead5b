"""Where it goes in Stripe: a usage record, or an event of a Billing Meter.

The price decides. A way to report takes an item and its total, and returns what it sent; to add
one, write its function and name it in `report_total`.
"""

from collections.abc import Callable
from decimal import ROUND_DOWN, Decimal
from typing import Any

from billing.clock import report_second
from billing.items import MeteredItem
from billing.stripe_api import (
    Json,
    ReportFailed,
    ReportRefused,
    StripeConnection,
    call,
    list_page,
    post_latest,
)
from usage import one_line, whole_quantity

# The last API version that has usage records
# (docs.stripe.com/changelog/basil/2025-03-31/deprecate-legacy-usage-based-billing).
USAGE_RECORD_VERSION = "2025-02-24.acacia"
MINUTE = 60
# A meter event's value has at most 15 digits (docs.stripe.com/api/billing/meter-event).
MAX_DIGITS = 15


def report_total(
    account: StripeConnection,
    item: MeteredItem,
    total: Callable[[], Decimal],
    known_at: Callable[[], int],
) -> int | str:
    """Tell Stripe an item's total for its period, and return the value that was sent.

    `total` is asked just before it goes out, and again before it is sent again; `known_at` then
    says at which UTC second it was known. Reports may repeat: each replaces the one before. Raises
    ReportRefused or ReportFailed.
    """
    if item.billing_meter is None:
        return set_usage_record(account, item, total)
    return send_meter_event(account, item, total, known_at)


def record_timestamp(item: MeteredItem) -> int:
    """Return the one second of a period at which its usage record is set.

    Stripe takes none at the start itself, and bills none from before an item was added
    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage).
    """
    return item.counted_from + 1


def set_usage_record(
    account: StripeConnection, item: MeteredItem, total: Callable[[], Decimal]
) -> int:
    """Set the one usage record of the item's period, and return its integer quantity.

    Raises ReportRefused if the period has closed or the item is gone, else ReportFailed
    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage).
    """
    form: dict[str, Any] = {"timestamp": record_timestamp(item), "action": "set"}

    def latest_form() -> Json:
        form["quantity"] = whole_quantity(total(), account.rounding)
        return form

    path = f"/v1/subscription_items/{item.id}/usage_records"
    record = post_latest(account, path, latest_form, stripe_version=USAGE_RECORD_VERSION)
    if record.get("object") != "usage_record":
        raise ReportFailed("Stripe's answer is no usage record")
    return int(form["quantity"])


def send_meter_event(
    account: StripeConnection,
    item: MeteredItem,
    total: Callable[[], Decimal],
    known_at: Callable[[], int],
) -> str:
    """Send the total as an event of the item's Billing Meter, and return its value.

    The meter bills the last value of a period. Raises ReportRefused or ReportFailed
    (docs.stripe.com/api/billing/meter-event/create).
    """
    if item.end - item.counted_from <= 1:
        raise ReportRefused("the billing period is too short to hold a meter event")
    meter = fetch_usable_billing_meter(account, str(item.billing_meter))
    payload = {meter["customer_mapping"]["event_payload_key"]: item.customer}
    value_key = meter["value_settings"]["event_payload_key"]

    def latest_form() -> Json:
        payload[value_key] = meter_value(total())
        second = report_second(item.counted_from, item.end, known_at())
        return {"event_name": meter["event_name"], "timestamp": second, "payload": payload}

    event = post_latest(account, "/v1/billing/meter_events", latest_form)
    if event.get("object") != "billing.meter_event":
        raise ReportFailed("Stripe's answer is no meter event")
    return str(payload[value_key])


def rounded_value(account: StripeConnection, item: MeteredItem, total: Decimal) -> Decimal:
    """Return the value that a report of this total would send. Raises ReportFailed."""
    if item.billing_meter is None:
        return Decimal(whole_quantity(total, account.rounding))
    return Decimal(meter_value(total))


def fetch_running_record_total(account: StripeConnection, item: MeteredItem) -> Decimal:
    """Read the summary of the running period, the first one listed and not yet invoiced.

    It is over all records of the period, whoever wrote them. Raises ReportRefused or ReportFailed
    (docs.stripe.com/api/usage_records/subscription_item_summary_list?api-version=2025-02-24.acacia).
    """
    path = f"/v1/subscription_items/{item.id}/usage_record_summaries"
    page = list_page(account, path, None, stripe_version=USAGE_RECORD_VERSION)
    running = [entry for entry in page.entries if entry.get("invoice") is None][:1]
    return sum((require_number(entry, "total_usage") for entry in running), Decimal(0))


def fetch_meter_event_total(
    account: StripeConnection, item: MeteredItem, start: int, end: int
) -> Decimal:
    """Read the summary of a customer's events from a UTC second's minute on, up to a full minute.

    It goes by full minutes (docs.stripe.com/api/billing/meter-event-summary). Raises ReportRefused
    or ReportFailed.
    """
    meter = fetch_usable_billing_meter(account, str(item.billing_meter))
    page = list_page(
        account,
        f"/v1/billing/meters/{meter['id']}/event_summaries",
        None,
        customer=item.customer,
        start_time=start - start % MINUTE,
        end_time=end,
    )
    return sum((require_number(entry, "aggregated_value") for entry in page.entries), Decimal(0))


def require_number(entry: Json, name: str) -> Decimal:
    """Return a number of an answer of Stripe's. Raises ReportFailed."""
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportFailed(f"Stripe's answer has no {name}")
    return Decimal(str(value))


def meter_value(total: Decimal) -> str:
    """Return a total as Stripe takes it: a plain decimal of at most 15 digits, cut to fit.

    Raises ReportFailed (docs.stripe.com/changelog/dahlia/2026-04-22).
    """
    whole = len(f"{int(total)}")
    if whole > MAX_DIGITS:
        raise ReportFailed(f"the total {total:f} has more than {MAX_DIGITS} digits")
    cut = total.quantize(Decimal(1).scaleb(max(whole - MAX_DIGITS, -9)), ROUND_DOWN)
    return f"{cut:f}".rstrip("0").rstrip(".") if cut % 1 else f"{int(cut)}"


def fetch_usable_billing_meter(account: StripeConnection, meter_id: str) -> Json:
    """Return a Billing Meter as it was read within the last minutes.

    Raises ReportFailed if running totals cannot be sent to it.
    """

    def read() -> Json:
        try:
            meter = call(account, "get", f"/v1/billing/meters/{meter_id}")
        except ReportRefused as error:
            raise ReportFailed(str(error), error.request_id) from error
        require_usable_meter(meter, meter_id)
        return meter

    return account.meters.get(account.key_of(meter_id), read)


def require_usable_meter(meter: Json, meter_id: str) -> None:
    """See that a Billing Meter takes running totals. Raises ReportFailed."""
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
    reason = unusable_reason(meter, formula)
    if reason:
        cure = "make one with the formula 'last' and a price for it"
        raise ReportFailed(f"Billing Meter {meter_id} {reason}: {cure}")


def unusable_reason(meter: Json, formula: object) -> str:
    """Say why a Billing Meter would not bill the last running total; empty if it would."""
    if formula != "last":
        return f"has the formula {one_line(formula)!r}, which would add up totals sent twice"
    if meter.get("status") != "active":
        return "is deactivated"
    if meter.get("event_time_window"):
        # Only the event that came last in each hour or day counts: the next period's first one
        # would take the place of this one's last.
        return "has an event_time_window, in which one period's total replaces another's"
    if meter.get("dimension_payload_keys"):
        return "has dimensions, which running totals do not tell"
    return ""
