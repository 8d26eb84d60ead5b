"""`make play`, walked through by clicks: what a person sees in the stand-ins."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from selenium.webdriver.common.by import By

from fakes import play
from fakes.processes import Process, Processes, wait_for
from tests.browser.chromium import Browser
from tests.conftest import assert_no_secret

RECORDS: list[str] = []
METER = ["--billing", "meter", "--test-clock"]
SUBSCRIPTION = re.compile(r"Stripe subscription created: (http\S+/(\w+))")


@dataclass
class Walk:
    """A person with a browser, and what the service logs meanwhile."""

    browser: Browser
    processes: Processes
    service: Process
    subscription: str = ""

    def subscribe(self, options: list[str]) -> None:
        """Seed one more subscription, and open the link that is printed."""
        printed = SUBSCRIPTION.search(self.processes.seed(*options))
        assert printed is not None
        self.subscription = printed[2]
        self.browser.open(printed[1])

    def use(self, units: int) -> None:
        """Send usage from the subscription's page, and come back to it."""
        self.browser.follow("Send usage")
        self.browser.fill("value", str(units))
        self.browser.press("Send usage")
        assert "Sent." in self.browser.text("[role=status]")
        self.browser.follow("This customer in Stripe")
        self.browser.follow(self.subscription)

    def unfold(self) -> None:
        """Unfold the form of an update."""
        if not self.browser.one("#update").get_attribute("open"):
            self.browser.one("#update summary").click()

    def update(self, metadata: str = "") -> None:
        """Update the subscription with what was chosen, and wait until the service answered."""
        self.unfold()
        if metadata:
            self.browser.fill("metadata", metadata)
        self.browser.press("Update subscription", "#update")
        self.settle()

    def change_price(self, text: str) -> None:
        """Let the item have the newest price that a text is said of."""
        self.unfold()
        name = self.browser.one("#update select").get_attribute("name")
        self.browser.choose(str(name), text)
        self.update()

    def reset(self) -> None:
        """Tick Reset billing cycle, and update."""
        self.unfold()
        self.browser.one("[name=reset]").click()
        self.update()

    def advance(self, to: str) -> None:
        """Advance time."""
        self.browser.press(to, "#advance")
        self.settle()

    def settle(self) -> None:
        """Wait until no delivery is under way, and see the page then.

        It loads itself again meanwhile, so nothing of it is looked at before.
        """
        self.processes.deliveries(0)
        self.browser.chrome.refresh()
        assert self.browser.all("meta[http-equiv=refresh]") == []

    def usage(self) -> list[str]:
        """Return what the items have so far."""
        return self.browser.texts("#items tbody td:nth-child(5)")

    def invoice(self) -> list[str]:
        """Return the newest invoice: its status, its total, and its lines."""
        card = self.browser.one(".invoice")
        lines = []
        for row in card.find_elements(By.CSS_SELECTOR, "tbody tr"):
            what, _, quantity, amount = [td.text for td in row.find_elements(By.TAG_NAME, "td")]
            lines.append(f"{quantity} for {what.split(' a unit')[0]}: {amount}")
        heads = [found.text for found in card.find_elements(By.CSS_SELECTOR, ".tag, .end")]
        return [*heads, *sorted(lines)]

    def logged(self, total: str) -> str:
        """Wait for the line that the service logs of a total, and return it."""
        line = re.compile(rf"^\S+Z stripe_customer: .* total_usage: {total}, .*$", re.M)

        def found() -> str | None:
            match = line.search(self.service.printed())
            return match and match[0]

        return wait_for(found, f"a line of {total}", 10)


@pytest.fixture(scope="module")
def played(browser: Browser) -> Iterator[Walk]:
    with Processes() as processes:
        yield Walk(browser, processes, play.start(processes))


@pytest.fixture
def walk(played: Walk) -> Iterator[Walk]:
    yield played
    assert_no_secret(played.service.printed())
    assert_no_secret(played.browser.chrome.page_source)


def test_the_printed_address_shows_a_subscription_of_each_kind(walk: Walk) -> None:
    walk.browser.open(f"{walk.processes.stripe}/test/subscriptions")
    rows = " ".join(walk.browser.texts("tbody tr")[-2:])
    assert "usage records" in rows
    assert "Billing Meter openmeter_m1" in rows
    assert "A stand-in of Stripe" in walk.browser.text("[role=note]")
    walk.browser.follow("OpenMeter")
    assert "A stand-in of OpenMeter" in walk.browser.text("[role=note]")
    walk.browser.follow("Stripe")
    assert walk.browser.text("h1") == "Subscriptions"


def test_usage_an_update_and_a_reset_end_in_an_invoice_over_a_dollar(walk: Walk) -> None:
    walk.subscribe(RECORDS)
    walk.use(10)
    assert walk.usage() == ["0"]
    walk.update("plan=a")
    assert walk.usage() == ["10"]
    assert "meter: m1" in walk.logged("10.000000")
    answer = walk.browser.text(".event")
    assert "customer.subscription.updated" in answer
    assert "What changed: metadata" in answer
    assert re.search(r" 200 reported: .* total_usage 10\.000000", answer)
    walk.reset()
    assert walk.invoice() == ["open", "$1.00", "10 for $0.10: $1.00"]
    assert walk.usage() == ["0"]


def test_a_billing_meters_period_is_closed_after_its_renewal(walk: Walk) -> None:
    walk.subscribe(METER)
    walk.use(7)
    walk.advance("Over the renewal")
    assert "meter: m1" in walk.logged("7.000000")
    assert walk.invoice() == ["draft", "$0.00", "0 for $0.10: $0.00"]
    assert "A draft until" in walk.browser.text(".invoice")
    walk.use(3)
    walk.update("plan=a")
    assert walk.usage() == ["3"]
    walk.advance("Past the draft hour")
    assert walk.invoice() == ["open", "$0.70", "7 for $0.10: $0.70"]
    walk.advance("Over the renewal")
    walk.advance("Past the draft hour")
    assert walk.invoice() == ["open", "$0.30", "3 for $0.10: $0.30"]


def add_price(walk: Walk, way: str, dollars: str) -> None:
    """Add a price on the page of the product, and come back."""
    browser = walk.browser
    browser.leave(browser.one("#items small a"))
    browser.leave(browser.one("dd a[href^='/test/products']"))
    browser.fill("dollars", dollars)
    browser.choose("meter", way)
    browser.press("Add price")
    assert "The price is there." in browser.text("[role=status]")
    browser.follow("Subscriptions")
    browser.follow(walk.subscription)


def test_a_price_of_a_billing_meter_that_changes_in_mid_period(walk: Walk) -> None:
    walk.subscribe(METER)
    add_price(walk, "Billing Meter", "0.20")
    walk.use(10)
    walk.update("plan=a")
    walk.advance("A day")
    walk.change_price("$0.20 a unit")
    assert "10 $1.00" in walk.browser.text("#waiting")
    walk.advance("An hour")
    walk.use(4)
    walk.update("plan=b")
    assert walk.usage() == ["4"]
    walk.advance("Over the renewal")
    walk.advance("Past the draft hour")
    assert walk.invoice() == ["open", "$1.80", "10 for $0.10: $1.00", "4 for $0.20: $0.80"]


def test_a_price_for_usage_records_that_changes_in_mid_period(walk: Walk) -> None:
    walk.subscribe(RECORDS)
    add_price(walk, "usage records", "0.30")
    walk.use(10)
    walk.update("plan=a")
    walk.change_price("$0.30 a unit")
    assert walk.usage() == ["10"]
    walk.reset()
    assert walk.invoice() == ["open", "$3.00", "10 for $0.30: $3.00"]


def test_an_item_comes_and_goes_and_a_subscription_ends_with_an_invoice(walk: Walk) -> None:
    walk.subscribe(RECORDS)
    add_price(walk, "usage records", "0.40")
    walk.use(5)
    used_at = int(time.time())
    wait_for(lambda: int(time.time()) > used_at, "the next second", 2)
    walk.unfold()
    walk.browser.one("#update details summary").click()
    walk.browser.choose("new-price", "$0.40 a unit")
    walk.update()
    assert walk.usage() == ["5", "0"]  # it counts from its own second on
    walk.unfold()
    walk.browser.all("[name^=remove-]")[1].click()
    walk.update()
    assert walk.usage() == ["5"]
    walk.browser.one("#cancel summary").click()
    walk.browser.one("[name=when][value=now]").click()
    walk.browser.one("[name=invoice_now]").click()
    walk.browser.press("Cancel subscription", "#cancel")
    walk.settle()
    assert walk.browser.text("#status") == "canceled"
    assert walk.invoice()[:2] == ["open", "$0.50"]


def test_what_stripe_refuses_is_said_in_words_and_an_event_can_be_resent(walk: Walk) -> None:
    walk.subscribe(METER)
    walk.unfold()
    walk.browser.one("[name^=remove-]").click()
    walk.browser.press("Update subscription", "#update")
    said = "Not done. A subscription must have at least one active item."
    assert walk.browser.text("[role=alert]") == said
    walk.update("plan=a")
    before = len(walk.browser.all(".event .tag"))
    walk.browser.press("Resend")
    walk.settle()
    assert walk.browser.texts(".event .tag") == ["200"] * (before + 1)


def test_nothing_is_fetched_from_elsewhere_and_no_page_has_a_script(walk: Walk) -> None:
    walk.browser.requests()
    walk.browser.log("browser")
    walk.subscribe(RECORDS)
    walk.use(1)
    asked = walk.browser.requests()
    ours = (walk.processes.stripe, walk.processes.openmeter)
    assert len(asked) >= 5
    assert all(url.startswith((*ours, "data:")) for url in asked)
    assert walk.browser.all("script, img, iframe, [onclick]") == []
    assert walk.browser.log("browser") == []


def test_the_pages_follow_a_dark_system(walk: Walk) -> None:
    walk.subscribe(RECORDS)
    colour = "background-color"
    light = walk.browser.one("body").value_of_css_property(colour)
    walk.browser.emulate(prefers_color_scheme="dark")
    dark = walk.browser.one("body").value_of_css_property(colour)
    walk.browser.emulate()
    assert (light, dark) == ("rgba(255, 255, 255, 1)", "rgba(20, 24, 33, 1)")
