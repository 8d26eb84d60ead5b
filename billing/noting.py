"""Write into Stripe's metadata what only an update's event tells.

An item whose change could not be noted is not reported: its total would count what another price
has billed.
"""

import time
from dataclasses import replace

from billing import changes, notes, stripe_api
from billing.changes import EndedPeriod
from billing.closings import ITEM_PATH, Update, read_ended_item
from billing.items import require_id
from billing.notes import COUNTED_FROM, NO_METER, REMOVED, RemovedItem
from billing.reports import Outcome, Services
from billing.stripe_api import Json, ReportFailed
from billing.subscriptions import Subscription
from usage import WINDOW_SECONDS

# Longer than an event is taken as fresh.
NOTED_SECONDS = 60


def note_changes(
    update: Update, current: Subscription, services: Services, outcome: Outcome
) -> Subscription:
    """Note since when the items' prices are billed; return the subscription with these notes."""
    if current.is_over:
        return current
    began = {
        str(period.before.get("id")): period.end
        for period in update.ended
        if period.starts_new_count or period.ended_own_trial
    }
    entries = []
    for entry in current.entries:
        at = began.get(str(entry.get("id")))
        if at is None or at in notes.noted_seconds(entry):
            entries.append(entry)
            continue
        with outcome.record_errors(str(entry.get("id"))):
            noted = notes.with_second(entry, at)
            value = notes.metadata_text(noted, COUNTED_FROM)
            write_note("subscription_item", str(entry["id"]), COUNTED_FROM, value, services)
            entries.append(noted)
            remember(current.id, services)
    return replace(current, entries=entries)


def remember(subscription_id: str, services: Services) -> None:
    """Remember that events of a subscription that are just as old do not have its last note."""
    now = time.monotonic()
    for other, at in list(services.noted.items()):
        if now - at > NOTED_SECONDS:
            services.noted.pop(other, None)
    services.noted[services.stripe.key_of(subscription_id)] = now


def was_noted(subscription_id: str, services: Services) -> bool:
    """Say whether a fresh event of a subscription may not have its last note."""
    noted_at = services.noted.get(services.stripe.key_of(subscription_id))
    return noted_at is not None and time.monotonic() - noted_at <= NOTED_SECONDS


def note_removals(update: Update, current: Subscription, services: Services) -> None:
    """Note the metered items that an update removed, for invoices that still bill them.

    Of a subscription that is over only its own metadata can be written: there, so are changes
    (docs.stripe.com/api/subscriptions/update). Raises InvalidStripeObject, ReportRefused or
    ReportFailed.
    """
    known = notes.removed_items(current.fields)
    removed = [
        removed_item(update, period, services)
        for period in update.ended
        if changes.has_metered_price(period.before)
        and (period.after is None or (current.is_over and period.starts_new_count))
    ]
    new = [item for item in removed if known.get(item.id) != item]
    if new:
        noted = notes.with_removed(current.fields, new)
        write_note("subscription", current.id, REMOVED, noted, services)


def removed_item(update: Update, period: EndedPeriod, services: Services) -> RemovedItem:
    """Return what is to be noted of an item that was removed. Raises InvalidStripeObject."""
    item = read_ended_item(update, period, services)
    sizes = {seconds: name for name, seconds in WINDOW_SECONDS.items()}
    return RemovedItem(
        id=require_id(period.before, "id", ITEM_PATH),
        counted_from=item.counted_from if item and item.counted_from in item.unrounded else 0,
        removed_at=period.end,
        meter=item.meter if item else NO_METER,
        window_size=sizes[item.window] if item else services.window_size,
    )


def write_note(kind: str, object_id: str, key: str, value: str, services: Services) -> None:
    """Write a key of an object's metadata. Raises ReportRefused or ReportFailed."""
    try:
        stripe_api.set_metadata(services.stripe, kind, object_id, key, value)
    except ReportFailed as error:
        reason = f"{key} could not be noted in its metadata: {error}"
        needs = "STRIPE_KEY needs the right subscription_write"
        raise ReportFailed(f"{reason}; {needs}", error.request_id) from error


def with_current_notes(known: Subscription, previous: Json, current: Subscription) -> Update:
    """Return an update whose items, after and before, have the changes that were noted since."""
    if current is known:
        return Update(known, current.as_of, previous)
    before = [
        with_notes(entry, current.entries) for entry in changes.previous_entries(previous).values()
    ]
    if before:
        previous = {**previous, "items": {**previous["items"], "data": before}}
    entries = [with_notes(entry, current.entries) for entry in known.entries]
    return Update(replace(known, entries=entries), current.as_of, previous)


def with_notes(entry: Json, current: list[Json]) -> Json:
    """Return an item with the changes that are noted of it by now."""
    now = changes.find_entry(current, str(entry.get("id")))
    seconds = notes.noted_seconds(now or {})
    return notes.with_second(entry, *seconds) if seconds else entry
