"""Items backed by a Billing Meter: running totals, closed periods, invoices and ends."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from billing.clock import report_second
from tests.conftest import ACACIA, DAY, END, ENDIVE, START, Answer, Service

Start = Callable[..., Service]
HOUR = 3_600
BOTH = pytest.mark.parametrize("version", [ACACIA, ENDIVE])
METERED = {"metadata[om_meter_id]": "m1"}


@pytest.fixture
def metered(start: Start) -> Callable[..., Service]:
    """Start the service with one item on a Billing Meter, and keep Stripe's events back."""

    def started(version: str = ENDIVE, *more: dict[str, str], **form: str) -> Service:
        service = start()
        price = service.stripe.metered_price()
        service.stripe.collect_events(version)
        service.stripe.seed({**METERED, "price": price}, *more, **form)
        return service

    return started


def deliver_new(service: Service, known: int, kind: str = "") -> list[Answer]:
    """Deliver the events after the first `known`, as if they had just been made."""
    fresh = [event for event in service.stripe.events()[known:] if kind in event["type"]]
    return [service.post(json.dumps(event)) for event in fresh]


def meter_events(service: Service) -> list[tuple[int, str]]:
    """Return timestamp and value of the meter events sent so far."""
    return [
        (int(seen["form"]["timestamp"]), seen["form"]["payload[value]"])
        for seen in service.stripe.requests()
        if seen["path"] == "/v1/billing/meter_events"
    ]


@BOTH
def test_a_running_total_goes_to_the_meter_as_a_plain_decimal(
    metered: Callable[..., Service], version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = metered(version)
    service.openmeter.use(service.stripe.ids["customer"], 7.25, 3.25)
    service.stripe.update(**{"metadata[a]": "1"})
    (answer,) = deliver_new(service, 0, "updated")
    assert answer.status_code == 200
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["10.5"]
    ((second, value),) = meter_events(service)
    assert value == "10.5"
    assert START < second < END - 1
    assert "meter: m1, total_usage: 10.500000, from: 2023-06-07 14:20:30" in caplog.text
    (sent,) = [seen for seen in service.stripe.requests() if "meter_events" in seen["path"]]
    assert sent["form"]["event_name"] == "openmeter_m1"
    assert sent["form"]["payload[stripe_customer_id]"] == service.stripe.ids["customer"]
    assert sent["version"] == ENDIVE


def test_one_subscription_may_hold_both_ways(metered: Callable[..., Service]) -> None:
    service = metered(ACACIA, METERED)
    service.openmeter.use(service.stripe.ids["customer"], 2.5)
    service.stripe.update(**{"metadata[a]": "1"})
    (answer,) = deliver_new(service, 0, "updated")
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["2.5", 2]
    assert service.stripe.usage(service.stripe.items()[1]) == [2]


@BOTH
@pytest.mark.parametrize("kind", ["updated", "invoice"])
def test_a_renewal_is_closed_while_its_invoice_is_a_draft(
    metered: Callable[..., Service], version: str, kind: str
) -> None:
    service = metered(version)
    customer = service.stripe.ids["customer"]
    service.openmeter.use(customer, 10)
    service.openmeter.use(customer, 4, time="2023-07-07T13:59:59Z")
    service.openmeter.use(customer, 1, time="2023-07-07T14:00:00Z")
    service.stripe.advance(END + 60)
    answers = deliver_new(service, 0, kind)
    assert [answer.status_code for answer in answers if "ignored" not in answer.text] == [200]
    sent = meter_events(service)
    assert sent[0] == (report_second(START, END, END + 60), "14")
    if kind == "updated":
        assert sent[1][1] == "1"
        assert sent[1][0] > END
    service.stripe.advance(END + 60 + 72 * HOUR)
    assert service.stripe.invoiced() == [("open", [14])]


@BOTH
def test_a_reset_reports_the_closed_period_too_and_warns_with_its_total(
    metered: Callable[..., Service], version: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = metered(version)
    customer = service.stripe.ids["customer"]
    service.openmeter.use(customer, 10)
    service.stripe.update(**{"metadata[a]": "1"})
    deliver_new(service, 0, "updated")
    service.stripe.advance(START + DAY + 60)
    service.openmeter.use(customer, 2, time="2023-06-08T14:21:00Z")
    known = len(service.stripe.events())
    service.stripe.update(billing_cycle_anchor="now")
    service.openmeter.use(customer, 1, time="2023-06-08T14:22:00Z")
    (answer,) = deliver_new(service, known, "updated")
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["12", "1"]
    item = service.stripe.items()[0]
    assert answer.json["warnings"] == [
        {
            "item": item,
            "warning": "a reset ended the period from 2023-06-07 14:20:30 +0000 UTC to "
            "2023-06-08 14:21:30 +0000 UTC of "
            f"{service.stripe.ids['subscription']}, invoiced with what had been reported by "
            f"then: 12 metered, 10 on invoice {service.stripe.subscription()['latest_invoice']}: "
            "2 units (0.20 USD) not billed",
        }
    ]
    assert "2 units (0.20 USD) not billed" in caplog.text
    assert service.stripe.invoiced() == [("open", [10])]


@BOTH
def test_a_closed_period_of_usage_records_is_warned_of(
    service: Service, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.stripe.collect_events(version)
    service.stripe.advance(END + 60)
    (answer,) = deliver_new(service, 0, "updated")
    assert answer.status_code == 200
    assert len(answer.json["reported"]) == 1
    item, subscription = service.stripe.items()[0], service.stripe.ids["subscription"]
    warning = (
        "the period from 2023-06-07 14:20:30 +0000 UTC to 2023-07-07 14:20:30 +0000 UTC of "
        f"{subscription} has closed and can no longer be written"
    )
    assert warning in answer.json["warnings"][0]["warning"]
    assert f"{item}: {warning}" in caplog.text


@BOTH
@pytest.mark.parametrize(
    "form",
    [
        {"cancel_at_period_end": "true"},
        {"cancel_at": str(END - DAY)},
        {"metadata[a]": "1"},
        {"items[0][metadata][b]": "1"},
    ],
)
def test_another_change_is_no_roll_over(
    metered: Callable[..., Service], version: str, form: dict[str, str]
) -> None:
    # In classic mode, an earlier cancel_at resets the anchor.
    service = metered(version, **{"billing_mode[type]": "flexible"})
    if "items[0][metadata][b]" in form:
        form = {**form, "items[0][id]": service.stripe.items()[0]}
    service.openmeter.use(service.stripe.ids["customer"], 10)
    service.stripe.update(**form)
    (answer,) = deliver_new(service, 0, "updated")
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["10"]
    assert answer.json["warnings"] == []


@BOTH
@pytest.mark.parametrize("broken", ["/query", "/meter_events", "/subscriptions/", "/meters/"])
def test_a_draft_is_held_until_its_period_could_be_reported(
    metered: Callable[..., Service], version: str, broken: str
) -> None:
    service = metered(version)
    service.openmeter.use(service.stripe.ids["customer"], 10)
    service.stripe.advance(END + 60)
    (event,) = [e for e in service.stripe.events() if e["type"] == "invoice.created"][-1:]
    fake = service.openmeter if broken == "/query" else service.stripe
    fake.fault(path=broken, status=503, times=2)
    assert service.post(json.dumps(event)).status_code == 500
    assert service.post(json.dumps(event)).status_code == 200
    assert meter_events(service)[-1] == (report_second(START, END, END + 60), "10")


@BOTH
def test_a_draft_of_a_period_between_two_resets_bills_nothing_twice(
    metered: Callable[..., Service], version: str
) -> None:
    service = metered(version)
    stripe, customer = service.stripe, service.stripe.ids["customer"]
    service.openmeter.use(customer, 5, time="2023-06-08T14:19:00Z")
    stripe.update(**{"metadata[a]": "1"})
    deliver_new(service, 0, "updated")
    stripe.advance(START + DAY + 60)
    stripe.update(billing_cycle_anchor="now")
    service.openmeter.use(customer, 2, time="2023-06-08T14:22:00Z")
    renewal = stripe.subscription()["current_period_end"]
    stripe.advance(renewal + 600)
    (event,) = [e for e in stripe.events() if "invoice" in e["type"]][-1:]
    stripe.update(billing_cycle_anchor="now")
    answer = service.post(aged(event, 600))
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["2"]
    stripe.advance(renewal + 600 + 72 * HOUR)
    assert stripe.invoiced() == [("open", [5]), ("open", [2]), ("paid", [0])]


def test_other_invoices_are_ignored(metered: Callable[..., Service]) -> None:
    service = metered()
    service.stripe.update(billing_cycle_anchor="now")
    service.forget()
    answers = deliver_new(service, 0, "invoice")
    assert len(answers) == 2
    assert {answer.text for answer in answers} == {'{"ignored":"invoice.created"}\n'}
    assert service.called() == []


@BOTH
def test_an_invoice_with_more_than_ten_lines_is_read_whole(start: Start, version: str) -> None:
    service = start()
    prices = [service.stripe.metered_price(f"m{n}") for n in range(12)]
    for n in range(12):
        if n != 1:
            service.openmeter.meter(f"m{n}")
    service.stripe.collect_events(version)
    service.stripe.seed(
        *[{"metadata[om_meter_id]": f"m{n}", "price": price} for n, price in enumerate(prices)]
    )
    for n in range(12):
        kind = "execution" if n == 1 else f"m{n}"
        service.openmeter.use(service.stripe.ids["customer"], n + 1, kind=kind)
    service.stripe.advance(END + 60)
    deliver_new(service, 0, "invoice")
    values = sorted(int(value) for _, value in meter_events(service))
    assert values == [n + 1 for n in range(12)]
    service.stripe.advance(END + 60 + 72 * HOUR)
    assert service.stripe.invoiced()[-1] == ("open", [n + 1 for n in range(10)])


@BOTH
def test_the_end_of_a_subscription_is_reported_to_the_second(
    metered: Callable[..., Service], version: str
) -> None:
    service = metered(version, METERED)
    customer = service.stripe.ids["customer"]
    service.openmeter.use(customer, 10, time="2023-07-07T14:10:00Z")
    service.stripe.update(cancel_at_period_end="true")
    service.stripe.advance(END + 60)
    (answer,) = deliver_new(service, 0, "deleted")
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["10"]
    assert answer.json["skipped"] == [
        service.stripe.call("GET", f"subscriptions/{service.stripe.ids['subscription']}")["items"][
            "data"
        ][1]["id"]
    ]
    (invoice,) = deliver_new(service, 0, "invoice")[-1:]
    assert [entry["quantity"] for entry in invoice.json["reported"]] == ["10"]
    assert meter_events(service) == [(report_second(START, END, END + 60), "10")] * 2
    service.stripe.advance(END + 60 + 72 * HOUR)
    assert service.stripe.invoiced() == [("open", [10, 0])]


def test_an_end_without_its_time_is_refused(metered: Callable[..., Service]) -> None:
    service = metered()
    service.stripe.call("DELETE", f"subscriptions/{service.stripe.ids['subscription']}")
    (event,) = [e for e in service.stripe.events() if "deleted" in e["type"]]
    event["data"]["object"]["ended_at"] = None
    answer = service.post(json.dumps(event))
    assert (answer.status_code, "ended_at" in answer.json["error"]) == (422, True)


def test_two_items_on_one_meter_are_refused_by_name_if_they_count_something_else(
    start: Start,
) -> None:
    service = start()
    price = service.stripe.metered_price()
    service.openmeter.meter("m2")
    service.stripe.collect_events(ENDIVE)
    other = {"metadata[om_meter_id]": "m2", "price": price}
    service.stripe.seed({**METERED, "price": price}, METERED, other)
    service.openmeter.use(service.stripe.ids["customer"], 10)
    first, second, third = service.stripe.items()
    service.stripe.update(**{"metadata[a]": "1"})
    (answer,) = deliver_new(service, 0, "updated")
    assert answer.status_code == 500
    (failed,) = answer.json["failed"]
    assert failed["item"] == f"{first} and {third}"
    assert "overwrite each other's totals on Billing Meter mtr_" in failed["error"]
    assert [entry["item"] for entry in answer.json["reported"]] == [second]
    assert meter_events(service) == []


def test_two_items_on_one_meter_that_count_the_same_are_served_and_warned_of(start: Start) -> None:
    service = start()
    price = service.stripe.metered_price()
    service.stripe.collect_events(ENDIVE)
    service.stripe.seed({**METERED, "price": price}, {**METERED, "price": price})
    service.openmeter.use(service.stripe.ids["customer"], 10)
    first, second = service.stripe.items()
    service.stripe.update(**{"metadata[a]": "1"})
    (answer,) = deliver_new(service, 0, "updated")
    assert (answer.status_code, answer.json["failed"]) == (200, [])
    assert {value for _, value in meter_events(service)} == {"10"}
    (warned,) = answer.json["warnings"]
    assert warned["item"] == f"{first} and {second}"
    assert "bill the same usage, of meter m1" in warned["warning"]


@pytest.mark.parametrize("formula", ["sum", "count"])
def test_a_meter_that_adds_up_is_refused(start: Start, formula: str) -> None:
    service = start()
    price = service.stripe.metered_price(formula=formula)
    service.stripe.collect_events(ENDIVE)
    service.stripe.seed({**METERED, "price": price})
    service.stripe.update(**{"metadata[a]": "1"})
    (answer,) = deliver_new(service, 0, "updated")
    assert answer.status_code == 500
    assert f"{formula}', which would add up totals sent twice" in answer.json["failed"][0]["error"]
    assert meter_events(service) == []


def test_an_invoice_of_a_subscription_that_is_gone_is_held(
    metered: Callable[..., Service],
) -> None:
    service = metered()
    service.stripe.advance(END + 60)
    (event,) = [e for e in service.stripe.events() if e["type"] == "invoice.created"][-1:]
    event["data"]["object"]["parent"]["subscription_details"]["subscription"] = "sub_gone"
    answer = service.post(json.dumps(event))
    assert (answer.status_code, answer.json["reported"]) == (500, [])
    assert "gone from Stripe" in answer.json["failed"][0]["error"]


@BOTH
@pytest.mark.parametrize("change", [{"price": ""}, {"deleted": "true"}])
def test_an_item_that_changed_since_its_invoice_is_closed_on_the_lines_price(
    start: Start, version: str, change: dict[str, str]
) -> None:
    service = start()
    prices = [service.stripe.metered_price(slug) for slug in ("m1", "m2")]
    service.stripe.collect_events(version)
    service.stripe.seed({**METERED, "price": prices[0]}, METERED)
    service.openmeter.use(service.stripe.ids["customer"], 10)
    service.openmeter.use(service.stripe.ids["customer"], 3, time="2023-07-07T14:10:00Z")
    service.stripe.advance(END + 60)
    item = service.stripe.items()[0]
    (event,) = [e for e in service.stripe.events() if e["type"] == "invoice.created"][-1:]
    form = {f"items[0][{name}]": value or prices[1] for name, value in change.items()}
    service.stripe.update(**{"items[0][id]": item, **form})
    answer = service.post(json.dumps(event))
    assert (answer.status_code, [entry["item"] for entry in answer.json["failed"]]) == (500, [item])
    assert "updated of that was not seen" in answer.json["failed"][0]["error"]
    (of_the_change,) = deliver_new(service, len(service.stripe.events()) - 1, "updated")
    assert of_the_change.status_code == 200
    service.forget()
    answer = service.post(json.dumps(event))
    assert answer.status_code == 200
    assert [(e["item"], e["stripe_price"]) for e in answer.json["reported"]] == [(item, prices[0])]
    # The period went over into the next at a natural renewal: rounded down there.
    assert meter_events(service) == [(report_second(START, END, END + 60), "10")]


def test_a_late_renewal_closes_no_more_than_its_own_period(start: Start) -> None:
    service = start()
    prices = [service.stripe.metered_price(f"m{n}") for n in range(12)]
    service.stripe.collect_events(ACACIA)
    service.stripe.seed(*[{**METERED, "price": price} for price in prices])
    customer = service.stripe.ids["customer"]
    service.openmeter.use(customer, 100)
    service.stripe.advance(END + 60)
    (late,) = [e for e in service.stripe.events() if "updated" in e["type"]]
    deliver_new(service, 0, "invoice")
    service.openmeter.use(customer, 7, time="2023-07-09T00:00:00Z")
    known = len(service.stripe.events())
    second = service.stripe.subscription()["current_period_end"]
    service.stripe.advance(second + 60)
    deliver_new(service, known, "invoice")
    assert service.post(aged(late, 60)).status_code == 200
    service.stripe.advance(second + 80 * HOUR)
    for _, quantities in service.stripe.invoiced():
        assert set(quantities) in ({100}, {7})


def test_a_new_subscription_of_a_customer_bills_nothing_again(
    metered: Callable[..., Service],
) -> None:
    service = metered()
    stripe, customer = service.stripe, service.stripe.ids["customer"]
    service.openmeter.use(customer, 10, time="2023-06-08T14:10:00Z")
    stripe.update(**{"metadata[a]": "1"})
    deliver_new(service, 0, "updated")
    stripe.advance(START + DAY + 60)
    stripe.call("DELETE", f"subscriptions/{stripe.ids['subscription']}", invoice_now="true")
    stripe.advance(START + DAY + 120)
    price = stripe.call("GET", "prices", ENDIVE)["data"][-1]["id"]
    form = {"items[0][price]": price, "items[0][metadata][om_meter_id]": "m1"}
    made = stripe.call("POST", "subscriptions", customer=customer, **form)
    stripe.ids["subscription"] = made["id"]
    stripe.update(**{"metadata[a]": "2"})
    stripe.advance(START + DAY + 180)
    answer = deliver_new(service, len(stripe.events()) - 1, "updated")[-1]
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["0"]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("parent", {"type": "subscription_details"}, "subscription"),
        ("lines", None, "lines.data"),
        ("lines", {"data": {}}, "lines.data"),
    ],
)
def test_an_invoice_that_lacks_something_is_refused_by_the_fields_name(
    metered: Callable[..., Service], path: str, value: object, field: str
) -> None:
    service = metered()
    service.stripe.advance(END + 60)
    (event,) = [e for e in service.stripe.events() if e["type"] == "invoice.created"][-1:]
    event["data"]["object"][path] = value
    answer = service.post(json.dumps(event))
    assert (answer.status_code, field in answer.json["error"]) == (422, True)
    assert meter_events(service) == []


def aged(event: dict[str, Any], seconds: int) -> str:
    """Return an event's body as if it had been made some seconds ago."""
    return json.dumps({**event, "created": event["created"] - seconds})


@BOTH
def test_a_late_event_does_not_put_an_old_total_into_a_new_period(
    metered: Callable[..., Service], version: str
) -> None:
    service = metered(version)
    customer = service.stripe.ids["customer"]
    service.openmeter.use(customer, 10)
    service.stripe.update(**{"metadata[a]": "1"})
    (late,) = service.stripe.events()[-1:]
    service.stripe.advance(START + 2 * DAY)
    service.stripe.update(billing_cycle_anchor="now")
    service.stripe.advance(START + 3 * DAY)
    answer = service.post(aged(late, 60))
    assert answer.status_code == 200
    assert [entry["quantity"] for entry in answer.json["reported"]] == ["0"]


def test_a_late_event_of_an_ended_subscription_reports_nothing(
    metered: Callable[..., Service],
) -> None:
    service = metered()
    service.stripe.update(**{"metadata[a]": "1"})
    (late,) = service.stripe.events()[-1:]
    service.stripe.call("DELETE", f"subscriptions/{service.stripe.ids['subscription']}")
    assert service.post(aged(late, 60)).json["reported"] == []
    assert meter_events(service) == []
