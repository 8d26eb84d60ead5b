"""Events of other accounts and modes than the key's own, and a key of another account."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fakes import stripe_api
from tests.conftest import ACACIA, END, ENDIVE, SECRET, Answer, Service, Stripe, serve
from tests.fakes.test_stripe_accounts import X, Y, as_account, control
from tests.fakes.test_stripe_life import CLASSIC
from tests.stories.test_life import HOUR, SHAPES, Machine, T, Tell

Start = Callable[..., Service]
METERED = "recurring[interval]=month&recurring[usage_type]=metered"


@dataclass
class Account:
    """An account of a platform or an organization, with a subscription that began at START."""

    service: Service
    name: str
    units: int
    formula: str = "last"
    context: bool = False
    told: int = 0
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        endpoint = {"url": "http://127.0.0.1:9", "secret": SECRET, "hold": True}
        control(
            self.stripe, self.name, "POST", "webhook",
            {**endpoint, "thin_secret": SECRET, "context": self.context},
        )  # fmt: skip
        formula = f"default_aggregation[formula]={self.formula}"
        forms = {
            "meter": f"display_name=m&event_name={self.name}&{formula}",
            "customer": "name=c",
            "product": "name=p",
            "price": f"product={{product}}&unit_amount=10&{METERED}&recurring[meter]={{meter}}",
            "subscription": "customer={customer}&items[0][price]={price}"
            f"&items[0][metadata][om_meter_id]=m1&metadata[om_subject]={self.name}",
        }
        for kind, form in forms.items():
            path = "billing/meters" if kind == "meter" else f"{kind}s"
            self.ids[kind] = self.call("POST", path, form.format(**self.ids))["id"]
        self.service.openmeter.use(self.name, self.units)

    @property
    def stripe(self) -> Stripe:
        return self.service.stripe

    def call(self, method: str, path: str, form: str = "") -> Any:
        headers = {"Stripe_Account": self.name, "Stripe_Version": ENDIVE}
        return as_account(self.stripe, method, path, form, **headers)

    def touch(self) -> None:
        form = f"metadata[touched]={time.time()}"
        self.call("POST", f"subscriptions/{self.ids['subscription']}", form)

    def events(self) -> list[Any]:
        """Return the events since the last time; what has come due comes with a call."""
        self.call("GET", "products")
        found = control(self.stripe, self.name, "GET", "events")["events"][self.told :]
        self.told += len(found)
        return list(found)

    def deliver(self) -> list[Answer]:
        return [self.service.post(json.dumps(event)) for event in self.events()]

    def requests(self) -> list[Any]:
        found = control(self.stripe, self.name, "GET", "requests")["requests"]
        return [seen for seen in found if seen["path"] != "/v1/products"]

    def forget(self) -> None:
        control(self.stripe, self.name, "DELETE", "requests")

    def sent(self) -> list[tuple[str, str]]:
        """Return the name and value of each meter event."""
        forms = [s["form"] for s in self.requests() if s["path"] == "/v1/billing/meter_events"]
        return [(form["event_name"], form["payload[value]"]) for form in forms]

    def billed(self) -> list[list[int]]:
        found = self.call("GET", "invoices")["data"][::-1]
        return [[line["quantity"] for line in invoice["lines"]["data"]] for invoice in found]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(time, "time", found.time)
    monkeypatch.setattr(time, "monotonic", found.time)
    return found


@pytest.fixture
def another() -> Iterator[str]:
    """Serve another account, which knows nothing of the first one's objects."""
    application = stripe_api.create_app()
    server = serve(application)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# The key of another account


@SHAPES
@pytest.mark.parametrize("price", ["A", "R"])
@pytest.mark.parametrize("seconds", [1, 60], ids=["fresh", "late"])
def test_events_that_are_another_accounts_fail_and_write_nothing(
    tell: Tell, another: str, version: str, price: str, seconds: int
) -> None:
    story = tell(version)
    story.subscribe(CLASSIC, price)
    story.use(10, T - HOUR)
    wrong = story.start(STRIPE_API_BASE=another)
    wrong.open("GET", "/readyz")
    story.to(T)
    story.touch()
    story.to(T + seconds)
    answer = wrong.post(json.dumps(story.fresh()[-1]))
    assert (answer.status_code, answer.json["reported"]) == (500, [])
    assert "gone from Stripe" in answer.text
    assert [r for r in story.caplog.records if r.levelno == logging.ERROR]
    assert "Traceback" not in story.caplog.text
    seen = Stripe(another).requests()
    assert seen
    assert all(call["method"] == "GET" or "usage_records" in call["path"] for call in seen)


@pytest.mark.parametrize("kind", ["customer.subscription.deleted", "invoice.created"])
@pytest.mark.parametrize("price", ["A", "R"])
def test_another_accounts_closing_events_fail_too(
    tell: Tell, another: str, kind: str, price: str
) -> None:
    story = tell()
    story.subscribe(CLASSIC, price, cancel_at_period_end="true")
    story.used(10, T)
    wrong = story.start(STRIPE_API_BASE=another)
    story.to(END + 60)
    (event,) = [event for event in story.fresh() if event["type"] == kind][-1:]
    assert wrong.post(json.dumps(event)).status_code == 500
    assert {call["method"] for call in Stripe(another).requests()} == {"GET"}


@pytest.mark.parametrize("price", ["A", "R"])
@pytest.mark.parametrize("seconds", [1, 60], ids=["fresh", "late"])
def test_an_item_that_is_gone_stops_no_other(tell: Tell, price: str, seconds: int) -> None:
    story = tell()
    story.subscribe(CLASSIC, price, "bare R", **{"items[1][metadata][om_meter_id]": "m2"})
    story.use(10, T - HOUR)
    story.used(2, T, meter="m2")
    story.touch()
    (event,) = story.fresh()
    story.remove(1)
    story.to(story.machine.now + seconds)
    assert story.post(event).json["reported"][0]["meter"] == "m1"
    gone = [said for said in story.warned("refused") if "gone from Stripe" in said]
    assert len(gone) == (seconds == 1)
    assert [r.getMessage() for r in story.caplog.records if r.levelno >= logging.ERROR] == []


# Live and test mode


@pytest.mark.parametrize(
    ("key", "live"),
    [
        ("sk_test_1", True),
        ("rk_test_1", True),
        ("sk_live_1", False),
        ("rk_live_1", False),
        ("sk_org_live_1", False),
    ],
)
@pytest.mark.parametrize(
    "kind", ["customer.subscription.updated", "v1.billing.meter.error_report_triggered"]
)
def test_an_event_of_the_other_mode_is_ignored_with_a_warning(
    start: Start, caplog: pytest.LogCaptureFixture, key: str, live: bool, kind: str
) -> None:
    service = start(STRIPE_KEY=key)
    event = {"id": "evt_1", "type": kind, "livemode": live, "data": {"object": {}}}
    answer = service.post(json.dumps(event))
    assert (answer.status_code, answer.json) == (200, {"ignored": kind})
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for word in ("live mode", "test mode", "STRIPE_KEY", "endpoint"):
        assert word in said
    assert service.called() == []


@pytest.mark.parametrize("live", [False, None])
def test_an_event_of_the_keys_mode_or_of_none_is_reported(
    service: Service, caplog: pytest.LogCaptureFixture, live: bool | None
) -> None:
    service.stripe.collect_events(ACACIA)
    service.stripe.update(**{"metadata[a]": "1"})
    (event,) = service.stripe.events()
    assert service.post(json.dumps({**event, "livemode": live})).json["reported"]
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


# Connect and organizations


@pytest.mark.parametrize("context", [False, True], ids=["account", "context"])
def test_an_accounts_usage_is_billed_by_calls_that_name_it(
    start: Start, machine: Machine, context: bool
) -> None:
    service = start()
    x = Account(service, X, 7, context=context)
    machine.now = T
    x.touch()
    machine.now = T + 60
    x.forget()
    service.stripe.fake("DELETE", "requests")
    assert [answer.status_code for answer in x.deliver()] == [200]
    assert x.sent() == [(X, "7")]
    service.openmeter.use(X, 2)
    machine.now = END + 60
    closing = x.events()
    assert {event["type"] for event in closing} == {
        "customer.subscription.updated", "invoice.created",
    }  # fmt: skip
    for event in closing:
        assert service.post(json.dumps(event)).status_code == 200
    named = {(seen["account"], seen["context"]) for seen in x.requests()}
    assert named == {(None, X) if context else (X, None)}
    assert service.stripe.requests() == []
    machine.now = END + 74 * HOUR
    assert x.billed()[-1] == [9]
    x.call("DELETE", f"subscriptions/{x.ids['subscription']}")
    assert [answer.status_code for answer in x.deliver()] == [200]
    assert service.stripe.requests() == []


@pytest.mark.parametrize("context", [False, True], ids=["account", "context"])
def test_what_an_accounts_meter_did_not_count_is_read_from_that_account(
    start: Start, context: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service = start()
    endpoint = {"url": "http://127.0.0.1:9", "thin_secret": SECRET, "hold": True}
    control(service.stripe, X, "POST", "webhook", {**endpoint, "context": context})
    form = "event_name=unknown&payload[value]=1"
    as_account(service.stripe, "POST", "billing/meter_events", form, Stripe_Account=X)
    control(service.stripe, X, "POST", "report_meter_errors")
    (event,) = control(service.stripe, X, "GET", "events")["events"]
    assert service.post(json.dumps(event)).status_code == 200
    assert "No meter found for event name unknown." in caplog.text
    assert service.stripe.requests() == []


def test_accounts_whose_ids_are_the_same_do_not_mix(start: Start, machine: Machine) -> None:
    service = start()
    accounts = [Account(service, X, 7), Account(service, Y, 5)]
    assert accounts[0].ids == accounts[1].ids
    machine.now = T
    for account in accounts:
        account.touch()
    for account in accounts:
        account.deliver()
    machine.now = END + 60
    for account in accounts[::-1]:
        assert {answer.status_code for answer in account.deliver()} == {200}
    machine.now = END + 74 * HOUR
    for account, units in zip(accounts, (7, 5), strict=True):
        assert {name for name, _ in account.sent()} == {account.name}
        assert account.billed()[-1] == [units]


def test_a_meter_that_is_refused_in_one_account_is_used_in_another(
    start: Start, machine: Machine
) -> None:
    service = start()
    good, bad = Account(service, X, 7), Account(service, Y, 5, formula="sum")
    machine.now = T
    for account, statuses in ((good, [200]), (bad, [500]), (good, [200])):
        account.touch()
        machine.now += 1
        assert [answer.status_code for answer in account.deliver()] == statuses
    assert (good.sent()[-1], bad.sent()) == ((X, "7"), [])


@pytest.mark.parametrize("before", [1, 60])
def test_an_accounts_later_report_stands_in_for_none_of_anothers(
    start: Start, machine: Machine, before: int
) -> None:
    service = start()
    x, y = Account(service, X, 7), Account(service, Y, 5)
    machine.now = T
    y.touch()
    machine.now = T + before
    x.touch()
    for account, units in ((x, "7"), (y, "5")):
        answer = account.deliver()[-1]
        assert [entry["quantity"] for entry in answer.json["reported"]] == [units]


@pytest.mark.parametrize("name", ["account", "context"])
@pytest.mark.parametrize("value", ["", "a b", "acct_1\n", "../x", 5, ["acct_1"], {"id": "acct_1"}])
def test_an_account_that_is_no_id_is_refused(service: Service, name: str, value: object) -> None:
    service.stripe.collect_events(ACACIA)
    service.stripe.update(**{"metadata[a]": "1"})
    (event,) = service.stripe.events()
    service.forget()
    answer = service.post(json.dumps({**event, name: value}))
    assert (answer.status_code, service.called()) == (422, [])
    assert name in answer.json["error"]
