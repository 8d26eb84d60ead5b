"""An invoice's lines: what they bill of metered usage, in which periods.

A closed period is what an invoice's line says: item, price, period and quantity. No other object
of Stripe's says it (docs.stripe.com/api/invoice-line-item/object). Times are UTC seconds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from billing import stripe_api
from billing.items import (
    HOUR,
    LATEST_SECOND,
    STRIPE_ID,
    InvalidStripeObject,
    MeteredItem,
    has_meter,
    is_free,
    is_metered,
    read_item,
    require_expandable_id,
    require_id,
    reset_anchor,
)
from billing.notes import RemovedItem, noted_seconds, removed_items, with_second
from billing.stripe_api import Json, StripeConnection

DAY = 86_400
# What an invoice says that a reset made (docs.stripe.com/api/invoices/object, billing_reason).
RESET_REASON = "subscription_update"
# Beyond these, money is no longer exact in 28 digits; Stripe's own limits are below.
MAX_QUANTITY, MAX_AMOUNT = 10**16, 10**9
SHORTEST_INTERVAL = {"day": DAY, "week": 7 * DAY, "month": 28 * DAY, "year": 365 * DAY}
# How many digits a currency's minor unit has, where it is not two (docs.stripe.com/currencies).
NO_DIGITS = (
    "BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "UGX", "VND", "VUV",
    "XAF", "XOF", "XPF",
)  # fmt: skip
THREE_DIGITS = ("BHD", "JOD", "KWD", "OMR", "TND")
MINOR_DIGITS = dict.fromkeys(NO_DIGITS, 0) | dict.fromkeys(THREE_DIGITS, 3)


class LineKey(NamedTuple):
    """What the lines of one item's tiers share."""

    item: str
    price: str
    start: int
    end: int


class BilledUnits(NamedTuple):
    """What the lines of one item bill together, and whether they tell whole units only."""

    units: Decimal
    are_whole: bool


@dataclass(frozen=True)
class InvoicedPeriod:
    """What an invoice bills of one metered item and price in one period.

    `billed` is the sum over its lines, of which tiers give several. `unit_amount` is in the
    currency's minor unit, or None where the price has no single one. With `is_fixed`, what is
    reported from now on changes `billed` no more.
    """

    item: MeteredItem
    invoice: str
    billed: BilledUnits
    unit_amount: Decimal | None
    currency: str
    is_draft: bool
    is_fixed: bool

    def agrees_with(self, metered: Decimal) -> bool:
        """Say whether the invoice bills the metered units.

        Quantities without decimals, as older API versions have them, are compared without.
        """
        billed = self.billed.units
        return metered == billed or (self.billed.are_whole and int(metered) == billed)

    def difference_text(self, metered: Decimal) -> str | None:
        """Say how many metered units the invoice does not bill, or bills too many; None if none."""
        billed = self.billed.units
        missing = metered - billed
        if self.agrees_with(metered):
            return None
        word = "not billed" if missing > 0 else "billed too many"
        units = f"{plain(metered)} metered, {plain(billed)} on invoice {self.invoice}"
        return f"{units}: {plain(abs(missing))} units{self.money_text(abs(missing))} {word}"

    def money_text(self, units: Decimal) -> str:
        """Return what units cost, in brackets, if the price has one amount for each."""
        if self.unit_amount is None or not self.currency:
            return ""
        digits = MINOR_DIGITS.get(self.currency, 2)
        amount = (units * self.unit_amount).scaleb(-digits)
        rounded = round(amount, digits)
        return f" ({rounded if rounded == amount else plain(amount)} {self.currency})"


def plain(number: Decimal) -> str:
    """Return a number in plain digits without zeros at its end."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


class ItemsAtPeriodEnd(NamedTuple):
    """A subscription's items by id, as they are now, or were when an event says that they ended.

    `kept_price` says of the latter whether they went on with the same price, `unrounded` where
    boundaries were that the subscription no longer shows. `prices`, if given, has those that were
    read, and takes up others.
    """

    entries: Mapping[str, Json]
    kept_price: Mapping[str, bool]
    unrounded: frozenset[int]
    prices: dict[str, Json] | None = None


class InvoicedPeriods(NamedTuple):
    """What an invoice bills, and the items of lines of which no event has told enough yet."""

    periods: list[InvoicedPeriod]
    unseen: set[str]


def fetch_invoiced_periods(
    invoice: Json,
    subscription: Json,
    known: ItemsAtPeriodEnd,
    account: StripeConnection,
    window_size: str,
) -> InvoicedPeriods:
    """Return what an invoice bills of a subscription's metered items.

    A line whose item is gone, or has another price, is read with the line's price. Usage in a
    trial is free, and not among them. Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    lines = fetch_all_lines(invoice, account)
    moved = fetch_unrounded_if_anchor_moved(subscription, invoice, account)
    unrounded = moved | known.unrounded
    removed = removed_items(subscription)
    prices = {} if known.prices is None else known.prices
    found: list[InvoicedPeriod] = []
    unseen: set[str] = set()
    for key, billed in billed_units(lines).items():
        entry = line_entry(key, known, removed)
        price = fetch_line_price(key.price, entry, prices, account)
        renewed_unchanged = known.kept_price.get(
            key.item, kept_price(key, entry, price, removed.get(key.item))
        )
        if renewed_unchanged is None and is_metered(price):
            unseen.add(key.item)
        item = read_item(
            {**entry, "price": price},
            subscription,
            f"the item {key.item} of invoice {invoice.get('id')}",
            window_size,
            (key.start, key.end),
        )
        if (
            item is None
            or renewed_unchanged is None
            or is_free(entry, subscription, key.start, key.end)
        ):
            continue
        exact = unrounded if renewed_unchanged else unrounded | {key.end}
        item = replace(item, unrounded=item.unrounded | exact)
        found.append(invoiced_period(invoice, item, billed, price, entry))
    return InvoicedPeriods(found, unseen)


def invoiced_period(
    invoice: Json, item: MeteredItem, billed: BilledUnits, price: Json, entry: Json
) -> InvoicedPeriod:
    """Return what an invoice bills of an item. Raises InvalidStripeObject."""
    return InvoicedPeriod(
        item=item,
        invoice=require_id(invoice, "id", ""),
        billed=billed,
        unit_amount=unit_amount(price),
        currency=read_currency(price),
        is_draft=invoice.get("status") == "draft",
        is_fixed=is_fixed(invoice, item, price, entry),
    )


def line_entry(key: LineKey, known: ItemsAtPeriodEnd, removed: Mapping[str, RemovedItem]) -> Json:
    """Return a line's item, with what is noted of it if it is gone, or its subscription is over."""
    entry = known.entries.get(key.item)
    if key.item not in removed:
        return entry or {"id": key.item}
    return (
        with_second(entry, removed[key.item].removed_at) if entry else removed[key.item].as_entry()
    )


def kept_price(key: LineKey, entry: Json, price: Json, removed: RemovedItem | None) -> bool | None:
    """Say whether an item went on with the line's price when the line's period ended.

    None means that no event has told it yet.
    """
    if removed is not None:
        return removed.removed_at > key.end
    now = entry.get("price")
    if not isinstance(now, dict):
        return None
    if now.get("id") == key.price:
        return True
    changed = [at for at in noted_seconds(entry) if at >= key.end]
    if changed:
        return key.end not in changed
    # In mid-period, usage records go over from price to price, and nothing is noted.
    carries_usage_over = not has_meter(price) and is_metered(now) and not has_meter(now)
    return True if carries_usage_over else None


def billed_units(lines: list[Json]) -> dict[LineKey, BilledUnits]:
    """Return the units that the lines of subscription items bill, by item, price and period.

    One-off items, prorations and credits are none of these. Raises InvalidStripeObject.
    """
    found: dict[LineKey, BilledUnits] = {}
    for line in lines:
        item, price, period = line_item(line), line_price(line), line_period(line)
        if isinstance(item, str) and isinstance(price, str) and period:
            if not STRIPE_ID.fullmatch(item) or not STRIPE_ID.fullmatch(price):
                raise InvalidStripeObject("lines.data has an item or price that is no id")
            key = LineKey(item, price, *period)
            before = found.get(key, BilledUnits(Decimal(0), are_whole=True))
            whole = before.are_whole and line.get("quantity_decimal") is None
            found[key] = BilledUnits(before.units + line_quantity(line), whole)
    return found


def fetch_line_price(
    price_id: str, entry: Json, known: dict[str, Json], account: StripeConnection
) -> Json:
    """Return a line's price: the one of its item, or else as Stripe has it, read once.

    Raises ReportRefused or ReportFailed.
    """
    price = entry.get("price")
    if isinstance(price, dict) and price.get("id") == price_id:
        return price
    if price_id not in known:
        known[price_id] = stripe_api.fetch_object(account, "price", f"/v1/prices/{price_id}")
    return known[price_id]


def is_fixed(invoice: Json, item: MeteredItem, price: Json, entry: Json) -> bool:
    """Say whether what is reported from now on changes no more what an invoice bills of an item.

    A draft is counted once more when it becomes final, but neither for usage records nor where
    the item's price changed in the cycle
    (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
    """
    if invoice.get("status") != "draft" or item.billing_meter is None:
        return True
    if item.counted_from > item.start:
        return item.counted_from in noted_seconds(entry)
    recurring = price.get("recurring")
    interval = recurring.get("interval") if isinstance(recurring, dict) else None
    length = item.end - item.start
    is_whole = length % DAY == 0 and length >= SHORTEST_INTERVAL.get(str(interval), 0)
    return not is_whole and item.start in noted_seconds(entry)


def read_currency(price: Json) -> str:
    """Return a price's currency, three capitals; empty if it has none."""
    currency = str(price.get("currency")).upper()
    return currency if re.fullmatch("[A-Z]{3}", currency) else ""


def unit_amount(price: Json) -> Decimal | None:
    """Return the price of one unit, in the currency's minor unit, if there is a single one."""
    if price.get("billing_scheme", "per_unit") != "per_unit" or price.get("transform_quantity"):
        return None
    given = price.get("unit_amount_decimal")
    if given is None:
        given = price.get("unit_amount")
    return as_number(given, MAX_AMOUNT)


def as_number(value: object, most: int) -> Decimal | None:
    """Return a number of Stripe's, a JSON number or a text, if it is one of a usual size."""
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number) <= most else None


def fetch_all_lines(invoice: Json, account: StripeConnection) -> list[Json]:
    """Return an invoice's lines, of which an event has the first ten at most.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    lines = require_lines(invoice)
    if has_more_lines(invoice):
        return stripe_api.list_invoice_lines(account, require_id(invoice, "id", ""))
    return lines


def has_more_lines(invoice: Json) -> bool:
    """Say whether an invoice has more lines than it lists."""
    lines = invoice.get("lines")
    return isinstance(lines, dict) and lines.get("has_more") is True


def require_lines(invoice: Json) -> list[Json]:
    """Return the lines that an invoice lists. Raises InvalidStripeObject."""
    lines = invoice.get("lines")
    if not isinstance(lines, dict) or not isinstance(lines.get("data"), list):
        raise InvalidStripeObject("lines.data is missing")
    return [line for line in lines["data"] if isinstance(line, dict)]


def fetch_unrounded_if_anchor_moved(
    subscription: Json, invoice: Json, account: StripeConnection
) -> frozenset[int]:
    """Return where periods met at no natural renewal, if the anchor moved since an invoice.

    The subscription then no longer knows whether the invoice's period began with a reset, or anew
    after a pause. Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    anchors, end = reset_anchor(subscription), invoice.get("period_end")
    if type(end) is not int or all(anchor < end for anchor in anchors):
        return frozenset()
    invoices = stripe_api.list_invoices(account, require_id(subscription, "id", ""))
    resets = {invoice["period_end"] for invoice in invoices if is_of_reset(invoice)}
    return frozenset(resets | began_anew(subscription, invoice, invoices))


def began_anew(subscription: Json, invoice: Json, invoices: list[Json]) -> set[int]:
    """Return where periods that an invoice bills began though no invoice bills one until then.

    A renewal bills each metered item until its instant. Where an invoice has more lines than it
    shows, that is unknown. A subscription's own start is told by itself.
    """
    if any(has_more_lines(other) for other in invoices):
        return set()
    ended = set[int]().union(*(item_ends(invoice) for invoice in invoices))
    starts = {start for start, _ in item_periods(invoice)}
    return starts - ended - {subscription.get("start_date")}


def is_of_reset(invoice: Json) -> bool:
    """Say whether a reset made an invoice: it was final at once, and bills items until its end.

    A schedule's switch has a draft hour
    (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period), and one of a change
    bills no subscription item, but an invoice item.
    """
    steps, created = invoice.get("status_transitions"), invoice.get("created")
    final = steps.get("finalized_at") if isinstance(steps, dict) else None
    waited = type(final) is int and type(created) is int and final - created >= HOUR
    is_update = invoice.get("billing_reason") == RESET_REASON and invoice.get("status") != "draft"
    return is_update and not waited and invoice.get("period_end") in item_ends(invoice)


def item_ends(invoice: Json) -> set[int]:
    """Return where the periods of the subscription items end that an invoice lists."""
    return {end for _, end in item_periods(invoice)}


def item_periods(invoice: Json) -> list[tuple[int, int]]:
    """Return the periods of the subscription items that an invoice lists."""
    try:
        lines = require_lines(invoice)
    except InvalidStripeObject:
        return []
    periods = [line_period(line) for line in lines if line_item(line) is not None]
    return [period for period in periods if period]


def line_amounts(lines: list[Json]) -> dict[LineKey, Decimal]:
    """Return what the lines of subscription items charge, in the currency's minor unit.

    A line's own amount is without discounts and taxes (docs.stripe.com/api/invoice-line-item).
    """
    found: dict[LineKey, Decimal] = {}
    for line in lines:
        item, price, period = line_item(line), line_price(line), line_period(line)
        if isinstance(item, str) and isinstance(price, str) and period:
            key = LineKey(item, price, *period)
            charged = as_number(line.get("amount"), MAX_QUANTITY) or Decimal(0)
            found[key] = found.get(key, Decimal(0)) + charged
    return found


def line_period(line: Json) -> tuple[int, int] | None:
    """Return start and end of the period that an invoice line bills, if it has one."""
    period = line.get("period")
    if not isinstance(period, dict):
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
    details = pricing.get("price_details") if isinstance(pricing, dict) else None
    price = (details if isinstance(details, dict) else line).get("price")
    return price.get("id") if isinstance(price, dict) else price


def line_item(line: Json) -> object:
    """Return the subscription item of an invoice line, which since basil stands in its parent.

    A proration has none: before basil it may name an item, but its type is another
    (docs.stripe.com/api/invoice-line-item/object?api-version=2025-02-24.acacia).
    """
    parent = line.get("parent")
    if isinstance(parent, dict):
        details = parent.get("subscription_item_details")
        return details.get("subscription_item") if isinstance(details, dict) else None
    return line.get("subscription_item") if line.get("type") != "invoiceitem" else None


def line_quantity(line: Json) -> Decimal:
    """Return the units of an invoice line, with decimals where it says them.

    Raises InvalidStripeObject.
    """
    given = line.get("quantity_decimal")
    given = line.get("quantity") if given is None else given
    found = as_number(0 if given is None else given, MAX_QUANTITY)
    if found is None:
        raise InvalidStripeObject("lines.data has a quantity that is no number")
    return found


def invoice_subscription_id(invoice: Json) -> str:
    """Return the id of the subscription that an invoice is of. Raises InvalidStripeObject."""
    parent = invoice.get("parent")
    details = parent.get("subscription_details") if isinstance(parent, dict) else None
    holder = details if isinstance(details, dict) else invoice
    return require_expandable_id(holder, "subscription")


def is_subscription_draft(invoice: Json) -> bool:
    """Say whether an invoice is a draft that Stripe made for a subscription.

    Besides renewals, the drafts of a schedule's phase transitions have a draft hour
    (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
    """
    made_for = str(invoice.get("billing_reason")).startswith("subscription")
    return made_for and invoice.get("status") == "draft"
