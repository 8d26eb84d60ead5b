"""A life in which every kind of call to Stripe is made, and the requests as they went out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from click.testing import Result
from requests.adapters import HTTPAdapter

import probe.command
import setup_stripe
from billing import stripe_api
from service.transport import Connections
from tests.conftest import DAY, END, KEY, SECRET, Stripe
from tests.fakes.test_stripe_life import CLASSIC
from tests.stories.test_life import FINAL, HOUR, Story, T, Tell, changed_at, tell

__all__ = ["tell"]
# Two graduated tiers, which only an expanded price shows.
TIERS: dict[str, Any] = {
    "billing_scheme": "tiered", "tiers_mode": "graduated", "metadata[om_meter_id]": "m2",
    "tiers[0][up_to]": "5", "tiers[0][unit_amount]": "9",
    "tiers[1][up_to]": "inf", "tiers[1][unit_amount]": "4",
}  # fmt: skip
# Those that Stripe reads.
HEADERS = {"Authorization", "Content-Type", "Idempotency-Key", "Stripe-Version"}


class Sent(NamedTuple):
    """A request to Stripe as it went out: `path` has the query."""

    method: str
    path: str
    form: str
    headers: dict[str, str]

    @property
    def version(self) -> str:
        return self.headers["Stripe-Version"]


@pytest.fixture
def sent(stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Note each request that the service, its commands or the script send to Stripe."""
    found: list[Sent] = []

    def noting(send: Callable[..., Any]) -> Callable[..., Any]:
        def noted(sender: Any, request: Any, *bounds: Any, **options: Any) -> Any:
            if request.url.startswith(stripe_fake.url):
                form = (
                    request.body.decode() if isinstance(request.body, bytes) else request.body or ""
                )
                path = request.url.removeprefix(stripe_fake.url)
                headers = {
                    name: value for name, value in request.headers.items() if name in HEADERS
                }
                found.append(Sent(request.method.upper(), path, form, headers))
            return send(sender, request, *bounds, **options)

        return noted

    for sender in (Connections, HTTPAdapter):  # the service's, and the script's
        monkeypatch.setattr(sender, "send", noting(sender.send))
    return found


@pytest.fixture(scope="session")
def lived() -> list[Sent]:
    """Keep the requests of the one life that all tests of a process look at."""
    return []


@pytest.fixture
def life(
    sent: list[Sent], lived: list[Sent], tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> list[Sent]:
    """Live through what makes every kind of call, and return the requests."""
    if lived:
        return lived
    monkeypatch.setattr(stripe_api, "PAGE_LIMIT", 5)
    story = tell(INVOICE_GRACE_HOURS="30")
    story.price("tiered", meter="m2", **TIERS)
    on_a_billing_meter(story)
    what_is_missing_is_repaired(story)
    by_usage_records(story)
    on_a_test_clock(story)
    what_was_refused_or_missed(story)
    assert story.service.open("GET", "/readyz").status_code == 200
    seed(story.stripe, monkeypatch)
    ask_all_questions(story.stripe, monkeypatch)
    lived += sent
    return lived


def on_a_billing_meter(story: Story) -> None:
    """Change and remove items of more than a page's, and wait for late usage of a renewal."""
    story.subscribe(CLASSIC, "A", "other", "tiered", *["flat"] * 11)
    story.use(8, T - HOUR, "m2")
    story.used(10, T - DAY)
    changed_at(story, T, "B")
    story.remove(1)
    story.deliver()
    story.used(5, T + DAY)
    command(story, 0, "report", "--dry-run")
    story.to(END + 60)
    story.deliver()
    command(story, 0, "report")


def what_is_missing_is_repaired(story: Story) -> None:
    """Use what comes too late for its invoice, and bill it."""
    story.to(END + FINAL)
    story.use(3, T + DAY)
    story.use(0.5, T + DAY)
    story.use(4, T + DAY, "m2")
    command(story, 0, "audit", "--since", "365d", "--repair", "--yes")
    command(story, 0, "audit", "--since", "365d", "--subscription", story.subscription)


def by_usage_records(story: Story) -> None:
    """Report a price without a meter."""
    story.subscribe(CLASSIC, "R")
    story.used(10, story.machine.now + HOUR)
    command(story, 0, "report", "--subscription", story.subscription, "--dry-run")


def on_a_test_clock(story: Story) -> None:
    """Report a subscription that lives on a test clock, and is over."""
    clock = story.call("POST", "test_helpers/test_clocks", frozen_time=story.machine.now)
    story.customer = story.call("POST", "customers", test_clock=clock["id"])["id"]
    story.subscribe(CLASSIC, "A")
    story.machine.now += HOUR
    story.deliver()
    story.call("DELETE", f"subscriptions/{story.subscription}", invoice_now="true")
    story.deliver()
    command(story, 1, "report", "--subscription", story.subscription)


def what_was_refused_or_missed(story: Story) -> None:
    """Replay what no endpoint took, and read why a meter event was refused."""
    command(story, 0, "replay", "--since", "30d")
    story.stripe.fake("POST", "webhook", {"thin_secret": SECRET})
    unknown = {"payload[stripe_customer_id]": "cus_unknown", "payload[value]": "1"}
    story.call("POST", "billing/meter_events", event_name="m1", **unknown)
    story.stripe.fake("POST", "report_meter_errors")
    story.deliver()


def seed(stripe: Stripe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script for both ways, on a test clock and off it."""
    monkeypatch.setattr(setup_stripe, "dotenv_values", lambda _: {})
    monkeypatch.setenv("STRIPE_KEY", KEY)
    monkeypatch.setenv("STRIPE_API_BASE", stripe.url)
    setup_stripe.main([])
    setup_stripe.main(["--billing", "meter", "--test-clock"])


def ask_all_questions(stripe: Stripe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the probe, which makes some calls only where others are answered."""
    found = {"STRIPE_KEY": KEY, "STRIPE_API_BASE": stripe.url, "STRIPE_RATE_SHARE": "0"}
    monkeypatch.setattr(probe.command, "load_environment", lambda: found)
    stripe.fake("POST", "readings", {"plain_reset": "waits"})
    with pytest.raises(SystemExit):
        probe.command.main(["--patience", "20"])


def command(story: Story, status: int, name: str, *options: str) -> Result:
    """Run a command of the service that ends with a status."""
    runner = story.service.client.application.test_cli_runner()
    result = runner.invoke(args=[name, *options])
    assert result.exit_code == status, result.output
    return result
