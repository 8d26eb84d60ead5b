"""What OpenMeter and Stripe answer, and what came to them.

The stand-ins of fakes/ know the rules but take milliseconds for an answer and then close the
connection; this one knows few rules, and counts what comes.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from bench.limits import CHECKOUT, Limits
from bench.objects import (
    DAY,
    EVENT_ITEMS,
    PERIOD_START,
    Json,
    Query,
    anchor,
    audited_invoice,
    audited_subscription,
    billing_meter,
    ended,
    item,
    items_of,
    listed_subscription,
    page_of,
    subscription,
)
from bench.renewals import Renewals

USAGE = 10.0
ID = "([^/]+)"
OK, NOT_FOUND, TOO_MANY = 200, 404, 429


class Route(NamedTuple):
    """A kind of request, by the name that Stripe's limits know it by."""

    name: str
    path: re.Pattern[str]
    answer: Callable[..., Json]


class Answer(NamedTuple):
    """A status, a body, and the reason of a 429."""

    status: int
    body: bytes
    reason: str = ""


NO_PATH = Answer(NOT_FOUND, b'{"error": {"type": "invalid_request_error", "message": "no path"}}')
LIMITED = (
    b'{"error": {"type": "invalid_request_error", "message": "too many", "code": "rate_limit"}}'
)


@dataclass
class Upstream:
    """What both services answer, and what came so far; times in monotonic seconds.

    `limited`: as a live account is. The listed subscriptions are on `meter`, if it is named, and
    their anchors `spread` over a month's hours.
    """

    subscriptions: int = 0
    invoices: int = 0
    meter_id: str | None = None
    spread: bool = False
    limited: bool = False
    writes: int = 0
    queries: int = 0
    first: float = 0
    last: float = 0
    limits: Limits = field(default_factory=Limits)
    renewals: Renewals = field(default_factory=Renewals)
    routes: list[Route] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, answer in (
            ("GET /api/v1/meters/*/query", self.total),
            ("POST /api/v1/meters/*/query", self.totals),
            ("GET /v1/invoiceitems", self.nothing),
            ("POST /v1/subscription_items/*/usage_records", self.usage_record),
            ("POST /v1/billing/meter_events", self.meter_event),
            ("GET /v1/billing/meters/*", self.meter),
            ("GET /v1/subscription_items", self.items),
            ("GET /v1/subscriptions", self.page),
            ("GET /v1/subscriptions/*", self.subscription),
            ("GET /v1/invoices", self.invoice_page),
            ("GET /v1/invoices/*", self.invoice),
            (CHECKOUT, self.payment_intent),
            ("GET /_bench/counts", self.counts),
            ("POST /_bench/renewals", self.renewals.begin),
            ("POST /_bench/renewals/answers", self.renewals.note_answer),
            ("GET /_bench/renewals", self.renewals.state),
        ):
            self.routes.append(Route(name, re.compile(name.replace("*", ID)), answer))

    def answer(self, method: str, target: str, body: bytes = b"") -> Answer:
        """Answer a request, or refuse it by Stripe's limits."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        query["body"] = body.decode()
        for route in self.routes:
            found = route.path.fullmatch(f"{method} {url.path}")
            if found:
                is_limited = self.limited and url.path.startswith("/v1/")
                reason = self.limits.refusal(route.name, time.monotonic()) if is_limited else ""
                if reason:
                    return Answer(TOO_MANY, LIMITED, reason)
                return Answer(OK, json.dumps(route.answer(query, *found.groups())).encode())
        return NO_PATH

    def total(self, query: Query, _: str) -> Json:
        """Answer OpenMeter's total of a period."""
        self.queries += 1
        row = {"value": USAGE, "windowStart": query["from"], "windowEnd": query["to"]}
        return {"data": [row | {"subject": query.get("subject"), "groupBy": {}}]}

    def totals(self, query: Query, _: str) -> Json:
        """Answer OpenMeter's totals of the subjects asked for, or of all that had begun by then."""
        self.queries += 1
        asked = json.loads(query["body"])
        everybody = [f"cus_sub_{number}" for number in range(self.invoices)]
        until = datetime.fromisoformat(asked["to"]).timestamp()
        rows = [
            {"value": USAGE, "subject": subject, "groupBy": {"subject": subject}}
            for subject in asked.get("subject", everybody)
            if ended(int(subject.rpartition("_")[2])) - 30 * DAY < until
        ]
        return {"data": rows}

    def count(self) -> None:
        """Count a write."""
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.writes += 1

    def usage_record(self, _: Query, item_id: str) -> Json:
        """Take a usage record."""
        self.count()
        return {"id": f"mbur_{self.writes}", "object": "usage_record", "subscription_item": item_id}

    def meter_event(self, query: Query) -> Json:
        """Take a meter event."""
        self.count()
        form = {name: values[0] for name, values in parse_qs(query["body"]).items()}
        self.renewals.note_event(form)
        return {"object": "billing.meter_event", "identifier": f"event-{self.writes}"}

    def meter(self, _: Query, meter_id: str) -> Json:
        """Answer a Billing Meter."""
        return billing_meter(meter_id)

    def items(self, query: Query) -> Json:
        """List all items of a subscription, which are twice as many as an event holds."""
        name, limit = query["subscription"], int(query["limit"])
        entries = [item(number, name, None) for number in range(2 * EVENT_ITEMS)]
        return {"object": "list", "data": entries[:limit], "has_more": limit < len(entries)}

    def page(self, query: Query) -> Json:
        """List subscriptions after the one that is named."""
        if self.invoices:
            return page_of(query, self.invoices, audited_subscription)
        return page_of(query, self.subscriptions, self.listed)

    def listed(self, number: int) -> Json:
        """Return one of the list's subscriptions."""
        start = anchor(number) if self.spread else PERIOD_START
        return listed_subscription(number, self.meter_id, start)

    def subscription(self, _: Query, name: str) -> Json:
        """Answer a subscription."""
        if self.renewals.boundary:
            return self.renewals.subscription(name)
        return subscription(name, items_of(name))

    def invoice_page(self, query: Query) -> Json:
        """List invoices after the one that is named; none of them is a draft."""
        count = 0 if query.get("status") == "draft" else self.invoices
        return page_of(query, count, audited_invoice)

    def invoice(self, _: Query, name: str) -> Json:
        """Answer a renewal's invoice."""
        return self.renewals.invoice(name.removeprefix("in_"))

    def payment_intent(self, _: Query) -> Json:
        """Answer a checkout."""
        return {"id": "pi_1", "object": "payment_intent"}

    def nothing(self, _: Query) -> Json:
        """List nothing."""
        return {"object": "list", "data": [], "has_more": False}

    def counts(self, _: Query) -> Json:
        """Answer how much came, and when."""
        return {
            "writes": self.writes,
            "queries": self.queries,
            "first": self.first,
            "last": self.last,
            "used": self.limits.used(),
            "refused": self.limits.refused,
            "checkouts": self.limits.checkouts,
            "checkouts_refused": self.limits.checkouts_refused,
        }
