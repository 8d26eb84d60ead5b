"""Stripe's limits in a real Redis, which several processes draw on, and which comes and goes."""

import signal
import threading
import time
from typing import Any

import pytest
from pyrate_limiter import validate_rate_list

from service import rates_redis, shared_redis
from service.rates import NoTurn, Rates
from service.rates_redis import Asked, RedisBudget
from service.shared_redis import SharedRedis
from tests.service.conftest import PASSWORD, RedisServer

RECORDS = ("post", "/v1/subscription_items/si_1/usage_records")
NOW = 1_700_000_000
FAR = threading.TIMEOUT_MAX


def rates(server: RedisServer, share: int = 80, **how: Any) -> Rates:
    """Return the rates of another process."""
    return Rates(
        share,
        is_live=True,
        shared=RedisBudget(SharedRedis(server.url, "openmeter-stripe:live")),
        **how,
    )


def taken(each: Rates) -> int:
    """Return how many turns there are at once."""
    count = 0
    try:
        while True:
            each.take_turn(*RECORDS, until=time.monotonic())
            count += 1
    except NoTurn:
        return count


def test_all_processes_together_take_one_share(server: RedisServer) -> None:
    machines = [rates(server, processes=2) for _ in range(3)]
    assert [taken(each) for each in machines] == [20, 0, 0]
    time.sleep(1.1)
    assert sum(map(taken, machines)) == 20


def test_a_turn_comes_when_more_than_a_second_has_passed(server: RedisServer) -> None:
    machines = [rates(server) for _ in range(2)]
    began, moments = time.monotonic(), list[float]()

    def take(each: Rates) -> None:
        for _ in range(20):
            each.take_turn(*RECORDS, until=FAR)
            moments.append(time.monotonic() - began)

    threads = [threading.Thread(target=take, args=(each,)) for each in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moments)[19] < 0.5
    # What differs between a turn and its request makes no second fuller.
    assert sorted(moments)[20] >= 1.02
    assert max(moments) < 3.5


def moments_of_turns(machines: list[Rates], each: int) -> list[float]:
    """Return the seconds from now on at which so many turns of each come, that wait together."""
    began, moments = time.monotonic(), list[float]()

    def take(machine: Rates) -> None:
        machine.take_turn(*RECORDS, until=FAR)
        moments.append(time.monotonic() - began)

    threads = [threading.Thread(target=take, args=(machine,)) for machine in machines * each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(moments)


def test_those_that_wait_go_at_a_distance_whichever_process_they_wait_in(
    server: RedisServer,
) -> None:
    """Else those that go together in one second would do so in each one after."""
    machines = [rates(server) for _ in range(4)]
    assert sum(map(taken, machines)) == 20
    moments = moments_of_turns(machines, 5)
    together = max(sum(at <= moment < at + 0.25 for moment in moments) for at in moments)
    assert together <= 8
    assert moments[-1] < 2.5


def test_who_asks_for_the_time_before_another_takes_no_turn_beside_it(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn takes two calls, between which those of other processes come."""
    budget = RedisBudget(SharedRedis(server.url, "ours"))

    def takes(milliseconds: int) -> bool | None:
        now = NOW * 1_000 + milliseconds
        told = (now // 1_000, now % 1_000 * 1_000)
        monkeypatch.setattr(budget.shared.client, "time", lambda: told)
        return budget.take("x", 20, 0, 0.05)

    assert [takes(at) for at in (0, 1_000, 999, 1_050, 1_051, 1_050)] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    # As after the clock of Redis was set back.
    assert [takes(at) for at in (-9_000, -8_950, -8_949)] == [True, False, True]


def test_who_waited_takes_its_turn_when_it_does_and_not_when_it_meant_to(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrate_limiter.limiter.sleep", lambda seconds: time.sleep(seconds + 0.2))
    budget = RedisBudget(SharedRedis(server.url, "ours"))
    assert [budget.take("x", 20, 5, 0.05) for _ in range(2)] == [True, True]
    second, microsecond = server.client.time()
    newest: Any = server.client.zrange("ours:x", -1, -1, withscores=True)
    ((_, last),) = newest
    assert second * 1_000 + microsecond / 1_000 - last < 100


def test_what_a_429_slows_down_is_slow_for_all_together(server: RedisServer) -> None:
    machines = [rates(server) for _ in range(4)]
    for machine in machines:
        machine.slow_down(*RECORDS, "endpoint-rate")
    moments = moments_of_turns(machines, 3)
    assert moments[-1] - moments[0] >= 11 * 0.1


def test_machines_whose_clocks_differ_count_alike(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taken(rates(server)) == 20
    monkeypatch.setattr("pyrate_limiter.buckets.redis_bucket.time_ns", lambda: 0)
    assert taken(rates(server)) == 0


def test_what_was_taken_is_forgotten(server: RedisServer) -> None:
    machine = rates(server)
    for _ in range(3):
        taken(machine)
        time.sleep(1.1)
    machine.take_turn(*RECORDS, until=FAR)
    keys = [key for key in server.client.keys("*") if "waiting" not in str(key)]
    counted = [server.client.zcard(key) for key in keys]
    assert len(counted) == 2
    assert max(counted) <= 21
    assert all(0 < server.client.ttl(key) <= 60 for key in keys)


@pytest.mark.parametrize("how", ["stopped", "halted", "forgetful"])
def test_without_redis_each_takes_its_part_and_nobody_fails(
    server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(shared_redis, "GONE_SECONDS", 1)
    machine = rates(server, processes=2)
    assert taken(machine) == 20
    if how == "forgetful":
        server.stop()
        server.start()
    else:
        server.stop() if how == "stopped" else server.halt()
    began = time.monotonic()
    assert taken(machine) == 10
    assert time.monotonic() - began < 2
    (said,) = (record.message for record in caplog.records)
    assert "RATE_LIMIT_REDIS does not answer" in said
    assert PASSWORD not in said
    if how == "stopped":
        server.start()
    elif how == "halted":
        server.process.send_signal(signal.SIGCONT)
    time.sleep(1.2)
    assert taken(machine) == 20


def test_many_that_wait_for_a_redis_that_halts_wait_once(server: RedisServer) -> None:
    machine = rates(server)
    machine.take_turn(*RECORDS, until=FAR)
    server.halt()
    began = time.monotonic()
    threads = [
        threading.Thread(target=lambda: machine.take_turn(*RECORDS, until=FAR)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 4
    server.process.send_signal(signal.SIGCONT)


def test_a_delivery_goes_before_a_command(server: RedisServer) -> None:
    delivery, command = rates(server), rates(server, is_command=True)
    assert taken(command) == 20
    order: list[str] = []

    def take(name: str, each: Rates) -> None:
        each.take_turn(*RECORDS, until=FAR)
        order.append(name)

    first = threading.Thread(target=take, args=("delivery", delivery))
    first.start()
    time.sleep(0.2)
    second = threading.Thread(target=take, args=("command", command))
    second.start()
    first.join()
    second.join()
    assert order == ["delivery", "command"]


def test_a_command_is_not_held_up_for_ever(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates_redis, "HELD_UP_SECONDS", 0.2)
    command = rates(server, is_command=True)
    command.take_turn(*RECORDS, until=FAR)
    for name in command.lanes:
        server.client.set(f"openmeter-stripe:live:{name}:waiting", 1)
    began = time.monotonic()
    command.take_turn(*RECORDS, until=FAR)
    assert 0.2 <= time.monotonic() - began < 1


@pytest.mark.parametrize("per_second", [2.5, 20, 49, 80, 100, 800])
@pytest.mark.parametrize("slowness", [1, 2, 4, 8, 16])
def test_what_has_to_have_room_is_well_formed_however_slow(
    per_second: float, slowness: float
) -> None:
    found = Asked("all requests", per_second, slowness / per_second).rates()
    assert validate_rate_list(found)
    slowest = found[-1].limit / found[-1].interval * 1_000
    assert slowest == pytest.approx(per_second / slowness / 1.03, rel=0.01)
