"""What units cost by each of a price's schemes."""

from decimal import Decimal
from typing import Any

import pytest

from audit import pricing
from audit.rows import missing_money
from fakes import stripe_prices

PER_UNIT = {"unit_amount": 10, "unit_amount_decimal": "10"}
FRACTION = {"unit_amount": None, "unit_amount_decimal": "0.05"}
PACKAGES = {**PER_UNIT, "transform_quantity": {"divide_by": 100, "round": "up"}}
PACKAGES_DOWN = {**PER_UNIT, "transform_quantity": {"divide_by": 100, "round": "down"}}
TIERS: list[dict[str, Any]] = [
    {"up_to": 10, "unit_amount_decimal": "10", "flat_amount_decimal": "100"},
    {"up_to": 20, "unit_amount_decimal": "5", "flat_amount_decimal": None},
    {"up_to": None, "unit_amount_decimal": "0.5", "flat_amount_decimal": "7"},
]
GRADUATED = {"billing_scheme": "tiered", "tiers_mode": "graduated", "tiers": TIERS}
VOLUME = {**GRADUATED, "tiers_mode": "volume"}


@pytest.mark.parametrize(
    ("price", "units", "cost"),
    [
        (PER_UNIT, "0", "0"),
        (PER_UNIT, "12", "120"),
        (PER_UNIT, "0.3", "3"),
        (FRACTION, "3", "0.15"),
        ({"unit_amount": 7}, "3", "21"),
        (PACKAGES, "0", "0"),
        (PACKAGES, "1", "10"),
        (PACKAGES, "100", "10"),
        (PACKAGES, "100.5", "20"),
        (PACKAGES_DOWN, "199", "10"),
        (GRADUATED, "0", "0"),
        (GRADUATED, "1", "110"),
        (GRADUATED, "10", "200"),
        (GRADUATED, "10.5", "202.5"),
        (GRADUATED, "20", "250"),
        (GRADUATED, "30", "262"),
        (VOLUME, "0", "0"),
        (VOLUME, "10", "200"),
        (VOLUME, "11", "55"),
        (VOLUME, "20.5", "17.25"),
    ],
)
def test_units_cost_what_the_scheme_says(price: dict[str, Any], units: str, cost: str) -> None:
    assert pricing.cost(price, Decimal(units)) == Decimal(cost)


@pytest.mark.parametrize(
    "price",
    [
        {},
        {"unit_amount": None},
        {"unit_amount_decimal": "NaN"},
        {"unit_amount_decimal": "1e12"},
        {**PER_UNIT, "transform_quantity": {"divide_by": 0, "round": "up"}},
        {"billing_scheme": "tiered", "tiers_mode": "graduated"},
        {**GRADUATED, "tiers": None},
        {**GRADUATED, "tiers": [None]},
        {**GRADUATED, "tiers": TIERS[:2]},
        {**GRADUATED, "tiers": [{"up_to": "many"}]},
    ],
)
def test_a_price_that_does_not_say_it_costs_nothing_that_is_known(price: dict[str, Any]) -> None:
    assert pricing.cost(price, Decimal(21)) is None
    assert missing_money(price, Decimal(21), Decimal(1)) is None


@pytest.mark.parametrize("units", range(0, 45, 3))
@pytest.mark.parametrize("mode", ["graduated", "volume"])
def test_tiers_cost_what_the_stand_in_invoices(mode: str, units: int) -> None:
    tiers = [{**tier, "flat_amount_decimal": tier["flat_amount_decimal"] or "0"} for tier in TIERS]
    price = {"billing_scheme": "tiered", "tiers_mode": mode, "tiers": tiers}
    lines = stripe_prices.parts(price, Decimal(units))
    found = pricing.cost(price, Decimal(units))
    assert found is not None
    assert abs(sum(amount for _, amount in lines) - found) <= Decimal("0.5")


@pytest.mark.parametrize(
    ("price", "metered", "billed", "charged", "money"),
    [
        (PER_UNIT, "12", "10", None, "20"),
        (PER_UNIT, "12", "10", "90", "20"),
        (FRACTION, "12", "13", None, "-0.05"),
        (PACKAGES, "100", "90", None, "0"),
        (PACKAGES, "101", "90", None, "10"),
        (GRADUATED, "12", "10", None, "10"),
        (GRADUATED, "1", "0", None, "110"),
        # Where Stripe charges the first tier's flat amount without usage, it is not missing.
        (GRADUATED, "1", "0", "100", "10"),
        (VOLUME, "11", "10", None, "-145"),
    ],
)
def test_what_is_missing_costs_the_whole_less_what_is_charged(
    price: dict[str, Any], metered: str, billed: str, charged: str | None, money: str
) -> None:
    by_line = None if charged is None else Decimal(charged)
    assert missing_money(price, Decimal(metered), Decimal(billed), by_line) == Decimal(money)


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        ("1500", "USD", "15.00 USD"),
        ("0.5", "USD", "0.005 USD"),
        ("0", "USD", "0.00 USD"),
        ("-20", "EUR", "-0.20 EUR"),
        ("1500", "JPY", "1500 JPY"),
        ("1500", "KWD", "1.500 KWD"),
        ("1500", "", "15.00"),
        ("99999999999999.9999", "USD", "999999999999.999999 USD"),
    ],
)
def test_money_has_the_currencys_own_minor_units(minor: str, currency: str, text: str) -> None:
    assert pricing.money(Decimal(minor), currency) == text


@pytest.mark.parametrize(("minor", "charged"), [("0.49", 0), ("0.5", 1), ("1.5", 2), ("20", 20)])
def test_stripe_charges_whole_minor_units(minor: str, charged: int) -> None:
    assert pricing.as_charged(Decimal(minor)) == charged
