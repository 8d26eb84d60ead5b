"""Subscriptions on Billing Meters that all renew in one second, as Stripe tells of it.

Each has two events. Their deliveries go out at once and, until they are answered 200, again and
again; an hour of Stripe's is ten seconds here. A draft becomes final an hour after its
`invoice.created` was answered, never before (docs.stripe.com/invoicing/integration/
workflow-transitions).
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from urllib.parse import urlsplit

from stripe import WebhookSignature

from bench.objects import DAY, Json, Query, invoice, item, line, subscription
from fakes.processes import WEBHOOK_SECRET

METER = "mtr_1"
HOUR_SECONDS = 10.0
# After a failure Stripe waits longer each time; how long is not published, nor how long it waits
# for an answer.
LONGEST_WAIT_SECONDS, ANSWER_SECONDS = 60.0, 20.0
OK_ANSWER = b" 200 "


def waits() -> Iterator[float]:
    """Yield how many seconds Stripe waits after each failure."""
    for failures in count():
        yield min(HOUR_SECONDS * 2**failures, LONGEST_WAIT_SECONDS)


@dataclass
class Renewals:
    """What became of each renewal; times in monotonic seconds, `boundary` in UTC seconds."""

    count: int = 0
    boundary: int = 0
    began: float = 0
    closed: dict[str, float] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    attempts: int = 0
    timed_out: int = 0
    task: "asyncio.Task[None] | None" = None

    def begin(self, query: Query) -> Json:
        """Let so many subscriptions renew now, and tell these services in turn of it."""
        asked = json.loads(query["body"])
        self.count, self.boundary, self.began = asked["count"], int(time.time()), time.monotonic()
        self.task = asyncio.create_task(self.tell(asked["services"]))
        return {}

    async def tell(self, services: list[str]) -> None:
        """Deliver two events of each subscription, all of them within the first second."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.count):
                for n, kind in enumerate(("customer.subscription.updated", "invoice.created")):
                    service = services[(2 * number + n) % len(services)]
                    tasks.create_task(self.deliver(f"sub_{number}", kind, service))
                await asyncio.sleep(self.began + number / self.count - time.monotonic())

    async def deliver(self, name: str, kind: str, service: str) -> None:
        """Deliver an event until it is answered 200."""
        body = json.dumps(self.event(name, kind))
        for wait in waits():
            self.attempts += 1
            if await self.post(service, body):
                break
            await asyncio.sleep(wait)
        self.answered.append(time.monotonic())
        if kind == "invoice.created":
            final = partial(self.make_final, name)
            asyncio.get_running_loop().call_later(HOUR_SECONDS, final)

    async def post(self, service: str, body: str) -> bool:
        """Say whether a delivery, signed anew, is answered 200 in time."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await post(service, body)
        except TimeoutError:
            self.timed_out += 1
            return False
        except (OSError, asyncio.IncompleteReadError):
            return False

    def make_final(self, name: str) -> None:
        """Let a draft become final."""
        self.final[name] = time.monotonic()

    def note_event(self, form: Query) -> None:
        """Note the first meter event of a period that ended."""
        if self.count and int(form["timestamp"]) < self.boundary:
            name = form["payload[stripe_customer_id]"].removeprefix("cus_")
            self.closed.setdefault(name, time.monotonic())

    def subscription(self, name: str) -> Json:
        """Return a subscription after its renewal."""
        found = subscription(name, meter=METER)
        for field_name in ("current_period_start", "current_period_end"):
            del found[field_name]
        start = self.boundary - 30 * DAY
        times = {"billing_cycle_anchor": start, "start_date": start}
        items = {"object": "list", "data": [self.item(name, self.boundary)], "has_more": False}
        return found | times | {"items": items}

    def item(self, name: str, start: int) -> Json:
        """Return a subscription's item in the period that begins at a UTC second."""
        period = {"current_period_start": start, "current_period_end": start + 30 * DAY}
        return item(0, name, METER) | period

    def invoice(self, name: str) -> Json:
        """Return a renewal's invoice as it is now."""
        status = "open" if name in self.final else "draft"
        lines = [line(f"il_{name}", f"si_{name}_0", self.boundary, "0")]
        return invoice(f"in_{name}", lines, self.boundary, name, status)

    def event(self, name: str, kind: str) -> Json:
        """Return one of a renewal's events, as it was at the renewal."""
        changed = {}
        carried = self.invoice(name)
        if kind != "invoice.created":
            before = {"data": [self.item(name, self.boundary - 30 * DAY)]}
            changed = {"previous_attributes": {"items": before, "latest_invoice": f"in_0{name}"}}
            carried = self.subscription(name)
        return {
            "id": f"evt_{name}_{kind.replace('.', '_')}",
            "object": "event",
            "created": self.boundary,
            "data": {"object": carried, **changed},
            "livemode": True,
            "type": kind,
        }

    def state(self, _: Query) -> Json:
        """Answer how far the renewals are, in seconds since they began."""
        late = sum(at < self.closed.get(name, at + 1) for name, at in self.final.items())
        return {
            "closed": len(self.closed),
            "last_closed": max(self.closed.values(), default=0) - self.began,
            "answered": len(self.answered),
            "last_answered": max(self.answered, default=0) - self.began,
            "attempts": self.attempts,
            "timed_out": self.timed_out,
            "final": len(self.final),
            "final_before_closed": late,
        }


async def post(service: str, body: str) -> bool:
    """Say whether a service answers a delivery with 200. Raises OSError."""
    url = urlsplit(service)
    signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Stripe-Signature: {signature}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write((head + body).encode())
        return OK_ANSWER in await reader.readline()
    finally:
        writer.close()
