"""Reports that overtake each other, clocks that are off, old pages: the last total is billed."""

import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import requests
from stripe import WebhookSignature

from tests.conftest import DAY, END, SECRET, START, Service
from tests.fakes.test_stripe_life import CLASSIC
from tests.stories.conftest import Off, Wire
from tests.stories.test_life import HOUR, MODES, Story, T, Tell

METER_EVENT = "POST /v1/billing/meter_events"
QUERY, LIST = "GET /query", "GET /v1/subscriptions"


class Way(NamedTuple):
    """A price of a Billing Meter with a reading of it, or one of usage records, which has none."""

    price: str
    readings: dict[str, str]

    @property
    def write(self) -> str:
        """Return the call that writes."""
        return METER_EVENT if self.price == "A" else "POST /usage_records"


# What Stripe leaves open of a `last` meter; by arrival, there are no ties.
METERS = {
    "first": Way("A", {"last_by": "timestamp", "tie": "first"}),
    "last": Way("A", {"last_by": "timestamp", "tie": "last"}),
    "arrival": Way("A", {"last_by": "arrival"}),
}
READINGS = pytest.mark.parametrize("way", METERS.values(), ids=METERS)
WAYS = pytest.mark.parametrize("way", [*METERS.values(), Way("R", {})], ids=[*METERS, "record"])
LAST_BY = pytest.mark.parametrize("last_by", ["timestamp", "arrival"])
BY = pytest.mark.parametrize("by", ["event", "run"])
BILLED = [("cycle", [("A", 15, 150)])]
# Wed Jun 07 2023 15:00:00 UTC: a window's boundary, as is the end of the month that begins there.
FULL_HOUR = START + 2_370
FULL_HOUR_END = FULL_HOUR + 30 * DAY


def begun(tell: Tell, way: Way = METERS["first"]) -> Story:
    """Begin a story of a subscription of which 10 units are reported."""
    story = tell()
    story.read(**way.readings)
    story.subscribe(CLASSIC, way.price)
    story.used(10, T - DAY)
    return story


def other_process(story: Story) -> Service:
    """Start the service once more."""
    return story.start()


def report(story: Story, by: str) -> None:
    """Report what runs, by a run or by an event that is delivered a second later."""
    if by == "run":
        assert story.run().exit_code == 0
    else:
        story.touch()
        story.deliver(seconds=1)


def stands(story: Story) -> int:
    """Return what stands in Stripe for the running period."""
    item = story.shown()["items"]["data"][0]
    if item["price"]["recurring"]["meter"] is None:
        return story.stripe.usage(item["id"])[0]
    return story.stands(item["current_period_start"], item["current_period_end"])


def touched(story: Story) -> str:
    """Return the body of a new event that changes nothing."""
    story.touch()
    return json.dumps(story.fresh()[-1])


def reset(story: Story) -> None:
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")


# Two reports at once


@WAYS
def test_of_two_deliveries_at_once_the_later_total_stands(tell: Tell, wire: Wire, way: Way) -> None:
    story = begun(tell, way)
    story.to(T)
    others: list[threading.Thread] = []

    def overlap() -> None:
        story.machine.now += 60
        story.use(5, T + 1)
        others.append(threading.Thread(target=story.service.post, args=[touched(story)]))
        others[0].start()
        others[0].join(0.1)

    wire.before(way.write, overlap)
    assert story.service.post(touched(story)).status_code == 200
    others[0].join()
    assert stands(story) == 15


@READINGS
def test_two_deliveries_of_one_second_end_in_the_later_total(
    tell: Tell, wire: Wire, way: Way
) -> None:
    story = begun(tell, way)
    story.to(T)
    others: list[threading.Thread] = []

    def overlap() -> None:
        story.use(5, T - 1)
        others.append(threading.Thread(target=story.service.post, args=[touched(story)]))
        others[0].start()
        others[0].join(0.1)

    wire.before(METER_EVENT, overlap)
    assert story.service.post(touched(story)).status_code == 200
    others[0].join()
    assert story.sent()[-1][1] == "15"
    story.to(END + 60)
    story.deliver()
    assert story.billed_in_the_end() == BILLED


@WAYS
def test_of_two_processes_the_later_total_stands(tell: Tell, wire: Wire, way: Way) -> None:
    story = begun(tell, way)
    other = other_process(story)
    story.to(T)

    def overlap() -> None:
        story.machine.now += 60
        story.use(5, T + 1)
        assert other.post(touched(story)).status_code == 200

    wire.after(QUERY, overlap)
    assert story.service.post(touched(story)).status_code in (200, 500)
    assert stands(story) == 15


@pytest.mark.parametrize("metrics", ["0", "1"])
@pytest.mark.parametrize("price", ["A", "R"])
def test_an_event_that_a_later_one_overtook_is_skipped(
    tell: Tell, metrics: str, price: str
) -> None:
    story = tell(METRICS=metrics)
    story.subscribe(CLASSIC, price)
    story.used(15, T)
    earlier = touched(story)
    story.to(T + 5)
    later = touched(story)
    story.to(T + 6)
    assert story.service.post(later).json["reported"]
    answer = story.service.post(earlier)
    assert answer.status_code == 200
    assert (answer.json["reported"], answer.json["skipped"]) == ([], story.items())
    assert stands(story) == 15


@READINGS
def test_a_closing_report_holds_back_no_running_one(tell: Tell, way: Way) -> None:
    story = begun(tell, way)
    story.to(END + 60)
    story.deliver("updated")
    story.to(END + DAY)
    story.use(5, END + HOUR)
    event = touched(story)
    (draft,) = [event for event in story.kept if event["type"] == "invoice.created"]
    story.to(END + DAY + 2)
    assert story.service.post(json.dumps(draft)).status_code == 200
    assert story.service.post(event).status_code == 200
    assert story.stands(END, END + 2 * DAY) == 5


@READINGS
def test_two_that_close_one_period_at_once_bill_the_later_total(
    tell: Tell, wire: Wire, way: Way
) -> None:
    story = begun(tell, way)
    other = other_process(story)
    story.to(END + 10)
    updated, draft = story.fresh()

    def overlap() -> None:
        story.machine.now += 60
        story.use(5, END - HOUR)
        assert other.post(json.dumps(draft)).status_code == 200

    wire.after(QUERY, overlap)
    assert story.service.post(json.dumps(updated)).status_code in (200, 500)
    assert story.billed_in_the_end() == BILLED


# Clocks that are off


@pytest.mark.parametrize(("by", "last_by"), [("event", "timestamp"), ("run", "arrival")])
@pytest.mark.parametrize("ahead", [5, 30, 300, -5, -30, -300])
def test_what_is_reported_before_a_reset_stands_on_its_invoice(
    tell: Tell, host_off: Off, ahead: int, by: str, last_by: str
) -> None:
    story = begun(tell, Way("A", {"last_by": last_by}))
    host_off(story, ahead)
    story.to(T)
    story.use(5, T - 60)
    report(story, by)
    story.to(T + 2)
    reset(story)
    story.use(3, T + 3)
    story.deliver()
    assert story.billed() == [("update", [("A", 15, 150)])]
    assert story.stands(T + 2, END) == 3


@BY
@pytest.mark.parametrize(("ahead", "last_by"), [(5, "timestamp"), (30, "arrival")])
def test_a_reset_soon_after_the_start_has_what_was_reported_before_it(
    tell: Tell, host_off: Off, ahead: int, by: str, last_by: str
) -> None:
    story = tell()
    story.read(last_by=last_by)
    host_off(story, ahead)
    story.subscribe(CLASSIC, "A")
    story.to(START + 20)
    story.use(15, START + 10)
    report(story, by)
    story.to(START + 22)
    reset(story)
    story.deliver()
    assert story.billed() == [("update", [("A", 15, 150)])]
    assert story.stands(START + 22, END) == 0


@READINGS
@pytest.mark.parametrize("ahead", [30, -30])
@pytest.mark.parametrize("last", [("event", 29), ("run", 2)], ids=str)
def test_a_report_just_before_the_end_does_not_stand_in_for_the_closing_one(
    tell: Tell, host_off: Off, ahead: int, last: tuple[str, int], way: Way
) -> None:
    by, before = last
    story = begun(tell, way)
    host_off(story, ahead)
    story.to(END - before)
    report(story, by)
    story.use(5, END - HOUR)
    story.to(END + 60)
    story.deliver()
    assert story.closed_with(END) == "15"
    assert story.billed_in_the_end() == BILLED


def test_a_run_by_a_host_ahead_counts_no_period_that_has_not_begun(
    tell: Tell, host_off: Off
) -> None:
    story = begun(tell)
    host_off(story, 300)
    story.to(END - 60)
    assert story.run().exit_code == 0
    assert all(second < END for second, _ in story.sent())
    story.use(5, END - HOUR)
    story.to(END + 60)
    assert story.run().exit_code == 0
    assert story.billed_in_the_end() == BILLED


@pytest.mark.parametrize("ahead", [300, -300])
def test_a_signature_of_stripes_time_holds_whatever_the_hosts_clock_says(
    tell: Tell, host_off: Off, ahead: int
) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A")
    host_off(story, ahead)
    story.to(T)
    for _ in ("Stripe's time is not known", "it is"):
        assert story.service.post(touched(story)).status_code == 200


@pytest.mark.parametrize("ahead", [300, 0])
def test_a_signature_that_is_old_by_stripes_time_is_refused(
    tell: Tell, host_off: Off, ahead: int
) -> None:
    story = begun(tell)
    host_off(story, ahead)
    report(story, "event")
    body, signed_at = touched(story), story.machine.now
    for age, status in ((298, 200), (302, 400)):
        story.machine.now = signed_at + age
        signature = WebhookSignature.generate_signature_header(body, SECRET, signed_at)
        assert story.service.post(body, signature).status_code == status


def test_a_host_whose_clock_is_off_is_told_so_once_an_hour(tell: Tell, host_off: Off) -> None:
    story = begun(tell)
    host_off(story, 31)
    for minute in range(0, 121, 10):
        story.to(T + 60 * minute)
        report(story, "event")
    said = story.warned("clock")
    assert len(said) == 3
    assert "31 seconds ahead" in said[0]


@pytest.mark.parametrize("ahead", [30, -30, 5])
def test_a_clock_that_is_not_far_off_is_no_news(tell: Tell, host_off: Off, ahead: int) -> None:
    story = begun(tell)
    host_off(story, ahead)
    story.to(T)
    report(story, "event")
    assert story.warned("clock") == []


@pytest.mark.parametrize(("ahead", "last_by"), [(20, "timestamp"), (-20, "arrival")])
def test_without_a_date_reports_go_by_the_hosts_clock(
    tell: Tell, host_off: Off, wire: Wire, ahead: int, last_by: str
) -> None:
    wire.changes.append(lambda answer: answer.headers.pop("Date", None))
    story = begun(tell, Way("A", {"last_by": last_by}))
    host_off(story, ahead)
    story.use(5, T)
    story.to(T + HOUR)
    report(story, "run")
    assert story.stands(START, END) == 15
    story.use(2, END - HOUR)
    story.to(END + 60)
    story.deliver()
    assert story.warned("clock") == []
    assert story.billed_in_the_end() == [("cycle", [("A", 17, 170)])]


# Pages that are old


def let_pass(story: Story, wire: Wire, call: str, seconds: int, act: Callable[[], Any]) -> None:
    """Let some seconds pass, and something happen, while a run waits for an answer."""

    def pass_by() -> None:
        story.to(story.machine.now + seconds)
        act()

    wire.after(call, pass_by)


@LAST_BY
@pytest.mark.parametrize("seconds", [4, 60, 600])
def test_a_page_read_before_the_end_and_worked_on_after_it_closes_nothing_wrong(
    tell: Tell, wire: Wire, last_by: str, seconds: int
) -> None:
    story = begun(tell, Way("A", {"last_by": last_by}))
    other = other_process(story)
    story.to(END - 2)

    def close() -> None:
        story.use(5, END - HOUR)
        for event in story.fresh():
            assert other.post(json.dumps(event)).status_code == 200
        story.use(3, END - 1)

    let_pass(story, wire, LIST, seconds, close)
    assert story.run().exit_code == 0
    assert story.closed_with(END) == "15"
    story.to(story.machine.now + 60)
    report(story, "event")
    assert story.stands(END, END + DAY) == 3
    assert story.billed_in_the_end() == BILLED


@LAST_BY
def test_a_run_alone_closes_what_ended_since_its_page_was_read(
    tell: Tell, wire: Wire, last_by: str
) -> None:
    story = begun(tell, Way("A", {"last_by": last_by}))
    story.to(END - 2)
    let_pass(story, wire, LIST, 60, lambda: story.use(5, END - HOUR))
    assert story.run().exit_code == 0
    assert story.billed_in_the_end() == BILLED


@READINGS
@pytest.mark.parametrize(("seconds", "processes"), [(3, 1), (30, 2), (90, 1)])
def test_a_run_on_an_old_page_takes_back_nothing_that_a_webhook_reported(
    tell: Tell, wire: Wire, way: Way, seconds: int, processes: int
) -> None:
    story = begun(tell, way)
    other = other_process(story) if processes == 2 else story.service
    story.to(T)

    def use_and_report() -> None:
        story.use(5, T)
        assert other.post(touched(story)).status_code == 200

    let_pass(story, wire, LIST, seconds, use_and_report)
    assert story.run().exit_code == 0
    assert story.stands(START, END) == 15


@pytest.mark.parametrize("read", ["page", "old page", "named"])
def test_what_was_read_is_known_since_before_it_was_asked_for(
    tell: Tell, wire: Wire, read: str
) -> None:
    """A reset while an answer is on its way: the old total must not stand in the new period."""
    story = tell(last_by="timestamp")
    story.subscribe(CLASSIC, "A")
    other = other_process(story)
    story.use(10, START + 1)
    # The service hears Stripe's time first, and nothing else.
    story.service.open("GET", "/readyz")
    story.to(START + 10)

    def reset_and_report() -> None:
        reset(story)
        story.use(3, story.machine.now)
        story.machine.now += 1
        for event in story.fresh():
            assert other.post(json.dumps(event)).status_code == 200
        story.machine.now += 1

    if read == "old page":
        wire.after(LIST, lambda: story.to(START + 60))
    path = LIST if read == "page" else f"{LIST}/{story.subscription}"
    let_pass(story, wire, path, 2, reset_and_report)
    options = ["--subscription", story.subscription] if read == "named" else []
    assert story.run(*options).exit_code == 0
    begins = story.shown()["items"]["data"][0]["current_period_start"]
    assert story.stands(begins, END) == 3


# What OpenMeter shows late


@MODES
@LAST_BY
def test_what_openmeter_shows_after_the_closing_is_repaired_by_a_run_in_the_draft_hour(
    tell: Tell, mode: str, last_by: str
) -> None:
    story = tell()
    story.read(last_by=last_by, tie="first")
    story.to(FULL_HOUR)
    story.subscribe(mode, "A")
    story.used(10, T)
    story.openmeter.fake("POST", "lag", {"seconds": 2})
    story.to(FULL_HOUR_END - 1)
    story.use(5, FULL_HOUR_END - 1)
    story.to(FULL_HOUR_END)
    story.deliver(seconds=0)
    assert story.closed_with(FULL_HOUR_END) == "10"
    story.to(FULL_HOUR_END + 60)
    assert story.run().exit_code == 0
    assert story.billed_in_the_end(FULL_HOUR_END) == BILLED


@MODES
@pytest.mark.parametrize(("last_by", "named"), [("timestamp", False), ("arrival", True)])
def test_what_openmeter_shows_after_a_cancellation_is_repaired_by_a_run_too(
    tell: Tell, mode: str, last_by: str, named: bool
) -> None:
    story = tell()
    story.read(last_by=last_by, tie="first")
    story.subscribe(mode, "A", cancel_at_period_end="true")
    story.used(10, T)
    story.openmeter.fake("POST", "lag", {"seconds": 2})
    story.to(END - 1)
    story.use(5, END - 1)
    story.to(END)
    story.deliver(seconds=0)
    assert story.closed_with(END) == "10"
    story.to(END + 60)
    options = ["--subscription", story.subscription] if named else []
    assert story.run(*options).exit_code == 0
    assert story.billed_in_the_end() == BILLED


# A write that waits

LOST = pytest.mark.parametrize("lost", ["before", "after"])


@WAYS
def test_a_write_that_stripe_was_too_busy_for_goes_out_with_the_newer_total(
    tell: Tell,
    wire: Wire,
    sleeping: Callable[[Story], None],
    way: Way,
) -> None:
    story = begun(tell, way)
    story.to(T)
    path = way.write.partition(" ")[2]
    for status in (409, 429):
        story.stripe.fault(method="POST", path=path, status=status, times=3)
    wire.before(way.write, lambda: story.use(5, T))
    sleeping(story)
    assert story.run().exit_code == 0
    assert story.machine.now >= T + 5
    assert stands(story) == 15


def time_out(story: Story) -> None:
    """Let a call go on for nine seconds, in which five units are used, and have no answer."""
    story.machine.now += 9
    story.use(5, T)
    raise requests.ReadTimeout("no answer")


@WAYS
@LOST
def test_a_write_without_an_answer_is_made_again_with_the_newer_total(
    tell: Tell, wire: Wire, way: Way, lost: str
) -> None:
    story = begun(tell, way)
    story.to(T)
    getattr(wire, lost)(way.write, lambda: time_out(story))
    report(story, "event")
    if way.price == "A":
        assert story.sent()[-1][1] == "15"
    assert stands(story) == 15


@READINGS
@LOST
def test_a_closing_without_an_answer_is_made_again_with_the_newer_total(
    tell: Tell, wire: Wire, lost: str, way: Way
) -> None:
    story = begun(tell, way)
    story.to(END + 10)
    getattr(wire, lost)(METER_EVENT, lambda: time_out(story))
    story.deliver("invoice")
    assert story.closed_with(END) == "15"
    assert story.billed_in_the_end() == BILLED
