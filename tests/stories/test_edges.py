"""Seconds, drafts and boundaries at which a rule only just holds."""

import json
from typing import Any

import pytest

from tests.conftest import ACACIA, DAY, END, ENDIVE, START
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE
from tests.stories.test_life import HOUR, MODES, OM, Story, T, Tell

# Sat Jun 17 2023 14:41:04 UTC, and five days later, at 14:55:00.
ANCHOR, RESET = T, T + 5 * DAY + 836


def reset(story: Story) -> None:
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")


def asked_for_drafts(story: Story) -> int:
    """Return how often a run asked for a subscription's drafts, and run."""
    story.service.forget()
    assert story.run().exit_code == 0
    seen = [seen["query"] for seen in story.stripe.requests() if seen["path"] == "/v1/invoices"]
    return len([query for query in seen if "subscription=" in query])


# What was so some seconds ago


@pytest.mark.parametrize(("price", "age"), [("bare R", 6), ("bare", 6), ("bare R", 30)])
def test_an_event_that_is_some_seconds_old_is_of_what_is_so_now(
    tell: Tell, price: str, age: int
) -> None:
    story = tell()
    story.subscribe(CLASSIC, price, **{f"items[0]{OM}": "m_wrong"})
    story.use(100, T - HOUR)
    story.use(9_000, T - HOUR, "m_wrong")
    story.to(T)
    story.touch()
    old = story.fresh()[-1]
    story.update(**{"items[0][id]": story.items()[0], f"items[0]{OM}": "m1"})
    story.deliver(seconds=1)
    story.to(T + age)
    (entry,) = story.post(old).json["reported"]
    assert (entry["meter"], str(entry["quantity"])) == ("m1", "100")


def test_a_fresh_event_tells_nothing_of_what_came_after_it(tell: Tell) -> None:
    """A reset within seconds: the total before it must not stand in the period after it."""
    story = tell()
    story.subscribe(CLASSIC, "A")
    other = story.start()
    story.to(START + 2)
    story.touch()
    story.deliver(seconds=1)
    story.use(10, START + 1)
    story.to(START + 10)
    story.touch()
    (before,) = story.fresh()
    story.to(START + 12)
    reset(story)
    story.use(3, START + 12)
    story.to(START + 13)
    for event in story.fresh():
        assert other.post(json.dumps(event)).status_code == 200
    story.to(START + 14)
    story.post(before)
    assert story.stands(START + 12, END) == 3


# Drafts


def test_each_of_several_drafts_is_closed_with_what_openmeter_shows_late(tell: Tell) -> None:
    story = tell()
    story.price("day", 10, interval="day", **{"metadata[om_meter_id]": "m1"})
    story.subscribe(CLASSIC, "day")
    for day, units in enumerate((1, 2, 4)):
        story.use(units, START + day * DAY + 3 * HOUR)
    story.to(START + 3 * DAY + 60)
    assert story.run().exit_code == 0
    story.to(START + 3 * DAY + 74 * HOUR)
    assert [lines[0][1] for _, lines in story.billed()][:3] == [1, 2, 4]


@MODES
def test_a_draft_is_closed_as_long_as_it_is_held(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(10, T)
    story.to(END + 70 * HOUR)
    story.use(5, END - HOUR)
    assert story.run().exit_code == 0
    assert story.billed_in_the_end() == [("cycle", [("A", 15, 150)])]


@MODES
def test_drafts_are_asked_for_only_where_there_can_be_some(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.use(1, T - HOUR)
    story.to(T)
    assert asked_for_drafts(story) == 0 or mode == FLEXIBLE
    for hours, asked in ((1, 1), (71, 1), (73, 0)):
        story.to(END + hours * HOUR)
        assert asked_for_drafts(story) == asked


# Boundaries


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_what_ended_some_seconds_late_is_closed_to_its_periods_end(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "A", cancel_at_period_end="true")
    story.used(10, T)
    story.use(5, END - 1)
    story.use(100, END + 10)
    story.to(END + 60)
    (event,) = [event for event in story.fresh() if "deleted" in event["type"]]
    event["data"]["object"]["ended_at"] = END + 30
    story.post(event)
    assert story.closed_with(END) == "15"
    assert story.warned() == []
    assert story.billed_in_the_end() == [("cycle", [("A", 15, 150)])]


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_period_that_began_at_a_date_of_its_own_is_closed_from_that_second(
    tell: Tell, version: str
) -> None:
    """After a reset only its event knows where the anchor was; no invoice of a reset tells it."""
    story = tell(version)
    story.subscribe(CLASSIC, "A", billing_cycle_anchor=ANCHOR)
    story.used(10, ANCHOR - 60)
    story.to(ANCHOR + 60)
    story.deliver()
    story.used(5, RESET - 60)
    story.to(RESET)
    reset(story)
    story.caplog.clear()
    story.deliver()
    assert story.closed_with(RESET) == "5"
    assert story.warned("reset", "closed") == []
    assert [lines for _, lines in story.billed()][-2:] == [[("A", 10, 100)], [("A", 5, 50)]]


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_resets_draft_counts_from_the_second_of_the_reset_before_it(
    tell: Tell, version: str
) -> None:
    """That a reset's invoice is final at once is observed, not documented."""
    story = tell(version)
    story.subscribe(CLASSIC, "A")
    story.used(10, T)
    reset(story)
    story.deliver()
    story.used(5, T + 600)
    story.to(T + 700)
    reset(story)
    created = [event for event in story.fresh() if event["type"] == "invoice.created"]
    draft: Any = created[-1]
    draft["data"]["object"]["status"] = "draft"
    (entry,) = story.post(draft).json["reported"]
    assert entry["quantity"] == "5"


def test_only_the_running_period_is_compared_where_several_are_not_invoiced(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "R")
    story.use(5, T - HOUR)
    story.to(T)
    summaries = [{"id": f"sis_{n}", "invoice": None, "total_usage": n} for n in (5, 10)]
    story.stripe.fault(
        path="/usage_record_summaries",
        status=200,
        body={"object": "list", "data": summaries, "has_more": False},
    )
    result = story.run("--dry-run", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["stripe"] == "5"
