"""Tables and properties of what is billed; no network."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import openmeter
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

import usage

ITEM = usage.MeteredItem(
    id="si_1",
    subscription="sub_1",
    price="price_123",
    customer="cus_123",
    subject="cus_123",
    meter="m1",
    stripe_meter=None,
    window=3_600,
    start=1_686_147_630,
    end=1_688_739_630,
)
seconds = st.integers(0, 4_102_444_800)
windows = st.sampled_from(list(usage.WINDOW_SECONDS.values()))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(
    ("window", "instant", "rounded"),
    [
        ("MINUTE", "2023-06-07T14:20:30Z", "2023-06-07T14:20:00Z"),
        ("MINUTE", "2023-06-07T14:20:59Z", "2023-06-07T14:20:00Z"),
        ("MINUTE", "2023-06-07T14:21:00Z", "2023-06-07T14:21:00Z"),
        ("HOUR", "2023-06-07T14:20:30Z", "2023-06-07T14:00:00Z"),
        ("HOUR", "2023-06-07T13:59:59Z", "2023-06-07T13:00:00Z"),
        ("HOUR", "2023-06-07T14:00:00Z", "2023-06-07T14:00:00Z"),
        ("DAY", "2023-06-07T23:59:59Z", "2023-06-07T00:00:00Z"),
        ("DAY", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
        ("DAY", "2024-03-01T00:00:01Z", "2024-03-01T00:00:00Z"),
        # A change of the clocks in Europe changes nothing: windows are UTC's.
        ("DAY", "2024-03-31T02:30:00+02:00", "2024-03-31T00:00:00Z"),
        ("DAY", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ],
)
def test_an_instant_is_rounded_down_to_its_window_in_utc(
    window: str, instant: str, rounded: str
) -> None:
    found = usage.round_down(at(instant), usage.WINDOW_SECONDS[window])
    assert found == datetime.fromisoformat(rounded)
    assert found.utcoffset() == timedelta(0)


@given(seconds, windows)
def test_rounding_is_idempotent_never_later_and_less_than_a_window(
    second: int, window: int
) -> None:
    rounded = usage.round_down(second, window).timestamp()
    assert usage.round_down(int(rounded), window).timestamp() == rounded
    assert 0 <= second - rounded < window


@given(st.lists(seconds, min_size=3, max_size=6, unique=True).map(sorted), windows)
def test_consecutive_periods_neither_overlap_nor_leave_a_gap(
    bounds: list[int], window: int
) -> None:
    periods = [
        replace(ITEM, start=start, end=end, window=window) for start, end in pairwise(bounds)
    ]
    for before, after in pairwise(periods):
        assert before.window_end == after.window_start
    assert all(period.window_start <= period.window_end for period in periods)


def test_a_moved_anchor_is_a_boundary_without_rounding() -> None:
    anchored = {"billing_cycle_anchor": ITEM.start, "start_date": ITEM.start - 86_400}
    found = planned(entry(), **anchored)
    assert found
    assert (found.window_start.timestamp(), found.window_end) == (ITEM.start, ITEM.window_end)
    ahead = planned(entry(), **{**anchored, "billing_cycle_anchor": ITEM.end})
    assert ahead
    assert (ahead.window_start, ahead.window_end.timestamp()) == (ITEM.window_start, ITEM.end)


@pytest.mark.parametrize("began", [ITEM.start, None])
def test_an_anchor_where_the_subscription_began_is_rounded_down(began: int | None) -> None:
    found = planned(entry(), billing_cycle_anchor=ITEM.start, start_date=began)
    assert found == ITEM


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("10", "10"),
        ("0", "0"),
        ("9.9999999996", "10"),
        ("0.30000000000000004", "0.3"),
        ("0.1234567891", "0.123456789"),
        ("2.5e3", "2500"),
        ("-1e-12", "0"),
        ("9007199254740992", "9007199254740992"),
        ("9007199254740991.5", "9007199254740991.5"),
    ],
)
def test_a_total_is_exact_but_for_float_noise(text: str, total: str) -> None:
    found = usage.exact(json.loads(text, parse_float=Decimal, parse_int=Decimal))
    assert found == Decimal(total)
    assert not found.is_signed()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9007199254740994", "beyond 2\\*\\*53"),
        ("1e21", "beyond 2\\*\\*53"),
        ("1e999999999", "beyond 2\\*\\*53"),
        ("-1e21", "beyond 2\\*\\*53"),
        ("-1", "negative"),
        ("-0.000000001", "negative"),
        ("NaN", "no finite number"),
        ("Infinity", "no finite number"),
        ("null", "no finite number"),
        ("true", "no finite number"),
        ('"10"', "no finite number"),
        ("[]", "no finite number"),
    ],
)
def test_a_total_that_is_no_quantity_is_refused(text: str, reason: str) -> None:
    value = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    with pytest.raises(ValueError, match=reason):
        usage.exact(value)
    with pytest.raises(ValueError, match="no finite number"):
        usage.exact(Decimal("NaN"))


@pytest.mark.parametrize(
    ("total", "down", "half_up", "up"),
    [
        ("10", 10, 10, 10),
        ("0", 0, 0, 0),
        ("0.3", 0, 0, 1),
        ("0.5", 0, 1, 1),
        ("1.5", 1, 2, 2),
        ("2.499999999", 2, 2, 3),
        ("0.000000001", 0, 0, 1),
        ("9007199254740991.5", 2**53 - 1, 2**53, 2**53),
        ("9007199254740992", 2**53, 2**53, 2**53),
    ],
)
def test_a_quantity_is_rounded_as_the_setting_says(
    total: str, down: int, half_up: int, up: int
) -> None:
    quantities = [usage.quantity(Decimal(total), way) for way in ("down", "half-up", "up")]
    assert quantities == [down, half_up, up]


def entry(**changes: Any) -> dict[str, Any]:
    price = {"id": "price_123", "recurring": {"usage_type": "metered"}, "metadata": {}}
    return {"id": "si_1", "metadata": {"om_meter_id": "m1"}, "price": price, **changes}


def subscription(**changes: Any) -> dict[str, Any]:
    period = {"current_period_start": ITEM.start, "current_period_end": ITEM.end}
    return {"id": "sub_1", "customer": "cus_123", "metadata": {}, **period, **changes}


def planned(item: dict[str, Any], **changes: Any) -> usage.MeteredItem | None:
    return usage.metered_item(item, subscription(**changes), "items.data[0]", "HOUR")


def test_an_item_is_read_with_its_period_from_the_subscription_or_from_itself() -> None:
    assert planned(entry()) == ITEM
    own = {"current_period_start": 60, "current_period_end": 120}
    assert planned(entry(**own)) == replace(ITEM, start=60, end=120)
    without = {"current_period_start": None, "current_period_end": None}
    assert planned(entry(**own), **without) == replace(ITEM, start=60, end=120)


def test_meter_and_window_come_from_the_item_or_else_from_its_price() -> None:
    price = {**entry()["price"], "metadata": {"om_meter_id": "m2", "om_window_size": "DAY"}}
    assert planned(entry(metadata={}, price=price)) == replace(ITEM, meter="m2", window=86_400)
    assert planned(entry(price=price)) == replace(ITEM, window=86_400)
    minute = {"om_meter_id": "m1", "om_window_size": "MINUTE"}
    assert planned(entry(price=price, metadata=minute)) == replace(ITEM, window=60)


@pytest.mark.parametrize("customer", ["cus_123", {"id": "cus_123", "object": "customer"}])
def test_the_subject_is_the_customer_unless_the_subscription_names_one(customer: object) -> None:
    assert planned(entry(), customer=customer) == ITEM
    named = planned(entry(), customer=customer, metadata={"om_subject": "a&b=c d"})
    assert named == replace(ITEM, subject="a&b=c d")
    assert planned(entry(), customer=customer, metadata={"om_subject": ""}) == ITEM


@pytest.mark.parametrize(
    "item",
    [
        entry(metadata={}),
        entry(metadata=None),
        entry(metadata={"om_meter_id": ""}),
        entry(price={"id": "price_1", "recurring": {"usage_type": "licensed"}}),
        entry(price={"id": "price_1", "recurring": None}),
        entry(price={"id": "price_1"}),
    ],
)
def test_an_item_that_is_not_metered_or_names_no_meter_is_skipped(item: dict[str, Any]) -> None:
    assert planned(item) is None


@pytest.mark.parametrize("exact", [frozenset(), frozenset([ITEM.start])])
def test_an_empty_period_is_zero_without_a_query(
    mocker: MockerFixture, exact: frozenset[int]
) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    within_an_hour = replace(ITEM, end=ITEM.start + 60, exact=exact)
    assert usage.total_usage(client, within_an_hour) == 0
    client.send_request.assert_not_called()


@pytest.mark.parametrize(
    "body",
    ["", "[]", "null", "{}", '{"data": null}', '{"data": [1]}', '{"data": [{}]}', "[" * 100_000],
)
def test_an_unreadable_answer_names_the_meter(mocker: MockerFixture, body: str) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.text.return_value = body
    with pytest.raises(usage.ReportFailed, match="meter m1: .* unreadable"):
        usage.total_usage(client, ITEM)


@pytest.mark.parametrize("value", ["-1", "NaN", "1e21", "null", "9007199254740994"])
def test_a_total_that_cannot_be_billed_names_the_meter(mocker: MockerFixture, value: str) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.text.return_value = f'{{"data": [{{"value": {value}}}]}}'
    with pytest.raises(usage.ReportFailed, match="meter m1: the total"):
        usage.total_usage(client, ITEM)


def test_two_totals_are_not_added_up(mocker: MockerFixture) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.text.return_value = '{"data": [{"value": 1}, {"value": 2}]}'
    with pytest.raises(usage.ReportFailed, match="meter m1: OpenMeter answered 2 totals"):
        usage.total_usage(client, ITEM)


def test_the_log_line_is_that_of_the_go_example() -> None:
    fields = usage.report_fields(ITEM, Decimal(10))
    line = (
        "stripe_customer: cus_123, stripe_price: price_123, meter: m1, total_usage: 10.000000, "
        "from: 2023-06-07 14:00:00 +0000 UTC, to: 2023-07-07 14:00:00 +0000 UTC"
    )
    assert ", ".join(f"{name}: {value}" for name, value in fields.items()) == line
    assert datetime(2023, 6, 7, 14, tzinfo=UTC) == ITEM.window_start
