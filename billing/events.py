"""What each Stripe event is reported for: which items, and which of their periods."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from billing import items, stripe_api
from billing.items import InvalidSubscription, MeteredItem
from billing.reports import Outcome, PendingReport, Services, item_fields, report_until_deadline
from billing.stripe_api import Json
from service.logs import bound_log_fields
from usage import one_line

FRESH_SECONDS = 5


def event_object(event: Mapping[str, Any]) -> Json:
    """Return the object that an event carries. Raises InvalidSubscription."""
    data = event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    if not isinstance(carried, dict):
        raise InvalidSubscription("data.object is missing")
    return carried


def report_updated(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the running period of each metered item, and one that closed just before it.

    An item that fails stops no other. Raises InvalidSubscription before anything is written.
    """
    outcome = Outcome()
    metered = read_reportable_items(event_object(event), services, outcome)
    running, as_of = current_items_as_of(event, metered, services, outcome)
    # Items that the event leaves out are read as they are now, not as they were then: what they
    # closed is reported for the draft invoice.
    listed = [entry.get("id") for entry in event_object(event)["items"]["data"]]
    previous = event["data"].get("previous_attributes")
    reports = closed_reports_from_update(
        [item for item in metered if item.id in listed], previous, outcome
    )
    report_until_deadline(
        reports + [PendingReport(item, as_of) for item in running], services, outcome
    )
    return outcome


def report_deleted(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the last period of each item backed by a Billing Meter, up to the end."""
    outcome = Outcome()
    subscription = event_object(event)
    metered = read_reportable_items(subscription, services, outcome)
    ended = [items.cut_at_end(item, subscription) for item in metered]
    outcome.skipped.extend(item.id for item in ended if not item.billing_meter)
    reports = [PendingReport(item, item.end) for item in ended if item.billing_meter]
    report_until_deadline(reports, services, outcome)
    return outcome


def report_invoice(event: Mapping[str, Any], services: Services) -> Outcome | None:
    """Report the closed period that a renewal's draft invoice bills; None for other invoices.

    While the answer is no 2xx, Stripe holds the draft, for 72 h at most
    (docs.stripe.com/invoicing/integration/workflow-transitions).
    """
    invoice = event_object(event)
    if not is_renewal_draft(invoice):
        return None
    outcome = Outcome()
    subscription_id = items.invoice_subscription_id(invoice)
    with outcome.record_errors(subscription_id, refusal_is_final=False):
        subscription = stripe_api.fetch_subscription(services.stripe, subscription_id)
        metered = read_reportable_items(subscription, services, outcome)
        reports = closed_reports_for_invoice(invoice, subscription, metered, services, outcome)
        reported = {report.item.id for report in reports}
        outcome.skipped.extend(item.id for item in metered if item.id not in reported)
        report_until_deadline(reports, services, outcome)
    return outcome


def is_renewal_draft(invoice: Json) -> bool:
    """Say whether an invoice is the draft of a renewal, which meter events still reach.

    (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period)
    """
    state = invoice.get("status"), invoice.get("billing_reason")
    return state == ("draft", "subscription_cycle")


def closed_reports_for_invoice(
    invoice: Json,
    subscription: Json,
    metered: list[MeteredItem],
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the periods of a subscription's items that its draft invoice still bills.

    Raises InvalidSubscription, ReportRefused or ReportFailed.
    """
    lines = fetch_all_lines(invoice, services)
    resets = fetch_resets_if_anchor_moved(subscription, invoice, services)
    warn_of_changed_lines(lines, metered, outcome)
    invoiced = [items.invoiced_period(item, lines, subscription, resets) for item in metered]
    return [PendingReport(item, item.end) for item in invoiced if item and item.billing_meter]


def warn_of_changed_lines(lines: list[Json], metered: list[MeteredItem], outcome: Outcome) -> None:
    """Warn of invoice lines whose item has another price now, or is gone.

    Items that the outcome has as skipped or failed by now are there, though not reported.
    """
    prices = {item.id: item.price for item in metered}
    others = {*prices, *outcome.skipped, *(entry["item"] for entry in outcome.failed)}
    for line in lines:
        item, price = one_line(items.line_item(line)), items.line_price(line)
        if prices.get(item, price) != price or item not in others:
            reason = "is gone or has another price since the invoiced period; check it"
            outcome.warn(item, reason, "changed")


def fetch_resets_if_anchor_moved(
    subscription: Json, invoice: Json, services: Services
) -> frozenset[int]:
    """Return where resets ended periods, if one came between an invoice and now.

    The subscription then no longer knows whether the invoice's period began with a reset.
    """
    anchors, end = items.reset_anchor_boundary(subscription), invoice.get("period_end")
    if type(end) is not int or all(anchor < end for anchor in anchors):
        return frozenset()
    subscription_id = items.require_id(subscription, "id", "")
    return stripe_api.list_reset_instants(services.stripe, subscription_id)


def fetch_all_lines(invoice: Json, services: Services) -> list[Json]:
    """Return an invoice's lines, of which an event has the first ten at most."""
    lines = invoice.get("lines")
    if not isinstance(lines, dict) or not isinstance(lines.get("data"), list):
        raise InvalidSubscription("lines.data is missing")
    if lines.get("has_more"):
        invoice_id = items.require_id(invoice, "id", "")
        return stripe_api.list_invoice_lines(services.stripe, invoice_id)
    return [line for line in lines["data"] if isinstance(line, dict)]


def current_items_as_of(
    event: Mapping[str, Any], metered: list[MeteredItem], services: Services, outcome: Outcome
) -> tuple[list[MeteredItem], int]:
    """Return the items that run now, and the second (UTC) of which that is known.

    A late event may be of a period that a reset has ended since; the total that it leads to
    would then count in a Billing Meter's next one. So the subscription is read again, unless the
    event is fresh. Stripe itself refuses a late usage record. A test clock has its own time.
    """
    now, created = int(time.time()), event.get("created")
    if not any(item.billing_meter for item in metered):
        return metered, now
    known = event_object(event)
    if type(created) is int and now - created <= FRESH_SECONDS and known.get("test_clock") is None:
        return metered, created
    with outcome.record_errors(items.require_id(known, "id", "")):
        subscription, now = refetch_subscription_as_of(known, services)
        if subscription.get("status") != "canceled":
            return read_reportable_items(subscription, services, outcome), now
    return [], now


def refetch_subscription_as_of(known: Json, services: Services) -> tuple[Json, int]:
    """Read a subscription again; return it, and the second (UTC) since which it is so at least.

    Raises InvalidSubscription, ReportRefused or ReportFailed.
    """
    now, subscription_id = int(time.time()), items.require_id(known, "id", "")
    if known.get("test_clock") is not None:
        clock_id = items.require_expandable_id(known, "test_clock")
        now = stripe_api.fetch_test_clock_time(services.stripe, clock_id)
    return stripe_api.fetch_subscription(services.stripe, subscription_id), now


def read_reportable_items(
    subscription: Json, services: Services, outcome: Outcome
) -> list[MeteredItem]:
    """Return the items to report, none of which shares its Billing Meter with another."""
    found = read_items_with_meter(subscription, services, outcome)
    shared = {
        meter: [item.id for item in found if item.billing_meter == meter]
        for meter in {item.billing_meter for item in found if item.billing_meter}
    }
    for meter, ids in shared.items():
        if len(ids) > 1:
            reason = f"would overwrite each other's totals on Billing Meter {meter}"
            outcome.fail(" and ".join(ids), f"{reason}, which counts per customer")
    return [item for item in found if len(shared.get(str(item.billing_meter), [])) <= 1]


def read_items_with_meter(
    subscription: Json, services: Services, outcome: Outcome
) -> list[MeteredItem]:
    """Return the items that name a meter, and note the others as skipped."""
    found = []
    for n, entry in enumerate(fetch_all_items(subscription, services, outcome)):
        path = f"items.data[{n}]"
        if not isinstance(entry, dict):
            raise InvalidSubscription(f"{path} is no subscription item")
        item = items.read_item(entry, subscription, path, services.window_size)
        if item:
            found.append(item)
        elif str(entry.get("id")) not in outcome.skipped:
            outcome.skipped.append(str(entry.get("id")))
    return found


def fetch_all_items(subscription: Json, services: Services, outcome: Outcome) -> list[Any]:
    """Return the items at hand and those that were left out: Stripe lists at most ten."""
    listed = subscription.get("items")
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise InvalidSubscription("items.data is missing")
    entries: list[Any] = listed["data"]
    if not listed.get("has_more"):
        return entries
    known = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    subscription_id = items.require_id(subscription, "id", "")
    rest = f"{subscription_id}, items after the first {len(entries)}"
    with outcome.record_errors(rest):
        stored = stripe_api.list_subscription_items(services.stripe, subscription_id)
        return entries + [item for item in stored if item["id"] not in known]
    return entries


def closed_reports_from_update(
    metered: list[MeteredItem], previous: object, outcome: Outcome
) -> list[PendingReport]:
    """Return the periods that closed before items' running ones and can still be billed."""
    reports = []
    for item in metered:
        found = items.find_closed_period(item, previous)
        if found is None:
            continue
        closed, by_reset = found
        if item.billing_meter:
            reports.append(PendingReport(closed, closed.end, by_reset))
        else:
            reason = f"{items.period_name(closed)} has closed and can no longer be written"
            lost = "usage after its last report is on no invoice"
            with bound_log_fields(**item_fields(closed)):
                outcome.warn(item.id, f"{reason}: {lost}", "closed")
    return reports


EVENTS: dict[str, Callable[[Mapping[str, Any], Services], Outcome | None]] = {
    "customer.subscription.updated": report_updated,
    "customer.subscription.deleted": report_deleted,
    "invoice.created": report_invoice,
}
