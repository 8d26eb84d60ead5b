"""The pages of both stand-ins, asked for as a browser does."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from fakes import openmeter_api, stripe_api
from fakes.pages import stripe_words as words
from fakes.pages import when
from fakes.processes import wait_for
from tests.conftest import DAY, END, SECRET, START, Stripe, serve
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE, Life, T

HREF = re.compile(r'href="([^"]+)"')
EVIL = "<script>alert(1)</script>"
GONE = "http://127.0.0.1:9/"


@dataclass
class Person:
    """Somebody who opens pages and sends forms."""

    client: FlaskClient

    def get(self, path: str) -> TestResponse:
        """Open a page, and those that it leads on to."""
        return self.client.get(path, follow_redirects=True)

    def open(self, path: str, status: int = 200) -> str:
        """Return what a page says."""
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        return plain(answer.text)

    def send(self, path: str, **form: str) -> str:
        """Send a form that is done, and return what the page says that it leads to."""
        answer = self.client.post(path, data=form)
        assert answer.status_code == 303, plain(answer.text)
        return self.open(answer.headers["Location"])

    def is_refused(self, path: str, said: str, **form: str) -> None:
        """Send a form that is not done, and see that the page says why."""
        answer = self.client.post(path, data=form)
        assert (answer.status_code, said in plain(answer.text)) == (400, True), plain(answer.text)


def plain(page: str) -> str:
    """Return a page's text on one line."""
    body = page.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@dataclass(kw_only=True)
class Tried(Life):
    """A life in Stripe that a person sees on pages."""

    person: Person

    @property
    def path(self) -> str:
        """Return where the subscription's page is."""
        return f"/test/subscriptions/{self.subscription}"

    def page(self) -> str:
        """Return what the subscription's page says."""
        return self.person.open(self.path)

    def send(self, form: str, **fields: str) -> str:
        """Send one of the page's forms."""
        return self.person.send(f"{self.path}/{form}", **fields)

    def item(self) -> str:
        """Return the first item."""
        return str(self.items()[0])


@pytest.fixture
def life() -> Iterator[Tried]:
    """Return a customer on a test clock, and prices of each way to report."""
    application = stripe_api.create_app()
    server = serve(application)
    account = application.extensions["api"].account
    stripe = Stripe(f"http://127.0.0.1:{server.server_port}", account=account)
    found = Tried(stripe, person=Person(application.test_client()))
    found.clock = found.call("POST", "test_helpers/test_clocks", frozen_time=START)["id"]
    found.customer = found.call("POST", "customers", test_clock=found.clock, name=EVIL)["id"]
    for name, meter in (("A", "m1"), ("R", "records"), ("flat", "flat")):
        found.price(name, meter=meter)
    found.price("B", 30)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def metering() -> Person:
    return Person(openmeter_api.create_app().test_client())


def crawl(person: Person) -> dict[str, str]:
    """Return each page that links lead to, from the first one on."""
    found: dict[str, str] = {}
    left = ["/"]
    while left:
        path = left.pop()
        if path not in found:
            answer = person.get(path)
            assert answer.status_code == 200, path
            found[path] = answer.text
            hrefs = map(html.unescape, HREF.findall(answer.text))
            left += [urljoin(path, href) for href in hrefs if href.startswith("/")]
            assert '<link rel="icon" href="data:,">' in answer.text  # else a browser asks for one
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    return found


def test_each_link_leads_to_a_page_that_says_what_it_is(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A", "flat")
    life.report(7)
    life.to(END + 60)
    found = crawl(life.person)
    for kind in ("customers", "invoices", "meters", "prices", "products", "test-clocks"):
        assert any(path.startswith(f"/test/{kind}/") for path in found), kind
    for path, page in found.items():
        assert "A stand-in of Stripe" in page, path
        assert not re.search(r"<script|<img|<iframe| on\w+=|url\(|@import", page), path


def test_each_link_of_openmeters_pages_leads_to_one(metering: Person) -> None:
    metering.send("/metering/subject", name="a b&c", meter="m1", value="3")
    found = crawl(metering)
    assert len(found) >= 4
    assert all("A stand-in of OpenMeter" in page for page in found.values())


def test_the_pages_are_beside_the_api_which_does_not_note_them(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.stripe.fake("DELETE", "requests")
    life.page()
    assert life.stripe.requests() == []
    answer = life.person.get("/v1/subscriptions")
    assert (answer.status_code, answer.content_type) == (401, "application/json")
    assert life.person.get("/testing").content_type == "application/json"


@pytest.mark.parametrize("kind", ["subscriptions", "customers", "products", "invoices", "meters"])
def test_what_is_not_there_is_said(life: Tried, kind: str) -> None:
    assert "No such" in life.person.open(f"/test/{kind}/x_1", 404)
    assert "not found" in life.person.open(f"/test/{kind}/x_1/y", 404)


def test_what_people_write_is_text(life: Tried, metering: Person) -> None:
    life.stripe.collect_events("2026-10-28.endive")
    life.subscribe(FLEXIBLE, "A", **{"metadata[a]": EVIL, "items[0][metadata][b]": EVIL})
    life.update(**{"metadata[c]": EVIL})
    for page in crawl(life.person).values():
        assert EVIL not in page
    assert EVIL in life.page()
    metering.send("/metering/subject", name=EVIL, meter="m1", value="3")
    for page in crawl(metering).values():
        assert EVIL not in page
    assert f"Subject {EVIL}" in metering.open(f"/metering/subject?name={EVIL}")


def test_no_secret_is_shown(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.stripe.fake("POST", "webhook", {"url": GONE, "secret": SECRET, "retry_seconds": []})
    life.update(**{"metadata[a]": "1"})
    for page in crawl(life.person).values():
        assert SECRET not in page
    assert GONE in life.person.open("/test/webhooks")


# Forms of Stripe's pages


def test_a_form_of_another_page_is_refused(life: Tried, metering: Person) -> None:
    life.subscribe(FLEXIBLE, "A")
    client, form = life.person.client, {"metadata": "a=1"}
    for origin, status in (("https://evil.example", 403), ("null", 403), ("http://localhost", 303)):
        answer = client.post(f"{life.path}/update", data=form, headers={"Origin": origin})
        assert answer.status_code == status, origin
    sent = metering.client.post(
        "/metering/subject", data={"name": "a"}, headers={"Origin": "https://evil.example"}
    )
    assert sent.status_code == 403


@pytest.mark.parametrize(
    ("form", "fields", "said"),
    [
        ("update", {"metadata": "plan"}, "Metadata is written as name=value, not as: plan"),
        ("update", {"metadata": "=a"}, "Metadata is written as name=value"),
        ("update", {"new-price": "{R}"}, "Flexible billing mode does not support metered prices"),
        ("advance", {"to": "never"}, "There is no such time to advance to any more."),
        ("advance", {"to": "final"}, "There is no such time to advance to any more."),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    life: Tried, form: str, fields: dict[str, str], said: str
) -> None:
    life.subscribe(FLEXIBLE, "A")
    before = life.shown()
    fields = {name: value.format(**life.prices) for name, value in fields.items()}
    life.person.is_refused(f"{life.path}/{form}", f"Not done. {said}", **fields)
    assert life.shown() == before


def test_an_update_that_changes_nothing_tells_nobody(life: Tried) -> None:
    life.stripe.collect_events("2026-10-28.endive")
    life.subscribe(FLEXIBLE, "A", **{"metadata[a]": "1"})
    before = len(life.stripe.events())
    same = {"was-metadata": "a=1", "metadata": "a=1\r\n", "prorations": "none"}
    said = life.send("update", **same, **{f"price-{life.item()}": life.prices["A"]})
    assert "Nothing was changed" in said
    assert len(life.stripe.events()) == before


def test_metadata_changes_as_it_was_shown_and_what_came_since_stays(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A", **{"metadata[a]": "1", "metadata[b]": "2"})
    life.update(**{"metadata[noted]": "since"})
    assert "Updated." in life.send("update", **{"was-metadata": "a=1\nb=2", "metadata": "b=3\nc=4"})
    assert life.shown()["metadata"] == {"b": "3", "c": "4", "noted": "since"}
    life.send("update", **{f"metadata-{life.item()}": "om_meter_id=m2"})
    assert life.shown()["items"]["data"][0]["metadata"] == {"om_meter_id": "m2"}


def test_an_item_is_added_with_a_meter_and_removed(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "flat")
    life.send("update", **{"new-price": life.prices["A"], "new-metadata": "om_meter_id=m1"})
    flat, added = life.items()
    assert "$0.10 a unit and month, Billing Meter m1" in life.page()
    life.send("update", **{f"remove-{flat}": "on"})
    assert life.items() == [added]


def test_an_item_without_om_meter_id_is_said_to_have_none(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    assert "none no om_meter_id in its metadata or its price" in life.page()


@pytest.mark.parametrize("mode", [CLASSIC, FLEXIBLE])
def test_a_reset_invoices_what_was_reported(life: Tried, mode: str) -> None:
    life.subscribe(mode, "A")
    life.to(T)
    life.report(7)
    assert "7 $0.70" in life.page()
    life.to(T + DAY)
    assert "open update or reset, 2023-06-18" in life.send("update", reset="on")
    assert life.shown()["items"]["data"][0]["current_period_start"] == T + DAY


def test_a_price_changed_with_always_invoice_is_billed_at_once(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(7)
    life.to(T + DAY)
    name = f"price-{life.item()}"
    said = life.send("update", **{name: life.prices["B"], "prorations": "always_invoice"})
    assert "usage up to a change of the price" in said
    assert "$0.30 a unit" in said
    assert "Waiting for the next invoice" not in said


def test_a_price_changed_waits_for_the_next_invoice(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(7)
    life.to(T + DAY)
    said = life.send("update", **{f"price-{life.item()}": life.prices["B"]})
    assert "Waiting for the next invoice" in said
    assert f"counts from {when(T + DAY)}" in said
    life.to(END + 60)
    assert life.page().count(f"· counts from {when(T + DAY)}") == 1


def test_a_subscription_is_canceled_at_the_end_or_not(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    assert "cancels at the end of the period" in life.send("cancel", when="end")
    assert life.shown()["cancel_at_period_end"] is True
    assert "cancels at the end" not in life.send("cancel", when="keep")
    assert life.shown()["cancel_at_period_end"] is False


@pytest.mark.parametrize(("invoiced", "invoices"), [({}, 0), ({"invoice_now": "true"}, 1)])
def test_a_subscription_is_canceled_now(
    life: Tried, invoiced: dict[str, str], invoices: int
) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(7)
    said = life.send("cancel", when="now", **invoiced)
    assert "It is over: nothing of it can be changed any more." in said
    assert "Update subscription" not in said
    assert said.count("7 $0.70") == invoices
    assert life.shown()["status"] == "canceled"


def test_time_goes_over_the_renewal_and_past_the_draft_hour(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.to(T)
    life.report(7)
    said = life.send("advance", to="renewal")
    assert "A draft until 2023-07-07 15:20:30" in said
    said = life.send("advance", to="final")
    assert "open renewal, 2023-07-07 14:20:30 $0.70" in said
    assert "Past the draft hour" not in said


def test_a_draft_says_what_it_waits_for(life: Tried) -> None:
    life.stripe.collect_events("2026-10-28.endive")
    life.subscribe(FLEXIBLE, "A")
    life.to(END + 60)
    held = f"else it becomes final at {when(END + 3 * DAY)}."
    assert held in life.page()
    path = f"invoices/{life.shown()['latest_invoice']}"
    life.call("POST", path, automatically_finalizes_at=END + DAY)
    assert f"A draft until {when(END + DAY)}." in life.page()
    life.call("POST", path, auto_advance="false")
    assert "A draft that stays one: its auto_advance is off." in life.page()
    life.person.is_refused(f"{life.path}/advance", "There is no such time", to="final")


def test_without_a_test_clock_all_time_goes_on(life: Tried) -> None:
    life.customer = life.call("POST", "customers")["id"]
    life.clock = ""
    life.subscribe(CLASSIC, "R")
    assert "It is on no test clock" in life.page()
    before = life.stripe.account.now()
    assert ", which was advanced" in life.send("advance", to="day")
    assert life.stripe.account.now() - before in (DAY, DAY + 1)
    assert "A draft" in life.send("advance", to="renewal")


def test_what_came_due_has_happened_when_a_page_is_opened(life: Tried) -> None:
    life.customer = life.call("POST", "customers")["id"]
    life.clock = ""
    life.subscribe(CLASSIC, "R")
    life.stripe.account.clock.ahead += 32 * DAY
    assert "renewal, " in life.page()


def test_a_product_gets_prices(life: Tried) -> None:
    product = life.call("GET", f"prices/{life.prices['A']}")["product"]
    path = f"/test/products/{product}/prices"
    said = life.person.send(
        path, dollars="0.0025", meter=life.meters["m1"], metadata="om_meter_id=m1"
    )
    assert "$0.0025 a unit and month, Billing Meter m1" in said
    assert "$4.00 a unit and month, usage records" in life.person.send(path, dollars="4", meter="")
    for fields, problem in (
        ({"dollars": "-1"}, "An amount is written as 0.20, not as: -1"),
        ({"dollars": "NaN"}, "An amount is written as 0.20, not as: NaN"),
        ({"dollars": "1", "metadata": "x"}, "Metadata is written as name=value, not as: x"),
    ):
        life.person.is_refused(path, problem, **fields)
    answer = life.person.client.post(path, data={"dollars": "1", "meter": "mtr_1"})
    assert (answer.status_code, "No such meter" in answer.text) == (404, True)


# Deliveries


def test_a_delivery_that_fails_is_shown_with_its_time_and_can_be_sent_again(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    assert "They go nowhere: no webhook is set." in life.page()
    life.stripe.fake("POST", "webhook", {"url": GONE, "secret": SECRET, "retry_seconds": []})
    life.send("update", metadata="a=1")
    settle(life)
    assert f"They go to {GONE} , in version 2026-10-28.endive." in life.page()
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d none .*Connection refused", life.page())
    (event,) = life.stripe.events()
    for form in ({"subscription": life.subscription}, {}):
        path = f"/test/events/{event['id']}/resend"
        assert "The event is sent once more." in life.person.send(path, **form)
    settle(life)
    assert life.page().count("Connection refused") == 3
    answer = life.person.client.post("/test/events/evt_1/resend")
    assert (answer.status_code, "No such event" in answer.text) == (404, True)


def settle(life: Tried) -> None:
    wait_for(lambda: not life.stripe.fake("GET", "deliveries")["pending"], "deliveries", 10)


def test_a_page_loads_again_while_a_delivery_is_under_way(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    endpoint = {"url": GONE, "secret": SECRET, "retry_seconds": [], "delay_seconds": 0.5}
    life.stripe.fake("POST", "webhook", endpoint)
    life.send("update", metadata="a=1")
    again = f'<meta http-equiv="refresh" content="1;url={life.path}">'
    assert again in life.person.get(life.path).text
    assert "Under way." in life.page()
    settle(life)
    assert "refresh" not in life.person.get(life.path).text


def test_an_event_that_is_held_is_said_to_be(life: Tried) -> None:
    life.subscribe(FLEXIBLE, "A")
    life.stripe.collect_events("2026-10-28.endive")
    life.update(**{"metadata[a]": "1"})
    assert "Held back until it is released." in life.page()


def test_a_page_shows_the_events_of_its_subscription_and_their_number(life: Tried) -> None:
    life.stripe.collect_events("2026-10-28.endive")
    life.subscribe(FLEXIBLE, "flat")  # with an invoice of its own
    first = life.subscription
    life.subscribe(FLEXIBLE, "A")
    for n in range(words.MOST_EVENTS + 2):
        life.update(**{"metadata[n]": str(n)})
    assert "And 2 older." in life.page()
    assert "invoice.created" not in life.page()
    assert "invoice.created" in life.person.open(f"/test/subscriptions/{first}")
    assert "And 3 older." in life.person.open("/test/webhooks")


def test_a_thin_event_is_shown_with_the_others(life: Tried) -> None:
    hook = {"url": GONE, "secret": SECRET, "thin_secret": SECRET, "retry_seconds": []}
    life.stripe.fake("POST", "webhook", hook)
    event = {"event_name": "unknown", "payload[stripe_customer_id]": life.customer}
    life.call("POST", "billing/meter_events", **event)
    life.stripe.fake("POST", "report_meter_errors")
    settle(life)
    said = life.person.open("/test/webhooks")
    assert re.search(r"v1\.billing\.meter\.no_meter_found evt_\d+ 20\d\d-", said)
    life.subscribe(FLEXIBLE, "A")
    assert "no_meter_found" not in life.page()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"reported": [], "skipped": []}', []),
        ('{"ignored": "a.b"}', [("ignored", ["a.b"])]),
        ('{"failed": [{"item": "si_1", "n": 2}]}', [("failed", ["item si_1, n 2"])]),
        ("<h1>", [("", ["<h1>"])]),
        ("[1]", [("", ["[1]"])]),
        ("", []),
    ],
)
def test_an_answer_is_shown_by_what_it_has(text: str, parts: object) -> None:
    assert words.answer_parts(text) == parts


@pytest.mark.parametrize(
    ("cents", "currency", "text"),
    [
        (100, "usd", "$1.00"),
        (-5, "usd", "-$0.05"),
        (Decimal("0.25"), "usd", "$0.0025"),
        (1_050, "eur", "10.50 EUR"),
    ],
)
def test_money_is_written_whole(cents: int | Decimal, currency: str, text: str) -> None:
    assert words.money(cents, currency) == text


def test_tiers_and_other_intervals_are_said(life: Tried) -> None:
    form: dict[str, Any] = {"billing_scheme": "tiered", "tiers_mode": "graduated"}
    form |= {"tiers[0][up_to]": 5, "tiers[0][unit_amount]": 10}
    form |= {"tiers[1][up_to]": "inf", "tiers[1][unit_amount]": 5}
    life.price("T", **form)
    life.subscribe(FLEXIBLE, "T")
    life.to(T)
    life.report(7)
    life.to(END + 60)
    life.to(END + 4_000)
    assert "graduated tiers and month, Billing Meter m1" in life.page()
    assert re.search(r"5 \$0\.50 .* 2 \$0\.10", life.page())


# OpenMeter's pages


def test_usage_is_sent_and_shown_by_the_hour(metering: Person) -> None:
    form = {"name": "cus_1", "meter": "m1"}
    assert "No meter has counted anything" in metering.open("/metering/subject?name=cus_1")
    assert "Sent." in metering.send("/metering/subject", **form, value="10", at="2023-06-07 14:20")
    metering.send("/metering/subject", **form, value="2.5", at="2023-06-07T14:59:59")
    said = metering.send("/metering/subject", **form, value="4", at="2023-06-07 15:00")
    assert "m1: 16.5 in all" in said
    assert "2023-06-07 14:00: 12.5" in said
    assert "2023-06-07 15:00: 4" in said
    assert '{"duration": 2.5}' in said
    page = metering.get("/metering/meters/m1").text
    heights = [float(text) for text in re.findall(r'<rect .* height="([\d.]+)"', page)]
    assert heights == [156.0, pytest.approx(156 * 4 / 12.5, abs=0.1)]
    assert "cus_1 16.5" in plain(page)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"meter": "m1", "value": ""}, "a value is missing"),
        ({"meter": "m1", "value": "1", "at": "noon"}, "noon is no time such as 2026-01-31 13:45"),
        ({"meter": "m1", "value": "1", "at": "2023-13-01 00:00"}, "month must be in 1..12"),
        ({"meter": "m2", "value": "1"}, "meter not found: m2"),
        ({}, "meterIdOrSlug is neither a slug nor a ULID"),
    ],
)
def test_usage_that_cannot_be_sent_is_said(
    metering: Person, fields: dict[str, str], said: str
) -> None:
    metering.is_refused("/metering/subject", f"Not done. {said}", name="a", **fields)
    assert "Nobody has usage yet." in metering.open("/metering/subjects")


def test_a_count_has_no_value_and_a_deep_one_its_place(metering: Person) -> None:
    for fields in (
        {"slug": "runs", "aggregation": "COUNT", "eventType": "run"},
        {"slug": "deep", "aggregation": "MAX", "eventType": "deep", "valueProperty": "$.a.b"},
    ):
        assert metering.client.post("/api/v1/meters", json=fields).status_code == 200
    assert "runs: 1 in all" in metering.send("/metering/subject", name="a", meter="runs")
    said = metering.send("/metering/subject", name="a", meter="deep", value="5")
    assert ("deep: 5 in all" in said, '{"a": {"b": 5}}' in said) == (True, True)


def test_a_subject_needs_a_name_and_a_query_that_fails_is_said(metering: Person) -> None:
    assert "a subject has a name" in metering.open("/metering/subject", 400)
    metering.client.post("/_fake/clickhouse", json={"down": True})
    assert "OpenMeter answers 500." in metering.open("/metering/meters/m1", 500)


def test_each_stand_in_links_to_the_other_once_it_is_told(life: Tried, metering: Person) -> None:
    life.subscribe(FLEXIBLE, "A", **{"items[0][metadata][om_meter_id]": "m1"})
    assert "Send usage" not in life.page()
    told = {"url": "http://127.0.0.1:4011/"}
    assert life.person.client.post("/test/neighbour", data=told).status_code == 204
    assert metering.client.post("/metering/neighbour", data=told).status_code == 204
    link = f"http://127.0.0.1:4011/metering/subject?name={life.customer}&meter=m1&at="
    assert link in html.unescape(life.person.get(life.path).text)
    assert (
        "http://127.0.0.1:4011/test/customers/cus_1"
        in metering.get("/metering/subject?name=cus_1").text
    )
    for person, prefix in ((life.person, "test"), (metering, "metering")):
        bad = person.client.post(f"/{prefix}/neighbour", data={"url": "javascript:alert(1)"})
        assert bad.status_code == 400
