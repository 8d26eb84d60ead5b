"""Deliveries and `flask report` that interleave at every call, in processes with wrong clocks.

`test_model` has subscriptions' whole lives, one delivery after the other. Here subscriptions only
renew, are reset, end and come back; but whatever reports them runs beside each other. The service
runs in tasks that give the turn back at each call, before and after it took effect, and at each
lock and sleep (`model_schedule`): two web processes, and one of its own for each `flask report`.
Their hosts' clocks are wrong by up to five minutes either way. OpenMeter and Stripe count up to
five seconds late; calls take up to half a minute, or fail.

For every line of every final invoice that bills a Billing Meter:

- its quantity is a total that was reported: the one that OpenMeter told a report when one last
  asked it whose event Stripe counted in time, or one that it told less than a minute before that
  (where the event that arrived last counts: only one that it told another process); and a draft's
  is asked for after its period's end;
- so, once all usage has arrived, one more report a minute later makes a draft right: half of the
  histories end with one;
- it is never more than was metered, and no unit is on two lines; but one that was used, and
  reported, in the very second of a reset is.

A reset's invoice comes at once: what was asked before it and counted by then has to be on it, by
the same rule. For usage records, too, a line has the total of one of the last minute's reports
before its period ended: the last write wins, and that of one process can overtake another's, but
not one of its own. The running totals are right in the end.

Left out: changed, added and removed items, trials and schedules (`test_model` has these);
warnings; test clocks; and a request that takes effect after the service gave it up.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from stripe import WebhookSignature

from billing.batches import Due
from billing.commands import with_patience
from billing.runs import Run, run_to_exit_status
from billing.stripe_api import Json
from fakes import openmeter_api, stripe_api
from fakes.stripe_invoices import finalization
from fakes.stripe_prices import is_metered
from tests.conftest import ACACIA, DAY, ENDIVE, SECRET, START
from tests.stories.model_hosts import Host, World, in_this_world
from tests.stories.model_knowledge import TIE, WINDOWS, Knowledge, Line, Record, Use
from tests.stories.model_runs import PARTS, run_histories
from tests.stories.model_schedule import Chance, TurnLock

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "200"))
HOUR = 3_600
# The tolerance of signatures: beyond it a host refuses deliveries, and Stripe sends them again.
TOLERANCE = 300

USAGE = (("m1", "execution"), ("m2", "other"))
# The Billing Meter behind each item of a subscription; usage records without.
SLOTS = {"classic": ("ma", ""), "flexible": ("ma", "md")}
LATER_END = "max_period_end"
INTERVALS = [("day", "day"), ("day", "week"), ("week", "month"), ("month", "month")]
READINGS = {
    "last_by": ["timestamp", "arrival"],
    "tie": ["first", "last"],
    "boundary": ["earlier", "later"],
}
OFF = st.one_of(st.sampled_from([0, -300, 300, -1, 1, -61, 61]), st.integers(-300, 300))
LAG = st.integers(0, 5)
WHICH = st.integers(0, 1)
WORK = st.sampled_from(
    ["delivery", "delivery", "delivery", "again", "run", "run", "run of one", "usage", "reset",
     "update", "clock"]
)  # fmt: skip
# Seconds from a period's end.
BESIDE_END = st.sampled_from([-600, -70, -30, -10, -3, -1, 0, 1, 4, 30, 61, 900, 3_500])
# How many seconds something waits that could begin at once; a subscription for others of its run.
LATER, QUEUE = [0, 0, 0, 1, 20, 90], [0, 0, 0, 4, 70, 200]
# How often the products are used while a team works.
MOST_USES = 20
# How probable it is that a subscription was just updated, so that there is something to deliver.
UPDATED = 0.5
# How probable it is that another task goes on, that a step takes seconds, and that a call fails.
PACES = [(0.5, 0.1, 0), (0.9, 0, 0), (0.2, 0.3, 0), (0.2, 0.6, 0), (0.5, 0.2, 0.05), (0, 0.3, 0.1)]


# Uses, and what OpenMeter is told of each.
Batch = list[tuple[Use, Record]]


class Team(NamedTuple):
    """What goes on beside each other; and the numbers that decide how."""

    work: list[str]
    number: int
    pace: tuple[float, float, float]
    budget: int


@dataclass
class QueuedRun(Run):
    """A run that has so much to do that a subscription may wait once it was read, or looked at."""

    queue: Callable[[], None] = lambda: None

    def look_at(self, subscription: Json, read_at: float) -> None:
        self.queue()
        super().look_at(subscription, read_at)

    def settle(self, due: Due) -> None:
        self.queue()
        super().settle(due)


TEAM = st.builds(
    Team,
    work=st.lists(WORK, min_size=2, max_size=5),
    number=st.integers(0, 2**16),
    pace=st.sampled_from(PACES),
    budget=st.integers(0, 80),
)

TEAMS = st.lists(TEAM, min_size=1, max_size=2)

SEEN: Counter[str] = Counter()
EXPECTED = (
    "at once delivery",
    "at once run",
    "at once run of one",
    "at once usage",
    "at once reset",
    "answered 500",
    "comeback",
    "mended line",
    "late usage in draft",
    "meter line",
    "record line",
    "reset line",
    "close reports",
    "run beside delivery",
    "two runs",
    "batch",
    "two processes",
)


class History(RuleBasedStateMachine):
    """One random history."""

    @initialize(
        version=st.sampled_from([ACACIA, ENDIVE]),
        intervals=st.sampled_from(INTERVALS),
        modes=st.lists(st.sampled_from(["classic", "flexible"]), min_size=1, max_size=2),
        begin=st.one_of(st.sampled_from([0, 1, 7, 40, 61]), st.integers(0, HOUR - 1)),
        chosen=st.fixed_dictionaries(
            {
                "readings": st.fixed_dictionaries(
                    {name: st.sampled_from(known) for name, known in READINGS.items()}
                ),
                "window": st.sampled_from(list(WINDOWS)),
                "lags": st.tuples(LAG, LAG),
                "off": st.tuples(OFF, OFF),
                "mends": st.booleans(),
            }
        ),
    )
    def begin(
        self,
        version: str,
        intervals: tuple[str, str],
        modes: list[str],
        begin: int,
        chosen: Record,
    ) -> None:
        window, lags, off = (chosen[name] for name in ("window", "lags", "off"))
        self.world = World(stripe_api.create_app(), openmeter_api.create_app())
        self.world.now = float(START - START % HOUR + HOUR + begin)
        self.scheduler, self.account = self.world.scheduler, self.world.account
        self.api: stripe_api.Api = self.world.stripe.extensions["api"]
        self.stack = ExitStack()
        self.stack.enter_context(in_this_world(self.world))
        self.account.meters.readings |= chosen["readings"] | {"counts_after_seconds": lags[1]}
        endpoint = {"url": "http://service", "secret": SECRET, "api_version": version, "hold": True}
        self.api.endpoint.configure(endpoint, ENDIVE)
        by_arrival = chosen["readings"]["last_by"] == "arrival"
        self.knows = Knowledge(WINDOWS[window], lags[0], lags[1], by_arrival)
        self.window, self.mends = window, chosen["mends"]
        self.hosts = [Host("web 1", off[0]), Host("web 2", off[1])]
        for host in self.hosts:
            host.begin(window)
        self.intervals, self.mixes, self.used = intervals, version != ACACIA, 0
        self.delivered = set[str]()
        # Drafts that were reported once more, a minute after everything else.
        self.mended = set[str]()
        self.booked, self.lines = set[str](), list[Line]()
        self.late: list[Batch] = []
        self.names, self.rests_until, self.uses_left = 0, 0.0, 0
        self.make_catalog(lags[0])
        self.customers = [self.account.add("customer", "cus", test_clock=None) for _ in modes]
        self.subscriptions = [""] * len(modes)
        for which, mode in enumerate(modes):
            self.subscribe(which, mode)
        self.use()

    def make_catalog(self, openmeter_lag: int) -> None:
        """Make what is sold, and where it is counted."""
        other = {"slug": "m2", "aggregation": "SUM", "eventType": "other"}
        openmeter = self.world.clients["openmeter"]
        openmeter.post("/api/v1/meters", json={**other, "valueProperty": "$.duration"})
        openmeter.post("/_fake/lag", json={"seconds": openmeter_lag})
        last = {"default_aggregation": {"formula": "last"}}
        meters = {
            name: self.account.meters.create({"event_name": name, **last}, ENDIVE)["id"]
            for name in ("ma", "md")
        }
        product = self.account.add("product", "prod", name="Epsilon")["id"]
        self.prices: dict[tuple[str, str], str] = {}
        for meter in ("ma", "md", ""):
            for interval in dict.fromkeys(self.intervals):
                recurring: Record = {"interval": interval, "usage_type": "metered"}
                if meter:
                    recurring["meter"] = meters[meter]
                form = {"product": product, "unit_amount": 10, "recurring": recurring}
                made = self.account.create_price(form, ENDIVE if meter else ACACIA)
                self.prices[meter, interval] = made["id"]

    def subscribe(self, which: int, mode: str) -> None:
        """Start a subscription; in flexible, of two intervals."""
        intervals = (self.intervals[0], self.intervals[mode == "flexible" and self.mixes])
        items = [
            {"price": self.prices[meter, interval], "metadata": {"om_meter_id": USAGE[slot][0]}}
            for slot, (meter, interval) in enumerate(zip(SLOTS[mode], intervals, strict=True))
        ]
        form = {"customer": self.customers[which]["id"], "items": items}
        form |= {"billing_mode": {"type": mode}}
        made = self.account.create_subscription(form, ACACIA)
        self.subscriptions[which] = made["id"]
        self.knows.began[made["id"]] = int(self.world.now)

    # Usage

    def use(self, late: bool = False) -> None:
        """Use all products now, each time by other amounts; OpenMeter is told now or later."""
        batch: Batch = []
        for customer in self.customers:
            for _, kind in USAGE:
                self.used += 1
                units = Decimal(self.used % 37 + 1) / (4 if kind == "execution" else 1)
                use = Use(int(self.world.now), units)
                self.knows.uses[customer["id"], kind].append(use)
                batch.append((use, self.cloud_event(use, customer["id"], kind)))
        self.late.append(batch)
        if not late:
            self.send_usage(-1)

    def cloud_event(self, use: Use, customer: str, kind: str) -> Record:
        """Return what OpenMeter is told of a use."""
        moment = datetime.fromtimestamp(use.at, UTC).isoformat()
        event = {"id": str(self.used), "source": "model", "specversion": "1.0", "time": moment}
        return {**event, "type": kind, "subject": customer, "data": {"duration": float(use.units)}}

    def send_usage(self, *which: int) -> None:
        """Tell OpenMeter of some of the uses that it does not know."""
        batch = [entry for n in which for entry in self.late.pop(n)]
        serving, self.world.serving = self.world.serving, True
        events = [event for _, event in batch]
        sent = self.world.clients["openmeter"].post("/api/v1/events", json=events)
        self.world.serving = serving
        assert sent.status_code == 204
        for use, _ in batch:
            use.sent = self.world.now

    def use_and_tell(self) -> None:
        """Use all products while others work, and tell OpenMeter of some late usage, too."""
        if self.world.now < self.rests_until or self.uses_left <= 0:
            return
        self.rests_until = self.world.now + 2
        self.uses_left -= 1
        self.use(late=True)
        drafts = any(invoice["status"] == "draft" for invoice in self.account.all("invoice"))
        SEEN["late usage in draft"] += drafts and len(self.late) > 1
        self.send_usage(-1, *[0] * (len(self.late) > 1))

    @rule()
    def arrive(self) -> None:
        """Let late usage arrive."""
        if self.late:
            self.send_usage(*[0] * len(self.late))

    # Time, and what becomes of subscriptions

    def state(self, which: int) -> Record:
        """Return the subscription of a customer."""
        key = self.subscriptions[which % len(self.subscriptions)]
        found: Record = self.account.get("subscription", key)
        return found

    @rule(seconds=st.sampled_from([1, 5, 59, 61, 600, HOUR, DAY]))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.advance(seconds)

    @rule(which=WHICH, seconds=BESIDE_END, late=st.booleans(), teams=TEAMS)
    def meet_at_end(self, which: int, seconds: int, late: bool, teams: list[Team]) -> None:
        """Let time pass until seconds before or after a period's end; go on beside each other.

        The products are used all around it.
        """
        end = self.state(which)["due"]
        windows_end = end - end % self.knows.window
        for instant in (windows_end - 1, windows_end, end - 601, end - 1, end):
            if self.world.now < instant < end + seconds:
                self.advance(instant - self.world.now)
                self.use(late)
        self.advance(max(0, end + seconds - self.world.now))
        self.use(late)
        self.meet(teams)

    @rule(which=WHICH)
    def cancel_later(self, which: int) -> None:
        """Cancel at the period's end, or with two intervals at the later period's end."""
        state = self.state(which)
        if state["status"] == "active":
            is_classic = state["billing_mode"] == "classic"
            form = {"cancel_at_period_end": "true"} if is_classic else {"cancel_at": LATER_END}
            self.account.update_subscription(state, form)

    @rule(which=WHICH, mode=st.sampled_from(list(SLOTS)), team=TEAM, wait=st.integers(2, HOUR))
    def come_back(self, which: int, mode: str, team: Team, wait: int) -> None:
        """Cancel a subscription at its end, and begin a new one of the customer's some time later.

        What reports its end goes on beside that.
        """
        self.cancel_later(which)
        while self.state(which)["status"] != "canceled":
            self.advance(max(1, int(self.state(which)["due"] - self.world.now)))
        self.advance(wait)
        self.subscribe(which % len(self.subscriptions), mode)
        self.use()
        SEEN["comeback"] += 1
        self.together(team)

    def reset(self, which: int) -> None:
        """Reset the billing cycle, in a second in which no period begins or ends."""
        self.account.catch_up()
        state, now = self.state(which), int(self.world.now)
        items = self.account.items(state)
        near = any(item["began"] >= now - 3 or item["end"] <= now + 1 for item in items)
        if state["status"] == "active" and not near:
            form = {"billing_cycle_anchor": "now", "proration_behavior": "always_invoice"}
            self.account.update_subscription(state, form)
            self.knows.exact[state["id"]].add(now)
            self.scheduler.note(f"reset of {state['id']}")

    def update(self, which: int) -> None:
        """Change the metadata."""
        self.account.catch_up()
        if self.state(which)["status"] != "canceled":
            form = {"metadata": {"n": str(self.names)}}
            self.account.update_subscription(self.state(which), form)

    # Processes

    @rule(which=WHICH, off=OFF)
    def restart(self, which: int, off: int) -> None:
        """Start a process anew, on a host whose clock is wrong in another way."""
        self.hosts[which] = Host(f"web {which + 1}", off)
        self.hosts[which].begin(self.window)

    @rule(teams=TEAMS)
    def meet_again(self, teams: list[Team]) -> None:
        """Go on beside each other."""
        self.meet(teams)

    def meet(self, teams: list[Team]) -> None:
        """Let one team after the other go on."""
        for team in teams:
            self.together(team)

    def set_clock(self, which: int, off: int) -> None:
        """Let a host's clock be wrong in another way while a process runs there."""
        self.hosts[which].off = off

    def together(self, team: Team) -> None:
        """Let deliveries, runs of `flask report`, usage and turns go on beside each other."""
        random, work = Random(team.number), team.work
        self.scheduler.note(f"together: {team}")
        if random.random() < UPDATED:
            self.update(random.randrange(2))
        hosts = {self.begin_work(kind, random) for kind in work}
        for kind in set(work):
            SEEN[f"at once {kind}"] += 1
        SEEN["run beside delivery"] += {"run", "delivery"} <= set(work)
        SEEN["two runs"] += sum(kind.startswith("run") for kind in work) > 1
        SEEN["two processes"] += len(hosts - {""}) > 1
        self.uses_left = MOST_USES
        self.scheduler.run(Chance(random, team.budget, *team.pace), self.use_and_tell)
        self.book()

    def begin_work(self, kind: str, random: Random) -> str:
        """Begin a piece of work; return the name of the host that does it."""
        which = random.randrange(2)
        if kind in ("delivery", "again"):
            fitting = [
                event
                for event in self.api.endpoint.events.values()
                if (event["id"] in self.delivered) == (kind == "again") and not is_ignored(event)
            ]
            if not fitting:
                return ""
            # Those of long ago seldom tell anything new.
            return self.begin_delivery(random.choice(fitting[-3:]), which, random.choice(LATER))
        if kind.startswith("run"):
            ids = [self.state(which)["id"]] if kind == "run of one" else []
            workers = random.choice([1, 2, 4])
            return self.begin_run(ids, workers, self.hosts[which].off, random)
        turns: dict[str, Callable[[], None]] = {
            "usage": lambda: self.use_some(random),
            "reset": lambda: self.at_some_time(lambda: self.reset(which), random),
            "update": lambda: self.at_some_time(lambda: self.update(which), random),
            "clock": lambda: self.at_some_time(
                lambda: self.set_clock(which, random.randint(-TOLERANCE, TOLERANCE)), random
            ),
        }
        self.start(kind, turns[kind], None)
        return ""

    def start(self, name: str, call: Callable[[], object], host: Host | None) -> str:
        """Start a task."""
        self.names += 1
        label = f"{name} {self.names}" + (f" on {host.name}" if host else "")
        self.scheduler.start(label, call, host)
        return host.name if host else ""

    def use_some(self, random: Random) -> None:
        """Use the products now and then."""
        for _ in range(3):
            self.scheduler.pause()
            self.use()
            self.scheduler.sleep(random.choice(LATER))

    def at_some_time(self, turn: Callable[[], None], random: Random) -> None:
        """Take a turn of a subscription when others have made some calls."""
        self.scheduler.sleep(random.choice(LATER))
        for _ in range(random.randrange(12)):
            self.scheduler.pause()
        turn()

    def begin_delivery(self, event: Record, which: int, seconds: int = 0) -> str:
        """Begin a delivery to a process, in some seconds."""
        host = self.hosts[which]

        def work() -> None:
            self.scheduler.sleep(seconds)
            self.deliver(event, host)

        return self.start(event["id"], work, host)

    def deliver(self, event: Record, host: Host) -> None:
        """Deliver an event; a draft's hour begins when Stripe has its answer."""
        body, signed = json.dumps(event), int(self.world.now)
        header = WebhookSignature.generate_signature_header(body, SECRET, signed)
        client = host.application.test_client()
        self.scheduler.note(f"{event['type']} of {event['created']}")
        self.scheduler.pause()
        received = self.world.now
        answer = client.post("/webhook", data=body, headers={"Stripe-Signature": header})
        self.scheduler.note(f"answers {answer.status_code} {answer.get_json()}"[:400])
        SEEN[f"answered {answer.status_code}"] += 1
        if answer.status_code == 400:
            assert received + host.off - signed > TOLERANCE, answer.text
        else:
            assert answer.status_code in (200, 500), answer.text
        self.scheduler.pause()
        if answer.status_code == 200:
            self.delivered.add(event["id"])
            self.api.accepted(event)

    def begin_run(
        self, ids: list[str], workers: int, off: float, random: Random | None = None
    ) -> str:
        """Begin a `flask report`, which is a process of its own; without `random` nothing waits."""
        host = Host(f"cron {self.names}", off)
        host.begin(self.window)

        def queue() -> None:
            self.scheduler.sleep(random.choice(QUEUE) if random else 0)

        def work() -> None:
            self.scheduler.sleep(random.choice(LATER) if random else 0)
            run = QueuedRun(with_patience(host.services), only_some=bool(ids), queue=queue)
            lock_type = type(run.lock)
            for name, value in vars(run).items():
                if isinstance(value, lock_type):
                    setattr(run, name, TurnLock(self.scheduler))
            status = run_to_exit_status(run, ids, workers)
            self.scheduler.note(f"ends with {status} failed: {run.counts['failed']}")

        return self.start("run", work, host)

    # How it works

    def waiting(self) -> list[Record]:
        """Return the events that were not taken yet, oldest first."""
        known = self.api.endpoint.events.values()
        return [event for event in known if event["id"] not in self.delivered]

    def advance(self, seconds: float) -> None:
        """Let time pass; no event waits for much more than a day."""
        target = self.world.now + seconds
        while self.world.now < target:
            for event in self.waiting():
                if event["created"] + DAY < self.world.now:
                    self.deliver_surely(event)
            step = DAY / 4 if self.waiting() else target - self.world.now
            dues = [state["due"] for state in self.account.all("subscription")]
            ends = [due for due in dues if due > self.world.now]
            self.world.move_to(min([target, self.world.now + step, *ends]))
            self.book()

    def deliver_surely(self, event: Record) -> None:
        """Deliver an event until it is taken, with others before it if it needs them."""
        for attempt in range(20):
            if event["id"] in self.delivered:
                return
            if attempt:
                self.world.move_to(self.world.now + 7)
                self.mend_clocks()
            for other in [*(self.waiting() if attempt > 1 else []), event]:
                if other["id"] not in self.delivered:
                    self.begin_delivery(other, attempt % 2)
                    self.scheduler.run()
        assert event["id"] in self.delivered, ("never taken", event)

    def mend_clocks(self) -> None:
        """Let hosts refuse no signature."""
        for host in self.hosts:
            host.off = min(host.off, TOLERANCE - 2)

    @rule()
    def deliver_all(self) -> None:
        """Deliver what waits, in order."""
        while waiting := self.waiting():
            self.deliver_surely(waiting[0])

    @rule(seconds=st.sampled_from([0, TIE - 2, TIE + 1]))
    def report(self, seconds: int) -> None:
        """Let a `flask report` run by itself, when all that was used has arrived."""
        self.arrive()
        self.advance(self.knows.openmeter_lag + seconds)
        before = max((report.query.at for report in self.world.reports), default=0.0)
        self.begin_run([], 2, self.hosts[0].off)
        self.scheduler.run()
        if self.world.now - before > TIE:
            self.mended |= {
                invoice["id"]
                for invoice in self.account.all("invoice")
                if invoice["status"] == "draft"
                and finalization(invoice) > self.world.now + self.knows.stripe_lag
            }

    def teardown(self) -> None:
        """Settle, and check all."""
        if not hasattr(self, "stack"):
            return
        try:
            self.settle()
            self.check_the_rest()
            SEEN["batch"] += self.world.batches
        finally:
            self.scheduler.close()
            self.stack.close()

    def settle(self) -> None:
        """Let all drafts become final, and report the running periods a minute after all else.

        If the history mends, the drafts are reported like that, too.
        """
        self.deliver_all()
        if self.mends:
            self.report(TIE + 1)
        while any(invoice["status"] == "draft" for invoice in self.account.all("invoice")):
            self.advance(2 * HOUR)
            self.deliver_all()
            if self.mends:
                self.report(TIE + 1)
        self.report(TIE + 1)
        self.world.move_to(self.world.now + self.knows.stripe_lag + 1)

    def book(self) -> None:
        """Check the lines of each invoice once, when it is final."""
        for subscription in self.account.all("subscription"):
            if subscription["ended_at"]:
                self.knows.exact[subscription["id"]].add(subscription["ended_at"])
        for invoice in self.account.all("invoice"):
            is_first = invoice["billing_reason"] == "subscription_create"
            if invoice["status"] != "draft" and invoice["id"] not in self.booked and not is_first:
                self.booked.add(invoice["id"])
                for fields in invoice["lines"]:
                    if is_metered(self.account.get("price", fields["price"])):
                        self.book_line(self.line(invoice, fields))

    def book_line(self, line: Line) -> None:
        """Check a line; if it is wrong, show what led to it."""
        self.lines.append(line)
        try:
            is_exact = self.knows.check_line(line, self.world.reports)
            is_mended = line.by_meter and line.invoice in self.mended
            assert is_exact or not is_mended, ("another report did not help", line)
        except AssertionError:
            self.show_trace(" ".join(line.where), line.subscription)
            raise
        SEEN["meter line" if line.by_meter else "record line"] += bool(line.quantity)
        SEEN["reset line"] += bool(line.quantity) and not line.was_draft
        SEEN["mended line"] += is_mended

    def show_trace(self, *about: str) -> None:
        """Show what the scheduler noted of some things."""
        told = (*about, "together", "reset of", "  [")
        lines = [line for line in self.scheduler.trace if any(part in line for part in told)]
        note("\n".join(lines[-120:]))

    def check_the_rest(self) -> None:
        """Check what no line shows alone, and what Stripe holds for the running periods."""
        self.knows.check_overlaps(self.lines)
        SEEN["close reports"] += self.knows.check_order(self.world.reports)
        for subscription in self.account.all("subscription"):
            if subscription["cancel_at_period_end"]:
                ends = [item["end"] for item in self.account.items(subscription)]
                self.knows.exact[subscription["id"]].add(max(ends))
            if subscription["cancel_at"]:
                self.knows.exact[subscription["id"]].add(subscription["cancel_at"])
            if subscription["status"] == "active":
                for item in self.account.items(subscription):
                    self.check_running(subscription, item)

    def line(self, invoice: Record, fields: Record) -> Line:
        """Return what a line bills, and by when it was counted."""
        price = self.account.get("price", fields["price"])
        meter = price["recurring"]["meter"]
        customer = invoice["customer"]
        name = self.account.get("meter", meter)["event_name"] if meter else ""
        finalized = int(invoice["finalized_at"])
        return Line(
            invoice["id"],
            (customer, name) if meter else (fields["item"],),
            (customer, USAGE[name != "ma"][1]),
            invoice["subscription"],
            fields["start"],
            fields["end"],
            Decimal(fields["quantity"]),
            finalized if meter else fields["end"],
            finalized > fields["end"],
        )

    def check_running(self, subscription: Record, item: Record) -> None:
        """Check that Stripe holds what was metered in an item's running period."""
        meter = self.account.get("price", item["price"])["recurring"]["meter"]
        customer = subscription["customer"]
        name = self.account.get("meter", meter)["event_name"] if meter else ""
        span = (
            self.knows.boundary(subscription["id"], item["start"], bool(meter)),
            self.knows.boundary(subscription["id"], item["end"], bool(meter)),
        )
        used = self.knows.metered((customer, USAGE[name != "ma"][1]), span)
        if meter:
            held = self.account.meters.usage(meter, customer, item["start"], item["end"])
        else:
            held = Decimal(self.account.usage(item["id"], item["start"], item["end"]))
        if held != used:
            self.show_trace(customer if meter else item["id"], subscription["id"])
        assert held == used, (f"Stripe holds {held}, {used} metered in {span}", item)


def is_ignored(event: Record) -> bool:
    """Say whether an event is of an invoice that was final at once."""
    carried = event["data"]["object"]
    return bool(carried["object"] == "invoice" and carried["status"] != "draft")


@pytest.mark.parametrize("part", range(PARTS))
def test_what_runs_beside_each_other_bills_each_unit_once(part: int) -> None:
    SEEN.clear()
    run_histories(History, part, HISTORIES // PARTS, steps=12)
    if HISTORIES >= 200:
        assert not [event for event in EXPECTED if SEEN[event] < HISTORIES / PARTS / 20]
