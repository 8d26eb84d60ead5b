"""What is measured and logged for one period of an item; no network."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import openmeter
import pytest
from pytest_mock import MockerFixture

from billing.reports import LastQuery, Outcome, Services, measure, report_fields
from billing.stripe_api import ReportFailed
from billing.subscriptions import fail_items_that_overwrite, warn_of_double_billing
from tests.billing.test_items import ITEM, OWNER, ULID


@pytest.fixture
def services(mocker: MockerFixture) -> Services:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    return mocker.create_autospec(Services, instance=True, openmeter=client, queried=LastQuery())


@pytest.mark.parametrize("unrounded", [frozenset(), frozenset([ITEM.start])])
def test_a_period_within_a_window_is_zero_without_a_query(
    services: Services, mocker: MockerFixture, unrounded: frozenset[int]
) -> None:
    asked = mocker.patch.object(services.openmeter, "send_request")
    within_an_hour = replace(ITEM, end=ITEM.start + 60, unrounded=unrounded)
    assert measure(services, within_an_hour) == 0
    asked.assert_not_called()
    assert not services.queried.said


@pytest.mark.parametrize("value", ["NaN", "1e21", "null", "9007199254740994"])
def test_a_total_that_cannot_be_billed_fails_the_report(
    services: Services, mocker: MockerFixture, value: str
) -> None:
    answer = mocker.Mock(status_code=200)
    answer.content = f'{{"data": [{{"value": {value}}}]}}'.encode()
    mocker.patch.object(services.openmeter, "send_request", return_value=answer)
    with pytest.raises(ReportFailed, match="meter m1: the total"):
        measure(services, ITEM)


def test_the_log_line_is_that_of_the_go_example() -> None:
    fields = report_fields(ITEM, Decimal(10))
    line = (
        "stripe_customer: cus_123, stripe_price: price_123, meter: m1, total_usage: 10.000000, "
        "from: 2023-06-07 14:00:00 +0000 UTC, to: 2023-07-07 14:00:00 +0000 UTC"
    )
    assert ", ".join(f"{name}: {value}" for name, value in fields.items()) == line
    assert datetime(2023, 6, 7, 14, tzinfo=UTC) == ITEM.window_start


WHOLE, NAMESAKE = replace(ITEM, subject=OWNER), replace(ITEM, id="si_2", subject=ULID)


def test_a_whole_customer_is_remembered_as_idle_apart_from_a_subject_of_its_text(
    mocker: MockerFixture,
) -> None:
    stripe = mocker.Mock(key_of=lambda item: ("", item))
    services = Services(mocker.Mock(), stripe, "HOUR", mocker.Mock(), is_live=False)
    namesake = replace(NAMESAKE, id=WHOLE.id)
    assert [services.knows_as_idle(item) for item in (WHOLE, namesake)] == [False, False]
    assert [services.knows_as_idle(item) for item in (WHOLE, namesake)] == [True, True]


def test_two_items_of_one_customer_are_billed_twice_and_one_of_a_namesake_is_not() -> None:
    outcome = Outcome()
    warn_of_double_billing([WHOLE, NAMESAKE], outcome)
    assert outcome.warnings == []
    warn_of_double_billing([WHOLE, NAMESAKE, replace(WHOLE, id="si_3")], outcome)
    (said,) = outcome.warnings
    assert said["item"] == "si_1 and si_3"
    assert f"of meter m1 and om_customer {ULID}:" in said["warning"]


def test_a_customer_and_a_namesake_would_overwrite_each_other_on_a_billing_meter() -> None:
    whole, namesake = (replace(item, billing_meter="mtr_1") for item in (WHOLE, NAMESAKE))
    same, outcome = replace(whole, id="si_3"), Outcome()
    assert fail_items_that_overwrite([whole, same], outcome) == [whole, same]
    assert fail_items_that_overwrite([whole, namesake], outcome) == []
    assert [entry["item"] for entry in outcome.failed] == ["si_1 and si_2"]
