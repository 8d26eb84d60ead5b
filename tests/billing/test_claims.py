"""What the items of a run take from each other; no network."""

from dataclasses import replace
from typing import Any

import pytest

from billing.claims import CHAINS, LATEST, RECORD, Claims, Records, Taken
from billing.items import MeteredItem
from billing.reports import Outcome
from tests.billing.test_items import ITEM

METERED = replace(ITEM, billing_meter="mtr_1")
LATER: dict[str, Any] = {"counted_from": ITEM.end, "start": ITEM.end, "end": ITEM.end + 86_400}


def others(count: int = 1, **changes: Any) -> list[MeteredItem]:
    """Return other items that are as the first one but for some changes."""
    return [replace(METERED, id=f"si_other_{n}", **changes) for n in range(count)]


@pytest.mark.parametrize("length", [1, 18, 255])
@pytest.mark.parametrize("key", [0, -(2**63), 2**63 - 1])
def test_what_was_put_is_there_again(length: int, key: int) -> None:
    records = Records()
    first = Taken(1, LATEST, -(2**63), 3, 4, "s" * length)
    second = Taken(0, 0, 2**63 - 1, 0, 2**32 - 1, "si_2")
    for taken in (first, second):
        records.put(key, taken)
    records.put(key + CHAINS if key < 0 else key - CHAINS, first)  # in their chain, of another
    assert [taken for _, taken in records.places(key)] == [second, first]
    assert list(records.places(key - 1 if key > 0 else key + 1)) == []


def test_what_an_item_takes_later_stands_in_place_of_what_it_took() -> None:
    records = Records()
    first, second = (Taken(n, n, n, n, n, f"si_{n}") for n in (1, 2))
    for taken in (first, second, later := second._replace(end=9, meter=7)):
        records.put(5, taken)
    assert [taken for _, taken in records.places(5)] == [later, first]


@pytest.mark.parametrize(
    ("changes", "sends"),
    [
        ({"meter": "m2"}, False),
        ({"subject": "other"}, False),
        ({"meter": "m2", "billing_meter": "mtr_2"}, True),
        ({"meter": "m2", "billing_meter": None}, True),
        ({"meter": "m2", "customer": "cus_2"}, True),
        ({"meter": "m2", **LATER}, True),
        ({}, True),
    ],
)
def test_a_billing_meter_is_the_first_ones(changes: dict[str, Any], sends: bool) -> None:
    claims, outcome = Claims(), Outcome()
    assert claims.may_send(METERED, outcome)
    (other,) = others(**changes)
    assert claims.may_send(other, outcome) is sends
    assert [f"{METERED.id} and {other.id}" in failed["item"] for failed in outcome.failed] == (
        [] if sends else [True]
    )
    assert claims.may_send(METERED, Outcome())


def test_an_item_that_is_read_again_in_another_period_keeps_its_own() -> None:
    claims, outcome = Claims(), Outcome()
    assert claims.may_send(METERED, outcome)
    moved = replace(METERED, start=METERED.start + 60, counted_from=METERED.start + 60)
    assert claims.may_send(moved, outcome)
    assert outcome.failed == []
    (other,) = others(meter="m2")
    assert not claims.may_send(other, outcome)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, 1),
        ({"customer": "cus_2", "billing_meter": None}, 1),
        ({"meter": "m2"}, 0),
        ({"subject": "other"}, 0),
        (LATER, 0),
    ],
)
def test_usage_that_two_bill_is_warned_of_once(changes: dict[str, Any], warned: int) -> None:
    claims, outcome = Claims(), Outcome()
    for item in (METERED, *others(**changes), METERED, *others(**changes)):
        claims.may_send(item, outcome)
        claims.warn_of_double_billing(item, outcome)
    assert len(outcome.warnings) == warned
    for said in outcome.warnings:
        assert said["item"] == f"{METERED.id} and si_other_0"


def test_each_of_many_is_named() -> None:
    claims, outcome = Claims(), Outcome()
    for item in others(3):
        claims.warn_of_double_billing(item, outcome)
    assert [said["item"] for said in outcome.warnings] == [
        "si_other_0 and si_other_1",
        "si_other_0 and si_other_2",
        "si_other_1 and si_other_2",
    ]


def test_whose_meter_alone_was_taken_bills_nothing_twice() -> None:
    claims, outcome = Claims(), Outcome()
    claims.take_billing_meter(METERED)
    (other,) = others()
    assert claims.may_send(other, outcome)
    claims.warn_of_double_billing(other, outcome)
    assert outcome.warnings == []


def test_a_subject_that_is_another_customers_id_takes_no_billing_meter_of_theirs() -> None:
    claims, outcome = Claims(), Outcome()
    theirs = replace(METERED, subject="cus_2")
    assert claims.may_send(theirs, outcome)
    claims.warn_of_double_billing(theirs, outcome)
    (other,) = others(customer="cus_2", subject="cus_2", meter="m2")
    assert claims.may_send(other, outcome)


def test_thousands_take_little() -> None:
    claims = Claims()
    for n in range(1_000):
        item = replace(METERED, id=f"si_{n:014}", customer=f"cus_{n:014}", subject=f"cus_{n:014}")
        claims.may_send(item, Outcome())
        claims.warn_of_double_billing(item, Outcome())
    assert 1_000 * RECORD.size < len(claims.taken.records) < 1_000 * 60
