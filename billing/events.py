"""What each Stripe event is reported for: which items, and which of their periods."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from billing import changes, losses, stripe_api
from billing.changes import EndedPeriod
from billing.clock import FRESH_SECONDS
from billing.closings import (
    ITEM_PATH,
    Update,
    as_it_is,
    changed_reports,
    closing_reports,
    invoice_reports,
    late_change_corrections,
)
from billing.grace import let_draft_wait
from billing.invoices import (
    billed_units,
    invoice_subscription_id,
    is_subscription_draft,
    require_lines,
)
from billing.items import (
    SCOPE,
    InvalidStripeObject,
    MeteredItem,
    read_item,
    require_expandable_id,
    require_id,
)
from billing.notes import noted_seconds
from billing.noting import note_changes, note_removals, was_noted, with_current_notes
from billing.refusals import report_refused_events
from billing.reports import Outcome, PendingReport, Services, report_until_deadline
from billing.stripe_api import Json, StripeConnection
from billing.subscriptions import (
    Subscription,
    fail_items_that_overwrite,
    fetch_all_entries,
    fetch_current,
    listed_entries,
    read_fetched_items,
    read_metered_items,
    warn_of_double_billing,
)

MODES = {True: "live", False: "test"}
# A period that ends within it may not see another report, which would mend a total.
SOON_SECONDS = 600


log = logging.getLogger("app")


def report_event(event: Mapping[str, Any], services: Services) -> Outcome | None:
    """Report what an event is about, on the account that it names.

    None for a type that is none of EVENTS, and for an event of the mode that the key is not of.
    Raises InvalidStripeObject before anything is written.
    """
    kind = event.get("type")
    if not isinstance(kind, str):
        raise InvalidStripeObject("type is missing")
    if kind not in EVENTS:
        return None
    live = event.get("livemode")
    if isinstance(live, bool) and live != services.is_live:
        ours = MODES[services.is_live]
        reason = f"is of {MODES[live]} mode, STRIPE_KEY of {ours} mode"
        cure = f"take this endpoint away in {MODES[live]} mode, or run a service with its key"
        fields = {"warning": "mode", "outcome": "warned"}
        log.warning("the event %s, and was ignored: %s", reason, cure, extra=fields)
        return None
    account = account_of_event(event, services.stripe)
    if account is not services.stripe:
        services = replace(services, stripe=account)
    return EVENTS[kind](event, services)


def account_of_event(event: Mapping[str, Any], own: StripeConnection) -> StripeConnection:
    """Return the connection to the account that an event came from. Raises InvalidStripeObject.

    A Connect endpoint's events name an account, an organization's a context
    (docs.stripe.com/connect/webhooks, docs.stripe.com/get-started/account/orgs/webhooks).
    """
    for field, option in (("account", "stripe_account"), ("context", "stripe_context")):
        if event.get(field) is not None:
            return own.for_scope(**{option: require_scope(event, field)})
    return own


def require_scope(event: Mapping[str, Any], field: str) -> str:
    """Return the account or context of an event. Raises InvalidStripeObject."""
    value = event[field]
    if not isinstance(value, str) or not SCOPE.fullmatch(value):
        raise InvalidStripeObject(f"{field} is no account's id")
    return value


def event_object(event: Mapping[str, Any]) -> Json:
    """Return the object that an event carries. Raises InvalidStripeObject."""
    data = event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    if not isinstance(carried, dict):
        raise InvalidStripeObject("data.object is missing")
    return carried


def parties(event: Mapping[str, Any]) -> dict[str, str]:
    """Return the subscription and the customer that an event is about, as far as it names them."""
    try:
        carried = event_object(event)
    except InvalidStripeObject:
        return {}
    is_subscription = carried.get("object") == "subscription"
    found = {}
    with suppress(InvalidStripeObject):
        found["subscription"] = (
            require_id(carried, "id", "") if is_subscription else invoice_subscription_id(carried)
        )
    with suppress(InvalidStripeObject):
        found["customer"] = require_expandable_id(carried, "customer")
    return found


def previous_attributes(event: Mapping[str, Any]) -> Json:
    """Return what an update changed, as it was before; empty where the event does not say it."""
    previous = event["data"].get("previous_attributes")
    return previous if isinstance(previous, dict) else {}


def report_updated(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report what an update ended, and then the running period of each metered item.

    An item that fails stops no other. Raises InvalidStripeObject before anything is written.
    """
    outcome = Outcome()
    known = fetch_event_subscription(event, services, outcome)
    metered = read_metered_items(known, services, outcome)
    reports: list[PendingReport] = []
    with outcome.record_errors(known.id, refusal_is_final=is_on_test_clock(known)):
        current = fetch_current_unless_fresh(event, known, services)
        update = with_current_notes(known, previous_attributes(event), current)
        update = replace(update, ended=periods_ended_by_update(update))
        if update.ended:
            reports += changed_reports(update, services, outcome)
            reports += closing_reports(update, services, outcome)
            note_removals(update, current, services)
            current = note_changes(update, current, services, outcome)
            reports += late_change_corrections(update, current, services, outcome)
        if current.is_running:
            if current != known:
                metered = read_fetched_items(current, services, outcome)
            reports += running_reports(metered, update, current, services, outcome)
    report_until_deadline(reports, services, outcome)
    return outcome


def report_deleted(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the last period of a subscription that ended, while an invoice still counts it.

    Raises InvalidStripeObject before anything is written.
    """
    outcome = Outcome()
    known = fetch_event_subscription(event, services, outcome)
    ended = [
        EndedPeriod(entry, None, item.start, cut_off_period_end(known, item), "end")
        for entry in known.entries
        for item in read_metered_items(replace(known, entries=[entry]), services, outcome)
    ]
    reports: list[PendingReport] = []
    with outcome.record_errors(known.id, refusal_is_final=is_on_test_clock(known)):
        as_of = fetch_current(known.id, services).as_of
        reports += closing_reports(Update(known, as_of, ended=ended), services, outcome)
        skip_unwritten(reports, known, outcome)
    report_until_deadline(reports, services, outcome)
    return outcome


def cut_off_period_end(subscription: Subscription, item: MeteredItem) -> int:
    """Return where its subscription's end cut off an item's period. Raises InvalidStripeObject."""
    ended_at = subscription.fields.get("ended_at")
    if type(ended_at) is not int or ended_at < item.start:
        raise InvalidStripeObject("ended_at is missing or is no time")
    return min(ended_at, item.end)


def report_invoice(event: Mapping[str, Any], services: Services) -> Outcome | None:
    """Report the closed periods that a subscription's draft invoice bills; None for other invoices.

    While the answer is no 2xx, Stripe holds the draft, for 72 h at most
    (docs.stripe.com/invoicing/integration/workflow-transitions). If it is final by now, what it
    does not bill is said.
    """
    invoice = event_object(event)
    if not is_subscription_draft(invoice):
        return None
    outcome = Outcome()
    invoice_id = require_id(invoice, "id", "")
    billed_units(require_lines(invoice))
    subscription_id = invoice_subscription_id(invoice)
    reports: list[PendingReport] = []
    with outcome.record_errors(subscription_id, refusal_is_final=False):
        if not is_fresh(event, services):
            invoice = stripe_api.fetch_invoice(services.stripe, invoice_id)
        current = fetch_current(subscription_id, services)
        reports += invoice_reports(invoice, as_it_is(current), services, outcome)
        skip_unwritten(reports, current, outcome)
    report_until_deadline(reports, services, outcome)
    if not outcome.failed:
        with outcome.record_errors(invoice_id):
            let_draft_wait(invoice_id, reports, current.as_of, services)
    return outcome


def skip_unwritten(
    reports: list[PendingReport], subscription: Subscription, outcome: Outcome
) -> None:
    """Note the items of which nothing is written as skipped."""
    known = {*outcome.skipped, *(report.item.id for report in reports if report.writes)}
    items = [str(entry.get("id")) for entry in subscription.entries]
    outcome.skipped.extend(item for item in items if item not in known)


def is_on_test_clock(subscription: Subscription) -> bool:
    """Say whether a subscription has a time of its own, which may be deleted with all it holds."""
    return subscription.fields.get("test_clock") is not None


def fetch_event_subscription(
    event: Mapping[str, Any], services: Services, outcome: Outcome
) -> Subscription:
    """Return the subscription that an event carries. Raises InvalidStripeObject."""
    fields, created = event_object(event), event.get("created")
    entries = listed_entries(fields)
    as_of = created if type(created) is int else services.stripe.clock.now()
    known = Subscription(fields, entries, as_of)
    if not fields["items"].get("has_more"):
        return known
    with outcome.record_errors(f"{known.id}, items after the first {len(entries)}"):
        return replace(known, entries=fetch_all_entries(fields, services))
    return known


def is_fresh(event: Mapping[str, Any], services: Services) -> bool:
    """Say whether an event is so young that nothing has changed since."""
    created, clock = event.get("created"), services.stripe.clock
    if type(created) is not int or not clock.is_known:
        return False
    return -FRESH_SECONDS <= clock.now() - created <= FRESH_SECONDS


def fetch_current_unless_fresh(
    event: Mapping[str, Any], known: Subscription, services: Services
) -> Subscription:
    """Return the subscription of an event as it is now.

    A late event may be of a period that is over, of a price that was changed since, or of a meter
    that was named by mistake. So the subscription is read again, unless the event is fresh. A
    test clock has its own time. Raises ReportRefused or ReportFailed.
    """
    previous = previous_attributes(event)
    # What is noted of a change can be younger than an event of its second; a total that counts
    # too much stands only until the next report, so there has to be time for one.
    ends = changes.running_ends(known.fields, known.entries)
    ends_soon = any(0 <= end - known.as_of <= SOON_SECONDS for end in ends)
    is_settled = not changes.previous_entries(previous) and not ends_soon
    is_settled &= not was_noted(known.id, services)
    has_periods = changes.item_periods_known(previous, known.entries)
    if is_fresh(event, services) and is_settled and has_periods and not is_on_test_clock(known):
        return known
    return fetch_current(known.id, services)


def periods_ended_by_update(update: Update) -> list[EndedPeriod]:
    """Return the periods that an update ended.

    The second of the update is that of an item which it added, if any, or else the event's; with
    a test clock, the one at which the clock stands.
    """
    known = update.subscription
    if not changes.shows_periods(update.previous):
        return []
    instant = update.as_of if is_on_test_clock(known) else known.as_of
    instant = max(changes.added_seconds(update.previous, known.entries), default=instant)
    return changes.ended_periods(update.previous, known.fields, known.entries, instant)


def running_reports(
    metered: list[MeteredItem],
    update: Update,
    current: Subscription,
    services: Services,
    outcome: Outcome,
) -> list[PendingReport]:
    """Return the running periods of a subscription's metered items."""
    items, may_differ = metered, update.can_change_what_counts(current)
    if may_differ:
        items = [item for item in items if is_counted_rightly(item, update.subscription, current)]
    items = fail_items_that_overwrite(items, outcome)
    warn_of_double_billing(items, outcome)
    reports = [PendingReport(item, current.as_of) for item in items]
    if not may_differ:
        return reports
    reports = [with_former_usage_warning(report, update, services) for report in reports]
    named = {item.id for item in metered}
    unmetered = [entry for entry in current.entries if str(entry.get("id")) not in named]
    return reports + reports_of_meters_taken_away(unmetered, update, current, services)


def is_counted_rightly(item: MeteredItem, known: Subscription, current: Subscription) -> bool:
    """Say whether it is known from when an item's price is billed.

    One that it got since an event is billed from a second that only the event of that tells, which
    reports it, too.
    """
    before = changes.find_entry(known.entries, item.id)
    entry = changes.find_entry(current.entries, item.id)
    if before is None or entry is None or not changes.starts_new_price(before, entry):
        return True
    return any(at > known.as_of for at in noted_seconds(entry))


def with_former_usage_warning(
    report: PendingReport, update: Update, services: Services
) -> PendingReport:
    """Return a report that warns if an update let its item count something else in mid-period."""
    item = report.item
    former = item_before_update(item.id, item.price, update, services)
    if former is None or former.start != item.start or former.counts_as(item):
        return report
    former = replace(former, end=item.end, counted_from=item.counted_from)
    return replace(
        report, check=partial(losses.warn_of_changed_metadata, former=former, services=services)
    )


def reports_of_meters_taken_away(
    unmetered: list[Json], update: Update, current: Subscription, services: Services
) -> list[PendingReport]:
    """Return the items whose meter an update took away in mid-period; they are only measured."""
    reports = []
    for entry in unmetered:
        before = item_before_update(str(entry.get("id")), changes.price_id(entry), update, services)
        start, _ = changes.period_now(entry, current.fields)
        if before is not None and before.start == start:
            check = losses.warn_of_meter_taken_away
            reports.append(PendingReport(before, current.as_of, writes=False, check=check))
    return reports


def item_before_update(
    item: str, price: object, update: Update, services: Services
) -> MeteredItem | None:
    """Return an item as it counted before an update, if it had the same price and named a meter."""
    entry = changes.previous_entries(update.previous).get(item)
    entry = entry or changes.find_entry(update.subscription.entries, item)
    if entry is None or changes.price_id(entry) != price:
        return None
    try:
        return read_item(
            entry, update.fields_with_previous_metadata, ITEM_PATH, services.window_size
        )
    except InvalidStripeObject:
        return None  # what cannot be read was never reported


EVENTS: dict[str, Callable[[Mapping[str, Any], Services], Outcome | None]] = {
    "customer.subscription.updated": report_updated,
    "customer.subscription.deleted": report_deleted,
    "invoice.created": report_invoice,
    "v1.billing.meter.error_report_triggered": report_refused_events,
    "v1.billing.meter.no_meter_found": report_refused_events,
}
