"""A subscription's whole life through the service: each turn that its billing can take.

The machine's clock stands where a story puts it, for the service and the stand-ins alike; a story
on a test clock leaves it alone.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
    start: Callable[..., Service]
    machine: Machine
    caplog: pytest.LogCaptureFixture
    delivered: int = 0
    kept: list[Any] = field(default_factory=list)
    too_late: int = 0

    @property
    def openmeter(self) -> OpenMeter:
        return self.service.openmeter

    @property
    def other(self) -> str:
        """Return a subject that is no customer."""
        return f"other than {self.customer}"

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
        """Deliver what is new some seconds later, and what that makes new; return the answers.

        Events of other kinds than the one that is asked for come with a later delivery. One that
        fails is delivered again after the others, as Stripe does it.
        """
        answers: list[Answer] = []
        for _ in range(6):
            events, self.kept = [*self.kept, *self.fresh()], []
            if not events:
                break
            if not self.clock:
                self.machine.now += seconds
            for event in events[::order]:
                answer = self.send(event) if kind in event["type"] else None
                if answer is None or answer.status_code == 500:
                    self.kept.append(event)
                else:
                    answers.append(answer)
        assert kind or not self.kept, "what was delivered again and again was not taken"
        return answers

    def send(self, event: Any) -> Answer:
        answer = self.service.post(json.dumps(event))
        assert answer.status_code in (200, 500), answer.text
        return answer

    def post(self, event: Any, status: int = 200) -> Answer:
        answer = self.service.post(json.dumps(event))
        assert answer.status_code == status, answer.text
        return answer

    def run(self, *options: str) -> Result:
        """Run `flask report`."""
        runner = self.service.client.application.test_cli_runner()
        return runner.invoke(args=["report", *options])

    def sent(self, meter: str = "m1") -> list[tuple[int, str]]:
        """Return timestamp and value of what a Billing Meter was sent by the service."""
        return [
            (int(seen["form"]["timestamp"]), seen["form"]["payload[value]"])
            for seen in self.stripe.requests()
            if seen["path"] == "/v1/billing/meter_events" and seen["form"]["event_name"] == meter
        ]

    def closed_with(self, end: int, meter: str = "m1") -> str:
        """Return the value of the last event before the end of a period, by its second."""
        found = [(at, n, value) for n, (at, value) in enumerate(self.sent(meter)) if at < end]
        return max(found)[2]

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
        self.audit()
        return self.billed()

    def audit(self) -> None:
        """See that the audit finds what came too late, and all else right if nobody warned."""
        of_clock = ["--subscription", self.subscription] if self.clock else []
        span = ["--since", "2023-01-01", "--until", "2030-01-01", *of_clock]
        runner = self.service.client.application.test_cli_runner()
        done = runner.invoke(args=["audit", "--json", *span])
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        missing = [row["missing"] for row in rows if row["kind"] == "line"]
        if not self.warned("closed", "reset", "changed", "refused", "billed twice"):
            late = [str(self.too_late)] if self.too_late else []
            assert [units for units in missing if units not in ("0", None)] == late


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
            monkeypatch.setattr(time, "monotonic", machine.time)
        customer = service.stripe.call("POST", "customers", **form)["id"]
        story = Story(
            service.stripe,
            form.get("test_clock", ""),
            customer,
            service=service,
            start=start,
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
    assert story.closed_with(T) == "1060"
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
    assert story.closed_with(T) == "10"
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
    assert story.closed_with(T) == "1060"
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
    assert story.closed_with(T) == "1060"
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
    assert (story.sent()[-1][1], story.closed_with(T)) == ("1040", "1040")
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
    assert ([value for _, value in story.sent()], story.closed_with(T)) == (["40"], "40")


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
    assert story.warned() == story.warned("no rows")


# 6, 7, 8. What a schedule switches at the renewal

CLOSERS = pytest.mark.parametrize("closer", ["", "updated", "invoice", "run"])


def close_by(story: Story, closer: str, order: int = 1) -> None:
    """Let a run close what is over, or some of the events, or all."""
    if closer == "run":
        assert story.run().exit_code == 0
    else:
        story.deliver(closer, order)


def close_first_by(story: Story, closer: str) -> None:
    """Let a run, or some of the events, find what a schedule switched, and then the others.

    Who comes first may not yet know enough, and then leaves it to the others.
    """
    if closer == "run":
        assert story.run().exit_code in (0, 1)
    else:
        story.deliver(closer)
    story.deliver()


def closed_with(story: Story, meter: str = "m1") -> set[str]:
    """Return all values that a Billing Meter was sent to close the period that ends at END."""
    return {value for second, value in story.sent(meter) if END - DAY < second < END}


def usage_lines(story: Story, end: int = END) -> Lines:
    """Return the lines with a quantity of all final invoices but for a flat fee's."""
    lines = [line for _, lines in story.billed_in_the_end(end) for line in lines]
    return [line for line in lines if line[1] and line[0] != "flat"]


@SHAPES
@MODES
@CLOSERS
@pytest.mark.parametrize("reason", ["subscription_cycle", "subscription_update"])
def test_an_item_that_a_schedule_replaces_is_closed_on_its_own_meter(
    tell: Tell, version: str, mode: str, closer: str, reason: str
) -> None:
    story = tell(version)
    story.read(switch_reason=reason)
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.use(40, END - 600)
    (old,) = story.items()
    story.switch({"id": old, "deleted": True}, {"price": story.prices["other"]})
    story.to(END + 60)
    story.use(3, END + 30, "m2")
    close_first_by(story, closer)
    assert closed_with(story) == {"1040"}
    assert story.stands(END, END + DAY) == 0
    assert story.warned() == []
    assert usage_lines(story) == [("A", 1_040, 10_400)]


@SHAPES
@MODES
@ORDERS
@CLOCKS
def test_an_item_that_replaces_another_on_its_meter_begins_to_the_second(
    tell: Tell, version: str, mode: str, order: int, clocked: bool
) -> None:
    story = tell(version, clocked=clocked)
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.use(40, END - 600)
    (old,) = story.items()
    story.switch({"id": old, "deleted": True}, {"price": story.prices["B"]})
    story.to(END + 60)
    story.use(3, END + 30)
    story.deliver(order=order)
    assert closed_with(story) == {"1040"}
    story.used(0, END + HOUR)
    assert story.stands(END, END + DAY) == 3
    assert story.warned() == []
    assert usage_lines(story) == [("A", 1_040, 10_400)]


@SHAPES
@MODES
def test_a_replaced_item_whose_own_metadata_names_the_meter_is_closed(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "bare", **{f"items[0]{OM}": "m1"})
    story.used(1_000, T)
    story.use(40, END - 600)
    (old,) = story.items()
    story.switch({"id": old, "deleted": True}, {"price": story.prices["flat"]})
    story.to(END + 60)
    story.deliver()
    assert closed_with(story) == {"1040"}
    assert usage_lines(story) == [("bare", 1_040, 10_400)]


@SHAPES
@MODES
@CLOSERS
@pytest.mark.parametrize("then", ["twin", "other", "B", "flat"])
def test_an_item_that_gets_another_price_at_the_renewal_is_closed_at_the_old_one(
    tell: Tell, version: str, mode: str, closer: str, then: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.use(40, END - 600)
    story.switch({"id": story.items()[0], "price": story.prices[then]})
    story.to(END + 60)
    story.use(3, END + 30, "m2" if then == "other" else "m1")
    close_first_by(story, closer)
    assert closed_with(story) == {"1040"}
    assert story.warned() == []
    if then in ("twin", "other"):
        story.used(0, END + HOUR, meter="m2" if then == "other" else "m1")
        assert story.stands(END, END + DAY, "m2" if then == "other" else "twin") == 3
        assert story.stands(END, END + DAY) == 0
    assert usage_lines(story) == [("A", 1_040, 10_400)]


@SHAPES
@pytest.mark.parametrize("then", ["A", "flat", "S"])
def test_a_usage_record_whose_price_goes_at_the_renewal_is_compared_with_its_line(
    tell: Tell, version: str, then: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "R")
    story.used(1_000, T)
    story.use(40, END - 600)
    story.switch({"id": story.items()[0], "price": story.prices[then]})
    story.to(END + 60)
    story.use(3, END + 30)
    story.deliver()
    assert any("40 units" in said for said in story.warned())
    assert usage_lines(story) == [("R", 1_000, 10_000)]


@SHAPES
@MODES
@pytest.mark.parametrize("closer", ["", "updated"])
def test_an_item_that_names_no_meter_any_more_from_the_renewal_on_is_closed(
    tell: Tell, version: str, mode: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "bare", **{f"items[0]{OM}": "m1"})
    story.used(1_000, T)
    story.use(40, END - 2 * HOUR)
    story.switch({"id": story.items()[0], "metadata": {"om_meter_id": ""}})
    story.to(END + 60)
    story.deliver(closer)
    assert closed_with(story) == {"1040"}
    assert usage_lines(story) == [("bare", 1_040, 10_400)]


# 9. Statuses


@SHAPES
@pytest.mark.parametrize("status", ["incomplete", "incomplete_expired", "paused", "canceled"])
@pytest.mark.parametrize("seconds", [0, 60], ids=["fresh", "late"])
def test_what_cannot_be_billed_overwrites_no_total_of_what_can(
    tell: Tell, version: str, status: str, seconds: int
) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(500, T - DAY)
    old = story.subscription
    if status == "canceled":
        story.call("DELETE", f"subscriptions/{old}")
    else:
        story.status(status)
    story.deliver()
    story.to(T)
    story.subscribe(FLEXIBLE, "A")
    story.used(5, T + HOUR)
    assert story.stands(T, END) == 5
    story.call("POST", f"subscriptions/{old}", **{"metadata[a]": "1"})
    (answer,) = story.deliver(seconds=seconds)
    assert answer.json["reported"] == []
    assert story.stands(T, END) == 5
    end = story.shown()["items"]["data"][0]["current_period_end"]
    assert usage_lines(story, end) == [("A", 5, 50)]


@SHAPES
def test_an_event_from_before_a_cancellation_overwrites_nothing_when_it_comes_late(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(500, T - DAY)
    story.touch()
    (late,) = story.fresh()
    story.call("DELETE", f"subscriptions/{story.subscription}")
    story.deliver()
    story.to(T)
    story.subscribe(FLEXIBLE, "A")
    story.used(5, T + HOUR)
    story.post(late)
    assert story.stands(T, END) == 5


@SHAPES
@WAYS
def test_a_run_reports_nothing_as_running_that_cannot_be_billed(
    tell: Tell, version: str, way: tuple[str, str]
) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.status("paused")
    story.use(500, T)
    story.to(T + 60)
    assert story.run().exit_code == 0
    assert [seen for seen in story.stripe.requests() if "usage_records" in seen["path"]] == []
    assert story.sent() == []


@SHAPES
@MODES
def test_what_was_paused_after_its_renewal_is_closed_all_the_same(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.use(40, END - 2 * HOUR)
    story.to(END + 60)
    story.status("paused")
    story.deliver()
    assert story.closed_with(END) == "1040"
    assert usage_lines(story) == [("A", 1_040, 10_400)]


# 10. Usage records are as careful as meter events


@SHAPES
@pytest.mark.parametrize("clocked", [False, True], ids=["machine", "clock"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({f"items[0]{OM}": "m_wrong"}, {f"items[0]{OM}": "m1"}),
        ({"metadata[om_subject]": "{other}"}, {"metadata[om_subject]": ""}),
    ],
    ids=["meter", "subject"],
)
def test_an_old_event_puts_no_total_of_its_own_over_a_newer_usage_record(
    tell: Tell, version: str, clocked: bool, before: dict[str, str], after: dict[str, str]
) -> None:
    story = tell(version, clocked=clocked)
    form = {name: value.format(other=story.other) for name, value in before.items()}
    story.subscribe(CLASSIC, "bare R", **{f"items[0]{OM}": "m1", **form})
    story.use(100, T - 60)
    story.use(9_000, T - 60, "m_wrong")
    story.use(9_000, T - 60, subject=story.other)
    story.to(T)
    story.touch()
    old = story.fresh()[-1]
    if "metadata[om_subject]" in after:
        story.update(**after)
    else:
        story.update(**{"items[0][id]": story.items()[0], **after})
    story.deliver()
    assert story.stripe.usage(story.items()[0]) == [100]
    if not clocked:
        story.to(T + 60)
    story.post(old)
    assert story.stripe.usage(story.items()[0]) == [100]


# 11. Ends


@SHAPES
@pytest.mark.parametrize("window", ["HOUR", "DAY"])
@pytest.mark.parametrize("form", [{"cancel_at_period_end": "true"}, {"cancel_at": str(END)}])
@pytest.mark.parametrize("by", ["event", "run"])
def test_a_usage_record_counts_to_the_second_of_its_subscriptions_end(
    tell: Tell, version: str, window: str, form: dict[str, str], by: str
) -> None:
    story = tell(version, OPENMETER_WINDOW_SIZE=window)
    story.subscribe(CLASSIC, "R")
    story.used(100, T)
    story.update(**form)
    story.deliver()
    story.use(2_000, END - 11 * HOUR)
    story.use(12, END - 600)
    story.to(END - 30)
    if by == "run":
        assert story.run().exit_code == 0
    else:
        story.touch()
        story.deliver()
    assert story.stripe.usage(story.items()[0]) == [2_112]
    story.to(END + 60)
    story.deliver()
    assert story.warned() == []
    assert usage_lines(story) == [("R", 2_112, 21_120)]


@SHAPES
@MODES
@CLOSERS
@pytest.mark.parametrize("window", ["HOUR", "DAY"])
def test_a_meters_last_period_counts_to_the_second_of_its_subscriptions_end(
    tell: Tell, version: str, mode: str, closer: str, window: str
) -> None:
    story = tell(version, OPENMETER_WINDOW_SIZE=window)
    story.subscribe(mode, "A", cancel_at_period_end="true")
    story.used(2_100, T)
    story.use(12, END - 600)
    story.to(END + 60)
    close_by(story, {"updated": "deleted"}.get(closer, closer))
    assert (story.sent()[-1][1], story.closed_with(END)) == ("2112", "2112")
    assert story.warned() == []
    assert usage_lines(story) == [("A", 2_112, 21_120)]


@SHAPES
@MODES
def test_an_end_in_the_middle_of_a_period_loses_nothing(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    end = T + 5 * DAY
    story.subscribe(mode, "A")
    story.used(100, T)
    story.update(cancel_at=str(end))
    story.deliver()
    story.used(7, T + DAY)
    story.use(5, end - 60)
    story.to(end + 60)
    story.deliver()
    assert story.warned() == story.warned("no rows")
    assert sum(line[1] for line in usage_lines(story, end)) == 112


def test_a_run_closes_what_ended_as_long_as_its_last_invoice_is_a_draft(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A", cancel_at_period_end="true")
    story.used(100, T)
    story.use(12, END - 600)
    story.to(END + HOUR)
    named = story.run("--subscription", story.subscription)
    assert (named.exit_code, story.closed_with(END)) == (0, "112"), named.output
    story.use(3, END - 60)
    story.to(END + 70 * HOUR)
    every = story.run()
    assert (every.exit_code, story.closed_with(END)) == (0, "115"), every.output
    assert usage_lines(story) == [("A", 115, 1_150)]
    before = story.sent()
    over = story.run("--subscription", story.subscription)
    assert over.exit_code == 1
    assert story.run().exit_code == 0
    assert story.sent() == before


# 12. A change and a reset in one update


@SHAPES
@MODES
@CLOCKS
@pytest.mark.parametrize("then", ["A", "B", "other"])
def test_a_reset_with_a_change_closes_the_former_price_of_a_meter(
    tell: Tell, version: str, mode: str, clocked: bool, then: str
) -> None:
    story = tell(version, clocked=clocked)
    story.subscribe(mode, "A")
    story.used(1_000, T - DAY)
    story.use(40, T - 60)
    reset = {"billing_cycle_anchor": "now", "proration_behavior": "always_invoice"}
    changed_at(story, T, then, **reset)
    assert story.closed_with(T) == "1040"
    assert any("40 units" in said for said in story.warned("reset"))
    story.used(3, T + HOUR, meter="m2" if then == "other" else "m1")
    assert story.sent("m2" if then == "other" else "m1")[-1][1] == "3"


@SHAPES
@CLOCKS
@pytest.mark.parametrize("then", ["R", "S", "flat"])
def test_a_reset_with_a_change_names_the_units_that_a_usage_record_lacks(
    tell: Tell, version: str, clocked: bool, then: str
) -> None:
    story = tell(version, clocked=clocked)
    story.subscribe(CLASSIC, "R")
    story.used(1_000, T - DAY)
    story.use(40, T - 60)
    story.use(3, T + 1)
    story.to(T)
    story.change(then, billing_cycle_anchor="now")
    if clocked:
        story.to(T + 5)
    story.deliver()
    (said,) = story.warned("reset")
    assert "40 units" in said
    assert "4.00 USD" in said
    assert usage_lines(story, T)[:1] == [("R", 1_000, 10_000)]


@SHAPES
@WAYS
def test_a_reset_that_loses_nothing_warns_of_nothing(
    tell: Tell, version: str, way: tuple[str, str]
) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.used(1_000, T - DAY)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.use(3, T + 1)
    story.deliver()
    assert story.warned() == []


# 13. Lines that bill no usage


@SHAPES
@MODES
@CLOSERS
def test_one_off_lines_and_credits_are_not_warned_of(
    tell: Tell, version: str, mode: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "flat", "A")
    story.used(100, T - DAY)
    form = {"customer": story.customer, "subscription": story.subscription}
    story.call("POST", "invoiceitems", amount=250, currency="usd", **form)
    changed_at(story, T, "team")
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.warned() == []
    lines = story.invoices()[-1]["lines"]["data"]
    kinds = [line["parent"]["type"] for line in lines]
    assert kinds == ["subscription_item_details"] * 2 + ["invoice_item_details"] * 3
    assert lines[1]["quantity"] == 100


# 15. Totals below zero


@SHAPES
@MODES
@CLOSERS
def test_a_total_below_zero_is_closed_as_zero_with_a_warning(
    tell: Tell, version: str, mode: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(100, T)
    story.use(-150, END - 2 * HOUR)
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.closed_with(END) == "0"
    assert story.warned("below zero")
    assert usage_lines(story) == []


@SHAPES
@WAYS
def test_a_running_total_below_zero_is_zero(tell: Tell, version: str, way: tuple[str, str]) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.used(100, T)
    story.used(-150, T + DAY)
    if way[1] == "R":
        assert story.stripe.usage(story.items()[0]) == [0]
    else:
        assert story.sent()[-1][1] == "0"
    assert len(story.warned()) == len(story.warned("below zero")) == 1
    story.used(60, T + 2 * DAY)
    assert len(story.warned()) == 1


# 16. Usage records at their renewals


@SHAPES
@CLOCKS
@CLOSERS
def test_a_usage_record_that_lost_nothing_is_not_warned_of(
    tell: Tell, version: str, clocked: bool, closer: str
) -> None:
    story = tell(version, clocked=clocked)
    story.subscribe(CLASSIC, "R")
    story.used(10, T)
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.warned() == []
    assert usage_lines(story) == [("R", 10, 100)]


@SHAPES
@CLOSERS
def test_a_usage_record_that_lost_units_is_warned_of_with_them_and_their_money(
    tell: Tell, version: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, "R")
    story.used(10, T)
    story.use(3, END - HOUR)
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.warned() == story.warned("closed")
    said = story.warned("closed")[0]
    assert "3 units" in said
    assert "0.30 USD" in said


@SHAPES
@pytest.mark.parametrize("lost", [0, 3])
def test_tiers_in_several_lines_are_compared_as_one(tell: Tell, version: str, lost: int) -> None:
    story = tell(version)
    tiers = {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    tiers |= {"tiers[0][up_to]": "4", "tiers[0][unit_amount]": "10"}
    tiers |= {"tiers[1][up_to]": "inf", "tiers[1][unit_amount]": "5"}
    story.price("tiered", 0, "records", **{"metadata[om_meter_id]": "m1"}, **tiers)
    story.subscribe(CLASSIC, "tiered")
    story.used(10, T)
    story.use(lost, END - HOUR)
    story.to(END + 60)
    story.use(1, END + 30)
    story.deliver("updated")
    assert len(story.warned("closed")) == len(story.warned()) == bool(lost)
    assert all("3 units" in said and "USD" not in said for said in story.warned())


def counted_warnings(story: Story, kind: str) -> float:
    """Return how many warnings of a kind the service has counted."""
    text = story.service.open("GET", "/metrics").text
    name = f'openmeter_stripe_warnings_total{{warning="{kind}"}} '
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@SHAPES
@pytest.mark.parametrize(("kind", "then"), [("closed", ""), ("changed", "A")])
def test_an_event_that_is_delivered_again_is_not_counted_again(
    tell: Tell, version: str, kind: str, then: str
) -> None:
    story = tell(version, METRICS="1")
    story.subscribe(CLASSIC, "R")
    story.used(10, T - DAY)
    story.use(3, END - HOUR)
    story.to(END + 60 if kind == "closed" else T)
    if then:
        story.change(then)
    story.use(1, END + 30)
    event = next(event for event in story.fresh() if "updated" in event["type"])
    before = counted_warnings(story, kind)
    for _ in range(3):
        story.post(event)
    assert counted_warnings(story, kind) == before + 1


# 17. The same usage on two items


@pytest.mark.parametrize("mode", [CLASSIC, FLEXIBLE])
def test_a_run_names_both_items_that_bill_the_same_usage(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    (first,) = story.items()
    story.subscribe(mode, "twin")
    (second,) = story.items()
    story.use(10, T - 60)
    story.to(T)
    result = story.run()
    (said,) = story.warned("billed twice")
    assert first in said
    assert second in said
    assert "warned: 1" in result.output
    assert story.sent()[-1][1] == story.sent("twin")[-1][1] == "10"


def test_two_subscriptions_of_which_one_follows_the_other_bill_nothing_twice(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.to(T)
    story.call("DELETE", f"subscriptions/{story.subscription}")
    story.subscribe(FLEXIBLE, "twin")
    story.use(10, T + 60)
    story.to(T + HOUR)
    assert story.run().exit_code == 0
    assert story.warned() == []


@SHAPES
@MODES
@pytest.mark.parametrize("second", ["twin", "B"])
def test_an_event_names_both_items_of_a_subscription_that_bill_the_same_usage(
    tell: Tell, version: str, mode: str, second: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A", second)
    story.used(10, T)
    (said,) = story.warned("billed twice")
    assert all(item in said for item in story.items())
    if second == "B":
        assert {value for _, value in story.sent()} == {"10"}
    story.to(END + 60)
    story.deliver()
    assert sorted(usage_lines(story)) == sorted(
        [("A", 10, 100), (second, 10, 300 if second == "B" else 100)]
    )


@SHAPES
def test_two_items_of_a_meter_that_differ_are_refused(tell: Tell, version: str) -> None:
    story = tell(version)
    form = {f"items[1]{OM}": "m2"}
    story.subscribe(FLEXIBLE, "A", "B", **form)
    story.use(10, T - 60)
    story.to(T)
    story.touch()
    (event,) = story.fresh()
    answer = story.post(event, 500)
    assert all(item in answer.text for item in story.items())
    assert story.sent() == []


# 18. An OpenMeter without any usage


@WAYS
def test_an_empty_openmeter_sets_nobody_to_zero(
    tell: Tell, way: tuple[str, str], empty_openmeter: OpenMeter
) -> None:
    story = tell()
    story.subscribe(*way)
    story.used(1_000, T)
    (item,) = story.items()
    story.service.client = story.start(OPENMETER_URL=empty_openmeter.url).client
    story.to(T + HOUR)
    result = story.run()
    assert result.exit_code == 1
    assert len(story.warned("empty meter")) == 1
    assert "m1" in story.warned("empty meter")[0]
    if way[1] == "R":
        assert story.stripe.usage(item) == [1_000]
    else:
        assert story.stands(START, END) == 1_000
    asked = [seen for seen in empty_openmeter.requests() if "query" in seen["path"]]
    assert len(asked) == 2


@WAYS
def test_where_somebody_had_usage_no_rows_are_zero(tell: Tell, way: tuple[str, str]) -> None:
    story = tell()
    story.subscribe(*way)
    story.use(9, T - 60, subject=story.other)
    story.to(T)
    result = story.run()
    assert result.exit_code == 0
    assert len(story.warned("no rows")) == len(story.warned()) == 1
    if way[1] == "A":
        assert story.sent()[-1][1] == "0"


@WAYS
def test_an_event_reports_no_rows_as_zero_with_a_warning(tell: Tell, way: tuple[str, str]) -> None:
    story = tell()
    story.subscribe(*way)
    story.to(T)
    story.touch()
    answer = story.deliver()[-1]
    assert [str(entry["quantity"]) for entry in answer.json["reported"]] == ["0"]
    assert len(story.warned("no rows")) == len(story.warned()) == 1


def test_a_dry_run_shows_no_rows_as_a_dash(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "R")
    story.to(T)
    shown = story.run("--dry-run", "--all").stdout.splitlines()
    (row,) = [line for line in shown if line.startswith("si_")]
    assert row.split()[2:] == ["-", "0", "0", "0"]


# What changes in mid-period besides the price


@SHAPES
@WAYS
@pytest.mark.parametrize("late", [0, 60], ids=["fresh", "late"])
def test_another_subject_in_mid_period_is_warned_of_with_both_totals(
    tell: Tell, version: str, way: tuple[str, str], late: int
) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.used(111, T - DAY)
    story.use(37, T - 60, subject=story.other)
    story.to(T)
    story.update(**{"metadata[om_subject]": story.other})
    story.deliver(seconds=late)
    (said,) = story.warned()
    assert story.warned("changed") == [said]
    assert {"111", "37"} <= set(re.findall(r"\d+", said))


@SHAPES
@MODES
def test_another_meter_of_openmeters_in_mid_period_is_warned_of_with_both_totals(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "bare", **{f"items[0]{OM}": "m1"})
    story.used(111, T - DAY)
    story.use(37, T - 60, "m2")
    story.to(T)
    story.update(**{"items[0][id]": story.items()[0], f"items[0]{OM}": "m2"})
    story.deliver()
    (said,) = story.warned()
    assert story.warned("changed") == [said]
    assert {"111", "37"} <= set(re.findall(r"\d+", said))


@SHAPES
@WAYS
def test_another_window_in_mid_period_is_warned_of_with_both_totals(
    tell: Tell, version: str, way: tuple[str, str]
) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.used(1, T)
    story.to(END + 60)
    story.use(111, END - 3 * HOUR)
    story.use(37, END + 30)
    story.deliver()
    story.caplog.clear()
    story.to(END + DAY)
    form = {"items[0][id]": story.items()[0], "items[0][metadata][om_window_size]": "DAY"}
    story.update(**form)
    story.deliver()
    (said,) = story.warned("changed")
    assert {"148", "37"} <= set(re.findall(r"\d+", said))


@SHAPES
@WAYS
def test_other_metadata_in_mid_period_is_not_warned_of(
    tell: Tell, version: str, way: tuple[str, str]
) -> None:
    story = tell(version)
    story.subscribe(*way)
    story.used(111, T - DAY)
    story.to(T)
    story.update(**{"items[0][id]": story.items()[0], "items[0][metadata][a]": "b"})
    story.deliver()
    assert story.warned() == []


# What comes too late for an item whose price changed


@SHAPES
@MODES
@CLOSERS
def test_what_a_changed_items_draft_counts_no_more_is_warned_of(
    tell: Tell, version: str, mode: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.use(1, T - 60)
    changed_at(story, T, "B")
    story.used(5, T + DAY)
    story.caplog.clear()
    story.use(2, END - HOUR)
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.warned()
    assert all("2 units" in said and "0.60 USD" in said for said in story.warned())
    assert ("B", 5, 150) in usage_lines(story)


# Items of different intervals


@SHAPES
@CLOSERS
def test_items_of_different_intervals_are_closed_each_at_its_own_end(
    tell: Tell, version: str, closer: str
) -> None:
    story = tell(version)
    story.price("year", 7, "m2", interval="year", **{"metadata[om_meter_id]": "m2"})
    story.subscribe(FLEXIBLE, "year", "A")
    story.use(200, T - 60, "m2")
    story.used(100, T)
    story.to(END + 60)
    story.use(1, END + 30)
    close_by(story, closer)
    assert story.closed_with(END) == "100"
    assert {value for _, value in story.sent("m2")} == {"200"}
    story.used(50, END + DAY, meter="m2")
    assert story.sent("m2")[-1][1] == "250"
    assert story.sent()[-1][1] == "1"
    assert story.warned() == []


# What cannot be read


@SHAPES
def test_an_event_that_cannot_be_read_says_what_to_do(tell: Tell, version: str) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.touch()
    (event,) = story.fresh()
    del event["data"]["object"]["items"]
    answer = story.post(event, 422)
    assert "items.data is missing" in answer.json["error"]
    assert event["id"] in answer.json["error"]
    assert "flask report --subscription" in answer.json["error"]
    assert "new event" in answer.json["error"]


@SHAPES
@pytest.mark.parametrize("kind", ["updated", "invoice"])
def test_a_fault_in_stripes_answer_is_not_called_one_of_the_event(
    tell: Tell, version: str, kind: str
) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(5, T)
    story.to(END + 60)
    event = next(event for event in story.fresh() if kind in event["type"])
    event["created"] -= 60
    broken = {**story.shown(), "items": None}
    story.stripe.fault(method="GET", path="/v1/subscriptions/", status=200, times=1, body=broken)
    answer = story.post(event, 500)
    (failed,) = answer.json["failed"]
    assert "items.data is missing" in failed["error"]
    assert "Stripe" in failed["error"]
    assert event["id"] not in answer.text
    assert story.post(event).json["failed"] == []


# A renewal and a change one soon after the other


@SHAPES
@MODES
@ORDERS
@pytest.mark.parametrize("then", ["B", "other", "flat"])
def test_a_change_soon_after_a_renewal_leaves_each_unit_in_one_period(
    tell: Tell, version: str, mode: str, order: int, then: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.use(40, END - 600)
    story.use(3, END + 60)
    story.to(END + 300)
    story.change(then)
    story.deliver(order=order, seconds=30)
    assert int(story.closed_with(END)) + int(story.closed_with(END + 300)) == 1_043
    assert len({value for second, value in story.sent() if END - DAY < second < END}) == 1


def test_what_a_period_lacks_that_is_too_short_to_report_is_said(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    for second in (T + 60, T + 61):
        story.to(second)
        story.use(7, second - 1)
        story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    assert any("7 metered, 0 on invoice" in said for said in story.warned("reset"))


def test_a_fraction_that_an_invoice_lacks_is_said(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.use(0.75, T - 60)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    (said,) = story.warned("reset")
    assert "0.75 units" in said


@SHAPES
@READINGS
def test_an_event_from_before_a_change_reports_no_usage_of_the_new_price(
    tell: Tell, version: str, readings: dict[str, str]
) -> None:
    story = tell(version)
    story.read(**readings)
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T)
    story.use(7, END + 30)
    story.to(END + 60)
    story.change("B")
    story.use(5, END + 90)
    story.machine.now += 60
    events = story.fresh()
    (renewal, _) = [event for event in events if event["type"].endswith("updated")]
    story.post(renewal)
    assert {value for _, value in story.sent()} == {"1000"}
    story.kept = [event for event in events if event is not renewal]
    story.deliver()
    assert story.sent()[-1][1] == "5"
    assert story.closed_with(END) == "1000"


@MODES
def test_an_event_of_a_change_reports_no_price_that_came_after_it(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.change("B")
    story.use(12, T + 30)
    story.to(T + 60)
    story.change("A")
    story.machine.now += 60
    first, second = story.fresh()
    story.post(first)
    assert {value for _, value in story.sent()} == {"100"}
    story.post(second)
    assert story.closed_with(T + 60) == "12"
    assert story.sent()[-1][1] == "0"


@READINGS
def test_a_run_before_the_event_of_a_change_leaves_the_former_price_its_usage(
    tell: Tell, readings: dict[str, str]
) -> None:
    story = tell()
    story.read(**readings)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.change("B")
    story.use(50, T + 60)
    story.to(T + 1_800)
    story.run()
    story.to(T + HOUR)
    story.deliver()
    assert story.sent()[-1][1] == "50"
    assert story.closed_with(T) == "100"
    assert story.billed_in_the_end() == [("cycle", [("B", 50, 1_500), ("A", 100, 1_000)])]


# Boundaries to the second, whatever the window


@MODES
@pytest.mark.parametrize("window", ["MINUTE", "DAY"])
@pytest.mark.parametrize("turn", ["changed", "swapped", "added"])
def test_a_turn_in_mid_period_is_exact_with_any_window(
    tell: Tell, mode: str, window: str, turn: str
) -> None:
    story = tell(OPENMETER_WINDOW_SIZE=window)
    story.subscribe(mode, "flat" if turn == "added" else "A")
    story.to(T)
    story.use(1_000, T - 1)
    story.use(5, T)
    item = story.items()[0]
    if turn == "changed":
        story.change("B")
    elif turn == "added":
        story.add("B")
    else:
        new = {"items[1][price]": story.prices["B"]}
        story.update(**{"items[0][id]": item, "items[0][deleted]": "true", **new})
    story.deliver()
    former = [] if turn == "added" else ["1000"]
    assert [value for second, value in story.sent() if second < T] == former
    assert story.stands(T, END) == 5


@SHAPES
@MODES
@ORDERS
def test_units_around_a_renewal_after_a_change_are_billed_once(
    tell: Tell, version: str, mode: str, order: int
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    changed_at(story, T, "B")
    story.used(5, T + DAY)
    story.use(40, END - 600)
    story.to(END + 60)
    story.use(3, END + 30)
    story.deliver(order=order)
    story.used(0, END + HOUR)
    closed, running = story.stands(T, END), story.stands(END, END + DAY)
    assert (closed, running) == (5, 43)


@SHAPES
@MODES
def test_a_change_of_interval_counts_from_there(tell: Tell, version: str, mode: str) -> None:
    story = tell(version)
    story.price("week", 30, interval="week", **{"metadata[om_meter_id]": "m1"})
    story.subscribe(mode, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.use(40, T - 30)
    story.use(5, T + 1)
    story.change("week")
    story.deliver()
    story.used(0, T + HOUR)
    assert story.stands(T, T + DAY) == 5
    assert story.closed_with(T) == "1040"
    assert any("40 units" in said or "1040 units" in said for said in story.warned())


@pytest.mark.parametrize("seconds", [2, 50])
def test_an_item_that_joins_a_running_period_counts_from_its_change(
    tell: Tell, seconds: int
) -> None:
    story = tell()
    for name, meter in (("week", "m1"), ("other week", "m2")):
        story.price(name, 30, meter, interval="week", **{"metadata[om_meter_id]": meter})
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.add("other week")
    story.use(40, T + 1)
    story.to(T + seconds)
    story.change("week")
    story.use(5, T + seconds)
    story.deliver()
    story.used(0, T + HOUR)
    assert story.closed_with(T + seconds) == "140"
    assert story.stands(T + seconds, T + DAY) == 5


def test_a_change_that_is_told_late_waits_for_no_other_items_change(tell: Tell) -> None:
    story = tell()
    story.read(changed_start="moves")
    story.subscribe(FLEXIBLE, "A", "other")
    story.use(3, T - 60)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    lost = story.warned("reset")
    assert len(lost) == 1
    story.to(T + 4)
    story.change("B")
    (first,) = [e for e in story.fresh() if e["type"] == "customer.subscription.updated"]
    story.to(T + 6)
    story.change("A")
    story.to(T + 60)
    story.change("flat", item=1)
    story.to(T + 3 * HOUR)
    story.post(first)
    assert story.warned("reset") == lost


@SHAPES
def test_what_is_resumed_counts_nothing_of_the_time_between(tell: Tell, version: str) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.status("paused")
    story.deliver()
    again = END + 5 * DAY + 77
    story.use(500, again - 60)
    story.to(again)
    story.use(3, again + 1)
    story.status("active")
    story.deliver()
    story.used(0, again + HOUR)
    assert story.stands(again, again + DAY) == 3


@SHAPES
def test_what_was_resumed_before_a_later_reset_begins_to_the_second(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.status("paused")
    again = END + 5 * DAY + 77
    story.use(500, again - 60)
    story.to(again)
    story.use(3, again + 1)
    story.status("active")
    story.deliver()
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    assert usage_lines(story, end) == [("A", 3, 30)]


@SHAPES
@pytest.mark.parametrize("status", ["past_due", "unpaid"])
def test_what_is_unpaid_is_reported_on(tell: Tell, version: str, status: str) -> None:
    story = tell(version)
    story.subscribe(FLEXIBLE, "A")
    story.used(100, T)
    story.status(status)
    story.used(5, T + DAY)
    assert story.stands(START, END) == 105
    story.use(7, END - 2 * HOUR)
    story.to(END + 60)
    story.deliver()
    assert usage_lines(story) == [("A", 112, 1_120)]


@SHAPES
@MODES
def test_a_customer_who_comes_back_is_billed_for_each_stay_alone(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(500, T)
    story.call("DELETE", f"subscriptions/{story.subscription}", invoice_now="true")
    story.to(T + 60)
    story.use(9, T + 30)
    story.subscribe(mode, "A")
    story.deliver(order=-1)
    story.used(5, T + HOUR)
    assert story.stands(T + 60, END) == 5
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver(order=-1)
    assert usage_lines(story, end) == [("A", 500, 5_000), ("A", 5, 50)]


# What changes no meter


@SHAPES
@MODES
@pytest.mark.parametrize("then", ["team", "more seats", "gone", "new"])
def test_a_licensed_item_that_changes_leaves_the_metered_one_alone(
    tell: Tell, version: str, mode: str, then: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "flat", "A")
    story.used(100, T - DAY)
    story.to(T)
    if then == "gone":
        story.remove(0)
    elif then == "new":
        story.add("team")
    elif then == "team":
        story.change("team")
    else:
        story.update(**{"items[0][id]": story.items()[0], "items[0][quantity]": "3"})
    story.deliver()
    story.used(5, T + DAY)
    assert story.warned() == []
    assert story.sent()[-1][1] == "105"
    story.use(7, END - 2 * HOUR)
    story.to(END + 60)
    story.use(1, END + 30)
    story.deliver()
    assert story.warned() == []
    assert [line for line in usage_lines(story) if line[0] == "A"] == [("A", 112, 1_120)]


@SHAPES
@MODES
def test_a_change_in_a_trial_is_free_and_warns_of_nothing(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A", trial_end=TRIAL_END + 20 * DAY)
    story.used(100, T - DAY)
    story.use(60, T - 30)
    changed_at(story, T, "B")
    assert story.warned("changed", "reset", "closed") == []
    story.to(TRIAL_END + 20 * DAY + 60)
    story.use(5, TRIAL_END + 20 * DAY + 30)
    story.deliver()
    story.used(0, TRIAL_END + 20 * DAY + HOUR)
    assert story.sent()[-1][1] == "5"
    assert story.warned("changed", "reset", "closed") == []


# A team's own start of counting


@SHAPES
@pytest.mark.parametrize(("mode", "price"), [(CLASSIC, "bare R"), (FLEXIBLE, "bare")])
def test_a_team_that_starts_metering_in_mid_period_can_say_since_when(
    tell: Tell, version: str, mode: str, price: str
) -> None:
    story = tell(version)
    story.subscribe(mode, price)
    story.use(1_000, T - 30)
    story.use(4, T + 30)
    story.to(T + 60)
    since = {f"items[0]{OM}": "m1", "items[0][metadata][om_counted_from]": str(T)}
    story.update(**{"items[0][id]": story.items()[0], **since})
    story.deliver()
    assert usage_lines(story) == [(price, 4, 40)]


@SHAPES
def test_an_item_made_with_its_subscription_counts_from_the_period_though_a_second_younger(
    tell: Tell, version: str
) -> None:
    story = tell(version)
    story.use(6, START + 20)
    story.subscribe(FLEXIBLE, "flat")
    story.to(START + 45)
    story.add("A")
    story.to(START + 90)
    story.touch()
    story.deliver()
    assert story.sent()[-1][1] == "6"


# Several items at once


@SHAPES
@MODES
@pytest.mark.parametrize("count", [9, 11])
def test_a_change_among_more_items_than_an_event_lists_counts_from_its_second(
    tell: Tell, version: str, mode: str, count: int
) -> None:
    story = tell(version)
    story.subscribe(mode, "A", *["flat"] * count)
    story.used(1_000, T - DAY)
    story.use(60, T - 30)
    changed_at(story, T, "B")
    assert story.closed_with(T) == "1060"
    story.used(5, T + DAY)
    assert story.sent()[-1][1] == "5"
    assert story.stands(T, END) == 5


@SHAPES
@MODES
def test_an_item_added_to_more_than_an_event_lists_counts_from_its_creation(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "other", *["flat"] * 11)
    story.use(9, T - 60, "m2")
    story.use(1_000, T - 60)
    story.to(T)
    story.add("A")
    story.deliver()
    story.used(5, T + DAY)
    assert story.sent()[-1][1] == "5"
    assert story.sent("m2")[-1][1] == "9"
    assert story.warned("changed", "reset", "closed") == []


@SHAPES
@MODES
@ORDERS
def test_two_items_that_trade_their_prices_trade_their_meters_too(
    tell: Tell, version: str, mode: str, order: int
) -> None:
    story = tell(version)
    story.subscribe(mode, "A", "other")
    story.use(20, T - DAY, "m2")
    story.used(10, T - DAY)
    story.to(T)
    form: dict[str, str] = {}
    for n, (item, name) in enumerate(zip(story.items(), ("other", "A"), strict=True)):
        form |= {f"items[{n}][id]": item, f"items[{n}][price]": story.prices[name]}
    story.update(**form)
    story.deliver(order=order)
    assert (story.stands(START, T), story.stands(START, T, "m2")) == (10, 20)
    story.use(2, T + HOUR, "m2")
    story.used(1, T + DAY)
    assert (story.stands(T, END), story.stands(T, END, "m2")) == (1, 2)
    lines = sorted(usage_lines(story))
    former = [("A", 10, 100), ("other", 20, 140)] if mode == FLEXIBLE else []
    assert lines == sorted([("A", 1, 10), ("other", 2, 14), *former])


@SHAPES
@MODES
@CLOSERS
def test_two_items_that_trade_their_prices_at_the_renewal_are_closed_on_their_old_meters(
    tell: Tell, version: str, mode: str, closer: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A", "other")
    story.use(20, END - 600, "m2")
    story.use(10, END - 600)
    first, second = story.items()
    story.switch(
        {"id": first, "price": story.prices["other"]}, {"id": second, "price": story.prices["A"]}
    )
    story.to(END + 60)
    story.use(2, END + 30, "m2")
    story.use(1, END + 30)
    close_first_by(story, closer)
    assert (closed_with(story), closed_with(story, "m2")) == ({"10"}, {"20"})
    assert story.warned() == []
    story.used(0, END + HOUR)
    assert (story.stands(END, END + DAY), story.stands(END, END + DAY, "m2")) == (1, 2)
    assert sorted(usage_lines(story)) == [("A", 10, 100), ("other", 20, 140)]


# Events that come very late


@SHAPES
@MODES
def test_a_change_that_is_told_again_in_the_next_period_changes_nothing(
    tell: Tell, version: str, mode: str
) -> None:
    story = tell(version)
    story.subscribe(mode, "A")
    story.used(100, T - DAY)
    story.to(T)
    story.change("B")
    event = story.stripe.events()[-1]
    story.deliver()
    story.used(20, T + DAY)
    story.to(END + 60)
    story.use(3, END + 30)
    story.deliver()
    story.used(4, END + DAY)
    story.post(event)
    story.deliver()
    assert story.stands(END, END + 2 * DAY) == 7
    assert story.stands(T, END) == 20
    former = [("A", 100, 1_000)] if mode == FLEXIBLE else []
    assert story.billed_in_the_end() == [("cycle", [("B", 20, 600), *former])]


@SHAPES
@MODES
@ORDERS
@READINGS
def test_after_an_outage_over_a_change_and_a_renewal_no_line_has_more_than_was_used(
    tell: Tell, version: str, mode: str, order: int, readings: dict[str, str]
) -> None:
    story = tell(version)
    story.read(**readings)
    story.subscribe(mode, "A")
    story.used(100, T - DAY)
    story.use(6, T - 60)
    story.use(20, T + DAY)
    story.to(T)
    story.change("B")
    story.to(END + 60)
    story.use(3, END + 30)
    story.deliver(order=order)
    story.used(0, END + HOUR)
    assert story.stands(END, END + DAY) == 3
    text = "\n".join(story.warned("changed", "closed"))
    assert "106 units" in text
    assert "20 units" in text
    billed = dict.fromkeys(("A", "B"), 0)
    for name, units, _ in usage_lines(story):
        billed[name] += units
    assert billed["A"] <= 106
    assert billed["B"] <= 20
