"""`flask replay`: deliveries that never reached the service, over HTTP to both stand-ins."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from tests.billing.test_meters import METERED, meter_events
from tests.conftest import ACACIA, DAY, END, ENDIVE, Service

HOUR = 3_600
Start = Callable[..., Service]


def command(service: Service, *options: str) -> Result:
    return service.client.application.test_cli_runner().invoke(args=[*options])


@pytest.fixture
def missed(start: Start) -> Callable[..., Service]:
    """Start a service that was down while a period with 10 units ended."""

    def told(version: str = ENDIVE) -> Service:
        service = start()
        price = service.stripe.metered_price()
        service.stripe.collect_events(version)
        service.stripe.seed({**METERED, "price": price})
        service.openmeter.use(service.stripe.ids["customer"], 10)
        service.stripe.advance(END + 60)
        return service

    return told


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_what_was_missed_is_worked_on_oldest_first(
    missed: Callable[..., Service], version: str
) -> None:
    service = missed(version)
    result = command(service, "replay")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[5] for line in lines[:-1]] == [
        event["type"] for event in service.stripe.events()
    ]
    # Nothing was used in the period that runs.
    assert lines[-1] == f"events: {len(lines) - 1}, warned: 1, failed: 0"
    assert meter_events(service)[0][1] == "10"
    service.stripe.advance(END + 60 + 72 * HOUR)
    assert service.stripe.invoiced()[-1] == ("open", [10])


def test_a_dry_run_names_the_events_and_calls_nobody_else(missed: Callable[..., Service]) -> None:
    service = missed()
    service.forget()
    result = command(service, "replay", "--dry-run", "--json")
    assert result.exit_code == 0
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["event"] for entry in shown] == [e["id"] for e in service.stripe.events()]
    assert {seen["path"] for seen in service.called()} == {"/v1/events"}


def test_what_is_lost_for_good_is_said_with_its_units(missed: Callable[..., Service]) -> None:
    service = missed()
    service.stripe.advance(END + 80 * HOUR)
    result = command(service, "replay", "--json")
    assert result.exit_code == 0
    warnings = [
        entry["warning"]
        for line in result.stdout.splitlines()
        for entry in json.loads(line)["warnings"]
    ]
    assert [said for said in warnings if "10 metered, 0 on invoice" in said]
    assert [said for said in warnings if "10 units (1.00 USD) not billed" in said]


def test_pages_are_read_from_the_oldest_on(
    missed: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = missed()
    for n in range(7):
        service.stripe.update(**{"metadata[n]": str(n)})
    monkeypatch.setattr("billing.stripe_api.PAGE_LIMIT", 2)
    result = command(service, "replay", "--dry-run", "--json")
    shown = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert shown == [event["id"] for event in service.stripe.events()]
    assert len(shown) >= 9


def test_an_event_that_cannot_be_read_fails_alone(missed: Callable[..., Service]) -> None:
    service = missed()
    good, bad = service.stripe.events()[-1], {"id": "evt_bad", "type": "invoice.created"}
    body = {"object": "list", "data": [good, bad], "has_more": False}
    service.stripe.fault(path="/v1/events", status=200, body=body)
    result = command(service, "replay")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("events: 2, ")
    assert result.stdout.splitlines()[-1].endswith("failed: 1")


def test_a_stripe_that_is_down_is_said_in_one_line(missed: Callable[..., Service]) -> None:
    service = missed()
    service.stripe.fault(path="/v1/events", status=503, times=9)
    result = command(service, "replay")
    assert (result.exit_code, "failed: the list of events" in result.stderr) == (1, True)


@pytest.mark.parametrize("given", ["", "2", "0d", "31d", "721h", "2w", "-1d", "1.5d"])
def test_a_time_that_is_none_is_refused(start: Start, given: str) -> None:
    result = command(start(), "replay", "--since", given)
    assert result.exit_code == 2
    assert "is no time such as 12h or 2d" in result.stderr


def test_events_of_before_are_left_out(missed: Callable[..., Service]) -> None:
    service = missed()
    service.stripe.fake("POST", "advance", {"seconds": 2 * DAY})
    service.stripe.update(**{"metadata[n]": "1"})
    command(service, "report")
    shown = command(service, "replay", "--since", "1d", "--dry-run").stdout.splitlines()
    assert len(shown) == 2
    assert len(command(service, "replay", "--since", "3d", "--dry-run").stdout.splitlines()) > 2


def test_a_connected_accounts_events_are_worked_on_with_it(start: Start) -> None:
    service = start()
    answer: Any = command(service, "replay", "--account", "acct_1", "--account", "acct_2")
    assert answer.exit_code == 0
    for account in ("acct_1", "acct_2"):
        seen = service.stripe.fake("GET", f"accounts/{account}/requests")["requests"]
        assert {entry["account"] for entry in seen} == {account}
    assert command(service, "replay", "--account", "no id").exit_code == 2


def test_a_report_of_connected_accounts_is_made_for_each(start: Start) -> None:
    service = start()
    result = command(service, "report", "--account", "acct_1", "--account", "acct_2")
    assert result.exit_code == 0
    assert result.stdout.count("subscriptions: 0") == 2
    for account in ("acct_1", "acct_2"):
        seen = service.stripe.fake("GET", f"accounts/{account}/requests")["requests"]
        assert {entry["account"] for entry in seen} == {account}
    assert service.stripe.requests() == []
