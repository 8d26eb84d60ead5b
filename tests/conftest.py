"""Both stand-ins on loopback, the service in front of them, and signed events."""

import itertools
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from stripe import WebhookSignature
from werkzeug.datastructures import Headers
from werkzeug.serving import BaseWSGIServer, make_server

import app
from fakes import openmeter_api, stripe_api
from fakes.counting import make_meter, send_counted
from fakes.openmeter_store import DEFAULT_METER
from fakes.processes import STRIPE_KEY, WEBHOOK_SECRET, Process, call
from fakes.serving import QuietHandler
from service import settings, transport

KEY, SECRET, TOKEN = "sk_test_7Kq2", "whsec_9Zr4", "om_token_3Xw8"
SECRETS = (KEY, SECRET, TOKEN, STRIPE_KEY, WEBHOOK_SECRET)
# See `make real-openmeter`.
REAL_OPENMETER = os.environ.get("REAL_OPENMETER", "").rstrip("/")
ACACIA, ENDIVE = "2025-02-24.acacia", "2026-10-28.endive"
# Wed Jun 07 2023 14:20:30 UTC: nothing of the minute, the hour or the day is round.
START, END = 1_686_147_630, 1_688_739_630
DAY = 86_400


HOSTS = ["127.0.0.1", "::1", "localhost", urlsplit(REAL_OPENMETER).hostname]


def pytest_configure(config: pytest.Config) -> None:
    config.option.allow_hosts = ",".join(filter(None, HOSTS))


@pytest.fixture(autouse=True)
def scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*settings.SETTINGS, "FLASK_APP", "GUNICORN_CMD_ARGS"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold libcurl, too, to the hosts that pytest-socket lets Python call."""
    send = transport.Connections.send

    def sent(
        connections: transport.Connections, request: transport.Request, *bounds: Any
    ) -> transport.Answer:
        host = urlsplit(connections.proxy or request.url).hostname
        assert host in HOSTS, f"a test calls {host}"
        return send(connections, request, *bounds)

    monkeypatch.setattr(transport.Connections, "send", sent)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children take Ctrl-C, though a shell's background jobs, as these tests can be, do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def assert_no_secret(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text, f"a secret is seen: {text[:2_000]}"


@pytest.fixture(autouse=True)
def no_secret_is_seen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Search all that is logged, answered or printed in any test, tracebacks included."""
    stop, opened = Process.stop, Service.open

    def stop_searched(process: Process) -> None:
        printed = "" if process.output.closed else process.printed()
        stop(process)
        assert_no_secret(printed)

    def open_searched(service: Service, method: str, path: str, **options: Any) -> Answer:
        answer = opened(service, method, path, **options)
        assert_no_secret(f"{answer.headers}{answer.text}")
        return answer

    monkeypatch.setattr(Process, "stop", stop_searched)
    monkeypatch.setattr(Service, "open", open_searched)
    yield
    assert_no_secret(caplog.text)


def serve(application: Flask) -> BaseWSGIServer:
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=QuietHandler)
    server.daemon_threads = True  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def free_port() -> str:
    """Return a port that nobody listens on, of those that the system gives to nobody unasked."""
    for port in random.sample(range(15_000, 30_000), 100):
        with socket.socket() as unused, suppress(OSError):
            unused.bind(("127.0.0.1", port))
            return str(port)
    raise AssertionError("no port is free")


@dataclass
class StandIn:
    """A stand-in under a URL."""

    url: str

    def fake(self, method: str, path: str, body: Any = None) -> Any:
        return call(method, f"{self.url}/_fake/{path}", body)

    def fault(self, **fault: Any) -> None:
        self.fake("POST", "faults", fault)

    def requests(self) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = self.fake("GET", "requests")["requests"]
        return seen


@dataclass
class Stripe(StandIn):
    """Stripe's stand-in, with a customer on a test clock at START."""

    ids: dict[str, str] = field(default_factory=dict)
    account: Any = None

    def call(self, method: str, path: str, version: str = ACACIA, **form: Any) -> Any:
        headers = {"Authorization": f"Bearer {KEY}", "Stripe-Version": version}
        body = urlencode(form)
        if method == "GET":
            return call(method, f"{self.url}/v1/{path}?{body}", None, headers)
        return call(method, f"{self.url}/v1/{path}", body.encode(), headers)

    def seed(self, *items: dict[str, str], **form: Any) -> str:
        """Create a subscription at START and let a day pass; return its id."""
        if self.account is None:  # in a process of its own; see `stripe_fake`
            self.fake("POST", "lists", {"test_clocks": True})
        clock = self.call("POST", "test_helpers/test_clocks", frozen_time=START)
        customer = self.call("POST", "customers", test_clock=clock["id"])
        product = self.call("POST", "products", name="Epsilon")
        metered = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
        price = self.call("POST", "prices", product=product["id"], unit_amount=10, **metered)
        for n, item in enumerate(items or [{"metadata[om_meter_id]": "m1"}]):
            form[f"items[{n}][price]"] = price["id"]
            for name, value in item.items():
                form[f"items[{n}]" + (name if name[0] == "[" else self.bracketed(name))] = value
        subscription = self.call("POST", "subscriptions", customer=customer["id"], **form)
        self.ids = {
            "clock": clock["id"],
            "customer": customer["id"],
            "price": price["id"],
            "product": product["id"],
            "subscription": subscription["id"],
        }
        self.advance(START + DAY)
        return str(subscription["id"])

    def metered_price(self, slug: str = "m1", formula: str = "last") -> str:
        """Create a Billing Meter and a price that it backs; return the price's id."""
        meter = self.call(
            "POST",
            "billing/meters",
            ENDIVE,
            display_name=slug,
            event_name=f"openmeter_{slug}",
            **{"default_aggregation[formula]": formula},
        )
        product = self.call("POST", "products", name="Epsilon")
        recurring = {
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": meter["id"],
        }
        form = {"product": product["id"], "unit_amount": 10, "currency": "usd"}
        return str(self.call("POST", "prices", ENDIVE, **form, **recurring)["id"])

    def collect_events(self, version: str) -> None:
        """Keep events back, for the test to deliver."""
        endpoint = {"url": "http://127.0.0.1:9", "secret": SECRET, "api_version": version}
        self.fake("POST", "webhook", {**endpoint, "hold": True})

    def events(self) -> list[dict[str, Any]]:
        """Return the events so far, oldest first."""
        found: list[dict[str, Any]] = self.fake("GET", "events")["events"]
        return found

    def update(self, **form: str) -> None:
        """Update the subscription."""
        self.call("POST", f"subscriptions/{self.ids['subscription']}", **form)

    def invoiced(self) -> list[tuple[str, list[int]]]:
        """Return status and quantities of each renewal's or reset's invoice, oldest first."""
        found = self.call("GET", "invoices", limit=100)["data"][::-1]
        return [
            (invoice["status"], [line["quantity"] for line in invoice["lines"]["data"]])
            for invoice in found
            if invoice["billing_reason"] != "subscription_create"
        ]

    @staticmethod
    def bracketed(name: str) -> str:
        """Return `metadata[a]` as `[metadata][a]`."""
        first, *rest = name.split("[", 1)
        return f"[{first}]" + "".join(f"[{step}" for step in rest)

    def advance(self, seconds: int) -> None:
        path = f"test_helpers/test_clocks/{self.ids['clock']}/advance"
        self.call("POST", path, frozen_time=seconds)

    def subscription(self, version: str = ACACIA) -> dict[str, Any]:
        found: dict[str, Any] = self.call(
            "GET", f"subscriptions/{self.ids['subscription']}", version
        )
        return found

    def items(self) -> list[str]:
        listed = self.call(
            "GET", "subscription_items", subscription=self.ids["subscription"], limit=100
        )
        return [item["id"] for item in listed["data"]]

    def usage(self, item: str | None = None) -> list[int]:
        """Return the usage of each period, the running one first."""
        path = f"subscription_items/{item or self.items()[0]}/usage_record_summaries"
        return [entry["total_usage"] for entry in self.call("GET", path)["data"]]


@dataclass
class OpenMeter(StandIn):
    """OpenMeter's stand-in, or a real one that somebody has running."""

    count: int = 0
    is_real: bool = False

    def fake(self, method: str, path: str, body: Any = None) -> Any:
        if self.is_real:
            pytest.skip("only OpenMeter's stand-in does this when it is told to")
        return super().fake(method, path, body)

    def meter(self, slug: str, aggregation: str = "SUM") -> None:
        fields = {"aggregation": aggregation, "eventType": slug}
        if aggregation != "COUNT":
            fields["valueProperty"] = "$.duration"
        make_meter(self.url, {"slug": slug, **fields})

    def customer(self, *subjects: str, **fields: str) -> str:
        """Create a customer that owns some subjects; return its ULID."""
        body = {"name": "Epsilon", "usageAttribution": {"subjectKeys": subjects}, **fields}
        token = {"Authorization": f"Bearer {TOKEN}"}
        return str(call("POST", f"{self.url}/api/v1/customers", body, token)["id"])

    def use(
        self,
        subject: str,
        *values: Any,
        time: str = "2023-06-08T00:00:00Z",
        kind: str = "execution",
    ) -> None:
        events = []
        for value in values:
            self.count += 1
            name = f"{subject} {self.count}"
            event = {"id": name, "source": "test", "specversion": "1.0", "type": kind}
            events.append({**event, "subject": subject, "time": time, "data": {"duration": value}})
        token = {"Authorization": f"Bearer {TOKEN}"}
        if self.is_real:
            send_counted(self.url, events, token)
        else:
            call("POST", f"{self.url}/api/v1/events", events, token)


@pytest.fixture
def stripe_fake() -> Iterator[Stripe]:
    application = stripe_api.create_app()
    server = serve(application)
    account = application.extensions["api"].account
    # The tests' subscriptions live on test clocks, which `flask report` would not list.
    account.lists_test_clocks = True
    if REAL_OPENMETER:  # which remembers the customers of all tests
        account.numbers = itertools.count(random.getrandbits(40))
    yield Stripe(f"http://127.0.0.1:{server.server_port}", account=account)
    server.shutdown()
    server.server_close()


@pytest.fixture
def openmeter_fake() -> Iterator[OpenMeter]:
    if REAL_OPENMETER:
        make_meter(REAL_OPENMETER, DEFAULT_METER)
        yield OpenMeter(REAL_OPENMETER, is_real=True)
        return
    server = serve(openmeter_api.create_app())
    yield OpenMeter(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Answer:
    """The service's answer."""

    status_code: int
    text: str
    headers: Headers

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Service:
    """The service behind Flask's test client, and the stand-ins behind it."""

    client: FlaskClient
    stripe: Stripe
    openmeter: OpenMeter

    def post(self, body: bytes | str, signature: str | None = None) -> Answer:
        """Post a body, signed now unless a signature is given (empty: none at all)."""
        if signature is None:
            text = body if isinstance(body, str) else body.decode()
            signature = WebhookSignature.generate_signature_header(text, SECRET)
        headers = {"Stripe-Signature": signature} if signature else {}
        return self.open("POST", "/webhook", data=body, headers=headers)

    def open(self, method: str, path: str, **options: Any) -> Answer:
        """Make a request."""
        answer = self.client.open(path, method=method, **options)
        return Answer(answer.status_code, answer.text, answer.headers)

    def deliver(self, subscription: dict[str, Any]) -> Answer:
        """Post the event of a subscription's update."""
        return self.post(json.dumps(updated(subscription)))

    def called(self) -> list[dict[str, Any]]:
        """Return the calls that reached either service."""
        return self.openmeter.requests() + self.stripe.requests()

    def forget(self) -> None:
        """Forget the calls so far."""
        self.openmeter.fake("DELETE", "requests")
        self.stripe.fake("DELETE", "requests")


def updated(subscription: dict[str, Any]) -> dict[str, Any]:
    """Return the event of a subscription's update, made just now.

    It says nothing of a test clock: the service takes such a subscription as the event has it.
    """
    return {
        "id": "evt_1",
        "object": "event",
        "created": int(time.time()),
        "type": "customer.subscription.updated",
        "data": {
            "object": {**subscription, "test_clock": None},
            "previous_attributes": {"metadata": {"plan": None}},
        },
    }


@pytest.fixture
def config(stripe_fake: Stripe, openmeter_fake: OpenMeter) -> dict[str, object]:
    return {
        "STRIPE_KEY": KEY,
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "STRIPE_API_BASE": stripe_fake.url,
        "STRIPE_RATE_SHARE": "0",
        "OPENMETER_URL": openmeter_fake.url,
        "OPENMETER_TOKEN": TOKEN,
    }


@pytest.fixture
def start(
    config: dict[str, object], stripe_fake: Stripe, openmeter_fake: OpenMeter
) -> Callable[..., Service]:
    """Start the service with some settings changed."""

    def started(**changes: object) -> Service:
        application = app.create_app({**config, **changes})
        # As if Stripe had answered before: else an event is not known to be fresh.
        clock = application.extensions["services"].stripe.clock
        clock.hear({"Date": formatdate(usegmt=True)}, time.monotonic())
        client = application.test_client()
        return Service(client, stripe_fake, openmeter_fake)

    return started


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    """Return a service with one metered item, 10 units of usage, and no calls noted so far."""
    running = start()
    running.stripe.seed()
    running.openmeter.use(running.stripe.ids["customer"], 4, 3, 2, 1)
    running.forget()
    return running
