"""Several processes of the service on hosts whose clocks are wrong, and what went over the wire.

The stand-ins have the right time, which is the model's. Each call pauses three times: on its way,
where the model may let it fail, and on its way back. What OpenMeter said in a query and what was
then written from the same thread belong together: a `Report`. What it said in a query for several
subjects belongs to whatever their process then writes of them.
"""

import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import formatdate
from functools import partial
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import requests
from flask import Flask

import app
from billing.reports import Services
from service.transport import Answer, Connections, Request
from tests.conftest import KEY, SECRET, START
from tests.stories.model_schedule import (
    Scheduler,
    Task,
    TurnCondition,
    TurnLock,
    TurnPool,
    TurnSemaphore,
    turn_wait,
)
from tests.stories.model_world import answered

# The longest that a request takes until the service gives it up (service/transport.py).
LONGEST_CALL = 9
FAULTS = ("lost", "unanswered", "busy", "broken")
# OpenMeter's meter of what a Billing Meter's events count.
COUNTED = {"ma": "m1", "md": "m2"}


class Query(NamedTuple):
    """A total that OpenMeter told, and when (the model's second)."""

    at: float
    since: int
    until: int
    value: Decimal


@dataclass(frozen=True)
class Report:
    """A total as it was asked for, and the second at which Stripe took it.

    `where` is the customer and the name of the meter's events, or the item of a usage record;
    `second` is the one that the report carries.
    """

    where: tuple[str, ...]
    query: Query
    value: Decimal
    second: int
    at: float
    host: "Host"


@dataclass(eq=False)
class Host:
    """A process of the service; its clock is `off` seconds ahead."""

    name: str
    off: float
    application: Flask = field(init=False)

    def begin(self, window_size: str) -> None:
        """Start the process anew; it keeps nothing."""
        config = {
            "STRIPE_KEY": KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": "http://stripe",
            "STRIPE_RATE_SHARE": "0",
            "OPENMETER_URL": "http://openmeter",
            "OPENMETER_WINDOW_SIZE": window_size,
        }
        self.application = app.create_app(config)

    @property
    def services(self) -> Services:
        """Return what it reports with."""
        found: Services = self.application.extensions["services"]
        return found


@dataclass
class World:
    """The model's time, the tasks in it and the wire between them and the stand-ins."""

    stripe: Flask
    openmeter: Flask
    now: float = float(START)
    reports: list[Report] = field(default_factory=list)
    queries: dict[Task, Query] = field(default_factory=dict)
    # By process, meter and subject; and how many queries were for several subjects.
    shared: dict[tuple[Host, str, str], list[Query]] = field(
        default_factory=lambda: defaultdict(list)
    )
    batches: int = 0
    serving: bool = False
    # Until then Stripe refuses what is written, to be sent again.
    busy_until: float = 0

    def __post_init__(self) -> None:
        self.account = self.stripe.extensions["api"].account
        self.scheduler = Scheduler(lambda: self.now, self.move_to)
        self.clients = {
            "stripe": self.stripe.test_client(),
            "openmeter": self.openmeter.test_client(),
        }

    # Time

    def move_to(self, second: float) -> None:
        """Let time pass, and what is due in Stripe happen in its second."""
        while self.now < second:
            dues = [
                float(found["due"]) for found in self.account.all("subscription") if "due" in found
            ]
            self.now = min([second, *(due for due in dues if due > self.now)])
            self.account.catch_up()

    def host_time(self) -> float:
        """Return the time as the clock shows it of whose turn it is."""
        task = None if self.serving else self.scheduler.current
        return self.now + (task.host.off if task and task.host else 0)

    def monotonic(self) -> float:
        """Return seconds of which only differences say anything."""
        return self.now - START

    def sleep(self, seconds: float) -> None:
        """Sleep, unless a stand-in does."""
        if not self.serving:
            self.scheduler.sleep(seconds)

    # The wire

    def send(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        """Carry a call to a stand-in and its answer back, which takes time.

        Raises ConnectionError or ReadTimeout.
        """
        scheduler, began = self.scheduler, self.now
        call = f"{request.method} {urlsplit(request.url).path}"
        scheduler.pause()
        fault = ""
        if scheduler.chance.takes(scheduler.chance.fault):
            fault = scheduler.chance.random.choice(FAULTS)
            scheduler.note(f"{call} is {fault}")
        if fault == "lost":
            raise requests.ConnectionError("lost")
        if fault == "busy":
            self.busy_until = self.now + scheduler.chance.random.choice([0, 1, 20, 70])
        if fault == "busy" or (request.method == "POST" and self.now < self.busy_until):
            return 409, b"{}", self.date()
        if fault == "broken":
            return 503, b"{}", self.date()
        answer = self.serve(request)
        scheduler.pause()
        if fault == "unanswered":
            raise requests.ConnectionError("unanswered")
        if self.now - began > LONGEST_CALL:
            scheduler.note(f"{call} took too long")
            raise requests.ReadTimeout("took too long")
        return answer

    def date(self) -> dict[str, str]:
        """Return the header that tells the time."""
        return {"Date": formatdate(self.now, usegmt=True)}

    def serve(self, request: Request) -> tuple[int, bytes, dict[str, str]]:
        """Let a stand-in answer a call, in no time and alone."""
        url = urlsplit(request.url)
        self.serving = True
        try:
            answer = self.clients[str(url.hostname)].open(
                f"{url.path}?{url.query}",
                method=request.method,
                headers=dict(request.headers),
                data=request.body,
            )
        finally:
            self.serving = False
        headers = self.date() | dict(answer.headers)
        self.observe(request, answer.status_code, headers, answer.get_json(silent=True))
        return answer.status_code, answer.data, headers

    def observe(self, request: Request, status: int, headers: dict[str, str], said: Any) -> None:
        """Note what was asked and written."""
        url, task = urlsplit(request.url), self.scheduler.current
        self.scheduler.note(f"{request.method} {url.path} {url.query} {status}")
        assert task
        if status >= 400 or "Idempotent-Replayed" in headers:
            return
        asked = parse_qs(url.query)
        if url.path.endswith("/query") and request.method == "POST":
            self.note_batch(task, url.path.split("/")[-2], request.body, said)
        if url.path.endswith("/query") and "subject" in asked:
            value = sum((Decimal(str(row["value"])) for row in said["data"]), Decimal(0))
            since, until = (second_of(asked[name][0]) for name in ("from", "to"))
            self.queries[task] = Query(self.now, since, until, value)
            self.scheduler.note(f"  [{since}, {until}): {value}")
        form = {name: found[0] for name, found in parse_qs(str(request.body or "")).items()}
        if url.path == "/v1/billing/meter_events":
            who, name = form["payload[stripe_customer_id]"], form["event_name"]
            self.note_report(task, (who, name), form["payload[value]"], form["timestamp"])
        if url.path.endswith("/usage_records"):
            item = url.path.split("/")[-2]
            self.note_report(task, (item,), form["quantity"], form["timestamp"])

    def note_batch(self, task: Task, meter: str, body: Any, said: Any) -> None:
        """Note what was asked for several subjects: a total for each, or none."""
        asked = json.loads(body)
        since, until = (second_of(asked[name]) for name in ("from", "to"))
        values = {row["subject"]: Decimal(str(row["value"])) for row in said["data"]}
        for subject in asked["subject"]:
            query = Query(self.now, since, until, values.get(subject, Decimal(0)))
            self.shared[task.host, meter, subject].append(query)
            self.scheduler.note(f"  [{since}, {until}) of {subject}: {query.value}")
        self.batches += len(asked["subject"]) > 1

    def counted(self, where: tuple[str, ...]) -> tuple[str, str]:
        """Return the meter and the subject whose usage a report is about."""
        if len(where) > 1:
            return COUNTED[where[1]], where[0]
        item = self.account.get("subscription_item", where[0])
        subscription = self.account.get("subscription", item["subscription"])
        return item["metadata"]["om_meter_id"], subscription["customer"]

    def known(self, task: Task, where: tuple[str, ...], value: str, second: str) -> Query:
        """Return the query that a report rests on: the last one that told its total.

        It is about the latest time that begins before the report's second.
        """
        own = [self.queries[task]] if task in self.queries else []
        asked = [*own, *self.shared[task.host, *self.counted(where)]]
        since = max(query.since for query in asked if query.since <= int(second))
        told = [query for query in asked if query.since == since and query.value == Decimal(value)]
        assert told, ("another total was written", asked[-3:], value)
        return max(told, key=lambda query: query.at)

    def note_report(self, task: Task, where: tuple[str, ...], value: str, second: str) -> None:
        """Note what was written, with the knowledge that it rests on."""
        query = self.known(task, where, value, second)
        self.scheduler.note(f"  {' '.join(where)}: {value} at {second}, known at {query.at:.3f}")
        self.reports.append(Report(where, query, Decimal(value), int(second), self.now, task.host))


def second_of(text: str) -> int:
    """Return the UTC second of a time as queries have it."""
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


class Wire(Connections):
    """Carry a process's calls over the world's wire."""

    def __init__(self, world: World) -> None:
        super().__init__("http://stripe")
        self.world = world

    def send(self, request: Request, *_: object) -> Answer:
        status, body, headers = self.world.send(request)
        return answered(status, headers, body)


@contextmanager
def in_this_world(world: World) -> Iterator[None]:
    """Let processes run in tasks: on their hosts' clocks, and on the world's wire."""
    scheduler = world.scheduler
    pool, wait = partial(TurnPool, scheduler), partial(turn_wait, scheduler)
    patches: dict[str, object] = {
        "time.time": world.host_time,
        "time.monotonic": world.monotonic,
        "time.sleep": world.sleep,
        "service.clients.Connections": lambda *_: Wire(world),
        "service.clients.ThreadPoolExecutor": pool,
        "billing.reports.wait": wait,
        "billing.listing.ThreadPoolExecutor": pool,
        "billing.runs.ThreadPoolExecutor": pool,
        "billing.runs.BoundedSemaphore": partial(TurnSemaphore, scheduler),
        "billing.runs.wait": wait,
    }
    # Wherever the service makes such.
    for kind, ours in ("Lock", TurnLock), ("Condition", TurnCondition):
        for name, module in list(sys.modules.items()):
            known = getattr(module, kind, None)
            if name.startswith("billing.") and known is getattr(threading, kind):
                patches[f"{name}.{kind}"] = partial(ours, scheduler)
    with ExitStack() as stack:
        for name, other in patches.items():
            stack.enter_context(mock.patch(name, other))
        yield
