"""Thin events: what Stripe took, and refused later, is told with its reason and counted."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from stripe import WebhookSignature

from tests.conftest import ENDIVE, Answer, Service

Start = Callable[..., Service]
SECRETS = ("whsec_first", "whsec_second", "whsec_third")
TRIGGERED, NO_METER = "v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"
REPORT = "/v2/core/events/"
# What was sent to which meter, and the code and first message of its thin event.
REFUSED = {
    "customer": (
        {"event_name": "openmeter_m1", "payload[stripe_customer_id]": "cus_unknown"},
        TRIGGERED,
        "meter_event_customer_not_found",
        "No customer found with ID cus_unknown.",
    ),
    "nobody": (
        {"event_name": "openmeter_m1"},
        TRIGGERED,
        "meter_event_no_customer_defined",
        "Customer mapping key stripe_customer_id not found in payload.",
    ),
    "deactivated": (
        {"event_name": "openmeter_off", "payload[stripe_customer_id]": "cus_unknown"},
        TRIGGERED,
        "archived_meter",
        "The meter of openmeter_off is archived.",
    ),
    "no meter": (
        {"event_name": "unknown", "payload[stripe_customer_id]": "cus_unknown"},
        NO_METER,
        "no_meter",
        "No meter found for event name unknown.",
    ),
}


@pytest.fixture
def thin(start: Start) -> Service:
    """Start the service with three secrets, of which the second signs Stripe's thin events."""
    service = start(STRIPE_WEBHOOK_SECRET=",".join(SECRETS), METRICS="1")
    for slug in ("m1", "off"):
        service.stripe.metered_price(slug)
    off = meter_id(service, "openmeter_off")
    service.stripe.call("POST", f"billing/meters/{off}/deactivate", ENDIVE)
    service.stripe.collect_events(ENDIVE)
    service.stripe.fake("POST", "webhook", {"thin_secret": SECRETS[1]})
    service.forget()
    return service


def meter_id(service: Service, event_name: str) -> str:
    """Return the id of a Billing Meter; `no meter` where there is none."""
    found = service.stripe.call("GET", "billing/meters", ENDIVE)["data"]
    ids = [meter["id"] for meter in found if meter["event_name"] == event_name]
    return str(ids[0]) if ids else "no meter"


def refuse(service: Service, kind: str, times: int = 1) -> dict[str, Any]:
    """Let Stripe refuse some meter events, and return its thin event of that."""
    form = {**REFUSED[kind][0], "payload[value]": "7"}
    for _ in range(times):
        service.stripe.call("POST", "billing/meter_events", ENDIVE, **form)
    service.stripe.fake("POST", "report_meter_errors")
    service.forget()
    return service.stripe.events()[-1]


def post(service: Service, event: Any, secret: str = SECRETS[1]) -> Answer:
    body = json.dumps(event)
    return service.post(body, WebhookSignature.generate_signature_header(body, secret))


def counted(service: Service, code: str) -> float:
    text = service.open("GET", "/metrics").text
    name = f'openmeter_stripe_meter_errors_total{{code="{code}"}} '
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return float(line.split()[-1])


@pytest.mark.parametrize("times", [1, 7])
@pytest.mark.parametrize("kind", REFUSED)
def test_meter_events_that_were_refused_later_are_told_and_counted(
    thin: Service, kind: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    form, event_type, code, message = REFUSED[kind]
    event = refuse(thin, kind, times)
    assert event["type"] == event_type
    before = counted(thin, code)
    assert post(thin, event).status_code == 200
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    for said in (meter_id(thin, form["event_name"]), code, str(times), message):
        assert said in line
    assert counted(thin, code) == before + times
    asked = [seen for seen in thin.stripe.requests() if seen["path"] != "/v1/billing/meters"]
    assert [(seen["method"], seen["path"]) for seen in asked] == [("GET", REPORT + event["id"])]


@pytest.mark.parametrize("secret", SECRETS)
def test_each_destinations_secret_holds(thin: Service, secret: str) -> None:
    assert post(thin, refuse(thin, "customer"), secret).status_code == 200


def test_reasons_of_one_meter_are_told_one_by_one(
    thin: Service, caplog: pytest.LogCaptureFixture
) -> None:
    form = {**REFUSED["customer"][0], "payload[value]": "7"}
    thin.stripe.call("POST", "billing/meter_events", ENDIVE, **form)
    assert post(thin, refuse(thin, "nobody")).status_code == 200
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    codes = [REFUSED[kind][2] for kind in ("customer", "nobody")]
    assert [code in line for code, line in zip(codes, lines, strict=True)] == [True, True]


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": True}, {"status": 403}])
def test_what_cannot_be_read_now_is_told_later(
    thin: Service, fault: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    event = refuse(thin, "customer")
    thin.stripe.fault(method="GET", path=REPORT, times=99, **fault)
    assert post(thin, event).status_code == 500
    before = counted(thin, REFUSED["customer"][2])
    thin.stripe.fake("DELETE", "faults")
    assert post(thin, event).status_code == 200
    assert REFUSED["customer"][3] in caplog.text
    assert counted(thin, REFUSED["customer"][2]) == before + 1


def test_a_thin_event_of_another_type_is_ignored(thin: Service) -> None:
    kind = "v1.billing.meter.created"
    answer = post(thin, {**refuse(thin, "customer"), "type": kind})
    assert (answer.status_code, answer.json) == (200, {"ignored": kind})
    assert thin.called() == []


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"id": None}, 422),
        ({"id": "../x"}, 422),
        ({"id": ["evt_1"]}, 422),
        ({"type": None}, 422),
        ({"related_object": "mtr_1"}, 422),
        ({"related_object": {}}, 422),
        ({"related_object": {"id": "a/b"}}, 422),
        ({"context": 5}, 422),
        ({"id": "evt_unknown"}, 500),
        ({"related_object": None}, 200),
        ({"data": None, "object": None}, 200),
    ],
    ids=str,
)
def test_a_thin_event_that_lacks_something_is_answered_without_a_traceback(
    thin: Service, changed: dict[str, Any], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    thin.client.application.config["PROPAGATE_EXCEPTIONS"] = False
    assert post(thin, {**refuse(thin, "customer"), **changed}).status_code == status
    assert "Traceback" not in caplog.text


SAMPLE = {"error_message": None}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (None, 500),
        ([], 500),
        ({}, 500),
        ({"reason": "no"}, 500),
        ({"reason": {"error_types": None}}, 500),
        ({"reason": {"error_types": ["no"]}}, 500),
        ({"reason": {"error_types": []}}, 200),
        ({"reason": {"error_types": [{}]}}, 200),
        ({"reason": {"error_types": [{"code": "new", "error_count": "1"}]}}, 200),
        ({"reason": {"error_types": [{"code": ["x"], "sample_errors": [None]}]}}, 200),
        ({"reason": {"error_types": [{"code": "a\nb", "sample_errors": [SAMPLE]}]}}, 200),
    ],
    ids=str,
)
def test_details_that_cannot_be_read_are_answered_without_a_traceback(
    thin: Service, data: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    thin.client.application.config["PROPAGATE_EXCEPTIONS"] = False
    event = refuse(thin, "customer")
    thin.stripe.fault(path=REPORT, status=200, body={**event, "data": data})
    assert post(thin, event).status_code == status
    assert "Traceback" not in caplog.text
    assert all("\n" not in message for message in caplog.messages)


def test_a_code_that_is_new_is_counted_as_another(thin: Service) -> None:
    event, before = refuse(thin, "customer"), counted(thin, "other")
    kinds = [{"code": "brand_new", "error_count": 3, "sample_errors": []}]
    body = {**event, "data": {"reason": {"error_types": kinds}}}
    thin.stripe.fault(path=REPORT, status=200, body=body)
    assert post(thin, event).status_code == 200
    assert counted(thin, "other") == before + 3
