"""Reports of one item, one at a time, and what is remembered of them."""

import threading
from contextlib import suppress

import pytest
from pytest_mock import MockerFixture

from billing.stripe_api import ReportFailed
from billing.turns import Turns

ITEM, OTHER = ("si_1",), ("acct_1", "si_1")


def tell(turns: Turns, key: tuple[str, ...], latest: int, asked_at: float = 0.0) -> None:
    """Report an item, which tells of it until a second."""
    with turns.wait(key) as turn:
        turn.note(latest, latest)
        turn.asked_at = asked_at


def told(turns: Turns, key: tuple[str, ...]) -> tuple[int, float]:
    """Return what the reports of an item have told so far."""
    with turns.wait(key) as turn:
        return turn.latest, turn.asked_at


def test_the_next_report_knows_what_the_last_one_told() -> None:
    turns = Turns()
    assert told(turns, ITEM) == (0, 0.0)
    tell(turns, ITEM, 7, 1.5)
    tell(turns, ITEM, 5, 2.5)
    assert told(turns, ITEM) == (7, 2.5)
    assert told(turns, OTHER) == (0, 0.0)


def test_what_a_report_told_before_it_failed_is_known() -> None:
    turns = Turns()
    with suppress(ReportFailed), turns.wait(ITEM) as turn:
        turn.note(7, 7)
        raise ReportFailed("no")
    assert told(turns, ITEM) == (7, 0.0)


def test_the_items_that_were_reported_last_are_remembered(mocker: MockerFixture) -> None:
    mocker.patch("billing.turns.MOST_TOLD", 10)
    turns = Turns()
    for n in range(25):
        tell(turns, (f"si_other_{n}",), 1)
        told(turns, ITEM)  # which is reported again and again
    known = turns.told.keys() | turns.told_before.keys()
    kept = [n for n in range(25) if hash((f"si_other_{n}",)) in known]
    assert kept == list(range(25 - len(kept), 25))
    assert 10 <= len(kept) < len(known) <= 20
    assert told(turns, ("si_other_20",)) == (1, 0.0)


def test_another_item_does_not_wait_and_the_same_one_only_for_so_long(
    mocker: MockerFixture,
) -> None:
    mocker.patch("billing.turns.TURN_SECONDS", 0.05)
    turns = Turns()
    with turns.wait(ITEM):
        assert told(turns, OTHER) == (0, 0.0)
        with pytest.raises(ReportFailed, match="under way for too long"):
            told(turns, ITEM)
    assert told(turns, ITEM) == (0, 0.0)


def test_a_report_waits_for_the_one_before_it() -> None:
    turns, order = Turns(), list[str]()

    def second() -> None:
        with turns.wait(ITEM) as turn:
            order.append(f"second, after {turn.latest}")

    with turns.wait(ITEM) as turn:
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        order.append("first")
        turn.note(7, 7)
    waiting.join(5)
    assert order == ["first", "second, after 7"]
