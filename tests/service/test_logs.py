"""The log: one line per report and per delivery, as text and as JSON, without secrets."""

import contextlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.logging import default_handler
from pytest_mock import MockerFixture

from fakes.processes import Processes
from service import logs
from tests.conftest import (
    DAY,
    END,
    ENDIVE,
    KEY,
    SECRETS,
    START,
    Service,
    Stripe,
    assert_no_secret,
    updated,
)

Start = Callable[..., Service]
ABOUT_ITEM = ["subscription", "customer", "item", "meter", "subject", "period"]


@pytest.fixture
def lines(start: Start) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Return what the log has as JSON so far, a line each."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.formatter("json"))
    logger = logging.getLogger("app")
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)


Lines = Callable[[], list[dict[str, Any]]]


def test_a_report_and_its_delivery_have_a_line_of_json_each(service: Service, lines: Lines) -> None:
    subscription = service.stripe.subscription()
    assert service.deliver(subscription).status_code == 200
    report, delivery = lines()
    item = service.stripe.items()[0]
    assert {name: report[name] for name in ABOUT_ITEM} == {
        "subscription": subscription["id"],
        "customer": service.stripe.ids["customer"],
        "item": item,
        "meter": "m1",
        "subject": service.stripe.ids["customer"],
        "period": "2023-06-07T14:00:00+00:00/2023-07-07T14:00:00+00:00",
    }
    assert (report["way"], report["total"]) == ("usage record", "10.000000000")
    assert delivery["message"].endswith("reported 1, skipped 0, warned 0, failed 0")
    assert (delivery["status"], "item" in delivery) == (200, False)
    for line in (report, delivery):
        assert (line["event"], line["type"]) == ("evt_1", "customer.subscription.updated")
        assert (line["level"], line["outcome"]) == ("INFO", "reported")
        assert 0 < line["milliseconds"] < 5_000
        assert line["time"].endswith("+00:00")


def test_an_error_has_the_request_id_of_stripe(service: Service, lines: Lines) -> None:
    said = {"error": {"message": "no"}}
    service.stripe.fault(path="/usage_records", method="POST", status=402, body=said)
    assert service.deliver(service.stripe.subscription()).status_code == 500
    failure, delivery = lines()
    assert failure["level"] == "ERROR"
    assert failure["request_id"].startswith("req_")
    assert failure["outcome"] == delivery["outcome"] == "failed"
    assert [failure["item"], failure["way"]] == [service.stripe.items()[0], "usage record"]
    assert "request_id" not in delivery


def test_each_line_of_a_delivery_names_whom_it_is_about(service: Service, lines: Lines) -> None:
    subscription = service.stripe.subscription()
    service.deliver(subscription)
    broken = updated({**subscription, "items": {}})
    assert service.post(json.dumps(broken)).status_code == 422
    for line in lines():
        about = (line["subscription"], line["customer"])
        assert about == (subscription["id"], subscription["customer"])
    assert f"of {about[0]}, {about[1]}" in lines()[-1]["message"]
    service.post('{"type": "invoice.created", "id": "evt_2", "data": {"object": {"id": "in_1"}}}')
    assert "subscription" not in lines()[-1]


def test_a_path_that_nobody_serves_is_nothing_to_look_at(service: Service, lines: Lines) -> None:
    for method, path, status in (("GET", "/.env", 404), ("GET", "/webhook", 405)):
        assert service.open(method, path).status_code == status
    assert [line["level"] for line in lines()] == ["INFO", "INFO"]


def test_an_idle_customer_is_warned_of_once_and_counted_each_time(
    start: Start, lines: Lines
) -> None:
    service = start()
    service.stripe.seed()
    subscription = service.stripe.subscription()
    for _ in range(3):
        assert len(service.deliver(subscription).json["warnings"]) == 1
    kinds = [line["level"] for line in lines() if line.get("warning") == "no rows"]
    assert kinds == ["WARNING", "INFO", "INFO"]


def test_a_run_takes_an_idle_customer_for_granted_and_counts_it(start: Start, lines: Lines) -> None:
    service = start()
    service.stripe.seed()
    service.openmeter.use("somebody", 1, time="2023-06-07T14:00:00Z")
    run = ["report", "--subscription", service.stripe.ids["subscription"]]
    assert "warned: 1" in service.client.application.test_cli_runner().invoke(args=run).output
    assert [line["level"] for line in lines() if line.get("warning") == "no rows"] == ["INFO"]


def test_a_warning_names_its_kind(start: Start, lines: Lines) -> None:
    service = start()
    service.stripe.seed()
    service.stripe.collect_events(ENDIVE)
    service.openmeter.use(service.stripe.ids["customer"], 10)
    before = service.stripe.subscription(ENDIVE)
    service.stripe.advance(END + DAY)
    closing = updated(service.stripe.subscription(ENDIVE))
    closing["data"]["previous_attributes"] = {"items": before["items"]}
    assert service.post(json.dumps(closing)).status_code == 200
    assert service.deliver(before).status_code == 200
    warned = [(line["warning"], line["outcome"]) for line in lines() if "warning" in line]
    assert warned == [("closed", "warned"), ("no rows", "warned"), ("closed", "refused")]
    assert all(line["period"] for line in lines() if "warning" in line)


@pytest.mark.parametrize(
    ("body", "status", "outcome"),
    [
        ('{"type": "invoice.paid", "id": "evt_2"}', 200, "ignored"),
        ('{"type": "customer.subscription.updated", "id": "evt_2"}', 422, "invalid"),
        ('{"id": "evt_2"}', 422, "invalid"),
        ("[]", 400, "not genuine"),
    ],
)
def test_each_delivery_has_one_line(
    service: Service, lines: Lines, body: str, status: int, outcome: str
) -> None:
    assert service.post(body).status_code == status
    (line,) = lines()
    assert (line["status"], line["outcome"]) == (status, outcome)
    assert line.get("event") == ("evt_2" if status != 400 else None)


def test_a_delivery_is_about_itself_alone(service: Service, lines: Lines) -> None:
    service.post('{"type": "invoice.paid", "id": "evt_2"}')
    service.post("", signature="")
    service.open("GET", "/nowhere")
    first, second, third = lines()
    assert first["event"] == "evt_2"
    assert "event" not in second
    assert "status" not in third


def test_a_mistake_of_ours_is_one_outcome_and_shows_no_secret(
    service: Service, lines: Lines, mocker: MockerFixture
) -> None:
    mocker.patch("billing.events.EVENTS", {"customer.subscription.updated": fail})
    service.client.application.config["PROPAGATE_EXCEPTIONS"] = False
    answer = service.deliver(service.stripe.subscription())
    assert (answer.status_code, "Traceback" in answer.text) == (500, False)
    trace, delivery = lines()
    assert "ZeroDivisionError: [hidden]" in trace["exc_info"]
    assert delivery["outcome"] == "error"


def fail(*_: object) -> None:
    """Fail as a mistake would, with a secret in the message."""
    raise ZeroDivisionError(KEY)


@pytest.mark.parametrize("name", ["text", "json"])
def test_neither_form_shows_a_secret(name: str) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.formatter(name))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.addFilter(logs.ContextFilter())
    logger.addFilter(logs.SecretFilter('a"b', 'a"bc', "z"))
    with logs.bound_log_fields(subject='a"bc', item="si_1"):
        logger.warning("%s and %s", 'xa"bcx', "z")
    assert "x[hidden]x and [hidden]" in written.getvalue()
    assert 'a"b' not in written.getvalue().replace("\\", "")


def test_the_text_form_has_the_time_and_a_level_where_it_is_not_usual() -> None:
    form = logs.formatter("text")
    record = logging.LogRecord("app", logging.INFO, "", 0, "said", (), None)
    record.created = START + 0.9
    assert form.format(record) == "2023-06-07T14:20:30Z said"
    record.levelno, record.levelname = logging.ERROR, "ERROR"
    assert form.format(record) == "2023-06-07T14:20:30Z ERROR: said"


def test_lines_go_to_what_is_standard_error_at_the_time_instead_of_by_flask() -> None:
    logger, written = logging.Logger("test"), io.StringIO()
    logger.addHandler(default_handler)
    for form in ("json", "text"):  # as where one process builds the service twice
        logs.configure_logger(logger, default_handler, form, logs.SecretFilter("z"))
    with contextlib.redirect_stderr(written):
        logger.info("said %s", "z")
    assert written.getvalue().endswith("Z said [hidden]\n")
    assert len(written.getvalue().splitlines()) == 1


def test_where_lines_are_caught_already_nothing_else_writes_them() -> None:
    logger, caught = logging.Logger("test"), logging.NullHandler()
    logger.addHandler(caught)
    logs.configure_logger(logger, default_handler, "text", logs.SecretFilter())
    assert logger.handlers == [caught]


@pytest.mark.parametrize("secret", SECRETS)
def test_the_search_of_all_tests_finds_a_secret(secret: str) -> None:
    with pytest.raises(AssertionError, match="a secret is seen"):
        assert_no_secret(f"Bearer {secret}.")


def test_under_gunicorn_each_line_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_FORMAT", "json")
    with Processes() as processes:
        service = processes.start_service()
        stripe = Stripe(processes.stripe)
        stripe.seed()
        stripe.update(**{"metadata[plan]": "a"})
        processes.deliveries(1)
        service.popen.terminate()
        service.popen.wait(10)
        printed = [json.loads(line) for line in service.printed().splitlines()]
    messages = [line["message"] for line in printed]
    assert any(message.startswith("Listening at: http://") for message in messages)
    assert any(
        re.search(r"updated\) of sub_\w+, cus_\w+: reported 1", message) for message in messages
    )
    assert all(line["time"] and line["level"] for line in printed)
