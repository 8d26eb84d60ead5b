"""Deliver a burst's events as Stripe does: at once and, until they are answered 200, again.

How long Stripe waits for an answer is not published, nor how its waits grow from the first hour
to three days. An hour is ten seconds here.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import urlsplit

from stripe import WebhookSignature

from bench.renewals import CREATED, HOUR_SECONDS, UPDATED, Renewals
from fakes.processes import WEBHOOK_SECRET

LONGEST_WAIT_SECONDS, ANSWER_SECONDS = 60.0, 20.0
OK_ANSWER = b" 200 "


def waits() -> Iterator[float]:
    """Yield how many seconds Stripe waits after each failure."""
    for failures in count():
        yield min(HOUR_SECONDS * 2**failures, LONGEST_WAIT_SECONDS)


@dataclass
class Sender:
    """What became of the deliveries; `answered` has the monotonic seconds."""

    stripe: str
    services: list[str]
    renewals: Renewals
    answered: list[float] = field(default_factory=list)
    attempts: int = 0
    timed_out: int = 0

    async def send(self, subscriptions: int) -> None:
        """Deliver two events of each subscription in a second; return once all are answered."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(subscriptions):
                for n, kind in enumerate((UPDATED, CREATED)):
                    service = self.services[(number + n) % len(self.services)]
                    tasks.create_task(self.deliver(f"sub_{number}", kind, service))
                await asyncio.sleep(began + number / subscriptions - time.monotonic())

    async def deliver(self, name: str, kind: str, service: str) -> None:
        """Deliver an event until it is answered 200, and tell Stripe of it."""
        body = json.dumps(self.renewals.event(name, kind))
        for wait in waits():
            self.attempts += 1
            if await self.is_answered(service, body):
                break
            await asyncio.sleep(wait)
        self.answered.append(time.monotonic())
        if kind == CREATED:
            told = json.dumps({"subscription": name})
            await post(f"{self.stripe}/_bench/renewals/answers", told)

    async def is_answered(self, service: str, body: str) -> bool:
        """Say whether a delivery, signed anew, is answered 200 in time."""
        signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
        headers = f"Stripe-Signature: {signature}\r\n"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await post(f"{service}/webhook", body, headers)
        except TimeoutError:
            self.timed_out += 1
        except OSError:
            pass
        return False


async def post(address: str, body: str, headers: str = "") -> bool:
    """Say whether a request, over a connection of its own, is answered 200. Raises OSError."""
    url = urlsplit(address)
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write((head + body).encode())
        return OK_ANSWER in await reader.readline()
    finally:
        writer.close()
