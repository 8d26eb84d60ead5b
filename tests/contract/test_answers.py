"""The stand-in of Stripe answers in the shapes that Stripe publishes for each API version."""

from collections.abc import Iterator
from typing import Any

import pytest

from fakes.processes import call
from tests.conftest import ACACIA, END, ENDIVE, KEY, SECRET, START
from tests.contract.conftest import TIERS
from tests.contract.shapes import Json, differences, kind_of, missing, shapes
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE
from tests.stories.test_life import HOUR, Story, T, Tell

VERSIONS = pytest.mark.parametrize("version", [ACACIA, ENDIVE])
# What objects of a kind always have, and the stand-in's have not: nothing here reads it.
BOTH = """
    invoice.amount_paid invoice.amount_remaining invoice.amount_shipping invoice.attempt_count
    invoice.attempted invoice.automatic_tax invoice.default_tax_rates invoice.issuer
    invoice.payment_settings invoice.post_payment_credit_notes_amount
    invoice.pre_payment_credit_notes_amount invoice.starting_balance
    product.images product.marketing_features product.type product.updated
    subscription.automatic_tax subscription.invoice_settings subscription_item.plan
    test_helpers.test_clock.deletes_after test_helpers.test_clock.status_details
"""
ABSENT = {
    ACACIA: f"""{BOTH}
        invoice.paid invoice.paid_out_of_band invoice.total_tax_amounts
        line_item.tax_amounts line_item.tax_rates
    """,
    ENDIVE: f"{BOTH} invoice.amount_overpaid subscription.billing_schedules",
}
# What the stand-in shows otherwise, because Stripe does not say what it shows there.
OTHERWISE = {
    # A formula that is younger than the version.
    ACACIA: {"billing.meter.default_aggregation.formula: 'last' is not one of ['count', 'sum']"},
    # A null for the object that an event is about, where there is none.
    ENDIVE: {
        "v1.billing.meter.no_meter_found: "
        "Additional properties are not allowed ('related_object' was unexpected)"
    },
}


def everything(tell: Tell, version: str) -> list[Json]:
    """Return objects of each kind, in the states that they can be in, as a version shows them."""
    story = tell(version, clocked=True)
    made = list(subscriptions(story, version))
    if version == ENDIVE:  # their shape is of no version
        made += thin_events(story)
    story.to(END + 60)
    made += listed(story, version)
    story.to(END + 80 * HOUR)
    events = story.call("GET", "events", version, limit=100)["data"]
    made += [*events, *(event["data"]["object"] for event in events)]
    return [*made, *listed(story, version)]


def subscriptions(story: Story, version: str) -> Iterator[Json]:
    """Begin subscriptions, change them, and yield what the calls answer."""
    story.price("tiered", meter="m2", **TIERS)
    for mode in (CLASSIC, FLEXIBLE):
        story.subscribe(mode, "A", "other", "tiered", "flat")
        story.report(10, START + 60)
    story.to(T)
    story.change("B")
    yield story.call("DELETE", f"subscription_items/{story.items()[1]}", version)
    for owner in ({}, {"subscription": story.subscription}):
        money = {"amount": 250, "currency": "usd", "metadata[a]": "b", "description": "c"}
        yield story.call("POST", "invoiceitems", version, customer=story.customer, **money, **owner)
    trial = {"end_date": T + HOUR, "trial_offer": "toff_1"}
    path = f"subscription_items/{story.items()[0]}"
    story.stripe.fake("POST", path, {"current_trial": trial})
    yield story.shown(version)
    story.subscribe(FLEXIBLE, "A", trial_period_days=3, cancel_at_period_end="true")
    yield story.call("DELETE", f"subscriptions/{story.subscription}", version, invoice_now="true")
    for status in ("past_due", "unpaid", "incomplete", "incomplete_expired", "paused"):
        story.subscribe(CLASSIC, "A")
        story.status(status)
    story.subscribe(CLASSIC, "R")
    story.to(T + HOUR)
    yield from usage(story, version)


def usage(story: Story, version: str) -> Iterator[Json]:
    """Report usage both ways, and yield what the calls answer."""
    payload = {"payload[stripe_customer_id]": story.customer, "payload[value]": "1"}
    yield story.call("POST", "billing/meter_events", version, event_name="m1", **payload)
    if version == ACACIA:
        path = f"subscription_items/{story.items()[0]}/usage_records"
        form = {"quantity": 4, "timestamp": T + 60, "action": "set"}
        yield story.call("POST", path, version, **form)
        path = f"subscription_items/{story.items()[0]}/usage_record_summaries"
        yield from story.call("GET", path, version)["data"]


def thin_events(story: Story) -> Iterator[Json]:
    """Yield what tells of meter events that Stripe took and refused later."""
    story.stripe.fake("POST", "webhook", {"thin_secret": SECRET})
    for name, key in (("m1", "cus_unknown"), ("m1", ""), ("unknown", "cus_unknown")):
        payload = {"payload[value]": "1"} | ({"payload[stripe_customer_id]": key} if key else {})
        story.call("POST", "billing/meter_events", event_name=name, **payload)
    made = story.stripe.fake("POST", "report_meter_errors")
    for event in made["events"]:
        url = f"{story.stripe.url}/v2/core/events/{event}"
        yield call("GET", url, None, {"Authorization": f"Bearer {KEY}"})


def listed(story: Story, version: str) -> Iterator[Json]:
    """Yield all that the lists have, with what they can expand."""

    def read(path: str, **query: Any) -> list[Json]:
        page: Json = story.call("GET", path, version, limit=100, **query)
        assert page.keys() == {"object", "data", "has_more", "url"}
        return list(page["data"])

    kinds = ("billing/meters", "customers", "invoiceitems", "products", "test_helpers/test_clocks")
    for path in kinds:
        yield from read(path)
    yield from read("prices", **{"expand[0]": "data.tiers"})
    for meter in story.meters.values():
        times = {"start_time": START - START % 60, "end_time": END - END % 60}
        path = f"billing/meters/{meter}/event_summaries"
        yield from read(path, customer=story.customer, **times)
    # In acacia the subscription stands elsewhere.
    whole = {"expand[0]": "data.parent.subscription_details.subscription"}
    for invoice in read("invoices", **(whole if version == ENDIVE else {})):
        yield invoice
        yield from read(f"invoices/{invoice['id']}/lines")
    for found in read("subscriptions", status="all", **{"expand[0]": "data.latest_invoice"}):
        yield found
        if found["status"] == "active":
            yield story.call("POST", "invoices/create_preview", version, subscription=found["id"])
        yield from read("subscription_items", subscription=found["id"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantity": "1"}, "subscription_item.quantity: '1' is not of type"),
        ({"ended": 1}, "subscription_item: Additional properties are not allowed ('ended'"),
        (
            {"price": {"object": "price", "type": "metered"}},
            "subscription_item.price.type: 'metered'",
        ),
    ],
)
def test_a_type_a_name_and_a_value_that_are_not_stripes_are_found(change: Json, said: str) -> None:
    found = {"id": "si_1", "object": "subscription_item", **change}
    assert [each for each in differences(found, ENDIVE) if said in each]
    assert "subscription_item.created" in missing(found, ENDIVE)


@VERSIONS
def test_each_object_is_as_stripe_publishes_its_kind(tell: Tell, version: str) -> None:
    found = everything(tell, version)
    assert {kind_of(each) for each in found} == shapes(version).keys()
    assert {said for each in found for said in differences(each, version)} == OTHERWISE[version]
    lacking = {name for each in found for name in missing(each, version)}
    assert lacking == set(ABSENT[version].split())
