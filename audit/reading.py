"""What `flask audit` reads of an account: the metered lines of its invoices, and what runs.

Times are UTC seconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from sys import intern
from typing import Any

from audit.spans import OPEN_END, Counted, Coverage, Life, Span
from billing import stripe_api
from billing.closings import UNSEEN
from billing.invoices import (
    BilledUnits,
    InvoicedPeriod,
    InvoicedPeriods,
    ItemsAtPeriodEnd,
    LineKey,
    fetch_all_lines,
    fetch_invoiced_periods,
    fetch_line_price,
    fetch_unrounded_if_anchor_moved,
    invoice_subscription_id,
    invoiced_period,
    line_amounts,
    line_item,
    line_period,
    line_price,
    line_quantity,
    require_lines,
)
from billing.items import (
    InvalidStripeObject,
    MeteredItem,
    added_at,
    is_metered,
    read_item,
    read_whose,
)
from billing.notes import NO_METER, metadata_text, noted_seconds, removed_items
from billing.reports import Outcome, Services
from billing.stripe_api import Json
from billing.subscriptions import RUNNING, Subscription, fetch_all_entries, read_metered_items

# Four levels are the most that Stripe expands (docs.stripe.com/expand).
SUBSCRIPTION_OF_INVOICE = "data.parent.subscription_details.subscription"
# In an invoice item's metadata: the line, or the gap, that it bills what is missing of.
REPAIRED_LINE = "om_line"
METER_KEY = "om_meter_id"


@dataclass(frozen=True)
class Source:
    """An account that is audited; `name` is empty for the key's own. `prices` has those read."""

    services: Services
    name: str
    prices: dict[str, Json] = field(default_factory=dict)

    def fetch_price(self, price_id: str, entry: Json) -> Json:
        """Return a price, with its tiers if it has some. Raises ReportRefused or ReportFailed."""
        price = fetch_line_price(price_id, entry, self.prices, self.services.stripe)
        if price.get("billing_scheme") != "tiered" or price.get("tiers"):
            return price
        known = self.prices.get(price_id, {})
        if not known.get("tiers"):
            path = f"/v1/prices/{price_id}"
            known = stripe_api.fetch_object(self.services.stripe, "price", path, expand=["tiers"])
            self.prices[price_id] = known
        return known


@dataclass(frozen=True)
class AuditedLine:
    """What an invoice bills of a metered item, at which price, and what it charges for it.

    With `is_unseen`, no event has told how the item's period ended: it cannot be compared.
    """

    period: InvoicedPeriod
    price: Json
    charged: Decimal | None
    is_unseen: bool = False


@dataclass(frozen=True)
class AuditedInvoice:
    """An invoice with its metered lines, and why some of it could not be read."""

    fields: Json
    lines: list[AuditedLine] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)
    failed: list[tuple[str, str]] = field(default_factory=list)


def read_invoice(invoice: Json, source: Source) -> AuditedInvoice:
    """Read the metered lines of a listed invoice.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    found = AuditedInvoice(invoice)
    subscription = fetch_subscription_of(invoice, source)
    if subscription is None:
        return found
    lines = fetch_all_lines(invoice, source.services.stripe)
    complete = {**invoice, "lines": {"data": lines}}
    found.lines.extend(subscription_lines(complete, subscription, source))
    found.lines.extend(former_lines(complete, subscription, source))
    found.failed.extend(
        (f"{line.period.item.id} on {invoice['id']}", UNSEEN)
        for line in found.lines
        if line.is_unseen
    )
    bills = invoice.get("status") != "void"
    for line in found.lines:
        item = line.period.item
        add_span(found.coverage, item, source, invoice=str(invoice["id"]), bills=bills)
        add_life_of_line(found.coverage, item, subscription)
    for item in marks(lines, subscription, source):
        at = {"start": item.start, "end": item.start}
        add_span(found.coverage, item, source, invoice=str(invoice["id"]), **at)
        add_life_of_line(found.coverage, item, subscription)
    if found.coverage.counted:
        add_lives(found.coverage, subscription, source)
    return found


def fetch_subscription_of(invoice: Json, source: Source) -> Subscription | None:
    """Return the subscription of an invoice, which is listed with it; None if it is of none.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    try:
        subscription_id = invoice_subscription_id(invoice)
    except InvalidStripeObject:
        return None
    details = (invoice.get("parent") or {}).get("subscription_details") or invoice
    fields = details.get("subscription")
    if not isinstance(fields, dict):
        fields = stripe_api.fetch_subscription(source.services.stripe, subscription_id)
    return Subscription(fields, fetch_all_entries(fields, source.services), 0)


def subscription_lines(
    invoice: Json, subscription: Subscription, source: Source
) -> list[AuditedLine]:
    """Return what an invoice bills of a subscription's items.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    entries = entries_by_id(subscription)
    switches = fetch_switches(invoice, subscription, source)
    known = ItemsAtPeriodEnd(entries, {}, switches, source.prices)
    found = fetch_periods(invoice, subscription, known, source)
    periods = found.periods
    if found.unseen:
        ended = known._replace(kept_price=dict.fromkeys(found.unseen, False))
        periods = fetch_periods(invoice, subscription, ended, source).periods
    amounts = line_amounts(invoice["lines"]["data"])
    lines = []
    for period in periods:
        item = period.item
        price = source.fetch_price(item.price, entries.get(item.id, {}))
        charged = amounts.get(LineKey(item.id, item.price, item.start, item.end))
        lines.append(AuditedLine(period, price, charged, item.id in found.unseen))
    return lines


def fetch_periods(
    invoice: Json, subscription: Subscription, known: ItemsAtPeriodEnd, source: Source
) -> InvoicedPeriods:
    """Return what an invoice bills of what is known of a subscription's items.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    services = source.services
    return fetch_invoiced_periods(
        invoice, subscription.fields, known, services.stripe, services.window_size
    )


def fetch_switches(invoice: Json, subscription: Subscription, source: Source) -> frozenset[int]:
    """Return where items of a subscription got another price at a renewal, if some are gone.

    What was noted of that went with the item; the lines of its other invoices still tell it.
    Raises ReportRefused or ReportFailed.
    """
    listed = {line_item(line) for line in invoice["lines"]["data"]} - {None}
    if listed <= entries_by_id(subscription).keys():
        return frozenset()
    prices: dict[tuple[object, int], set[object]] = {}
    for other in stripe_api.list_invoices(source.services.stripe, subscription.id):
        for line in require_lines(other):
            for at in line_period(line) or ():
                prices.setdefault((line_item(line), at), set()).add(line_price(line))
    prices = {key: found for key, found in prices.items() if key[0] is not None}
    return frozenset(at for (_, at), found in prices.items() if len(found) > 1)


def former_lines(invoice: Json, subscription: Subscription, source: Source) -> list[AuditedLine]:
    """Return what an invoice bills, as invoice items, of prices that were replaced in mid-period.

    Flexible billing mode makes them
    (docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup). Raises
    InvalidStripeObject, ReportRefused or ReportFailed.
    """
    sums: dict[tuple[str, str, int, int], list[Json]] = {}
    for line in invoice["lines"]["data"]:
        key = former_key(line, subscription, source)
        if key is not None:
            sums.setdefault(key, []).append(line)
    found = []
    for key, lines in sums.items():
        item, price = read_former_item(key, subscription, source)
        if item is not None:
            units = sum(map(line_quantity, lines), Decimal(0))
            whole = all(line.get("quantity_decimal") is None for line in lines)
            billed = BilledUnits(units, whole)
            period = invoiced_period(invoice, item, billed, price, {})
            charged = sum((Decimal(str(line.get("amount") or 0)) for line in lines), Decimal(0))
            found.append(AuditedLine(replace(period, is_fixed=True), price, charged))
    return found


def former_key(
    line: Json, subscription: Subscription, source: Source
) -> tuple[str, str, int, int] | None:
    """Return item, price, start and end of what an invoice item bills of usage, if it does.

    Raises ReportRefused or ReportFailed.
    """
    price_id, period = line_price(line), line_period(line)
    about = invoice_item_details(line)
    is_ours = about.get("subscription") == subscription.fields.get("id")
    if line_item(line) is not None or not is_ours or about.get("proration"):
        return None
    if not isinstance(price_id, str) or period is None or is_repair(line):
        return None
    price = source.fetch_price(price_id, {})
    if not is_metered(price):
        return None
    return item_that_ended(subscription, period[1], about, price), price_id, *period


def invoice_item_details(line: Json) -> Json:
    """Return what a line, or an invoice item itself, says of its subscription."""
    parent = line.get("parent")
    if not isinstance(parent, dict):
        return line
    found = parent.get("invoice_item_details") or parent.get("subscription_details")
    return found if isinstance(found, dict) else {}


def is_repair(line: Json) -> bool:
    """Say whether an invoice item, or its line, is one of `flask audit --repair`."""
    metadata = line.get("metadata")
    return isinstance(metadata, dict) and REPAIRED_LINE in metadata


def item_that_ended(subscription: Subscription, at: int, about: Json, price: Json) -> str:
    """Return the item that was removed, or got another price, at a second, as far as is known.

    Of several, it is the one that counts the price's meter; else none: the price tells the meter.
    """
    if isinstance(about.get("subscription_item"), str):
        return str(about["subscription_item"])
    meters = {
        item: removed.meter
        for item, removed in removed_items(subscription.fields).items()
        if at in (removed.removed_at, removed.counted_from)
    }
    for entry in subscription.entries:
        # One that keeps its price is billed so by the trial that was added to it.
        keeps_price = (entry.get("price") or {}).get("id") == price.get("id")
        if keeps_price or at in noted_seconds(entry):
            meters[str(entry.get("id"))] = metadata_text(entry, METER_KEY)
    named = metadata_text(price, METER_KEY)
    alike = [item for item, meter in meters.items() if named and meter in (named, "")]
    if alike or (meters and not named):
        return (alike or list(meters))[0]
    return str(about.get("invoice_item") or about.get("id"))


def read_former_item(
    key: tuple[str, str, int, int], subscription: Subscription, source: Source
) -> tuple[MeteredItem | None, Json]:
    """Return an item as it was at a price that was replaced, and that price.

    Its end is exact, as are changes and resets before it. Raises InvalidStripeObject,
    ReportRefused or ReportFailed.
    """
    item_id, price_id, start, end = key
    removed = removed_items(subscription.fields).get(item_id)
    entry = entries_by_id(subscription).get(item_id) or (
        removed.as_entry() if removed else {"id": item_id}
    )
    price = source.fetch_price(price_id, {})
    item = read_item(
        {**entry, "price": price},
        subscription.fields,
        f"the invoice item of {price_id}",
        source.services.window_size,
        (start, end),
    )
    if item is None:
        return None, price
    changed = {at for other in subscription.entries for at in noted_seconds(other)}
    moved = fetch_unrounded_if_anchor_moved(
        subscription.fields, {"period_end": end}, source.services.stripe
    )
    return replace(item, unrounded=item.unrounded | moved | changed | {end}), price


def marks(lines: list[Json], subscription: Subscription, source: Source) -> Iterable[MeteredItem]:
    """Yield the metered items of lines without length: they say which price applied then.

    Classic billing mode's first invoice has them
    (docs.stripe.com/billing/subscriptions/billing-mode/compare). Raises InvalidStripeObject,
    ReportRefused or ReportFailed.
    """
    entries = entries_by_id(subscription)
    for line in lines:
        item, price_id, period = line_item(line), line_price(line), line.get("period") or {}
        at = period.get("start")
        if type(at) is not int or at != period.get("end"):
            continue
        if not isinstance(item, str) or not isinstance(price_id, str):
            continue
        entry = entries.get(item, {"id": item})
        price = source.fetch_price(price_id, entry)
        size, bounds = source.services.window_size, (at, at + 1)
        found = read_item(
            {**entry, "price": price}, subscription.fields, "lines.data", size, bounds
        )
        if found is not None:
            yield found


def entries_by_id(subscription: Subscription) -> dict[str, Json]:
    """Return a subscription's items by id."""
    return {str(entry.get("id")): entry for entry in subscription.entries}


def add_span(coverage: Coverage, item: MeteredItem, source: Source, **other: Any) -> None:
    """Add the time that an item counts in a period, as it is counted, or with other fields."""
    fields: dict[str, Any] = {
        "start": int(item.window_start.timestamp()),
        "end": int(item.window_end.timestamp()),
        "account": source.name,
        "customer": item.customer,
        "subscription": item.subscription,
        "item": item.id,
        "price": item.price,
    }
    fields |= other
    # Thousands of spans share their ids with each other: each is kept once.
    kept: dict[str, Any] = {
        name: intern(one) if type(one) is str else one for name, one in fields.items()
    }
    coverage.spans[counted_of(item)].append(Span(**kept))


def counted_of(item: MeteredItem) -> Counted:
    """Return whose usage an item counts."""
    whose = intern(item.subject) if isinstance(item.subject, str) else item.subject
    return Counted(intern(item.meter), whose)


def add_life_of_line(coverage: Coverage, item: MeteredItem, subscription: Subscription) -> None:
    """Add that a line's item counted, until it got another price or was removed."""
    counted = counted_of(item)
    entry = entries_by_id(subscription).get(item.id, {})
    removed = removed_items(subscription.fields).get(item.id)
    start, end = life_of_subscription(subscription)
    if removed is not None:
        end = removed.removed_at
    elif (entry.get("price") or {}).get("id") != item.price:
        later = [at for at in noted_seconds(entry) if at >= item.end]
        end = min([*later[:1], end]) if later else item.end
    began = max(start, added_at(entry, subscription.fields) or 0)
    coverage.lives[counted].append(Life(began, end))


def life_of_subscription(subscription: Subscription) -> tuple[int, int]:
    """Return from when to when a subscription lived."""
    start, end = subscription.fields.get("start_date"), subscription.fields.get("ended_at")
    return (start if type(start) is int else 0, end if type(end) is int else OPEN_END)


def add_lives(coverage: Coverage, subscription: Subscription, source: Source) -> None:
    """Add since when a subscription's items count, when their prices changed, and its trials.

    Raises InvalidStripeObject.
    """
    start, end = life_of_subscription(subscription)
    outcome = Outcome()
    items = read_metered_items(subscription, source.services, outcome)
    entries = entries_by_id(subscription)
    for item in items:
        counted, entry = counted_of(item), entries[item.id]
        began = max(start, added_at(entry, subscription.fields) or 0)
        coverage.lives[counted].append(Life(began, end))
        if noted := noted_seconds(entry):
            coverage.changes[counted] += noted
        add_trials(coverage, counted, entry, item, source)
        add_trials(coverage, counted, subscription.fields, item, source)
    for removed in removed_items(subscription.fields).values():
        if removed.meter != NO_METER:
            counted = Counted(removed.meter, read_whose(subscription.fields))
            coverage.lives[counted].append(Life(start, min(end, removed.removed_at)))


def add_trials(
    coverage: Coverage, counted: Counted, holder: Json, item: MeteredItem, source: Source
) -> None:
    """Add the trial of a subscription or an item: its usage is free."""
    own = holder.get("current_trial")
    trial = own if isinstance(own, dict) else {}
    start = trial.get("start_date", holder.get("trial_start"))
    end = trial.get("end_date", holder.get("trial_end"))
    if type(start) is int and type(end) is int and start < end:
        owner = (source.name, item.customer, item.subscription, item.id, "")
        span = Span(start, end, *owner, bills=False)
        if span not in coverage.spans[counted]:
            coverage.spans[counted].append(span)


def read_running(subscription: Json, source: Source) -> tuple[Coverage, list[MeteredItem]]:
    """Return what a listed subscription's items count from their period's start on, and they.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    coverage = Coverage()
    known = Subscription(subscription, fetch_all_entries(subscription, source.services), 0)
    if subscription.get("status") not in RUNNING:
        return coverage, []
    items = read_metered_items(known, source.services, Outcome())
    for item in items:
        add_span(coverage, item, source, end=OPEN_END)
    add_lives(coverage, known, source)
    return coverage, items


def read_pending_item(item: Json, source: Source) -> Coverage:
    """Return what an invoice item that waits for an invoice bills of usage.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    # Since basil its parent has no `proration`, as its line's has.
    coverage, about = Coverage(), {"proration": item.get("proration"), **invoice_item_details(item)}
    subscription_id = about.get("subscription")
    if not isinstance(subscription_id, str) or is_repair(item):
        return coverage
    fields = stripe_api.fetch_subscription(source.services.stripe, subscription_id)
    subscription = Subscription(fields, fetch_all_entries(fields, source.services), 0)
    key = former_key({**item, "parent": {"invoice_item_details": about}}, subscription, source)
    if key is not None:
        former, _ = read_former_item(key, subscription, source)
        if former is not None:
            add_span(coverage, former, source, invoice=str(item["id"]))
    return coverage
