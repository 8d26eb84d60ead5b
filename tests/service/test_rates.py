"""How fast Stripe is asked: limits, shares, and turns."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from pytest_mock import MockerFixture

from service.rates import (
    ALL,
    METER_EVENTS,
    OWN_METER_EVENTS,
    Lane,
    NoTurn,
    Rates,
    endpoint_of,
    limits_of,
)

RECORDS = ("post", "/v1/subscription_items/si_1/usage_records")
RECORDS_ENDPOINT = "POST /v1/subscription_items/*/usage_records"
EVENTS = ("post", "/v1/billing/meter_events")
FAR = threading.TIMEOUT_MAX


def taken(rates: Rates, call: tuple[str, str], seconds: float) -> int:
    """Return how many turns there are at once, or within some seconds from now."""
    until, count = time.monotonic() + seconds, 0
    try:
        while True:
            rates.take_turn(*call, until=until)
            count += 1
    except NoTurn:
        return count


def most_within_a_second(moments: list[float]) -> int:
    """Return the most that are less than a second apart."""
    return max(sum(first <= each < first + 1 for each in moments) for first in moments)


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/subscriptions", "GET /v1/subscriptions"),
        ("/v1/subscriptions/sub_1", "GET /v1/subscriptions/*"),
        ("/v1/subscription_items/si_1/usage_records", f"GET {RECORDS_ENDPOINT[5:]}"),
        ("/v1/billing/meter_events", "GET /v1/billing/meter_events"),
        ("/v1/billing/meters/mtr_1", "GET /v1/billing/meters/*"),
        ("/v1/billing/meters/mtr_1/event_summaries", "GET /v1/billing/meters/*/event_summaries"),
        ("/v1/test_helpers/test_clocks/clock_1", "GET /v1/test_helpers/test_clocks/*"),
        ("/v2/core/events/evt_1", "GET /v2/core/*/evt_1"),
    ],
)
def test_a_call_counts_for_the_endpoint_whatever_the_id(path: str, endpoint: str) -> None:
    assert endpoint_of("get", path) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "is_live", "is_scoped", "limits"),
    [
        (RECORDS_ENDPOINT, True, False, {RECORDS_ENDPOINT: 25, ALL: 100}),
        (RECORDS_ENDPOINT, False, False, {RECORDS_ENDPOINT: 25, ALL: 25}),
        (METER_EVENTS, True, False, {OWN_METER_EVENTS: 1_000}),
        (METER_EVENTS, False, False, {METER_EVENTS: 25, ALL: 25}),
        (METER_EVENTS, True, True, {METER_EVENTS: 25, ALL: 100}),
    ],
)
def test_the_limits_are_stripes(
    endpoint: str, is_live: bool, is_scoped: bool, limits: dict[str, int]
) -> None:
    assert limits_of(endpoint, is_live=is_live, is_scoped=is_scoped) == limits


@pytest.mark.parametrize(
    ("share", "processes", "call", "at_once"),
    [
        (80, 1, RECORDS, 20),
        (100, 1, RECORDS, 25),
        (10, 1, RECORDS, 2),
        (80, 2, RECORDS, 10),
        (10, 8, RECORDS, 1),
        (80, 1, EVENTS, 800),
        (80, 4, EVENTS, 200),
    ],
)
def test_so_many_go_at_once(
    share: int, processes: int, call: tuple[str, str], at_once: int
) -> None:
    rates = Rates(share, is_live=True, processes=processes)
    assert taken(rates, call, 0) == at_once


def test_all_endpoints_together_have_a_limit() -> None:
    rates = Rates(80, is_live=True)
    paths = [f"/v1/kind_{n}" for n in range(5)]
    assert sum(taken(rates, ("get", path), 0) for path in paths) == 80
    assert taken(rates, EVENTS, 0) == 800


def test_meter_events_of_other_accounts_have_the_limit_of_an_endpoint() -> None:
    rates = Rates(80, is_live=True)
    for _ in range(30):
        rates.take_turn(*EVENTS, until=time.monotonic())
    for _ in range(20):
        rates.take_turn(*EVENTS, until=time.monotonic(), is_scoped=True)
    with pytest.raises(NoTurn, match="20 requests a second"):
        rates.take_turn(*EVENTS, until=time.monotonic(), is_scoped=True)
    rates.slow_down(*EVENTS, "endpoint-rate", is_scoped=True)
    assert [name for name, lane in rates.lanes.items() if lane.slowness() > 1] == [METER_EVENTS]


def test_without_a_share_nobody_waits() -> None:
    rates = Rates(0)
    for _ in range(1_000):
        rates.take_turn(*RECORDS, until=time.monotonic())


def test_who_waits_goes_in_single_file_and_no_second_has_more_than_our_share() -> None:
    rates, moments = Rates(80, is_live=True), list[float]()

    def take(_: int) -> None:
        rates.take_turn(*RECORDS, until=FAR)
        moments.append(time.monotonic())

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(take, range(60)))
    moments.sort()
    assert moments[19] - moments[0] < 0.3
    assert 1.9 <= moments[-1] - moments[0] < 3.5
    # Twenty, and one that 50 ms on the way would bring along.
    assert most_within_a_second(moments) <= 21
    waited = [after - before for before, after in pairwise(moments[21:])]
    assert min(waited) > 0.03


def test_what_is_free_is_taken_at_once_though_another_thread_is_being_told() -> None:
    rates = Rates(80, is_live=True)
    rates.take_turn(*RECORDS, until=FAR)
    lock: Any = rates.own.lock
    turn = threading.Thread(target=lambda: rates.take_turn(*RECORDS, until=FAR))
    with lock:
        turn.start()
        time.sleep(0.05)
    turn.join()
    assert rates.lanes[RECORDS_ENDPOINT].next_at == 0  # nobody went in single file


def test_no_turn_is_said_at_the_end_of_the_time_and_not_later() -> None:
    rates = Rates(10, is_live=True)
    began = time.monotonic()
    assert taken(rates, RECORDS, 0.3) == 2
    assert 0.3 <= time.monotonic() - began < 0.6
    said = f"no turn for {RECORDS_ENDPOINT} came in time: our share of Stripe's is 2.5 requests a"
    with pytest.raises(NoTurn, match=said.replace("*", "[*]")):
        rates.take_turn(*RECORDS, until=time.monotonic())


class Clock:
    """A monotonic clock that stands until it is told to go on."""

    def __init__(self, mocker: MockerFixture) -> None:
        self.now, self.slept = 1_000.0, list[float]()
        mocker.patch("service.rates.time.monotonic", side_effect=lambda: self.now)
        mocker.patch("service.rates.time.sleep", side_effect=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(mocker: MockerFixture) -> Clock:
    return Clock(mocker)


def always(*_: float) -> bool:
    return True


def distances(clock: Clock, lane: Lane, count: int) -> list[float]:
    """Return the seconds between turns that are asked for one after the other."""
    moments = []
    for _ in range(count + 1):
        assert lane.take(FAR, lambda: None)
        moments.append(clock.now)
    return [round(after - before, 6) for before, after in pairwise(moments)]


@pytest.mark.parametrize(("times", "after"), [(2, [0.1, 0.1]), (4, [0.2, 0.2])])
def test_a_429_slows_down_and_is_forgiven(clock: Clock, times: int, after: list[float]) -> None:
    lane = Lane(20, always)
    assert distances(clock, lane, 2) == [0, 0]
    assert lane.slow_down(times)
    assert not lane.slow_down(1)
    assert distances(clock, lane, 2) == after
    clock.now += 10 if times == 2 else 20
    assert distances(clock, lane, 2) == [0, 0]


def test_it_never_becomes_so_slow_that_nothing_goes(clock: Clock) -> None:
    lane = Lane(20, always)
    for _ in range(10):
        lane.slow_down(4)
    assert distances(clock, lane, 1) == [16 / 20]
    clock.now += 10
    assert distances(clock, lane, 2)[1] == 8 / 20
    assert lane.slow_down(2) is False


@pytest.mark.parametrize(
    ("reason", "slowed"),
    [
        ("endpoint-rate", [RECORDS_ENDPOINT]),
        ("endpoint-concurrency", [RECORDS_ENDPOINT]),
        ("global-rate", [ALL]),
        ("global-concurrency", [ALL]),
        ("resource-specific", []),
        ("something new", []),
        (None, []),
    ],
)
def test_the_reason_says_what_slows_down(
    caplog: pytest.LogCaptureFixture, reason: str | None, slowed: list[str]
) -> None:
    rates = Rates(80, is_live=True)
    rates.take_turn(*RECORDS, until=FAR)
    for _ in range(3):
        rates.slow_down(*RECORDS, reason)
    assert [name for name, lane in rates.lanes.items() if lane.slowness() > 1] == slowed
    assert [record.message for record in caplog.records] == [
        f"Stripe limits {name} ({reason}): slower for a while" for name in slowed
    ]


@pytest.mark.parametrize(("is_command", "slowness"), [(False, 2), (True, 4)])
def test_a_command_slows_down_more(is_command: bool, slowness: int) -> None:
    rates = Rates(80, is_live=True, is_command=is_command)
    rates.take_turn(*RECORDS, until=FAR)
    rates.slow_down(*RECORDS, "endpoint-rate")
    assert rates.lanes[RECORDS_ENDPOINT].slowness() == slowness


def test_the_budget_of_one_second_does_not_hold_up_another_endpoint() -> None:
    rates = Rates(10, is_live=True)
    taken(rates, RECORDS, 0)
    waiting = threading.Thread(target=lambda: rates.take_turn(*RECORDS, until=FAR))
    waiting.start()
    began = time.monotonic()
    rates.take_turn("get", "/v1/invoices", until=FAR)
    assert time.monotonic() - began < 0.2
    waiting.join()
