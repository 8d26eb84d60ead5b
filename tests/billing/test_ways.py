"""Tables of where a total goes in Stripe; no network."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
import stripe
from pytest_mock import MockerFixture

from billing import stripe_api, ways
from billing.items import MeteredItem
from billing.stripe_api import Json, KnownMeters, ReportFailed, ReportRefused, StripeConnection
from service.transport import limit_time_of_calls
from tests.billing.test_items import ITEM

METERED = replace(ITEM, billing_meter="mtr_1")
METER: dict[str, Any] = {
    "id": "mtr_1",
    "object": "billing.meter",
    "customer_mapping": {"event_payload_key": "who", "type": "by_id"},
    "default_aggregation": {"formula": "last"},
    "event_name": "openmeter_m1",
    "status": "active",
    "value_settings": {"event_payload_key": "how_much"},
}
TAKEN = {"object": "billing.meter_event"}
BUSY = stripe.RateLimitError("slow down", http_status=429)
LOCKED = stripe.APIError("one call at a time", http_status=409)
Answers = Callable[..., Any]


def report(account: StripeConnection, item: MeteredItem, total: object, as_of: int) -> Any:
    return ways.report_total(account, item, lambda: Decimal(str(total)), lambda: as_of)


@pytest.fixture
def account(mocker: MockerFixture) -> StripeConnection:
    return StripeConnection(mocker.create_autospec(stripe.StripeClient, instance=True), "down")


@pytest.fixture
def answers(mocker: MockerFixture, account: StripeConnection) -> Answers:
    """Let Stripe answer with bodies, or raise errors, in turn; return the mocked call."""

    def answered(*bodies: object) -> Any:
        raw: Any = account.client.raw_request
        raw.side_effect = [
            body if isinstance(body, Exception) else mocker.Mock(data=body, headers={})
            for body in bodies
        ]
        return raw

    return answered


def test_the_price_decides_where_a_total_goes(account: StripeConnection, answers: Answers) -> None:
    raw = answers({"object": "usage_record"}, METER, TAKEN)
    assert report(account, ITEM, "10.7", 0) == 10
    assert report(account, METERED, "10.7", ITEM.start + 60) == "10.7"
    record, _, event = raw.call_args_list
    assert record.args == ("post", "/v1/subscription_items/si_1/usage_records")
    assert record.kwargs == {
        "quantity": 10,
        "timestamp": ITEM.start + 1,
        "action": "set",
        "stripe_version": "2025-02-24.acacia",
        "max_network_retries": 0,
    }
    assert event.args == ("post", "/v1/billing/meter_events")
    assert event.kwargs == {
        "event_name": "openmeter_m1",
        "timestamp": ITEM.start + 60,
        "payload": {"who": "cus_123", "how_much": "10.7"},
        "max_network_retries": 0,
    }


def test_a_meter_is_read_once(account: StripeConnection, answers: Answers) -> None:
    raw = answers(METER, TAKEN, TAKEN, TAKEN)
    for _ in range(3):
        report(account, METERED, 1, 0)
    assert [call.args[0] for call in raw.call_args_list] == ["get", "post", "post", "post"]


@pytest.mark.parametrize(
    ("meter", "reason"),
    [
        ({**METER, "default_aggregation": {"formula": "sum"}}, "'sum', which would add up"),
        ({**METER, "default_aggregation": {"formula": "count"}}, "'count', which would add up"),
        ({**METER, "status": "inactive"}, "mtr_1 is deactivated: make one with"),
        ({**METER, "event_time_window": "day"}, "mtr_1 has an event_time_window"),
        ({**METER, "dimension_payload_keys": ["region"]}, "mtr_1 has dimensions"),
        ({**METER, "event_name": ""}, "no Billing Meter"),
        ({**METER, "event_name": 5}, "no Billing Meter"),
        ({**METER, "customer_mapping": None}, "no Billing Meter"),
        ({}, "no Billing Meter"),
        ([], "no Billing Meter"),
    ],
)
def test_a_meter_that_cannot_take_running_totals_is_refused_each_time(
    account: StripeConnection, answers: Answers, meter: object, reason: str
) -> None:
    answers(meter, meter)
    for _ in range(2):
        with pytest.raises(ReportFailed, match=reason):
            report(account, METERED, 1, 0)


@pytest.mark.parametrize("length", [0, 1])
def test_a_period_without_a_second_of_its_own_is_refused(
    account: StripeConnection, answers: Answers, length: int
) -> None:
    raw = answers()
    with pytest.raises(ReportRefused, match="too short"):
        report(account, replace(METERED, end=ITEM.start + length), 1, 0)
    raw.assert_not_called()


@pytest.mark.parametrize(
    ("total", "value"),
    [
        ("0", "0"),
        ("10", "10"),
        ("10.000000000", "10"),
        ("100", "100"),
        ("0.300000000", "0.3"),
        ("0.000000001", "0.000000001"),
        ("1234567.123456789", "1234567.12345678"),
        ("123456789012345.9", "123456789012345"),
        ("999999999999999", "999999999999999"),
        ("1E+3", "1000"),
    ],
)
def test_a_value_is_a_plain_decimal_of_fifteen_digits(total: str, value: str) -> None:
    assert ways.meter_value(Decimal(total)) == value


def test_a_total_of_sixteen_digits_is_refused() -> None:
    with pytest.raises(ReportFailed, match="more than 15 digits"):
        ways.meter_value(Decimal(2**53))


def test_a_usage_record_is_held_in_the_first_summary_without_an_invoice(
    account: StripeConnection, answers: Answers
) -> None:
    totals = [(9, "in_1"), (5, None), (7, None)]
    data = [{"id": f"sis_{n}", "total_usage": n, "invoice": invoice} for n, invoice in totals]
    raw = answers({"data": data}, {"data": []})
    assert ways.fetch_running_record_total(account, ITEM) == 5
    assert raw.call_args.kwargs["stripe_version"] == "2025-02-24.acacia"
    assert ways.fetch_running_record_total(account, ITEM) == 0


@pytest.mark.parametrize("start", [METERED.start, METERED.start - 30, METERED.start + 29])
def test_a_meters_summary_is_asked_for_in_full_minutes(
    account: StripeConnection, answers: Answers, start: int
) -> None:
    raw = answers(METER, {"data": [{"id": "sum_1", "aggregated_value": 2.5}]})
    found = ways.fetch_meter_event_total(account, METERED, start, METERED.end - 30)
    assert found == Decimal("2.5")
    asked = raw.call_args
    assert asked.args == ("get", "/v1/billing/meters/mtr_1/event_summaries")
    bounds = {"start_time": METERED.start - 30, "end_time": METERED.end - 30}
    assert asked.kwargs == {"customer": "cus_123", "limit": 100, **bounds}


@pytest.mark.parametrize("value", [None, True, "5"])
def test_a_summary_without_a_number_fails(
    account: StripeConnection, answers: Answers, value: object
) -> None:
    answers({"data": [{"id": "sis_1", "total_usage": value}]})
    with pytest.raises(ReportFailed, match="no total_usage"):
        ways.fetch_running_record_total(account, ITEM)


@pytest.mark.parametrize("busy", [BUSY, LOCKED])
def test_a_busy_stripe_is_waited_for(
    account: StripeConnection, answers: Answers, mocker: MockerFixture, busy: Exception
) -> None:
    slept = mocker.patch("tenacity.nap.time.sleep")
    raw = answers(METER, busy, busy, TAKEN)
    assert report(account, METERED, 5, 0) == "5"
    assert (raw.call_count, slept.call_count) == (4, 2)


def test_a_stripe_that_stays_busy_fails_within_the_bound(
    account: StripeConnection, answers: Answers, mocker: MockerFixture
) -> None:
    clock = [0.0]
    mocker.patch("tenacity.time.monotonic", side_effect=lambda: clock[0])
    mocker.patch(
        "tenacity.nap.time.sleep",
        side_effect=lambda seconds: clock.__setitem__(0, clock[0] + seconds),
    )
    answers(METER, *[BUSY] * 1_000)
    with pytest.raises(ReportFailed, match="429: slow down"):
        report(account, METERED, 5, 0)
    assert 0.5 < clock[0] <= stripe_api.BUSY_SECONDS


@pytest.mark.parametrize("answer", [{}, [], {"object": "list"}])
def test_an_answer_that_is_none_of_what_was_asked_fails(
    account: StripeConnection, answers: Answers, answer: object
) -> None:
    answers(answer, METER, answer, answer)
    with pytest.raises(ReportFailed, match="no usage record"):
        report(account, ITEM, 1, 0)
    with pytest.raises(ReportFailed, match="no meter event"):
        report(account, METERED, 1, 0)
    with pytest.raises(ReportFailed, match="no subscription"):
        stripe_api.fetch_subscription(account, "sub_1")


@pytest.mark.parametrize("answer", [{}, {"data": "x"}, {"data": ["x"]}, {"data": [{"id": 5}]}, []])
def test_a_list_that_is_none_fails(
    account: StripeConnection, answers: Answers, answer: object
) -> None:
    answers(answer)
    with pytest.raises(ReportFailed, match="no list"):
        stripe_api.list_subscription_items(account, "sub_1")


def test_a_list_is_read_page_by_page_up_to_a_bound(
    account: StripeConnection, answers: Answers
) -> None:
    full = {"data": [{"id": "si_1"}, {"id": "si_2"}], "has_more": True}
    raw = answers(full, {"data": [{"id": "si_3"}]})
    found = stripe_api.list_subscription_items(account, "sub_1")
    assert [item["id"] for item in found] == ["si_1", "si_2", "si_3"]
    after = [call.kwargs.get("starting_after") for call in raw.call_args_list]
    assert after == [None, "si_2"]
    answers(*[full] * 11)
    with pytest.raises(ReportFailed, match="more than 20 at"):
        stripe_api.list_invoice_lines(account, "in_1")


# What several threads need at once


def test_a_meter_is_read_once_for_all_who_need_it_at_the_same_time() -> None:
    meters, reads = KnownMeters(), list[float]()

    def read() -> Json:
        reads.append(time.monotonic())
        time.sleep(0.05)
        return {"id": "mtr_1"}

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: meters.get(("mtr_1",), read), range(64)))
    assert found == [{"id": "mtr_1"}] * 64
    assert len(reads) == 1


def test_a_meter_that_could_not_be_read_is_read_by_the_next() -> None:
    meters, read = KnownMeters(), mock.Mock(side_effect=[ReportFailed("down"), {"id": "mtr_1"}])
    with pytest.raises(ReportFailed, match="down"):
        meters.get(("mtr_1",), read)
    assert meters.get(("mtr_1",), read) == {"id": "mtr_1"}


def test_who_waits_for_a_meter_waits_no_longer_than_its_delivery_may() -> None:
    meters, began, end = KnownMeters(), threading.Event(), threading.Event()

    def read() -> Json:
        began.set()
        end.wait(10)
        return {"id": "mtr_1"}

    with ThreadPoolExecutor(1) as pool:
        pool.submit(meters.get, ("mtr_1",), read)
        began.wait(10)
        with (
            limit_time_of_calls(0.05),
            pytest.raises(ReportFailed, match="Billing Meter mtr_1 was not read in time"),
        ):
            meters.get(("mtr_1",), read)
        end.set()
