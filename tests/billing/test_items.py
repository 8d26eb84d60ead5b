"""Subscription items and their periods, read from Stripe's objects; no network."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import usage
from billing.items import InvalidStripeObject, MeteredItem, read_item

ITEM = MeteredItem(
    id="si_1",
    subscription="sub_1",
    price="price_123",
    customer="cus_123",
    subject="cus_123",
    meter="m1",
    billing_meter=None,
    window=3_600,
    start=1_686_147_630,
    end=1_688_739_630,
    counted_from=1_686_147_630,
)
seconds = st.integers(0, 4_102_444_800)
windows = st.sampled_from(list(usage.WINDOW_SECONDS.values()))


@given(st.lists(seconds, min_size=3, max_size=6, unique=True).map(sorted), windows)
def test_consecutive_periods_neither_overlap_nor_leave_a_gap(
    bounds: list[int], window: int
) -> None:
    periods = [
        replace(ITEM, start=start, end=end, counted_from=start, window=window)
        for start, end in pairwise(bounds)
    ]
    for before, after in pairwise(periods):
        assert before.window_end == after.window_start
    assert all(period.window_start <= period.window_end for period in periods)


@given(st.integers(1, 4_102_444_800), st.integers(0, 10**7), windows)
def test_an_unrounded_boundary_is_asked_for_to_its_second(
    start: int, length: int, window: int
) -> None:
    end = start + length
    item = replace(ITEM, counted_from=start, end=end, unrounded=frozenset([start, end, end + 1]))
    item = replace(item, window=window)
    assert (item.window_start.timestamp(), item.window_end.timestamp()) == (start, end)


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


def entry(**changes: Any) -> dict[str, Any]:
    price = {"id": "price_123", "recurring": {"usage_type": "metered"}, "metadata": {}}
    return {"id": "si_1", "metadata": {"om_meter_id": "m1"}, "price": price, **changes}


def subscription(**changes: Any) -> dict[str, Any]:
    period = {"current_period_start": ITEM.start, "current_period_end": ITEM.end}
    return {"id": "sub_1", "customer": "cus_123", "metadata": {}, **period, **changes}


def planned(item: dict[str, Any], **changes: Any) -> MeteredItem | None:
    return read_item(item, subscription(**changes), "items.data[0]", "HOUR")


def test_an_item_is_read_with_its_period_from_the_subscription_or_from_itself() -> None:
    assert planned(entry()) == ITEM
    own = {"current_period_start": 60, "current_period_end": 120}
    assert planned(entry(**own)) == replace(ITEM, start=60, end=120, counted_from=60)
    without = {"current_period_start": None, "current_period_end": None}
    assert planned(entry(**own), **without) == replace(ITEM, start=60, end=120, counted_from=60)


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


ULID = "01G65Z755AFWAKHE12NY0CQ9FH"
OWNER = usage.OpenMeterCustomer(ULID)


def test_a_whole_customer_of_openmeters_counts_where_the_subscription_names_one() -> None:
    for metadata in ({"om_customer": ULID}, {"om_customer": ULID, "om_subject": ""}):
        assert planned(entry(), metadata=metadata) == replace(ITEM, subject=OWNER)
    assert planned(entry(), metadata={"om_customer": ""}) == ITEM
    assert planned(entry(), metadata={"om_subject": ULID}) == replace(ITEM, subject=ULID)
    on_item = {"om_meter_id": "m1", "om_customer": ULID}
    assert planned(entry(metadata=on_item)) == ITEM


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"om_customer": ULID, "om_subject": "a"}, "stands beside om_subject: take one away"),
        ({"om_customer": "wrong", "om_subject": "a"}, "stands beside om_subject"),
        ({"om_customer": "cus_123"}, "no id of an OpenMeter customer, which is a ULID: 'cus_123'"),
        ({"om_customer": ULID[:-1]}, "no id of an OpenMeter customer"),
        ({"om_customer": f"{ULID}0"}, "no id of an OpenMeter customer"),
        ({"om_customer": f"8{ULID[1:]}"}, "no id of an OpenMeter customer"),
        ({"om_customer": f"{ULID[:-1]}U"}, "no id of an OpenMeter customer"),
        ({"om_customer": f"{ULID}\n"}, "no id of an OpenMeter customer"),
        ({"om_customer": f" {ULID}"}, "no id of an OpenMeter customer"),
        ({"om_customer": 7}, "metadata.om_customer is no text"),
    ],
)
def test_an_om_customer_that_names_nobody_for_sure_is_refused(
    metadata: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidStripeObject, match=reason):
        planned(entry(), metadata=metadata)


def test_a_whole_customer_is_not_counted_as_a_subject_of_the_same_text() -> None:
    whole, subject = replace(ITEM, subject=OWNER), replace(ITEM, subject=ULID)
    assert whole.counts_as(replace(whole, id="si_2"))
    assert not whole.counts_as(subject)
    assert whole != subject


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
