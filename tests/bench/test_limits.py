"""The measurements' judge of Stripe's limits."""

import pytest

from bench.limits import ALL_NAME, CHECKOUT, METER_EVENTS_NAME, Limits

RECORDS = "POST /v1/subscription_items/*/usage_records"


def taken(limits: Limits, endpoint: str, moments: list[float]) -> list[str]:
    """Return the reasons of requests that come at these seconds; empty where it is taken."""
    return [limits.refusal(endpoint, at) for at in moments]


@pytest.mark.parametrize(("endpoint", "most"), [(RECORDS, 25), (METER_EVENTS_NAME, 1_000)])
def test_an_endpoint_takes_so_many_in_a_second(endpoint: str, most: int) -> None:
    limits = Limits()
    assert taken(limits, endpoint, [0.0] * (most + 2)) == [""] * most + ["endpoint-rate"] * 2
    assert limits.refused == 2


def test_the_second_slides() -> None:
    limits = Limits()
    assert set(taken(limits, RECORDS, [0.75] * 20 + [1.0] * 5)) == {""}
    assert taken(limits, RECORDS, [1.74, 1.75, 1.75]) == ["endpoint-rate", "", ""]
    assert limits.used()[RECORDS] == 100 * 26 / 25


def test_what_is_refused_takes_nothing_but_is_counted_as_used() -> None:
    limits = Limits()
    taken(limits, RECORDS, [0.0] * 25 + [0.5] * 25)
    assert taken(limits, RECORDS, [1.0] * 25) == [""] * 25
    assert limits.used() == {RECORDS: 200, ALL_NAME: 50}


def test_all_endpoints_together_take_a_hundred_and_meter_events_are_beside_them() -> None:
    limits = Limits()
    for n in range(5):
        assert set(taken(limits, f"GET /v1/kind_{n}", [0.0] * 20)) == {""}
    assert taken(limits, "GET /v1/other", [0.5]) == ["global-rate"]
    assert taken(limits, METER_EVENTS_NAME, [0.5]) == [""]


def test_the_checkout_shares_the_limit_but_is_not_the_services_use() -> None:
    limits = Limits()
    for n in range(4):
        taken(limits, f"GET /v1/kind_{n}", [0.0] * 25)
    assert taken(limits, CHECKOUT, [0.5, 1.0]) == ["global-rate", ""]
    assert (limits.checkouts, limits.checkouts_refused, limits.refused) == (2, 1, 0)
    assert CHECKOUT not in limits.used()
