"""Subscriptions that renew together: what counts as closed, and when a draft is final."""

import json

import pytest
from pytest_mock import MockerFixture

from bench.objects import DAY
from bench.renewals import HOUR_SECONDS, UPDATED, Renewals

BOUNDARY = 1_790_000_000


@pytest.fixture
def found() -> Renewals:
    return Renewals(BOUNDARY)


def close(found: Renewals, name: str, second: int = BOUNDARY - 1) -> None:
    found.note_event({"payload[stripe_customer_id]": f"cus_{name}", "timestamp": str(second)})


def answer(found: Renewals, name: str) -> None:
    found.note_answer({"body": json.dumps({"subscription": name})})


def test_a_period_is_closed_by_an_event_of_before_its_end(found: Renewals) -> None:
    close(found, "sub_0", BOUNDARY + 1)
    close(found, "sub_1")
    assert set(found.closed) == {"sub_1"}


def test_a_draft_is_final_an_hour_after_its_answer_and_not_before(
    found: Renewals, mocker: MockerFixture
) -> None:
    now = mocker.patch("bench.renewals.time.monotonic", return_value=100.0)
    answer(found, "sub_0")
    for seconds, status in ((0, "draft"), (HOUR_SECONDS - 0.1, "draft"), (HOUR_SECONDS, "open")):
        now.return_value = 100 + seconds
        assert found.invoice("sub_0")["status"] == status
        assert found.invoice("sub_1")["status"] == "draft"


@pytest.mark.parametrize(("seconds", "late"), [(None, 1), (HOUR_SECONDS + 1, 1), (0, 0)])
def test_a_draft_that_is_final_before_it_is_closed_is_counted(
    found: Renewals, mocker: MockerFixture, seconds: float | None, late: int
) -> None:
    now = mocker.patch("bench.renewals.time.monotonic", return_value=100.0)
    answer(found, "sub_0")
    if seconds is not None:
        now.return_value = 100 + seconds
        close(found, "sub_0")
    assert found.state({})["final_before_closed"] == late


def test_an_update_tells_that_the_period_moved_on(found: Renewals) -> None:
    event = found.event("sub_0", UPDATED)
    (before,) = event["data"]["previous_attributes"]["items"]["data"]
    (after,) = event["data"]["object"]["items"]["data"]
    assert before["current_period_end"] == after["current_period_start"] == BOUNDARY
    assert after["current_period_end"] == BOUNDARY + 30 * DAY
    assert event["livemode"] is True
