"""Subscriptions of which `flask report` asks OpenMeter together, and what comes in between."""

import json
from collections import Counter

import pytest
import requests

from billing.clock import report_second
from tests.conftest import DAY, END, START
from tests.fakes.test_stripe_life import CLASSIC
from tests.stories.conftest import Wire
from tests.stories.test_life import HOUR, Story, T, Tell
from tests.stories.test_order import (
    LAST_BY,
    METER_EVENT,
    METERS,
    WAYS,
    Way,
    begun,
    other_process,
    reset,
    stands,
    touched,
)

TOGETHER = "POST /query"


def joined(tell: Tell, way: Way = METERS["first"], others: int = 2, units: int = 10) -> Story:
    """Begin a story in which others subscribed at the same second, of 10 units each."""
    story = begun(tell, way)
    return with_others(story, way, others, units)


def with_others(story: Story, way: Way, others: int, units: int) -> Story:
    """Let others subscribe as of the second at which the story began."""
    mine = story.customer, story.subscription
    now, story.machine.now = story.machine.now, START
    for _ in range(others):
        story.customer = story.call("POST", "customers")["id"]
        story.subscribe(CLASSIC, way.price)
        story.use(units, START + 60)
    story.customer, story.subscription = mine
    story.to(now)
    story.kept = story.fresh()
    return story


def asked(story: Story) -> Counter[str]:
    """Return how often OpenMeter was asked for one (GET), and for several (POST)."""
    seen = story.openmeter.requests()
    return Counter(each["method"] for each in seen if each["path"].endswith("/query"))


def ran(story: Story, *options: str) -> dict[str, int]:
    """Run `flask report` on one subscription after the other; return what the last line says."""
    story.openmeter.fake("DELETE", "requests")
    result = story.run("--workers", "1", *options)
    said = dict(part.split(": ") for part in result.stdout.splitlines()[-1].split(", ")[:-1])
    return {name: int(count) for name, count in said.items()} | {"status": result.exit_code}


def values(story: Story) -> list[str]:
    """Return what was sent to the Billing Meter of late."""
    return [value for _, value in story.sent()]


@WAYS
def test_one_query_tells_the_totals_of_all_whose_time_is_the_same(tell: Tell, way: Way) -> None:
    story = joined(tell, way, others=3)
    story.use(5, T - 1)
    story.to(T)
    assert ran(story)["reported"] == 4
    assert asked(story) == {"POST": 1}
    assert stands(story) == 15


def test_a_dry_run_asks_together_too(tell: Tell) -> None:
    story = joined(tell)
    story.to(T)
    compared = story.run("--dry-run", "--json")
    assert compared.exit_code == 3
    lines = [json.loads(line) for line in compared.stdout.splitlines()]
    assert [line["openmeter"] for line in lines] == ["10"] * 3
    assert asked(story)["POST"] == 1


def test_who_is_missing_in_the_answer_has_no_usage(tell: Tell) -> None:
    story = with_others(begun(tell), METERS["first"], others=2, units=0)
    customer, story.customer = story.customer, story.call("POST", "customers")["id"]
    story.machine.now = START
    story.subscribe(CLASSIC, "A")
    idle, story.customer = story.customer, customer
    story.to(T)
    done = ran(story)
    assert (done["status"], done["reported"], done["warned"]) == (0, 4, 1)
    assert asked(story)["POST"] == 1
    assert [said for said in story.warned("no rows") if repr(idle) in said]
    assert sorted(values(story)[-4:]) == ["0", "0", "0", "10"]


def test_two_items_that_count_the_same_subject_get_the_same_total(tell: Tell) -> None:
    story = begun(tell)
    now, story.machine.now = story.machine.now, START
    story.subscribe(CLASSIC, "twin")
    story.to(now)
    story.to(T)
    assert ran(story)["reported"] == 2
    assert asked(story) == {"POST": 1}
    assert story.sent("twin")[-1] == story.sent("m1")[-1]
    assert values(story)[-1] == "10"


def test_a_subject_without_an_exact_total_fails_alone(tell: Tell) -> None:
    story = joined(tell)
    story.use(2.0**54, T - 60)
    story.to(T)
    done = ran(story)
    assert (done["status"], done["reported"], done["failed"]) == (1, 2, 1)
    assert asked(story) == {"POST": 1, "GET": 3}
    assert values(story)[-2:] == ["10", "10"]


@pytest.mark.parametrize(("seconds", "queries", "last"), [(2, 1, (T, "10")), (4, 2, (T + 4, "15"))])
def test_a_total_that_waited_for_its_write_is_asked_for_again(
    tell: Tell, wire: Wire, seconds: int, queries: int, last: tuple[int, str]
) -> None:
    story = joined(tell)
    story.to(T)

    def wait() -> None:
        story.machine.now += seconds
        story.use(5, T)

    wire.before(METER_EVENT, wait)
    assert ran(story)["status"] == 0
    assert asked(story) == {"POST": queries}
    assert story.sent()[-3] == (report_second(START, END, T), "10")
    known_at, value = last
    assert story.sent()[-1] == (report_second(START, END, known_at), value)


@WAYS
def test_a_total_is_asked_for_again_where_stripe_did_not_answer(
    tell: Tell, wire: Wire, way: Way
) -> None:
    story = joined(tell, way)
    story.to(T)
    names = [entry["customer"] for entry in story.call("GET", "subscriptions")["data"]]

    def time_out() -> None:
        story.machine.now += 9
        story.use(5, T, subject=names[0])
        raise requests.ReadTimeout("no answer")

    wire.before(way.write, time_out)
    assert ran(story)["status"] == 0
    assert asked(story) == {"POST": 2}
    if way.price == "A":
        assert values(story)[-3:] == ["15", "10", "10"]


@WAYS
def test_a_total_takes_the_place_of_none_that_the_process_asked_for_later(
    tell: Tell, wire: Wire, way: Way
) -> None:
    story = joined(tell, way)
    story.to(T)
    event = touched(story)

    def report_meanwhile() -> None:
        story.machine.now += 1
        story.use(5, T)
        assert story.service.post(event).json["reported"]

    wire.before(way.write, report_meanwhile)
    assert ran(story)["reported"] == 3
    assert asked(story) == {"POST": 2, "GET": 1}
    assert stands(story) == 15


# What comes between reading and asking


def let_be_reset(story: Story, wire: Wire, seconds: int) -> None:
    """Let a subscription be reset, and that be reported, before a run asks OpenMeter."""
    other = other_process(story)

    def reset_and_report() -> None:
        story.to(story.machine.now + seconds)
        reset(story)
        story.use(3, story.machine.now)
        story.machine.now += 1
        for event in story.fresh():
            assert other.post(json.dumps(event)).status_code == 200
        story.machine.now += 1

    wire.before(TOGETHER, reset_and_report)


@WAYS
@pytest.mark.parametrize("begins", [START + 100, T], ids=["young", "old"])
@pytest.mark.parametrize("seconds", [3, 30])
def test_a_reset_between_reading_and_asking_does_no_harm(
    tell: Tell, wire: Wire, way: Way, begins: int, seconds: int
) -> None:
    story = tell()
    story.read(**way.readings)
    story.subscribe(CLASSIC, way.price)
    with_others(story, way, others=2, units=10)
    story.kept = []
    story.use(10, START + 1)
    story.to(begins)
    assert story.service.post(touched(story)).status_code == 200
    story.to(begins + 2)
    let_be_reset(story, wire, seconds)
    done = ran(story)
    assert asked(story)["POST"] >= 1
    assert (done["status"], done["failed"]) == (0, 0)
    assert stands(story) == 3
    assert story.billed() == [("update", [(way.price, 10, 100)])]


@LAST_BY
def test_a_period_that_ends_while_others_are_asked_for_is_closed(
    tell: Tell, wire: Wire, last_by: str
) -> None:
    story = joined(tell, Way("A", {"last_by": last_by}))
    story.to(END - 3)

    def end() -> None:
        story.use(5, END - HOUR)
        story.to(END + 60)
        story.use(2, END + 30)

    wire.before(METER_EVENT, end)
    done = ran(story)
    # The first one is under way; of each other the closed period is reported, and the new one.
    assert (done["status"], done["reported"]) == (0, 5)
    assert story.closed_with(END) == "15"
    assert story.stands(END, END + DAY) == 2
    assert ("cycle", [("A", 15, 150)]) in story.billed_in_the_end()


# Only what ends soon


def two_ends(tell: Tell, price: str) -> Story:
    """Tell of a subscription whose period ends a day before that of another customer's."""
    story = tell()
    story.subscribe(CLASSIC, price)
    story.use(10, START + 60)
    mine = story.customer, story.subscription
    story.customer = story.call("POST", "customers")["id"]
    story.to(START + DAY)
    story.subscribe(CLASSIC, price)
    story.use(7, START + DAY + 60)
    story.customer, story.subscription = mine
    return story


ENDING = [
    (600, "10m", 1),
    (601, "10m", 0),
    (3_600, "1h", 1),
    (30, "1d", 1),
    (-1, "10m", 0),
    (30, "2d", 2),
]


@pytest.mark.parametrize(("before", "within", "reported"), ENDING)
@pytest.mark.parametrize("price", ["A", "R"])
def test_a_run_can_be_about_what_ends_soon(
    tell: Tell, price: str, before: int, within: str, reported: int
) -> None:
    story = two_ends(tell, price)
    story.to(END - before)
    story.stripe.fake("DELETE", "requests")
    done = ran(story, "--ending-within", within)
    assert (done["status"], done["subscriptions"], done["reported"]) == (0, reported, reported)
    assert sum(asked(story).values()) == reported
    called = [f"{seen['method']} {seen['path']}" for seen in story.stripe.requests()]
    reads = ["GET /v1/subscriptions"]
    if price == "A" and reported:
        reads.append(f"GET /v1/billing/meters/{story.meters['m1']}")
    assert sorted(path for path in called if path.startswith("GET")) == sorted(reads)
    assert len(called) == len(reads) + reported
    if reported:
        assert stands(story) == 10


@pytest.mark.parametrize("options", [[], ["--ending-within", "10m"]], ids=["all", "soon"])
def test_what_ends_later_keeps_its_billing_meter_for_itself(tell: Tell, options: list[str]) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A")
    story.to(START + DAY)
    # Of the same customer and Billing Meter, but another meter of OpenMeter's.
    story.subscribe(CLASSIC, "bare", **{"items[0][metadata][om_meter_id]": "m2"})
    story.use(7, START + 2 * DAY, meter="m2")
    story.to(END - 60)
    done = ran(story, *options)
    assert (done["status"], done["failed"]) == (1, 1)
    assert done["reported"] == (0 if options else 1)


def test_what_a_page_does_not_show_may_end_soon(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A", *["flat"] * 10)
    story.use(10, START + 60)
    story.to(T)
    assert ran(story, "--ending-within", "10m")["reported"] == 1


@pytest.mark.parametrize("given", ["", "10", "0m", "10s", "-1m", "2026-01-01"])
def test_a_time_that_is_none_is_refused(tell: Tell, given: str) -> None:
    result = tell().run("--ending-within", given)
    assert (result.exit_code, "is no time such as 10m" in result.stderr) == (2, True)
