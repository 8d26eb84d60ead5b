"""Random histories of usage, billing and faults: each metered unit is billed exactly once.

The service and both stand-ins run in this process, without sockets, on a clock that only the
histories move. `MODEL_HISTORIES` says how many there are. A reset in the very second in which
a period began is not among them (see docs/billing.md, Resets).
"""

import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from requests.adapters import HTTPAdapter
from stripe import WebhookSignature
from urllib3 import HTTPResponse

import app
from billing import events
from fakes import openmeter_api, stripe_api
from fakes.stripe_billing import Account, Record
from tests.conftest import ACACIA, DAY, ENDIVE, KEY, SECRET, START

# In parts, which can run at the same time; each has its own fixed seed.
PARTS = 4
HISTORIES = int(os.environ.get("MODEL_HISTORIES", "300"))
PHASES = [Phase.generate] if os.environ.get("MODEL_QUICK") else list(Phase)
HOLD = 72 * 3_600
HOUR = 3_600
DROPPED = 599  # a planned answer that stands for a connection which breaks instead
# An event that is older is read again; younger ones come in order here (docs/billing.md).
FRESH = events.FRESH_SECONDS


# How often each thing happened: a history in which nothing is billed shows nothing.
SEEN: Counter[str] = Counter()
EXPECTED = (
    "meter subscription_cycle",
    "meter subscription_update",
    "record subscription_cycle",
    "record subscription_update",
    "customer.subscription.updated 500",
    "invoice.created 500",
    "customer.subscription.deleted 200",
    "again",
)


class Clock:
    """The one clock of a history."""

    now = float(START)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Wire(HTTPAdapter):
    """Carry the service's calls to the stand-ins without a socket."""

    def __init__(self, hosts: dict[str, Flask]) -> None:
        super().__init__()
        self.clients = {host: application.test_client() for host, application in hosts.items()}

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **_: Any
    ) -> requests.Response:
        url = urlsplit(str(request.url))
        answer = self.clients[str(url.hostname)].open(
            f"{url.path}?{url.query}",
            method=str(request.method),
            headers=dict(request.headers),
            data=request.body,
        )
        if answer.status_code == DROPPED:
            raise requests.ConnectionError("dropped", request=request)
        body, headers = io.BytesIO(answer.data), dict(answer.headers)
        raw = HTTPResponse(body, headers, answer.status_code, preload_content=False)
        return self.build_response(request, raw)


class InTurn(Executor):
    """Run one thing after the other, so that a history has one order."""

    def submit(  # type: ignore[override]
        self, call: Callable[..., Any], *args: Any
    ) -> Future[Any]:
        """Run it now."""
        done: Future[Any] = Future()
        done.set_result(call(*args))
        return done


@contextmanager
def in_one_process(clock: Clock, wire: Wire) -> Iterator[None]:
    """Let the service and the stand-ins run on one clock and one wire."""

    def session(*_: object) -> requests.Session:
        made = requests.Session()
        made.mount("http://", wire)
        return made

    with ExitStack() as stack:
        stack.enter_context(mock.patch("time.time", side_effect=lambda: clock.now))
        stack.enter_context(mock.patch("time.sleep", clock.sleep))
        stack.enter_context(mock.patch("service.clients.http_session", session))
        stack.enter_context(mock.patch("service.clients.ThreadPoolExecutor", return_value=InTurn()))
        stack.enter_context(mock.patch("stripe.HTTPClient._sleep_time_seconds", return_value=0))
        yield


@dataclass
class Plan:
    """What a history knows of one subscription item."""

    customer: str
    kind: str
    by_meter: bool
    item: str = ""
    subscription: str = ""
    used: list[tuple[int, Decimal]] = field(default_factory=list)
    # The last total that was reported for a period, by the start that the report gives.
    reported: dict[str, Decimal] = field(default_factory=dict)

    def metered(self, start: int, end: int) -> Decimal:
        """Return the units used in [start, end)."""
        return sum((units for at, units in self.used if start <= at < end), Decimal(0))


class History(RuleBasedStateMachine):
    """One random history."""

    @initialize(
        version=st.sampled_from([ACACIA, ENDIVE]),
        last_by=st.sampled_from(["timestamp", "arrival"]),
        tie=st.sampled_from(["first", "last"]),
        boundary=st.sampled_from(["earlier", "later"]),
        begin=st.integers(0, 2 * HOUR),
    )
    def begin(self, version: str, begin: int, **readings: str) -> None:
        self.clock = Clock()
        self.clock.now += begin
        self.stripe_app, self.openmeter_app = stripe_api.create_app(), openmeter_api.create_app()
        wire = Wire({"stripe": self.stripe_app, "openmeter": self.openmeter_app})
        self.stack = ExitStack()
        self.stack.enter_context(in_one_process(self.clock, wire))
        self.api: stripe_api.Api = self.stripe_app.extensions["api"]
        self.account: Account = self.api.account
        self.account.meters.readings |= readings
        endpoint = {"url": "http://service", "secret": SECRET, "api_version": version, "hold": True}
        self.api.endpoint.configure(endpoint, ENDIVE)
        self.wire, self.delivered, self.booked, self.events = wire, set[str](), set[str](), 0
        self.plans: list[Plan] = []
        self.unsent: list[Record] = []
        self.quiet_until = 0
        self.restart()
        other = {"slug": "m2", "aggregation": "SUM", "eventType": "other"}
        wire.clients["openmeter"].post(
            "/api/v1/meters", json={**other, "valueProperty": "$.duration"}
        )
        meter = self.stripe(
            "POST",
            "billing/meters",
            display_name="m1",
            event_name="openmeter_m1",
            **{"default_aggregation[formula]": "last"},
        )
        product = self.stripe("POST", "products", name="Epsilon")["id"]
        metered = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
        form = {"product": product, "unit_amount": 10, **metered}
        record = self.stripe("POST", "prices", **form)["id"]
        backed = self.stripe("POST", "prices", **form, **{"recurring[meter]": meter["id"]})["id"]
        self.meter_id = meter["id"]
        for _ in range(2):
            self.subscribe(backed, record)
        self.check_invoices()

    def subscribe(self, backed: str, record: str) -> None:
        """Start a subscription with an item of each way on a customer of its own."""
        customer = self.stripe("POST", "customers")["id"]
        items = {"items[0][price]": backed, "items[1][price]": record}
        items |= {f"items[{n}][metadata][om_meter_id]": f"m{n + 1}" for n in (0, 1)}
        plans = [
            Plan(customer, "execution", by_meter=True),
            Plan(customer, "other", by_meter=False),
        ]
        for plan in plans:
            self.use(plan, 5)
        self.clock.now += 1
        made = self.stripe("POST", "subscriptions", customer=customer, **items)
        for plan, entry in zip(plans, made["items"]["data"], strict=True):
            plan.item, plan.subscription = entry["id"], made["id"]
        self.plans += plans

    def stripe(self, method: str, path: str, **form: Any) -> Any:
        """Call Stripe as its users do; their calls meet no faults."""
        client: FlaskClient = self.wire.clients["stripe"]
        headers = {"Authorization": f"Bearer {KEY}", "Stripe-Version": ACACIA}
        if "billing/" in path or "recurring[meter]" in form:
            headers["Stripe-Version"] = ENDIVE
        with mock.patch("fakes.serving.Faults._take", return_value=None):
            answer = client.open(f"/v1/{path}", method=method, headers=headers, data=form)
        assert answer.status_code == 200, answer.text
        return answer.json

    @rule()
    def restart(self) -> None:
        """Start the service anew; it keeps nothing."""
        config = {
            "STRIPE_KEY": KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": "http://stripe",
            "OPENMETER_URL": "http://openmeter",
        }
        self.client = app.create_app(config).test_client()

    def use_all(self) -> None:
        """Use all products now, each time by other amounts.

        Which of two reports within a second counts is unknown: here they say the same.
        """
        if self.clock.now < self.quiet_until:
            return
        for plan in self.plans:
            self.use(plan, self.events % 37 + 1)

    def use(self, plan: Plan, quarters: int) -> None:
        """Use a product now; only usage records are about whole units."""
        units = Decimal(quarters) / 4 if plan.by_meter else Decimal(quarters)
        now = int(self.clock.now)
        self.events += 1
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        event = {"id": str(self.events), "source": "model", "specversion": "1.0", "time": moment}
        event |= {"type": plan.kind, "subject": plan.customer}
        self.unsent.append({**event, "data": {"duration": float(units)}})
        plan.used.append((now, units))

    @rule(which=st.integers(0, 1), n=st.integers(0, 10**6))
    def update(self, which: int, n: int) -> None:
        """Change the metadata."""
        self.advance(1)
        if subscription := self.active(which):
            self.stripe("POST", f"subscriptions/{subscription}", **{"metadata[n]": str(n)})

    @rule(which=st.integers(0, 1), wait=st.integers(1, 3 * HOUR))
    def reset_later(self, which: int, wait: int) -> None:
        """Reset the billing cycle."""
        self.reset(which, wait)

    def reset(self, which: int, wait: int) -> None:
        """Reset the billing cycle, in a second in which no period began or was reported."""
        self.advance(wait)
        began = self.account.get("subscription", self.plans[2 * which].subscription)["start"]
        subscription = self.active(which)
        if subscription and began != int(self.clock.now):
            self.stripe("POST", f"subscriptions/{subscription}", billing_cycle_anchor="now")
            self.check_invoices()

    @rule(which=st.integers(0, 1), seconds=st.integers(20, 290))
    def reset_twice_before_the_end(self, which: int, seconds: int) -> None:
        """Reset shortly before a period ends, and again before it would have."""
        end = self.account.get("subscription", self.plans[2 * which].subscription)["end"]
        self.advance(max(0, int(end - seconds - self.clock.now)))
        self.reset(which, 1)
        self.deliver_all()
        self.reset(which, 10)

    @rule(which=st.integers(0, 1), wait=st.integers(1, 3 * HOUR), bill=st.booleans())
    def cancel(self, which: int, wait: int, bill: bool) -> None:
        """Cancel at once, with or without an invoice."""
        self.advance(wait)
        if subscription := self.active(which):
            form = {"invoice_now": "true"} if bill else {}
            self.stripe("DELETE", f"subscriptions/{subscription}", **form)
            self.check_invoices()

    @rule(which=st.integers(0, 1))
    def cancel_later(self, which: int) -> None:
        """Cancel at the period's end."""
        if subscription := self.active(which):
            self.stripe("POST", f"subscriptions/{subscription}", cancel_at_period_end="true")

    def send_usage(self) -> None:
        """Send OpenMeter what was used so far."""
        client = self.wire.clients["openmeter"]
        with mock.patch("fakes.serving.Faults._take", return_value=None):
            assert client.post("/api/v1/events", json=self.unsent).status_code == 204
        self.unsent.clear()

    def active(self, which: int) -> str | None:
        """Return a subscription's id if it runs."""
        subscription = self.plans[2 * which].subscription
        found = self.account.get("subscription", subscription)
        return subscription if found["status"] == "active" else None

    @rule(
        where=st.sampled_from(["stripe", "openmeter"]),
        skip=st.integers(0, 4),
        times=st.integers(1, 4),
        after=st.booleans(),
        status=st.sampled_from([503, 429, 409, DROPPED]),
    )
    def fail_later(self, where: str, **fault: Any) -> None:
        """Let some later calls fail, before or after they took effect."""
        self.wire.clients[where].post("/_fake/faults", json=fault)

    @rule()
    def mend(self) -> None:
        """Let calls succeed again."""
        for client in self.wire.clients.values():
            client.delete("/_fake/faults")

    @rule(data=st.data(), again=st.booleans())
    def deliver_one(self, data: st.DataObject, again: bool) -> None:
        """Deliver an event that waits, late and in any order, or one that was taken before."""
        waiting = [e["id"] for e in self.known() if (e["id"] in self.delivered) == again]
        if waiting:
            self.advance(FRESH + 1)
            self.deliver(self.api.endpoint.events[data.draw(st.sampled_from(waiting))])

    @rule()
    def deliver_all(self) -> None:
        """Deliver what waits, in order and at once."""
        for event in self.known():
            if event["id"] not in self.delivered:
                self.deliver(event)

    @rule(seconds=st.sampled_from([2, 600, HOUR, 5 * HOUR, 2 * DAY]))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.advance(seconds)

    @rule(which=st.integers(0, 1), offset=st.integers(0, 2 * HOUR), broken=st.booleans())
    def renew(self, which: int, offset: int, broken: bool) -> None:
        """Let time pass until after the end of a period, and use the product all around it."""
        end = self.account.get("subscription", self.plans[2 * which].subscription)["end"]
        for instant in (end - 2 * HOUR, end - end % HOUR - 1, end - end % HOUR, end - 1, end):
            self.advance(max(0, int(instant - self.clock.now)))
        self.advance(max(0, int(end + offset - self.clock.now)))
        if broken:
            self.fail_later("openmeter", skip=0, times=4, after=False, status=503)
            self.deliver_all()
            self.mend()

    # How it works

    def known(self) -> list[Record]:
        """Return all events so far, oldest first."""
        return list(self.api.endpoint.events.values())

    def advance(self, seconds: int) -> None:
        """Let time pass; no draft is held for longer than Stripe holds one."""
        target = self.clock.now + seconds
        self.use_all()
        while self.clock.now < target:
            self.clock.now = min(target, self.clock.now + DAY)
            self.account.catch_up()
            self.check_invoices()
            for event in self.known():
                late = event["created"] + HOLD - 2 * DAY < self.clock.now
                if late and event["type"] == "invoice.created":
                    self.deliver_surely(event)
        self.use_all()

    def deliver_surely(self, event: Record) -> None:
        """Deliver an event that must not wait any longer."""
        if event["id"] not in self.delivered:
            self.mend()
            self.deliver(event)
            assert event["id"] in self.delivered

    def deliver(self, event: Record) -> None:
        """Deliver an event and note what the answer says was reported."""
        self.send_usage()
        body = json.dumps(event)
        header = WebhookSignature.generate_signature_header(body, SECRET, int(self.clock.now))
        answer = self.client.post("/webhook", data=body, headers={"Stripe-Signature": header})
        assert answer.status_code in (200, 500), answer.text
        SEEN[f"{event['type']} {answer.status_code}"] += 1
        SEEN["again"] += event["id"] in self.delivered
        if answer.status_code == 200:
            self.delivered.add(event["id"])
            self.api.accepted(event)
        for entry in answer.get_json().get("reported", []):
            plan = next(p for p in self.plans if p.item == entry["item"])
            assert entry["stripe_customer"] == plan.customer
            plan.reported[entry["from"]] = Decimal(entry["quantity"])
        self.quiet_until = int(self.clock.now) + 2

    def boundary(self, plan: Plan, instant: int) -> int:
        """Return where a period begins or ends: at full hours, but at resets as they are."""
        subscription, by_meter = plan.subscription, plan.by_meter
        state = self.account.get("subscription", subscription)
        exact = {state["ended_at"], state["start_date"] if by_meter else None}
        exact |= {
            invoice["period_end"]
            for invoice in self.account.all("invoice")
            if invoice["subscription"] == subscription
            and invoice["billing_reason"] == "subscription_update"
        }
        return instant if instant in exact else instant - instant % HOUR

    def check_invoices(self) -> None:
        """Check each invoice once, when it is final."""
        for invoice in self.account.all("invoice"):
            if invoice["status"] == "draft" or invoice["id"] in self.booked:
                continue
            self.booked.add(invoice["id"])
            if invoice["billing_reason"] != "subscription_create":
                for line in invoice["lines"]:
                    self.check_line(invoice, line)

    def check_line(self, invoice: Record, line: Record) -> None:
        """Check that a line has what was metered, or at least what was reported of it."""
        plan = next(p for p in self.plans if p.item == line["item"])
        assert plan.customer == invoice["customer"]
        start = self.boundary(plan, line["start"])
        used = plan.metered(start, self.boundary(plan, line["end"]))
        if line["quantity"]:
            way = "meter" if plan.by_meter else "record"
            SEEN[f"{way} {invoice['billing_reason']}"] += 1
        said = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(start))
        if plan.by_meter and invoice["billing_reason"] == "subscription_cycle":
            assert line["quantity"] == used
        else:
            assert plan.reported.get(said, 0) <= line["quantity"] <= used

    def teardown(self) -> None:
        """Deliver the rest, let all drafts become final, and check what is running."""
        if not hasattr(self, "stack"):
            return
        try:
            self.settle()
        finally:
            self.stack.close()

    def settle(self) -> None:
        """Deliver all, report once more, and check the running periods."""
        self.mend()
        self.deliver_all()
        self.advance(2 * HOUR)
        while any(invoice["status"] == "draft" for invoice in self.account.all("invoice")):
            self.deliver_all()
            self.advance(2 * HOUR)
        for which in (0, 1):
            self.update(which, -1)
        self.deliver_all()
        assert all(event["id"] in self.delivered for event in self.known())
        for plan in self.plans:
            state = self.account.get("subscription", plan.subscription)
            if state["status"] == "active":
                start, end = (self.boundary(plan, state[name]) for name in ("start", "end"))
                assert self.running(plan, state) == plan.metered(start, end)

    def running(self, plan: Plan, state: Record) -> Decimal:
        """Return what Stripe holds for an item's running period."""
        if not plan.by_meter:
            return Decimal(self.account.usage(plan.item, state["start"], state["end"]))
        meters = self.account.meters
        return meters.usage(self.meter_id, plan.customer, state["start"], state["end"])


@pytest.mark.parametrize("part", range(PARTS))
def test_each_metered_unit_is_billed_exactly_once(part: int) -> None:
    SEEN.clear()
    run_state_machine_as_test(
        seed(part)(type("History", (History,), {})),
        settings=settings(
            max_examples=HISTORIES // PARTS,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
    assert all(SEEN[event] >= HISTORIES / PARTS / 20 for event in EXPECTED), SEEN
