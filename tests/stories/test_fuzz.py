"""Hostile deliveries: no 5xx, nobody is called for a forged one, and what varies in a call is data.

The service runs in this process, and its calls are answered well and at once. `FUZZ_REQUESTS` says
how many random deliveries there are.
"""

import gc
import io
import json
import logging
import os
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl

import pytest
from flask import Flask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pytest_mock import MockerFixture
from werkzeug.test import create_environ
from werkzeug.wrappers import Response

import app
from fakes.stripe_webhooks import signature
from service.transport import Answer, Connections, Request
from tests.conftest import ACACIA, END, ENDIVE, KEY, SECRET, TOKEN, Stripe, assert_no_secret
from tests.stories.model_world import answered

# In parts, which can run at the same time, of rounds with a fixed seed each, of examples of ten.
PARTS, ROUNDS, TOGETHER = 10, 20, 10
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "20000"))
EXAMPLES = -(-REQUESTS // (PARTS * ROUNDS * TOGETHER))
MEBIBYTE = 1024 * 1024
MAX_KEPT_BYTES = 128 * 1024
OLD_SECRET = "whsec_old5"
CONFIG = {
    "STRIPE_KEY": KEY,
    "STRIPE_WEBHOOK_SECRET": f"{SECRET},{OLD_SECRET}",
    "STRIPE_API_BASE": "http://stripe",
    "STRIPE_RATE_SHARE": "0",
    "OPENMETER_URL": "http://openmeter",
    "OPENMETER_TOKEN": TOKEN,
}
# The failures that are no outage: a person, or another event, has to mend them.
NO_OUTAGE = re.compile(
    "would overwrite each other's totals on Billing Meter .*|is gone or has another price, but .*"
    "|as it is in Stripe now, the item [^ ]* of invoice .*"
)

Json = dict[str, Any]
Path = tuple[str | int, ...]

# What may go out: addresses, and their parameters, each of them once.
ID, SECOND, TIME = "[A-Za-z0-9_-]{1,255}", "[0-9]{1,12}", "[0-9]{4}-[0-9-]{5}T[0-9:]{8}Z"
METER = "(?:[a-z0-9]+(?:_[a-z0-9]+)*|[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25})"
QUERY = {"from": TIME, "subject": "(?s:.+)", "to": TIME}
RECORD = {"action": "set", "quantity": "0|7", "timestamp": SECOND}
PAYLOAD = {"payload[stripe_customer_id]": ID, "payload[value]": "0|7[.]5"}
METER_EVENT = {"event_name": "units", **PAYLOAD, "timestamp": SECOND}
LIST = {"limit": "100", "subscription": ID}
CALLS: dict[str, dict[str, str]] = {
    f"GET http://openmeter/api/v1/meters/{METER}/query": QUERY,
    f"POST http://stripe/v1/subscription_items/{ID}/usage_records": RECORD,
    "POST http://stripe/v1/billing/meter_events": METER_EVENT,
    f"GET http://stripe/v1/billing/meters/{ID}": {},
    f"GET http://stripe/v1/subscriptions/{ID}": {},
    f"GET http://stripe/v1/test_helpers/test_clocks/{ID}": {},
    "GET http://stripe/v1/invoices": LIST,
    "GET http://stripe/v1/subscription_items": LIST,
    f"GET http://stripe/v1/invoices/{ID}/lines": {"limit": "100"},
    f"GET http://stripe/v1/invoices/{ID}": {},
    f"GET http://stripe/v1/prices/{ID}": {},
    f"POST http://stripe/v1/subscription_items/{ID}": {"metadata[om_counted_from]": "[0-9,]+"},
    f"GET http://stripe/v2/core/events/{ID}": {},
    f"POST http://stripe/v1/subscriptions/{ID}": {"metadata[om_removed]": "[A-Za-z0-9_ ,-]+"},
}
# What each part has to see, to show anything.
OFTEN = ["200", "400", "422", *list(CALLS)[:7]]
# Events of other accounts carry one of these; what a call says of it is that.
SCOPES = {"account": "Stripe-Account", "context": "Stripe-Context"}
SCOPE = f"{ID}(?:/{ID})*"
METER_ERRORS = {"code": "no_meter", "error_count": 2, "sample_errors": [{"error_message": "none"}]}
THIN: Json = {
    "id": "evt_test_1",
    "object": "v2.core.event",
    "type": "v1.billing.meter.error_report_triggered",
    "created": "2026-11-25T10:00:00.000Z",
    "livemode": False,
    "context": None,
    "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
}
NO_METER: Json = {**THIN, "type": "v1.billing.meter.no_meter_found", "related_object": None}
RESET_LINE = {"subscription_item": "si_1", "period": {"start": 0, "end": END}}
RESET: Json = {"id": "in_1", "billing_reason": "subscription_update", "period_end": END}
RESET["lines"] = {"data": [RESET_LINE]}
ANSWERS: dict[str, Json] = {
    "query": {"data": [{"value": 7.5}]},
    "usage_records": {"object": "usage_record"},
    "meter_events": {"object": "billing.meter_event"},
    "meters": {
        "status": "active",
        "event_name": "units",
        "customer_mapping": {"event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
        "default_aggregation": {"formula": "last"},
    },
    "test_clocks": {"frozen_time": END + 60},
    "invoices": {"data": [RESET]},
}


class Wire(Connections):
    """Answer each call as services do that know every id, and note it."""

    def __init__(self, events: list[Json]) -> None:
        super().__init__("http://stripe")
        self.calls: list[Request] = []
        objects = [event["data"]["object"] for event in events if "data" in event]
        found = [o for o in objects if o["object"] == "subscription"]
        self.subscriptions = {o["id"]: {**o, "billing_cycle_anchor": END + 60} for o in found}
        any_one, *_ = self.subscriptions.values()
        lines = next(o["lines"] for o in objects if o["object"] == "invoice")
        lists = {"subscription_items": any_one["items"], "lines": lines}
        self.known = {**ANSWERS, **lists, "subscriptions": any_one}
        invoice = next(o for o in objects if o["object"] == "invoice")
        self.one = {
            "invoices": invoice,
            "prices": any_one["items"]["data"][0]["price"],
            "subscription_items": {"object": "subscription_item"},
            "events": {**THIN, "data": {"reason": {"error_types": [METER_ERRORS]}}},
            **{name: self.known[name] for name in ("meters", "subscriptions", "test_clocks")},
        }

    def send(self, request: Request, *_: object) -> Answer:
        self.calls.append(request)
        kind, last = request.url.partition("?")[0].split("/")[-2:]
        known = self.subscriptions if kind == "subscriptions" else self.known
        body = json.dumps(known.get(last) or self.one[kind]).encode()
        headers = {"Content-Type": "application/json", "Date": formatdate(usegmt=True)}
        return answered(200, headers, body)


@dataclass(frozen=True)
class Delivery:
    """A request; `genuine` is None where its headers may or may not hide a genuine body."""

    body: bytes
    header: str | None
    genuine: bool | None = True
    environ: Json = field(default_factory=dict)


class Service:
    """The service, what it calls and logs, and how often each thing happened."""

    def __init__(self, application: Flask, wire: Wire) -> None:
        self.application, self.wire = application, wire
        self.base = create_environ("/webhook", method="POST")
        self.lines: list[str] = []
        self.subjects: set[str | None] = set()
        self.note = lambda record: self.lines.append(logging.Formatter().format(record))
        self.seen: Counter[str] = Counter()

    def post(self, delivery: Delivery) -> int:
        """Make a request, check what holds for any, and return the status."""
        self.wire.calls.clear()
        self.lines.clear()
        self.subjects.clear()
        body = delivery.body
        environ = {**self.base, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        environ |= {"HTTP_STRIPE_SIGNATURE": delivery.header, **delivery.environ}
        present = {name: value for name, value in environ.items() if value is not None}
        # Not by the test client, which trips over a malformed Host itself.
        answer = Response.from_app(self.application, present, buffered=True)
        self.check_answer(answer)
        for call in self.wire.calls:
            self.check_call(call, body)
        is_refused = answer.status_code in (400, 413)
        assert not (is_refused and self.wire.calls)
        assert delivery.genuine is None or is_refused != delivery.genuine, answer.get_data()
        self.seen.update(["requests", str(answer.status_code)])
        return answer.status_code

    def check_answer(self, answer: Response) -> None:
        """Check that an answer is JSON and no 5xx, and that it and the log tell no secret."""
        told = "\n".join([answer.get_data(as_text=True), *self.lines])
        reasons = [entry["error"] for entry in json.loads(answer.get_data()).get("failed", [])]
        is_shared = bool(reasons) and all(map(NO_OUTAGE.fullmatch, reasons))
        assert answer.content_type == "application/json"
        assert answer.status_code in (200, 400, 413, 422) or is_shared, told
        assert "Traceback" not in told
        assert_no_secret(told.replace(OLD_SECRET, SECRET))
        assert all(len(line.splitlines()) == 1 for line in self.lines), told
        if answer.status_code == 422:
            assert all(call.method == "GET" for call in self.wire.calls)

    def check_call(self, call: Request, body: bytes) -> None:
        """Check that a call is one of CALLS, about the subject and the customer of the event."""
        address, _, query = call.url.partition("?")
        form = query if call.method == "GET" else str(call.body)
        (known,) = (known for known in CALLS if re.fullmatch(known, f"{call.method} {address}"))
        pairs = parse_qsl(form, keep_blank_values=True, strict_parsing=bool(form))
        sent = dict(pairs)
        assert sorted(name for name, _ in pairs) == list(CALLS[known])
        assert all(re.fullmatch(CALLS[known][name], value) for name, value in pairs), pairs
        assert sent.get("from", "") < sent.get("to", "z")
        assert call.method == "GET" or not query
        event = json.loads(body)
        for name, header in SCOPES.items():
            scope = call.headers.get(header)
            assert scope is None or (scope == event[name] and re.fullmatch(SCOPE, str(scope)))
        objects = [*self.wire.subscriptions.values(), *carried(event.get("data"))]
        subjects, customers = zip(*map(named_by, objects), strict=True)
        assert sent.get("subject") in (None, *subjects)
        assert sent.get("payload[stripe_customer_id]") in (None, *customers)
        self.subjects |= {sent["subject"]} if "subject" in sent else set()
        self.seen[known] += 1


def carried(data: Any) -> list[Json]:
    """Return the object of an event, and as it was before, for warnings of what it counted."""
    found = data.get("object") if isinstance(data, dict) else None
    if not isinstance(found, dict):
        return []
    previous = data.get("previous_attributes")
    return [found, {**found, **previous}] if isinstance(previous, dict) else [found]


def named_by(subscription: Json) -> tuple[Any, Any]:
    """Return the subject and the customer that an object names, whatever they are."""
    customer, metadata = subscription.get("customer"), subscription.get("metadata")
    customer = customer.get("id") if isinstance(customer, dict) else customer
    named = metadata.get("om_subject") if isinstance(metadata, dict) else None
    return named or customer, customer


@pytest.fixture
def events(stripe_fake: Stripe) -> list[Json]:
    """Return the events of renewals and ends, without a Billing Meter and with, in both shapes.

    Two of them are of other accounts, and two are thin.
    """
    metered = {"metadata[om_meter_id]": "m1"}
    for version in (ACACIA, ENDIVE):
        stripe_fake.collect_events(version)
        backed = stripe_fake.metered_price(version.split(".")[1])
        product = stripe_fake.call("POST", "products", name="Seat")["id"]
        flat = {"product": product, "unit_amount": 500, "recurring[interval]": "month"}
        seat = stripe_fake.call("POST", "prices", **flat)["id"]
        for items in ([metered], [{"price": backed, **metered}, metered, {"price": seat}]):
            stripe_fake.seed(*items, **{"metadata[om_subject]": "team a&b"})
            stripe_fake.advance(END + 60)
            stripe_fake.call("DELETE", f"subscriptions/{stripe_fake.ids['subscription']}")
    first = ("billing_reason", "subscription_create")
    found = [e for e in stripe_fake.events() if first not in e["data"]["object"].items()]
    assert len(found) == 12
    found[4]["account"], found[7]["context"] = "acct_1", "org_1/acct_2"
    return [*found, THIN, NO_METER]


@pytest.fixture
def service(events: list[Json], mocker: MockerFixture) -> Iterator[Service]:
    wire = Wire(events)
    mocker.patch("service.clients.Connections", return_value=wire)
    running = Service(app.create_app(CONFIG), wire)
    # Before Stripe has told its time, a signature may be older.
    clock = running.application.extensions["services"].stripe.clock
    clock.hear({"Date": formatdate(usegmt=True)}, time.monotonic())
    mocker.patch.object(running.application.logger, "callHandlers", running.note)
    yield running
    tracemalloc.stop()
    running.application.extensions["services"].pool.shutdown()


# What arrives

RAW, COPY = "(raw)", "(copy)"
ODD: list[Any] = [
    ..., ..., ..., RAW, RAW, RAW, COPY, COPY, COPY, None, True, 0, 1, -1, 2**31, 10**400, END + 1,
    1.5, -0.0, "", " ", "../x", "m1?subject=", "a&b=c#d;e", "a\nb\r\nc: d", "%00", "\0", "\ud800",
    "é\u2028", "x" * 300, KEY, SECRET, TOKEN, "metered", "draft", [], {}, [[]], [None],
    {"id": "../x"}, {"id": ["x"]}, {"data": [{}]},
]  # fmt: skip
LITERALS = ["1e400", "-1e400", "-0", "1e-400", "NaN", "-Infinity", "9" * 400, "9" * 5_000]
LITERALS += ["[" * depth + "]" * depth for depth in (1, 100, 100_000)]
SMALL = [text.encode() for text in (*LITERALS, "null", "{}", '{"type": "x"}')]
TEXT = st.text(st.characters(max_codepoint=255), max_size=20)
VALUES = st.sampled_from(ODD) | st.sampled_from(ODD) | TEXT | st.integers()
GENUINE = ["t={t},v1={v1}", "v1={v1},t={t}", "t={t},v1=0,v1={v1},v0=x", "t={t},v1={v1}," * 2]
FORGED = [
    "t={t}", "v1={v1}", "{v1}", "t=,v1={v1}", "t=soon,v1={v1}", "t={t}1,v1={v1}", "t={t},v0={v1}",
    "t={t},v1={v1}0", "t={t},v1=", "t={t};v1={v1}", "T={t},V1={v1}", "t={t},v1=\xe9{v1}",
    "t=1e9,v1={v1}", "t=99,t={t},v1={v1}", "t={t},v1=\xff\xfe", ",,==", "v1" * 50_000,
    "t={t}" + ",v1=0" * 1_000,
]  # fmt: skip
# Seconds from now; stripe-python takes any in the future.
FRESH, STALE = [0, -280, 3_600, 10**12, 10**400], [-320, -(10**10), -(10**400)]
CHUNKED: Json = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
# What says where the body ends and for whom it is, and other headers.
FRAME = {"CONTENT_LENGTH", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"}
HEADERS = st.dictionaries(st.sampled_from([
    *sorted(FRAME), "CONTENT_TYPE", "HTTP_ACCEPT", "HTTP_AUTHORIZATION", "HTTP_CONTENT_ENCODING",
    "HTTP_COOKIE", "HTTP_EXPECT", "HTTP_RANGE", "HTTP_USER_AGENT", "HTTP_X_FORWARDED_HOST",
]), TEXT | st.sampled_from([
    None, "", "-1", "5", "1e3", "9" * 30, "chunked", "gzip, chunked", "text/plain; charset=utf-7",
    "multipart/form-data; boundary=", "[::1", "x:99999", "a/b", "a@b", "\0", KEY, "a" * 9_000,
]), min_size=1, max_size=3)  # fmt: skip


def paths(node: Any, path: Path = ()) -> Iterator[Path]:
    """Name each place below a JSON value."""
    named = node.items() if isinstance(node, dict) else ()
    for step, child in enumerate(node) if isinstance(node, list) else named:
        yield (*path, step)
        yield from paths(child, (*path, step))


def take(node: Any, path: Path) -> Any:
    """Return what is in a place."""
    for step in path:
        node = node[step]
    return node


def put(event: Json, path: Path, value: object) -> None:
    """Put a value in a place, or take away what is there where the value is ...."""
    if value is ...:
        del take(event, path[:-1])[path[-1]]
    else:
        take(event, path[:-1])[path[-1]] = value


def fresh(event: Json) -> None:
    """Let an event be of now, so that it is reported as it says."""
    if "data" in event:
        event["created"], event["data"]["object"]["test_clock"] = int(time.time()), None


@dataclass(frozen=True)
class Original:
    """A genuine event and its places."""

    text: str = field(repr=False)
    places: list[Path] = field(repr=False)


@st.composite
def texts(draw: st.DrawFn, originals: list[Original]) -> str:
    """Change up to three places of an event, and perhaps give it a name twice."""
    original = draw(st.sampled_from(originals))
    event, place = json.loads(original.text), st.sampled_from(original.places)
    if draw(st.booleans()):
        fresh(event)
    for _ in range(draw(st.integers(0, 3))):
        value, where = draw(VALUES), draw(place)
        if value == COPY:
            value = take(json.loads(original.text), draw(place))
        with suppress(LookupError, TypeError):
            put(event, where, deepcopy(value))
    text = json.dumps(event).replace(f'"{RAW}"', draw(st.sampled_from(LITERALS)))
    name, again = json.dumps(draw(place)[-1]), draw(st.sampled_from(LITERALS))
    twice = draw(st.integers(0, 19))
    if twice == 1:
        return text.replace(f"{name}:", f"{name}: {again}, {name}:")
    return f"{text[:-1]}, {name}: {again}}}" if twice == 2 else text


@st.composite
def bodies(draw: st.DrawFn, originals: list[Original]) -> bytes:
    """Return an event's text, whole or damaged, or a small document, or random bytes."""
    kind, size = draw(st.integers(0, 29)), MEBIBYTE + draw(st.integers(0, 1))
    if kind in (1, 2):
        return draw(st.binary(max_size=60) | st.sampled_from(SMALL))
    body = draw(texts(originals)).encode()
    at = draw(st.integers(0, len(body)))
    if kind == 3:
        return body[:at]
    if kind == 4:
        return body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 4)) :]
    return body.ljust(size) if kind == 5 and at % 4 == 0 else body


@st.composite
def signatures(draw: st.DrawFn, body: bytes) -> tuple[str | None, bool]:
    """Return a signature or what resembles one, and whether it is genuine."""
    kind, secret = draw(st.integers(0, 24)), draw(st.sampled_from([SECRET, OLD_SECRET]))
    at = int(time.time()) + draw(st.sampled_from(STALE if kind == 1 else FRESH))
    v1 = signature(KEY if kind == 2 else secret, body, at).partition("v1=")[2]
    header = draw(st.sampled_from(FORGED if kind == 3 else GENUINE)).format(t=at, v1=v1)
    if kind == 4:
        return header[: draw(st.integers(0, len(v1)))], False
    if kind == 5:
        return draw(st.none() | TEXT), False
    return header, kind not in (1, 2, 3)


def is_event(body: bytes) -> bool:
    """Say whether a body can be a genuine one."""
    try:
        return len(body) <= MEBIBYTE and body.decode() != "" and type(json.loads(body)) is dict
    except (ValueError, RecursionError):
        return False


@st.composite
def deliveries(draw: st.DrawFn, originals: list[Original]) -> Delivery:
    """Return a request, some of them in chunks or with odd headers."""
    body, kind = draw(bodies(originals)), draw(st.integers(0, 9))
    header, is_signed = draw(signatures(body))
    genuine = is_signed and is_event(body)
    if kind == 1:
        return Delivery(body, header, genuine, {**CHUNKED, "CONTENT_LENGTH": None})
    environ = draw(HEADERS) if kind in (2, 3) else {}
    return Delivery(body, header, None if genuine and FRAME & environ.keys() else genuine, environ)


@pytest.mark.parametrize("part", range(PARTS))
def test_random_deliveries_are_refused_or_answered_and_leave_nothing_behind(
    service: Service, events: list[Json], part: int
) -> None:
    def deliver(together: list[Delivery]) -> None:
        for delivery in together:
            service.post(delivery)

    each = deliveries([Original(json.dumps(event), list(paths(event))) for event in events])
    several = given(st.lists(each, min_size=TOGETHER, max_size=TOGETHER))
    plain = settings(database=None, deadline=None, phases=[Phase.generate, Phase.shrink])
    quiet = settings(plain, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    for turn in range(ROUNDS):
        if turn == ROUNDS - 1:
            gc.collect()
            tracemalloc.start()
        seed(part * ROUNDS + turn)(quiet(several(deliver)))()
    gc.collect()
    ours = [tracemalloc.Filter(inclusive=False, filename_pattern="*/hypothesis/*")]
    kept = tracemalloc.take_snapshot().filter_traces(ours).statistics("lineno")
    assert sum(line.size for line in kept) < MAX_KEPT_BYTES, kept[:5]
    assert service.seen["requests"] >= REQUESTS / PARTS
    assert all(service.seen[often] for often in OFTEN), service.seen


# One thing at a time

ITEM: Path = ("data", "object", "items", "data", 0)
LINE: Path = ("data", "object", "lines", "data", 0)
CUSTOMER, SUBJECT = ("data", "object", "customer"), ("data", "object", "metadata", "om_subject")
BACKED: Path = (*ITEM, "price", "recurring", "meter")
PRICE: Path = (*ITEM, "price", "id")
IDS = [(*ITEM, "id"), (*ITEM, "metadata", "om_meter_id"), BACKED, PRICE, CUSTOMER]
NO_IDS = ["../x", "a/b", "m1?subject=", "x#y", "x&limit=1", "x\n", "%00", "..%2f", "\0", " ", "é"]
NO_PLAIN_TEXTS = ["a&subject=b", "x#y", "x\n", "x\0", "%00", "../x", "a;b", "+", " ", "?", "\u2028"]
UPDATED = ("type", "customer.subscription.updated")


def signed(body: bytes, genuine: bool | None = True) -> Delivery:
    """Return the request of a body."""
    return Delivery(body, signature(SECRET, body, int(time.time())), genuine)


def changed(event: Json, *changes: tuple[Path, Any]) -> Delivery:
    """Return the request of an event of now with other values in some places."""
    copied = json.loads(json.dumps(event))
    fresh(copied)
    for path, value in changes:
        put(copied, path, value)
    return signed(json.dumps(copied).encode())


@pytest.mark.parametrize("n", range(14))
def test_a_wrong_type_in_any_place_is_no_5xx(service: Service, events: list[Json], n: int) -> None:
    wrong: list[Any] = [..., None, True, 10**400, "x", [], {}]
    for path in paths(events[n]):
        for value in wrong:
            service.post(changed(events[n], (path, value)))


def deepest_nesting() -> int:
    """Return how deep a list of lists may be that this Python parses: 3.12 and 3.13 go deeper."""
    parsed, refused = 1, 100_000
    while refused - parsed > 1:
        depth = (parsed + refused) // 2
        try:
            json.loads("[" * depth + "]" * depth)
        except RecursionError:
            refused = depth
        else:
            parsed = depth
    return parsed


@pytest.mark.parametrize("path", [("id",), ("type",), (*ITEM, "id"), (*LINE, "subscription_item")])
def test_nesting_is_no_5xx_up_to_what_can_be_parsed(
    service: Service, events: list[Json], path: Path
) -> None:
    event = next(event for event in events if path in paths(event))
    body = changed(event, (path, RAW)).body
    deepest = deepest_nesting()
    for depth in range(deepest - 150, deepest + 50):
        deep = b"[" * depth + b"]" * depth
        service.post(signed(body.replace(f'"{RAW}"'.encode(), deep), None))
    assert 0 < service.seen["400"] < 200


@pytest.mark.parametrize("path", IDS)
def test_what_is_no_id_is_refused(service: Service, events: list[Json], path: Path) -> None:
    for event in (e for e in events if UPDATED in e.items() and take(e, BACKED)):
        for text in NO_IDS:
            for value in (text, {"id": text}):
                assert service.post(changed(event, (path, value))) == 422
                assert service.wire.calls == []


@pytest.mark.parametrize("text", NO_PLAIN_TEXTS)
def test_a_subject_is_asked_for_as_it_is(service: Service, events: list[Json], text: str) -> None:
    for event in (e for e in events if UPDATED in e.items()):
        assert service.post(changed(event, (SUBJECT, text))) == 200
        assert service.subjects == {text}


@pytest.mark.parametrize("empty", ["", None, ...])
def test_nothing_asks_for_everybody(service: Service, events: list[Json], empty: object) -> None:
    nobody: list[Any] = ["", " ", None, ..., {}, {"id": ""}, [], False]
    for event in (e for e in events if UPDATED in e.items()):
        assert service.post(changed(event, (SUBJECT, empty))) == 200
        assert service.subjects == {take(event, CUSTOMER)}
        for customer in nobody:
            assert service.post(changed(event, (SUBJECT, empty), (CUSTOMER, customer))) == 422
            assert service.wire.calls == []
