"""Each call of a delivery in each way that it can fail, and the service killed on the way."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from tenacity import stop_before_delay

from fakes.processes import Process, Processes, answers, wait_for
from service import transport
from tests.billing.test_meters import aged
from tests.conftest import (
    DAY,
    END,
    ENDIVE,
    KEY,
    SECRET,
    START,
    TOKEN,
    Answer,
    OpenMeter,
    Service,
    Stripe,
    free_port,
    updated,
)

Start = Callable[..., Service]
METERED = {"metadata[om_meter_id]": "m1"}
UNITS = 10
# Past the renewal, and the 72 hours that its invoice can be a draft.
FINAL = END + 5 * DAY


# Deliveries


class Delivery(NamedTuple):
    """A service, and the body of an event that it has not seen yet."""

    service: Service
    body: str


def update(start: Start, items: int = 1) -> Delivery:
    service = start()
    # Each item counts a meter of its own, for the same usage on two items is warned of.
    names = ["m1", *(f"m{n}" for n in range(2, items + 1))]
    for name in names[1:]:
        service.openmeter.meter(name)
    service.stripe.seed(*[{"metadata[om_meter_id]": name} for name in names])
    customer = service.stripe.ids["customer"]
    for name in names:
        service.openmeter.use(customer, UNITS, kind="execution" if name == "m1" else name)
    return Delivery(service, json.dumps(updated(service.stripe.subscription())))


def on_a_billing_meter(start: Start, *more: dict[str, str]) -> Service:
    """Start the service with an item on a Billing Meter, and keep Stripe's events back."""
    service = start()
    price = service.stripe.metered_price()
    service.stripe.collect_events(ENDIVE)
    service.stripe.seed({**METERED, "price": price}, *more)
    service.openmeter.use(service.stripe.ids["customer"], UNITS, time="2023-06-08T14:22:00Z")
    return service


def newest(service: Service, kind: str) -> dict[str, Any]:
    return [event for event in service.stripe.events() if event["type"] == kind][-1]


def late_update(start: Start) -> Delivery:
    service = on_a_billing_meter(start)
    service.stripe.advance(START + 2 * DAY)
    service.stripe.update(**{"metadata[a]": "1"})
    return Delivery(service, aged(newest(service, "customer.subscription.updated"), 60))


def draft_of_eleven_lines(start: Start) -> Delivery:
    service = on_a_billing_meter(start, *[METERED] * 10)
    service.stripe.advance(END + 60)
    return Delivery(service, json.dumps(newest(service, "invoice.created")))


def draft_between_two_resets(start: Start) -> Delivery:
    service = on_a_billing_meter(start)
    service.stripe.update(billing_cycle_anchor="now")
    service.stripe.advance(service.stripe.subscription()["current_period_end"] + 60)
    event = newest(service, "invoice.created")
    service.stripe.update(billing_cycle_anchor="now")
    return Delivery(service, json.dumps(event))


# The calls that they lead to


class Call(NamedTuple):
    """A call, a delivery that makes it, and the quantities of the invoices in the end.

    `named` is what the log says has failed, `wanted` what the answer should have been, `gone` the
    status where Stripe knows no such thing, and `held` what Stripe holds though the call failed.
    """

    method: str
    path: str
    deliver: Callable[[Start], Delivery]
    invoices: list[list[int]]
    named: str
    wanted: str = ""
    gone: int = 200
    held: tuple[int, ...] = ()


NOT_OURS = "nothing of this is in the account of STRIPE_KEY: is it another's?"
ITEM, SUBSCRIPTION = "{item}", "{subscription}"
REST = f"{SUBSCRIPTION}, items after the first 10"
MANY, DRAFT, RESETS = partial(update, items=12), draft_of_eleven_lines, draft_between_two_resets
ONE, TWELVE, BETWEEN = [[UNITS]], [[UNITS] * 12], [[0], [UNITS], [0]]
# A draft's lines but that of the Billing Meter can no longer be written.
ELEVEN = [[UNITS, *[0] * 10]]
CALLS = {
    "query": Call("GET", "/meters/m1/query", update, ONE, ITEM),
    "record": Call("POST", "/usage_records", update, ONE, ITEM, "usage record"),
    "meter": Call("GET", "/billing/meters/", late_update, ONE, ITEM, "Billing Meter", 500),
    "event": Call("POST", "/meter_events", late_update, ONE, ITEM, "meter event"),
    "clock": Call("GET", "/test_clocks/", late_update, ONE, SUBSCRIPTION, "test clock"),
    "late": Call("GET", "/subscriptions/", late_update, ONE, SUBSCRIPTION, "subscription"),
    "items": Call("GET", "/subscription_items", MANY, TWELVE, REST, "list", held=(UNITS,) * 10),
    "invoiced": Call("GET", "/subscriptions/", DRAFT, ELEVEN, SUBSCRIPTION, "subscription", 500),
    "lines": Call("GET", "/lines", DRAFT, ELEVEN, SUBSCRIPTION, "list", 500),
    "resets": Call("GET", "/v1/invoices", RESETS, BETWEEN, SUBSCRIPTION, "list", 500),
}
WRITES = ("record", "event")


# The ways in which they fail


class Fault(NamedTuple):
    """What a stand-in plays (nothing: it is not there), and the reason that the service gives.

    There is none where the fault makes no sense.
    """

    played: dict[str, Any]
    openmeter: str
    stripe: str


def error(status: int, **headers: str) -> dict[str, Any]:
    message = {"detail": SAID, "error": {"message": SAID}}
    return {"status": status, "body": message, "headers": headers}


def unanswered(reason: str) -> tuple[str, str]:
    return (
        f"OpenMeter did not answer ({reason} at {{url}}, as OPENMETER_URL says)",
        f"Stripe did not answer ({reason} at {{url}}, as STRIPE_API_BASE says)",
    )


RETRY = "Stripe-Should-Retry"
SAID, HIDDEN = f"no {KEY}, {TOKEN}, {SECRET}", "no [hidden], [hidden], [hidden]"
PAGE = {"body": f"<h1>{SAID}", "content_type": "text/html"}
CUT = {"status": 200, "body": {"data": []}, "headers": {"Content-Length": "99"}}
TRICKLE = {"status": 200, "body": " " * 99, "trickle": 0.05}
SHAPE = {"status": 200, "body": {"rows": [SAID]}}
GONE = {"status": 404, "body": {"error": {"code": "resource_missing", "message": SAID}}}
CLOSED = {"status": 400, "body": {"error": {"param": "timestamp", "message": SAID}}}
UNREADABLE, UNUSABLE = "OpenMeter's answer is unreadable", "and no usable answer"
WRONG_KEY = "STRIPE_KEY is wrong or lacks a permission"
OPENMETER, STRIPE = "OpenMeter answered", "Stripe answered"
NO_PATH = "no such path: OPENMETER_URL leads to something else, or has a path too many"

# Those that may also befall the answer to a write that has counted.
LOST = {
    "reset": Fault({"drop": True}, *unanswered("ConnectionError")),
    "cut": Fault(CUT, *unanswered("ConnectionError")),
    "silent": Fault({"status": 200, "body": "{}", "trickle": 1}, *unanswered("ReadTimeout")),
    "trickle": Fault(TRICKLE, *unanswered("ReadTimeout")),
    "500": Fault(error(500), f"{OPENMETER} 500: {HIDDEN}", f"{STRIPE} 500 {UNUSABLE}"),
    "503": Fault({"status": 503, **PAGE}, f"{OPENMETER} 503", f"{STRIPE} 503 {UNUSABLE}"),
    "html": Fault({"status": 200, **PAGE}, UNREADABLE, f"{STRIPE} 200 {UNUSABLE}"),
    "empty": Fault({"status": 200}, UNREADABLE, f"{STRIPE} 200 {UNUSABLE}"),
    "shape": Fault(SHAPE, UNREADABLE, "Stripe's answer is no {wanted}"),
}
REFUSED = {
    "refused": Fault({}, *unanswered("ConnectionError")),
    "429": Fault(error(429), f"{OPENMETER} 429: {HIDDEN}", f"{STRIPE} 429: {HIDDEN}"),
    "again": Fault(error(429, **{RETRY: "true"}), "", f"{STRIPE} 429: {HIDDEN}"),
    "never": Fault(error(429, **{RETRY: "false"}), "", f"{STRIPE} 429: {HIDDEN}"),
    "409": Fault(error(409), f"{OPENMETER} 409: {HIDDEN}", f"{STRIPE} 409 {UNUSABLE}"),
    "401": Fault(error(401), f"{OPENMETER} 401", f"{STRIPE} 401: {WRONG_KEY}"),
    "403": Fault(error(403), f"{OPENMETER} 403", f"{STRIPE} 403: {WRONG_KEY}"),
    "404": Fault(error(404), f"{OPENMETER} 404, {NO_PATH}", f"{STRIPE} 404: {HIDDEN}"),
    "gone": Fault(GONE, "", f"gone from Stripe: {STRIPE} 404: {HIDDEN}"),
    "closed": Fault(CLOSED, "", f"the billing period has closed: {STRIPE} 400: {HIDDEN}"),
}
FAULTS = LOST | REFUSED


def combinations() -> list[Any]:
    """Return each call with each fault that makes sense, and whether the call has counted."""
    found = [(call, fault, False) for call in CALLS for fault in FAULTS if reason(call, fault)]
    found += [(call, fault, True) for call in WRITES for fault in LOST]
    return [
        pytest.param(call, fault, counted, id=f"{call}-{fault}" + "-counted" * counted)
        for call, fault, counted in found
        if fault != "closed" or call in WRITES
    ]


def reason(call: str, fault: str, service: Service | None = None) -> str:
    """Return what the service says, with its services' addresses; nothing where there is none."""
    if call == "query":
        said = FAULTS[fault].openmeter.format(url=service and service.openmeter.url)
        return said and f"meter m1: {said}"
    url = service and service.stripe.url
    return FAULTS[fault].stripe.format(wanted=CALLS[call].wanted, url=url)


def status(call: str, fault: str) -> int:
    """Return the status of the delivery: 200 where Stripe refuses for good."""
    gone = 500 if is_of_another_account(call, fault) else CALLS[call].gone
    return {"gone": gone, "closed": 200}.get(fault, 500)


def is_of_another_account(call: str, fault: str) -> bool:
    """Say whether Stripe knows nothing of what a delivery reports."""
    return fault == "gone" and call in ("record", "event")


def deliver_with(fault: Fault, call: Call, delivery: Delivery, *, counted: bool) -> Answer:
    """Post an event while a call fails, and let the service wait less for it."""
    service = delivery.service
    fake = service.openmeter if call is CALLS["query"] else service.stripe
    if fault.played:
        where = {"method": call.method, "path": call.path, "times": 1_000}
        fake.fault(**where, **fault.played, after=counted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.transport.Connections.send", send_with(fault, call))
        patch.setattr("stripe.HTTPClient._sleep_time_seconds", lambda *_: 0.01)
        patch.setattr("billing.stripe_api.stop_before_delay", lambda _: stop_before_delay(0.1))
        answer = service.post(delivery.body)
    fake.fake("DELETE", "faults")
    return answer


def send_with(fault: Fault, call: Call) -> Callable[..., transport.Answer]:
    """Return what sends requests: a slow call's within 0.5 s, and a refused one to nobody."""
    send, nobody = transport.Connections.send, f"http://127.0.0.1:{free_port()}"
    bound = (0.3, 0.5)

    def sent(
        connections: Any, request: transport.Request, timeout: tuple[float, float]
    ) -> transport.Answer:
        if request.method == call.method and call.path in urlsplit(request.url).path:
            timeout = bound if "trickle" in fault.played else timeout
            request = request if fault.played else request._replace(url=nobody)
        return send(connections, request, timeout)

    return sent


def held(stripe: Stripe) -> list[int]:
    """Return the usage records and the meter events that Stripe holds, each second's once."""
    records = [value for item in stripe.account.records.values() for value in item.values()]
    events = {(e["meter"], e["timestamp"], e["value"]) for e in stripe.account.meters.events}
    return records + [int(value) for _, _, value in events]


def invoiced(stripe: Stripe) -> list[list[int]]:
    """Return the quantities of all lines of each invoice but the first."""
    invoices = stripe.account.all("invoice")[1:]
    return [[int(line["quantity"]) for line in invoice["lines"]] for invoice in invoices]


@pytest.mark.parametrize(("call", "fault", "counted"), combinations())
def test_a_call_that_fails_is_named_in_one_line_and_the_next_delivery_repairs_it(
    start: Start, call: str, fault: str, counted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = CALLS[call]
    delivery = made.deliver(start)
    stripe = delivery.service.stripe

    answer = deliver_with(FAULTS[fault], made, delivery, counted=counted)

    assert answer.status_code == status(call, fault)
    item, subscription = stripe.items()[0], stripe.ids["subscription"]
    named = made.named.format(item=item, subscription=subscription)
    anothers = is_of_another_account(call, fault)
    is_final = answer.status_code == 200 or anothers
    kind, level = ("warning", "WARNING") if is_final else ("error", "ERROR")
    entries = [(level, {"item": named, kind: reason(call, fault, delivery.service)})]
    if anothers:
        entries += [("ERROR", {"item": named, "error": NOT_OURS})]
    said = answer.json["warnings"] + answer.json["failed"]
    assert said == [entry for _, entry in entries]
    lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [(r.levelname, r.getMessage()) for r in lines] == [
        (level, ": ".join(entry.values())) for level, entry in entries
    ]
    assert not any(secret in caplog.text + answer.text for secret in (KEY, TOKEN, SECRET))
    assert held(stripe) == ([UNITS] if counted else list(made.held))

    assert delivery.service.post(delivery.body).status_code == 200
    assert held(stripe) == [units for invoice in made.invoices for units in invoice if units]
    stripe.advance(FINAL)
    assert invoiced(stripe) == made.invoices


# The service killed on the way


class Story(NamedTuple):
    """An event whose delivery writes twice, and where."""

    event: str
    write: str
    on_meters: bool

    def seed(self, processes: Processes) -> Stripe:
        """Create a subscription of two items, with their usage."""
        stripe, openmeter = Stripe(processes.stripe), OpenMeter(processes.openmeter)
        openmeter.meter("m2")
        items = {slug: {"metadata[om_meter_id]": slug} for slug in ("m1", "m2")}
        for slug in items if self.on_meters else ():
            items[slug]["price"] = stripe.metered_price(slug)
        stripe.seed(*items.values())
        openmeter.use(stripe.ids["customer"], 10)
        openmeter.use(stripe.ids["customer"], 7, kind="m2")
        return stripe

    def tell(self, stripe: Stripe) -> None:
        """Let the event happen."""
        if self.on_meters:
            stripe.advance(END + 60)
        else:
            stripe.update(**{"metadata[a]": "1"})

    def held(self, stripe: Stripe) -> list[int]:
        """Return what Stripe holds for each item's period."""
        if not self.on_meters:
            return [stripe.usage(item)[0] for item in stripe.items()]
        asked: dict[str, Any] = {"customer": stripe.ids["customer"]}
        asked |= {"start_time": START - START % 60, "end_time": END - END % 60 + 60}
        meters = stripe.call("GET", "billing/meters")["data"][::-1]
        paths = [f"billing/meters/{meter['id']}/event_summaries" for meter in meters]
        found = [stripe.call("GET", path, **asked)["data"][0] for path in paths]
        return [int(summary["aggregated_value"]) for summary in found]


class Step(NamedTuple):
    """A step of a delivery: where it is held, by which fault, and how to see that it is reached.

    At least so many `calls` have come, and Stripe and the service have `held` and `printed` that.
    The path is empty for the write.
    """

    path: str
    fault: dict[str, Any]
    calls: int
    held: list[int]
    printed: str = ""


STORIES = {
    "record": Story("customer.subscription.updated", "/usage_records", on_meters=False),
    "draft": Story("invoice.created", "/meter_events", on_meters=True),
}
STEPS = {
    "before-the-query": Step("/query", {"delay": 60}, 2, [0, 0]),
    "before-the-write": Step("", {"delay": 60}, 2, [0, 0]),
    "after-the-write": Step("", {"after": True, "trickle": 60}, 2, [10, 7]),
    "before-the-answer": Step("/m2/query", {"delay": 60}, 1, [10, 0], "total_usage: 10.000000"),
}


@contextmanager
def running(story: Story) -> Iterator[tuple[Processes, Process, Stripe]]:
    """Start all processes, and a subscription of which nothing is reported yet."""
    with Processes() as processes:
        service = processes.start_service(enabled_events=[story.event], retry_seconds=[0.1] * 300)
        yield processes, service, story.seed(processes)


def final_invoices(processes: Processes, stripe: Stripe) -> list[tuple[str, list[int]]]:
    processes.deliveries(1)
    stripe.advance(FINAL)
    processes.deliveries(1)
    return stripe.invoiced()


@cache
def undisturbed_invoices(story: Story) -> list[tuple[str, list[int]]]:
    with running(story) as (processes, _, stripe):
        story.tell(stripe)
        return final_invoices(processes, stripe)


def kill(service: Process) -> None:
    """End gunicorn and its worker as they stand."""
    (worker,) = re.findall(r"Booting worker with pid: (\d+)", service.printed())
    for pid in (service.popen.pid, int(worker)):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_service_killed_midway_ends_in_the_same_invoices(
    story: Story, step: Step, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for what a killed one leaves behind
    path = step.path or story.write
    with running(story) as (processes, service, stripe):
        openmeter = OpenMeter(processes.openmeter)

        def is_reached() -> bool:
            calls = [seen["path"] for seen in stripe.requests() + openmeter.requests()]
            return (
                sum(path in call for call in calls) >= step.calls
                and story.held(stripe) == step.held
                and step.printed in service.printed()
            )

        for fake in (stripe, openmeter):
            fake.fault(path=path, **step.fault, times=1_000)
        story.tell(stripe)
        wait_for(is_reached, "the step", 15)
        kill(service)
        wait_for(lambda: not answers(f"{processes.service}/healthz"), "the end", 5)
        assert story.held(stripe) == step.held

        for fake in (stripe, openmeter):
            fake.fake("DELETE", "faults")
        processes.start_service()
        statuses = [delivery["status"] for delivery in processes.deliveries(1)]
        assert (statuses.count(0) > 0, statuses[-1]) == (True, 200)
        assert story.held(stripe) == [10, 7]
        invoices = final_invoices(processes, stripe)
    assert invoices == undisturbed_invoices(story) == [("open", [10, 7])]
