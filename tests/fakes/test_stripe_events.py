"""The Stripe stand-in has a time of its own, lists its events and tells what it did not count."""

import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import Request

import pytest
import stripe as sdk
from stripe import StripeClient, WebhookSignature
from stripe.events import (
    V1BillingMeterErrorReportTriggeredEvent,
    V1BillingMeterErrorReportTriggeredEventNotification,
    V1BillingMeterNoMeterFoundEvent,
    V1BillingMeterNoMeterFoundEventNotification,
)

from fakes.processes import DIRECT, Failed
from tests.conftest import ACACIA, DAY, END, ENDIVE, KEY, SECRET, START, Stripe, serve
from tests.fakes.receiver import Receiver, settle

THIN_SECRET = "whsec_thin_2Lp8"
UPDATED, CREATED = "customer.subscription.updated", "invoice.created"
GONE = "http://127.0.0.1:9/"


@pytest.fixture
def stripe(stripe_fake: Stripe) -> Stripe:
    stripe_fake.seed()
    return stripe_fake


@pytest.fixture
def metered(stripe_fake: Stripe) -> Stripe:
    stripe_fake.seed({"price": stripe_fake.metered_price()})
    return stripe_fake


@contextmanager
def endpoint(stripe: Stripe, secret: str = SECRET, **settings: Any) -> Iterator[Receiver]:
    """Let the stand-in deliver to an endpoint that is reachable."""
    found = Receiver(secret)
    server = serve(found.app)
    url = f"http://127.0.0.1:{server.server_port}/"
    stripe.fake("POST", "webhook", {"url": url, "secret": SECRET, **settings})
    yield found
    server.shutdown()
    server.server_close()


def outage(stripe: Stripe, **settings: Any) -> None:
    """Let the endpoint be one that nobody answers at."""
    stripe.fake("POST", "webhook", {"url": GONE, "secret": SECRET, "retry_seconds": [], **settings})


def head(stripe: Stripe, path: str, key: str = KEY) -> Message:
    """Return the headers of an answer, whatever its status."""
    call = Request(f"{stripe.url}{path}", headers={"Authorization": f"Bearer {key}"})
    try:
        with DIRECT.open(call, timeout=10) as answer:
            found: Message = answer.headers
    except urllib.error.HTTPError as error:
        found = error.headers
        error.close()
    return found


def ids(stripe: Stripe, **query: Any) -> list[str]:
    return [event["id"] for event in stripe.call("GET", "events", limit=100, **query)["data"]]


def send(stripe: Stripe, **form: Any) -> Any:
    event = {"event_name": "openmeter_m1", "timestamp": START + DAY}
    payload = {"payload[stripe_customer_id]": stripe.ids["customer"], "payload[value]": 1}
    sent = {name: value for name, value in {**event, **payload, **form}.items() if value != ""}
    return stripe.call("POST", "billing/meter_events", ENDIVE, **sent)


# Time


@pytest.mark.parametrize("seconds", [3 * DAY, -7_200])
def test_each_answer_is_dated_by_stripes_own_time(stripe: Stripe, seconds: int) -> None:
    stripe.fake("POST", "offset", {"seconds": 99})
    answer = stripe.fake("POST", "offset", {"seconds": seconds})
    assert abs(answer["now"] - time.time() - seconds) < 5
    stripe.fault(path="/v1/products", status=503)
    stripe.fault(path="/v1/prices", status=503, after=True)
    for path, key in (
        ("/v1/customers", KEY),
        ("/v1/customers", "pk_test_1"),
        ("/v1/customers/cus_gone", KEY),
        ("/v1/unknown", KEY),
        ("/v2/core/events/evt_gone", KEY),
        ("/v1/products", KEY),
        ("/v1/prices", KEY),
    ):
        (date,) = head(stripe, path, key).get_all("Date", [])
        assert abs(parsedate_to_datetime(date).timestamp() - time.time() - seconds) < 5


def test_a_planned_answer_may_be_dated_otherwise(stripe: Stripe) -> None:
    date = "Wed, 07 Jun 2023 14:20:30 GMT"
    stripe.fault(path="/v1/prices", status=200, headers={"Date": date})
    assert head(stripe, "/v1/prices").get_all("Date") == [date]


def test_events_and_signatures_are_of_stripes_own_time(stripe: Stripe) -> None:
    with endpoint(stripe) as receiver:
        stripe.fake("POST", "offset", {"seconds": -5_000})
        stripe.update(**{"metadata[a]": "1"})
        settle(stripe, 1)
        ((body, header),) = receiver.got
    for moment in (json.loads(body)["created"], int(header.split(",")[0].removeprefix("t="))):
        assert abs(moment - time.time() + 5_000) < 5


def test_what_has_come_due_stays_when_time_is_set_back(stripe: Stripe) -> None:
    form = {"customer": stripe.call("POST", "customers")["id"]}
    made = stripe.call("POST", "subscriptions", **form, **{"items[0][price]": stripe.ids["price"]})
    for seconds in (32 * DAY, 0, -DAY):
        stripe.fake("POST", "offset", {"seconds": seconds})
        found = stripe.call("GET", f"subscriptions/{made['id']}")
        assert found["current_period_start"] == made["current_period_end"]


# Meters


def test_a_meter_shows_its_windows_dimensions_and_status(metered: Stripe) -> None:
    (plain,) = metered.call("GET", "billing/meters", ENDIVE)["data"]
    assert "dimension_payload_keys" not in plain
    assert (plain["event_time_window"], plain["status"]) == (None, "active")
    form = {"display_name": "x", "event_name": "x", "default_aggregation[formula]": "last"}
    form |= {"event_time_window": "day", "dimension_payload_keys[]": "region"}
    path = f"billing/meters/{metered.call('POST', 'billing/meters', ENDIVE, **form)['id']}"
    metered.call("POST", f"{path}/deactivate", ENDIVE)
    made = metered.call("GET", path, ENDIVE)
    assert (made["event_time_window"], made["dimension_payload_keys"]) == ("day", ["region"])
    assert made["status"] == "inactive"
    assert made["status_transitions"]["deactivated_at"] == made["updated"]
    assert metered.call("POST", f"{path}/reactivate", ENDIVE)["status"] == "active"
    wrong = {**form, "event_name": "y", "event_time_window": "week"}
    with pytest.raises(Failed, match="400: (?s:.)*event_time_window"):
        metered.call("POST", "billing/meters", ENDIVE, **wrong)


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(-36 * DAY, "timestamp_too_far_in_past"), (301, "timestamp_in_future")],
)
def test_a_time_too_far_off_is_refused_with_or_without_a_code(
    metered: Stripe, seconds: int, code: str
) -> None:
    said = set()
    for codes, words in (("absent", "plain"), ("given", "plain"), ("absent", "other")):
        metered.fake("POST", "readings", {"time_codes": codes, "refusal_words": words})
        with pytest.raises(Failed, match="answered 400: ") as refused:
            send(metered, timestamp=START + DAY + seconds)
        error = json.loads(str(refused.value).split("400: ", 1)[1])["error"]
        assert error["code"] == (code if codes == "given" else None)
        assert error["param"] == "timestamp"
        said.add(error["message"])
    assert len(said) == 2
    assert len({word for message in said for word in message.split()[:1]}) == 2


# Thin events


def thin_client(stripe: Stripe) -> StripeClient:
    return StripeClient(KEY, base_addresses={"api": stripe.url})


def test_what_a_meter_did_not_count_is_told_without_data(
    metered: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "enable_telemetry", False)
    (meter,) = metered.call("GET", "billing/meters", ENDIVE)["data"]
    for n in range(6):
        send(metered, **{"payload[stripe_customer_id]": "cus_gone", "identifier": f"gone-{n}"})
    send(metered, **{"payload[stripe_customer_id]": ""}, identifier="nobody")
    send(metered, event_name="unknown", identifier="lost")
    client = thin_client(metered)
    with endpoint(metered, THIN_SECRET, thin_secret=THIN_SECRET) as receiver:
        told = metered.fake("POST", "report_meter_errors")["events"]
        done = settle(metered, 2)
        sent = receiver.events()
        assert {event["id"] for event in sent} == set(told) == {entry["event"] for entry in done}
        noted = {
            event.type: event
            for body, header in receiver.got
            for event in [client.parse_event_notification(body, header, THIN_SECRET)]
        }
        assert metered.fake("POST", "report_meter_errors")["events"] == []
    assert all("data" not in event for event in sent)
    assert all((event["context"], event["reason"]) == (None, None) for event in sent)

    report = noted["v1.billing.meter.error_report_triggered"]
    assert isinstance(report, V1BillingMeterErrorReportTriggeredEventNotification)
    assert report.related_object.id == meter["id"]
    assert report.related_object.type == "billing.meter"
    assert report.fetch_related_object().event_name == "openmeter_m1"
    found = report.fetch_event()
    assert isinstance(found, V1BillingMeterErrorReportTriggeredEvent)
    reason = found.data.reason
    assert found.data.developer_message_summary == "There are 7 invalid events"
    assert reason.error_count == 7
    codes = [(entry.code, entry.error_count) for entry in reason.error_types]
    assert codes == [("meter_event_customer_not_found", 6), ("meter_event_no_customer_defined", 1)]
    samples = [entry.request.identifier for entry in reason.error_types[0].sample_errors]
    assert samples == [f"gone-{n}" for n in range(5)]
    (sample,) = reason.error_types[1].sample_errors
    assert sample.error_message == "Customer mapping key stripe_customer_id not found in payload."
    for text in (found.created, found.data.validation_start, found.data.validation_end):
        assert text.endswith(".000Z")
        assert abs(datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds() < 60

    lost = noted["v1.billing.meter.no_meter_found"]
    assert isinstance(lost, V1BillingMeterNoMeterFoundEventNotification)
    whole = lost.fetch_event()
    assert isinstance(whole, V1BillingMeterNoMeterFoundEvent)
    assert [entry.code for entry in whole.data.reason.error_types] == ["no_meter"]
    (shown,) = [event for event in sent if event["type"] == lost.type]
    assert shown["related_object"] is None


def test_thin_events_have_a_secret_of_their_own_wait_and_are_no_snapshots(
    metered: Stripe,
) -> None:
    with endpoint(metered, enabled_events=[UPDATED], hold=True) as receiver:
        send(metered, event_name="unknown")
        assert metered.fake("POST", "report_meter_errors") == {"events": []}
        metered.fake("POST", "webhook", {"thin_secret": THIN_SECRET})
        (thin,) = metered.fake("POST", "report_meter_errors")["events"]
        metered.update(**{"metadata[a]": "1"})
        (snapshot,) = ids(metered)
        assert metered.fake("GET", "events")["held"] == [thin, snapshot]
        assert [event["id"] for event in metered.events()] == [thin, snapshot]
        metered.fake("POST", "release", {})
        settle(metered, 2)
    for (body, header), secret in zip(receiver.got, (THIN_SECRET, SECRET), strict=True):
        assert WebhookSignature.verify_header(body, header, secret, 300)
    for version, key in (("v1", thin), ("v2/core", snapshot)):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            DIRECT.open(
                Request(
                    f"{metered.url}/{version}/events/{key}",
                    headers={"Authorization": f"Bearer {KEY}"},
                )
            )
        refused.value.close()


# The list of events


def test_events_are_listed_newest_first_though_nobody_took_them(stripe: Stripe) -> None:
    outage(stripe)
    for n in range(3):
        stripe.update(**{"metadata[n]": str(n)})
    settle(stripe, 3)
    made = stripe.events()
    newest = [event["id"] for event in made[::-1]]
    assert stripe.call("GET", "events", limit=100)["data"] == made[::-1]
    first = stripe.call("GET", "events", limit=2)
    assert ([event["id"] for event in first["data"]], first["has_more"]) == (newest[:2], True)
    assert ids(stripe, starting_after=newest[1]) == newest[2:]
    assert stripe.call("GET", f"events/{newest[2]}") == made[0]
    assert made[0]["data"]["object"]["metadata"] == {"n": "0"}
    with pytest.raises(Failed, match="404: (?s:.)*No such event"):
        stripe.call("GET", "events/evt_gone")


def test_events_are_listed_by_type_and_time(stripe: Stripe) -> None:
    outage(stripe)
    times = []
    for n in range(3):
        stripe.fake("POST", "offset", {"seconds": 100 * n})
        stripe.update(**{"metadata[n]": str(n)})
        times.append(stripe.events()[-1]["created"])
    stripe.advance(END + 1)
    newest = [event["id"] for event in stripe.events()[::-1]]
    (draft,) = ids(stripe, type=CREATED)
    updates = [key for key in newest if key != draft]
    assert ids(stripe, type="customer.subscription.*") == ids(stripe, type=UPDATED) == updates
    assert ids(stripe, **{"types[]": CREATED}) == [draft]
    assert ids(stripe, **{"types[0]": CREATED, "types[1]": UPDATED}) == newest
    assert ids(stripe, **{"created[gte]": times[1], "created[lt]": times[2]}) == [updates[2]]
    assert ids(stripe, **{"created[gt]": times[0], "created[lte]": times[1]}) == [updates[2]]
    assert ids(stripe, created=times[0]) == [updates[3]]
    many = {f"types[{n}]": UPDATED for n in range(21)}
    for wrong in ({"type": UPDATED, "types[]": UPDATED}, many, {"delivery_success": "no"}):
        with pytest.raises(Failed, match="answered 400"):
            ids(stripe, **wrong)


def test_events_are_listed_by_whether_they_were_taken(stripe: Stripe) -> None:
    outage(stripe)
    for n in range(3):
        stripe.update(**{"metadata[n]": str(n)})
    settle(stripe, 3)
    newest = ids(stripe, delivery_success="false")
    assert (len(newest), ids(stripe, delivery_success="true")) == (3, [])
    with endpoint(stripe):
        stripe.fake("POST", f"events/{newest[1]}/deliver")
        settle(stripe, 4)
    assert ids(stripe, delivery_success="true") == [newest[1]]
    assert ids(stripe, delivery_success="false") == [newest[0], newest[2]]
    # A page begins after an event though that was taken since.
    assert ids(stripe, delivery_success="false", starting_after=newest[1]) == [newest[2]]
    pending = [event["pending_webhooks"] for event in stripe.call("GET", "events")["data"]]
    assert pending == [1, 0, 1]


def test_events_are_kept_for_thirty_days(stripe: Stripe) -> None:
    outage(stripe)
    stripe.update(**{"metadata[n]": "0"})
    (key,) = ids(stripe)
    stripe.fake("POST", "offset", {"seconds": 30 * DAY - 60})
    assert ids(stripe) == [key]
    stripe.fake("POST", "offset", {"seconds": 30 * DAY + 60})
    assert ids(stripe) == []
    with pytest.raises(Failed, match="answered 404"):
        stripe.call("GET", f"events/{key}")


def test_listed_events_are_in_the_version_that_the_account_had(stripe: Stripe) -> None:
    outage(stripe, api_version=ENDIVE, account_version=ACACIA)
    stripe.advance(END + 1)
    stripe.fake("POST", "webhook", {"account_version": ENDIVE})
    (listed,) = stripe.call("GET", "events", ENDIVE, type=UPDATED)["data"]
    (sent,) = [event for event in stripe.events() if event["type"] == UPDATED]
    assert (listed["id"], listed["api_version"]) == (sent["id"], ACACIA)
    assert listed["data"]["previous_attributes"]["current_period_start"] == START
    assert sent["api_version"] == ENDIVE
    assert "items" in sent["data"]["previous_attributes"]
