"""A subscription on a test clock: its usage, its time, and what its invoices bill.

A test clock begins DAYS_AGO in the past, at a full hour, and periods are a day long. So whatever
is reported lies in the past of the test clock and of the machine, whichever Stripe goes by.
"""

import time
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from billing.clock import HOUR
from billing.stripe_api import Json, call, fetch_now, list_all, list_page
from billing.ways import require_number
from probe.questions import NotFoundOut
from probe.sandbox import (
    MARK,
    Meter,
    Sandbox,
    make_meter,
    post_object,
    wait_until,
    wait_until_ready,
)

MINUTE, DAY = 60, 24 * HOUR
DAYS_AGO = 20
# An hour after a period its invoice is final; where an endpoint does not answer, 72 h after it
# (docs.stripe.com/invoicing/integration/workflow-transitions).
FINAL_AFTER_HOURS = (2, 26, 50, 76)


class Line(NamedTuple):
    """An invoice's line: its invoice's id, reason and status, and what it bills (UTC seconds)."""

    invoice: str
    reason: str
    status: str
    price: str
    start: int
    end: int
    quantity: Decimal
    amount: int


@dataclass
class Scene:
    """A customer on a test clock that stands at `now`, and a period, `start` to `end`."""

    sandbox: Sandbox
    clock: str
    customer: str
    now: int
    start: int
    end: int
    subscription: str = ""
    item: str = ""
    marks: int = 0

    def subscribe(self, mode: str, *prices: str, **form: Any) -> None:
        """Start a subscription to prices in a billing mode."""
        form |= {"billing_mode": {"type": mode}} if mode else {}
        made = post_object(
            self.sandbox,
            "/v1/subscriptions",
            customer=self.customer,
            items=[{"price": price} for price in prices],
            metadata={MARK: self.sandbox.run},
            **form,
        )
        self.subscription, self.item = str(made["id"]), str(made["items"]["data"][0]["id"])
        if made["start_date"] != self.start:
            raise NotFoundOut("the subscription did not begin where its test clock stands")

    def update(self, **form: Any) -> Json:
        """Change the subscription, and return it."""
        return post_object(self.sandbox, f"/v1/subscriptions/{self.subscription}", **form)

    def advance(self, to: int) -> None:
        """Let the test clock go on to a UTC second, unless it is there."""
        if to <= self.now:
            return
        path = f"/v1/test_helpers/test_clocks/{self.clock}/advance"
        post_object(self.sandbox, path, frozen_time=to)
        wait_until_ready(self.sandbox.account, self.clock, self.sandbox.patience)
        self.now = to

    def send(self, meter: Meter, value: str, at: int) -> None:
        """Send a meter event of a UTC second; Stripe counts it later."""
        payload = {"stripe_customer_id": self.customer, "value": value}
        path = "/v1/billing/meter_events"
        form = {"event_name": meter.event_name, "timestamp": at, "payload": payload}
        call(self.sandbox.account, "post", path, **form)

    def report(self, meter: Meter, value: str, at: int) -> float:
        """Send a meter event, and return after how many seconds its minute's summary has it."""
        self.send(meter, value, at)
        minute = at - at % MINUTE

        def is_counted() -> bool:
            return self.summary(meter, minute, minute + MINUTE) == Decimal(value)

        what = f"the summary did not show a meter event of {value}"
        return wait_until(is_counted, self.sandbox.patience, what)

    def settle(self) -> None:
        """Wait until what was sent is counted: until a mark is, that is sent after it.

        And as long again, for nothing says that Stripe counts in the order of what it is sent.
        """
        if "marker" not in self.sandbox.made:
            marker = make_meter(self.sandbox, "count")
            self.sandbox.made.update(marker=marker.id, mark=marker.event_name)
        marker = Meter(self.sandbox.made["marker"], self.sandbox.made["mark"])
        self.send(marker, "1", self.now)
        self.marks += 1
        until = self.now + MINUTE - self.now % MINUTE

        def is_counted() -> bool:
            return self.summary(marker, self.start - HOUR, until) == self.marks

        what = "the summary did not show a mark"
        time.sleep(wait_until(is_counted, self.sandbox.patience, what))

    def summary(self, meter: Meter, start: int, end: int) -> Decimal:
        """Return what a Billing Meter has counted between two full minutes."""
        page = list_page(
            self.sandbox.account,
            f"/v1/billing/meters/{meter.id}/event_summaries",
            None,
            customer=self.customer,
            start_time=start,
            end_time=end,
        )
        return sum(
            (require_number(entry, "aggregated_value") for entry in page.entries), Decimal(0)
        )

    def lines(self, price: str, end: int = 0) -> list[Line]:
        """Return a price's lines of all invoices but the first, or those of a period by its end."""
        account = self.sandbox.account
        invoices = list_all(account, "/v1/invoices", subscription=self.subscription)
        found = [
            read_line(invoice, line)
            for invoice in invoices
            if invoice["billing_reason"] != "subscription_create"
            for line in list_all(account, f"/v1/invoices/{invoice['id']}/lines")
        ]
        return [line for line in found if line.price == price and end in (0, line.end)]

    def final_lines(self, price: str, end: int) -> list[Line]:
        """Let time go on until no line of a price and period can change, and return them."""
        found: list[Line] = []
        for hours in FINAL_AFTER_HOURS:
            self.advance(end + hours * HOUR)
            found = self.lines(price, end)
            if all(line.status != "draft" for line in found):
                return found
        raise NotFoundOut(f"the invoice is a draft after {FINAL_AFTER_HOURS[-1]} h")

    def final_quantity(self, price: str, end: int) -> Decimal:
        """Return what the one line of a price and period bills in the end."""
        return only(self.final_lines(price, end)).quantity


def begin(sandbox: Sandbox, about: str, past_the_hour: int = 0) -> Scene:
    """Make a test clock with a customer; it stands so many seconds past a full hour."""
    start = fetch_now(sandbox.account) // HOUR * HOUR - DAYS_AGO * DAY + past_the_hour
    name, mark = f"{MARK} {about}", {MARK: sandbox.run}
    clock = post_object(sandbox, "/v1/test_helpers/test_clocks", frozen_time=start, name=name)
    on = clock["id"]
    customer = post_object(sandbox, "/v1/customers", test_clock=on, name=name, metadata=mark)
    return Scene(sandbox, str(clock["id"]), str(customer["id"]), start, start, start + DAY)


def only(found: list[Line]) -> Line:
    """Return the one line of a list. Raises NotFoundOut."""
    if len(found) != 1:
        raise NotFoundOut(f"{len(found)} lines bill the period, and not one")
    return found[0]


def read_line(invoice: Json, line: Json) -> Line:
    """Return a line of an invoice, as Stripe shows it since 2025-03-31.basil."""
    price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
    quantity = line.get("quantity_decimal") or line.get("quantity") or 0
    return Line(
        invoice=str(invoice["id"]),
        reason=str(invoice["billing_reason"]),
        status=str(invoice["status"]),
        price=str(price),
        start=int(line["period"]["start"]),
        end=int(line["period"]["end"]),
        quantity=Decimal(str(quantity)),
        amount=int(line["amount"]),
    )


def plain(number: Decimal) -> str:
    """Return a number as a person writes it."""
    return f"{number.normalize():f}"
