"""Which totals are asked for together; OpenMeter is a function."""

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import openmeter
import pytest
from pytest_mock import MockerFixture

from audit.measuring import Wanted, batches, fetch_totals
from usage import OpenMeterCustomer, QueryFailed

ULID, OTHER = "01G65Z755AFWAKHE12NY0CQ9FH", "01G65Z755AFWAKHE12NY0CQ9FJ"


def wanted(whose: str | OpenMeterCustomer, end: int = 60) -> Wanted:
    return Wanted("m1", whose, 0, end)


def test_subjects_of_one_time_are_asked_for_together_and_each_customer_alone() -> None:
    first, second = OpenMeterCustomer(ULID), OpenMeterCustomer(OTHER)
    asked = [
        wanted("a"),
        wanted(first),
        wanted(ULID),
        wanted("b", 90),
        wanted(second),
        wanted(OpenMeterCustomer(ULID)),
        wanted(first, 90),
    ]
    assert list(batches(asked)) == [
        [wanted("a"), wanted(ULID)],
        [wanted(first)],
        [wanted("b", 90)],
        [wanted(second)],
        [wanted(first, 90)],
    ]


@pytest.fixture
def known(mocker: MockerFixture) -> None:
    """Let OpenMeter know one customer, and no other."""

    def total(_: object, __: str, whose: Any, *times: object) -> Decimal | None:
        if whose.id != ULID:
            raise QueryFailed("no such customer")
        return Decimal(30)

    def totals(_: object, __: str, subjects: Any, *times: object) -> dict[str, Decimal]:
        return {name: Decimal(len(name)) for name in subjects if name != "idle"}

    mocker.patch("usage.total", total)
    mocker.patch("usage.totals", totals)


@pytest.mark.usefixtures("known")
def test_a_customer_that_is_unknown_fails_alone(mocker: MockerFixture) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    whole, unknown = wanted(OpenMeterCustomer(ULID)), wanted(OpenMeterCustomer(OTHER))
    asked = [whole, wanted("ab"), unknown, wanted("idle"), wanted(ULID)]
    with ThreadPoolExecutor(2) as pool:
        found = fetch_totals(client, asked, pool)
    assert str(found.pop(unknown)) == "no such customer"
    assert found == {whole: 30, wanted("ab"): 2, wanted("idle"): None, wanted(ULID): 26}
