"""The table of measurements, and how a run ends."""

import os
import re
import subprocess
import sys

import pytest
from pytest_mock import MockerFixture

from bench import __main__ as command
from bench import burst
from bench.rows import Row, at_least, at_most, counts, ratio, table
from fakes.processes import ROOT

FOUND = {
    "closed": 1_000,
    "answered": 2_000,
    "last_closed": 120.0,
    "last_answered": 150.0,
    "attempts": 2_500,
    "timed_out": 10,
    "used": {"GET /v1/invoices/*": 84.0, "all": 40.0},
    "refused": 0,
    "final_before_closed": 0,
    "checkouts_refused": 0,
}


@pytest.mark.parametrize(("value", "met"), [(85.0, True), (85.1, False)])
def test_a_value_above_its_goal_is_missed(value: float, met: bool) -> None:
    row = at_most("use", value, 85, "%", "of each limit")
    assert row == Row("use", f"{value:.1f} %", "at most 85.0 % (of each limit)", met)


@pytest.mark.parametrize(("value", "met"), [(749.9, False), (750.0, True)])
def test_a_value_below_its_goal_is_missed(value: float, met: bool) -> None:
    assert at_least("report", value, 750, "writes/s").met is met


def test_a_latency_is_told_as_times_of_the_floor_without_what_is_read() -> None:
    row = ratio("twenty items", 0.25, 1.25, 0.12, read=0.1)
    assert row.measured == "1.25 x (250.0 ms)"
    assert row.goal == "at most 1.25 x (250.0 ms)"
    assert row.met


def test_the_table_says_what_was_met() -> None:
    rows = [at_most("a", 1, 2, "s"), at_least("b", 1, 2, "x")]
    assert table(rows).splitlines() == [
        "| what | measured | goal | met |",
        "| --- | --- | --- | --- |",
        "| a | 1.00 s | at most 2.00 s | yes |",
        "| b | 1.00 x | at least 2.00 x | no |",
    ]


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, []),
        ({"last_closed": 130.1}, [0]),
        ({"closed": 999}, [0]),
        ({"answered": 1_999}, [0]),
        ({"used": {"GET /v1/invoices/*": 88.0, "all": 40.0}}, [1]),
        ({"refused": 1}, [2]),
        ({"final_before_closed": 1}, [3]),
        ({"checkouts_refused": 1}, [4]),
    ],
)
def test_a_burst_is_met_if_all_of_it_is(changed: dict[str, object], missed: list[int]) -> None:
    rows = burst.rows("burst", 1_000, FOUND | changed)
    assert [n for n, row in enumerate(rows) if not row.met] == missed


@pytest.mark.parametrize(("met", "status"), [(True, 0), (False, 1)])
def test_a_missed_goal_is_the_exit_status(
    mocker: MockerFixture, capsys: pytest.CaptureFixture[str], met: bool, status: int
) -> None:
    rows = {"one": lambda _: [Row("one item", "1 s", "at most 1 s", met)], "ten": lambda _: []}
    mocker.patch.object(command, "ROWS", rows)
    mocker.patch.object(sys, "argv", ["bench", "one"])
    assert command.main() == status
    assert ("missed: one item" in capsys.readouterr().err) is not met


def test_a_row_that_there_is_not_is_refused(
    mocker: MockerFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    mocker.patch.object(sys, "argv", ["bench", "twenty"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "no such row: twenty" in capsys.readouterr().err


def test_the_environment_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_RUNS", "3")
    monkeypatch.delenv("BENCH_QUICK", raising=False)
    assert (counts().runs, counts().many) == (3, 10_000)
    monkeypatch.setenv("BENCH_QUICK", "1")
    assert counts().many < 10_000


def test_usage_records_are_measured_against_a_live_accounts_limits() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "records"],
        cwd=ROOT,
        env={**os.environ, "BENCH_QUICK": "1", "BENCH_RUNS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    rows = re.findall(r"^\| (.*) \| (.*) \| (at .*) \| (yes|no) \|$", done.stdout, re.M)
    assert [row[0].partition(",")[0] for row in rows] == ["usage records", "the same", "the same"]
    assert rows[1][1:] == ("0", "at most 0", "yes")
    assert done.returncode == int("no" in [row[3] for row in rows])
