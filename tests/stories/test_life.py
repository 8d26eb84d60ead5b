"""A subscription's whole life through the service: each turn that its billing can take.

The machine's clock stands where a story puts it, for the service and the stand-ins alike; a story
on a test clock leaves it alone.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from click.testing import Result

from fakes import openmeter_api
from tests.conftest import ACACIA, DAY, END, ENDIVE, START, Answer, OpenMeter, Service, serve
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE, Life, Lines

HOUR = 3_600
# Sat Jun 17 2023 14:41:04 UTC, ten days into the period.
T = START + 10 * DAY + 1_234
# Thu Jun 15 2023 12:34:56 UTC.
TRIAL_END = 1_686_832_496
FINAL = 74 * HOUR
SHAPES = pytest.mark.parametrize("version", [ACACIA, ENDIVE])
MODES = pytest.mark.parametrize("mode", [CLASSIC, FLEXIBLE])
CLOCKS = pytest.mark.parametrize("clocked", [False, True], ids=["machine", "clock"])
ORDERS = pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
# What Stripe leaves open.
READINGS = pytest.mark.parametrize(
    "readings",
    [
        {},
        {"changed_start": "moves", "changed_recount": "recounted"},
        {"last_by": "arrival", "changed_start": "moves"},
        {"tie": "last", "changed_recount": "recounted"},
        {"boundary": "earlier"},
    ],
    ids=lambda readings: "-".join(map(str, readings.values())) or "first",
)
# Ways to report, with a billing mode that has them, and a price of each.
WAYS = pytest.mark.parametrize(
    "way", [(CLASSIC, "A"), (FLEXIBLE, "A"), (CLASSIC, "R")], ids="-".join
)
# A name, the amount of a unit, the Billing Meter (or what else) and OpenMeter's meter.
PRICES = (
    ("A", 10, "m1", "m1"),
    ("B", 30, "m1", "m1"),
    ("free", 0, "m1", "m1"),
    ("other", 7, "m2", "m2"),
    ("twin", 10, "twin", "m1"),
    ("bare", 10, "m1", ""),
    ("R", 10, "records", "m1"),
    ("S", 20, "records", "m1"),
    ("bare R", 10, "records", ""),
    ("flat", 3_000, "flat", ""),
    ("team", 6_000, "flat", ""),
)
OM = "[metadata][om_meter_id]"


@dataclass
class Machine:
    """The clock of the machine."""

    now: int = START

    def time(self) -> float:
        return float(self.now)


@dataclass(kw_only=True)
class Story(Life):
    """A customer in Stripe, what OpenMeter counts of them, and the service between the two."""

    service: Service
    machine: Machine
    caplog: pytest.LogCaptureFixture
    delivered: int = 0

    @property
    def openmeter(self) -> OpenMeter:
        return self.service.openmeter

    def to(self, at: int) -> None:
        """Let time go on to a second, with all that comes due."""
        if self.clock:
            super().to(at)
        else:
            self.machine.now = at
            self.stripe.fake("POST", "advance", {"seconds": 0})

    def use(self, units: float, at: int, meter: str = "m1", subject: str = "") -> None:
        moment = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kind = "execution" if meter == "m1" else meter
        self.openmeter.use(subject or self.customer, units, time=moment, kind=kind)

    def touch(self) -> None:
        """Change what does not matter, which makes an event."""
        self.update(**{"metadata[touched]": str(len(self.stripe.events()))})

    def used(self, units: float, at: int, **usage: str) -> None:
        """Let units be used a minute before a second, and an event report them at it."""
        self.to(at)
        self.use(units, at - 60, **usage)
        self.touch()
        self.deliver()

    def fresh(self) -> list[Any]:
        """Return the events since the last time that they were asked for."""
        found = self.stripe.events()[self.delivered :]
        self.delivered += len(found)
        return found

    def deliver(self, kind: str = "", order: int = 1, seconds: int = 2) -> list[Answer]:
        """Deliver what is new some seconds later, and what that makes new; all of it is taken."""
        answers: list[Answer] = []
        for fresh in islice(iter(self.fresh, []), 6):
            if not self.clock:
                self.machine.now += seconds
            answers += [self.post(event) for event in fresh[::order] if kind in event["type"]]
        assert self.fresh() == [], "each delivery makes another event"
        return answers

    def post(self, event: Any, status: int = 200) -> Answer:
        answer = self.service.post(json.dumps(event))
        assert answer.status_code == status, answer.text
        return answer

    def run(self, *options: str) -> Result:
        """Run `flask report`."""
        runner = self.service.client.application.test_cli_runner()
        return runner.invoke(args=["report", "--rate", "0", *options])

    def sent(self, meter: str = "m1") -> list[tuple[int, str]]:
        """Return timestamp and value of what a Billing Meter was sent by the service."""
        return [
            (int(seen["form"]["timestamp"]), seen["form"]["payload[value]"])
            for seen in self.stripe.requests()
            if seen["path"] == "/v1/billing/meter_events" and seen["form"]["event_name"] == meter
        ]

    def stands(self, start: int, end: int, meter: str = "m1") -> int:
        """Return what stands in a Billing Meter for a period."""
        meters = self.stripe.account.meters
        return int(meters.usage(self.meters[meter], self.customer, start, end))

    def warned(self, *kinds: str) -> list[str]:
        """Return what was warned of, or what of some kinds."""
        return [
            record.getMessage()
            for record in self.caplog.records
            if hasattr(record, "warning") and (not kinds or record.warning in kinds)
        ]

    def billed_in_the_end(self, end: int = END) -> list[tuple[str, Lines]]:
        """Return the invoices of a period that ends then, as they are when all are final."""
        self.to(end + FINAL)
        assert all(invoice["status"] != "draft" for invoice in self.invoices())
        return self.billed()


Tell = Callable[..., Story]


@pytest.fixture
def tell(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Tell:
    """Begin a story at START, with an endpoint of a version, on the machine's clock or another."""

    def told(version: str = ENDIVE, *, clocked: bool = False, **settings: object) -> Story:
        caplog.set_level(logging.INFO)
        machine, service = Machine(), start(**settings)
        form = {}
        if clocked:
            clock = service.stripe.call("POST", "test_helpers/test_clocks", frozen_time=START)
            form["test_clock"] = clock["id"]
        else:
            monkeypatch.setattr(time, "time", machine.time)
        customer = service.stripe.call("POST", "customers", **form)["id"]
        story = Story(
            service.stripe,
            form.get("test_clock", ""),
            customer,
            service=service,
            machine=machine,
            caplog=caplog,
        )
        for name, amount, kind, meter in PRICES:
            story.price(name, amount, kind, **({"metadata[om_meter_id]": meter} if meter else {}))
        for slug in ("m2", "m_wrong"):
            service.openmeter.meter(slug)
        service.stripe.collect_events(version)
        return story

    return told


@pytest.fixture
def empty_openmeter() -> Iterator[OpenMeter]:
    """Start an OpenMeter that nobody has ever sent an event."""
    server = serve(openmeter_api.create_app())
    yield OpenMeter(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def changed_at(story: Story, at: int, name: str, **form: Any) -> list[Answer]:
    """Change the price of the first item at a second, and deliver the event."""
    story.to(at)
    story.change(name, **form)
    return story.deliver()


# 1. A price that changes in mid-period


@SHAPES
@CLOCKS
@READINGS
@ORDERS
def test_each_price_of_an_item_is_billed_the_usage_of_its_own_time(
    tell: Tell, version: str, clocked: bool, readings: dict[str, str], order: int
) -> None:
    story = tell(version, clocked=clocked)
    story.read(**readings)
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T - DAY)
    changed_at(story, T, "B")
    story.used(500, T + DAY)
    assert story.stands(T, END) == 500
    story.to(END + 60)
    story.deliver(order=order)
    assert story.stands(T, END) == 500
    former = ("A", 1_000, 10_000)
    assert story.billed_in_the_end() == [("cycle", [("B", 500, 15_000), former])]


@SHAPES
@MODES
@READINGS
def test_what_a_price_still_lacks_at_its_change_is_sent_on_its_way_and_warned_of(
    tell: Tell, version: str, mode: str, readings: dict[str, str]
) -> None:
    story = tell(version)
    story.read(**readings)
    story.subscribe(mode, "A")
    story.used(1_000, T - DAY)
    story.use(60, T - 30)
    changed_at(story, T, "B")
    assert (T - 1, "1060") in story.sent()
    (said,) = story.warned("changed")
    assert "1060 units" in said
    assert ("invoice item" if mode == FLEXIBLE else "on no invoice") in said
    story.used(5, T + HOUR)
    assert story.sent()[-1][1] == "5"
    recounted = readings.get("changed_recount") == "recounted"
    former = [("A", 1_060 if recounted else 1_000, 10_600 if recounted else 10_000)]
    lines = [("B", 5, 150), *(former if mode == FLEXIBLE else [])]
    assert story.billed_in_the_end() == [("cycle", lines)]


@MODES
@pytest.mark.parametrize("behavior", ["none", "always_invoice"])
def test_however_stripe_prorates_a_change_its_price_counts_from_there(
    tell: Tell, mode: str, behavior: str
) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(1_000, T - DAY)
    changed_at(story, T, "B", proration_behavior=behavior)
    story.used(500, T + DAY)
    at_once = mode == FLEXIBLE and behavior == "always_invoice"
    former = [("update", [("A", 1_000, 10_000)])] if at_once else []
    assert story.billed_in_the_end() == [*former, ("cycle", [("B", 500, 15_000)])]
    (said,) = story.warned("changed")
    assert "1000 units" in said


@SHAPES
@MODES
@pytest.mark.parametrize("kind", ["", "updated", "invoice"])
def test_a_price_changed_and_changed_back_counts_each_stay_alone(
    tell: Tell, version: str, mode: str, kind: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(100, T - DAY)
    changed_at(story, T, "B")
    story.used(20, T + DAY)
    changed_at(story, T + 2 * DAY, "A")
    story.used(3, T + 3 * DAY)
    assert [value for _, value in story.sent()][-1] == "3"
    story.to(END + 60)
    story.deliver(kind)
    former = [("A", 100, 1_000), ("B", 20, 600)] if mode == FLEXIBLE else []
    assert story.billed_in_the_end() == [("cycle", [("A", 3, 30), *former])]


@SHAPES
@MODES
def test_another_meter_counts_only_from_the_change(tell: Tell, version: str, mode: str) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(9, T - DAY)
    story.use(50, T - DAY, "m2")
    story.use(1, T - 10)
    changed_at(story, T, "other")
    assert (T - 1, "10") in story.sent()
    story.used(3, T + DAY, meter="m2")
    assert story.sent("m2")[-1][1] == "3"
    former = [("A", 9, 90)] if mode == FLEXIBLE else []
    assert story.billed_in_the_end() == [("cycle", [("other", 3, 21), *former])]


@SHAPES
@pytest.mark.parametrize(("first", "then"), [("R", "A"), ("A", "R")])
def test_between_a_usage_record_and_a_meter_nothing_goes_over(
    tell: Tell, version: str, first: str, then: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, first)
    story.used(40, T - DAY)
    changed_at(story, T, then)
    assert any("40 units" in said for said in story.warned("changed"))
    story.used(5, T + DAY)
    assert story.billed_in_the_end() == [("cycle", [(then, 5, 50)])]


@SHAPES
def test_usage_records_go_over_to_a_new_price_and_the_period_counts_on(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "R")
    story.used(1_000, T - DAY)
    changed_at(story, T, "S")
    story.used(500, T + DAY)
    assert story.stripe.usage(story.items()[0]) == [1_500]
    assert story.warned() == []
    story.to(END - 30)
    story.deliver()
    assert story.billed_in_the_end() == [("cycle", [("S", 1_500, 30_000)])]


@SHAPES
@MODES
def test_usage_at_a_price_of_zero_is_not_billed_by_the_one_that_follows(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "free")
    story.used(1_000, T - DAY)
    changed_at(story, T, "A")
    story.used(5, T + DAY)
    shown = story.shown()["items"]["data"][0]
    assert story.billed_in_the_end(shown["current_period_end"])[-1][1][0] == ("A", 5, 50)


@SHAPES
@MODES
@READINGS
def test_a_change_that_is_told_a_minute_late_counts_from_its_own_second(
    tell: Tell, version: str, mode: str, readings: dict[str, str]
) -> None:
    story = tell(version)
    story.read(**readings)
    story.subscribe(mode, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.use(7, T + 30)
    story.deliver(seconds=60)
    assert story.stands(T, END) == 7
    lines = [("B", 7, 210), *([("A", 1_000, 10_000)] if mode == FLEXIBLE else [])]
    assert story.billed_in_the_end() == [("cycle", lines)]


@SHAPES
@pytest.mark.parametrize("readings", [{}, {"last_by": "arrival"}, {"tie": "last"}], ids=str)
def test_a_run_between_a_change_and_its_event_does_no_lasting_harm(
    tell: Tell, version: str, readings: dict[str, str]
) -> None:
    story = tell(version)
    story.read(**readings)
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.to(T + 30)
    assert story.run().exit_code == 0
    story.deliver(seconds=30)
    story.used(500, T + DAY)
    assert story.stands(T, END) == 500
    assert story.billed_in_the_end() == [("cycle", [("B", 500, 15_000), ("A", 1_000, 10_000)])]


@SHAPES
def test_a_change_told_again_after_another_one_moves_nothing_back(tell: Tell, version: str) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.change("B")
    first = story.stripe.events()[-1]
    story.deliver()
    story.used(20, T + DAY)
    changed_at(story, T + 2 * DAY, "A")
    story.used(3, T + 3 * DAY)
    for _ in range(2):
        story.post(first)
        story.deliver()
    story.touch()
    story.deliver()
    assert story.sent()[-1][1] == "3"
    assert story.billed_in_the_end() == [
        ("cycle", [("A", 3, 30), ("A", 100, 1_000), ("B", 20, 600)])
    ]


def test_two_changes_told_in_the_wrong_order_count_from_the_later_one(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.change("B")
    story.to(T + 60)
    story.use(20, T + 30)
    story.change("A")
    story.to(T + 120)
    story.use(3, T + 90)
    story.deliver(order=-1)
    assert story.stands(T + 60, END) == 3
    assert story.billed_in_the_end()[0][1][0] == ("A", 3, 30)


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_start_that_cannot_be_noted_fails_the_delivery_and_names_the_right(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    (event,) = story.fresh()
    story.stripe.fault(
        method="POST", path="/v1/subscription_items/", status=403, times=1,
        body={"error": {"type": "invalid_request_error", "message": "no permission"}},
    )  # fmt: skip
    answer = story.post(event, 500)
    (failed,) = answer.json["failed"]
    assert failed["item"] == story.items()[0]
    assert "om_counted_from" in failed["error"]
    assert "right" in failed["error"]
    assert story.stands(T, END) == 0
    story.post(event)
    story.deliver()
    story.used(500, T + DAY)
    assert story.stands(T, END) == 500


@MODES
@pytest.mark.parametrize(
    ("noted", "counted"),
    [(T, "4"), (START - 5, "1004"), (END + 5, "1004")],
    ids=["in the period", "before", "after"],
)
def test_a_team_can_say_itself_since_when_an_item_counts(
    tell: Tell, mode: str, noted: int, counted: str
) -> None:
    story = tell()
    story.subscribe(mode, "A", **{"items[0][metadata][om_counted_from]": str(noted)})
    story.to(T + 60)
    story.use(1_000, T - 1)
    story.use(4, T)
    story.touch()
    story.deliver()
    assert story.sent()[-1][1] == counted


# 2. A swap: an item removed, and a fresh one in its place


@SHAPES
@MODES
@CLOCKS
@READINGS
def test_a_swap_closes_the_old_item_and_begins_the_new_one_at_zero(
    tell: Tell, version: str, mode: str, clocked: bool, readings: dict[str, str]
) -> None:
    story = tell(version, clocked=clocked)
    story.read(**readings)
    story.subscribe(mode, "A")
    story.used(1_060, T - DAY)
    (old,) = story.items()
    story.to(T)
    story.update(
        **{"items[0][id]": old, "items[0][deleted]": "true", "items[1][price]": story.prices["B"]}
    )
    story.deliver()
    assert (T - 1, "1060") in story.sent()
    assert story.stands(START, T) == 1_060
    assert story.stands(T, END) == 0
    (said,) = story.warned("changed")
    assert old in said
    assert "1060 units" in said
    story.used(7, T + DAY)
    former = [("A", 1_060, 10_600)] if mode == FLEXIBLE else []
    story.to(END + 60)
    story.deliver()
    assert story.billed_in_the_end() == [("cycle", [("B", 7, 210), *former])]


@SHAPES
@MODES
def test_a_swap_in_two_calls_is_the_same(tell: Tell, version: str, mode: str) -> None:
    story = tell(version)
    story.subscribe(mode, "flat", "A")
    story.used(1_060, T - DAY)
    story.to(T)
    story.remove(1)
    story.deliver()
    story.to(T + 10)
    story.add("A")
    story.deliver()
    assert (T - 1, "1060") in story.sent()
    assert story.stands(T, END) == 0
    story.used(7, T + DAY)
    assert story.sent()[-1][1] == "7"


# 3. An item that is added in mid-period


@SHAPES
@MODES
@CLOCKS
@READINGS
def test_an_added_item_counts_from_its_creation(
    tell: Tell, version: str, mode: str, clocked: bool, readings: dict[str, str]
) -> None:
    story = tell(version, clocked=clocked)
    story.read(**readings)
    story.subscribe(mode, "flat")
    story.use(1_060, T - 30)
    story.to(T)
    story.add("A")
    story.deliver()
    assert {value for _, value in story.sent()} == {"0"}
    story.used(4, T + DAY)
    story.to(END - 60)
    story.touch()
    story.deliver()
    story.to(END + 60)
    story.deliver()
    lines = story.billed_in_the_end()[-1][1]
    assert [line for line in lines if line[0] == "A"] == [("A", 4, 40)]


@SHAPES
def test_an_added_item_of_usage_records_counts_from_its_creation(tell: Tell, version: str) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "flat")
    story.use(1_060, T - 30)
    story.to(T)
    story.add("R")
    story.deliver()
    assert story.stripe.usage(story.items()[1])[0] == 0
    story.used(4, T + DAY)
    assert story.stripe.usage(story.items()[1])[0] == 4


def test_an_item_of_a_backdated_subscription_counts_from_its_period(tell: Tell) -> None:
    story = tell()
    story.use(6, START + HOUR)
    story.to(T)
    story.subscribe(CLASSIC, "A", backdate_start_date=START)
    story.to(T + 60)
    story.touch()
    story.deliver()
    assert story.sent()[-1][1] == "6"


# 4. An item that is removed in mid-period


@SHAPES
@MODES
@CLOCKS
def test_a_removed_items_total_is_sent_a_last_time_and_warned_of(
    tell: Tell, version: str, mode: str, clocked: bool
) -> None:
    story = tell(version, clocked=clocked)
    story.subscribe(mode, "flat", "A")
    story.used(1_000, T - DAY)
    story.use(40, T - 60)
    removed = story.items()[1]
    story.to(T)
    story.remove(1)
    story.deliver()
    assert story.sent()[-1] == (T - 1, "1040")
    (said,) = story.warned("changed")
    assert removed in said
    assert "1040 units" in said


@SHAPES
def test_a_removed_item_of_usage_records_is_warned_of_with_its_units(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "flat", "R")
    story.used(1_000, T - DAY)
    story.use(40, T - 60)
    story.to(T)
    story.remove(1)
    story.deliver()
    (said,) = story.warned("changed")
    assert "1040 units" in said


@SHAPES
def test_an_item_whose_metadata_names_the_meter_is_closed_on_it_when_it_goes(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    form = {f"items[1]{OM}": "m1"}
    story.subscribe(FLEXIBLE, "flat", "bare", **form)
    story.use(40, T - 60)
    story.to(T)
    story.remove(1)
    story.deliver()
    assert story.sent() == [(T - 1, "40")]


# 5. Trials


@SHAPES
@WAYS
@CLOCKS
@pytest.mark.parametrize("trial_line", ["absent", "zero"])
def test_usage_in_a_trial_is_free_to_its_last_second(
    tell: Tell, version: str, way: tuple[str, str], clocked: bool, trial_line: str
) -> None:
    mode, price = way
    story = tell(version, clocked=clocked)
    story.read(trial_line=trial_line)
    anchor = START + 25 * DAY
    story.subscribe(mode, price, trial_end=TRIAL_END, billing_cycle_anchor=anchor)
    story.used(700, TRIAL_END - 60)
    story.to(TRIAL_END + 60)
    story.use(5, TRIAL_END + 30)
    story.deliver()
    assert story.warned() == []
    story.used(0, TRIAL_END + HOUR)
    if price == "R":
        assert story.stripe.usage(story.items()[0])[0] == 5
    else:
        assert story.stands(TRIAL_END, anchor) == 5
    story.to(anchor + 60)
    story.use(1, anchor + 30)
    story.deliver()
    assert story.warned() == []
    assert story.billed_in_the_end(anchor)[-1] == ("cycle", [(price, 5, 50)])


@SHAPES
@WAYS
@pytest.mark.parametrize("trial_line", ["absent", "zero"])
def test_a_trial_that_is_ended_loses_nothing_and_warns_of_nothing(
    tell: Tell, version: str, way: tuple[str, str], trial_line: str
) -> None:
    mode, price = way
    story = tell(version)
    story.read(trial_line=trial_line)
    story.subscribe(mode, price, trial_period_days=30)
    story.used(12, T - DAY)
    story.to(T)
    story.update(trial_end="now")
    story.use(5, T + 1)
    story.deliver()
    assert story.warned() == []
    story.used(0, T + DAY)
    end = story.shown()["items"]["data"][0]["current_period_end"]
    assert story.billed_in_the_end(end)[-1] == ("cycle", [(price, 5, 50)])


@SHAPES
@MODES
def test_a_trial_that_is_added_bills_what_was_used_before_it(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.update(trial_end=str(T + 5 * DAY + 100))
    story.deliver()
    story.used(40, T + DAY)
    story.to(T + 5 * DAY + 160)
    story.use(3, T + 5 * DAY + 130)
    story.deliver()
    story.used(0, T + 6 * DAY)
    assert story.sent()[-1][1] == "3"
    billed = story.billed_in_the_end(story.shown()["items"]["data"][0]["current_period_end"])
    assert [line for _, lines in billed for line in lines if line[1]] in (
        [("A", 100, 1_000), ("A", 3, 30)],
        [("A", 3, 30), ("A", 100, 1_000)],
    )


def test_an_items_own_trial_is_free_to_its_last_second(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    trial = {"current_trial": {"end_date": TRIAL_END}}
    story.stripe.fake("POST", f"subscription_items/{story.items()[0]}", trial)
    story.deliver()
    story.used(70, TRIAL_END - 60)
    story.to(TRIAL_END + 60)
    story.use(5, TRIAL_END + 30)
    story.deliver()
    story.used(0, TRIAL_END + HOUR)
    assert story.stands(TRIAL_END, END) == 5
    assert story.warned() == []
