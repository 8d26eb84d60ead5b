"""A subscription item and the period it is billed for, read from Stripe's objects.

Objects go in as plain data. Times are UTC seconds since the epoch. Nothing is called here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

from billing.notes import noted_seconds
from billing.stripe_api import Json
from usage import METER, ULID, WINDOW_SECONDS, OpenMeterCustomer, Whose, window_start_at

MINUTE, HOUR = 60, 3_600
LATEST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last one that a datetime holds
# An account, or an organization's path to one (docs.stripe.com/context).
SCOPE = re.compile(r"[A-Za-z0-9_-]{1,255}(/[A-Za-z0-9_-]{1,255})*")
STRIPE_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
UTC_TIME = "%Y-%m-%d %H:%M:%S +0000 UTC"


class InvalidStripeObject(ValueError):
    """Say which field of a genuine event is missing or cannot be billed."""


@dataclass(frozen=True)
class MeteredItem:
    """A subscription item to report, with one billing period [start, end) in UTC seconds.

    `customer` is Stripe's, `subject` whose usage counts: a subject's, or that of a whole customer
    of OpenMeter's. From `counted_from` on Stripe bills this price on this item: its period's
    start, or the second in it at which the item was added or got this price. `unrounded` has the
    boundaries that are not rounded down. `billing_meter` is the one behind the price, or None
    where usage records are billed.
    """

    id: str
    subscription: str
    price: str
    customer: str
    subject: Whose
    meter: str
    billing_meter: str | None
    window: int
    start: int
    end: int
    counted_from: int
    unrounded: frozenset[int] = frozenset()

    @cached_property
    def window_start(self) -> datetime:
        """Return the second from which usage counts, rounded down to the window."""
        return self._query_boundary(self.counted_from)

    @cached_property
    def window_end(self) -> datetime:
        """Return the period's end, rounded down to the window."""
        return self._query_boundary(self.end)

    def counts_as(self, other: "MeteredItem") -> bool:
        """Say whether it counts the same usage as another in the same period."""
        mine, others = (self.meter, self.subject), (other.meter, other.subject)
        return mine == others and self.window == other.window

    def _query_boundary(self, boundary: int) -> datetime:
        # What came before an item, or its price, was there is another one's.
        first = max([0, *(at for at in self.unrounded if at <= boundary)])
        return max(window_start_at(boundary, self.window), window_start_at(first, 1))


def read_item(
    item: Json,
    subscription: Json,
    path: str,
    window_size: str,
    period: tuple[int, int] | None = None,
) -> MeteredItem | None:
    """Return what to report for an entry of `items.data`, or None where there is nothing to.

    `path` is the entry's place in the event, for errors; `window_size` holds unless the item
    names another one; `period` is one other than the running one. Raises InvalidStripeObject.
    """
    price = require_object(item, "price", path)
    if not is_metered(price):
        return None
    meter = read_meter(item, price, path)
    if meter is None:
        return None
    window = read_window(item, price, path, window_size)
    start, end = period or read_period(item, subscription, path)
    return MeteredItem(
        id=require_id(item, "id", path),
        subscription=require_id(subscription, "id", ""),
        price=require_id(price, "id", f"{path}.price"),
        customer=require_expandable_id(subscription, "customer"),
        subject=read_whose(subscription),
        meter=meter,
        billing_meter=read_billing_meter(price["recurring"], path),
        window=window,
        start=start,
        end=end,
        counted_from=counting_start(item, subscription, start, end),
        unrounded=unrounded_boundaries(item, subscription, start),
    )


def read_whose(subscription: Json) -> Whose:
    """Return whose usage a subscription bills: a subject's, or a whole OpenMeter customer's.

    It is Stripe's customer unless the metadata name another one. Raises InvalidStripeObject.
    """
    subject = read_metadata(subscription, {}, "om_subject", "")
    owner = read_metadata(subscription, {}, "om_customer", "")
    if owner is None:
        return subject or require_expandable_id(subscription, "customer")
    if subject is not None:
        raise InvalidStripeObject("metadata.om_customer stands beside om_subject: take one away")
    if not ULID.fullmatch(owner):
        raise InvalidStripeObject(
            f"metadata.om_customer is no id of an OpenMeter customer, which is a ULID: {owner!r}"
        )
    return OpenMeterCustomer(owner)


def read_meter(item: Json, price: Json, path: str) -> str | None:
    """Return OpenMeter's meter, if the item or its price names one. Raises InvalidStripeObject."""
    meter = read_metadata(item, price, "om_meter_id", path)
    if meter and not METER.fullmatch(meter):
        raise InvalidStripeObject(
            f"{path}.metadata.om_meter_id is no meter's id or slug: {meter!r}"
        )
    return meter


def read_window(item: Json, price: Json, path: str, window_size: str) -> int:
    """Return the length of the item's window in seconds. Raises InvalidStripeObject."""
    window_size = read_metadata(item, price, "om_window_size", path) or window_size
    if window_size not in WINDOW_SECONDS:
        wanted = ", ".join(WINDOW_SECONDS)
        raise InvalidStripeObject(f"{path}.metadata.om_window_size must be one of {wanted}")
    return WINDOW_SECONDS[window_size]


def read_period(item: Json, subscription: Json, path: str) -> tuple[int, int]:
    """Return start and end; since 2025-03-31.basil they stand on the item.

    Raises InvalidStripeObject
    (docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end).
    """
    on_item = item.get("current_period_start") is not None
    holder, path = (item, path) if on_item else (subscription, "")
    seconds = []
    for name in ("current_period_start", "current_period_end"):
        value = holder.get(name)
        if type(value) is not int or not 0 <= value < LATEST_SECOND:
            raise InvalidStripeObject(f"{field_path(path, name)} is missing or is no time")
        seconds.append(value)
    if seconds[1] < seconds[0]:
        end = field_path(path, "current_period_end")
        raise InvalidStripeObject(f"{end} lies before the start")
    return seconds[0], seconds[1]


def read_billing_meter(recurring: Json, path: str) -> str | None:
    """Return the Billing Meter behind a price, if there is one. Raises InvalidStripeObject."""
    if recurring.get("meter") is None:
        return None
    return require_id(recurring, "meter", f"{path}.price.recurring")


def counting_start(item: Json, subscription: Json, start: int, end: int) -> int:
    """Return the second in [start, end) from which Stripe bills an item's price on it.

    An item that was added in mid-period, or got another price there, is billed from that second
    (docs.stripe.com/billing/subscriptions/usage-based/manage-billing, "Update prices mid-cycle").
    Only the event of a change tells its second; the item's metadata keeps it. An item that a
    schedule made is some seconds younger than its first period.
    """
    seconds = [start, *(at for at in noted_seconds(item) if start <= at < end)]
    added = added_at(item, subscription)
    if added is not None and start + HOUR < added < end:
        seconds.append(added)
    return max(seconds)


def added_at(item: Json, subscription: Json) -> int | None:
    """Return when an item was added to its subscription; None if it was made with it.

    A subscription's start is no measure of that, for it can be backdated.
    """
    created, began = item.get("created"), subscription.get("created")
    if type(created) is not int or type(began) is not int or created <= began + MINUTE:
        return None
    return created


def unrounded_boundaries(item: Json, subscription: Json, start: int) -> frozenset[int]:
    """Return the seconds at which a period of an item begins or ends as it stands.

    A boundary is rounded down to a window only where two periods of the same item and price meet
    at a natural renewal, so that both periods round the same second the same way. All others are
    here: no period of this item follows, or Stripe has invoiced what was reported by then, or
    usage on one side of them is free. Those of other periods do no harm.
    """
    exact = [
        *reset_anchor(subscription),
        *trial_boundaries(item),
        *trial_boundaries(subscription),
        *noted_seconds(item),
        subscription.get("cancel_at"),
        subscription.get("ended_at"),
    ]
    if subscription.get("cancel_at_period_end") is True:
        exact.append(latest_period_end(item, subscription))
    added = added_at(item, subscription)
    if added is not None:
        exact.append(start if start <= added <= start + HOUR else added)
    if has_meter(item.get("price")):
        # Rounded down, a subscription's first period would bill again what the customer's last
        # one was billed for to the second. A usage record's keeps the Go example's rounding.
        exact.append(subscription.get("start_date"))
    return frozenset(at for at in exact if type(at) is int)


def reset_anchor(subscription: Json) -> list[int]:
    """Return the billing cycle anchor unless it is where the subscription began.

    A reset moves it to its own instant, and Stripe invoices at once what had been reported by
    then. A date given at the start is one where both periods that meet there agree
    (docs.stripe.com/billing/subscriptions/billing-cycle).
    """
    anchor, began = subscription.get("billing_cycle_anchor"), subscription.get("start_date")
    moved = type(anchor) is int and type(began) is int and anchor != began
    return [anchor] if moved else []  # type: ignore[list-item]


def trial_boundaries(holder: Json) -> list[int]:
    """Return where the trial of a subscription, or of an item, begins and ends.

    One that begins with the subscription is no boundary between two periods
    (docs.stripe.com/billing/subscriptions/trials).
    """
    trial = holder.get("current_trial")
    if isinstance(trial, dict):
        seconds = [trial.get("start_date"), trial.get("end_date")]
    else:
        seconds = [holder.get("trial_start"), holder.get("trial_end")]
    return [at for at in seconds if type(at) is int and at != holder.get("start_date")]


def is_free(item: Json, subscription: Json, start: int, end: int) -> bool:
    """Say whether a period lies in a trial of the item or its subscription.

    Usage in a trial is free (docs.stripe.com/billing/subscriptions/trials).
    """
    return is_in_trial(item, start, end) or is_in_trial(subscription, start, end)


def is_in_trial(holder: Json, start: int, end: int) -> bool:
    """Say whether a period lies in the trial of a subscription or item."""
    trial = holder.get("current_trial")
    if isinstance(trial, dict):
        began, ends = trial.get("start_date"), trial.get("end_date")
    else:
        began, ends = holder.get("trial_start"), holder.get("trial_end")
    return type(began) is int and type(ends) is int and began <= start and end <= ends


def is_metered(price: Json) -> bool:
    """Say whether a price is metered (docs.stripe.com/api/prices/object, recurring.usage_type)."""
    recurring = price.get("recurring")
    return isinstance(recurring, dict) and recurring.get("usage_type") == "metered"


def has_meter(price: object) -> bool:
    """Say whether a price has a Billing Meter."""
    recurring = price.get("recurring") if isinstance(price, dict) else None
    return isinstance(recurring, dict) and recurring.get("meter") is not None


def latest_period_end(item: Json, subscription: Json) -> int | None:
    """Return the latest end of a subscription's running periods, if they say one.

    With items of different intervals, one that is cancelled at the period's end goes on until
    then (docs.stripe.com/billing/subscriptions/mixed-interval).
    """
    listed = subscription.get("items")
    entries = listed.get("data") if isinstance(listed, dict) else None
    holders = [item, *(entries if isinstance(entries, list) else [])]
    ends = [holder.get("current_period_end") for holder in holders if isinstance(holder, dict)]
    known = [at for at in [*ends, subscription.get("current_period_end")] if type(at) is int]
    return max(known, default=None)


def field_path(path: str, name: str) -> str:
    """Return the place of a field in an event, for an error."""
    return f"{path}.{name}" if path else name


def require_object(holder: Json, name: str, path: str) -> Json:
    """Return a field that holds an object. Raises InvalidStripeObject."""
    value = holder.get(name)
    if not isinstance(value, dict):
        raise InvalidStripeObject(f"{field_path(path, name)} is missing")
    return value


def require_id(holder: Json, name: str, path: str) -> str:
    """Return a field that holds an id of Stripe's. Raises InvalidStripeObject."""
    value = holder.get(name)
    if not isinstance(value, str) or not STRIPE_ID.fullmatch(value):
        raise InvalidStripeObject(f"{field_path(path, name)} is missing or is no id")
    return value


def require_expandable_id(holder: Json, name: str) -> str:
    """Return the id in a field that holds an id or an expanded object.

    Raises InvalidStripeObject (docs.stripe.com/expand).
    """
    value = holder.get(name)
    if isinstance(value, dict):
        return require_id(value, "id", name)
    return require_id(holder, name, "")


def read_metadata(first: Json, second: Json, key: str, path: str) -> str | None:
    """Return a key of the metadata of one object, or else of the other; empty is not set.

    Raises InvalidStripeObject.
    """
    for holder in (first, second):
        metadata = holder.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise InvalidStripeObject(f"{field_path(path, 'metadata')} is no object")
        value = metadata.get(key)
        if value is not None and not is_utf8_text(value):
            raise InvalidStripeObject(f"{field_path(path, 'metadata')}.{key} is no text")
        if value:
            return str(value)
    return None


def is_utf8_text(value: object) -> bool:
    """Say whether a value is text that UTF-8 can carry; a lone surrogate of JSON's is not."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not re.search("[\ud800-\udfff]", value)


def utc_text(second: int) -> str:
    """Return a UTC second for a person."""
    return datetime.fromtimestamp(second, UTC).strftime(UTC_TIME)


def period_name(item: MeteredItem) -> str:
    """Return the item's period and subscription, for a person."""
    start, end = utc_text(item.counted_from), utc_text(item.end)
    return f"the period from {start} to {end} of {item.subscription}"


def overlap(items: Iterable[MeteredItem]) -> bool:
    """Say whether the periods of some items, in any order, overlap."""
    periods = sorted((item.counted_from, item.end) for item in items)
    return any(after[0] < before[1] for before, after in pairwise(periods))
