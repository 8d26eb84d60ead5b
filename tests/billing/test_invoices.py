"""What an invoice's lines bill, and what they lack; no network."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from billing.invoices import (
    BilledUnits,
    InvoicedPeriod,
    LineKey,
    began_anew,
    billed_units,
    kept_price,
    unit_amount,
)
from billing.items import InvalidStripeObject
from billing.notes import COUNTED_FROM, RemovedItem
from tests.billing.test_items import ITEM

PERIOD = InvoicedPeriod(
    item=ITEM,
    invoice="in_1",
    billed=BilledUnits(Decimal(10), are_whole=False),
    unit_amount=Decimal(25),
    currency="USD",
    is_draft=False,
    is_fixed=True,
)
KEY = LineKey("si_1", "price_1", ITEM.start, ITEM.end)
METERED = {"usage_type": "metered"}
ON_METER = {"usage_type": "metered", "meter": "mtr_1"}


@pytest.mark.parametrize(
    ("metered", "difference"),
    [
        ("10", None),
        ("11", "11 metered, 10 on invoice in_1: 1 units (0.25 USD) not billed"),
        ("10.5", "10.5 metered, 10 on invoice in_1: 0.5 units (0.125 USD) not billed"),
        ("8", "8 metered, 10 on invoice in_1: 2 units (0.50 USD) billed too many"),
        ("110", "110 metered, 10 on invoice in_1: 100 units (25.00 USD) not billed"),
    ],
)
def test_what_an_invoice_lacks_is_said_in_units_and_money(
    metered: str, difference: str | None
) -> None:
    assert PERIOD.difference_text(Decimal(metered)) == difference


def test_a_fraction_is_not_missed_where_lines_tell_whole_units() -> None:
    whole = replace(PERIOD, billed=BilledUnits(Decimal(10), are_whole=True))
    assert whole.difference_text(Decimal("10.9")) is None
    assert "1.9 units" in str(whole.difference_text(Decimal("11.9")))


@pytest.mark.parametrize(
    ("currency", "amount", "money"),
    [
        ("USD", "25", " (0.75 USD)"),
        ("JPY", "25", " (75 JPY)"),
        ("KWD", "25", " (0.075 KWD)"),
        ("USD", "0.0001", " (0.000003 USD)"),
        ("", "25", ""),
        ("USD", None, ""),
    ],
)
def test_money_has_its_currencys_digits(currency: str, amount: str | None, money: str) -> None:
    each = None if amount is None else Decimal(amount)
    period = replace(PERIOD, currency=currency, unit_amount=each)
    assert period.money_text(Decimal(3)) == money


@pytest.mark.parametrize(
    ("price", "amount"),
    [
        ({"unit_amount": 25}, 25),
        ({"unit_amount": 25, "unit_amount_decimal": "25.5"}, Decimal("25.5")),
        ({"unit_amount": None, "unit_amount_decimal": "0.01"}, Decimal("0.01")),
        ({"unit_amount": 25, "billing_scheme": "tiered"}, None),
        ({"unit_amount": 25, "transform_quantity": {"divide_by": 10}}, None),
        ({}, None),
    ],
)
def test_a_unit_has_one_price_or_none(price: dict[str, Any], amount: object) -> None:
    assert unit_amount(price) == amount


def line(**changes: Any) -> dict[str, Any]:
    period = {"start": ITEM.start, "end": ITEM.end}
    parent = {"subscription_item_details": {"subscription_item": "si_1"}}
    pricing = {"price_details": {"price": "price_1"}}
    return {"quantity": 4, "period": period, "parent": parent, "pricing": pricing, **changes}


def test_the_lines_of_an_items_tiers_are_billed_together() -> None:
    assert billed_units([line(), line(quantity=3)]) == {KEY: BilledUnits(Decimal(7), True)}
    found = billed_units([line(), line(quantity_decimal="0.5"), line(quantity=None)])
    assert found == {KEY: BilledUnits(Decimal("4.5"), False)}
    assert billed_units([line(parent={"type": "invoice_item_details"})]) == {}
    for part in ({"item": "si/1"}, {"price": "a b"}):
        parent = {"subscription_item_details": {"subscription_item": part.get("item", "si_1")}}
        pricing = {"price_details": {"price": part.get("price", "price_1")}}
        with pytest.raises(InvalidStripeObject, match="no id"):
            billed_units([line(parent=parent, pricing=pricing)])


@pytest.mark.parametrize(
    ("noted", "recurring", "now", "kept"),
    [
        ("", ON_METER, "price_1", True),
        ("", ON_METER, "price_2", None),
        (ITEM.end, ON_METER, "price_2", False),
        (ITEM.end + 1, ON_METER, "price_2", True),
        (ITEM.end - 1, ON_METER, "price_2", None),
        ("", METERED, "price_2", True),
    ],
)
def test_a_price_was_kept_at_the_end_unless_a_change_is_noted_there(
    noted: object, recurring: dict[str, str], now: str, kept: bool | None
) -> None:
    entry = {
        "price": {"id": now, "recurring": recurring},
        "metadata": {COUNTED_FROM: str(noted)},
    }
    assert kept_price(KEY, entry, {"recurring": recurring}, None) is kept


@pytest.mark.parametrize(("after", "kept"), [(0, False), (1, True)])
def test_an_item_that_was_removed_at_the_end_went_on_with_nothing(after: int, kept: bool) -> None:
    removed = RemovedItem("si_1", 0, ITEM.end + after, "m1", "HOUR")
    assert kept_price(KEY, {}, {}, removed) is kept


@pytest.mark.parametrize(
    ("earlier", "began", "anew"),
    [
        ([line(period={"start": 0, "end": ITEM.start})], 0, set()),
        ([line(period={"start": 0, "end": ITEM.start - 1})], 0, {ITEM.start}),
        ([], 0, {ITEM.start}),
        ([], ITEM.start, set()),
    ],
    ids=["a renewal", "a gap", "nothing before", "the subscription's start"],
)
def test_a_period_that_no_line_leads_up_to_began_anew(
    earlier: list[Any], began: int, anew: set[int]
) -> None:
    subscription = {"start_date": began}
    last, first = ({"lines": {"data": lines}} for lines in ([line()], earlier))
    assert began_anew(subscription, last, [last, first]) == anew
    cut = {"lines": {"data": earlier, "has_more": True}}
    assert began_anew(subscription, last, [last, cut]) == set()
