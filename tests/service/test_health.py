"""The probes: whether the process answers, and whether both services do."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from pytest_mock import MockerFixture

from fakes.processes import ROOT
from service.health import Readiness
from tests.conftest import KEY, TOKEN, Service


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
    assert asked(service) == ["/api/v1/meters", "/v1/subscriptions"]
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


def test_an_answer_is_remembered_for_ten_seconds(service: Service, mocker: MockerFixture) -> None:
    clock = mocker.patch("service.health.time.monotonic", return_value=100.0)
    service.stripe.fault(path="/v1/subscriptions", status=503, times=2)
    assert service.open("GET", "/readyz").status_code == 503
    clock.return_value = 109.9
    assert service.open("GET", "/readyz").status_code == 503
    clock.return_value = 110.0
    assert service.open("GET", "/readyz").status_code == 200
    assert len(service.openmeter.requests()) == 2


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
        readiness = Readiness({"one": check, "other": check}, pool)
        assert readiness.current_answers() == {"one": "ok", "other": "ok"}
