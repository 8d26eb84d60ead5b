"""What is read of the account: which meters its running subscriptions and its prices name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from billing.items import InvalidStripeObject, MeteredItem, has_meter, read_meter
from billing.reports import Outcome, Services
from billing.stripe_api import Json, NotReported, StripeConnection, list_page
from billing.subscriptions import RUNNING, Subscription, fetch_all_entries, read_metered_items

# Of each list so many pages of 100 are read.
MOST_PAGES = 10


@dataclass
class Reading:
    """What there is to check; `faults` has why some of it could not be read.

    Each meter of OpenMeter's, and each Billing Meter, is there with one object that names it.
    `is_whole` says whether all running subscriptions were read, but for those on test clocks.
    """

    items: list[MeteredItem] = field(default_factory=list)
    meters: dict[str, str] = field(default_factory=dict)
    billing_meters: dict[str, str] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    is_whole: bool = True

    def add_items(self, items: list[MeteredItem]) -> None:
        """Add items, and the meters that they name."""
        self.items += items
        for item in items:
            self.meters.setdefault(item.meter, item.id)
            if item.billing_meter:
                self.billing_meters.setdefault(item.billing_meter, item.price)

    def add_price(self, price: Json) -> None:
        """Add the meters that a price names, if it does. Raises InvalidStripeObject."""
        meter = read_meter({}, price, "price")
        if meter:
            self.meters.setdefault(meter, str(price["id"]))
        if meter and has_meter(price):
            self.billing_meters.setdefault(str(price["recurring"]["meter"]), str(price["id"]))


def read_account(services: Services) -> Reading:
    """Read the first 1,000 running subscriptions and active prices."""
    reading = Reading()
    for subscription in read_list(services.stripe, "/v1/subscriptions", reading):
        if subscription.get("status") in RUNNING:
            try:
                entries = fetch_all_entries(subscription, services)
                known = Subscription(subscription, entries, 0)
                reading.add_items(read_metered_items(known, services, Outcome()))
            except (InvalidStripeObject, NotReported) as error:
                reading.faults.append((str(subscription["id"]), str(error)))
    for price in read_list(services.stripe, "/v1/prices", reading, active=True):
        try:
            reading.add_price(price)
        except InvalidStripeObject as error:
            reading.faults.append((str(price["id"]), str(error)))
    return reading


def read_list(
    account: StripeConnection, path: str, reading: Reading, **filters: Any
) -> Iterator[Json]:
    """Yield the first entries of a list; note where there are more, or why there are none."""
    after: str | None = None
    for _ in range(MOST_PAGES):
        try:
            page = list_page(account, path, after, **filters)
        except NotReported as error:
            reading.faults.append((path, str(error)))
            break
        yield from page.entries
        if not page.has_more:
            return
        after = str(page.entries[-1]["id"])
    reading.is_whole = False
