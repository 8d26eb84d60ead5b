"""Events that were reported too late for Stripe to hear of it, and their next attempts."""

import json
import time
from collections.abc import Callable

import pytest
from pytest_mock import MockerFixture

from fakes.stripe_webhooks import signature
from service import late
from service.late import LateAnswers, sent_at
from service.shared_redis import SharedRedis
from tests.conftest import SECRET, Answer, Service, updated
from tests.service.conftest import RedisServer

NOW = 1_700_000_000
EVENT = {"id": "evt_1"}


@pytest.mark.parametrize(
    ("header", "second"),
    [
        ("t=1700000000,v1=ab", 1_700_000_000),
        ("v1=ab,t=1700000000", 1_700_000_000),
        ("v1=ab, t=1700000000,v0=cd", 1_700_000_000),
        ("v1=t=1700000000", None),
        ("t=soon,v1=ab", None),
        ("t=9999999999999,v1=ab", None),
        ("", None),
        (None, None),
    ],
)
def test_when_an_attempt_was_sent_is_in_its_signature(
    header: str | None, second: int | None
) -> None:
    assert sent_at(header) == second


@pytest.mark.parametrize(("seconds", "is_late"), [(0, False), (9, False), (10, True), (60, True)])
def test_an_answer_that_may_have_come_too_late_is_remembered_once(
    seconds: int, is_late: bool
) -> None:
    answers = LateAnswers()
    answers.note(EVENT, NOW - seconds, NOW)
    assert answers.take({"id": "evt_2"}, NOW) is False
    assert [answers.take(EVENT, NOW) for _ in range(2)] == [is_late, False]


@pytest.mark.parametrize("event_id", [None, 7, ["evt_1"], EVENT])
def test_what_has_no_id_is_not_remembered(event_id: object) -> None:
    answers = LateAnswers()
    answers.note({"id": event_id}, NOW - 60, NOW)
    assert answers.take({"id": event_id}, NOW) is False


def test_the_oldest_are_forgotten_after_so_many_and_all_after_a_day(mocker: MockerFixture) -> None:
    mocker.patch.object(late, "MOST_LATE", 2)
    clock = mocker.patch("service.late.time.monotonic", return_value=0.0)
    answers = LateAnswers()
    for event_id in ("evt_1", "evt_2", "evt_3"):
        answers.note({"id": event_id}, NOW - 60, NOW)
    clock.return_value = 86_399.0
    assert [answers.take({"id": event_id}, NOW) for event_id in ("evt_1", "evt_2")] == [False, True]
    clock.return_value = 86_400.0
    assert answers.take({"id": "evt_3"}, NOW) is False


def of_processes(server: RedisServer, *secrets: tuple[str, ...]) -> list[LateAnswers]:
    """Return the late answers of as many processes, each with its signing secrets."""
    return [LateAnswers(each, SharedRedis(server.url, "ours")) for each in secrets]


def test_the_processes_of_an_endpoint_know_each_others_once(server: RedisServer) -> None:
    one, two = of_processes(server, ("a", "b"), ("b", "a"))
    one.note(EVENT, NOW - 60, NOW)
    assert [each.take(EVENT, NOW) for each in (two, one, two)] == [True, False, False]
    one.note(EVENT, NOW - 60, NOW)
    assert 86_300 < server.client.ttl(server.client.keys()[0]) <= 86_400


def test_what_another_endpoint_answered_is_not_taken_for_ours(server: RedisServer) -> None:
    """It may report to other meters."""
    one, two = of_processes(server, ("a",), ("b",))
    one.note(EVENT, NOW - 60, NOW)
    assert [each.take(EVENT, NOW) for each in (two, one)] == [False, True]


def test_a_signing_secret_is_not_noted(server: RedisServer) -> None:
    (one,) = of_processes(server, (SECRET,))
    one.note(EVENT, NOW - 60, NOW)
    assert [key for key in server.client.scan_iter() if SECRET.encode() in key] == []


def test_a_redis_that_is_gone_is_done_without(server: RedisServer) -> None:
    one, two = of_processes(server, ("a",), ("a",))
    server.stop()
    one.note(EVENT, NOW - 60, NOW)
    assert [each.take(EVENT, NOW) for each in (two, one, one)] == [False, True, False]


@pytest.mark.parametrize(
    ("created", "sent", "asks"),
    [(NOW, NOW + 9, 0), (NOW, NOW + 10, 1), (NOW, None, 1), (None, NOW, 1), (True, NOW, 1)],
)
def test_nobody_is_asked_of_a_first_attempt(
    mocker: MockerFixture, created: object, sent: int | None, asks: int
) -> None:
    shared = mocker.Mock(**{"take.return_value": False})
    LateAnswers(("a",), shared).take({"id": "evt_1", "created": created}, sent)
    assert shared.take.call_count == asks


def test_a_machine_answers_the_next_attempt_of_what_another_reported_too_late(
    start: Callable[..., Service], service: Service, server: RedisServer
) -> None:
    one, two = (start(RATE_LIMIT_REDIS=server.url) for _ in range(2))
    now = int(time.time())
    event = json.dumps({**updated(service.stripe.subscription()), "created": now - 30})

    def attempt(machine: Service, sent: int) -> Answer:
        return machine.post(event, signature(SECRET, event.encode(), sent))

    assert len(attempt(one, now - 30).json["reported"]) == 1
    service.forget()
    assert attempt(two, now).json == {"repeated": "evt_1"}
    assert service.called() == []
    assert len(attempt(two, now).json["reported"]) == 1


Post = Callable[[int], Answer]


@pytest.fixture
def post(service: Service) -> Post:
    event = json.dumps(updated(service.stripe.subscription()))

    def posted(seconds_ago: int) -> Answer:
        sent = int(time.time()) - seconds_ago
        return service.post(event, signature(SECRET, event.encode(), sent))

    return posted


def test_the_next_attempt_of_a_late_report_is_answered_at_once_and_the_one_after_reports(
    service: Service, post: Post, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert len(post(30).json["reported"]) == 1
    service.forget()
    again = post(0)
    assert (again.status_code, again.json) == (200, {"repeated": "evt_1"})
    assert service.called() == []
    assert caplog.messages[-1] == "event evt_1: reported before, too late for Stripe to hear of it"
    assert len(post(0).json["reported"]) == 1
    assert len(post(0).json["reported"]) == 1


def test_a_late_answer_to_the_next_attempt_is_remembered_as_well(post: Post) -> None:
    assert len(post(30).json["reported"]) == 1
    assert [set(post(seconds).json) for seconds in (30, 30, 0)] == [{"repeated"}] * 3
    assert len(post(0).json["reported"]) == 1


def test_a_late_failure_is_tried_again(service: Service, post: Post) -> None:
    service.openmeter.fault(path="/query", status=500, times=2)
    assert post(30).status_code == 500
    assert len(post(30).json["reported"]) == 1
