"""Billing Meters that cannot take running totals, and times that Stripe does not take."""

from typing import Any

import pytest

from tests.conftest import DAY, START
from tests.fakes.test_stripe_life import CLASSIC
from tests.stories.test_life import HOUR, OM, Story, T, Tell

MINUTE = 60
# What such a meter is made with, and what is said of it.
UNUSABLE = {
    "sum": ({"default_aggregation[formula]": "sum"}, "formula 'sum'"),
    "count": ({"default_aggregation[formula]": "count"}, "formula 'count'"),
    "hour": ({"event_time_window": "hour"}, "event_time_window"),
    "day": ({"event_time_window": "day"}, "event_time_window"),
    "dimensions": ({"dimension_payload_keys[0]": "region"}, "dimensions"),
    "deactivated": ({}, "deactivated"),
}


def on_meter(tell: Tell, name: str, **form: str) -> Story:
    """Begin a story of a subscription on a meter of a form, and 10 units."""
    story = tell()
    last = {"default_aggregation[formula]": "last", "display_name": name, "event_name": name}
    made = story.call("POST", "billing/meters", **{**last, **form})
    story.meters[name] = made["id"]
    story.price(name, 10, name, **{"metadata[om_meter_id]": "m1"})
    story.subscribe(CLASSIC, name)
    story.use(10, T - HOUR)
    return story


def set_status(story: Story, name: str, status: str) -> None:
    story.call("POST", f"billing/meters/{story.meters[name]}/{status}")


def reported(story: Story, at: int) -> int:
    """Report at a second, and return what the delivery was answered."""
    story.to(at)
    story.touch()
    event = story.fresh()[-1]
    story.to(at + 1)
    return story.send(event).status_code


# Billing Meters


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_meter_that_would_not_bill_the_last_total_is_sent_nothing(tell: Tell, kind: str) -> None:
    form, said = UNUSABLE[kind]
    story = on_meter(tell, "odd", **form)
    if kind == "deactivated":
        set_status(story, "odd", "deactivate")
    assert reported(story, T) == 500
    by_webhook = story.caplog.text
    story.caplog.clear()
    assert story.run().exit_code == 1
    for text in (by_webhook, story.caplog.text):
        assert story.meters["odd"] in text
        assert said in text
    assert story.sent("odd") == []


def test_a_deactivated_meter_is_noticed_within_minutes_and_used_again_once_it_is_active(
    tell: Tell,
) -> None:
    story = on_meter(tell, "odd")
    assert reported(story, T) == 200
    set_status(story, "odd", "deactivate")
    assert reported(story, T + 5 * MINUTE + 5) == 500
    assert "is deactivated" in story.caplog.text
    before = len(story.sent("odd"))
    set_status(story, "odd", "reactivate")
    story.use(5, T)
    assert reported(story, T + 7 * MINUTE) == 200
    assert len(story.sent("odd")) == before + 1
    assert story.sent("odd")[-1][1] == "15"


def test_a_meter_is_not_read_for_each_report(tell: Tell) -> None:
    story = on_meter(tell, "odd")
    for second in (0, 60, 240):
        assert reported(story, T + second) == 200
    read = [seen for seen in story.stripe.requests() if "/billing/meters/" in seen["path"]]
    assert [seen["method"] for seen in read] == ["GET"]


# Times

SAID = pytest.mark.parametrize(
    "readings",
    [
        {},
        {"time_codes": "given"},
        {"refusal_words": "other"},
        {"time_codes": "given", "refusal_words": "other"},
    ],
    ids=lambda readings: "-".join(readings.values()) or "plain",
)


@SAID
def test_a_time_that_is_too_far_back_is_refused_for_good(
    tell: Tell, readings: dict[str, str]
) -> None:
    story = tell()
    story.read(**readings)
    story.subscribe(CLASSIC, "A")
    story.used(10, T - DAY)
    story.to(T)
    story.update(billing_cycle_anchor="now")
    event: Any = [event for event in story.fresh() if "updated" in event["type"]][-1]
    before = story.sent()
    story.to(T + 40 * DAY)
    answer = story.post(event)
    assert answer.json["failed"] == []
    assert any("has closed" in said for said in story.warned("closed"))
    assert all(second > T for second, _ in story.sent()[len(before) + 1 :])
    assert story.stands(START, T) == 10


@SAID
def test_a_time_in_the_future_is_taken_later(tell: Tell, readings: dict[str, str]) -> None:
    story = tell()
    story.read(**readings)
    began = T + 600
    noted = {f"items[0]{OM}": "m1", "items[0][metadata][om_counted_from]": str(began)}
    story.subscribe(CLASSIC, "bare", **noted)
    story.use(7, began + 1)
    story.to(T)
    story.touch()
    event = story.fresh()[-1]
    story.to(T + 1)
    story.post(event, 500)
    assert story.warned("closed") == []
    story.to(began + 60)
    story.post(event)
    assert story.sent()[-1][1] == "7"
