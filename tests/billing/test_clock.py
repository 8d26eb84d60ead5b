"""Stripe's time, and the second that a report carries; no network."""

import logging
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.clock import (
    CLOSED_SHARE,
    FINE_SECONDS,
    HOUR,
    RESERVED_SECONDS,
    StripeClock,
    report_second,
)

WEEK = 7 * 24 * HOUR
# By length: how long after the end reports are still told apart.
KEPT = [(6 * HOUR, WEEK), (160 * 60, 72 * HOUR), (HOUR, 22 * HOUR), (30 * 60, 7 * HOUR)]


def answer(second: float) -> dict[str, str]:
    return {"Date": format_datetime(datetime.fromtimestamp(second, UTC), usegmt=True)}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let the host's clocks show what a test says."""
    now = {"time": 1_000_000.0, "monotonic": 50_000.0}
    monkeypatch.setattr("time.time", lambda: now["time"])
    monkeypatch.setattr("time.monotonic", lambda: now["monotonic"])
    return now


def let_pass(host: dict[str, float], seconds: float) -> None:
    for name in host:
        host[name] += seconds


@pytest.mark.parametrize(
    ("known_at", "second"),
    [
        (-10, 1),
        (0, 1),
        (1, 1),
        (FINE_SECONDS, FINE_SECONDS),
        (FINE_SECONDS + 2, FINE_SECONDS + 1),
        (50_000, 50_000 - RESERVED_SECONDS),
        (99_999, 99_999 - RESERVED_SECONDS),
        (100_000, 100_000 - RESERVED_SECONDS),
        (100_001, 100_001 - RESERVED_SECONDS),
        (100_000 + FINE_SECONDS + CLOSED_SHARE, 100_001 + FINE_SECONDS - RESERVED_SECONDS),
        (100_000 + WEEK, 99_999),
        (100_000 + 10 * WEEK, 99_999),
    ],
)
def test_a_reports_second_lags_and_moves_on_after_the_end(known_at: int, second: int) -> None:
    assert report_second(0, 100_000, known_at) == second


@given(st.integers(2, 10**7), st.integers(-100, 10**7 + WEEK), st.integers(0, 10**6))
def test_a_second_lies_within_its_period_and_never_goes_back(
    length: int, known_at: int, later: int
) -> None:
    first, second = (report_second(5, 5 + length, at) for at in (known_at, known_at + later))
    assert 5 < first <= second < 5 + length


@pytest.mark.parametrize(("shortest", "kept"), KEPT)
@given(data=st.data())
def test_what_is_known_a_minute_later_has_a_later_second(
    shortest: int, kept: int, data: st.DataObject
) -> None:
    length = data.draw(
        st.integers(shortest, 400 * 24 * HOUR) | st.integers(shortest, shortest + HOUR)
    )
    around_the_end = st.integers(length - 400, length + 400)
    known_at = data.draw(st.integers(0, length + kept - 60) | around_the_end)
    later = data.draw(st.integers(60, 700) | st.integers(60, length + kept))
    until = min(known_at + later, length + kept)
    assert report_second(0, length, known_at) < report_second(0, length, until)


@pytest.mark.parametrize("length", [60, FINE_SECONDS])
def test_what_closes_a_short_period_has_a_later_second_than_its_last_report(length: int) -> None:
    """A reset can cut a period off minutes after its start."""
    assert report_second(0, length, length - 1) < report_second(0, length, length)


@given(st.integers(6 * HOUR, 10**7), st.integers(0, 10**7))
def test_a_running_period_tells_apart_what_is_known_two_seconds_later(
    length: int, known_at: int
) -> None:
    known_at = min(known_at, length - 5)
    assert report_second(0, length, known_at) < report_second(0, length, known_at + 2)


@given(st.integers(2, 10**6), st.integers(0, 10**6), st.integers(0, WEEK))
def test_an_end_that_nobody_foresaw_has_its_seconds_too(
    length: int, shorter: int, after: int
) -> None:
    """A reset at 600 s before the scheduled end: what closes comes after all that ran before."""
    end = max(2, length - shorter)
    running = report_second(0, length, end - 61) if end > 61 else 1
    assert running <= report_second(0, end, end + after)
    if end >= 6 * HOUR:
        assert running < report_second(0, end, end + after)


def test_stripes_time_is_its_answers_date_and_the_seconds_since(host: dict[str, float]) -> None:
    clock = StripeClock()
    assert not clock.is_known
    assert (clock.now(), clock.at(host["monotonic"] - 5)) == (1_000_000, 999_995)
    clock.hear(answer(2_000), sent_at=host["monotonic"])
    let_pass(host, 10)
    assert clock.is_known
    assert (clock.now(), clock.at(host["monotonic"] - 5)) == (2_010, 2_005)
    assert clock.host_is_ahead() == 1_000_010 - 2_010


@pytest.mark.parametrize(
    ("date", "now"),
    [
        (2_010, 2_010),
        (2_009, 2_010),
        (2_008, 2_010),
        (2_007, 2_007),
        (2_020, 2_020),
        (1_000, 1_000),
    ],
)
def test_each_answer_sets_it_right_but_for_a_seconds_parts(
    host: dict[str, float], date: int, now: int
) -> None:
    clock = StripeClock()
    clock.hear(answer(2_000), sent_at=host["monotonic"])
    let_pass(host, 10)
    clock.hear(answer(date), sent_at=host["monotonic"])
    assert clock.now() == now


def test_a_slow_answer_does_not_set_it_back(host: dict[str, float]) -> None:
    clock = StripeClock()
    clock.hear(answer(2_000), sent_at=host["monotonic"])
    sent_at = host["monotonic"]
    let_pass(host, 8)
    clock.hear(answer(2_000), sent_at)
    assert clock.now() == 2_008


def test_an_answer_of_the_same_second_does_not_set_it_back(host: dict[str, float]) -> None:
    clock = StripeClock()
    clock.hear(answer(2_000), sent_at=host["monotonic"])
    let_pass(host, 10.9)
    clock.hear(answer(2_010), sent_at=host["monotonic"])
    let_pass(host, 0.2)
    assert clock.now() == 2_011


@pytest.mark.parametrize("slept", [-60, 3, HOUR])
def test_a_host_that_slept_or_was_set_does_not_know_it(
    host: dict[str, float], slept: float
) -> None:
    clock = StripeClock()
    clock.hear(answer(2_000), sent_at=host["monotonic"])
    host["time"] += slept
    assert not clock.is_known
    assert clock.now() == int(host["time"])
    clock.hear(answer(9_000), sent_at=host["monotonic"])
    assert (clock.is_known, clock.now()) == (True, 9_000)


@pytest.mark.parametrize("headers", [None, {}, {"Date": "soon"}, {"Date": ""}])
def test_an_answer_without_a_date_tells_nothing(
    host: dict[str, float], headers: dict[str, str] | None
) -> None:
    clock = StripeClock()
    clock.hear(headers, sent_at=host["monotonic"])
    assert not clock.is_known


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(30, None), (-30, None), (31, "31 seconds ahead of"), (-31, "31 seconds behind")],
)
def test_a_host_whose_clock_is_off_is_told_once_an_hour(
    host: dict[str, float], caplog: pytest.LogCaptureFixture, ahead: int, said: str | None
) -> None:
    clock = StripeClock()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.hear(answer(host["time"] - ahead), sent_at=host["monotonic"])
            assert bool(caplog.messages) is bool(said)
            let_pass(host, 1_000)
        assert [said in line for line in caplog.messages] == [True] if said else not caplog.messages
        let_pass(host, HOUR)
        clock.hear(answer(host["time"] - ahead), sent_at=host["monotonic"])
    assert [vars(record)["warning"] for record in caplog.records] == ["clock"] * (2 if said else 0)
