"""Which subscriptions wait for each other, and what one query tells of them; no network."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from pytest_mock import MockerFixture

import usage
from billing.batches import (
    MOST_WAITING,
    SOON_WAIT_SECONDS,
    WAIT_SECONDS,
    Batch,
    Due,
    WaitingRoom,
    ask_together,
    span_of,
)
from billing.clock import FRESH_SECONDS
from billing.listing import OLD_SECONDS, SOON_SECONDS, is_outdated
from billing.reports import ASK_AGAIN_SECONDS, Asked, LastQuery, Outcome, PendingReport, Services
from billing.stripe_api import ReportFailed
from tests.billing.test_items import ITEM

HOUR, NOW = 3_600, 1_000.0
Clock = Callable[[float], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set the monotonic clock, which stands at NOW."""
    machine = SimpleNamespace(now=NOW)
    monkeypatch.setattr("time.monotonic", lambda: machine.now)
    return lambda second: setattr(machine, "now", second)


@pytest.fixture
def services(mocker: MockerFixture) -> Services:
    """Return services whose Stripe has the monotonic clock's time."""
    clock = SimpleNamespace(at=int, now=lambda: int(time.monotonic()))
    return mocker.create_autospec(
        Services,
        instance=True,
        openmeter=mock.sentinel.client,
        stripe=SimpleNamespace(clock=clock),
        queried=LastQuery(),
    )


@pytest.fixture
def totals(mocker: MockerFixture) -> mock.Mock:
    """Let OpenMeter know that `a` has 1 unit and `b` has 2, and of nobody else."""
    known = {"a": Decimal(1), "b": Decimal(2)}
    return mocker.patch("usage.totals", autospec=True, return_value=known)


@pytest.fixture
def total(mocker: MockerFixture) -> mock.Mock:
    """Let OpenMeter answer 7 for each one that is asked for alone."""
    return mocker.patch("usage.total", autospec=True, return_value=Decimal(7))


def due(subject: str, hours: str = "0", read_at: float = NOW, soon: bool = False) -> Due:
    """Return a subscription with an item for each of these hours at which its period begins."""
    items = [
        replace(ITEM, subject=subject, counted_from=ITEM.start + HOUR * int(hour))
        for hour in hours.split()
    ]
    reports = [PendingReport(item, 0, read_at=read_at) for item in items]
    end = int(NOW) + (SOON_SECONDS - 1 if soon else SOON_SECONDS)
    return Due(f"sub_{subject}", reports, Outcome(), read_at, end)


def taken(room: WaitingRoom, most: int = MOST_WAITING) -> list[str]:
    """Return the groups whose turn it is, as their subjects."""
    groups = iter(lambda: room.take(most), [])
    return ["".join(one.subscription[4:] for one in group) for group in groups]


# Who waits for whom


@pytest.mark.parametrize(
    ("hours", "groups"),
    [
        ({"a": "0", "b": "0", "c": "0"}, ["abc"]),
        ({"a": "0", "b": "1", "c": "0"}, ["ac", "b"]),
        ({"a": "0 1", "b": "0", "c": "0 1", "d": "1"}, ["ac", "b", "d"]),
        ({"a": "0 0", "b": "0 0", "c": "0"}, ["ab", "c"]),
        ({}, []),
    ],
)
def test_those_with_the_same_spans_are_together(hours: dict[str, str], groups: list[str]) -> None:
    room = WaitingRoom()
    for subject, begins in hours.items():
        room.add(due(subject, begins), int(NOW))
    assert taken(room, 0) == groups
    assert room.count == 0


@pytest.mark.parametrize("change", [{"meter": "m2"}, {"end": ITEM.end + HOUR}])
def test_another_meter_or_end_is_another_span(change: dict[str, Any]) -> None:
    assert span_of(replace(ITEM, **change)) != span_of(ITEM)
    assert span_of(replace(ITEM, subject="other", id="si_2", customer="c")) == span_of(ITEM)


@pytest.mark.usefixtures("at")
def test_a_group_goes_once_one_query_takes_no_more() -> None:
    room = WaitingRoom()
    for _ in range(250):
        room.add(due("a"), int(NOW))
    assert list(map(len, taken(room))) == [100, 100]
    assert room.count == 50


def test_others_go_when_they_have_waited_or_too_many_wait(at: Clock) -> None:
    room = WaitingRoom()
    room.add(due("a", "0"), int(NOW))
    room.add(due("b", "1", NOW + 5), int(NOW))
    room.add(due("c", "2", soon=True), int(NOW))
    room.add(due("d", "0 1 2", NOW + 5), int(NOW))
    assert taken(room) == []
    assert taken(room, 5) == ["c"]
    assert taken(room, 4) == ["a"]
    at(NOW + 5 + WAIT_SECONDS)
    assert taken(room) == []
    at(NOW + 6 + WAIT_SECONDS)
    assert taken(room) == ["b", "d"]
    room.add(due("e", read_at=NOW, soon=True), int(NOW))
    at(NOW + SOON_WAIT_SECONDS)
    assert taken(room) == []
    at(NOW + SOON_WAIT_SECONDS + 1)
    assert taken(room) == ["e"]


@pytest.mark.usefixtures("at")
@pytest.mark.parametrize(("hours", "most"), [(1, 100), (720, 1_500)])
def test_ten_thousand_need_so_many_queries_at_most(hours: int, most: int) -> None:
    room, chance = WaitingRoom(), random.Random(1)
    queries = 0
    for number in range(10_000):
        room.add(due(str(number), str(chance.randrange(hours))), int(NOW))
        queries += len(taken(room))
        queries += len(taken(room, MOST_WAITING))
        assert room.count <= MOST_WAITING
    assert queries + len(taken(room, 0)) <= most


# What one query tells


def test_one_alone_and_a_span_without_time_are_asked_for_as_ever(services: Services) -> None:
    (alone,) = ask_together([due("a")], services)
    assert alone.reports[0].ask is None
    within = replace(ITEM, end=ITEM.start + 60)
    short = replace(due("a"), reports=[PendingReport(within, 0), PendingReport(ITEM, 0)])
    for found in ask_together([short, short], services):
        assert [report.ask is None for report in found.reports] == [True, False]


@pytest.mark.usefixtures("at")
def test_a_customer_of_openmeters_is_asked_for_alone(services: Services, totals: mock.Mock) -> None:
    whole = due("a")
    item = replace(whole.reports[0].item, subject=usage.OpenMeterCustomer("0" * 26))
    whole = replace(whole, reports=[replace(whole.reports[0], item=item)])
    found = ask_together([due("a"), whole, due("b")], services)
    assert [one.reports[0].ask is None for one in found] == [False, True, False]
    assert found[0].reports[0].ask is not None
    found[0].reports[0].ask(0)
    assert totals.call_args.args[2] == ["a", "b"]


@pytest.mark.usefixtures("at")
def test_each_subject_is_asked_for_once(services: Services, totals: mock.Mock) -> None:
    group = ask_together([due("a"), due("b", "0 0"), due("c"), due("a")], services)
    told = [report.ask(0) for found in group for report in found.reports if report.ask]
    assert [asked.total for asked in told] == [1, 2, 2, None, 1]
    span = span_of(ITEM)
    (call,) = totals.call_args_list
    assert call.args == (services.openmeter, "m1", ["a", "b", "c"], span.start, span.end)
    assert isinstance(span.start, datetime)
    assert span.start.tzinfo is UTC


def batch(services: Services, *subjects: str) -> Batch:
    return Batch(span_of(ITEM), list(subjects), services)


def item(subject: str) -> Any:
    return replace(ITEM, subject=subject)


def test_a_total_is_of_when_it_was_asked_for_and_asked_for_again_once_it_is_old(
    services: Services, totals: mock.Mock, at: Clock
) -> None:
    def slowly(*_: object) -> object:
        at(NOW + 2)
        return mock.DEFAULT

    asked = batch(services, "a", "b")
    totals.side_effect = slowly
    assert asked.ask(item("a"), 0) == Asked(Decimal(1), NOW)
    totals.side_effect, totals.return_value = None, {"a": Decimal(1), "b": Decimal(9)}
    at(NOW + ASK_AGAIN_SECONDS)
    assert asked.ask(item("b"), 0) == Asked(Decimal(2), NOW)
    assert totals.call_count == 1
    at(NOW + ASK_AGAIN_SECONDS + 1)
    assert asked.ask(item("b"), 0) == Asked(Decimal(9), NOW + ASK_AGAIN_SECONDS + 1)
    assert totals.call_count == 2


def test_a_total_is_never_older_than_the_one_that_was_told_before(
    services: Services, totals: mock.Mock, at: Clock
) -> None:
    asked = batch(services, "a", "b")
    assert asked.ask(item("a"), 0).at == NOW
    at(NOW + 1)
    assert asked.ask(item("a"), NOW).at == NOW
    assert asked.ask(item("a"), NOW + 0.5).at == NOW + 1
    assert totals.call_count == 2


@pytest.mark.usefixtures("at")
def test_where_one_query_fails_each_is_asked_for_alone(
    services: Services, totals: mock.Mock, total: mock.Mock
) -> None:
    totals.side_effect = usage.QueryFailed("one of them is beyond 2**53")
    total.side_effect = [Decimal(7), usage.QueryFailed("beyond 2**53"), Decimal(8)]
    asked = batch(services, "a", "b", "c")
    assert asked.ask(item("a"), 0) == Asked(Decimal(7), NOW)
    with pytest.raises(ReportFailed, match="beyond"):
        asked.ask(item("b"), 0)
    assert asked.ask(item("c"), 0) == Asked(Decimal(8), NOW)
    assert (totals.call_count, total.call_count) == (1, 3)


# What is read again


@pytest.mark.parametrize(
    ("age", "ends_in", "outdated"),
    [
        (0, SOON_SECONDS, False),
        (FRESH_SECONDS, 60, False),
        (FRESH_SECONDS + 1, SOON_SECONDS - 1, True),
        (FRESH_SECONDS + 1, SOON_SECONDS, False),
        (OLD_SECONDS, SOON_SECONDS, False),
        (OLD_SECONDS + 1, 30 * 24 * HOUR, True),
        (1, 0, True),
        (2, -1, True),
        (2, 1, False),
        (FRESH_SECONDS, -FRESH_SECONDS, False),
        (FRESH_SECONDS + 1, -HOUR, True),
    ],
)
def test_what_can_be_another_one_by_now_is_read_again(
    services: Services, at: Clock, age: int, ends_in: int, outdated: bool
) -> None:
    at(NOW + age)
    assert is_outdated(NOW, int(NOW) + age + ends_in, services) is outdated
