"""Deliver signed updates, over one connection or many, and see that each is reported."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

from stripe import WebhookSignature

from bench.objects import name_of, subscription
from fakes.processes import WEBHOOK_SECRET, Failed

WARM_UP = 5


def connection(url: str) -> HTTPConnection:
    """Return a connection that is kept alive."""
    return HTTPConnection(urlsplit(url).netloc, timeout=60)


def exchange(
    http: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Make a request and return the answer's JSON. Raises Failed unless it is a 200."""
    http.request(method, path, body, headers or {})
    answer = http.getresponse()
    text = answer.read()
    if answer.status != HTTPStatus.OK:
        raise Failed(f"{method} {path} answered {answer.status}: {text.decode()}")
    return json.loads(text)


def signed(name: str, number: int, items: int, meter: str | None) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an update's delivery."""
    event = {
        "id": f"evt_{name}_{number}",
        "object": "event",
        "created": int(time.time()),
        "data": {
            "object": subscription(name, items, meter),
            "previous_attributes": {"metadata": {"plan": None}},
        },
        "type": "customer.subscription.updated",
    }
    body = json.dumps(event)
    signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    return body.encode(), {"Content-Type": "application/json", "Stripe-Signature": signature}


def deliver(
    http: HTTPConnection, name: str, number: int, items: int = 1, meter: str | None = None
) -> float:
    """Deliver an event; return the seconds until its answer, which has to report all items."""
    body, headers = signed(name, number, items, meter)
    began = time.perf_counter()
    outcome = exchange(http, "POST", "/webhook", body, headers)
    seconds = time.perf_counter() - began
    if len(outcome["reported"]) != items:
        raise Failed(f"not all of {items} items are reported: {outcome}")
    return seconds


def one_after_the_other(
    service: str, count: int, items: int = 1, meter: str | None = None
) -> list[float]:
    """Deliver so many over one connection; return the seconds that each answer took."""
    with closing(connection(service)) as http:
        name = name_of(items)
        taken = [deliver(http, name, n, items, meter) for n in range(count + WARM_UP)]
    return taken[WARM_UP:]


def rate(service: str, count: int, connections: int) -> float:
    """Deliver so many over some connections at the same time; return how many a second."""

    def over_one(number: int) -> None:
        with closing(connection(service)) as http:
            for n in range(count // connections):
                deliver(http, f"sub_{number}", n)

    with ThreadPoolExecutor(connections) as threads:
        began = time.perf_counter()
        list(threads.map(over_one, range(connections)))
        return count // connections * connections / (time.perf_counter() - began)
