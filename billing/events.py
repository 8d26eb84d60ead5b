"""What each Stripe event is reported for: which items, and which of their periods."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from billing import changes, losses, notes, stripe_api
from billing.changes import EndedPeriod
from billing.invoices import (
    InvoicedPeriod,
    KnownItems,
    billed_units,
    fetch_invoiced_periods,
    invoice_subscription_id,
    is_subscription_draft,
    require_lines,
)
from billing.items import (
    InvalidSubscription,
    MeteredItem,
    is_free,
    read_item,
    require_expandable_id,
    require_id,
    reset_anchor,
)
from billing.notes import COUNTED_FROM, NO_METER, REMOVED, RemovedItem
from billing.reports import Outcome, PendingReport, Services, report_until_deadline
from billing.stripe_api import RESET_REASON, Json, ReportFailed
from billing.subscriptions import (
    Subscription,
    fail_items_that_overwrite,
    fetch_all_entries,
    fetch_current,
    listed_entries,
    read_current_items,
    read_items,
    warn_of_double_billing,
)
from usage import WINDOW_SECONDS

FRESH_SECONDS = 5
UNSEEN = "is gone or has another price, but the customer.subscription.updated of that was not seen"


def event_object(event: Mapping[str, Any]) -> Json:
    """Return the object that an event carries. Raises InvalidSubscription."""
    data = event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    if not isinstance(carried, dict):
        raise InvalidSubscription("data.object is missing")
    return carried


def previous_attributes(event: Mapping[str, Any]) -> Json:
    """Return what an update changed, as it was before; empty where the event does not say it."""
    previous = event["data"].get("previous_attributes")
    return previous if isinstance(previous, Mapping) else {}


def report_updated(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report what an update ended, and then the running period of each metered item.

    An item that fails stops no other. Raises InvalidSubscription before anything is written.
    """
    outcome = Outcome()
    known = read_event(event, services, outcome)
    read_items(known, services, outcome)
    reports: list[PendingReport] = []
    with outcome.record_errors(known.id):
        current = current_subscription(event, known, services)
        previous, ended = previous_attributes(event), ended_by_update(event, known, current.as_of)
        reports += changed_reports(previous, known, ended, services, outcome)
        reports += closing_reports(previous, known, ended, services, outcome)
        note_removals(previous, known, current, ended, services)
        current = note_changes(current, ended, services, outcome)
        reports += running_reports(previous, known, current, services, outcome)
    report_until_deadline(reports, services, outcome)
    return outcome


def report_deleted(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the last period of a subscription that ended, while an invoice still counts it.

    Raises InvalidSubscription before anything is written.
    """
    outcome = Outcome()
    known = read_event(event, services, outcome)
    ended = [
        EndedPeriod(entry, None, item.start, last_second(known, item), "end")
        for entry in known.entries
        for item in read_items(replace(known, entries=[entry]), services, outcome)
    ]
    reports: list[PendingReport] = []
    with outcome.record_errors(known.id):
        reports += closing_reports({}, known, ended, services, outcome)
        skip_unwritten(reports, known, outcome)
    report_until_deadline(reports, services, outcome)
    return outcome


def last_second(subscription: Subscription, item: MeteredItem) -> int:
    """Return where its subscription's end cut off an item's period. Raises InvalidSubscription."""
    ended_at = subscription.fields.get("ended_at")
    if type(ended_at) is not int or ended_at < item.start:
        raise InvalidSubscription("ended_at is missing or is no time")
    return min(ended_at, item.end)


def report_invoice(event: Mapping[str, Any], services: Services) -> Outcome | None:
    """Report the closed periods that a subscription's draft invoice bills; None for other invoices.

    While the answer is no 2xx, Stripe holds the draft, for 72 h at most
    (docs.stripe.com/invoicing/integration/workflow-transitions).
    """
    invoice = event_object(event)
    if not is_subscription_draft(invoice):
        return None
    outcome = Outcome()
    require_id(invoice, "id", "")
    billed_units(require_lines(invoice))
    subscription_id = invoice_subscription_id(invoice)
    reports: list[PendingReport] = []
    with outcome.record_errors(subscription_id, refusal_is_final=False):
        current = fetch_current(subscription_id, services)
        reports += invoice_reports(invoice, current, [], services, outcome)
        skip_unwritten(reports, current, outcome)
    report_until_deadline(reports, services, outcome)
    return outcome


def skip_unwritten(
    reports: list[PendingReport], subscription: Subscription, outcome: Outcome
) -> None:
    """Note the items of which nothing is written as skipped."""
    known = {*outcome.skipped, *(report.item.id for report in reports if report.writes)}
    items = [str(entry.get("id")) for entry in subscription.entries]
    outcome.skipped.extend(item for item in items if item not in known)


def read_event(event: Mapping[str, Any], services: Services, outcome: Outcome) -> Subscription:
    """Return the subscription that an event carries. Raises InvalidSubscription."""
    fields, created = event_object(event), event.get("created")
    entries = listed_entries(fields)
    as_of = created if type(created) is int else int(time.time())
    known = Subscription(fields, entries, as_of)
    with outcome.record_errors(f"{known.id}, items after the first {len(entries)}"):
        return replace(known, entries=fetch_all_entries(fields, services))
    return known


def current_subscription(
    event: Mapping[str, Any], known: Subscription, services: Services
) -> Subscription:
    """Return the subscription of an event as it is now.

    A late event may be of a period that is over, of a price that was changed since, or of a meter
    that was named by mistake. So the subscription is read again, unless the event is fresh. A
    test clock has its own time. Raises ReportRefused or ReportFailed.
    """
    created = event.get("created")
    is_fresh = type(created) is int and int(time.time()) - created <= FRESH_SECONDS
    periods = changes.show_periods(previous_attributes(event), known.entries)
    if is_fresh and periods and known.fields.get("test_clock") is None:
        return known
    return fetch_current(known.id, services)


def ended_by_update(event: Mapping[str, Any], known: Subscription, as_of: int) -> list[EndedPeriod]:
    """Return the periods that an update ended.

    The second of the update is that of an item which it added, if any, or else the event's; with
    a test clock, the one at which the clock stands.
    """
    previous = previous_attributes(event)
    instant = as_of if known.fields.get("test_clock") else known.as_of
    instant = max(changes.added_seconds(previous, known.entries), default=instant)
    return changes.ended_periods(previous, known.fields, known.entries, instant)


def changed_reports(
    previous: Json,
    known: Subscription,
    ended: list[EndedPeriod],
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the periods that ended in the middle: their item is gone, or has another price."""
    reports = []
    for period in ended:
        item = item_before(period, previous, known, services)
        if period.by == "change" and item and not period.goes_over:
            if not changes.show_periods(previous, known.entries):
                losses.warn_of_unknown_period(item.id, outcome)
                continue
            check = partial(losses.warn_of_change, after=period.after, mode=known.billing_mode)
            writes = item.billing_meter is not None
            reports.append(PendingReport(item, item.end, writes=writes, check=check))
    return reports


def closing_reports(
    previous: Json,
    known: Subscription,
    ended: list[EndedPeriod],
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the periods that a renewal, a reset or a subscription's end closed.

    The latest invoice says what it bills of them. Where it has no line for one, the item as it
    was has to do. Raises ReportRefused or ReportFailed.
    """
    closed = [period for period in ended if period.by != "change"]
    reports = latest_invoice_reports(known, closed, services, outcome) if closed else []
    billed = {(report.item.id, report.item.end) for report in reports}
    if changes.show_periods(previous, known.entries):
        for period in closed:
            item = item_before(period, previous, known, services)
            if item and (item.id, item.end) not in billed:
                reports.append(uninvoiced_report(item, period.by))
    return reports


def uninvoiced_report(item: MeteredItem, by: str) -> PendingReport:
    """Return what to do about a closed period for which the latest invoice has no line.

    Another draft of a renewal may have it, as in classic billing mode after a schedule's switch.
    """
    by_meter = item.billing_meter is not None
    return PendingReport(
        item,
        item.end,
        writes=by_meter and by != "end",
        check=None if by_meter and by == "renewal" else partial(losses.warn_of_no_invoice, by=by),
    )


def item_before(
    period: EndedPeriod, previous: Json, known: Subscription, services: Services
) -> MeteredItem | None:
    """Return an item as it was in a period that ended; None if it names no meter, or is free.

    Only where the same item and price go on from a renewal, its end is rounded to the window.
    """
    fields = changes.subscription_before(previous, known.fields)
    if is_free(period.before, fields, period.start, period.end):
        return None
    item_path = "previous_attributes.items"
    bounds = (period.start, period.end)
    item = read_item(period.before, fields, item_path, services.window_size, bounds)
    if item is None:
        return None
    anchor = {**fields, "billing_cycle_anchor": previous.get("billing_cycle_anchor")}
    exact = {*reset_anchor(anchor)} if period.goes_on else {*reset_anchor(anchor), period.end}
    return replace(item, unrounded=item.unrounded | exact)


def latest_invoice_reports(
    known: Subscription, closed: list[EndedPeriod], services: Services, outcome: Outcome
) -> list[PendingReport]:
    """Return the periods that closed, as the invoice that a subscription names its latest has them.

    Raises InvalidSubscription, ReportRefused or ReportFailed.
    """
    if known.fields.get("latest_invoice") is None:
        return []
    invoice_id = require_expandable_id(known.fields, "latest_invoice")
    invoice = stripe_api.fetch_invoice(services.stripe, invoice_id)
    ends = {period.end for period in closed}
    reports = invoice_reports(invoice, known, closed, services, outcome)
    return [report for report in reports if report.item.end in ends]


def invoice_reports(
    invoice: Json,
    subscription: Subscription,
    ended: list[EndedPeriod],
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the closed periods that an invoice bills.

    `ended` has those of which an event tells how their items were. Raises ReportRefused, or
    ReportFailed also where Stripe's answer cannot be read.
    """
    before = {str(period.before.get("id")): period for period in ended}
    entries = {str(entry.get("id")): entry for entry in subscription.entries}
    try:
        found = fetch_invoiced_periods(
            invoice,
            subscription.fields,
            KnownItems(
                entries | {item: period.before for item, period in before.items()},
                {item: period.goes_on for item, period in before.items()},
            ),
            services.stripe,
            services.window_size,
        )
    except InvalidSubscription as error:
        raise ReportFailed(f"as it is in Stripe now, {error}") from error
    for item in () if ended else found.unseen:  # an update leaves them to the draft's own event
        outcome.fail(item, f"{UNSEEN}: resend it in Stripe")
    kept = fail_items_that_overwrite([period.item for period in found.periods], outcome)
    by_reset = invoice.get("billing_reason") == RESET_REASON and invoice.get("status") != "draft"
    return [invoice_report(period, by_reset) for period in found.periods if period.item in kept]


def invoice_report(period: InvoicedPeriod, by_reset: bool) -> PendingReport:
    """Return what to do about a period that an invoice bills: a final one can only be compared."""
    item = period.item
    check = partial(losses.warn_of_missing, invoiced=period, by_reset=by_reset)
    return PendingReport(
        item,
        item.end,
        writes=period.is_draft and item.billing_meter is not None,
        check=check if period.is_fixed else None,
    )


def note_changes(
    current: Subscription, ended: list[EndedPeriod], services: Services, outcome: Outcome
) -> Subscription:
    """Note since when the items' prices are billed, and which items were removed.

    An item whose change cannot be noted is left out, for its total would count what another price
    has billed. Raises ReportFailed where the removal cannot be noted.
    """
    began = {str(period.before.get("id")): period.end for period in ended if period.began_price}
    entries = []
    for entry in current.entries:
        at = began.get(str(entry.get("id")))
        if at is None or at in notes.noted_seconds(entry):
            entries.append(entry)
            continue
        with outcome.record_errors(str(entry.get("id"))):
            noted = notes.with_second(entry, at)
            note("subscription_item", str(entry["id"]), COUNTED_FROM, noted, services)
            entries.append(with_metadata(entry, COUNTED_FROM, noted))
    return replace(current, entries=entries)


def note_removals(
    previous: Json,
    known: Subscription,
    current: Subscription,
    ended: list[EndedPeriod],
    services: Services,
) -> None:
    """Note the metered items that an update removed, for invoices that still bill them.

    Raises ReportRefused or ReportFailed.
    """
    known_ones = notes.removed_items(current.fields)
    removed = [
        removed_item(period, previous, known, services)
        for period in ended
        if period.after is None and changes.has_metered_price(period.before)
    ]
    new = [item for item in removed if known_ones.get(item.id) != item]
    if new and current.is_running:
        noted = notes.with_removed(current.fields, new)
        note("subscription", current.id, REMOVED, noted, services)


def removed_item(
    period: EndedPeriod, previous: Json, known: Subscription, services: Services
) -> RemovedItem:
    """Return what is to be noted of an item that was removed."""
    fields = changes.subscription_before(previous, known.fields)
    bounds = (period.start, period.end)
    path = "previous_attributes.items"
    item = read_item(period.before, fields, path, services.window_size, bounds)
    sizes = {seconds: name for name, seconds in WINDOW_SECONDS.items()}
    return RemovedItem(
        id=require_id(period.before, "id", path),
        counted_from=item.counted_from if item and item.counted_from in item.unrounded else 0,
        removed_at=period.end,
        meter=item.meter if item else NO_METER,
        window_size=sizes[item.window] if item else services.window_size,
    )


def note(kind: str, object_id: str, key: str, value: str, services: Services) -> None:
    """Write a key of an object's metadata. Raises ReportRefused or ReportFailed."""
    try:
        stripe_api.set_metadata(services.stripe, kind, object_id, key, value)
    except ReportFailed as error:
        reason = f"{key} could not be noted in its metadata: {error}"
        needs = "STRIPE_KEY needs the right subscription_write"
        raise ReportFailed(f"{reason}; {needs}", error.request_id) from error


def with_metadata(entry: Json, key: str, value: str) -> Json:
    """Return an object with a key of its metadata."""
    return {**entry, "metadata": {**(entry.get("metadata") or {}), key: value}}


def running_reports(
    previous: Json,
    known: Subscription,
    current: Subscription,
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the running periods of a subscription's items, if it runs. Raises ReportFailed."""
    if not current.is_running:
        return []
    items = read_current_items(current, services, outcome)
    items = fail_items_that_overwrite(items, outcome)
    warn_of_double_billing(items, outcome)
    reports = [PendingReport(item, current.as_of) for item in items]
    return [with_former_total(report, previous, known, services) for report in reports]


def with_former_total(
    report: PendingReport, previous: Json, known: Subscription, services: Services
) -> PendingReport:
    """Return a report that warns if an update let its item count something else in mid-period."""
    item, before = report.item, changes.previous_entries(previous)
    entry = before.get(item.id, changes.find_entry(known.entries, item.id))
    if entry is None or changes.price_id(entry) != item.price:
        return report
    fields = changes.subscription_before(previous, known.fields)
    try:
        former = read_item(entry, fields, "previous_attributes.items", services.window_size)
    except InvalidSubscription:
        return report  # what it counted before could not be read, and was never reported
    if former is None or former.start != item.start or former.counts_as(item):
        return report
    former = replace(former, end=item.end, counted_from=item.counted_from)
    check = partial(losses.warn_of_former, former=former, services=services)
    return replace(report, check=check)


EVENTS: dict[str, Callable[[Mapping[str, Any], Services], Outcome | None]] = {
    "customer.subscription.updated": report_updated,
    "customer.subscription.deleted": report_deleted,
    "invoice.created": report_invoice,
}
