"""OpenMeter and Stripe on two ports, with a set latency: python -m bench.upstream.

The stand-ins of fakes/ know the rules but take milliseconds for an answer and then close the
connection; this one knows no rules, keeps connections, and counts what is written.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

DAY = 86_400
PERIOD_START = int(time.time()) - 10 * DAY
PERIOD_END = PERIOD_START + 30 * DAY
# Stripe puts no more items than this into an event.
EVENT_ITEMS = 10
USAGE = 10.0
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Json = dict[str, Any]
Query = dict[str, str]


def item(number: int, subscription: str, meter: str | None) -> Json:
    """Return a metered subscription item; `meter` is the Billing Meter behind its price."""
    recurring = {"interval": "month", "usage_type": "metered"}
    return {
        "id": f"si_{subscription}_{number}",
        "object": "subscription_item",
        "metadata": {"om_meter_id": f"meter_{number}"},
        "price": {
            "id": "price_metered",
            "object": "price",
            "recurring": recurring | ({"meter": meter} if meter else {}),
        },
    }


def subscription(name: str, items: int = 1, meter: str | None = None) -> Json:
    """Return a subscription as acacia has it, with its first ten items."""
    entries = [item(number, name, meter) for number in range(min(items, EVENT_ITEMS))]
    return {
        "id": name,
        "object": "subscription",
        "billing_cycle_anchor": PERIOD_START,
        "current_period_end": PERIOD_END,
        "current_period_start": PERIOD_START,
        "customer": f"cus_{name}",
        "items": {"object": "list", "data": entries, "has_more": items > EVENT_ITEMS},
        "latest_invoice": f"in_{name}",
        "metadata": {},
        "start_date": PERIOD_START,
        "status": "active",
        "test_clock": None,
    }


def listed_subscription(number: int) -> Json:
    """Return one of the list's subscriptions, with its invoice, which is no draft any more."""
    name = f"sub_{number}"
    invoice = {
        "id": f"in_{name}",
        "object": "invoice",
        "billing_reason": "subscription_create",
        "created": PERIOD_START,
        "period_end": PERIOD_START,
        "period_start": PERIOD_START,
        "status": "paid",
    }
    return subscription(name) | {"latest_invoice": invoice}


def ended(number: int) -> int:
    """Return when the period of one of the invoices ended: they are minutes apart."""
    return PERIOD_START - 4 * 60 * number


def audited_subscription(number: int) -> Json:
    """Return a subscription with two items, as newer versions have it."""
    name, end = f"sub_{number}", ended(number)
    found = subscription(name, 2) | {"billing_cycle_anchor": end - 30 * DAY}
    for entry in found["items"]["data"]:
        entry |= {"current_period_start": end, "current_period_end": end + 30 * DAY}
        entry["price"] |= {"currency": "usd", "unit_amount_decimal": "10"}
    return found | {"start_date": end - 30 * DAY, "created": end - 30 * DAY}


def invoice(number: int) -> Json:
    """Return a final invoice with two metered lines; each hundredth lacks a unit."""
    name, end = f"sub_{number}", ended(number)
    lines = [
        {
            "id": f"il_{number}_{n}",
            "object": "line_item",
            "amount": 100,
            "parent": {
                "type": "subscription_item_details",
                "subscription_item_details": {"subscription_item": f"si_{name}_{n}"},
            },
            "period": {"start": end - 30 * DAY, "end": end},
            "pricing": {"price_details": {"price": "price_metered"}},
            "quantity_decimal": "9" if number % 100 == n else "10",
        }
        for n in range(2)
    ]
    details = {"subscription": audited_subscription(number)}
    return {
        "id": f"in_{number}",
        "object": "invoice",
        "billing_reason": "subscription_cycle",
        "created": end,
        "lines": {"object": "list", "data": lines, "has_more": False},
        "number": f"N-{number}",
        "parent": {"type": "subscription_details", "subscription_details": details},
        "period_end": end,
        "status": "paid",
    }


@dataclass
class Upstream:
    """What both services answer, and what was written so far; times in monotonic seconds."""

    subscriptions: int
    invoices: int = 0
    writes: int = 0
    first: float = 0
    last: float = 0
    routes: list[tuple[str, re.Pattern[str], Callable[..., Json]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for method, path, answer in (
            ("GET", r"/api/v1/meters/[^/]+/query", self.total),
            ("POST", r"/api/v1/meters/[^/]+/query", self.totals),
            ("GET", r"/v1/invoiceitems", self.nothing),
            ("POST", r"/v1/subscription_items/([^/]+)/usage_records", self.usage_record),
            ("POST", r"/v1/billing/meter_events", self.meter_event),
            ("GET", r"/v1/billing/meters/([^/]+)", self.meter),
            ("GET", r"/v1/subscription_items", self.items),
            ("GET", r"/v1/subscriptions", self.page),
            ("GET", r"/v1/subscriptions/([^/]+)", self.one),
            ("GET", r"/v1/invoices", self.invoice_page),
            ("GET", r"/_bench/counts", self.counts),
        ):
            self.routes.append((method, re.compile(path), answer))

    def answer(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        """Return the status and the body for a request."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        query["body"] = body.decode()
        for expected, path, answer in self.routes:
            found = path.fullmatch(url.path) if method == expected else None
            if found:
                return 200, json.dumps(answer(query, *found.groups())).encode()
        return 404, b'{"error": {"type": "invalid_request_error", "message": "no such path"}}'

    def total(self, query: Query) -> Json:
        """Answer OpenMeter's total of a period."""
        row = {"value": USAGE, "windowStart": query["from"], "windowEnd": query["to"]}
        return {"data": [row | {"subject": query["subject"], "groupBy": {}}]}

    def totals(self, query: Query) -> Json:
        """Answer OpenMeter's totals of the subjects asked for, or of all that had begun by then."""
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

    def meter_event(self, _: Query) -> Json:
        """Take a meter event."""
        self.count()
        return {"object": "billing.meter_event", "identifier": f"event-{self.writes}"}

    def meter(self, _: Query, meter_id: str) -> Json:
        """Answer a Billing Meter that bills the last value."""
        return {
            "id": meter_id,
            "object": "billing.meter",
            "customer_mapping": {"event_payload_key": "stripe_customer_id"},
            "default_aggregation": {"formula": "last"},
            "event_name": f"openmeter_{meter_id}",
            "status": "active",
            "value_settings": {"event_payload_key": "value"},
        }

    def items(self, query: Query) -> Json:
        """List all items of a subscription, which are twice as many as an event holds."""
        name, limit = query["subscription"], int(query["limit"])
        entries = [item(number, name, None) for number in range(2 * EVENT_ITEMS)]
        return {"object": "list", "data": entries[:limit], "has_more": limit < len(entries)}

    def page(self, query: Query) -> Json:
        """List subscriptions after the one that is named."""
        if self.invoices:
            return page_of(query, self.invoices, audited_subscription)
        return page_of(query, self.subscriptions, listed_subscription)

    def invoice_page(self, query: Query) -> Json:
        """List invoices after the one that is named; none of them is a draft."""
        return page_of(query, 0 if query.get("status") == "draft" else self.invoices, invoice)

    def nothing(self, _: Query) -> Json:
        """List nothing."""
        return {"object": "list", "data": [], "has_more": False}

    def one(self, _: Query, name: str) -> Json:
        """Answer a subscription."""
        return subscription(name)

    def counts(self, _: Query) -> Json:
        """Answer how much was written, and when."""
        return {"writes": self.writes, "first": self.first, "last": self.last}


def page_of(query: Query, count: int, entry: Callable[[int], Json]) -> Json:
    """Return a page of a list of so many, after the one that is named."""
    start = int(query.get("starting_after", "_-1").rpartition("_")[2]) + 1
    end = min(start + int(query["limit"]), count)
    entries = [entry(number) for number in range(start, end)]
    return {"object": "list", "data": entries, "has_more": end < count}


def message(status: int, body: bytes) -> bytes:
    """Return an HTTP answer of JSON."""
    head = (
        f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\n"
        f"Date: {formatdate(usegmt=True)}\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


async def converse(
    upstream: Upstream,
    seconds: float,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    """Answer a connection's requests one after the other, each after the latency."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            answer = message(*upstream.answer(method, target, body))
            if seconds:
                await asyncio.sleep(seconds)
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def addresses(servers: list[asyncio.Server]) -> Iterator[str]:
    """Yield where each server listens."""
    for server in servers:
        host, port = server.sockets[0].getsockname()
        yield f"Listening on http://{host}:{port}"


async def serve(upstream: Upstream, milliseconds: list[int]) -> None:
    """Listen with each of these latencies, and print the addresses in their order."""
    servers = [
        await asyncio.start_server(partial(converse, upstream, latency / 1_000), "127.0.0.1", 0)
        for latency in milliseconds
    ]
    print("\n".join(addresses(servers)), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stripe-ms", type=int, default=0)
    parser.add_argument("--openmeter-ms", type=int, default=0)
    parser.add_argument("--subscriptions", type=int, default=0)
    parser.add_argument("--invoices", type=int, default=0)
    given = parser.parse_args()
    upstream = Upstream(given.subscriptions, given.invoices)
    asyncio.run(serve(upstream, [given.stripe_ms, given.openmeter_ms]))


if __name__ == "__main__":
    main()
