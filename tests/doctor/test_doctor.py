"""`flask doctor` on set-ups that are as they have to be, and on broken ones, each with its line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pytest_mock import MockerFixture

from billing.events import EVENTS
from doctor.destinations import SNAPSHOT_TYPES, THIN_TYPES
from fakes.processes import ROOT, Processes, call
from tests.conftest import ENDIVE, KEY, SECRET, OpenMeter, Service, Stripe, free_port

Start = Callable[..., Service]
HERE = "https://hooks.example/stripe/webhook"
TWO_SECRETS = f"{SECRET},whsec_2Zr4"
METERED = {"metadata[om_meter_id]": "m1"}


def endpoint(stripe: Stripe, *types: str, url: str = HERE, **form: Any) -> str:
    """Make a webhook endpoint; return its id."""
    events = {f"enabled_events[{n}]": kind for n, kind in enumerate(types or SNAPSHOT_TYPES)}
    made = stripe.call("POST", "webhook_endpoints", ENDIVE, url=url, **events, **form)
    return str(made["id"])


def thin_destination(stripe: Stripe, *types: str, url: str = HERE) -> str:
    """Make an event destination with thin payloads; return its id."""
    fields = {
        "name": "thin",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": list(types or THIN_TYPES),
        "webhook_endpoint": {"url": url},
    }
    headers = {"Authorization": f"Bearer {KEY}", "Stripe-Version": ENDIVE}
    made = call("POST", f"{stripe.url}/v2/core/event_destinations", fields, headers)
    return str(made["id"])


def use(openmeter: OpenMeter, subject: str, kind: str = "execution") -> None:
    """Send usage of now."""
    openmeter.use(subject, 5, time=datetime.now(UTC).isoformat(), kind=kind)


@pytest.fixture
def set_up(start: Start) -> Callable[..., Service]:
    """Start a service with all that it needs: usage records of m1, a Billing Meter of m2."""

    def ready(**changes: object) -> Service:
        service = start(**{"STRIPE_WEBHOOK_SECRET": TWO_SECRETS, **changes})
        service.openmeter.meter("m2")
        price = service.stripe.metered_price("m2")
        service.stripe.seed(METERED, {"metadata[om_meter_id]": "m2", "price": price})
        for kind in ("execution", "m2"):
            use(service.openmeter, service.stripe.ids["customer"], kind)
        endpoint(service.stripe)
        thin_destination(service.stripe)
        service.forget()
        return service

    return ready


def doctor(service: Service, *options: str) -> tuple[int, list[str]]:
    """Run the command; return its exit status and the lines that it printed."""
    runner = service.client.application.test_cli_runner()
    done = runner.invoke(args=["doctor", *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout.splitlines()


def to_do(service: Service, *options: str) -> list[str]:
    """Run the command where something is to do; return that."""
    status, lines = doctor(service, *options)
    found = [line.removeprefix("to do  ") for line in lines if not line.startswith("ok  ")]
    assert (status, len(found) > 0) == (1, True)
    assert all(f"to do  {line}" in lines for line in found)
    return found


def test_where_all_is_well_each_line_is_ok_and_nothing_is_written(
    set_up: Callable[..., Service],
) -> None:
    service = set_up()
    status, lines = doctor(service)
    assert [line.split(": ")[0] for line in lines] == [
        "ok  settings", "ok  openmeter", "ok  stripe", "ok  clock", "ok  rights", "ok  webhooks",
        "ok  thin events", "ok  metadata", "ok  meter", "ok  meter", "ok  Billing Meter",
    ]  # fmt: skip
    assert status == 0
    assert "STRIPE_KEY is a secret key of test mode" in lines[0]
    assert lines[1] == f"ok  openmeter: answers at {service.openmeter.url}"
    assert "cannot be tried without writing" in lines[4]
    assert HERE in lines[5]
    assert lines[8] == "ok  meter: m1 is in OpenMeter, with usage of 1 subjects in 7 days"
    assert {seen["method"] for seen in service.stripe.requests()} == {"GET"}
    assert {seen["path"].rsplit("/", 1)[1] for seen in service.openmeter.requests()} == {
        "meters", "query",
    }  # fmt: skip


def test_json_has_an_object_a_line(set_up: Callable[..., Service]) -> None:
    status, lines = doctor(set_up(), "--json")
    found = [json.loads(line) for line in lines]
    assert (status, {entry["ok"] for entry in found}) == (0, {True})
    assert all(entry.keys() == {"check", "ok", "said"} for entry in found)


def test_a_log_of_json_makes_its_lines_objects_too(start: Start) -> None:
    lines = doctor(start(LOG_FORMAT="json"))[1]
    assert json.loads(lines[0])["check"] == "settings"


def test_the_types_are_those_that_the_service_knows() -> None:
    assert {*SNAPSHOT_TYPES, *THIN_TYPES} == EVENTS.keys()


# What is broken, and the line that says what to do


def no_openmeter(service: Service) -> None:
    service.openmeter.fault(path="/meters", status=503, body="", times=99)


def wrong_token(service: Service) -> None:
    service.openmeter.fault(path="/meters", status=401, body={"detail": KEY}, times=99)


def unknown_key(service: Service) -> None:
    error = {"error": {"message": f"Invalid API Key provided: {KEY}"}}
    service.stripe.fault(path="/v1/", status=401, body=error, times=99)


def no_right(path: str) -> Callable[[Service], None]:
    def broken(service: Service) -> None:
        error = {"error": {"message": f"{KEY} lacks it"}}
        service.stripe.fault(path=path, status=403, body=error, times=99)

    return broken


def late_clock(service: Service) -> None:
    service.stripe.fake("POST", "offset", {"seconds": 200})


def endpoints(*types: str, **form: Any) -> Callable[[Service], None]:
    """Return what leaves one endpoint, with these types."""

    def broken(service: Service) -> None:
        for known in service.stripe.call("GET", "webhook_endpoints")["data"]:
            service.stripe.call("DELETE", f"webhook_endpoints/{known['id']}")
        if types:
            endpoint(service.stripe, *types, **form)

    return broken


def disabled_endpoint(service: Service) -> None:
    (known,) = service.stripe.call("GET", "webhook_endpoints")["data"]
    service.stripe.call("POST", f"webhook_endpoints/{known['id']}", disabled="true")


def disabled_destination(service: Service) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Stripe-Version": ENDIVE}
    path = f"{service.stripe.url}/v2/core/event_destinations"
    (known,) = call("GET", path, None, headers)["data"]
    call("POST", f"{path}/{known['id']}/disable", {}, headers)


def another_meter(service: Service) -> None:
    service.stripe.call(
        "POST", f"subscription_items/{service.stripe.items()[0]}", **{"metadata[om_meter_id]": "m7"}
    )


def odd_window(service: Service) -> None:
    item = service.stripe.items()[0]
    form = {"metadata[om_window_size]": "YEAR"}
    service.stripe.call("POST", f"subscription_items/{item}", **form)


def deactivated_meter(service: Service) -> None:
    (meter,) = service.stripe.call("GET", "billing/meters", ENDIVE)["data"]
    service.stripe.call("POST", f"billing/meters/{meter['id']}/deactivate", ENDIVE)


def adding_meter(service: Service) -> None:
    service.openmeter.meter("m3")
    price = service.stripe.metered_price("m3", "sum")
    service.stripe.seed({"metadata[om_meter_id]": "m3", "price": price})


def wrong_subject(service: Service) -> None:
    use(service.openmeter, "customer-7")


def unknown_customer(service: Service) -> None:
    service.stripe.seed(METERED, **{"metadata[om_customer]": "01G65Z755AFWAKHE12NY0CQ9FH"})


NONE_COMES = "make an endpoint to an address that ends in /webhook for customer.subscription.up"
BROKEN: dict[str, tuple[Callable[[Service], None], str]] = {
    "OpenMeter down": (no_openmeter, r"openmeter: OpenMeter answered 503$"),
    "OpenMeter's token": (wrong_token, r"openmeter: OpenMeter answered 401$"),
    "key unknown": (unknown_key, "stripe: Stripe answered 401: STRIPE_KEY is wrong or lacks"),
    "no invoice_read": (
        no_right("/v1/invoices"), "rights: give STRIPE_KEY invoice_read, for drafts and the audit$",
    ),
    "no event_read": (
        no_right("/v1/events"), "rights: give STRIPE_KEY event_read, for flask replay and refused",
    ),
    "no clocks": (no_right("/test_clocks"), "rights: give STRIPE_KEY billing_clock_read, for test"),
    "no webhook_read": (
        no_right("/webhook_endpoints"),
        "webhooks: STRIPE_KEY may not read them: give it webhook_read, or leave this out",
    ),
    "clock": (late_clock, r"clock: this host's is (199|20\d) s behind Stripe's: set it"),
    "no endpoint": (endpoints(), f"webhooks: {NONE_COMES}"),
    "endpoint of others": (endpoints("*", url="http://a.example/b"), f"webhooks: {NONE_COMES}"),
    "endpoint disabled": (disabled_endpoint, r"webhooks: we_\d+ is disabled: enable it"),
    "a type": (
        endpoints(*SNAPSHOT_TYPES[:2]), r"webhooks: we_\d+ lacks invoice.created: add it",
    ),
    "thin disabled": (disabled_destination, r"thin events: ed_\d+ is disabled: enable it"),
    "meter": (
        another_meter,
        r"meter: meter m7: OpenMeter answered 404, no such meter: .*m7 \(named by si_\d+\)$",
    ),
    "window": (odd_window, r"metadata: sub_\d+: items.data\[0\].metadata.om_window_size must be"),
    "deactivated": (deactivated_meter, r"Billing Meter: Billing Meter \w+ is deactivated: make"),
    "formula": (adding_meter, r"Billing Meter: Billing Meter \w+ has the formula 'sum'"),
    "subject": (
        wrong_subject,
        "meter: no running item bills m1's usage of 1 subjects, such as customer-7: is a subject",
    ),
    "om_customer": (
        unknown_customer,
        r"meter: meter m1: OpenMeter answered 404, no such customer: .* \(named by sub_\d+\)$",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_has_its_line(set_up: Callable[..., Service], name: str) -> None:
    service = set_up()
    broken, said = BROKEN[name]
    broken(service)
    found = to_do(service)
    assert [line for line in found if re.match(said, line)], found
    assert not any(secret in "".join(found) for secret in (KEY, SECRET))


def test_the_subjects_of_a_customer_are_billed_by_who_names_it(
    set_up: Callable[..., Service], mocker: MockerFixture
) -> None:
    service = set_up()
    owner = service.openmeter.customer("team a", "team b")
    for subject in ("team a", "team b", owner):
        use(service.openmeter, subject)
    service.stripe.seed(METERED, **{"metadata[om_customer]": owner})
    (found,) = to_do(service)
    assert f"m1's usage of 1 subjects, such as {owner}: is a subject wrong" in found
    service.stripe.seed(METERED, **{"metadata[om_subject]": owner})
    assert doctor(service)[0] == 0
    mocker.patch("doctor.meters.MOST_CUSTOMERS", 0)
    status, lines = doctor(service)
    assert status == 0
    assert any("4 subjects in 7 days; who bills them, flask audit tells" in line for line in lines)


def test_who_is_not_there_is_told_with_the_address(set_up: Callable[..., Service]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    service = set_up(STRIPE_API_BASE=url, OPENMETER_URL=url)
    assert to_do(service) == [
        f"openmeter: OpenMeter did not answer (ConnectionError at {url}, as OPENMETER_URL says)",
        f"stripe: Stripe did not answer (ConnectionError at {url}, as STRIPE_API_BASE says)",
    ]


def test_something_else_in_openmeters_place_is_told(
    set_up: Callable[..., Service], stripe_fake: Stripe
) -> None:
    (found,) = to_do(set_up(OPENMETER_URL=f"{stripe_fake.url}/_fake"))
    assert found.startswith("openmeter: OpenMeter answered 404, no such path: OPENMETER_URL leads")


@pytest.mark.parametrize("is_gone", [True, False])
def test_the_budget_that_machines_share_is_asked(
    set_up: Callable[..., Service], mocker: MockerFixture, *, is_gone: bool
) -> None:
    service = set_up(RATE_LIMIT_REDIS=f"redis://127.0.0.1:{free_port()}", STRIPE_RATE_SHARE="100")
    if not is_gone:
        mocker.patch("service.rates_redis.acquire", return_value=True)
        mocker.patch("redis.Redis.set")
    said = "RATE_LIMIT_REDIS does not answer: does Redis run, and let us in, at that address?"
    line = f"to do  redis: {said}" if is_gone else "ok  redis: RATE_LIMIT_REDIS answers"
    assert line in doctor(service)[1]


def test_a_secret_for_each_destination_is_needed(set_up: Callable[..., Service]) -> None:
    found = to_do(set_up(STRIPE_WEBHOOK_SECRET=SECRET))
    assert found == ["webhooks: STRIPE_WEBHOOK_SECRET has 1 of 2 secrets: add each"]


def test_thin_events_are_needed_with_a_billing_meter_only(start: Start) -> None:
    service = start()
    service.stripe.seed(METERED)
    endpoint(service.stripe)
    assert doctor(service)[0] == 0
    service.stripe.seed({**METERED, "price": service.stripe.metered_price()})
    (found,) = to_do(service)
    assert found.startswith("thin events: make an event destination with thin payloads to an addr")


def test_an_account_where_nothing_names_a_meter_is_told(start: Start) -> None:
    service = start()
    endpoint(service.stripe)
    (found,) = to_do(service)
    assert found.startswith("metadata: no running subscription, but for test clocks, and no price")


def test_a_price_that_no_subscription_has_yet_is_looked_at_too(start: Start) -> None:
    service = start()
    endpoint(service.stripe)
    product = service.stripe.call("POST", "products", name="Epsilon")["id"]
    recurring = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
    form = {"product": product, "unit_amount": 10, "metadata[om_meter_id]": "m8"}
    service.stripe.call("POST", "prices", **form, **recurring)
    (found,) = to_do(service)
    assert re.search(r"no such meter: .*m8 \(named by price_\d+\)$", found)


def test_an_organizations_key_names_no_account(set_up: Callable[..., Service]) -> None:
    (found,) = to_do(set_up(STRIPE_KEY="sk_org_test_4Tn6"))
    assert found.startswith("stripe: an organization's key names no account")


def test_events_that_stripe_listen_forwards_need_no_endpoint(start: Start) -> None:
    service = start()
    service.stripe.seed(METERED)
    assert doctor(service, "--no-webhooks")[0] == 0
    assert len(to_do(service)) == 1


def test_the_address_can_be_told(set_up: Callable[..., Service]) -> None:
    service = set_up()
    assert doctor(service, "--webhook", f"{HERE}/")[0] == 0
    found = to_do(service, "--webhook", "https://other.example/webhook")
    assert [line.split(": ")[0] for line in found] == ["webhooks", "thin events"]


def test_an_endpoints_address_is_shown_without_its_password(start: Start) -> None:
    service = start()
    service.stripe.seed(METERED)
    endpoint(service.stripe, "*", url="https://user:hidden@hooks.example/webhook?token=hidden")
    status, lines = doctor(service)
    assert status == 0
    assert "hidden" not in "".join(lines)
    assert any(line.endswith("to https://hooks.example/webhook") for line in lines)


def test_of_many_subscriptions_only_the_first_are_read(
    set_up: Callable[..., Service], mocker: MockerFixture
) -> None:
    service = set_up()
    service.stripe.seed(METERED)
    mocker.patch("billing.stripe_api.PAGE_LIMIT", 1)
    mocker.patch("doctor.reading.MOST_PAGES", 1)
    status, lines = doctor(service)
    assert status == 0
    assert "ok  metadata: 1 running items name a meter; of each list only 1,000 were read" in lines
    assert any(line.endswith("who bills them, flask audit tells") for line in lines)


def test_only_so_many_meters_are_looked_at(
    set_up: Callable[..., Service], mocker: MockerFixture
) -> None:
    mocker.patch("doctor.meters.MOST", 1)
    status, lines = doctor(set_up())
    assert (status, "ok  meter: only 1 of 2 were looked at" in lines) == (0, True)


def test_a_list_that_is_none_is_no_traceback(set_up: Callable[..., Service]) -> None:
    service = set_up()
    service.stripe.fault(path="/event_destinations", status=200, body={"data": [1]}, times=9)
    (found,) = to_do(service)
    assert found.startswith("webhooks: Stripe's answer is no list of event destinations")


def test_it_runs_as_a_process_without_the_webhooks_secret_and_says_so() -> None:
    with Processes() as processes:
        env = processes.environment() | {"STRIPE_WEBHOOK_SECRET": ""}
        done = subprocess.run(
            [sys.executable, "-m", "flask", "doctor"],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    said = "to do  settings: missing: STRIPE_WEBHOOK_SECRET, which deliveries need"
    assert done.stdout.splitlines()[0] == said
