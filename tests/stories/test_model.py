"""Random histories of subscriptions' whole lives: each metered unit is billed once, or told.

The service and both stand-ins run in this process, without sockets, on a clock that only the
histories move. `MODEL_HISTORIES` says how many there are. For every line of every final invoice
that bills metered usage: its quantity is what was metered in its period for its item and price,
or less by exactly what came too late for Stripe and was warned of; never more; and no unit is on
two lines. `model_oracle` decides it without asking the service.

The histories keep to these rules:

- Each event is taken within three days, for so long Stripe sends it.
- Two reports that say different things never share a second, and no turn falls into a period's
  last twenty: which of two reports of a second counts is unknown.
- The event of an item's change comes in its order, before the item's period ends or the item goes
  or, if anything was reported since, changes again: only this event says when a price changed.
- A draft's event comes before an item changes, goes or is switched, and not again after that:
  nothing else says whether the item went on where the draft's period ended.
- An item is added later than an hour after a period began: a younger one counts as made with the
  period, as schedules make theirs.
- A schedule's switch is of an item that was neither added nor changed in the period that it
  ends, and between its planning and its coming the subscription's items stay.
- Prices name their meter of OpenMeter's: of an item that is gone only the price can be read.
- What runs beside a customer's running subscription is over or stopped, and stays so: two that
  run would bill the same usage twice.
- Intervals are mixed for endpoints of basil or newer: older events show one period for all items.
"""

import json
import os
import time
from collections import Counter
from contextlib import ExitStack
from copy import deepcopy
from decimal import Decimal
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from stripe import WebhookSignature

import app
from billing.clock import FRESH_SECONDS
from fakes import openmeter_api, stripe_api
from fakes.stripe_billing import Account, Record
from fakes.stripe_prices import is_metered
from tests.conftest import ACACIA, DAY, ENDIVE, KEY, SECRET
from tests.stories.model_oracle import HOUR, Delivery, Line, Loss, Oracle, Tenure, Use
from tests.stories.model_runs import PARTS, run_histories
from tests.stories.model_world import DROPPED, Clock, Wire, in_one_process

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "400"))
HOLD = 72 * HOUR
# An event that is older is read again; younger ones come in order here (docs/billing.md).
FRESH = FRESH_SECONDS

# What prices there are: by kind, the Billing Meter behind it and its amount; F is licensed.
KINDS = {
    "A": ("ma", 10),
    "B": ("ma", 20),
    "C": ("mc", 10),
    "Z": ("ma", 0),
    "D": ("md", 10),
    "E": ("md", 20),
    "R": ("", 10),
    "S": ("", 20),
    "F": (None, 500),
}
# What a slot of a subscription can have: all of its prices bill the usage of one OpenMeter meter.
POOLS = {
    "classic": ("ABCZF", "RSDF"),
    "flexible": ("ABCZF", "DEF"),
}
USAGE = (("m1", "execution"), ("m2", "other"))
INTERVALS = [("month", "year"), ("day", "week"), ("week", "month"), ("month", "month")]
READINGS = {
    "last_by": ["timestamp", "arrival"],
    "tie": ["first", "last"],
    "boundary": ["earlier", "later"],
    "changed_start": ["stays", "moves"],
    "changed_recount": ["frozen", "recounted"],
    "switch_reason": ["subscription_cycle", "subscription_update"],
    "trial_line": ["absent", "zero"],
}
BEHAVIORS = st.sampled_from(["create_prorations", "always_invoice", "none"])
WHICH, SLOT = st.integers(0, 1), st.integers(0, 1)
KIND = st.integers(0, 10)
WAIT = st.sampled_from([2, 61, 1_801, HOUR + 7, 3 * HOUR, DAY + 11])


# How often each thing happened: a history in which nothing is billed shows nothing.
SEEN: Counter[str] = Counter()
EXPECTED = (
    "meter subscription_cycle",
    "meter subscription_update",
    "record subscription_cycle",
    "record subscription_update",
    "customer.subscription.deleted 200",
    "customer.subscription.updated 500",
    "invoice.created 500",
    "again",
    "addition",
    "anchor moved by itself",
    "billed after trial",
    "billed from addition",
    "billed from change",
    "billed from swap",
    "billed from switch",
    "billed until change",
    "billed until switch",
    "cancel_at",
    "cancellation",
    "change",
    "comeback",
    "incomplete",
    "interval",
    "mixed intervals billed",
    "past_due",
    "removal",
    "reset",
    "resumption",
    "swap",
    "switch of price",
    "switch of remove",
    "told cancellation",
    "told change",
    "told removal",
    "trial",
    "trial end",
)
# Those that happen less often.
RARE = (
    "billed until swap",
    "paused",
    "switch of item",
    "told swap",
)


class History(RuleBasedStateMachine):
    """One random history."""

    @initialize(
        version=st.sampled_from([ACACIA, ENDIVE]),
        intervals=st.sampled_from(INTERVALS),
        modes=st.tuples(*[st.sampled_from(["classic", "flexible"])] * 2),
        start=st.tuples(
            st.integers(0, 2 * HOUR), st.sampled_from([0, 0, 0, 3 * HOUR + 17, 2 * DAY + 5])
        ),
        readings=st.fixed_dictionaries(
            {name: st.sampled_from(known) for name, known in READINGS.items()}
        ),
    )
    def begin(
        self,
        version: str,
        intervals: tuple[str, str],
        modes: tuple[str, str],
        start: tuple[int, int],
        readings: dict[str, str],
    ) -> None:
        begin, trial = start
        self.failed: list[Record] = []
        self.clock = Clock()
        self.clock.now += begin
        self.stripe_app, self.openmeter_app = stripe_api.create_app(), openmeter_api.create_app()
        wire = Wire({"stripe": self.stripe_app, "openmeter": self.openmeter_app})
        self.stack = ExitStack()
        self.stack.enter_context(in_one_process(self.clock, wire))
        self.api: stripe_api.Api = self.stripe_app.extensions["api"]
        self.account: Account = self.api.account
        self.account.meters.readings |= readings
        endpoint = {"url": "http://service", "secret": SECRET, "api_version": version, "hold": True}
        self.api.endpoint.configure(endpoint, ENDIVE)
        self.wire, self.intervals, self.used = wire, intervals, 0
        self.mixes = version != ACACIA
        self.oracle = Oracle(readings["tie"], whole_quantities=version == ACACIA)
        self.delivered, self.booked, self.drafts = set[str](), set[str](), set[str]()
        self.unsent: list[tuple[Use, Record]] = []
        self.late: list[tuple[Use, Record]] = []
        self.changes: dict[str, list[str]] = {}
        self.planned: dict[str, Record] = {}
        self.turned: dict[str, int] = {}
        self.quiet_until = 0
        self.restart()
        self.make_catalog()
        self.customers = [self.account.add("customer", "cus", test_clock=None) for _ in modes]
        self.subscriptions: list[str] = []
        self.slots: list[list[str]] = [["", ""], ["", ""]]
        self.use_all()
        self.clock.now += 1
        for which, mode in enumerate(modes):
            self.subscriptions.append("")
            self.subscribe(which, mode, trial if which else 0)
        self.check_invoices()

    def make_catalog(self) -> None:
        """Make what is sold: prices of each kind in two intervals."""
        other = {"slug": "m2", "aggregation": "SUM", "eventType": "other"}
        self.wire.clients["openmeter"].post(
            "/api/v1/meters", json={**other, "valueProperty": "$.duration"}
        )
        last = {"default_aggregation": {"formula": "last"}}
        self.meters = {
            name: self.account.meters.create({"event_name": name, **last}, ENDIVE)["id"]
            for name in ("ma", "mc", "md")
        }
        product = self.account.add("product", "prod", name="Epsilon")["id"]
        self.prices: dict[tuple[str, str], str] = {}
        for kind, (meter, amount) in KINDS.items():
            for interval in dict.fromkeys(self.intervals):
                recurring: Record = {"interval": interval}
                if meter is not None:
                    recurring["usage_type"] = "metered"
                if meter:
                    recurring["meter"] = self.meters[meter]
                form = {"product": product, "unit_amount": amount, "recurring": recurring}
                form["metadata"] = {"om_meter_id": USAGE[kind in "DERS"][0]}
                made = self.account.create_price(form, ENDIVE if meter else ACACIA)
                self.prices[kind, interval] = made["id"]

    def subscribe(self, which: int, mode: str, trial: int) -> None:
        """Start a subscription with an item in each slot; in flexible, of two intervals."""
        second = self.intervals[mode == "flexible" and self.mixes]
        kinds = [("A", self.intervals[0]), ("R" if mode == "classic" else "D", second)]
        form = {
            "customer": self.customers[which]["id"],
            "billing_mode": {"type": mode},
            "items": [self.new_entry(slot, *kind) for slot, kind in enumerate(kinds)],
        }
        if trial:
            form["trial_end"] = int(self.clock.now) + trial
        made = self.account.create_subscription(form, ACACIA)
        self.subscriptions[which], self.slots[which] = made["id"], made["items"][:]
        now = int(self.clock.now)
        if trial:
            self.oracle.trials[made["id"]].append((now, now + trial))
            self.oracle.exact[made["id"]].add(now + trial)
        for slot in (0, 1):
            self.note_tenure(which, slot, now, "start")

    def new_entry(self, slot: int, kind: str, interval: str) -> Record:
        """Return the entry of a new item."""
        price = self.prices[kind, interval]
        return {"price": price, "metadata": {"om_meter_id": USAGE[slot][0]}}

    @rule()
    def restart(self) -> None:
        """Start the service anew; it keeps nothing."""
        config = {
            "STRIPE_KEY": KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": "http://stripe",
            "STRIPE_RATE_SHARE": "0",
            "OPENMETER_URL": "http://openmeter",
        }
        self.client = app.create_app(config).test_client()

    # Usage

    def use_all(self, late: bool = False) -> None:
        """Use all products now, each time by other amounts.

        Which of two reports within a second counts is unknown: here they say the same.
        """
        if self.clock.now < self.quiet_until:
            return
        for customer in self.customers:
            for _, kind in USAGE:
                self.use(customer["id"], kind, self.used % 37 + 1, late)

    def use(self, customer: str, kind: str, quarters: int, late: bool) -> None:
        """Use a product now; only usage records are about whole units."""
        units = Decimal(quarters) / 4 if kind == "execution" else Decimal(quarters)
        now = int(self.clock.now)
        self.used += 1
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        event: Record = {
            "id": str(self.used),
            "source": "model",
            "specversion": "1.0",
            "time": moment,
        }
        event |= {"type": kind, "subject": customer, "data": {"duration": float(units)}}
        use = Use(now, units)
        self.oracle.uses[customer, kind].append(use)
        (self.late if late else self.unsent).append((use, event))

    @rule()
    def use_late(self) -> None:
        """Use all products, and tell OpenMeter later."""
        self.use_all(late=True)

    @rule()
    def arrive(self) -> None:
        """Let late usage arrive."""
        if self.late:
            self.advance(2)
            self.unsent += self.late
            self.late.clear()

    def send_usage(self) -> None:
        """Send OpenMeter what was used so far."""
        client, turn = self.wire.clients["openmeter"], self.oracle.next_turn()
        if not self.unsent:
            return  # OpenMeter refuses an empty list
        with mock.patch("fakes.serving.Faults._take", return_value=None):
            sent = client.post("/api/v1/events", json=[event for _, event in self.unsent])
        assert sent.status_code == 204
        for use, _ in self.unsent:
            use.arrived = turn
        self.unsent.clear()

    # What becomes of subscriptions

    def state(self, which: int) -> Record:
        """Return the subscription of a customer."""
        return self.account.get("subscription", self.subscriptions[which])

    def ready(
        self, which: int, wait: int, statuses: tuple[str, ...] = ("active",), ends: bool = True
    ) -> bool:
        """Let time pass; say whether a subscription can take a turn then.

        One that `ends` its periods comes after the events of their changes.
        """
        self.advance(max(2, wait))
        state, now = self.state(which), int(self.clock.now)
        if state["status"] not in statuses:
            return False
        items = self.account.items(state)
        near = any(item["began"] == now or item["end"] - 20 <= now for item in items)
        if near:
            return False
        if ends or self.was_reported_since_change(state["id"]):
            self.deliver_changes(state["id"])
        self.send_usage()
        if self.quiet_until > now:
            self.advance(2)
            return self.state(which)["status"] in statuses and not any(
                item["began"] == int(self.clock.now) or item["end"] - 20 <= int(self.clock.now)
                for item in self.account.items(self.state(which))
            )
        return True

    def was_reported_since_change(self, subscription: str) -> bool:
        """Say whether anything was reported since a change whose event was not taken yet."""
        changes = self.waiting_changes(subscription)
        since = min((self.api.endpoint.events[key]["created"] for key in changes), default=None)
        return since is not None and any(
            delivery.subscription == subscription and delivery.at >= since
            for delivery in self.oracle.deliveries
        )

    def turn(self, which: int, form: Record, name: str) -> None:
        """Update a subscription, and note where that ended periods."""
        state = self.state(which)
        anchor, known = state["anchor"], set(self.api.endpoint.events)
        self.account.catch_up()
        self.account.update_subscription(state, deepcopy(form))
        if state["anchor"] != anchor:
            self.oracle.exact[state["id"]].add(int(self.clock.now))
            SEEN["anchor moved by itself"] += "billing_cycle_anchor" not in form
        fresh = [key for key in self.api.endpoint.events if key not in known]
        self.changes.setdefault(state["id"], []).extend(
            key for key in fresh if self.api.endpoint.events[key]["type"].endswith("updated")
        )
        SEEN[name] += 1
        if "items" in form:
            self.turned[state["id"]] = int(self.clock.now)
        self.check_invoices()

    @rule(which=WHICH, n=st.integers(0, 10**6))
    def update(self, which: int, n: int) -> None:
        """Change the metadata."""
        self.advance(1)
        state = self.state(which)
        self.account.update_subscription(state, {"metadata": {"n": str(n)}})

    @rule(which=WHICH, wait=st.integers(1, 3 * HOUR))
    def reset(self, which: int, wait: int) -> None:
        """Reset the billing cycle, in a second in which no period began or was reported."""
        if self.ready(which, wait):
            form = {"billing_cycle_anchor": "now", "proration_behavior": "always_invoice"}
            self.turn(which, form, "reset")

    @rule(which=WHICH, seconds=st.integers(20, 290))
    def reset_twice_before_the_end(self, which: int, seconds: int) -> None:
        """Reset shortly before a period ends, and again before it would have."""
        self.advance(max(0, int(self.state(which)["due"] - seconds - self.clock.now)))
        self.reset(which, 1)
        self.deliver_all()
        self.reset(which, 10)

    @rule(which=WHICH, wait=st.integers(1, 3 * HOUR), bill=st.booleans())
    def cancel(self, which: int, wait: int, bill: bool) -> None:
        """Cancel at once, with or without an invoice."""
        if self.ready(which, wait, ("active", "trialing", "paused", "past_due")):
            state = self.state(which)
            if state["status"] in ("active", "past_due"):
                self.note_losses(which, state["items"], "cancellation")
            form = {"invoice_now": "true"} if bill else {}
            self.account.cancel_subscription(state, form)
            self.planned.pop(state["id"], None)
            SEEN["cancellation"] += 1
            self.check_invoices()

    @rule(which=WHICH)
    def cancel_later(self, which: int) -> None:
        """Cancel at the period's end."""
        if self.state(which)["status"] == "active":
            self.account.update_subscription(self.state(which), {"cancel_at_period_end": "true"})

    @rule(which=WHICH, wait=WAIT, ahead=st.integers(20, 5 * DAY))
    def cancel_at(self, which: int, wait: int, ahead: int) -> None:
        """Cancel at a date, which resets the anchor in classic."""
        if self.ready(which, wait):
            form = {"cancel_at": int(self.clock.now) + ahead}
            if form["cancel_at"] != self.state(which)["end"]:
                self.turn(which, form, "cancel_at")

    @rule(which=WHICH, wait=WAIT, status=st.sampled_from(["paused", "incomplete", "past_due"]))
    def stop(self, which: int, wait: int, status: str) -> None:
        """Let a subscription be paused, incomplete or past due."""
        if self.ready(which, wait):
            self.account.set_status(self.state(which), status)
            SEEN[status] += 1

    @rule(which=WHICH, wait=WAIT)
    def resume(self, which: int, wait: int) -> None:
        """Let a subscription be active again."""
        self.advance(max(2, wait))
        state = self.state(which)
        if state["status"] in ("paused", "incomplete", "past_due"):
            anchor = state["anchor"]
            self.account.set_status(state, "active")
            if state["anchor"] != anchor:
                self.oracle.exact[state["id"]].add(int(self.clock.now))
            SEEN["resumption"] += 1

    @rule(which=WHICH, wait=WAIT, mode=st.sampled_from(["classic", "flexible"]))
    def come_back(self, which: int, wait: int, mode: str) -> None:
        """Let a customer begin a new subscription when the former one is over or stopped."""
        self.advance(max(2, wait))
        if self.state(which)["status"] in ("canceled", "paused", "incomplete"):
            if self.state(which)["status"] == "incomplete":
                self.account.set_status(self.state(which), "incomplete_expired")
            SEEN["comeback"] += 1
            self.subscribe(which, mode, 0)

    # Items

    def kind_for(self, which: int, slot: int, n: int, without: str = "") -> str:
        """Return a kind of price that a slot can have, other than some."""
        pool = POOLS[self.state(which)["billing_mode"]][slot]
        left = [kind for kind in pool if kind not in without]
        return left[n % len(left)]

    def held(self, which: int, slot: int) -> Record | None:
        """Return the item in a slot."""
        return self.account.objects["subscription_item"].get(self.slots[which][slot])

    def kind_and_interval(self, item: Record) -> tuple[str, str]:
        """Return what kind of price an item has, and its interval."""
        return next(key for key, price in self.prices.items() if price == item["price"])

    def note_tenure(self, which: int, slot: int, at: int, by: str) -> None:
        """Note that an item got a metered price; its former one ends."""
        key = self.slots[which][slot]
        item = self.account.get("subscription_item", key)
        former, price = self.oracle.running(key), self.account.get("price", item["price"])
        meter = price["recurring"]["meter"]
        if former:
            if not meter and not former.by_meter and is_metered(price) and by == "change":
                former.prices.add(price["id"])
                return
            former.end, former.ended_by = at, by
        if is_metered(price):
            usage = (self.customers[which]["id"], USAGE[slot][1])
            self.oracle.tenures.append(
                Tenure(key, {price["id"]}, self.subscriptions[which], usage, bool(meter), at, by)
            )

    def note_losses(self, which: int, items: list[str], by: str) -> None:
        """Note that the running periods of items end now, perhaps without an invoice."""
        for key in items:
            tenure = self.oracle.running(key)
            if tenure:
                began = self.account.get("subscription_item", key)["began"]
                start = max(began, tenure.start)
                self.oracle.losses.append(Loss(tenure, start, int(self.clock.now), by))

    def can_change(self, which: int, wait: int, ends: bool = False) -> bool:
        """Say whether the items of a subscription can change after a time."""
        ready = self.ready(which, wait, ("active", "trialing"), ends)
        if not ready or self.subscriptions[which] in self.planned:
            return False
        if self.deliver_drafts(self.subscriptions[which]):
            self.advance(2)
            return self.can_change(which, 2, ends)
        return True

    def deliver_drafts(self, subscription: str) -> int:
        """Deliver the events of a subscription's drafts; return how many waited."""
        waiting = [
            event
            for event in self.waiting_invoices()
            if self.subscription_of(event) == subscription
        ]
        for event in waiting:
            self.deliver_surely(event)
        return len(waiting)

    @rule(which=WHICH, slot=SLOT, n=KIND, wait=WAIT, behavior=BEHAVIORS)
    def change(self, which: int, slot: int, n: int, wait: int, behavior: str) -> None:
        """Give an item another price of the same interval; one from zero resets in classic."""
        item = self.held(which, slot)
        from_zero = item is not None and self.kind_and_interval(item)[0] == "Z"
        if not self.can_change(which, wait, from_zero):
            return
        if (item := self.held(which, slot)) is None:
            return
        kind, interval = self.kind_and_interval(item)
        price = self.prices[self.kind_for(which, slot, n, kind), interval]
        self.change_prices(which, {slot: price}, behavior, "change")

    @rule(which=WHICH, slot=SLOT, wait=WAIT, behavior=BEHAVIORS)
    def change_interval(self, which: int, slot: int, wait: int, behavior: str) -> None:
        """Give an item the same price in another interval; in classic, all items."""
        state = self.state(which)
        is_classic = state["billing_mode"] == "classic"
        if not self.can_change(which, wait, is_classic) or self.held(which, slot) is None:
            return
        mixes = self.mixes and not is_classic
        slots = (slot,) if mixes else (0, 1)
        prices = {}
        for n in slots:
            if item := self.held(which, n):
                kind, interval = self.kind_and_interval(item)
                other = self.intervals[interval == self.intervals[0]]
                prices[n] = self.prices[kind, other]
        if self.intervals[0] != self.intervals[1] and not state["cancel_at_period_end"]:
            self.change_prices(which, prices, behavior, "interval")

    def change_prices(self, which: int, prices: dict[int, str], behavior: str, name: str) -> None:
        """Give items of a subscription other prices."""
        entries = [
            {"id": self.slots[which][slot], "price": price} for slot, price in prices.items()
        ]
        gone = [
            self.slots[which][slot]
            for slot, price in prices.items()
            if not self.goes_over(self.slots[which][slot], price)
        ]
        self.note_losses(which, gone, "change")
        form = {"items": entries, "proration_behavior": behavior}
        self.turn(which, form, name)
        for slot in prices:
            self.note_tenure(which, slot, int(self.clock.now), "change")

    def goes_over(self, item: str, price: str) -> bool:
        """Say whether an item's usage goes over to another price: both are without a meter."""
        tenure, other = self.oracle.running(item), self.account.get("price", price)
        is_record = is_metered(other) and not other["recurring"]["meter"]
        return tenure is not None and not tenure.by_meter and is_record

    @rule(which=WHICH, slot=SLOT, kinds=st.tuples(KIND, KIND), wait=WAIT, behavior=BEHAVIORS)
    def change_and_back(
        self, which: int, slot: int, kinds: tuple[int, int], wait: int, behavior: str
    ) -> None:
        """Give an item another price and then the former or a third one."""
        for n in kinds:
            self.change(which, slot, n, wait, behavior)

    @rule(which=WHICH, slot=SLOT, wait=WAIT, behavior=BEHAVIORS)
    def remove(self, which: int, slot: int, wait: int, behavior: str) -> None:
        """Remove an item, unless it is the last one."""
        if not self.can_change(which, wait, True) or self.held(which, slot) is None:
            return
        if len(self.state(which)["items"]) > 1:
            key = self.slots[which][slot]
            self.note_losses(which, [key], "removal")
            entry = {"id": key, "deleted": "true"}
            self.turn(which, {"items": [entry], "proration_behavior": behavior}, "removal")
            self.end_tenure(which, slot, "removal")

    def end_tenure(self, which: int, slot: int, by: str) -> None:
        """Note that an item is gone."""
        if tenure := self.oracle.running(self.slots[which][slot]):
            tenure.end, tenure.ended_by = int(self.clock.now), by
        self.slots[which][slot] = ""

    @rule(which=WHICH, slot=SLOT, n=KIND, wait=WAIT, behavior=BEHAVIORS)
    def add(self, which: int, slot: int, n: int, wait: int, behavior: str) -> None:
        """Add an item to an empty slot; in flexible of any interval."""
        if not self.can_change(which, wait) or self.held(which, slot) is not None:
            return
        self.put(which, slot, n, behavior, "addition")

    @rule(which=WHICH, slot=SLOT, n=KIND, wait=WAIT, behavior=BEHAVIORS)
    def swap(self, which: int, slot: int, n: int, wait: int, behavior: str) -> None:
        """Remove an item and add another one in one call."""
        if self.can_change(which, wait, True) and self.held(which, slot) is not None:
            self.put(which, slot, n, behavior, "swap")

    def put(self, which: int, slot: int, n: int, behavior: str, name: str) -> None:
        """Put a new item into a slot, in place of the one that is there."""
        state = self.state(which)
        old = self.account.items(state)
        if any(int(self.clock.now) <= item["began"] + HOUR + 2 for item in old):
            return
        interval = self.kind_and_interval(old[0])[1]
        if state["billing_mode"] == "flexible" and not state["cancel_at_period_end"]:
            interval = self.intervals[n % 2] if self.mixes else interval
        entries = [self.new_entry(slot, self.kind_for(which, slot, n), interval)]
        if key := self.slots[which][slot]:
            entries.append({"id": key, "deleted": "true"})
            self.note_losses(which, [key], name)
        known = set(state["items"])
        self.turn(which, {"items": entries, "proration_behavior": behavior}, name)
        self.end_tenure(which, slot, name)
        self.slots[which][slot] = next(key for key in state["items"] if key not in known)
        self.note_tenure(which, slot, int(self.clock.now), name)

    # Schedules and trials

    @rule(which=WHICH, slot=SLOT, n=KIND, how=st.sampled_from(["price", "item", "remove"]))
    def plan_switch(self, which: int, slot: int, n: int, how: str) -> None:
        """Let a schedule switch an item's price, or the item, at the renewal."""
        state, item = self.state(which), self.held(which, slot)
        if state["status"] != "active" or item is None or state["id"] in self.planned:
            return
        tenure = self.oracle.running(item["id"])
        is_new = tenure is None or tenure.start > item["began"]
        if is_new or item["changed"] or item["end"] != state["end"] or state["cancel_at"]:
            return
        kind, interval = self.kind_and_interval(item)
        other = self.kind_for(which, slot, n, kind)
        if how == "price":
            entries: list[Record] = [{"id": item["id"], "price": self.prices[other, interval]}]
        else:
            entries = [{"id": item["id"], "deleted": "true"}]
        if how == "item":
            entries.append(self.new_entry(slot, other, interval))
        if how == "remove" and len(state["items"]) < 2:
            return
        self.account.switch_at_renewal(state, entries)
        self.planned[state["id"]] = {"which": which, "slot": slot, "how": how}

    def note_switches(self) -> None:
        """Note the switches that have come."""
        for key, plan in list(self.planned.items()):
            state = self.account.get("subscription", key)
            if state["status"] == "canceled":
                del self.planned[key]
            elif state["switch"] is None:
                del self.planned[key]
                which, slot, how = plan["which"], plan["slot"], plan["how"]
                SEEN[f"switch of {how}"] += 1
                self.turned[key] = int(self.clock.now)
                self.changes.setdefault(key, []).extend(
                    event["id"]
                    for event in self.known()
                    if event["data"]["object"]["id"] == key
                    and event["type"] == "customer.subscription.updated"
                    and event["created"] == int(self.clock.now)
                )
                if how != "price":
                    self.end_tenure(which, slot, "switch")
                if how == "item":
                    self.slots[which][slot] = state["items"][-1]
                if how != "remove":
                    self.note_tenure(which, slot, int(self.clock.now), "switch")

    @rule(which=WHICH, wait=WAIT, seconds=st.integers(20, 3 * DAY))
    def begin_trial(self, which: int, wait: int, seconds: int) -> None:
        """Begin a trial in mid-period."""
        if self.can_change(which, wait, True) and self.state(which)["status"] == "active":
            state, now = self.state(which), int(self.clock.now)
            if state["cancel_at"] or state["cancel_at_period_end"]:
                return
            self.note_losses(which, state["items"], "trial")
            self.oracle.exact[state["id"]] |= {now, now + seconds}
            self.turn(which, {"trial_end": now + seconds}, "trial")
            self.oracle.trials[state["id"]].append((now, now + seconds))

    @rule(which=WHICH, wait=WAIT)
    def end_trial(self, which: int, wait: int) -> None:
        """End a trial now."""
        if self.can_change(which, wait, True) and self.state(which)["status"] == "trialing":
            state, now = self.state(which), int(self.clock.now)
            trials = self.oracle.trials[state["id"]]
            self.oracle.exact[state["id"]].discard(trials[-1][1])
            trials[-1] = (trials[-1][0], now)
            self.oracle.exact[state["id"]].add(now)
            self.turn(which, {"trial_end": "now"}, "trial end")

    # Two turns that belong together, so that both happen often enough

    @rule(
        which=WHICH, slot=SLOT, n=KIND, how=st.sampled_from(["price", "item", "remove"]), wait=WAIT
    )
    def switch_at_renewal(self, which: int, slot: int, n: int, how: str, wait: int) -> None:
        """Let a schedule switch an item, and the renewal come."""
        self.plan_switch(which, slot, n, how)
        if self.subscriptions[which] in self.planned:
            self.renew(which, wait, broken=False)

    @rule(which=WHICH, wait=WAIT, status=st.sampled_from(["paused", "incomplete", "past_due"]))
    def stop_and_resume(self, which: int, wait: int, status: str) -> None:
        """Let a subscription be stopped, and go on."""
        self.stop(which, wait, status)
        self.resume(which, wait)

    @rule(which=WHICH, slot=SLOT, n=KIND, wait=WAIT, behavior=BEHAVIORS)
    def remove_and_add(self, which: int, slot: int, n: int, wait: int, behavior: str) -> None:
        """Remove an item, and add another one later."""
        self.remove(which, slot, wait, behavior)
        self.add(which, slot, n, max(wait, HOUR + 7), behavior)

    @rule(which=WHICH, wait=WAIT, bill=st.booleans(), mode=st.sampled_from(list(POOLS)))
    def cancel_and_come_back(self, which: int, wait: int, bill: bool, mode: str) -> None:
        """Cancel a subscription, and begin another one."""
        self.cancel(which, wait, bill)
        self.come_back(which, wait, mode)

    @rule(which=WHICH, wait=WAIT)
    def try_and_buy(self, which: int, wait: int) -> None:
        """Begin a trial and end it."""
        self.begin_trial(which, wait, 2 * DAY)
        self.end_trial(which, wait)

    # Faults and deliveries

    @rule(
        where=st.sampled_from(["stripe", "openmeter"]),
        skip=st.integers(0, 4),
        times=st.integers(1, 4),
        after=st.booleans(),
        status=st.sampled_from([503, 429, 409, DROPPED]),
    )
    def fail_later(self, where: str, **fault: Any) -> None:
        """Let some later calls fail, before or after they took effect."""
        self.wire.clients[where].post("/_fake/faults", json=fault)

    @rule()
    def mend(self) -> None:
        """Let calls succeed again."""
        for client in self.wire.clients.values():
            client.delete("/_fake/faults")

    @rule(data=st.data(), again=st.booleans())
    def deliver_one(self, data: st.DataObject, again: bool) -> None:
        """Deliver an event that waits, late and in any order, or one that was taken before."""
        self.advance(FRESH + 1)
        waiting = [key for key in self.api.endpoint.events if (key in self.delivered) == again]
        if not waiting:
            return
        key = data.draw(st.sampled_from(waiting))
        if again and self.is_of_changed_draft(key):
            return
        for changes in self.changes.values():
            if key in changes and not again:
                key = next(change for change in changes if change not in self.delivered)
        self.deliver(self.api.endpoint.events[key])

    def is_of_changed_draft(self, key: str) -> bool:
        """Say whether an event is a draft's whose subscription's items have changed since."""
        event = self.api.endpoint.events[key]
        if event["type"] != "invoice.created":
            return False
        invoice = self.account.get("invoice", event["data"]["object"]["id"])
        turned = self.turned.get(self.subscription_of(event), 0)
        return bool(invoice["status"] == "draft" and turned > event["created"])

    @rule()
    def deliver_all(self) -> None:
        """Deliver what waits, in order and at once; no change before one that was not taken."""
        for event in self.known():
            waiting = self.waiting_changes(self.subscription_of(event))
            is_late = event["id"] in waiting[1:]
            if event["id"] not in self.delivered and not is_late:
                self.deliver(event)

    @rule(seconds=st.sampled_from([2, 600, HOUR, 5 * HOUR, 2 * DAY]))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.advance(seconds)

    @rule(which=WHICH, offset=st.integers(0, 2 * HOUR), broken=st.booleans())
    def renew(self, which: int, offset: int, broken: bool) -> None:
        """Let time pass until after the end of a period, and use the product all around it."""
        end = self.state(which)["due"]
        for instant in (end - 2 * HOUR, end - end % HOUR - 1, end - end % HOUR, end - 1, end):
            self.advance(max(0, int(instant - self.clock.now)))
        self.advance(max(0, int(end + offset - self.clock.now)))
        if broken:
            self.fail_later("openmeter", skip=0, times=4, after=False, status=503)
            self.deliver_all()
            self.mend()

    @rule(which=WHICH, seconds=st.sampled_from([20, 600, 2_400]))
    def approach(self, which: int, seconds: int) -> None:
        """Let time pass until shortly before the end of a period."""
        self.advance(max(0, int(self.state(which)["due"] - seconds - self.clock.now)))

    # How it works

    def known(self) -> list[Record]:
        """Return all events so far, oldest first."""
        return list(self.api.endpoint.events.values())

    def advance(self, seconds: int) -> None:
        """Let time pass; no event waits for longer than it may."""
        target = self.clock.now + seconds
        self.use_all()
        steps = 0
        while self.clock.now < target:
            steps += 1
            assert steps < 1000, ("time stands still", self.clock.now, target)
            self.deliver_due(target)
            now = self.clock.now
            dues = [state["due"] for state in self.account.all("subscription")]
            self.clock.now = min([target, *(due for due in dues if due > now)])
            if len(self.delivered) < len(self.api.endpoint.events):
                self.clock.now = min(self.clock.now, max(target, now), now + DAY)
            self.account.catch_up()
            self.note_switches()
            self.check_invoices()
        self.use_all()

    def waiting_invoices(self) -> list[Record]:
        """Return the events of drafts that were not taken yet."""
        return [
            event
            for event in self.known()
            if event["type"] == "invoice.created" and event["id"] not in self.delivered
        ]

    def waiting_changes(self, subscription: str) -> list[str]:
        """Return the events of changes that were not taken yet."""
        changes = self.changes.get(subscription, [])
        return [key for key in changes if key not in self.delivered]

    def deliver_due(self, target: float) -> None:
        """Deliver what must not wait any longer, before time passes."""
        next_step = min(target, self.clock.now + DAY)
        for subscription in self.changes:
            changes = self.waiting_changes(subscription)
            if changes:
                state = self.account.get("subscription", subscription)
                ends = [item["end"] for item in self.account.items(state)]
                is_old = self.api.endpoint.events[changes[0]]["created"] + DAY < self.clock.now
                if is_old or min(ends) - 120 <= next_step:
                    self.deliver_changes(subscription)
        for subscription in list(self.planned):
            if self.account.get("subscription", subscription)["end"] <= next_step:
                self.deliver_drafts(subscription)
        for event in self.known():
            if event["created"] + DAY < self.clock.now and event["id"] not in self.delivered:
                self.deliver_surely(event)

    def deliver_changes(self, subscription: str) -> None:
        """Deliver the changes of a subscription, with what is so fresh that it comes in order."""
        changes = self.waiting_changes(subscription)
        if changes:
            for event in self.known():
                is_fresh = event["created"] + FRESH >= self.clock.now
                is_its = event["data"]["object"]["id"] == subscription
                if event["id"] in changes or (is_fresh and is_its):
                    self.deliver_surely(event)

    def deliver_surely(self, event: Record) -> None:
        """Deliver an event that must not wait any longer."""
        if event["id"] not in self.delivered:
            self.mend()
            self.deliver(event)
            if event["id"] not in self.delivered:
                # A change followed so fast that Stripe refuses what this one says, or the event
                # of an item's change has to come first.
                self.clock.now += FRESH + 1
                for other in self.known():
                    its = self.subscription_of(other) == self.subscription_of(event)
                    if its and other["id"] not in self.delivered and other is not event:
                        self.deliver(other)
                self.deliver(event)
            assert event["id"] in self.delivered, (self.failed, event)

    def deliver(self, event: Record) -> None:
        """Deliver an event and note what the answer says was reported.

        What a change lets a price count is other than before: not two such reports in a second.
        """
        if self.is_change(event):
            changes = self.changes[self.subscription_of(event)]
            latest = max(self.api.endpoint.events[key]["created"] for key in changes)
            self.clock.now = max(self.clock.now, latest + 2, self.quiet_until - 1)
        assert self.oracle.turn < 4_000, ("too many deliveries", event)
        self.send_usage()
        body = json.dumps(event)
        header = WebhookSignature.generate_signature_header(body, SECRET, int(self.clock.now))
        answer = self.client.post("/webhook", data=body, headers={"Stripe-Signature": header})
        assert answer.status_code in (200, 500), answer.text
        SEEN[f"{event['type']} {answer.status_code}"] += 1
        SEEN["again"] += event["id"] in self.delivered
        if answer.status_code == 200:
            self.delivered.add(event["id"])
            self.api.accepted(event)
        said = answer.get_json()
        self.oracle.deliveries.append(
            Delivery(
                self.oracle.next_turn(),
                int(self.clock.now),
                event["id"],
                event["type"],
                self.subscription_of(event),
                answer.status_code,
                said.get("reported", []),
                said.get("warnings", []),
            )
        )
        self.failed = said.get("failed", [])
        self.quiet_until = int(self.clock.now) + 2

    def subscription_of(self, event: Record) -> str:
        """Return the id of the subscription that an event is of."""
        key = str(event["data"]["object"]["id"])
        if event["type"] == "invoice.created":
            return str(self.account.get("invoice", key)["subscription"])
        return key

    def is_change(self, event: Record) -> bool:
        """Say whether an event is of a change of an item."""
        return any(event["id"] in changes for changes in self.changes.values())

    def check_invoices(self) -> None:
        """Note each invoice once, when it is final."""
        for invoice in self.account.all("invoice"):
            if invoice["status"] == "draft":
                self.drafts.add(invoice["id"])
            elif invoice["id"] not in self.booked:
                self.booked.add(invoice["id"])
                if invoice["billing_reason"] != "subscription_create":
                    for line in invoice["lines"]:
                        self.note_line(invoice, line)

    def note_line(self, invoice: Record, line: Record) -> None:
        """Note a final invoice's line if it bills metered usage."""
        if line["price"] and is_metered(self.account.get("price", line["price"])):
            is_item = line["type"] == "invoiceitem"
            fields = {**line, "draft": invoice["id"] in self.drafts and not is_item}
            found = Line(invoice, fields, self.oracle.next_turn())
            state = self.account.get("subscription", invoice["subscription"])
            ends = {item["end"] for item in self.account.items(state)}
            SEEN["mixed intervals billed"] += bool(line["quantity"]) and len(ends) > 1
            self.oracle.lines.append(found)

    def teardown(self) -> None:
        """Deliver the rest, let all drafts become final, and check what is running."""
        if not hasattr(self, "stack"):
            return
        try:
            self.settle()
        finally:
            self.stack.close()

    def settle(self) -> None:
        """Deliver all, report once more, and check the running periods."""
        self.mend()
        self.arrive()
        self.deliver_all()
        self.advance(2 * HOUR)
        rounds = 0
        while any(invoice["status"] == "draft" for invoice in self.account.all("invoice")):
            self.deliver_all()
            self.advance(2 * HOUR)
            rounds += 1
            assert rounds < 50, (self.failed, "a draft never becomes final")
        for which in (0, 1):
            self.update(which, -1)
        while any(event["id"] not in self.delivered for event in self.known()):
            self.clock.now += FRESH + 1
            self.deliver_all()
            rounds += 1
            assert rounds < 50, (self.failed, "an event is never taken")
        for subscription in self.account.all("subscription"):
            ends = {subscription["ended_at"], subscription["cancel_at"]} - {None}
            if subscription["cancel_at_period_end"]:
                ends.add(max(item["end"] for item in self.account.items(subscription)))
            self.oracle.exact[subscription["id"]] |= ends
        self.oracle.check()
        for which in (0, 1):
            if self.state(which)["status"] in ("active", "trialing", "past_due"):
                for item in self.account.items(self.state(which)):
                    self.check_running(item)
        SEEN.update(self.oracle.seen)

    def check_running(self, item: Record) -> None:
        """Check that Stripe holds what was metered in an item's running period."""
        tenure = self.oracle.running(item["id"])
        if tenure is None:
            return
        span = self.oracle.span(tenure, item["start"], item["end"])
        used = self.oracle.metered(tenure, span)
        price = self.account.get("price", item["price"])
        if meter := price["recurring"]["meter"]:
            since, until = self.account.meters.window(item["start"], item["end"])
            since = since if item["counted_from"] is None else item["counted_from"]
            held = self.account.meters.count(meter, tenure.usage[0], (since, until))
        else:
            since = item["start"] if item["counted_from"] is None else item["counted_from"] - 1
            held = Decimal(self.account.usage(item["id"], since, item["end"]))
        assert held == used, (f"Stripe holds {held}, {used} metered in {span}", item, tenure)


@pytest.mark.parametrize("part", range(PARTS))
def test_each_metered_unit_is_billed_once_or_missed_aloud(part: int) -> None:
    SEEN.clear()
    run_histories(History, part, HISTORIES // PARTS, steps=30)
    if HISTORIES >= 400:
        missing = [event for event in EXPECTED if SEEN[event] < HISTORIES / PARTS / 20]
        assert not missing + [event for event in RARE if not SEEN[event]]
