"""Deliveries as the burst makes them: again and again, until they are answered."""

import asyncio
from collections.abc import Iterator
from itertools import islice

import pytest
from pytest_mock import MockerFixture

from bench import sender
from bench.renewals import CREATED, UPDATED, Renewals
from bench.sender import Sender, waits

SILENT = None


def test_each_wait_is_longer_up_to_a_minute() -> None:
    assert list(islice(waits(), 5)) == [10, 20, 40, 60, 60]


class Service:
    """What answers deliveries, in this order; `told` has what else was sent."""

    def __init__(self, mocker: MockerFixture, *answers: bool | OSError | None) -> None:
        self.answers: Iterator[bool | OSError | None] = iter(answers)
        self.told: list[str] = []
        self.slept: list[float] = []
        mocker.patch.object(sender, "post", self.post)
        mocker.patch.object(sender, "ANSWER_SECONDS", 0.01)
        mocker.patch("asyncio.sleep", self.sleep)

    async def post(self, address: str, body: str, headers: str = "") -> bool:
        if not address.endswith("/webhook"):
            self.told.append(body)
            return True
        assert headers.startswith("Stripe-Signature: t=")
        answer = next(self.answers)
        if isinstance(answer, OSError):
            raise answer
        if answer is SILENT:
            await asyncio.Event().wait()
        return bool(answer)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def delivered(kind: str) -> Sender:
    found = Sender("http://stripe", ["http://service"], Renewals(1_790_000_000))
    asyncio.run(found.deliver("sub_1", kind, "http://service"))
    return found


@pytest.mark.parametrize(
    ("answers", "timed_out"),
    [([], 0), ([False], 0), ([False, OSError(), SILENT], 1)],
)
def test_a_delivery_is_made_again_until_it_is_answered(
    mocker: MockerFixture, answers: list[bool | OSError | None], timed_out: int
) -> None:
    service = Service(mocker, *answers, True)
    found = delivered(UPDATED)
    assert (found.attempts, found.timed_out) == (len(answers) + 1, timed_out)
    assert len(found.answered) == 1
    assert service.slept == [10, 20, 40][: len(answers)]


@pytest.mark.parametrize(
    ("kind", "told"), [(CREATED, ['{"subscription": "sub_1"}']), (UPDATED, [])]
)
def test_stripe_is_told_which_draft_was_answered(
    mocker: MockerFixture, kind: str, told: list[str]
) -> None:
    service = Service(mocker, True)
    delivered(kind)
    assert service.told == told


def test_services_take_turns(mocker: MockerFixture) -> None:
    asked: list[str] = []

    async def deliver(_: Sender, __: str, ___: str, service: str) -> None:
        asked.append(service)

    mocker.patch.object(Sender, "deliver", deliver)
    asyncio.run(Sender("", ["one", "two"], Renewals(1)).send(2))
    assert asked == ["one", "two", "two", "one"]
