"""Late usage is billed while a team's grace lasts: INVOICE_GRACE_HOURS."""

from typing import Any

import pytest

from tests.conftest import DAY, END
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE
from tests.stories.test_life import (
    CLOCKS,
    HOUR,
    READINGS,
    SHAPES,
    Story,
    T,
    Tell,
    changed_at,
    usage_lines,
)

GRACE = {"INVOICE_GRACE_HOURS": "30"}


def drafts(story: Story) -> list[Any]:
    return [invoice for invoice in story.invoices() if invoice["status"] == "draft"]


def set_times(story: Story) -> list[int]:
    """Return when the service let drafts become final."""
    return [
        int(seen["form"]["automatically_finalizes_at"])
        for seen in story.stripe.requests()
        if seen["method"] == "POST" and seen["path"].startswith("/v1/invoices/")
    ]


def renewed(story: Story, mode: str = FLEXIBLE, *prices: str, at: int = END + 60) -> None:
    """Use a hundred units in a period, and deliver its renewal."""
    story.subscribe(mode, *(prices or ("A",)))
    story.used(100, T)
    story.to(at)
    story.deliver()


@SHAPES
@CLOCKS
@READINGS
@pytest.mark.parametrize("late", [(29, 107), (31, 100)], ids=["in time", "too late"])
def test_usage_that_openmeter_sees_within_the_grace_is_billed(
    tell: Tell, version: str, clocked: bool, readings: dict[str, str], late: tuple[int, int]
) -> None:
    story = tell(version, clocked=clocked, **GRACE)
    story.read(**readings)
    renewed(story)
    assert set_times(story) == [END + 30 * HOUR]
    hours, billed = late
    story.to(END + hours * HOUR)
    story.use(7, END - 2 * HOUR)
    story.run()
    story.too_late = 107 - billed
    assert usage_lines(story) == [("A", billed, 10 * billed)]


@pytest.mark.parametrize("hours", ["", "0"])
def test_without_a_grace_a_draft_is_as_stripe_has_it(tell: Tell, hours: str) -> None:
    story = tell(INVOICE_GRACE_HOURS=hours)
    renewed(story)
    assert len(drafts(story)) == 1
    assert set_times(story) == []


def test_a_draft_becomes_final_when_the_grace_is_over(tell: Tell) -> None:
    story = tell(**GRACE)
    renewed(story)
    story.to(END + 30 * HOUR - 1)
    assert len(drafts(story)) == 1
    story.to(END + 30 * HOUR)
    assert drafts(story) == []


def test_an_event_that_comes_again_sets_nothing_again(tell: Tell) -> None:
    story = tell(**GRACE)
    renewed(story)
    (created,) = [e for e in story.stripe.events() if e["type"] == "invoice.created"]
    for seconds in (60, 20 * HOUR):
        story.to(END + seconds + 60)
        story.post(created)
    assert set_times(story) == [END + 30 * HOUR]


def test_stripe_holds_a_draft_until_its_periods_are_closed(tell: Tell) -> None:
    story = tell(**GRACE)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.to(END + 60)
    story.openmeter.fault(path="/api/v1/meters", status=500, times=2)
    (created,) = [e for e in story.fresh() if e["type"] == "invoice.created"]
    story.post(created, 500)
    assert set_times(story) == []
    story.to(END + 10 * HOUR)
    story.post(created)
    assert set_times(story) == [END + 30 * HOUR]


@pytest.mark.parametrize(("hours", "after"), [("1", 60), ("30", 29 * HOUR), ("72", 71 * HOUR)])
def test_a_grace_within_the_hour_that_a_draft_waits_anyway_is_not_set(
    tell: Tell, hours: str, after: int
) -> None:
    story = tell(INVOICE_GRACE_HOURS=hours)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.to(END + 60)
    (draft,) = drafts(story)
    story.call("POST", f"invoices/{draft['id']}", automatically_finalizes_at=END + 72 * HOUR)
    story.to(END + after)
    story.service.forget()
    story.deliver()
    assert set_times(story) == []


@pytest.mark.parametrize(("hours", "is_set"), [("23", True), ("24", False), ("72", False)])
def test_a_grace_as_long_as_the_period_is_not_set(tell: Tell, hours: str, is_set: bool) -> None:
    story = tell(INVOICE_GRACE_HOURS=hours)
    story.price("day", 10, interval="day", **{"metadata[om_meter_id]": "m1"})
    made = story.subscribe(FLEXIBLE, "day")
    end = made["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver()
    assert set_times(story) == [end + int(hours) * HOUR] * is_set


def test_nothing_waits_where_late_reports_do_not_count(tell: Tell) -> None:
    records = tell(**GRACE)
    renewed(records, CLASSIC, "R")
    assert set_times(records) == []


def test_a_draft_over_a_price_of_mid_period_does_not_wait(tell: Tell) -> None:
    story = tell(**GRACE)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    changed_at(story, T + DAY, "B")
    story.used(5, T + 2 * DAY)
    story.to(END + 60)
    story.deliver()
    assert set_times(story) == []


@pytest.mark.parametrize(
    "form",
    [{"auto_advance": "false"}, {"automatically_finalizes_at": END + 10 * DAY}],
    ids=["does not advance", "later"],
)
def test_what_somebody_set_for_a_draft_stays(tell: Tell, form: dict[str, Any]) -> None:
    story = tell(**GRACE)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.to(END + 30)
    (draft,) = drafts(story)
    story.call("POST", f"invoices/{draft['id']}", **form)
    story.service.forget()
    story.to(END + 60)
    story.deliver()
    assert set_times(story) == []


def test_a_key_that_may_not_write_invoices_is_told_which_right_it_lacks(tell: Tell) -> None:
    story = tell(**GRACE)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.to(END + 60)
    story.stripe.fault(method="POST", path="/v1/invoices/", status=403, times=1)
    (created,) = [e for e in story.fresh() if e["type"] == "invoice.created"]
    answer = story.post(created, 500)
    assert "invoice_write" in answer.json["failed"][0]["error"]
    assert answer.json["reported"][0]["quantity"] == "100"
    story.post(created)
    assert set_times(story)[-1] == END + 30 * HOUR
