"""The probes: whether the process answers, and whether both services do."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from pytest_mock import MockerFixture

from fakes.processes import ROOT
from service.health import Check, Readiness
from tests.conftest import KEY, TOKEN, Service

Clock = Any


def asked(service: Service) -> list[str]:
    """Return the paths that were asked for."""
    return [seen["path"] for seen in service.called()]


def test_healthz_calls_nobody(service: Service) -> None:
    answer = service.open("GET", "/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    assert asked(service) == []


def test_readyz_asks_both_services(service: Service) -> None:
    answer = service.open("GET", "/readyz")
    assert (answer.status_code, answer.json) == (200, {"openmeter": "ok", "stripe": "ok"})
    assert sorted(asked(service)) == ["/api/v1/meters", "/v1/subscriptions"]
    assert f"`{answer.text.strip()}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("status", [401, 429, 500, 503])
@pytest.mark.parametrize("name", ["openmeter", "stripe"])
def test_readyz_says_which_service_fails_and_why(service: Service, name: str, status: int) -> None:
    fake = service.openmeter if name == "openmeter" else service.stripe
    fake.fault(path="/", status=status, body={"detail": TOKEN, "error": {}}, times=9)
    answer = service.open("GET", "/readyz")
    said = answer.json
    assert answer.status_code == 503
    assert str(status) in said.pop(name)
    assert list(said.values()) == ["ok"]
    assert KEY not in answer.text
    assert TOKEN not in answer.text


@pytest.fixture
def clock(mocker: MockerFixture) -> Clock:
    """Stand in for the clock of what is remembered."""
    return mocker.patch("service.health.time.monotonic", return_value=100.0)


def test_a_failure_is_remembered_for_ten_seconds(service: Service, clock: Clock) -> None:
    service.stripe.fault(path="/v1/subscriptions", status=503, times=2)
    assert service.open("GET", "/readyz").status_code == 503
    clock.return_value = 109.9
    assert service.open("GET", "/readyz").status_code == 503
    clock.return_value = 110.0
    assert service.open("GET", "/readyz").status_code == 200
    assert len(service.openmeter.requests()) == 2


def test_stripe_is_asked_by_probes_twelve_times_an_hour_at_most(
    service: Service, clock: Clock, mocker: MockerFixture
) -> None:
    limits = mocker.patch("pyrate_limiter.clocks.MonotonicClock.now", return_value=0)
    service.stripe.fault(path="/v1/subscriptions", status=401, body={"error": {}}, times=99)
    for second in range(0, 3_600, 5):
        clock.return_value = 100.0 + second
        limits.return_value = 1_000 * second
        assert service.open("GET", "/readyz").status_code == 503
    assert len(service.stripe.requests()) == 12


def test_what_calls_for_other_reasons_told_is_not_asked_again(
    service: Service, clock: Clock
) -> None:
    assert service.deliver(service.stripe.subscription()).status_code == 200
    service.forget()
    for second in (5, 9):
        clock.return_value = 100.0 + second
        assert service.open("GET", "/readyz").status_code == 200
    assert service.called() == []
    clock.return_value = 399.0
    assert service.open("GET", "/readyz").status_code == 200
    assert asked(service) == ["/api/v1/meters/m1/query"]
    clock.return_value = 400.0
    assert service.open("GET", "/readyz").status_code == 200
    assert asked(service)[1:] == ["/v1/subscriptions"]


def test_a_call_that_stripe_left_without_an_answer_is_said_by_the_probe(
    service: Service, clock: Clock
) -> None:
    subscription = service.stripe.subscription()
    service.stripe.fault(path="/usage_records", status=503, times=9)
    assert service.deliver(subscription).status_code == 500
    service.forget()
    answer = service.open("GET", "/readyz")
    assert (answer.status_code, "503" in answer.json["stripe"]) == (503, True)
    assert "/v1/subscriptions" not in asked(service)
    clock.return_value = 110.0
    assert service.open("GET", "/readyz").status_code == 200


def test_a_meter_that_is_wrong_makes_nothing_unready(service: Service) -> None:
    subscription = service.stripe.subscription()
    service.openmeter.fault(path="/m1/query", status=404, times=9)
    assert service.deliver(subscription).status_code == 500
    assert service.open("GET", "/readyz").json == {"openmeter": "ok", "stripe": "ok"}


def test_openmeter_is_unready_whose_store_answers_no_query(service: Service, clock: Clock) -> None:
    assert service.deliver(service.stripe.subscription()).status_code == 200
    service.openmeter.fault(path="/query", status=500, times=9)
    clock.return_value = 200.0
    answer = service.open("GET", "/readyz")
    assert (answer.status_code, "500" in answer.json["openmeter"]) == (503, True)


def test_probes_at_once_ask_once(service: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: service.open("GET", "/readyz"), range(8)))
    assert [answer.json for answer in answers] == [{"openmeter": "ok", "stripe": "ok"}] * 8
    assert len(service.called()) == 2


def test_each_service_is_asked_at_the_same_time() -> None:
    meeting = Barrier(2, timeout=10)

    def check() -> str:
        meeting.wait()
        return "ok"

    with ThreadPoolExecutor(2) as pool:
        readiness = Readiness({"one": Check(check), "other": Check(check)}, pool)
        assert readiness.current_answers() == {"one": "ok", "other": "ok"}
