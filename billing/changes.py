"""What an update changed, read from an event's `previous_attributes`; nothing is called here.

`previous_attributes.items.data` has the whole items as they were, if anything changed in them
(docs.stripe.com/api/events/object). Since 2025-03-31.basil each has its period; before, periods
stand on the subscription. Times are UTC seconds.
"""

from dataclasses import dataclass
from typing import Literal

from billing.items import (
    LATEST_SECOND,
    MINUTE,
    has_meter,
    is_metered,
    reset_anchor,
    trial_boundaries,
)
from billing.stripe_api import Json

PERIOD = ("current_period_start", "current_period_end")


@dataclass(frozen=True)
class EndedPeriod:
    """A period [start, end) of an item that an update ended.

    `before` is the item as it was, whole; `after` as it is, or None if it was removed. It ended by
    a renewal, a reset of the billing cycle, a change of the item in mid-period, or the end of its
    subscription.
    """

    before: Json
    after: Json | None
    start: int
    end: int
    by: Literal["renewal", "reset", "change", "end"]

    @property
    def renewed_unchanged(self) -> bool:
        """Say whether the same item goes on with the same price from a renewal."""
        same = self.after is not None and price_id(self.before) == price_id(self.after)
        return same and self.by == "renewal"

    @property
    def carries_usage_over(self) -> bool:
        """Say whether its usage goes over to another price."""
        return usage_goes_over(self.before, self.after or {})

    @property
    def ended_own_trial(self) -> bool:
        """Say whether a trial of the item's own ended with it, which no object tells later."""
        trial = self.before.get("current_trial")
        return isinstance(trial, dict) and trial.get("end_date") == self.end

    @property
    def starts_new_count(self) -> bool:
        """Say whether another price of the item is billed from its end on, as a new one.

        Usage goes over from price to price in mid-period only.
        """
        if self.after is None or price_id(self.before) == price_id(self.after):
            return False
        carried_over = self.by == "change" and self.carries_usage_over
        return not carried_over and any(map(has_metered_price, (self.before, self.after)))


def usage_goes_over(before: Json, after: Json) -> bool:
    """Say whether usage goes over when an item's price changes: both are without a meter.

    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage)
    """
    both = (before, after)
    return all(has_metered_price(item) and not has_meter(item.get("price")) for item in both)


def starts_new_price(before: Json, after: Json) -> bool:
    """Say whether an item has another price, to which no usage goes over."""
    return price_id(before) != price_id(after) and not usage_goes_over(before, after)


def price_id(item: Json) -> object:
    """Return the id of an item's price."""
    price = item.get("price")
    return price.get("id") if isinstance(price, dict) else None


def has_metered_price(item: Json) -> bool:
    """Say whether an item's price is metered."""
    price = item.get("price")
    return isinstance(price, dict) and is_metered(price)


def previous_entries(previous: Json) -> dict[str, Json]:
    """Return the whole items before an update, by id; none if it changed nothing in them."""
    items = previous.get("items")
    data = items.get("data") if isinstance(items, dict) else None
    entries = data if isinstance(data, list) else []
    return {
        entry["id"]: entry
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def shows_periods(previous: Json) -> bool:
    """Say whether an update may have ended a period: it shows items or periods as they were."""
    return not previous.keys().isdisjoint(("items", *PERIOD))


def ended_periods(
    previous: Json, subscription: Json, entries: list[Json], instant: int
) -> list[EndedPeriod]:
    """Return the periods of a subscription's items that an update at a UTC second ended.

    `entries` has all items after it. An item without a second of its own period is left out.
    """
    before = previous_entries(previous)
    after = {str(entry.get("id")): entry for entry in entries}
    found = [
        ended_period_of_kept_item(before.get(item, entry), entry, previous, subscription, instant)
        for item, entry in after.items()
        if item in before or not before
    ]
    found += [
        ended_period_of_removed_item(entry, previous, subscription, instant)
        for item, entry in before.items()
        if item not in after
    ]
    return [period for period in found if period and period.start < period.end]


def ended_period_of_kept_item(
    before: Json, after: Json, previous: Json, subscription: Json, instant: int
) -> EndedPeriod | None:
    """Return the period of an item that an update ended, if it did, where the item is still there.

    A period rolled over only if its start moved forward, and ended there, whatever its scheduled
    end was. With another price it did so only at its scheduled end or at a reset: whether the
    start moves, too, when a price changes in mid-period, is unknown.
    """
    start, scheduled_end = period_before(before, previous, subscription)
    begins, _ = period_now(after, subscription)
    if start is None or scheduled_end is None or begins is None:
        return None
    by_reset = resets_at(begins, previous, subscription)
    if price_id(before) != price_id(after) and begins != scheduled_end and not by_reset:
        has_moved = begins > start and begins >= instant - MINUTE
        # With another interval it joins the period that items of that interval have by then.
        has_moved &= begins not in starts_before(previous, subscription)
        end = min(begins if has_moved else instant, scheduled_end)
        return EndedPeriod(before, after, start, end, "change")
    if begins > start:
        early = begins < scheduled_end
        return EndedPeriod(before, after, start, begins, "reset" if early else "renewal")
    return None


def resets_at(second: int, previous: Json, subscription: Json) -> bool:
    """Say whether an update moved the billing cycle anchor to a UTC second."""
    moved = "billing_cycle_anchor" in previous
    return moved and subscription.get("billing_cycle_anchor") == second


def ended_period_of_removed_item(
    before: Json, previous: Json, subscription: Json, instant: int
) -> EndedPeriod | None:
    """Return the period of a removed item: until its end, a reset, or the second of the update."""
    start, scheduled_end = period_before(before, previous, subscription)
    if start is None or scheduled_end is None:
        return None
    if scheduled_end <= instant:
        return EndedPeriod(before, None, start, scheduled_end, "renewal")
    anchor = subscription.get("billing_cycle_anchor")
    if (
        type(anchor) is int
        and start < anchor <= instant
        and resets_at(anchor, previous, subscription)
    ):
        return EndedPeriod(before, None, start, anchor, "reset")
    return EndedPeriod(before, None, start, instant, "change")


def period_before(before: Json, previous: Json, subscription: Json) -> tuple[int | None, ...]:
    """Return start and end of an item's period before an update, as far as they are known."""
    holders = (before, previous, subscription)
    return tuple(second(first_given(holders, name)) for name in PERIOD)


def starts_before(previous: Json, subscription: Json) -> set[int | None]:
    """Return where the items' periods had begun before an update that changed some of them."""
    entries = previous_entries(previous).values()
    return {period_before(entry, previous, subscription)[0] for entry in entries}


def period_now(after: Json, subscription: Json) -> tuple[int | None, ...]:
    """Return start and end of an item's running period, as far as they are known."""
    return tuple(second(first_given((after, subscription), name)) for name in PERIOD)


def first_given(holders: tuple[Json, ...], name: str) -> object:
    """Return a field of the first object that has it."""
    return next((holder[name] for holder in holders if holder.get(name) is not None), None)


def second(value: object) -> int | None:
    """Return a UTC second, if a value is one."""
    return value if type(value) is int and 0 <= value < LATEST_SECOND else None


def added_seconds(previous: Json, entries: list[Json]) -> list[int]:
    """Return when Stripe made the items that an update added: the second of the update."""
    before = previous_entries(previous)
    # An event lists ten items: the others are no new ones, but older than some of these.
    youngest = max((made_at(entry) for entry in before.values()), default=LATEST_SECOND)
    added = [made_at(entry) for entry in entries if str(entry.get("id")) not in before]
    return [at for at in added if at > youngest]


def made_at(entry: Json) -> int:
    """Return when Stripe made an item, or 0 where it does not say that."""
    return second(entry.get("created")) or 0


def item_periods_known(previous: Json, entries: list[Json]) -> bool:
    """Say whether an event shows the period of each item, before and after.

    Before basil it shows the shortest one, though items of other intervals have their own
    (docs.stripe.com/billing/subscriptions/mixed-interval).
    """
    before = [*previous_entries(previous).values()]
    if all("current_period_start" in entry for entry in [*entries, *before]):
        return True
    return len(intervals(entries)) <= 1 and len(intervals(before)) <= 1


def intervals(entries: list[Json]) -> set[tuple[str, str]]:
    """Return the intervals in which items are billed."""
    found = set()
    for entry in entries:
        price = entry.get("price")
        recurring = price.get("recurring") if isinstance(price, dict) else None
        if isinstance(recurring, dict):
            found.add((str(recurring.get("interval")), str(recurring.get("interval_count"))))
    return found


def boundaries_before(previous: Json, subscription: Json) -> frozenset[int]:
    """Return where, before an update, an anchor or a trial made boundaries that are not rounded."""
    before = {**subscription, **previous}
    return frozenset([*reset_anchor(before), *trial_boundaries(before)])


def with_previous_metadata(previous: Json, subscription: Json) -> Json:
    """Return a subscription with the metadata that it had before an update."""
    changed = previous.get("metadata")
    metadata = subscription.get("metadata")
    if not isinstance(changed, dict) or not isinstance(metadata, dict):
        return subscription
    return {**subscription, "metadata": {**metadata, **changed}}


def running_ends(subscription: Json, entries: list[Json]) -> list[int]:
    """Return the ends of the items' running periods, as far as they are known."""
    ends = [second(first_given((entry, subscription), PERIOD[1])) for entry in entries]
    return [end for end in ends if end is not None]


def find_entry(entries: list[Json], item: str) -> Json | None:
    """Return the item with an id, if it is among them."""
    return next((entry for entry in entries if entry.get("id") == item), None)
