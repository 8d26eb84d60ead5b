"""Events that were reported too late for Stripe to hear of it, and their next attempts."""

import json
import time
from collections.abc import Callable

import pytest
from pytest_mock import MockerFixture

from fakes.stripe_webhooks import signature
from service import late
from service.late import LateAnswers, sent_at
from tests.conftest import SECRET, Answer, Service, updated

NOW = 1_700_000_000


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
    answers.note("evt_1", NOW - seconds, NOW)
    assert answers.take("evt_2") is False
    assert [answers.take("evt_1") for _ in range(2)] == [is_late, False]


@pytest.mark.parametrize("event_id", [None, 7, ["evt_1"], {"id": "evt_1"}])
def test_what_has_no_id_is_not_remembered(event_id: object) -> None:
    answers = LateAnswers()
    answers.note(event_id, NOW - 60, NOW)
    assert answers.take(event_id) is False


def test_the_oldest_are_forgotten_after_so_many_and_all_after_a_day(mocker: MockerFixture) -> None:
    mocker.patch.object(late, "MOST_LATE", 2)
    clock = mocker.patch("service.late.time.monotonic", return_value=0.0)
    answers = LateAnswers()
    for event_id in ("evt_1", "evt_2", "evt_3"):
        answers.note(event_id, NOW - 60, NOW)
    clock.return_value = 86_399.0
    assert [answers.take(event_id) for event_id in ("evt_1", "evt_2")] == [False, True]
    clock.return_value = 86_400.0
    assert answers.take("evt_3") is False


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
