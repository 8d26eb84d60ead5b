"""What is said of usage that cannot be billed rightly: how much it is, why, and what to do.

Each is called once the total of its period is known: `metered` is that total as Stripe would be
told it.
"""

from decimal import Decimal

from billing.invoices import InvoicedPeriod, plain
from billing.items import MeteredItem, period_name, utc_text
from billing.reports import Outcome, Services, measure
from billing.stripe_api import Json
from usage import WINDOW_SECONDS, whose_text

# What becomes of the usage of an item that a change ended
# (docs.stripe.com/billing/subscriptions/usage-based/manage-billing).
FATES = {
    "classic": "in classic billing mode they are on no invoice",
    "flexible": "an invoice item bills what had been reported by then, unless the change was made "
    "with proration_behavior=none",
}


def warn_of_invoice_difference(
    item: MeteredItem,
    metered: Decimal,
    outcome: Outcome,
    *,
    invoiced: InvoicedPeriod,
    by_reset: bool,
) -> None:
    """Warn of a closed period whose invoice bills more or less than what was metered."""
    difference = invoiced.difference_text(metered)
    if difference is None:
        return
    if by_reset:
        reason = f"a reset ended {period_name(item)}, invoiced with what had been reported by then"
        outcome.warn(item.id, f"{reason}: {difference}", "reset")
    elif invoiced.is_draft and item.billing_meter:
        reason = f"the price of {period_name(item)} began in mid-period, and its draft counts"
        outcome.warn(item.id, f"{reason} nothing more: {difference}", "changed")
    else:
        reason = f"{period_name(item)} has closed and can no longer be written"
        outcome.warn(item.id, f"{reason}: {difference}", "closed")


def warn_of_no_invoice(item: MeteredItem, metered: Decimal, outcome: Outcome, *, by: str) -> None:
    """Warn of a closed period that the latest invoice does not bill."""
    if metered:
        reason = f"{period_name(item)} has closed by its {by}, and the latest invoice has no line"
        outcome.warn(item.id, f"{reason} for it: {plain(metered)} units were metered", "closed")


def warn_of_change(
    item: MeteredItem, metered: Decimal, outcome: Outcome, *, after: Json | None, mode: str
) -> None:
    """Warn of usage until an item was removed, or got another price, in mid-period."""
    if metered:
        what = "was removed" if after is None else "got another price"
        at = f"the item {what} at {utc_text(item.end)}"
        units = f"{plain(metered)} units were metered for {item.price} in {period_name(item)}"
        fate = FATES.get(mode, f"{FATES['classic']}, in flexible mode {FATES['flexible']}")
        outcome.warn(item.id, f"{at}: {units}; {fate}", "changed")


def warn_of_changed_metadata(
    item: MeteredItem,
    metered: Decimal,
    outcome: Outcome,
    *,
    former: MeteredItem,
    services: Services,
) -> None:
    """Warn that an item counts another subject, meter or window since the middle of its period."""
    before = measure(services, former) or Decimal(0)
    outcome.warn(
        item.id,
        f"counts {what_counts(item)} now: {plain(metered)} units in its period, and no longer "
        f"{plain(before)} of {what_counts(former)}",
        "changed",
    )


def what_counts(item: MeteredItem) -> str:
    """Say what an item counts."""
    window = next(name for name, seconds in WINDOW_SECONDS.items() if seconds == item.window)
    return f"meter {item.meter}, {whose_text(item.subject)}, window {window}"


def warn_of_meter_taken_away(item: MeteredItem, metered: Decimal, outcome: Outcome) -> None:
    """Warn that an item names no meter any more since the middle of its period."""
    reason = "names no om_meter_id any more, so nothing more of its period is reported"
    outcome.warn(item.id, f"{reason}: {plain(metered)} units of {what_counts(item)}", "changed")


def warn_of_unknown_period(item: object, outcome: Outcome) -> None:
    """Warn of an item whose period an event cannot tell."""
    reason = "was removed or got another price, and its period cannot be told"
    why = "items of different intervals need a webhook of API version 2025-03-31.basil or newer"
    outcome.warn(str(item), f"{reason}: {why}; what it still lacked was not reported", "changed")
