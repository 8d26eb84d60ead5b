"""The Stripe stand-in bills a subscription's whole life by Stripe's rules, in both modes."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from fakes.processes import Failed
from tests.conftest import ACACIA, DAY, END, ENDIVE, START, Stripe

HOUR = 3_600
T = START + 10 * DAY
CLASSIC, FLEXIBLE = "classic", "flexible"
BOTH = pytest.mark.parametrize("mode", [CLASSIC, FLEXIBLE])
Lines = list[tuple[str, int, int]]


@dataclass
class Life:
    """A customer on a test clock at START, and prices by a name."""

    stripe: Stripe
    clock: str = ""
    customer: str = ""
    subscription: str = ""
    prices: dict[str, str] = field(default_factory=dict)
    meters: dict[str, str] = field(default_factory=dict)

    def call(self, method: str, path: str, version: str = ENDIVE, **form: Any) -> Any:
        return self.stripe.call(method, path, version, **form)

    def price(self, name: str, amount: int = 10, meter: str = "m1", **form: Any) -> str:
        """Make a price: of a meter, `records` (without one) or `flat`; names stand for ids."""
        recurring = {"recurring[interval]": form.pop("interval", "month")}
        version = ENDIVE
        if meter != "flat":
            recurring["recurring[usage_type]"] = "metered"
        if meter == "records":
            version = ACACIA
        elif meter != "flat":
            recurring["recurring[meter]"] = self.meter(meter)
        if "billing_scheme" not in form:
            form["unit_amount"] = amount
        product = self.call("POST", "products", name=name)["id"]
        made = self.call("POST", "prices", version, product=product, **recurring, **form)
        self.prices[name] = made["id"]
        return str(made["id"])

    def meter(self, name: str, **form: str) -> str:
        if name not in self.meters:
            last = {"default_aggregation[formula]": "last", "display_name": name}
            made = self.call("POST", "billing/meters", event_name=name, **last, **form)
            self.meters[name] = made["id"]
        return self.meters[name]

    def subscribe(self, mode: str, *names: str, **form: Any) -> Any:
        for n, name in enumerate(names):
            form[f"items[{n}][price]"] = self.prices[name]
        form["billing_mode[type]"] = mode
        made = self.call("POST", "subscriptions", customer=self.customer, **form)
        self.subscription = made["id"]
        return made

    def to(self, at: int) -> None:
        path = f"test_helpers/test_clocks/{self.clock}/advance"
        self.call("POST", path, frozen_time=at)

    def report(self, value: int, at: int | None = None, meter: str = "m1") -> None:
        """Send the running total, as of just now unless a time is given."""
        now = self.stripe.account.now(self.clock)
        payload: dict[str, Any] = {
            "payload[stripe_customer_id]": self.customer,
            "payload[value]": value,
        }
        event: dict[str, Any] = {"event_name": meter, "timestamp": now - 1 if at is None else at}
        self.call("POST", "billing/meter_events", **event, **payload)

    def record(self, item: int, quantity: int, at: int) -> None:
        path = f"subscription_items/{self.items()[item]}/usage_records"
        self.call("POST", path, ACACIA, quantity=quantity, timestamp=at, action="set")

    def items(self) -> list[str]:
        found = self.stripe.account.get("subscription", self.subscription)["items"]
        return [str(item) for item in found]

    def update(self, **form: Any) -> Any:
        return self.call("POST", f"subscriptions/{self.subscription}", **form)

    def change(self, name: str, item: int = 0, **form: Any) -> None:
        entry = {"items[0][id]": self.items()[item], "items[0][price]": self.prices[name]}
        self.update(**entry, **form)

    def add(self, name: str, **form: Any) -> None:
        self.update(**{"items[0][price]": self.prices[name]}, **form)

    def remove(self, item: int, **form: Any) -> None:
        entry = {"items[0][id]": self.items()[item], "items[0][deleted]": "true"}
        self.update(**entry, **form)

    def switch(self, *entries: dict[str, Any]) -> None:
        path = f"subscriptions/{self.subscription}/switch_at_renewal"
        self.stripe.fake("POST", path, {"items": list(entries)})

    def read(self, **readings: Any) -> None:
        self.stripe.fake("POST", "readings", readings)

    def status(self, status: str) -> None:
        self.stripe.fake("POST", f"subscriptions/{self.subscription}", {"status": status})

    def shown(self, version: str = ENDIVE) -> Any:
        return self.call("GET", f"subscriptions/{self.subscription}", version)

    def invoices(self, version: str = ENDIVE) -> list[Any]:
        found: list[Any] = self.call("GET", "invoices", version, limit=100)["data"]
        return found[::-1]

    def billed(self) -> list[tuple[str, Lines]]:
        """Return reason and lines (price, quantity, amount) of each invoice but the first."""
        names = {key: name for name, key in self.prices.items()}
        return [
            (
                invoice["billing_reason"].removeprefix("subscription_"),
                [
                    (
                        names[line["pricing"]["price_details"]["price"]],
                        line["quantity"],
                        line["amount"],
                    )
                    for line in invoice["lines"]["data"]
                ],
            )
            for invoice in self.invoices()
            if invoice["billing_reason"] != "subscription_create"
        ]

    def events(self) -> list[Any]:
        return [e for e in self.stripe.events() if e["type"] == "customer.subscription.updated"]


@pytest.fixture
def life(stripe_fake: Stripe) -> Life:
    clock = stripe_fake.call("POST", "test_helpers/test_clocks", frozen_time=START)["id"]
    customer = stripe_fake.call("POST", "customers", test_clock=clock)["id"]
    found = Life(stripe_fake, clock, customer)
    for name, amount, meter in (
        ("A", 10, "m1"),
        ("B", 30, "m1"),
        ("other", 7, "m2"),
        ("free", 0, "m1"),
        ("flat", 3_000, "flat"),
        ("team", 6_000, "flat"),
        ("R", 10, "records"),
        ("S", 20, "records"),
    ):
        found.price(name, amount, meter)
    return found


# A price that changes in mid-period


@pytest.mark.parametrize("start", ["stays", "moves"])
@pytest.mark.parametrize(
    ("mode", "form", "billed"),
    [
        (CLASSIC, {}, [("cycle", [("B", 500, 15_000)])]),
        (FLEXIBLE, {}, [("cycle", [("B", 500, 15_000), ("A", 1_000, 10_000)])]),
        (FLEXIBLE, {"proration_behavior": "none"}, [("cycle", [("B", 500, 15_000)])]),
        (
            FLEXIBLE,
            {"proration_behavior": "always_invoice"},
            [("update", [("A", 1_000, 10_000)]), ("cycle", [("B", 500, 15_000)])],
        ),
    ],
)
def test_a_price_changed_in_mid_period_counts_from_there_and_flexible_bills_the_former(
    life: Life, mode: str, form: dict[str, Any], billed: list[Any], start: str
) -> None:
    life.read(changed_start=start)
    life.subscribe(mode, "A")
    life.to(T)
    life.report(1_000)
    life.change("B", **form)
    shown = life.shown()["items"]["data"][0]
    assert shown["current_period_start"] == (START if start == "stays" else T)
    assert life.shown(ACACIA)["current_period_start"] == START
    life.to(T + DAY)
    life.report(500)
    life.to(END + 2 * HOUR)
    assert life.billed() == billed


@pytest.mark.parametrize(("recount", "quantity"), [("frozen", 1_000), ("recounted", 1_060)])
def test_a_former_prices_usage_is_as_reported_by_the_change_or_counted_once_more(
    life: Life, recount: str, quantity: int
) -> None:
    life.read(changed_recount=recount)
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(1_000, T - 60)
    life.change("B")
    life.report(1_060, T - 1)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("B", 0, 0), ("A", quantity, 10 * quantity)])]


@BOTH
def test_each_stay_at_a_price_counts_its_own_usage(life: Life, mode: str) -> None:
    life.subscribe(mode, "A")
    for n, name in enumerate(("B", "A"), start=1):
        life.to(T + n * DAY)
        life.report(100 * n)
        life.change(name)
    life.to(T + 3 * DAY)
    life.report(7)
    life.to(END + 2 * HOUR)
    former = [("A", 100, 1_000), ("B", 200, 6_000)] if mode == FLEXIBLE else []
    assert life.billed() == [("cycle", [("A", 7, 70), *former])]


@BOTH
def test_another_meter_counts_what_it_was_sent_since_the_change(life: Life, mode: str) -> None:
    life.subscribe(mode, "A")
    life.to(T)
    life.report(9)
    life.report(50, meter="m2")
    life.change("other")
    life.to(T + DAY)
    life.report(3, meter="m2")
    life.to(END + 2 * HOUR)
    former = [("A", 9, 90)] if mode == FLEXIBLE else []
    assert life.billed() == [("cycle", [("other", 3, 21), *former])]


def test_usage_records_go_over_to_a_new_price_without_a_meter(life: Life) -> None:
    life.subscribe(CLASSIC, "R")
    life.to(T)
    life.record(0, 1_000, START + 1)
    life.change("S")
    life.to(T + DAY)
    life.record(0, 1_500, START + 1)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("S", 1_500, 30_000)])]


@pytest.mark.parametrize(
    ("path", "billed"), [("RA", 0), ("AR", 0), ("RAR", 6), ("ARA", 5)], ids=str
)
def test_between_records_and_a_meter_nothing_goes_over(life: Life, path: str, billed: int) -> None:
    life.subscribe(CLASSIC, path[0])
    life.to(T)
    if path[0] == "R":
        life.record(0, 40, START + 1)
    life.report(40)
    for n, name in enumerate(path[1:], start=1):
        life.to(T + n * DAY)
        life.change(name)
    life.to(T + 5 * DAY)
    if path == "RAR":
        life.record(0, 6, T + 3 * DAY)
    elif path == "ARA":
        life.report(5)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [(path[-1], billed, 10 * billed)])]


@BOTH
def test_where_a_price_changed_the_draft_hour_does_not_count(life: Life, mode: str) -> None:
    life.subscribe(mode, "A")
    life.to(T)
    life.change("B", proration_behavior="none")
    life.to(END - 60)
    life.report(5)
    life.to(END + 60)
    life.report(9, END - 1)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("B", 5, 150)])]
    later = life.shown()["items"]["data"][0]["current_period_end"]
    life.to(later + 60)
    life.report(11, later - 1)
    life.to(later + 2 * HOUR)
    assert life.billed()[1] == ("cycle", [("B", 11, 330)])


def test_flexible_takes_no_metered_price_without_a_meter(life: Life) -> None:
    with pytest.raises(Failed, match="400: .*does not support metered prices"):
        life.subscribe(FLEXIBLE, "R")
    life.subscribe(FLEXIBLE, "A")
    with pytest.raises(Failed, match="400: .*does not support metered prices"):
        life.change("R")


# Items that come and go


@BOTH
def test_an_added_item_counts_from_its_creation(life: Life, mode: str) -> None:
    life.subscribe(mode, "flat")
    life.to(T)
    life.report(1_060)
    life.add("A")
    assert life.shown()["items"]["data"][1]["created"] == T
    life.to(T + DAY)
    life.report(4)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("flat", 1, 3_000), ("A", 4, 40)])]


@pytest.mark.parametrize(
    ("mode", "form", "former"),
    [
        (CLASSIC, {}, []),
        (FLEXIBLE, {}, [("A", 40, 400)]),
        (FLEXIBLE, {"proration_behavior": "none"}, []),
    ],
)
def test_a_removed_items_usage_is_billed_in_flexible_only(
    life: Life, mode: str, form: dict[str, Any], former: Lines
) -> None:
    life.subscribe(mode, "flat", "A")
    life.to(T)
    life.report(40)
    life.remove(1, **form)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("flat", 1, 3_000), *former])]
    with pytest.raises(Failed, match="at least one active item"):
        life.remove(0)


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
@BOTH
def test_a_swap_is_one_event_with_the_whole_items_before_it(
    life: Life, mode: str, version: str
) -> None:
    life.subscribe(mode, "A")
    life.to(T)
    life.report(1_060)
    life.stripe.collect_events(version)
    before = life.shown(version)["items"]["data"]
    swap = {"items[0][id]": life.items()[0], "items[0][deleted]": "true"}
    life.update(**swap, **{"items[1][price]": life.prices["A"]})
    (event,) = life.events()
    assert event["data"]["previous_attributes"]["items"] == {"data": before}
    assert ("current_period_start" in before[0]) == (version == ENDIVE)
    assert event["data"]["object"]["items"]["data"] != before
    life.to(END + 2 * HOUR)
    former = [("A", 1_060, 10_600)] if mode == FLEXIBLE else []
    assert life.billed() == [("cycle", [("A", 0, 0), *former])]


@pytest.mark.parametrize("path", ["subscriptions", "subscription_items"])
def test_an_items_metadata_is_told_with_the_whole_old_items(life: Life, path: str) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.stripe.collect_events(ENDIVE)
    before = life.shown()["items"]["data"]
    (item,) = life.items()
    if path == "subscriptions":
        life.update(**{"items[0][id]": item, "items[0][metadata][a]": "1"})
    else:
        life.call("POST", f"subscription_items/{item}", **{"metadata[a]": "1"})
    (event,) = life.events()
    assert event["data"]["previous_attributes"] == {"items": {"data": before}}
    assert life.call("GET", f"subscription_items/{item}")["metadata"] == {"a": "1"}


def test_an_item_is_changed_added_and_removed_by_its_own_calls(life: Life) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(10)
    life.call("POST", f"subscription_items/{life.items()[0]}", price=life.prices["B"])
    made = life.call(
        "POST", "subscription_items", subscription=life.subscription, price=life.prices["other"]
    )
    gone = life.call("DELETE", f"subscription_items/{made['id']}", proration_behavior="none")
    assert gone == {"id": made["id"], "object": "subscription_item", "deleted": True}
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("B", 0, 0), ("A", 10, 100)])]


# A schedule's switch


@pytest.mark.parametrize("reason", ["subscription_cycle", "subscription_update"])
@BOTH
def test_a_schedule_closes_the_old_item_with_a_draft_hour(
    life: Life, mode: str, reason: str
) -> None:
    life.read(switch_reason=reason)
    life.subscribe(mode, "A", "flat")
    life.to(T)
    life.switch(
        {"id": life.items()[0], "deleted": True},
        {"price": life.prices["other"], "metadata": {"om_meter_id": "m2"}},
    )
    life.stripe.collect_events(ENDIVE)
    life.to(END + 60)
    (event,) = life.events()
    assert [i["created"] for i in event["data"]["object"]["items"]["data"]][1] == END
    assert len(event["data"]["previous_attributes"]["items"]["data"]) == 2
    for invoice in life.invoices()[1:]:
        life.stripe.account.get("invoice", invoice["id"])["accepted_at"] = END + 60
    life.report(1_040, END - 1)
    life.to(END + 2 * HOUR)
    said = reason.removeprefix("subscription_")
    old, flat = ("A", 1_040, 10_400), ("flat", 1, 3_000)
    if mode == CLASSIC:
        assert life.billed() == [(said, [old]), ("cycle", [flat])]
    else:
        assert life.billed() == [(said, [old, flat])]


@BOTH
def test_a_schedule_can_change_the_price_of_an_item(life: Life, mode: str) -> None:
    life.subscribe(mode, "A")
    life.switch({"id": life.items()[0], "price": life.prices["B"]})
    life.to(T)
    life.report(8)
    life.to(END + DAY)
    life.report(2)
    later = life.shown()["items"]["data"][0]["current_period_end"]
    life.to(later + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 8, 80)]), ("cycle", [("B", 2, 60)])]


def test_a_schedule_closes_an_item_whose_own_period_goes_on(life: Life) -> None:
    life.price("year", 10, meter="m2", interval="year")
    life.subscribe(FLEXIBLE, "A", "year")
    life.switch({"id": life.items()[1], "deleted": True})
    life.to(T)
    life.report(4, meter="m2")
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("year", 4, 40), ("A", 0, 0)])]


# Trials


@pytest.mark.parametrize("line", ["absent", "zero"])
@BOTH
def test_usage_in_a_trial_is_free_and_the_period_begins_at_its_end(
    life: Life, mode: str, line: str
) -> None:
    life.read(trial_line=line)
    made = life.subscribe(mode, "A", "flat", trial_period_days=10)
    assert (made["status"], made["trial_start"], made["trial_end"]) == ("trialing", START, T)
    life.to(T - 60)
    life.report(700)
    life.to(T + DAY)
    shown = life.shown(ACACIA)
    assert (shown["status"], shown["current_period_start"]) == ("active", T)
    assert shown["billing_cycle_anchor"] == T
    life.report(5)
    life.to(shown["current_period_end"] + 2 * HOUR)
    flat, free = ("flat", 1, 3_000), [("A", 0, 0)] if line == "zero" else []
    assert life.billed() == [("cycle", [*free, flat]), ("cycle", [("A", 5, 50), flat])]


@BOTH
def test_a_later_anchor_ends_the_period_after_a_trial(life: Life, mode: str) -> None:
    anchor = START + 20 * DAY
    life.subscribe(mode, "A", trial_end=T, billing_cycle_anchor=anchor)
    life.to(T + DAY)
    life.report(5)
    period = life.shown(ACACIA)
    assert (period["current_period_start"], period["current_period_end"]) == (T, anchor)
    life.to(anchor + 2 * HOUR)
    assert life.billed()[-1] == ("cycle", [("A", 5, 50)])


@BOTH
def test_a_trial_that_moves_takes_the_anchor_along_unless_that_lies_later(
    life: Life, mode: str
) -> None:
    anchor = START + 20 * DAY
    life.subscribe(mode, "A", trial_end=T, billing_cycle_anchor=anchor)
    for trial_end in (T + DAY, anchor + DAY):
        shown = life.update(trial_end=trial_end)
        assert shown["billing_cycle_anchor"] == max(anchor, trial_end)
        assert shown["items"]["data"][0]["current_period_end"] == trial_end


@pytest.mark.parametrize(
    ("mode", "billed"),
    [(CLASSIC, [("update", [("A", 30, 300)])]), (FLEXIBLE, [])],
)
def test_a_trial_added_later_ends_the_running_period_and_now_ends_the_trial(
    life: Life, mode: str, billed: list[Any]
) -> None:
    life.subscribe(mode, "A")
    life.to(T)
    life.report(30)
    life.update(trial_end=T + 5 * DAY)
    shown = life.shown(ACACIA)
    assert (shown["status"], shown["current_period_start"]) == ("trialing", T)
    assert shown["current_period_end"] == T + 5 * DAY
    assert life.billed() == billed
    life.to(T + DAY)
    life.report(12)
    life.update(trial_end="now")
    shown = life.shown(ACACIA)
    assert (shown["status"], shown["current_period_start"]) == ("active", T + DAY)
    life.to(shown["current_period_end"] + 2 * HOUR)
    quantities = [line for _, lines in life.billed() for line in lines if line[1]]
    assert quantities == [("A", 30, 300)]


def test_an_items_own_trial_is_free_and_told_since_2026(life: Life) -> None:
    life.subscribe(FLEXIBLE, "A")
    path = f"subscription_items/{life.items()[0]}"
    life.stripe.fake("POST", path, {"current_trial": {"end_date": T}})
    item = life.shown()["items"]["data"][0]
    assert item["current_trial"]["end_date"] == item["current_period_end"] == T
    assert "current_trial" not in life.shown("2025-09-30.clover")["items"]["data"][0]
    life.to(T - 60)
    life.report(70)
    life.to(T + DAY)
    life.report(5)
    assert life.shown()["items"]["data"][0]["current_period_start"] == T
    life.to(END + 2 * HOUR)
    assert life.billed()[-1] == ("cycle", [("A", 5, 50)])


# Schedules


@BOTH
def test_a_subscription_names_its_schedule_after_the_switch_too(life: Life, mode: str) -> None:
    life.subscribe(mode, "A")
    assert life.shown()["schedule"] is None
    life.switch({"id": life.items()[0], "price": life.prices["B"]})
    schedule = life.shown(ACACIA)["schedule"]
    assert schedule.startswith("sub_sched_")
    life.to(END + 60)
    assert life.shown()["schedule"] == schedule


# Statuses


@pytest.mark.parametrize("status", ["incomplete", "incomplete_expired", "paused"])
@BOTH
def test_what_cannot_be_billed_renews_no_more(life: Life, mode: str, status: str) -> None:
    life.subscribe(mode, "A")
    life.stripe.collect_events(ENDIVE)
    life.status(status)
    (event,) = life.events()
    assert event["data"]["previous_attributes"] == {"status": "active"}
    life.to(END + 2 * HOUR)
    assert life.billed() == []
    assert [s["status"] for s in life.call("GET", "subscriptions")["data"]] == [status]


@pytest.mark.parametrize("status", ["past_due", "unpaid"])
def test_what_is_unpaid_renews_on(life: Life, status: str) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.status(status)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 0, 0)])]


def test_a_first_payment_that_is_due_leaves_it_incomplete(life: Life) -> None:
    form = {"payment_behavior": "default_incomplete"}
    assert life.subscribe(FLEXIBLE, "A", "flat", **form)["status"] == "incomplete"
    assert life.subscribe(FLEXIBLE, "A", **form)["status"] == "active"


# Resets


@pytest.mark.parametrize(("mode", "resets"), [(CLASSIC, True), (FLEXIBLE, False)])
@pytest.mark.parametrize("cause", ["interval", "from zero", "cancel_at"])
def test_classic_resets_by_itself_and_flexible_never(
    life: Life, mode: str, resets: bool, cause: str
) -> None:
    life.price("week", 10, interval="week")
    life.subscribe(mode, "free" if cause == "from zero" else "A")
    life.to(T)
    life.report(100)
    if cause == "cancel_at":
        life.update(cancel_at=T + 5 * DAY)
    else:
        life.change("week" if cause == "interval" else "A")
    shown = life.shown()
    assert shown["billing_cycle_anchor"] == (T if resets else START)
    old = ("free", 100, 0) if cause == "from zero" else ("A", 100, 1_000)
    assert life.billed() == ([("update", [old])] if resets else [])
    if cause == "cancel_at":
        assert shown["items"]["data"][0]["current_period_end"] == T + 5 * DAY


def test_a_reset_with_the_change_bills_the_former_price(life: Life) -> None:
    life.subscribe(CLASSIC, "A", "flat")
    life.to(START + 15 * DAY)
    life.report(100)
    life.change("B", billing_cycle_anchor="now")
    assert life.billed() == [
        ("update", [("A", 100, 1_000), ("flat", 1, 3_000), ("flat", 1, -1_500)])
    ]


# Starts


def test_a_backdated_start_is_on_the_next_invoice_in_classic(life: Life) -> None:
    life.to(T)
    life.report(6, START + 60)
    made = life.subscribe(CLASSIC, "A", backdate_start_date=START)
    assert made["start_date"] == START
    assert made["items"]["data"][0]["created"] == T
    end = made["items"]["data"][0]["current_period_end"]
    life.to(end + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 6, 60)])]


def test_a_backdated_start_has_a_line_a_period_on_the_first_invoice_in_flexible(
    life: Life,
) -> None:
    life.to(T)
    life.report(6, START + 60)
    life.report(9, T - 3 * DAY)
    life.price("day", 10, interval="week")
    made = life.subscribe(FLEXIBLE, "day", backdate_start_date=START)
    (first,) = life.invoices()
    lines = [(line["period"]["start"], line["quantity"]) for line in first["lines"]["data"]]
    assert lines == [(START, 6), (T - 7 * DAY, 9)]
    assert made["items"]["data"][0]["current_period_start"] == T


@BOTH
def test_an_anchor_to_come_ends_the_first_period(life: Life, mode: str) -> None:
    made = life.subscribe(mode, "A", "flat", billing_cycle_anchor=START + 15 * DAY)
    assert made["items"]["data"][0]["current_period_end"] == START + 15 * DAY
    assert life.invoices()[0]["total"] == 1_500
    with pytest.raises(Failed, match="next natural billing date"):
        life.subscribe(mode, "A", billing_cycle_anchor=START + 32 * DAY)


def test_flexible_has_no_first_invoice_over_nothing(life: Life) -> None:
    assert life.subscribe(FLEXIBLE, "A")["latest_invoice"] is None
    assert life.subscribe(CLASSIC, "A")["latest_invoice"] is not None


# Intervals


def test_mixed_intervals_have_periods_of_their_own_in_flexible_only(life: Life) -> None:
    life.price("year", 10, meter="m2", interval="year")
    with pytest.raises(Failed, match="must have the same interval"):
        life.subscribe(CLASSIC, "A", "year")
    made = life.subscribe(FLEXIBLE, "year", "A")
    ends = [item["current_period_end"] for item in made["items"]["data"]]
    assert ends == [START + 366 * DAY, END]
    shown = life.shown(ACACIA)
    assert (shown["current_period_start"], shown["current_period_end"]) == (START, END)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 0, 0)])]
    life.to(ends[0] + 2 * HOUR)
    assert life.billed()[-1] == ("cycle", [("year", 0, 0), ("A", 0, 0)])
    assert len(life.billed()) == 12


@pytest.mark.parametrize(
    ("interval", "count", "days"), [("day", 3, 3), ("week", 2, 14), ("month", 2, 61)]
)
@BOTH
def test_an_interval_can_be_several(
    life: Life, mode: str, interval: str, count: int, days: int
) -> None:
    counted: dict[str, Any] = {"recurring[interval_count]": count}
    life.price("X", 10, interval=interval, **counted)
    made = life.subscribe(mode, "X")
    assert made["items"]["data"][0]["current_period_end"] == START + days * DAY


# Ends


@pytest.mark.parametrize("how", ["cancel_at_period_end", "cancel_at"])
def test_an_end_has_the_usage_up_to_it(life: Life, how: str) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.update(**{how: "true" if how == "cancel_at_period_end" else T + DAY})
    end = END if how == "cancel_at_period_end" else T + DAY
    life.to(end - 60)
    life.report(5)
    life.to(end + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 5, 50)])]
    assert life.shown()["ended_at"] == end
    assert life.call("GET", "subscriptions")["data"] == []


# Lines


def test_one_off_lines_and_credits_name_no_item_since_basil(life: Life) -> None:
    life.subscribe(CLASSIC, "flat", "A")
    life.call(
        "POST", "invoiceitems", customer=life.customer, subscription=life.subscription,
        amount=250, currency="usd", description="setup",
    )  # fmt: skip
    life.to(START + 15 * DAY)
    life.change("team")
    life.to(END + 2 * HOUR)
    new, old = life.invoices()[-1], life.invoices(ACACIA)[-1]
    kinds = [line["parent"]["type"] for line in new["lines"]["data"]]
    assert kinds == ["subscription_item_details"] * 2 + ["invoice_item_details"] * 3
    assert [line["type"] for line in old["lines"]["data"]] == ["subscription"] * 2 + [
        "invoiceitem"
    ] * 3
    assert [line["amount"] for line in new["lines"]["data"]] == [6_000, 0, 250, -1_500, 3_000]
    assert [line["proration"] for line in old["lines"]["data"]] == [False] * 3 + [True] * 2
    assert ["subscription_item" in line for line in old["lines"]["data"]][2:] == [
        False, True, True,
    ]  # fmt: skip
    fee, usage = new["lines"]["data"][:2]
    assert fee["period"]["start"] == usage["period"]["end"] == END
    assert len({line["id"] for line in new["lines"]["data"]}) == 5
    assert "quantity_decimal" not in life.invoices("2025-09-30.clover")[-1]["lines"]["data"][0]
    assert usage["quantity_decimal"] == "0"


TIERS = {"billing_scheme": "tiered", "tiers[0][up_to]": 100, "tiers[0][unit_amount]": 10}
TIERS |= {"tiers[1][up_to]": "inf", "tiers[1][unit_amount_decimal]": "2.5"}


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ({**TIERS, "tiers_mode": "graduated"}, [(100, 1_000), (50, 125)]),
        ({**TIERS, "tiers_mode": "volume"}, [(150, 375)]),
        ({"transform_quantity[divide_by]": 60, "transform_quantity[round]": "up"}, [(150, 30)]),
        ({"transform_quantity[divide_by]": 60, "transform_quantity[round]": "down"}, [(150, 20)]),
    ],
)
def test_tiers_and_packages_bill_parts_of_a_quantity(
    life: Life, form: dict[str, Any], lines: list[tuple[int, int]]
) -> None:
    life.price("X", 10, **form)
    life.subscribe(FLEXIBLE, "X")
    life.to(T)
    life.report(150)
    life.to(END + 2 * HOUR)
    found = life.invoices()[-1]["lines"]["data"]
    assert [(line["quantity"], line["amount"]) for line in found] == lines
    assert len({line["id"] for line in found}) == len(lines)
    assert "tiers" not in life.call("GET", f"prices/{life.prices['X']}")
    expanded = life.call("GET", f"prices/{life.prices['X']}", **{"expand[]": "tiers"})
    assert bool(expanded["tiers"]) == ("billing_scheme" in form)


# Lists


def test_lists_leave_out_the_canceled_and_those_on_test_clocks(life: Life) -> None:
    life.stripe.account.lists_test_clocks = False
    life.subscribe(FLEXIBLE, "A")
    clockless = life.call("POST", "customers")["id"]
    form = {"customer": clockless, "items[0][price]": life.prices["A"]}
    real = [life.call("POST", "subscriptions", **form)["id"] for _ in range(2)]
    life.call("DELETE", f"subscriptions/{real[0]}")

    def listed(**query: str) -> list[str]:
        return [found["id"] for found in life.call("GET", "subscriptions", **query)["data"]]

    assert listed() == [real[1]]
    assert listed(status="all") == real[::-1]
    assert listed(status="ended") == listed(status="canceled") == [real[0]]
    assert listed(test_clock=life.clock) == listed(customer=life.customer) == [life.subscription]
    assert listed(price=life.prices["B"]) == []


def test_invoices_are_listed_by_time_and_expanded_in_subscriptions(life: Life) -> None:
    life.subscribe(CLASSIC, "A")
    life.to(END + 2 * HOUR)
    since, until = ({f"created[{bound}]": str(END)} for bound in ("gte", "lt"))
    (late,) = life.call("GET", "invoices", **since)["data"]
    assert len(life.call("GET", "invoices", **until)["data"]) == 1
    path = f"subscriptions/{life.subscription}"
    assert life.call("GET", path, **{"expand[]": "latest_invoice"})["latest_invoice"] == late
    assert life.call("GET", f"invoices/{late['id']}") == late


# Meters


def test_an_event_counts_only_some_seconds_after_it_was_taken(life: Life) -> None:
    life.read(counts_after_seconds=600)
    life.subscribe(FLEXIBLE, "A")
    life.to(END + 60)
    life.report(5, END - 60)
    life.to(END + 55 * 60)
    life.report(9, END - 1)
    life.to(END + 3 * HOUR)
    assert life.billed() == [("cycle", [("A", 5, 50)])]


def test_a_deactivated_meter_takes_no_events_until_it_is_reactivated(life: Life) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    path = f"billing/meters/{life.meters['m1']}"
    assert life.call("POST", f"{path}/deactivate")["status"] == "inactive"
    life.report(5)
    (error,) = life.stripe.fake("GET", "meter_errors")["errors"]
    assert error["code"] == "archived_meter"
    assert life.call("POST", f"{path}/reactivate")["status"] == "active"
    life.report(6)
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("A", 6, 60)])]


def test_a_time_window_keeps_the_event_received_last(life: Life) -> None:
    life.meter("hourly", event_time_window="hour")
    life.price("X", 10, meter="hourly")
    life.subscribe(FLEXIBLE, "X")
    life.to(END + 60)
    life.report(9, END - 1, "hourly")
    life.report(1, END + 1, "hourly")
    life.to(END + 2 * HOUR)
    assert life.billed() == [("cycle", [("X", 0, 0)])]


@pytest.mark.parametrize("wrong", [{"changed_start": "maybe"}, {"mood": "good"}])
def test_a_reading_that_nobody_knows_is_refused(life: Life, wrong: dict[str, str]) -> None:
    with pytest.raises(Failed, match="answered 40[04]"):
        life.read(**wrong)
