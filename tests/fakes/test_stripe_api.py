"""The Stripe stand-in keeps Stripe's own rules."""

import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from fakes.processes import Failed, call, wait_for
from fakes.stripe_api import Api, create_app
from fakes.stripe_periods import add_intervals
from tests.conftest import ACACIA, DAY, END, ENDIVE, KEY, SECRET, START, Stripe, serve
from tests.fakes.receiver import Receiver, settle

HOUR = 3_600


@pytest.fixture
def stripe(stripe_fake: Stripe) -> Stripe:
    stripe_fake.seed()
    return stripe_fake


def record(stripe: Stripe, timestamp: int, quantity: int, action: str = "set") -> Any:
    path = f"subscription_items/{stripe.items()[0]}/usage_records"
    return stripe.call("POST", path, timestamp=timestamp, quantity=quantity, action=action)


def invoices(stripe: Stripe, version: str = ACACIA) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = stripe.call("GET", "invoices", version, limit=100)["data"]
    return found


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer pk_test_1", "Bearer sk_live_1", "Basic x"])
def test_a_call_without_a_test_key_is_401(stripe: Stripe, key: str) -> None:
    with pytest.raises(Failed, match="answered 401"):
        call("GET", f"{stripe.url}/v1/prices", None, {"Authorization": key})


def test_usage_records_and_meterless_prices_end_with_basil(stripe: Stripe) -> None:
    path = f"subscription_items/{stripe.items()[0]}"
    for method, rest in (("POST", "usage_records"), ("GET", "usage_record_summaries")):
        with pytest.raises(Failed, match="answered 404: .*Unrecognized request URL"):
            stripe.call(method, f"{path}/{rest}", ENDIVE)
    metered = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
    price = {"product": stripe.ids["product"], "unit_amount": 10, **metered}
    with pytest.raises(Failed, match=r"400: .*Starting with Stripe version `2025-03-31\.basil`"):
        stripe.call("POST", "prices", ENDIVE, **price)
    with pytest.raises(Failed, match="400: .*Invalid Stripe API version: newest"):
        stripe.call("GET", "prices", "newest")


def test_an_unknown_parameter_is_refused(stripe: Stripe) -> None:
    with pytest.raises(Failed, match="400: .*unknown parameter: params"):
        stripe.call("POST", "customers", params="{}")
    with pytest.raises(Failed, match="400: .*unknown parameter: plan"):
        stripe.call("GET", "prices", plan="x")


def test_set_replaces_and_increment_adds_at_one_timestamp_and_timestamps_add_up(
    stripe: Stripe,
) -> None:
    record(stripe, START + 1, 5)
    assert record(stripe, START + 1, 7)["quantity"] == 7
    assert stripe.usage() == [7]
    record(stripe, START + 1, 2, "increment")
    record(stripe, START + 2, 1)
    assert stripe.usage() == [10]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"timestamp": START, "quantity": 1}, "timestamp.*must be after the subscription's last"),
        ({"timestamp": START + DAY + 60, "quantity": 1}, "timestamp.*future"),
        ({"timestamp": "soon", "quantity": 1}, "Invalid integer"),
        ({"timestamp": START + 1, "quantity": -1}, "greater than or equal to 0"),
        ({"timestamp": START + 1, "quantity": "1.5"}, "Invalid integer"),
        ({"timestamp": START + 1, "quantity": 1, "action": "add"}, "Invalid action"),
    ],
)
def test_a_record_outside_the_rules_is_400(
    stripe: Stripe, form: dict[str, Any], param: str
) -> None:
    path = f"subscription_items/{stripe.items()[0]}/usage_records"
    with pytest.raises(Failed, match=f"answered 400: (?s:.)*{param}"):
        stripe.call("POST", path, **form)
    assert stripe.usage() == [0]


def test_a_record_of_nothing_is_404(stripe: Stripe) -> None:
    with pytest.raises(Failed, match="404: (?s:.)*resource_missing"):
        stripe.call("POST", "subscription_items/si_gone/usage_records", quantity=1)
    stripe.call("DELETE", f"subscriptions/{stripe.ids['subscription']}")
    with pytest.raises(Failed, match="404: (?s:.)*resource_missing"):
        record(stripe, START + 1, 1)


def test_a_renewal_drafts_an_invoice_for_an_hour_and_closes_the_period(stripe: Stripe) -> None:
    record(stripe, START + 1, 10)
    stripe.advance(END + 60)
    invoice = invoices(stripe)[0]
    assert (invoice["status"], invoice["billing_reason"]) == ("draft", "subscription_cycle")
    assert (invoice["total"], invoice["lines"]["data"][0]["quantity"]) == (100, 10)
    subscription = stripe.subscription()
    assert subscription["current_period_start"] == END
    assert subscription["latest_invoice"] == invoice["id"]
    with pytest.raises(Failed, match="must be after the subscription's last invoice period"):
        record(stripe, START + 1, 99)
    stripe.advance(END + HOUR)
    assert invoices(stripe)[0]["status"] == "open"
    assert stripe.usage() == [0, 10]


def test_months_are_caught_up_in_order_and_nothing_is_paid_at_once(stripe: Stripe) -> None:
    stripe.advance(END + 70 * DAY)
    cycles = [i for i in invoices(stripe) if i["billing_reason"] == "subscription_cycle"]
    periods = [(i["period_start"], i["period_end"]) for i in reversed(cycles)]
    assert periods[0] == (START, END)
    assert all(a[1] == b[0] for a, b in pairwise(periods))
    assert [i["status"] for i in cycles] == ["paid"] * 3


@pytest.mark.parametrize(
    ("start", "ends"),
    [
        ("2024-01-31T10:00:00", ["2024-02-29T10:00:00", "2024-03-31T10:00:00"]),
        ("2023-01-31T10:00:00", ["2023-02-28T10:00:00", "2023-03-31T10:00:00"]),
        ("2023-12-15T00:00:00", ["2024-01-15T00:00:00", "2024-02-15T00:00:00"]),
    ],
)
def test_months_keep_the_anchors_day(start: str, ends: list[str]) -> None:
    def at(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())

    found = [add_intervals(at(start), "month", n) for n in (1, 2)]
    assert found == [at(end) for end in ends]


@pytest.mark.parametrize("anchor", ["billing_cycle_anchor", "billing_cycle_anchor[type]"])
def test_a_reset_invoices_at_once_what_had_been_reported(stripe: Stripe, anchor: str) -> None:
    record(stripe, START + 1, 10)
    stripe.call("POST", f"subscriptions/{stripe.ids['subscription']}", **{anchor: "now"})
    invoice = invoices(stripe)[0]
    assert (invoice["status"], invoice["total"]) == ("open", 100)
    assert stripe.subscription()["current_period_start"] == START + DAY
    with pytest.raises(Failed, match="must be after"):
        record(stripe, START + 1, 11)


def test_a_flexible_subscription_is_reset_with_always_invoice_only(stripe_fake: Stripe) -> None:
    price = stripe_fake.metered_price()
    stripe_fake.seed({"price": price}, **{"billing_mode[type]": "flexible"})
    path = f"subscriptions/{stripe_fake.ids['subscription']}"
    with pytest.raises(Failed, match="always_invoice"):
        stripe_fake.call("POST", path, billing_cycle_anchor="now")
    stripe_fake.call("POST", path, billing_cycle_anchor="now", proration_behavior="always_invoice")


def test_an_end_at_the_period_bills_usage_and_one_at_once_with_invoice_now_only(
    stripe: Stripe,
) -> None:
    path = f"subscriptions/{stripe.ids['subscription']}"
    record(stripe, START + 1, 10)
    stripe.call("POST", path, cancel_at_period_end="true")
    stripe.advance(END + 1)
    assert stripe.subscription()["status"] == "canceled"
    assert invoices(stripe)[0]["total"] == 100
    for form, billed in (({}, 0), ({"invoice_now": "true"}, 1)):
        stripe.seed()
        record(stripe, START + 1, 10)
        before = len(invoices(stripe))
        stripe.call("DELETE", f"subscriptions/{stripe.ids['subscription']}", **form)
        assert len(invoices(stripe)) - before == billed


def test_subscriptions_are_listed_by_status(stripe: Stripe) -> None:
    stripe.call("DELETE", f"subscriptions/{stripe.ids['subscription']}")
    assert stripe.call("GET", "subscriptions")["data"] == []
    assert len(stripe.call("GET", "subscriptions", status="all")["data"]) == 1
    assert len(stripe.call("GET", "subscriptions", status="canceled")["data"]) == 1


def test_lists_are_paged_both_ways(stripe: Stripe) -> None:
    made = [stripe.call("POST", "customers", name=str(n))["id"] for n in range(5)][::-1]
    first = stripe.call("GET", "customers", limit=2)
    assert [c["id"] for c in first["data"]] == made[:2]
    assert first["has_more"]
    last = stripe.call("GET", "customers", limit=100, starting_after=made[1])
    assert [c["id"] for c in last["data"]] == [*made[2:], stripe.ids["customer"]]
    assert not last["has_more"]
    back = stripe.call("GET", "customers", limit=2, ending_before=made[4])
    assert [c["id"] for c in back["data"]] == made[2:4]
    assert back["has_more"]
    for wrong in ({"limit": 0}, {"limit": 101}, {"starting_after": "cus_gone"}):
        with pytest.raises(Failed, match="answered 40[04]"):
            stripe.call("GET", "customers", **wrong)


def test_an_idempotency_key_replays_and_refuses_other_parameters(stripe: Stripe) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "k1"}
    url = f"{stripe.url}/v1/customers"
    first = call("POST", url, b"name=a", headers)
    assert call("POST", url, b"name=a", headers) == first
    with pytest.raises(Failed, match="400: (?s:.)*idempotency_error"):
        call("POST", url, b"name=b", headers)
    assert len(stripe.call("GET", "customers", limit=100)["data"]) == 2


def test_a_lookup_key_belongs_to_one_price(stripe: Stripe) -> None:
    form: dict[str, Any] = {"product": stripe.ids["product"], "unit_amount": 1}
    form |= {"lookup_key": "k", "recurring[interval]": "month"}
    first = stripe.call("POST", "prices", **form)
    with pytest.raises(Failed, match="already exists"):
        stripe.call("POST", "prices", **form)
    second = stripe.call("POST", "prices", **form, transfer_lookup_key="true")
    (found,) = stripe.call("GET", "prices", **{"lookup_keys[0]": "k"})["data"]
    assert found["id"] == second["id"] != first["id"]


def test_an_invoice_has_its_references_where_the_version_puts_them(stripe: Stripe) -> None:
    record(stripe, START + 1, 10)
    stripe.advance(END + 1)
    old, new = invoices(stripe)[0], invoices(stripe, ENDIVE)[0]
    assert old["subscription"] == stripe.ids["subscription"]
    assert new["parent"]["subscription_details"]["subscription"] == stripe.ids["subscription"]
    (line,), (new_line,) = old["lines"]["data"], new["lines"]["data"]
    item = stripe.items()[0]
    assert line["subscription_item"] == item
    assert new_line["parent"]["subscription_item_details"]["subscription_item"] == item
    assert line["price"]["id"] == new_line["pricing"]["price_details"]["price"]


# Deliveries


@pytest.fixture
def receiver(stripe: Stripe) -> Iterator[Receiver]:
    found = Receiver()
    server = serve(found.app)
    url = f"http://127.0.0.1:{server.server_port}/"
    quick = {"retry_seconds": [0, 1.1], "enabled_events": ["customer.subscription.updated"]}
    stripe.fake("POST", "webhook", {"url": url, "secret": SECRET, "api_version": ACACIA, **quick})
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def update(stripe: Stripe) -> Callable[..., None]:
    def updated(**form: str) -> None:
        stripe.call("POST", f"subscriptions/{stripe.ids['subscription']}", **form)

    return updated


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_a_renewal_is_told_in_the_endpoints_version(
    stripe: Stripe, receiver: Receiver, version: str
) -> None:
    before = stripe.subscription(version)
    stripe.fake("POST", "webhook", {"api_version": version})
    stripe.advance(END + 1)
    settle(stripe, 1)
    (event,) = receiver.events()
    assert event["type"] == "customer.subscription.updated"
    assert event["data"]["object"] == stripe.subscription(version)
    previous = event["data"]["previous_attributes"]
    assert previous.pop("latest_invoice") == before["latest_invoice"]
    if version == ACACIA:
        assert previous == {"current_period_start": START, "current_period_end": END}
        assert "current_period_start" not in event["data"]["object"]["items"]["data"][0]
    else:
        assert previous == {"items": {"data": before["items"]["data"]}}
        assert previous["items"]["data"][0]["current_period_start"] == START
        assert "current_period_start" not in event["data"]["object"]


def test_changed_metadata_is_told_with_what_it_was(
    stripe: Stripe, receiver: Receiver, update: Callable[..., None]
) -> None:
    update(**{"metadata[a]": "1"})
    update(**{"metadata[a]": "2"})
    update(**{"metadata[a]": ""})
    update(**{"metadata[a]": ""})
    settle(stripe, 3)
    previous = [event["data"]["previous_attributes"] for event in receiver.events()]
    assert sorted(str(p["metadata"]["a"]) for p in previous) == ["1", "2", "None"]


def test_a_failed_delivery_comes_again_with_a_new_signature(
    stripe: Stripe, receiver: Receiver, update: Callable[..., None]
) -> None:
    receiver.answers = [500, 302]
    update(**{"metadata[a]": "1"})
    deliveries = settle(stripe, 3)
    assert [(d["attempt"], d["status"]) for d in deliveries] == [(1, 500), (2, 302), (3, 200)]
    bodies, signatures = zip(*receiver.got, strict=True)
    assert len(set(bodies)) == 1
    assert signatures[0] != signatures[2]
    assert len(receiver.events()) == 3


def test_held_events_are_released_reversed_and_doubled(
    stripe: Stripe, receiver: Receiver, update: Callable[..., None]
) -> None:
    stripe.fake("POST", "webhook", {"hold": True})
    for n in range(3):
        update(**{"metadata[n]": str(n)})
    assert stripe.fake("GET", "deliveries") == {"deliveries": [], "pending": 0}
    released = stripe.fake("POST", "release", {"order": "reversed", "copies": 2})["released"]
    settle(stripe, 6)
    assert [event["id"] for event in receiver.events()] == released
    numbers = [event["data"]["object"]["metadata"]["n"] for event in receiver.events()]
    assert numbers == ["2", "1", "0", "2", "1", "0"]
    stripe.fake("POST", f"events/{released[0]}/deliver")
    assert len(settle(stripe, 7)) == 7


def test_an_event_lists_ten_items_at_most(
    stripe: Stripe, receiver: Receiver, update: Callable[..., None]
) -> None:
    stripe.seed(*[{}] * 11)
    update(**{"metadata[a]": "1"})
    settle(stripe, 1)
    items = receiver.events()[0]["data"]["object"]["items"]
    assert (len(items["data"]), items["has_more"]) == (10, True)


def test_without_a_test_clock_the_time_is_the_real_one_and_can_be_skipped(stripe: Stripe) -> None:
    customer = stripe.call("POST", "customers")
    form = {"customer": customer["id"], "items[0][price]": stripe.ids["price"]}
    made = stripe.call("POST", "subscriptions", **form)
    assert abs(made["current_period_start"] - time.time()) < 5
    stripe.fake("POST", "advance", {"seconds": 32 * DAY})
    found = stripe.call("GET", f"subscriptions/{made['id']}")
    assert found["current_period_start"] == made["current_period_end"]


def test_a_dropped_connection_and_a_fault_for_the_second_call(stripe: Stripe) -> None:
    stripe.fault(path="/v1/prices", drop=True)
    with pytest.raises((ConnectionError, urllib.error.URLError)):
        stripe.call("GET", "prices")
    stripe.fault(path="/v1/prices", skip=1, status=503)
    stripe.call("GET", "prices")
    with pytest.raises(Failed, match="503"):
        stripe.call("GET", "prices")


# Billing Meters


def send(stripe: Stripe, timestamp: int, value: str, **form: str) -> Any:
    payload = {"payload[stripe_customer_id]": stripe.ids["customer"], "payload[value]": value}
    event = {"event_name": "openmeter_m1", "timestamp": timestamp, **payload, **form}
    return stripe.call("POST", "billing/meter_events", ENDIVE, **event)


@pytest.fixture
def metered(stripe_fake: Stripe) -> Stripe:
    stripe_fake.seed({"price": stripe_fake.metered_price()})
    return stripe_fake


def test_a_meter_bills_the_last_value_and_a_draft_counts_once_more(metered: Stripe) -> None:
    send(metered, START + 60, "4")
    send(metered, START + 120, "7.5")
    metered.advance(END + 60)
    assert metered.invoiced() == [("draft", [7])]
    send(metered, END - 1, "9")
    metered.advance(END + HOUR)
    assert metered.invoiced() == [("open", [9])]


@pytest.mark.parametrize(
    ("readings", "billed"),
    [
        ({"last_by": "timestamp", "tie": "first", "boundary": "later"}, 3),
        ({"last_by": "timestamp", "tie": "last", "boundary": "later"}, 4),
        ({"last_by": "arrival", "boundary": "later"}, 2),
        ({"last_by": "timestamp", "boundary": "earlier"}, 5),
    ],
)
def test_what_stripe_leaves_unknown_can_be_read_either_way(
    metered: Stripe, readings: dict[str, str], billed: int
) -> None:
    metered.fake("POST", "readings", readings)
    metered.advance(END)
    for timestamp, value in (
        (END - 9, "3"),
        (END - 9, "4"),
        (END, "5"),
        (START, "1"),
        (END - 20, "2"),
    ):
        send(metered, timestamp, value)
    metered.advance(END + HOUR)
    assert metered.invoiced() == [("open", [billed])]


def test_meter_events_outside_the_rules_are_400(metered: Stripe) -> None:
    now = START + DAY
    for wrong, reason in (
        ({"timestamp": now - 36 * DAY}, "past 35 days"),
        ({"timestamp": now + 400}, "5 minutes ahead"),
        ({"value": "1e3"}, "Invalid value"),
        ({"value": "1234567890.123456"}, "Invalid value"),
    ):
        with pytest.raises(Failed, match=f"400: (?s:.)*{reason}"):
            send(metered, **{"timestamp": now, "value": "1", **wrong})  # type: ignore[arg-type]
    send(metered, now, "1", identifier="a")
    with pytest.raises(Failed, match="already exists with identifier a"):
        send(metered, now, "2", identifier="a")


def test_names_are_checked_later(metered: Stripe) -> None:
    send(metered, START + 60, "1", event_name="unknown")
    send(metered, START + 60, "1", **{"payload[stripe_customer_id]": "cus_gone"})
    assert len(metered.fake("GET", "meter_errors")["errors"]) == 2


def test_one_call_at_a_time_for_a_customer_and_meter() -> None:
    application = create_app()
    api: Api = application.extensions["api"]
    headers = {"Authorization": f"Bearer {KEY}"}

    def sent(customer: str) -> int:
        form = {"payload[stripe_customer_id]": customer, "payload[value]": "1"}
        form |= {"event_name": "openmeter_m1", "timestamp": str(START)}
        client = application.test_client()
        return client.post("/v1/billing/meter_events", headers=headers, data=form).status_code

    with ThreadPoolExecutor(3) as pool:
        with api.lock:
            first = pool.submit(sent, "cus_1")
            wait_for(lambda: len(api.busy) == 1, "the first call", 10)
            assert pool.submit(sent, "cus_1").result(10) == 409
            other = pool.submit(sent, "cus_2")
            wait_for(lambda: len(api.busy) == 2, "the other customer's call", 10)
        assert [first.result(10), other.result(10)] == [200, 200]
    assert sent("cus_1") == 200


def test_a_meter_has_its_rules(metered: Stripe) -> None:
    with pytest.raises(Failed, match="event_name exists"):
        metered.metered_price()
    form = {"display_name": "x", "event_name": "x", "default_aggregation[formula]": "last"}
    with pytest.raises(Failed, match="must be one of sum, count"):
        metered.call("POST", "billing/meters", ACACIA, **form)
    made = metered.call("POST", "billing/meters", ENDIVE, **form)
    assert metered.call("GET", f"billing/meters/{made['id']}", ENDIVE)["status"] == "active"
    metered.call("POST", f"billing/meters/{made['id']}/deactivate", ENDIVE)
    active = metered.call("GET", "billing/meters", ENDIVE, status="active")["data"]
    assert [meter["event_name"] for meter in active] == ["openmeter_m1"]
    with pytest.raises(Failed, match="not on the legacy metered billing system"):
        record(metered, START + 1, 1)


def test_a_summary_gives_what_a_meter_holds(metered: Stripe) -> None:
    send(metered, START + 60, "4.5")
    (meter,) = metered.call("GET", "billing/meters", ENDIVE)["data"]
    minute = START - START % 60
    query = {"customer": metered.ids["customer"], "start_time": minute, "end_time": minute + DAY}
    path = f"billing/meters/{meter['id']}/event_summaries"
    with pytest.raises(Failed, match="align with minute boundaries"):
        metered.call("GET", path, ENDIVE, **{**query, "start_time": START})
    (summary,) = metered.call("GET", path, ENDIVE, **query)["data"]
    assert (summary["aggregated_value"], summary["meter"]) == (4.5, meter["id"])


def test_a_draft_becomes_final_at_a_time_of_its_own_whoever_took_its_event(
    metered: Stripe,
) -> None:
    metered.collect_events(ENDIVE)
    metered.advance(END + 60)
    path = f"invoices/{invoices(metered)[0]['id']}"
    until = END + 5 * HOUR
    metered.call("POST", path, auto_advance="true", automatically_finalizes_at=until)
    assert metered.call("GET", path)["automatically_finalizes_at"] == until
    metered.advance(until - 1)
    assert metered.invoiced() == [("draft", [0])]
    metered.advance(until)
    assert metered.invoiced() == [("paid", [0])]
    assert metered.call("GET", path)["automatically_finalizes_at"] is None
    with pytest.raises(Failed, match="finalized"):
        metered.call("POST", path, automatically_finalizes_at=until + HOUR)


def test_a_draft_that_does_not_advance_stays_one(metered: Stripe) -> None:
    metered.advance(END + 60)
    path = f"invoices/{invoices(metered)[0]['id']}"
    for at in (END, END + 6 * 366 * 24 * HOUR):
        with pytest.raises(Failed, match="next 5 years"):
            metered.call("POST", path, automatically_finalizes_at=at)
    metered.call("POST", path, auto_advance="false")
    with pytest.raises(Failed, match="auto_advance"):
        metered.call("POST", path, automatically_finalizes_at=END + HOUR)
    metered.advance(END + 100 * HOUR)
    assert metered.invoiced() == [("draft", [0])]


def test_finalization_is_held_until_the_event_is_taken(metered: Stripe) -> None:
    held = Receiver()
    server = serve(held.app)
    held.answers = [500] * 3
    metered.fake(
        "POST",
        "webhook",
        {
            "url": f"http://127.0.0.1:{server.server_port}/",
            "secret": SECRET,
            "enabled_events": ["invoice.created"],
            "retry_seconds": [0, 0],
        },
    )
    metered.advance(END + 60)
    (event,) = {done["event"] for done in settle(metered, 3)}
    metered.advance(END + 5 * HOUR)
    assert metered.invoiced() == [("draft", [0])]
    metered.fake("POST", f"events/{event}/deliver")
    settle(metered, 4)
    metered.advance(END + 6 * HOUR - 1)
    assert metered.invoiced() == [("draft", [0])]
    metered.advance(END + 6 * HOUR)
    assert metered.invoiced() == [("paid", [0])]
    server.shutdown()
    server.server_close()
