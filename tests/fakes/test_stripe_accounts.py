"""The Stripe stand-in keeps accounts apart, as Connect and organizations have them."""

import json
import time
from typing import Any

import pytest
import stripe as sdk
from stripe import StripeClient
from stripe.events import V1BillingMeterNoMeterFoundEventNotification

from fakes.processes import Failed, call
from fakes.stripe_api import create_app
from tests.conftest import ACACIA, DAY, ENDIVE, KEY, SECRET, Stripe

X, Y = "acct_1x", "acct_1y"
ORGANIZATION = "sk_org_test_4Tn6"


def as_account(
    stripe: Stripe, method: str, path: str, form: str = "", key: str = KEY, **headers: str
) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"Authorization": f"Bearer {key}", "Stripe-Version": ACACIA, **sent}
    body = form.encode() if method == "POST" else None
    return call(method, f"{stripe.url}/v1/{path}", body, sent)


def names(stripe: Stripe, **headers: str) -> list[str]:
    listed = as_account(stripe, "GET", "customers", **headers)["data"]
    return [customer["name"] for customer in listed]


def control(stripe: Stripe, account: str, method: str, path: str, body: Any = None) -> Any:
    return stripe.fake(method, f"accounts/{account}/{path}", body)


def subscribe(stripe: Stripe, account: str) -> str:
    """Create a subscription in an account and return its id."""
    made: dict[str, str] = {}
    for kind, path, form in (
        ("customer", "customers", "name=c"),
        ("product", "products", "name=p"),
        ("price", "prices", "product={product}&unit_amount=1&recurring[interval]=month"),
        ("sub", "subscriptions", "customer={customer}&items[0][price]={price}"),
    ):
        filled = form.format(**made)
        made[kind] = as_account(stripe, "POST", path, filled, Stripe_Account=account)["id"]
    return str(made["sub"])


def test_accounts_share_ids_and_nothing_else(stripe_fake: Stripe) -> None:
    made = [stripe_fake.call("POST", "customers", name="own")]
    for account in (X, Y):
        form = f"name={account}"
        made.append(as_account(stripe_fake, "POST", "customers", form, Stripe_Account=account))
    assert len({customer["id"] for customer in made}) == 1
    assert names(stripe_fake) == ["own"]
    assert names(stripe_fake, Stripe_Account=X) == [X]
    assert names(stripe_fake, Stripe_Context=Y) == [Y]
    assert names(stripe_fake, Stripe_Context=f"org_1/{Y}", Stripe_Account=X) == [Y]
    path = f"customers/{made[0]['id']}"
    assert as_account(stripe_fake, "GET", path, Stripe_Account=Y)["name"] == Y


def test_an_account_that_there_is_not_is_403(stripe_fake: Stripe) -> None:
    for headers in ({"Stripe_Account": "cus_1"}, {"Stripe_Context": "org_1"}):
        with pytest.raises(Failed, match="answered 403: (?s:.)*account_invalid"):
            names(stripe_fake, **headers)


def test_an_organizations_key_needs_a_context_and_a_version(stripe_fake: Stripe) -> None:
    for headers in ({}, {"Stripe_Account": X}):
        with pytest.raises(Failed, match="answered 400: (?s:.)*Stripe-Context"):
            as_account(stripe_fake, "GET", "customers", key=ORGANIZATION, **headers)
    bare = {"Authorization": f"Bearer {ORGANIZATION}", "Stripe-Context": X}
    with pytest.raises(Failed, match="answered 400: (?s:.)*Stripe-Version"):
        call("GET", f"{stripe_fake.url}/v1/customers", None, bare)
    found = as_account(stripe_fake, "GET", "customers", key=ORGANIZATION, Stripe_Context=X)
    assert found["data"] == []


def test_each_account_has_its_controls_and_its_log_of_calls(stripe_fake: Stripe) -> None:
    fault = {"path": "/v1/customers", "status": 503}
    control(stripe_fake, X, "POST", "faults", fault)
    assert names(stripe_fake) == names(stripe_fake, Stripe_Account=Y) == []
    with pytest.raises(Failed, match="answered 503"):
        names(stripe_fake, Stripe_Account=X)
    names(stripe_fake, Stripe_Context=X)
    noted = control(stripe_fake, X, "GET", "requests")["requests"]
    assert [(entry["account"], entry["context"]) for entry in noted] == [(X, None), (None, X)]
    (own,) = stripe_fake.requests()
    assert (own["account"], own["context"]) == (None, None)
    with pytest.raises(Failed, match="answered 404"):
        control(stripe_fake, "cus_1", "GET", "requests")


def test_the_time_of_all_accounts_is_one(stripe_fake: Stripe) -> None:
    made = as_account(
        stripe_fake, "GET", f"subscriptions/{subscribe(stripe_fake, X)}", Stripe_Account=X
    )
    stripe_fake.fake("POST", "offset", {"seconds": 32 * DAY})
    later = as_account(stripe_fake, "POST", "customers", Stripe_Account=Y)
    assert abs(later["created"] - time.time() - 32 * DAY) < 5
    found = as_account(stripe_fake, "GET", f"subscriptions/{made['id']}", Stripe_Account=X)
    assert found["current_period_start"] == made["current_period_end"]


@pytest.mark.parametrize(("context", "name"), [(False, "account"), (True, "context")])
def test_an_event_names_its_account(stripe_fake: Stripe, context: bool, name: str) -> None:
    stripe_fake.collect_events(ACACIA)
    endpoint = {"url": "http://127.0.0.1:9", "secret": SECRET, "hold": True}
    control(stripe_fake, X, "POST", "webhook", {**endpoint, "context": context})
    key = subscribe(stripe_fake, X)
    as_account(stripe_fake, "POST", f"subscriptions/{key}", "metadata[a]=1", Stripe_Account=X)
    (created, event) = control(stripe_fake, X, "GET", "events")["events"]
    assert {name: event[name] for name in ("account", "context") if name in event} == {name: X}
    listed = as_account(stripe_fake, "GET", "events", Stripe_Account=X)["data"]
    assert listed == [event, created]
    assert stripe_fake.events() == stripe_fake.call("GET", "events")["data"] == []
    stripe_fake.seed()
    stripe_fake.update(**{"metadata[a]": "1"})
    assert all(not {"account", "context"} & event.keys() for event in stripe_fake.events())


def test_a_thin_event_of_an_account_is_fetched_in_its_context(
    stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "enable_telemetry", False)
    endpoint = {"url": "http://127.0.0.1:9", "thin_secret": SECRET, "hold": True}
    control(stripe_fake, X, "POST", "webhook", endpoint)
    form = "event_name=unknown&payload[value]=1"
    as_account(stripe_fake, "POST", "billing/meter_events", form, Stripe_Account=X)
    control(stripe_fake, X, "POST", "report_meter_errors")
    (event,) = control(stripe_fake, X, "GET", "events")["events"]
    assert event["context"] == X
    client = StripeClient(KEY, base_addresses={"api": stripe_fake.url})
    found = client.parse_event_notification_without_verification(json.dumps(event))
    assert isinstance(found, V1BillingMeterNoMeterFoundEventNotification)
    assert found.fetch_event().data.reason.error_count == 1
    path = f"{stripe_fake.url}/v2/core/events/{event['id']}"
    with pytest.raises(Failed, match="answered 404"):
        call("GET", path, None, {"Authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize("livemode", [False, True])
def test_events_are_of_the_mode_that_the_endpoint_is_told(
    stripe_fake: Stripe, livemode: bool
) -> None:
    stripe_fake.seed({"price": stripe_fake.metered_price()})
    stripe_fake.collect_events(ENDIVE)
    mode = {"livemode": True} if livemode else {}
    stripe_fake.fake("POST", "webhook", {"thin_secret": SECRET, **mode})
    stripe_fake.update(**{"metadata[a]": "1"})
    stripe_fake.call("POST", "billing/meter_events", ENDIVE, event_name="unknown")
    stripe_fake.fake("POST", "report_meter_errors")
    assert [event["livemode"] for event in stripe_fake.events()] == [livemode] * 2


def test_accounts_are_reached_in_one_process_too() -> None:
    application = create_app()
    headers = {"Authorization": f"Bearer {KEY}", "Stripe-Account": X}
    sent = application.test_client().post("/v1/customers", headers=headers, data={"name": "c"})
    assert sent.status_code == 200
    other = application.extensions["accounts"].app(X).extensions["api"].account
    assert [customer["name"] for customer in other.all("customer")] == ["c"]
    assert application.extensions["api"].account.all("customer") == []
