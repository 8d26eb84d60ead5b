"""Subscriptions on Billing Meters that all renew in one second, as Stripe has them.

A draft becomes final an hour after its `invoice.created` was answered 200, and not before, for 72
hours (docs.stripe.com/invoicing/integration/workflow-transitions). An hour is ten seconds here.
"""

import json
import time
from dataclasses import dataclass, field

from bench.objects import DAY, Json, Query, invoice, item, line, subscription

METER = "mtr_1"
HOUR_SECONDS = 10.0
CREATED, UPDATED = "invoice.created", "customer.subscription.updated"


@dataclass
class Renewals:
    """What became of each renewal; times in monotonic seconds, `boundary` in UTC seconds."""

    boundary: int = 0
    closed: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)

    def begin(self, query: Query) -> Json:
        """Let all subscriptions renew at a UTC second."""
        self.boundary = json.loads(query["body"])["boundary"]
        return {}

    def note_answer(self, query: Query) -> Json:
        """Let a subscription's draft become final an hour after an answer of now."""
        self.final[json.loads(query["body"])["subscription"]] = time.monotonic() + HOUR_SECONDS
        return {}

    def note_event(self, form: Query) -> None:
        """Note the first meter event of a period that ended."""
        if int(form["timestamp"]) < self.boundary:
            name = form["payload[stripe_customer_id]"].removeprefix("cus_")
            self.closed.setdefault(name, time.monotonic())

    def is_final(self, name: str) -> bool:
        """Say whether a subscription's draft has become final."""
        return name in self.final and self.final[name] <= time.monotonic()

    def subscription(self, name: str) -> Json:
        """Return a subscription after its renewal, as versions since basil have it."""
        found = subscription(name, meter=METER)
        for field_name in ("current_period_start", "current_period_end"):
            del found[field_name]
        start = self.boundary - 30 * DAY
        times = {"billing_cycle_anchor": start, "start_date": start}
        items = {"object": "list", "data": [item_from(name, self.boundary)], "has_more": False}
        return found | times | {"items": items}

    def invoice(self, name: str) -> Json:
        """Return a renewal's invoice as it is now."""
        status = "open" if self.is_final(name) else "draft"
        lines = [line(f"il_{name}", f"si_{name}_0", self.boundary, "0")]
        return invoice(f"in_{name}", lines, self.boundary, name, status)

    def event(self, name: str, kind: str) -> Json:
        """Return one of a renewal's events, as it was at the renewal."""
        about: Json = {"object": self.invoice(name)}
        if kind == UPDATED:
            before = {"data": [item_from(name, self.boundary - 30 * DAY)]}
            previous = {"items": before, "latest_invoice": f"in_0{name}"}
            about = {"object": self.subscription(name), "previous_attributes": previous}
        return {
            "id": f"evt_{name}_{kind.replace('.', '_')}",
            "object": "event",
            "created": self.boundary,
            "data": about,
            "livemode": True,
            "type": kind,
        }

    def state(self, _: Query) -> Json:
        """Answer which are closed, when the last one was, and which were final before."""
        late = sum(at < self.closed.get(name, at + 1) for name, at in self.final.items())
        last = max(self.closed.values(), default=0)
        return {"closed": len(self.closed), "last_closed": last, "final_before_closed": late}


def item_from(name: str, start: int) -> Json:
    """Return a subscription's item in the period that begins at a UTC second."""
    period = {"current_period_start": start, "current_period_end": start + 30 * DAY}
    return item(0, name, METER) | period
