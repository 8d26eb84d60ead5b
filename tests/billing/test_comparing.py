"""What a dry run makes of the values that it finds; no network."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pytest_mock import MockerFixture

from billing import comparing
from billing.comparing import sentence
from billing.invoices import BilledUnits, InvoicedPeriod
from billing.reports import PendingReport, Services
from billing.tables import WIDTH, cells
from tests.billing.test_items import ITEM

METERED = replace(ITEM, billing_meter="mtr_1")
LINE = InvoicedPeriod(
    item=METERED,
    invoice="in_1",
    billed=BilledUnits(Decimal(0), are_whole=False),
    unit_amount=None,
    currency="USD",
    is_draft=True,
    is_fixed=False,
)


def held(
    mocker: MockerFixture, line: InvoicedPeriod, summary: int | str, value: str
) -> Decimal | None:
    """Return what Stripe holds of a closed period, and see that it is asked by full minutes."""
    asked = mocker.patch("billing.ways.fetch_meter_event_total", return_value=Decimal(summary))
    services = mocker.create_autospec(Services, instance=True, stripe=None)
    report = PendingReport(line.item, line.item.end + 60, invoiced=line)
    found = comparing.fetch_held_value(report, Decimal(value), services)
    assert all(not call.args[3] % 60 and call.args[3] <= line.item.end for call in asked.mock_calls)
    return found


@pytest.mark.parametrize(
    ("line", "summary", "expected"),
    [
        (0, 0, 0),
        (5, 5, 5),
        (0, 7, 7),  # a report since
        (7, 7, 7),
        (5, 6, 5),
        (7, 5, None),
    ],
)
def test_where_a_period_ends_within_a_minute_the_line_tells_unless_a_report_is_counted(
    mocker: MockerFixture, line: int, summary: int, expected: int | None
) -> None:
    assert METERED.end % 60
    period = replace(LINE, billed=BilledUnits(Decimal(line), are_whole=False))
    assert held(mocker, period, summary, "7") == expected


@pytest.mark.parametrize("line", [0, 5, 7])
@pytest.mark.parametrize("summary", [0, 5, 7])
def test_where_a_period_ends_on_a_full_minute_the_summary_tells(
    mocker: MockerFixture, line: int, summary: int
) -> None:
    item = replace(METERED, end=METERED.end - METERED.end % 60)
    period = replace(LINE, item=item, billed=BilledUnits(Decimal(line), are_whole=False))
    assert held(mocker, period, summary, "7") == summary


def test_a_line_that_is_counted_no_more_tells_whatever_came_since(mocker: MockerFixture) -> None:
    assert held(mocker, replace(LINE, is_fixed=True), 7, "7") == 0


def test_a_line_without_decimals_is_compared_without(mocker: MockerFixture) -> None:
    whole = replace(LINE, billed=BilledUnits(Decimal(7), are_whole=True))
    assert held(mocker, whole, "7.25", "7.25") == Decimal("7.25")
    assert held(mocker, replace(whole, is_fixed=True), 0, "7.25") == Decimal("7.25")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "all agree"),
        ({"periods": 31}, "all agree"),
        ({"periods": 31, "different": 2}, "2 of 31 periods differ"),
        (
            {"periods": 31, "different": 2, "left": 1},
            "2 of 31 periods differ; 1 would after a report, too",
        ),
        ({"periods": 31, "unknown": 1}, "30 of 31 periods agree; 1 unknown"),
        ({"periods": 3, "different": 1, "unknown": 1}, "1 of 3 periods differ; 1 unknown"),
        ({"failed": 1}, "1 could not be compared"),
        ({"periods": 1, "failed": 1}, "1 of 1 period agree; 1 could not be compared"),
        ({"periods": 1, "empty": 1}, "1 of 1 period agree; 1 meter empty"),
    ],
)
def test_the_last_line_says_what_was_found(counts: dict[str, int], said: str) -> None:
    assert sentence(Counter(counts), is_whole=True) == said


def test_the_last_line_of_an_interrupted_dry_run_does_not_say_that_all_agree() -> None:
    interrupted = "interrupted, this is not all"
    assert sentence(Counter(), is_whole=False) == interrupted
    found = sentence(Counter(periods=2), is_whole=False)
    assert found == f"{interrupted}; 2 of 2 periods agree"


@pytest.mark.parametrize("length", [1, 11, 13, 17])
def test_a_table_keeps_its_width_and_cuts_no_figure(length: int) -> None:
    figures = ["9" * length] * 4
    line: Any = cells(["si_" + "x" * 20, "meter_" + "y" * 20, *figures], comparing.WIDTHS)
    assert len(line) == WIDTH
    assert line.split()[2:] == figures
