"""Stripe as the burst plays it: deliveries again until they are answered, drafts held meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice

import pytest
from pytest_mock import MockerFixture

from bench import renewals
from bench.objects import DAY
from bench.renewals import Renewals, waits

BOUNDARY = 1_790_000_000


def test_each_wait_is_longer_up_to_a_minute() -> None:
    assert list(islice(waits(), 5)) == [10, 20, 40, 60, 60]


def delivered(
    mocker: MockerFixture, kind: str, post: Callable[..., Awaitable[bool]]
) -> tuple[Renewals, list[float]]:
    """Deliver one event to a service; return what became of it, and the waits."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def deliver() -> None:
        await found.deliver("sub_1", kind, "http://service")
        await real_sleep(0.05)

    real_sleep = asyncio.sleep
    mocker.patch.object(renewals, "HOUR_SECONDS", 0.01)
    mocker.patch.object(renewals, "post", post)
    mocker.patch("asyncio.sleep", sleep)
    found = Renewals(count=1, boundary=BOUNDARY)
    asyncio.run(deliver())
    return found, slept


@pytest.mark.parametrize("refusals", [0, 3])
def test_a_delivery_is_made_again_until_it_is_answered(
    mocker: MockerFixture, refusals: int
) -> None:
    answers = iter([False] * refusals + [True])

    async def post(*_: str) -> bool:
        return next(answers)

    found, slept = delivered(mocker, "invoice.created", post)
    assert (found.attempts, len(found.answered)) == (refusals + 1, 1)
    assert slept == [0.01 * 2**n for n in range(refusals)]
    assert set(found.final) == {"sub_1"}
    assert found.final["sub_1"] >= found.answered[0] + 0.01


def test_only_the_draft_of_an_answered_invoice_becomes_final(mocker: MockerFixture) -> None:
    async def post(*_: str) -> bool:
        return True

    found, _ = delivered(mocker, "customer.subscription.updated", post)
    assert found.final == {}


def test_no_answer_in_time_is_a_failure(mocker: MockerFixture) -> None:
    silences = iter([True, False])

    async def post(*_: str) -> bool:
        is_silent = next(silences)
        if is_silent:
            await asyncio.Event().wait()
        return True

    mocker.patch.object(renewals, "ANSWER_SECONDS", 0.01)
    found, _ = delivered(mocker, "customer.subscription.updated", post)
    assert (found.timed_out, found.attempts) == (1, 2)


def event_of_meter(customer: str, second: int) -> dict[str, str]:
    return {"payload[stripe_customer_id]": customer, "timestamp": str(second)}


def test_a_period_is_closed_by_an_event_of_before_its_end() -> None:
    found = Renewals(count=2, boundary=BOUNDARY)
    found.note_event(event_of_meter("cus_sub_0", BOUNDARY + 1))
    found.note_event(event_of_meter("cus_sub_1", BOUNDARY - 1))
    assert set(found.closed) == {"sub_1"}
    for name in ("sub_0", "sub_1"):
        found.make_final(name)
    assert found.state({})["final_before_closed"] == 1


def test_a_late_close_does_not_mend_a_final_draft() -> None:
    found = Renewals(count=1, boundary=BOUNDARY)
    found.make_final("sub_0")
    found.note_event(event_of_meter("cus_sub_0", BOUNDARY - 1))
    assert found.state({})["final_before_closed"] == 1
    assert found.invoice("sub_0")["status"] == "open"


def test_an_update_tells_that_the_period_moved_on() -> None:
    event = Renewals(count=1, boundary=BOUNDARY).event("sub_0", "customer.subscription.updated")
    (before,) = event["data"]["previous_attributes"]["items"]["data"]
    (after,) = event["data"]["object"]["items"]["data"]
    assert before["current_period_end"] == after["current_period_start"] == BOUNDARY
    assert after["current_period_end"] == BOUNDARY + 30 * DAY
    assert event["livemode"] is True
