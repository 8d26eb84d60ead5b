"""A subscription with all of its items, as an event has it or as it is now in Stripe."""

import time
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from billing import stripe_api
from billing.items import (
    InvalidStripeObject,
    MeteredItem,
    overlap,
    read_item,
    require_expandable_id,
    require_id,
)
from billing.reports import Outcome, Services
from billing.stripe_api import Json, ReportFailed
from usage import Whose, whose_text

# Those whose running usage Stripe will invoice (docs.stripe.com/api/subscriptions/object, status).
OVER = ("canceled", "incomplete_expired")
RUNNING = ("active", "trialing", "past_due", "unpaid")


@dataclass(frozen=True)
class Subscription:
    """A subscription with all of its items, and the UTC second of which it is known to be so.

    `read_at` is that moment on the monotonic clock; None for an event's, or on a test clock.
    """

    fields: Json
    entries: list[Json]
    as_of: int
    read_at: float | None = None

    @property
    def id(self) -> str:
        """Return its id. Raises InvalidStripeObject."""
        return require_id(self.fields, "id", "")

    @property
    def is_running(self) -> bool:
        """Say whether Stripe will invoice its running usage."""
        return self.fields.get("status") in RUNNING

    @property
    def is_over(self) -> bool:
        """Say whether it has ended for good."""
        return self.fields.get("status") in OVER

    @property
    def soonest_end(self) -> int:
        """Return the first UTC second at which a period of it ends, or 0 if it says none."""
        return soonest_end(self.fields, self.entries)

    @property
    def billing_mode(self) -> str:
        """Return `classic` or `flexible`, or an empty text where the API version is too old."""
        mode = self.fields.get("billing_mode")
        return str(mode.get("type", "")) if isinstance(mode, dict) else ""


def soonest_end(fields: Json, entries: list[Json]) -> int:
    """Return the first UTC second at which a subscription's period ends, or 0 if it says none."""
    ends = [holder.get("current_period_end") for holder in (fields, *entries)]
    return min((end for end in ends if type(end) is int), default=0)


def fetch_current(subscription_id: str, services: Services, *expand: str) -> Subscription:
    """Read a subscription with all of its items, and the second (UTC) since which it is so.

    Some of its fields can be had as objects. Raises ReportRefused, or ReportFailed also where
    what Stripe answers cannot be read.
    """
    began = time.monotonic()
    fields = stripe_api.fetch_subscription(services.stripe, subscription_id, *expand)
    now = services.stripe.clock.at(began)
    if fields.get("test_clock") is not None:
        # What is read after the clock is so at its second, or at a later one.
        now = fetch_subscription_clock_time(fields, services)
        fields = stripe_api.fetch_subscription(services.stripe, subscription_id, *expand)
    read_at = None if fields.get("test_clock") else began
    try:
        return Subscription(fields, fetch_all_entries(fields, services), now, read_at)
    except InvalidStripeObject as error:
        raise ReportFailed(f"as it is in Stripe now, {error}") from error


def fetch_subscription_clock_time(subscription: Json, services: Services) -> int:
    """Read the UTC second at which a subscription's test clock stands.

    Raises ReportRefused or ReportFailed.
    """
    try:
        clock_id = require_expandable_id(subscription, "test_clock")
    except InvalidStripeObject as error:
        raise ReportFailed(f"as it is in Stripe now, {error}") from error
    return stripe_api.fetch_test_clock_time(services.stripe, clock_id)


def listed_entries(subscription: Json) -> list[Json]:
    """Return the items that a subscription lists, ten at most. Raises InvalidStripeObject."""
    listed = subscription.get("items")
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise InvalidStripeObject("items.data is missing")
    for n, entry in enumerate(listed["data"]):
        if not isinstance(entry, dict):
            raise InvalidStripeObject(f"items.data[{n}] is no subscription item")
    return list(listed["data"])


def fetch_all_entries(subscription: Json, services: Services) -> list[Json]:
    """Return the items that a subscription lists, and those that it leaves out.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    entries = listed_entries(subscription)
    if not subscription["items"].get("has_more"):
        return entries
    known = [entry.get("id") for entry in entries]
    subscription_id = require_id(subscription, "id", "")
    stored = stripe_api.list_subscription_items(services.stripe, subscription_id)
    return entries + [entry for entry in stored if entry["id"] not in known]


def read_metered_items(
    subscription: Subscription, services: Services, outcome: Outcome
) -> list[MeteredItem]:
    """Return the items that name a meter, with their running periods; note the others as skipped.

    Raises InvalidStripeObject.
    """
    found = []
    for n, entry in enumerate(subscription.entries):
        path = f"items.data[{n}]"
        item = read_item(entry, subscription.fields, path, services.window_size)
        if item:
            found.append(item)
        elif str(entry.get("id")) not in outcome.skipped:
            outcome.skipped.append(str(entry.get("id")))
    return found


def read_fetched_items(
    subscription: Subscription, services: Services, outcome: Outcome
) -> list[MeteredItem]:
    """Return the items that name a meter, as Stripe has them now.

    What cannot be read is no fault of an event's: raises ReportFailed.
    """
    try:
        return read_metered_items(subscription, services, outcome)
    except InvalidStripeObject as error:
        raise ReportFailed(f"as it is in Stripe now, {error}") from error


def fail_items_that_overwrite(items: list[MeteredItem], outcome: Outcome) -> list[MeteredItem]:
    """Return the items without those that would overwrite each other's totals.

    A Billing Meter counts per customer, not per item
    (docs.stripe.com/api/billing/meter-event/create): two items on one meter have to send the same
    total for the same time, and do where they count the same.
    """
    refused: set[MeteredItem] = set()
    on_meters: dict[str, list[MeteredItem]] = defaultdict(list)
    for item in items:
        if item.billing_meter is not None:
            on_meters[item.billing_meter].append(item)
    for meter, sharing in on_meters.items():
        if overlap(sharing) and len(set(map(counted, sharing))) > 1:
            refused.update(sharing)
            names = " and ".join(item.id for item in sharing)
            reason = f"would overwrite each other's totals on Billing Meter {meter}"
            outcome.fail(names, f"{reason}, which counts per customer")
    return [item for item in items if item not in refused]


def counted(item: MeteredItem) -> tuple[Hashable, ...]:
    """Return what decides an item's total."""
    return item.meter, item.subject, item.window_start, item.window_end


def warn_of_double_billing(items: list[MeteredItem], outcome: Outcome) -> None:
    """Warn of items that bill the same usage."""
    alike: dict[tuple[str, Whose], list[MeteredItem]] = defaultdict(list)
    for item in items:
        alike[item.meter, item.subject].append(item)
    for (meter, whose), same in alike.items():
        if overlap(same):
            names = " and ".join(item.id for item in same)
            reason = f"bill the same usage, of meter {meter} and {whose_text(whose)}"
            outcome.warn(names, f"{reason}: each of them puts it on an invoice", "billed twice")
