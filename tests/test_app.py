"""Signed requests through the Flask client, with both stand-ins on real HTTP behind it."""

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import pytest
from flask.cli import FlaskGroup
from pytest_mock import MockerFixture
from stripe import WebhookSignature

import app
from billing.stripe_api import BUSY_SECONDS
from fakes import openmeter_api
from fakes.processes import ROOT
from service.transport import Connections
from tests.conftest import (
    ACACIA,
    DAY,
    END,
    ENDIVE,
    KEY,
    SECRET,
    START,
    TOKEN,
    Service,
    Stripe,
    free_port,
    serve,
    updated,
)

Start = Callable[..., Service]
IGNORED = '{"type": "invoice.paid"}'
MEBIBYTE = 1024 * 1024
CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
LINE = (
    "stripe_customer: {customer}, stripe_price: {price}, meter: m1, total_usage: 10.000000, "
    "from: 2023-06-07 14:00:00 +0000 UTC, to: 2023-07-07 14:00:00 +0000 UTC"
)


# What is reported


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_usage_of_the_rounded_period_becomes_one_set_record(
    service: Service, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ids = service.stripe.ids
    subscription = service.stripe.subscription(version)
    service.forget()

    answer = service.deliver(subscription)

    assert answer.status_code == 200
    item = subscription["items"]["data"][0]["id"]
    assert answer.json == {
        "reported": [
            {
                "item": item,
                "quantity": 10,
                "stripe_customer": ids["customer"],
                "stripe_price": ids["price"],
                "meter": "m1",
                "total_usage": "10.000000",
                "from": "2023-06-07 14:00:00 +0000 UTC",
                "to": "2023-07-07 14:00:00 +0000 UTC",
            }
        ],
        "skipped": [],
        "warnings": [],
        "failed": [],
    }
    query, record = service.called()
    assert (query["path"], query["query"]) == (
        "/api/v1/meters/m1/query",
        f"subject={ids['customer']}&from=2023-06-07T14:00:00Z&to=2023-07-07T14:00:00Z",
    )
    assert (record["method"], record["path"]) == (
        "POST",
        f"/v1/subscription_items/{item}/usage_records",
    )
    assert record["form"] == {"quantity": "10", "timestamp": str(START + 1), "action": "set"}
    assert record["version"] == ACACIA
    whose = f"{ids['subscription']}, {ids['customer']}"
    assert [r.getMessage() for r in caplog.records if r.name == "app"] == [
        LINE.format(**ids),
        f"event evt_1 (customer.subscription.updated) of {whose}: reported 1, skipped 0, warned 0, "
        "failed 0",
    ]


def test_a_repeated_event_and_more_usage_replace_the_record(service: Service) -> None:
    subscription = service.stripe.subscription()
    for _ in range(3):
        assert service.deliver(subscription).status_code == 200
    assert service.stripe.usage() == [10]
    service.openmeter.use(service.stripe.ids["customer"], 5)
    assert service.deliver(subscription).status_code == 200
    assert service.stripe.usage() == [15]


def test_items_that_are_not_metered_or_have_no_meter_stop_no_other(start: Start) -> None:
    service = start()
    stripe = service.stripe
    stripe.seed()
    product = stripe.ids["product"]
    flat = stripe.call(
        "POST", "prices", product=product, unit_amount=500, **{"recurring[interval]": "month"}
    )
    metered = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
    by_price = stripe.call(
        "POST",
        "prices",
        product=product,
        unit_amount=10,
        **{**metered, "metadata[om_meter_id]": "m1"},
    )
    stripe.seed(
        {"price": flat["id"], "metadata[om_meter_id]": "m1"},
        {},
        {"price": by_price["id"]},
        {"metadata[om_meter_id]": "m1"},
    )
    service.openmeter.use(stripe.ids["customer"], 7)
    answer = service.deliver(stripe.subscription()).json
    first, second, third, fourth = stripe.items()
    assert answer["skipped"] == [first, second]
    assert [entry["item"] for entry in answer["reported"]] == [third, fourth]
    assert [stripe.usage(third), stripe.usage(fourth)] == [[7], [7]]


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_items_that_an_event_leaves_out_are_read_from_stripe(start: Start, version: str) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 25)
    service.openmeter.use(service.stripe.ids["customer"], 3)
    subscription = service.stripe.subscription(version)
    assert len(subscription["items"]["data"]) == 10
    assert subscription["items"]["has_more"]
    answer = service.deliver(subscription)
    assert [entry["item"] for entry in answer.json["reported"]] == service.stripe.items()
    assert len(service.stripe.items()) == 25


def test_an_item_whose_id_is_none_is_refused_among_many(start: Start) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 12)
    event = updated(service.stripe.subscription())
    answer = service.post(json.dumps(changed(event, "data.object.items.data.3.id", ["si"])))
    assert answer.status_code == 422
    whose = f"{service.stripe.ids['subscription']}, {service.stripe.ids['customer']}"
    assert answer.json["error"].startswith(
        f"items.data[3].id is missing or is no id (event evt_1 of {whose}): nothing is reported"
    )


def test_the_items_of_the_event_are_reported_though_the_others_cannot_be_read(
    start: Start,
) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 12)
    subscription = service.stripe.subscription()
    service.stripe.fault(path="/v1/subscription_items", method="GET", times=2, status=503)
    answer = service.deliver(subscription)
    assert answer.status_code == 500
    assert len(answer.json["reported"]) == 10
    assert answer.json["failed"] == [
        {
            "item": f"{subscription['id']}, items after the first 10",
            "error": "Stripe answered 503 and no usable answer",
        }
    ]


def test_an_expanded_customer_and_a_named_subject(service: Service) -> None:
    subscription = service.stripe.subscription()
    expanded = {**subscription, "customer": {"id": subscription["customer"], "object": "customer"}}
    assert service.deliver(expanded).json["reported"][0]["quantity"] == 10
    service.openmeter.use("team a&b=c/é", 6)
    named = {**expanded, "metadata": {"om_subject": "team a&b=c/é"}}
    assert service.deliver(named).json["reported"][0]["quantity"] == 6


def test_a_whole_customer_of_openmeters_is_counted_with_all_its_subjects(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    owner = service.openmeter.customer("team a", "team b")
    service.openmeter.use("team a", 6)
    service.openmeter.use("team b", 0.5, 7)
    service.openmeter.use(owner, 100)
    subscription = service.stripe.subscription()
    service.forget()
    answer = service.deliver({**subscription, "metadata": {"om_customer": owner}})
    assert (answer.status_code, answer.json["warnings"]) == (200, [])
    assert [entry["total_usage"] for entry in answer.json["reported"]] == ["13.500000"]
    query = service.called()[0]
    assert query["query"].split("&")[0] == f"filterCustomerId={owner}"
    (line,) = [record for record in caplog.records if hasattr(record, "way")]
    assert (line.subject, line.customer) == (f"om_customer {owner}", subscription["customer"])  # type: ignore[attr-defined]
    by_subject = service.deliver({**subscription, "metadata": {"om_subject": owner}})
    assert by_subject.json["reported"][0]["quantity"] == 100


def test_a_customer_that_openmeter_does_not_know_fails_and_writes_nothing(service: Service) -> None:
    unknown = "01G65Z755AFWAKHE12NY0CQ9FH"
    subscription = {**service.stripe.subscription(), "metadata": {"om_customer": unknown}}
    answer = service.deliver(subscription)
    assert answer.status_code == 500
    (failed,) = answer.json["failed"]
    assert failed["error"] == (
        f"meter m1: OpenMeter answered 404, no such customer: customer with id {unknown} not found"
    )
    assert service.stripe.usage() == [0]


def test_an_openmeter_that_knows_no_customers_bills_nobody_everybodys_usage(
    service: Service,
) -> None:
    owner = service.openmeter.customer("team a")
    everybodys: dict[str, Any] = {"data": [{"value": 10, "subject": None, "groupBy": {}}]}
    service.openmeter.fault(path="/query", method="GET", status=200, body=everybodys)
    answer = service.deliver({**service.stripe.subscription(), "metadata": {"om_customer": owner}})
    assert answer.status_code == 500
    assert "other usage than that customer's" in answer.json["failed"][0]["error"]
    assert service.stripe.usage() == [0]


def test_a_customer_without_usage_is_zero_with_a_warning_that_names_it(service: Service) -> None:
    owner = service.openmeter.customer("team a")
    answer = service.deliver({**service.stripe.subscription(), "metadata": {"om_customer": owner}})
    assert answer.json["reported"][0]["quantity"] == 0
    said = f"OpenMeter has no rows for meter m1 and om_customer {owner}: no usage"
    assert answer.json["warnings"][0]["warning"].startswith(said)


@pytest.mark.parametrize(
    ("window", "bounds"),
    [
        ("MINUTE", ("2023-06-07 14:20:00", "2023-07-07 14:20:00")),
        ("HOUR", ("2023-06-07 14:00:00", "2023-07-07 14:00:00")),
        ("DAY", ("2023-06-07 00:00:00", "2023-07-07 00:00:00")),
    ],
)
def test_the_window_of_the_setting_or_of_the_item(
    start: Start, window: str, bounds: tuple[str, str]
) -> None:
    by_setting = start(OPENMETER_WINDOW_SIZE=window)
    by_setting.stripe.seed()
    by_item = start()
    by_item.stripe.seed({"metadata[om_meter_id]": "m1", "metadata[om_window_size]": window})
    for service in (by_setting, by_item):
        reported = service.deliver(by_item.stripe.subscription()).json["reported"][0]
        assert (reported["from"], reported["to"]) == tuple(f"{b} +0000 UTC" for b in bounds)


@pytest.mark.parametrize(
    ("aggregation", "total"),
    [
        ("SUM", 10),
        ("COUNT", 4),
        ("AVG", 2),
        ("MIN", 1),
        ("MAX", 4),
        ("UNIQUE_COUNT", 4),
        ("LATEST", 1),
    ],
)
def test_the_meters_own_aggregation_gives_the_total(
    service: Service, aggregation: str, total: int
) -> None:
    service.openmeter.meter("other", aggregation)
    service.openmeter.use(service.stripe.ids["customer"], 4, 3, 2, 1, kind="other")
    subscription = service.stripe.subscription()
    subscription["items"]["data"][0]["metadata"]["om_meter_id"] = "other"
    assert service.deliver(subscription).json["reported"][0]["quantity"] == total


@pytest.mark.parametrize(("rounding", "quantity"), [("down", 2), ("half-up", 3), ("up", 3)])
def test_a_fraction_is_rounded_as_the_setting_says(
    start: Start, rounding: str, quantity: int
) -> None:
    service = start(USAGE_ROUNDING=rounding)
    service.stripe.seed()
    service.openmeter.use(service.stripe.ids["customer"], 1.1, 1.4)
    reported = service.deliver(service.stripe.subscription()).json["reported"][0]
    assert (reported["quantity"], reported["total_usage"]) == (quantity, "2.500000")


def test_no_rows_are_reported_as_zero_with_a_warning(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = start()
    service.stripe.seed(**{"metadata[om_subject]": "nobody"})
    answer = service.deliver(service.stripe.subscription())
    assert answer.status_code == 200
    assert answer.json["reported"][0]["quantity"] == 0
    assert service.stripe.usage() == [0]
    warning = "OpenMeter has no rows for meter m1 and subject 'nobody'"
    assert answer.json["warnings"][0]["warning"].startswith(warning)
    assert [r.levelname for r in caplog.records if warning in r.message] == ["WARNING"]


def test_a_period_within_one_window_is_zero_without_a_query(service: Service) -> None:
    subscription = service.stripe.subscription()
    service.forget()
    answer = service.deliver({**subscription, "current_period_end": START + 60})
    assert answer.json["reported"][0]["quantity"] == 0
    assert service.openmeter.requests() == []


def test_a_record_waits_for_the_periods_first_second(
    service: Service, mocker: MockerFixture
) -> None:
    mocker.patch("time.time", return_value=START + 0.75)
    sleep = mocker.patch("time.sleep")
    signature = WebhookSignature.generate_signature_header(
        body := json.dumps(updated(service.stripe.subscription())), SECRET, int(time.time())
    )
    assert service.post(body, signature).status_code == 200
    sleep.assert_called_once_with(1)


# What is not genuine


def signed(body: str, seconds_ago: int = 0, secret: str = SECRET) -> str:
    header: str = WebhookSignature.generate_signature_header(
        body, secret, int(time.time()) - seconds_ago
    )
    return header


V1 = signed(IGNORED).split("v1=")[1]


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("", "no Stripe-Signature"),
        (signed(IGNORED, secret="whsec_other"), "No signatures found matching"),
        (signed(IGNORED + " "), "No signatures found matching"),
        (signed(IGNORED, seconds_ago=301), "Timestamp outside the tolerance zone"),
        (f"v1={V1}", "Unable to extract timestamp"),
        (f"t=,v1={V1}", "Unable to extract timestamp"),
        (f"t=soon,v1={V1}", "Unable to extract timestamp"),
        (f"t={'9' * 5000},v1={V1}", "Unable to extract timestamp"),
        (f"t=-1,v1={V1}", "No signatures found matching"),
        ("t=1", "No signatures found with expected scheme"),
        (signed(IGNORED).replace("v1=", "v0="), "No signatures found with expected scheme"),
        ("rubbish", "Unable to extract timestamp"),
        (",,==", "Unable to extract timestamp"),
        ("t=1,v1=\xe9", "not ASCII"),
        (f"t={int(time.time())},v1=\xff\xfe", "not ASCII"),
    ],
    ids=map(str, range(15)),
)
def test_a_delivery_that_is_not_genuine_is_refused_and_nobody_is_called(
    service: Service, signature: str, reason: str
) -> None:
    answer = service.post(IGNORED, signature)
    assert answer.status_code == 400
    assert reason in answer.json["error"]
    assert service.called() == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"type": "customer.subscription.updated"', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1, 2]", "no event"),
        (b'"event"', "no event"),
        (b"null", "no event"),
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(
    service: Service, body: bytes, reason: str
) -> None:
    answer = service.post(body)
    assert (answer.status_code, service.called()) == (400, [])
    assert reason in answer.json["error"]


@pytest.mark.parametrize("body", [b"\xff\xfe", b'{"type": "\xe9"}'])
def test_a_body_that_is_no_utf_8_is_refused(service: Service, body: bytes) -> None:
    answer = service.post(body, signed(body.decode("latin-1")))
    assert (answer.status_code, service.called()) == (400, [])
    assert "not UTF-8" in answer.json["error"]


@pytest.mark.parametrize(("seconds", "status"), [(298, 200), (302, 400)])
def test_a_signature_holds_for_five_minutes(service: Service, seconds: int, status: int) -> None:
    assert service.post(IGNORED, signed(IGNORED, seconds_ago=seconds)).status_code == status


def test_a_token_is_sent_to_openmeter(config: dict[str, object], stripe_fake: Stripe) -> None:
    server = serve(openmeter_api.create_app(token=TOKEN))
    stripe_fake.seed()
    body = json.dumps(updated(stripe_fake.subscription()))
    headers = {"Stripe-Signature": signed(body)}
    statuses = []
    for token in (TOKEN, "wrong", ""):
        url = f"http://127.0.0.1:{server.server_port}"
        client = app.create_app(
            {**config, "OPENMETER_URL": url, "OPENMETER_TOKEN": token}
        ).test_client()
        statuses.append(client.post("/webhook", data=body, headers=headers).status_code)
    server.shutdown()
    server.server_close()
    assert statuses == [200, 500, 500]


@pytest.mark.parametrize(
    ("used", "seconds", "status", "reason"),
    [
        ("whsec_old", 0, 200, ""),
        ("whsec_new", 0, 200, ""),
        ("whsec_other", 0, 400, "No signatures found"),
        ("whsec_old", 400, 400, "Timestamp outside the tolerance zone"),
        ("whsec_new", 400, 400, "Timestamp outside the tolerance zone"),
        ("whsec_old,whsec_new", 0, 400, "No signatures found"),
    ],
)
def test_both_secrets_hold_while_one_replaces_the_other(
    start: Start, used: str, seconds: int, status: int, reason: str
) -> None:
    service = start(STRIPE_WEBHOOK_SECRET="whsec_old,whsec_new")
    sign = WebhookSignature.generate_signature_header
    answer = service.post(IGNORED, sign(IGNORED, used, int(time.time()) - seconds))
    assert answer.status_code == status
    assert reason in answer.text


def test_one_good_signature_of_several_is_enough(service: Service) -> None:
    stamp, good = signed(IGNORED, seconds_ago=290).split(",")
    assert service.post(IGNORED, f"{stamp},v1={'0' * 64},{good},v0=x").status_code == 200


@pytest.mark.parametrize("kind", ["invoice.paid", "customer.subscription.created", "v2.core", ""])
def test_another_type_is_ignored(service: Service, kind: str) -> None:
    answer = service.post(json.dumps({"type": kind, "data": {}}))
    assert (answer.status_code, answer.json) == (200, {"ignored": kind})
    assert service.called() == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_not_allowed(service: Service, method: str) -> None:
    answer = service.open(method, "/webhook")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize("environ", [{}, CHUNKED])
@pytest.mark.parametrize(("size", "status"), [(MEBIBYTE, 200), (MEBIBYTE + 1, 413), (10**7, 413)])
def test_a_body_over_a_mebibyte_is_too_large(
    service: Service, environ: dict[str, Any], size: int, status: int
) -> None:
    body = IGNORED + " " * (size - len(IGNORED))
    answer = service.open(
        "POST",
        "/webhook",
        headers={"Stripe-Signature": signed(body)},
        input_stream=io.BytesIO(body.encode()),
        environ_overrides=environ,
    )
    assert answer.status_code == status
    assert service.called() == []


def test_a_body_that_breaks_off_is_refused_as_that(service: Service) -> None:
    headers, longer = {"Stripe-Signature": signed("{}")}, {"CONTENT_LENGTH": "99"}
    answer = service.open("POST", "/webhook", data="{}", headers=headers, environ_overrides=longer)
    assert (answer.status_code, service.called()) == (400, [])
    assert "did not come whole" in answer.json["error"]


def test_an_unknown_path_is_404(service: Service) -> None:
    assert service.open("POST", "/").status_code == 404


# What a genuine event lacks


def changed(event: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return an event with one field changed, or without it where the value is ...."""
    copied: dict[str, Any] = json.loads(json.dumps(event))
    node: Any = copied
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        node = node[step]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return copied


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("type", ..., "type"),
        ("type", 5, "type"),
        ("data", ..., "data.object"),
        ("data", [], "data.object"),
        ("data.object", ..., "data.object"),
        ("data.object", "sub_1", "data.object"),
        ("data.object.items", ..., "items.data"),
        ("data.object.items", [], "items.data"),
        ("data.object.items.data", {}, "items.data"),
        ("data.object.items.data.0", "si_1", "items.data[0]"),
        ("data.object.items.data.0.id", ..., "items.data[0].id"),
        ("data.object.items.data.0.id", "../x", "items.data[0].id"),
        ("data.object.items.data.0.id", "", "items.data[0].id"),
        ("data.object.items.data.0.id", ["si_1"], "items.data[0].id"),
        ("data.object.items.data.0.price", ..., "items.data[0].price"),
        ("data.object.items.data.0.price.id", ..., "items.data[0].price.id"),
        ("data.object.items.data.0.price.id", "a\nb", "items.data[0].price.id"),
        ("data.object.items.data.0.metadata.om_meter_id", "m1?subject=", "om_meter_id"),
        ("data.object.items.data.0.metadata.om_meter_id", "../../x", "om_meter_id"),
        ("data.object.items.data.0.metadata.om_meter_id", "M 1", "om_meter_id"),
        ("data.object.items.data.0.metadata.om_meter_id", 5, "om_meter_id"),
        ("data.object.items.data.0.metadata", "m1", "items.data[0].metadata"),
        ("data.object.items.data.0.metadata.om_window_size", "WEEK", "om_window_size"),
        ("data.object.items.data.0.metadata.om_window_size", "hour", "om_window_size"),
        ("data.object.customer", ..., "customer"),
        ("data.object.customer", {}, "customer.id"),
        ("data.object.customer", {"id": "cus/1"}, "customer.id"),
        ("data.object.customer", 7, "customer"),
        ("data.object.metadata", {"om_subject": 7}, "metadata.om_subject"),
        ("data.object.metadata", {"om_subject": "\ud800"}, "metadata.om_subject"),
        ("data.object.metadata", {"om_customer": "cus_1"}, "metadata.om_customer is no id"),
        ("data.object.metadata", {"om_customer": ["x"]}, "metadata.om_customer is no text"),
        (
            "data.object.metadata",
            {"om_customer": "01G65Z755AFWAKHE12NY0CQ9FH", "om_subject": "x"},
            "metadata.om_customer stands beside om_subject",
        ),
        ("data.object.metadata", ["x"], "metadata is no object"),
        ("data.object.current_period_start", ..., "current_period_start"),
        ("data.object.current_period_start", "1686147630", "current_period_start"),
        ("data.object.current_period_start", True, "current_period_start"),
        ("data.object.current_period_start", -1, "current_period_start"),
        ("data.object.current_period_start", 1e9, "current_period_start"),
        ("data.object.current_period_start", END + 1, "current_period_end"),
        ("data.object.current_period_end", ..., "current_period_end"),
        ("data.object.current_period_end", 10**30, "current_period_end"),
    ],
)
def test_a_subscription_that_lacks_something_is_refused_by_the_fields_name(
    service: Service, path: str, value: object, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    event = updated(service.stripe.subscription())
    service.forget()
    answer = service.post(json.dumps(changed(event, path, value)))
    assert answer.status_code == 422
    assert field in answer.json["error"]
    assert "(event evt_1" in answer.json["error"] or path == "type"
    assert service.called() == []
    assert answer.json["error"].endswith(f": {app.RESENT}")
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.levelname == "ERROR"
    assert line.getMessage() == f"answered 422: {answer.json['error']}"


def test_one_item_that_cannot_be_billed_keeps_all_from_being_written(start: Start) -> None:
    service = start()
    service.stripe.seed(
        {"metadata[om_meter_id]": "m1"},
        {"metadata[om_meter_id]": "m1", "metadata[om_window_size]": "YEAR"},
    )
    subscription = service.stripe.subscription()
    service.forget()
    answer = service.deliver(subscription)
    assert answer.status_code == 422
    assert answer.json["error"].startswith("items.data[1].metadata.om_window_size")
    assert service.called() == []


@pytest.mark.parametrize(("seconds", "is_read_again"), [(599, True), (700, False)])
def test_a_fresh_event_of_a_period_that_ends_soon_is_read_again(
    service: Service, seconds: int, is_read_again: bool
) -> None:
    now = int(time.time())
    period = {"current_period_start": now - 86_400, "current_period_end": now + seconds}
    subscription = {**service.stripe.subscription(), **period}
    service.forget()
    service.deliver(subscription)
    read = [seen for seen in service.called() if seen["path"].startswith("/v1/subscriptions/")]
    assert bool(read) == is_read_again


# What fails upstream

QUERY = {"path": "/query", "method": "GET"}
RECORD = {"path": "/usage_records", "method": "POST"}


@pytest.fixture
def quick(mocker: MockerFixture) -> None:
    """Give up on a silent server after 0.3 s instead of 9."""
    mocker.patch("service.transport.BOUND", (0.3, 0.3))
    mocker.patch("stripe.HTTPClient._sleep_time_seconds", return_value=0.01)


def test_a_delivery_without_a_turn_in_its_time_is_sent_again(
    start: Start, mocker: MockerFixture
) -> None:
    service = start(STRIPE_RATE_SHARE="10")
    service.stripe.seed()
    mocker.patch("app.DELIVERY_SECONDS", 0.3)
    event = json.dumps(updated(service.stripe.subscription()))
    answers = [service.post(event) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 500]
    assert "usage_records came in time: our share of Stripe's is 2.5" in str(answers[2].json)


@pytest.mark.parametrize("reason", ["endpoint-rate", None])
def test_what_stripe_says_of_its_limits_slows_us_down(
    service: Service, start: Start, reason: str | None
) -> None:
    paced = start(STRIPE_RATE_SHARE="80")
    headers = {"Stripe-Rate-Limited-Reason": reason} if reason else {}
    paced.stripe.fault(**RECORD, status=429, body={"error": {}}, headers=headers, times=1)
    assert paced.deliver(paced.stripe.subscription()).status_code == 200
    rates = paced.client.application.extensions["services"].stripe.rates
    slowed = [name for name, lane in rates.lanes.items() if lane.slowness() > 1]
    assert slowed == (["POST /v1/subscription_items/*/usage_records"] if reason else [])


def test_workers_share_what_one_process_may_take_and_a_command_has_it_alone() -> None:
    settings = {"STRIPE_KEY": KEY, "STRIPE_RATE_SHARE": 80, "WEB_CONCURRENCY": 4}
    assert app.build_rates(settings, None).processes == 4
    with click.Context(FlaskGroup(), info_name="flask"):
        found = app.build_rates(settings, None)
    assert (found.processes, found.is_command) == (1, True)


def test_a_worker_has_nothing_in_memory_that_only_some_need() -> None:
    needless = "audit", "doctor", "prometheus_client", "redis", "tqdm"
    tell = f"print({{name for name in {needless} if name in sys.modules}})"
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, app; {tell}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert said.stdout == "set()\n"


# Beside those of test_faults.py
FAULTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (QUERY, {"status": 503, "body": "<h1>"}, "meter m1: OpenMeter answered 503"),
    (QUERY, {"status": 429, "headers": {"Retry-After": "30"}}, "OpenMeter answered 429"),
    (QUERY, {"status": 404, "body": {"detail": "no such\npath"}}, "404, no such path"),
    (QUERY, {"status": 301, "headers": {"Location": "/elsewhere"}}, "OpenMeter answered 301"),
    (QUERY, {"status": 200, "body": "<h1>"}, "meter m1: OpenMeter's answer is unreadable"),
    (QUERY, {"status": 200, "body": {"data": {}}}, "OpenMeter's answer is unreadable"),
    (QUERY, {"status": 200, "body": {"data": ""}}, "OpenMeter's answer is unreadable"),
    (QUERY, {"status": 200, "body": "[" * 100_000}, "OpenMeter's answer is unreadable"),
    (QUERY, {"status": 200, "latin": '{"data": "\xe9"}'}, "OpenMeter's answer is unreadable"),
    (QUERY, {"status": 400, "latin": '{"detail": "\xe9"}'}, "meter m1: OpenMeter answered 400"),
    (RECORD, {"status": 400, "body": {"error": {"message": "no"}}}, "Stripe answered 400: no"),
    (RECORD, {"status": 400, "body": {"error": []}}, "Stripe's answer is unreadable"),
    (RECORD, {"status": 400, "body": []}, "Stripe answered 400"),
    (RECORD, {"status": 400, "latin": '{"error": {"message": "\xe9"}}'}, "no usable answer"),
    (RECORD, {"status": 402, "body": {"error": {"message": f"no {KEY}"}}}, "402: no [hidden]"),
    (RECORD, {"status": 302, "headers": {"Location": "/elsewhere"}}, "Stripe answered 302"),
    (RECORD, {"status": 200, "body": []}, "Stripe's answer is no usage record"),
    (RECORD, {"status": 200, "body": "[" * 100_000}, "no usable answer"),
    (
        RECORD,
        {"status": 400, "body": {"error": {"param": "timestamp", "message": "in the future"}}},
        "Stripe answered 400: in the future",
    ),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("call", "fault", "reason"), FAULTS)
def test_a_fault_fails_its_item_only_and_the_next_delivery_repairs_it(
    start: Start,
    call: dict[str, str],
    fault: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = start()
    service.stripe.seed({"metadata[om_meter_id]": "m1"}, {"metadata[om_meter_id]": "m2"})
    service.openmeter.meter("m2")
    for kind in ("execution", "m2"):
        service.openmeter.use(service.stripe.ids["customer"], 10, kind=kind)
    subscription = service.stripe.subscription()
    failing, other = service.stripe.items()
    fake = service.openmeter if call is QUERY else service.stripe
    path = "/meters/m1/query" if call is QUERY else f"/{failing}/usage_records"
    fake.fault(method=call["method"], path=path, **fault, times=1_000)

    began = time.monotonic()
    answer = service.deliver(subscription)

    assert time.monotonic() - began < 5
    fake.fake("DELETE", "faults")
    assert answer.status_code == 500
    assert [entry["item"] for entry in answer.json["failed"]] == [failing]
    assert reason in answer.json["failed"][0]["error"]
    assert [entry["item"] for entry in answer.json["reported"]] == [other]
    assert [service.stripe.usage(failing), service.stripe.usage(other)] == [[0], [10]]
    assert f"{failing}: {answer.json['failed'][0]['error']}" in caplog.text
    assert KEY not in caplog.text + answer.text
    assert TOKEN not in caplog.text + answer.text

    assert service.deliver(subscription).status_code == 200
    assert service.stripe.usage(failing) == [10]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("call", [QUERY, RECORD])
@pytest.mark.parametrize("fault", [{"drop": True}, {"delay": 1}, {"status": 502}])
def test_one_passing_fault_is_retried(
    service: Service, call: dict[str, str], fault: dict[str, Any]
) -> None:
    fake = service.openmeter if call is QUERY else service.stripe
    fake.fault(**call, **fault)
    assert service.deliver(service.stripe.subscription()).status_code == 200
    assert service.stripe.usage() == [10]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("setting", ["OPENMETER_URL", "STRIPE_API_BASE"])
def test_a_service_that_is_down_fails_the_delivery(start: Start, setting: str) -> None:
    service = start(**{setting: f"http://127.0.0.1:{free_port()}"})
    service.stripe.seed()
    answer = service.deliver(service.stripe.subscription())
    assert answer.status_code == 500
    assert "did not answer" in answer.json["failed"][0]["error"]


def test_four_attempts_of_one_item_stay_under_forty_seconds(
    service: Service, mocker: MockerFixture
) -> None:
    send = mocker.spy(Connections, "send")
    service.deliver(service.stripe.subscription())
    bounds = [call.args[-1] for call in send.call_args_list]
    assert len(bounds) == 2
    for bound in bounds:
        assert bound == (3, 9)
        assert 4 * bound[1] + 0.5 + BUSY_SECONDS < 40


@pytest.mark.parametrize("path", ["/v1/subscription_items", "/query", "/usage_records"])
def test_a_delivery_is_answered_within_its_time_whatever_is_slow(
    start: Start, mocker: MockerFixture, path: str
) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 12)
    subscription = service.stripe.subscription()
    mocker.patch("app.DELIVERY_SECONDS", 1)
    for fake in (service.stripe, service.openmeter):
        fake.fault(path=path, delay=0.7, times=99)
        fake.fault(path="/subscription_items", method="GET", delay=0.7, times=99)
    began = time.monotonic()
    assert service.deliver(subscription).status_code == 500
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_late_event_of_a_closed_period_is_answered_with_a_warning(
    service: Service, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    late = service.stripe.subscription(version)
    service.stripe.advance(END + DAY)
    assert service.deliver(service.stripe.subscription(version)).status_code == 200
    before = service.stripe.usage()
    answer = service.deliver(late)
    assert answer.status_code == 200
    assert answer.json["reported"] == []
    assert "the billing period has closed" in answer.json["warnings"][0]["warning"]
    assert "must be after the subscription's last invoice period" in caplog.text
    assert service.stripe.usage() == before


def test_events_out_of_order_leave_the_newest_total(service: Service) -> None:
    older = service.stripe.subscription()
    service.stripe.update(**{"metadata[n]": "1"})
    service.openmeter.use(service.stripe.ids["customer"], 5)
    newer = service.stripe.subscription()
    assert older != newer
    assert service.deliver(newer).status_code == 200
    assert service.deliver(older).status_code == 200
    assert service.stripe.usage() == [15]


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_reset_within_a_window_bills_nothing_twice(service: Service, version: str) -> None:
    stripe, openmeter = service.stripe, service.openmeter
    customer = stripe.ids["customer"]
    openmeter.use(customer, 5, time="2023-06-08T14:19:00Z")
    service.deliver(stripe.subscription(version))
    stripe.advance(START + DAY + 60)
    stripe.call("POST", f"subscriptions/{stripe.ids['subscription']}", billing_cycle_anchor="now")
    openmeter.use(customer, 2, time="2023-06-08T14:22:00Z")
    stripe.advance(START + DAY + 120)
    answer = service.deliver(stripe.subscription(version))
    assert answer.json["reported"][0]["from"] == "2023-06-08 14:21:30 +0000 UTC"
    assert stripe.usage() == [2, 15]


def test_an_item_that_is_gone_is_answered_with_a_warning(start: Start) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 2)
    subscription = service.stripe.subscription()
    subscription["items"]["data"][0]["id"] = "si_gone"
    answer = service.deliver(subscription)
    assert (answer.status_code, len(answer.json["reported"])) == (200, 1)
    assert ["gone from Stripe" in entry["warning"] for entry in answer.json["warnings"]].count(
        True
    ) == 1


def test_a_delivery_of_which_stripe_knows_no_item_is_anothers(service: Service) -> None:
    """The key of another account: nothing can be billed, which is no success."""
    subscription = service.stripe.subscription()
    subscription["items"]["data"][0]["id"] = "si_gone"
    answer = service.deliver(subscription)
    assert answer.status_code == 500
    assert "in the account of STRIPE_KEY" in answer.json["failed"][0]["error"]


def test_a_subscription_that_is_gone_is_answered_with_a_warning(start: Start) -> None:
    service = start()
    service.stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 11)
    subscription = {**service.stripe.subscription(), "id": "sub_gone"}
    answer = service.deliver(subscription)
    assert (answer.status_code, len(answer.json["reported"])) == (200, 10)
    assert "gone from Stripe" in answer.json["warnings"][0]["warning"]


def test_a_bug_is_answered_as_json_without_a_traceback(
    service: Service, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    service.client.application.config["PROPAGATE_EXCEPTIONS"] = False
    mocker.patch("usage.total", side_effect=ZeroDivisionError(KEY))
    answer = service.deliver(service.stripe.subscription())
    assert answer.status_code == 500
    assert set(answer.json) == {"error"}
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError: [hidden]" in caplog.text
    assert KEY not in answer.text + caplog.text
