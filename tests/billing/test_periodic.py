"""The `flask report` command: all subscriptions, again and again, beside the webhook."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from click.testing import Result
from pytest_mock import MockerFixture

from billing import periodic, runs, stripe_api
from billing.clock import report_second
from billing.invoices import InvoicedPeriods, fetch_invoiced_periods
from billing.stripe_api import Page, StripeConnection
from fakes.processes import ROOT, Processes, call
from tests.billing.test_meters import meter_events
from tests.conftest import ACACIA, DAY, END, ENDIVE, START, OpenMeter, Service, Stripe

Start = Callable[..., Service]
Many = Callable[..., Service]
METERED = {"metadata[om_meter_id]": "m1"}
REPORT = [sys.executable, "-m", "flask", "report"]
HOUR = 3_600


def report(service: Service, *options: str) -> Result:
    """Run the command in this process."""
    return service.client.application.test_cli_runner().invoke(args=["report", *options])


def counts(result: Result) -> list[int]:
    """Return subscriptions, items, reported, skipped, warned and failed."""
    last = result.output.splitlines()[-1]
    named = dict(re.findall(r"(\w+): (\d+)", last))
    assert list(named) == [
        "subscriptions", "items", "reported", "skipped", "warned", "failed", "seconds",
    ]  # fmt: skip
    return [int(count) for count in named.values()][:-1]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of failures."""
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


def compared(service: Service, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Return status and lines of a dry run, which has written nothing."""
    service.forget()
    result = report(service, "--dry-run", "--json", *options)
    assert {seen["method"] for seen in service.stripe.requests()} <= {"GET"}
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def fail_queries(service: Service, skip: int, times: int = 1_000) -> None:
    """Let OpenMeter fail to answer for many subjects at once, and, after some, for one."""
    service.openmeter.fault(path="/query", method="POST", status=503, times=1_000)
    service.openmeter.fault(path="/query", method="GET", status=503, skip=skip, times=times)


def subscribe(stripe: Stripe, count: int, price: str) -> list[dict[str, Any]]:
    """Start subscriptions now, each with a metered item and a customer of its own."""
    item = {"price": price, "metadata": {"om_meter_id": "m1"}}
    return [
        stripe.account.create_subscription(
            {"customer": stripe.account.add("customer", "cus", test_clock=None)["id"]}
            | {"items": [item]},
            ACACIA,
        )
        for _ in range(count)
    ]


@pytest.fixture
def many(start: Start) -> Many:
    """Start the service with many subscriptions, each with 3 units of usage."""

    def started(count: int, **settings: object) -> Service:
        service = start(**settings)
        product = service.stripe.call("POST", "products", name="Epsilon")["id"]
        recurring = {"recurring[interval]": "month", "recurring[usage_type]": "metered"}
        price = service.stripe.call("POST", "prices", product=product, unit_amount=1, **recurring)
        moment = datetime.now(UTC).isoformat()
        events = [
            {"id": found["id"], "source": "test", "specversion": "1.0", "type": "execution"}
            | {"subject": found["customer"], "time": moment, "data": {"duration": 3}}
            for found in subscribe(service.stripe, count, price["id"])
        ]
        if events:  # OpenMeter refuses an empty list
            call("POST", f"{service.openmeter.url}/api/v1/events", events)
        return service

    return started


def held(service: Service) -> list[int]:
    """Return the usage of each item's running period."""
    account = service.stripe.account
    return [
        account.usage(found["items"][0], found["start"], found["end"])
        for found in account.all("subscription")
    ]


# All subscriptions


@pytest.mark.parametrize("count", [0, 1, 100, 101, 1_000])
def test_all_pages_are_reported(many: Many, count: int) -> None:
    service = many(count)
    result = report(service)
    assert result.exit_code == 0, result.output
    assert counts(result) == [count, count, count, 0, 0, 0]
    assert held(service) == [3] * count
    listed = [seen for seen in service.stripe.requests() if seen["path"] == "/v1/subscriptions"]
    assert len(listed) == max(1, -(-count // 100))
    # One in a hundred, and again where that took more than three seconds.
    asked = [seen for seen in service.openmeter.requests() if seen["path"].endswith("/query")]
    assert len(asked) <= max(1, count / 10)


def test_a_run_and_a_webhook_log_and_write_the_same(
    service: Service, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert service.deliver(service.stripe.subscription()).status_code == 200
    (line,) = [said for said in caplog.messages if "total_usage" in said]
    (sent,) = [seen for seen in service.stripe.requests() if seen["method"] == "POST"]
    service.forget()
    caplog.clear()
    assert counts(report(start())) == [1, 1, 1, 0, 0, 0]
    assert [said for said in caplog.messages if "total_usage" in said] == [line]
    assert [seen for seen in service.stripe.requests() if seen["method"] == "POST"] == [sent]


@pytest.mark.parametrize(("status", "listed"), [("trialing", 1), ("unpaid", 1), ("paused", 0)])
def test_only_what_can_still_be_billed_is_reported(
    many: Many, mocker: MockerFixture, status: str, listed: int
) -> None:
    service = many(1)
    read = stripe_api.list_subscriptions_with_latest_invoice

    def shown(*given: Any, **filters: Any) -> Page:
        page = read(*given, **filters)
        return Page([{**entry, "status": status} for entry in page.entries], False)

    mocker.patch("billing.stripe_api.list_subscriptions_with_latest_invoice", shown)
    assert counts(report(service)) == [listed, listed, listed, 0, 0, 0]


def test_items_that_are_not_metered_are_skipped(start: Start) -> None:
    service = start()
    service.stripe.seed({}, METERED)
    service.openmeter.use(service.stripe.ids["customer"], 1)
    assert counts(report(service)) == [1, 2, 1, 1, 0, 0]


def test_some_subscriptions_can_be_named(many: Many) -> None:
    service = many(4)
    names = [found["id"] for found in service.stripe.account.all("subscription")]
    options = [f"--subscription={name}" for name in (names[1], names[3], names[1])]
    assert counts(report(service, *options)) == [2, 2, 2, 0, 0, 0]
    assert held(service) == [0, 3, 0, 3]


def test_a_named_subscription_that_cannot_be_billed_fails(
    many: Many, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(2)
    gone, other = (found["id"] for found in service.stripe.account.all("subscription"))
    service.stripe.call("DELETE", f"subscriptions/{gone}")
    result = report(service, *[f"--subscription={name}" for name in (gone, "sub_x", other)])
    assert result.exit_code == 1
    ended, unknown = errors(caplog)
    assert ended == f"{gone}: is canceled: nothing more can be billed"
    assert unknown.startswith("sub_x: gone from Stripe")
    assert counts(result) == [1, 1, 1, 0, 0, 2]


@pytest.mark.parametrize("name", ["../x", "", "sub 1"])
def test_what_is_no_id_is_refused(service: Service, name: str) -> None:
    service.forget()
    result = report(service, f"--subscription={name}")
    assert (result.exit_code, service.called()) == (2, [])
    assert "is no id" in result.output


@pytest.mark.parametrize("option", ["--workers=0", "--workers=129"])
def test_options_out_of_range_are_refused(service: Service, option: str) -> None:
    assert report(service, option).exit_code == 2


def test_the_help_says_what_each_option_does(service: Service) -> None:
    assert all(
        isinstance(option, click.Option) and option.help
        for option in periodic.report_command.params
    )
    listed = service.client.application.test_cli_runner().invoke(args=["--help"]).output
    (line,) = re.findall(r"^  report +(.*)$", listed, re.M)
    assert line.endswith(".")
    assert "..." not in line


# What goes wrong on the way


def test_subscriptions_that_end_during_a_run_do_no_harm(many: Many, mocker: MockerFixture) -> None:
    service = many(101)
    ids = [found["id"] for found in service.stripe.account.all("subscription")][::-1]
    read = stripe_api.list_subscriptions_with_latest_invoice

    def reading(account: StripeConnection, after: str | None, **filters: str) -> Page:
        page = read(account, after, **filters)
        if after is None:
            for ended in (ids[0], ids[99]):
                service.stripe.call("DELETE", f"subscriptions/{ended}")
        return page

    mocker.patch("billing.stripe_api.list_subscriptions_with_latest_invoice", reading)
    result = report(service)
    assert result.exit_code == 0, result.output
    assert counts(result) == [101, 101, 99, 0, 2, 0]


@pytest.mark.parametrize("status", [409, 429])
def test_a_storm_of_refusals_is_waited_out(many: Many, status: int) -> None:
    service = many(5)
    service.stripe.fault(path="/usage_records", status=status, times=30)
    service.stripe.fault(path="/v1/subscriptions", status=status, times=2)
    assert counts(report(service)) == [5, 5, 5, 0, 0, 0]
    assert held(service) == [3] * 5


def test_an_outage_fails_what_it_meets_and_the_next_run_repairs_it(
    many: Many, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(10)
    fail_queries(service, skip=4)
    result = report(service)
    assert result.exit_code == 1
    assert counts(result) == [10, 10, 4, 0, 0, 6]
    assert sorted(held(service)) == [0] * 6 + [3] * 4
    said = [
        re.fullmatch(r"(si_\w+): meter m1: OpenMeter answered 503.*", e) for e in errors(caplog)
    ]
    assert len({match[1] for match in said if match}) == len(said) == 6
    service.openmeter.fake("DELETE", "faults")
    assert report(service).exit_code == 0
    assert held(service) == [3] * 10


def test_a_list_that_cannot_be_read_on_ends_the_run_with_a_reason(
    many: Many, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(150)
    service.stripe.fault(path="/v1/subscriptions", method="GET", status=500, skip=1, times=10)
    result = report(service)
    assert result.exit_code == 1
    assert counts(result) == [100, 100, 100, 0, 0, 1]
    (said,) = errors(caplog)
    assert re.match(r"the list of subscriptions after sub_\d+: Stripe ans", said)


def test_a_subscription_that_cannot_be_billed_stops_no_other(
    many: Many, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(3)
    broken = service.stripe.account.all("subscription")[1]
    service.stripe.account.all("subscription_item")[1]["metadata"] = {"om_meter_id": "M 1"}
    result = report(service)
    assert (result.exit_code, held(service)) == (1, [3, 0, 3])
    (said,) = errors(caplog)
    what = "as it is in Stripe now, items.data[0].metadata.om_meter_id is no"
    assert said.startswith(f"{broken['id']}: {what}")


def test_a_mistake_of_ours_is_a_failure_of_one_subscription(
    many: Many, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(2)
    mocker.patch("billing.ways.report_total", side_effect=[ZeroDivisionError("secret"), 3])
    result = report(service, "--workers", "1")
    assert result.exit_code == 1
    assert any("could not be worked on (ZeroDivisionError)" in said for said in errors(caplog))
    assert "secret" not in result.output + caplog.text


def test_two_runs_and_webhooks_at_once_end_in_the_same_records(many: Many) -> None:
    service = many(20)
    subscriptions = service.stripe.call("GET", "subscriptions", limit=100)["data"]
    results: list[Any] = []
    runs = [
        threading.Thread(target=lambda: results.append(report(service).exit_code)) for _ in range(2)
    ]
    for run in runs:
        run.start()
    for subscription in subscriptions:
        results.append(200 - service.deliver(subscription).status_code)
    for run in runs:
        run.join()
    assert results == [0] * 22
    assert held(service) == [3] * 20


# Billing Meters


def test_a_draft_is_still_reported_and_a_final_invoice_is_not(start: Start) -> None:
    service = start()
    service.stripe.seed({**METERED, "price": service.stripe.metered_price()})
    service.openmeter.use(service.stripe.ids["customer"], 7)
    service.openmeter.use(service.stripe.ids["customer"], 2, time="2023-07-07T14:10:00Z")
    service.stripe.collect_events(ENDIVE)
    service.stripe.advance(END + 60)
    assert counts(report(service)) == [1, 1, 2, 0, 0, 0]
    closing = (report_second(START, END, END + 60), "7")
    assert meter_events(service) == [closing, (END + 60, "2")]
    service.stripe.advance(END + 3 * DAY + HOUR)
    assert service.stripe.invoiced() == [("open", [7])]
    service.forget()
    assert counts(report(service)) == [1, 1, 1, 0, 0, 0]
    later = END + 3 * DAY + HOUR
    assert meter_events(service) == [(report_second(END, later + DAY, later), "2")]


def test_a_draft_behind_another_invoice_is_found(start: Start) -> None:
    service = start()
    service.stripe.seed({**METERED, "price": service.stripe.metered_price()})
    service.openmeter.use(service.stripe.ids["customer"], 7)
    service.stripe.collect_events(ENDIVE)
    service.stripe.advance(END + 60)
    service.stripe.update(billing_cycle_anchor="now")
    service.stripe.advance(END + 120)
    report(service)
    assert meter_events(service)[0] == (report_second(START, END, END + 120), "7")


@pytest.mark.parametrize("named", [True, False])
def test_two_subscriptions_on_one_billing_meter_are_refused(
    many: Many, named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service = many(1)
    service.openmeter.meter("m2")
    first, second = subscribe(service.stripe, 2, service.stripe.metered_price())
    second["customer"] = first["customer"]
    service.stripe.account.get("subscription_item", first["items"][0])["metadata"] = {
        "om_meter_id": "m2"
    }
    options = [f"--subscription={first['id']}"] if named else []
    result = report(service, *options)
    assert result.exit_code == 1
    ids = [found["items"][0] for found in (first, second)]
    (said,) = errors(caplog)
    assert re.match(
        f"({ids[0]} and {ids[1]}|{ids[1]} and {ids[0]}): would overwrite each other's "
        "totals on Billing Meter mtr_",
        said,
    )
    assert len(meter_events(service)) == 1 - named


def test_the_same_billing_meter_serves_many_customers(many: Many) -> None:
    service = many(1)
    subscribe(service.stripe, 3, service.stripe.metered_price())
    result = report(service)
    assert (result.exit_code, len(meter_events(service))) == (0, 3)


# Looking before acting


def test_a_dry_run_compares_records_and_writes_nothing(service: Service) -> None:
    service.openmeter.use(service.stripe.ids["customer"], 0.5)
    status, (line,) = compared(service)
    assert status == 3
    assert line == {
        "subscription": service.stripe.ids["subscription"],
        "item": service.stripe.items()[0],
        "meter": "m1",
        "subject": service.stripe.ids["customer"],
        "period": "2023-06-07 14:00:00 - 2023-07-07 14:00:00",
        "openmeter": "10.5",
        "stripe": "0",
        "after": "10",
        "difference": "10",
        "left": "0",
        "note": "",
    }
    assert report(service).exit_code == 0
    status, (line,) = compared(service)
    assert (status, line["stripe"], line["difference"]) == (0, "10", "0")
    service.openmeter.use(service.stripe.ids["customer"], 100)
    status, (line,) = compared(service)
    assert (status, line["openmeter"], line["difference"]) == (3, "110.5", "100")


def test_a_dry_run_compares_billing_meters(start: Start) -> None:
    service = start()
    service.stripe.seed({**METERED, "price": service.stripe.metered_price()})
    service.openmeter.use(service.stripe.ids["customer"], 7.25)
    status, (line,) = compared(service)
    assert (status, line["stripe"], line["difference"]) == (3, "0", "7.25")
    assert report(service).exit_code == 0
    status, (line,) = compared(service)
    assert (status, line["stripe"], line["difference"]) == (0, "7.25", "0")


OTHERS = START + 3_600


def write_for_others(service: Service, quantity: int) -> None:
    """Set a usage record as another reporter would, an hour into the period."""
    path = f"subscription_items/{service.stripe.items()[0]}/usage_records"
    form = {"action": "set", "timestamp": f"{OTHERS}", "quantity": f"{quantity}"}
    service.stripe.call("POST", path, **form)


def figures(line: dict[str, Any]) -> tuple[str | None, ...]:
    """Return what OpenMeter and Stripe have, what Stripe would have, and what is left."""
    return tuple(line[name] for name in ("openmeter", "stripe", "after", "difference", "left"))


def renewed(start: Start, mocker: MockerFixture, offset: int = 0) -> Service:
    """Return a service whose Billing Meter's period with 7 units has just ended."""
    mocker.patch("tests.conftest.START", START + offset)
    service = start()
    service.stripe.seed({**METERED, "price": service.stripe.metered_price()})
    service.openmeter.use(service.stripe.ids["customer"], 7)
    service.stripe.collect_events(ENDIVE)
    service.stripe.advance(END + offset + 60)
    return service


@pytest.mark.parametrize("offset", [0, 30], ids=["within a minute", "on a full minute"])
def test_a_closed_period_is_compared_with_its_drafts_line_until_a_report_is_counted(
    start: Start, mocker: MockerFixture, offset: int
) -> None:
    service = renewed(start, mocker, offset)
    status, (closed, running) = compared(service)
    assert (status, figures(closed)) == (3, ("7", "0", "7", "7", "0"))
    assert figures(running) == (None, "0", "0", "0", "0")
    assert report(service).exit_code == 0
    # The line has what was counted before the report, until the draft becomes final.
    assert [line["quantity"] for line in draft_lines(service)] == [0]
    status, (closed, _) = compared(service)
    assert (status, figures(closed)) == (0, ("7", "7", "7", "0", "0"))
    # What was counted since is not known, but that it is not all.
    service.openmeter.use(service.stripe.ids["customer"], 2)
    status, (closed, _) = compared(service)
    assert (status, figures(closed)) == (
        3,
        ("9", "7", "9", "2", "0") if offset else ("9", "0", "9", "9", "0"),
    )


def draft_lines(service: Service) -> list[dict[str, Any]]:
    """Return the lines of the only draft."""
    (draft,) = service.stripe.call("GET", "invoices", ENDIVE, status="draft")["data"]
    lines: list[dict[str, Any]] = draft["lines"]["data"]
    return lines


def test_what_a_draft_counts_no_more_is_left_after_a_report(
    start: Start, mocker: MockerFixture
) -> None:
    mocker.patch("billing.closings.fetch_invoiced_periods", fixed_periods)
    service = renewed(start, mocker)
    for _ in range(2):
        status, (closed, _) = compared(service)
        assert (status, figures(closed)) == (3, ("7", "0", "0", "0", "7"))
        assert closed["note"].startswith("after a report 7 missing: its price began in mid-period")
        report(service)
    result = report(service, "--dry-run")
    assert result.stdout.splitlines()[-1] == "1 of 2 periods differ; 1 would after a report, too"


def fixed_periods(*given: Any) -> InvoicedPeriods:
    """Return what an invoice bills, as if each price had begun in mid-period."""
    found = fetch_invoiced_periods(*given)
    return found._replace(periods=[replace(one, is_fixed=True) for one in found.periods])


def test_what_may_be_of_the_period_before_is_unknown_and_no_difference(
    start: Start, mocker: MockerFixture
) -> None:
    service = renewed(start, mocker)
    # Another reporter closed the period before in its last seconds, in the new one's first minute.
    event: Any = {"event_name": "openmeter_m1", "timestamp": END - 5, "payload[value]": 50}
    event["payload[stripe_customer_id]"] = service.stripe.ids["customer"]
    service.stripe.call("POST", "billing/meter_events", ENDIVE, **event)
    service.openmeter.use(service.stripe.ids["customer"], 3, time="2023-07-07T14:10:00Z")
    service.stripe.advance(END + 120)
    _, (_, running) = compared(service)
    assert figures(running) == ("3", None, "3", None, "0")
    result = report(service, "--dry-run")
    (row,) = [line for line in result.stdout.splitlines() if re.search(r" 3 +\? +3 +\?$", line)]
    assert row.startswith("si_")
    assert result.stdout.splitlines()[-1] == "1 of 2 periods differ; 1 unknown"
    mocker.patch("billing.runs.fetch_draft_invoices", return_value=[])
    result = report(service, "--dry-run")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        0,
        "0 of 1 period agree; 1 unknown",
    )
    report(service)
    service.openmeter.use(service.stripe.ids["customer"], 2, time="2023-07-07T14:10:00Z")
    status, (running,) = compared(service)
    assert (status, figures(running)) == (3, ("5", "3", "5", "2", "0"))


def test_a_dry_run_compares_what_a_period_would_hold_beside_other_reporters_records(
    service: Service,
) -> None:
    write_for_others(service, 8)
    status, (line,) = compared(service)
    assert (status, figures(line)) == (3, ("10", "8", "10", "2", "0"))
    status, (line,) = compared(service, "--moving")
    assert (status, figures(line)) == (3, ("10", "8", "18", "10", "-8"))
    assert line["note"] == "after a report 8 too many: what another reporter wrote stays"
    report(service)
    assert service.stripe.usage() == [18]
    status, (line,) = compared(service)
    assert (status, figures(line)) == (3, ("10", "18", "10", "-8", "0"))
    assert line["note"] == "a report lowers it only to what others wrote at other timestamps"


def test_what_another_reporter_wrote_in_full_would_be_there_twice(service: Service) -> None:
    write_for_others(service, 10)
    assert compared(service)[0] == 0
    result = report(service, "--dry-run", "--moving")
    assert result.exit_code == 3
    assert "after a report 10 too many" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 of 1 period differ; 1 would after a report, too"


def test_a_move_with_nothing_written_yet_leaves_nothing(service: Service) -> None:
    status, (line,) = compared(service, "--moving")
    assert (status, figures(line)) == (3, ("10", "0", "10", "10", "0"))


def test_the_table_has_what_differs_and_sums(many: Many) -> None:
    service = many(3)
    first, second, third = service.stripe.account.all("subscription")
    report(service, "--subscription", second["id"])
    result = report(service, "--dry-run")
    head, *rows, blank, sums, counted, last = result.stdout.splitlines()
    assert head.split() == ["item", "meter", "openmeter", "stripe", "after", "difference"]
    shown = [row.split() for row in rows if not row.startswith("  ")]
    assert shown == [[found["items"][0], "m1", "3", "0", "3", "3"] for found in (first, third)]
    assert (blank, sums.split()) == ("", ["sum", "m1", "9", "3", "9", "6"])
    assert counted.startswith("subscriptions: 3, items: 3, skipped: 0,")
    assert (result.exit_code, last) == (3, "2 of 3 periods differ")
    everything = report(service, "--dry-run", "--all").stdout
    assert all(found["items"][0] in everything for found in (first, second, third))


def test_the_table_fits_a_terminal(service: Service) -> None:
    subject = "somebody-with-a-long-name." * 5
    service.stripe.update(**{"metadata[om_subject]": subject})
    service.openmeter.use(subject, 123_456_789_012.125)
    result = report(service, "--dry-run")
    assert result.exit_code == 3
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "123456789012.125" in result.stdout
    assert re.sub(r"\s", "", subject) in re.sub(r"\s", "", result.stdout)


@pytest.mark.parametrize("count", [0, 2])
def test_a_dry_run_without_a_difference_says_that_all_agree(many: Many, count: int) -> None:
    service = many(count)
    report(service)
    result = report(service, "--dry-run")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "all agree")
    assert "si_" not in result.stdout


def test_a_comparison_that_fails_is_named(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.openmeter.fault(path="/query", status=503, times=10)
    result = report(service, "--dry-run")
    assert result.exit_code == 1
    assert [said[:3] for said in errors(caplog)] == ["si_"]
    assert result.stdout.splitlines()[-1] == "1 could not be compared"


def test_a_failure_outweighs_a_difference_and_the_last_line_says_both(many: Many) -> None:
    service = many(3)
    fail_queries(service, skip=2, times=2)
    result = report(service, "--dry-run", "--workers", "1")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "2 of 2 periods differ; 1 could not be compared"


def test_a_dry_run_on_accounts_ends_with_one_sentence(many: Many) -> None:
    service = many(1)
    result = report(service, "--dry-run", "--account", "acct_1", "--account", "acct_2")
    assert result.exit_code == 0
    *counted, last = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in counted] == ["acct_1", "acct_2"]
    assert last == "all agree"


@pytest.mark.parametrize(
    "options", [["--json", "--quiet"], ["--all"], ["--moving"], ["--moving", "--quiet"]]
)
def test_options_that_do_not_go_together_are_refused(service: Service, options: list[str]) -> None:
    service.forget()
    assert (report(service, *options).exit_code, service.called()) == (2, [])


def test_each_json_line_is_one_outcome_and_the_counts_go_elsewhere(many: Many) -> None:
    service = many(3)
    service.stripe.account.all("subscription_item")[0]["metadata"] = {"om_meter_id": "m9"}
    result = report(service, "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(set(line) - {"item"} == {"error"} for line in lines) == [False, False, True]
    assert [line["quantity"] for line in lines if "quantity" in line] == [3, 3]
    assert result.stderr.splitlines()[-1].startswith("subscriptions: 3, items: 3, reported: 2")


# Pace


@pytest.mark.parametrize(
    ("has_begun", "seconds_each", "most"),
    [
        (False, 0, 100),  # one query's
        (True, 0, 5_000),  # until the first is written
        (True, 0.1, 1_300),  # ten a second, by ten workers, for half the time that one may wait
        (True, 0.5, 260),
        (True, 10, 100),
        (True, 0.001, 5_000),
    ],
)
def test_no_more_wait_than_are_written_in_time(
    mocker: MockerFixture, has_begun: bool, seconds_each: float, most: int
) -> None:
    pool = runs.WorkPool(mocker.create_autospec(runs.Run, instance=True), 10)
    pool.has_begun, pool.seconds_each = has_begun, seconds_each
    assert pool.most_waiting() == most


def test_a_run_keeps_to_its_share_of_an_endpoints_limit(many: Many) -> None:
    service = many(30, STRIPE_RATE_SHARE="80")
    began = time.monotonic()
    result = report(service)
    # A page and thirty usage records: twenty at once, the others from the next second on, 50 ms
    # apart.
    assert 1.4 <= time.monotonic() - began < 6
    assert counts(result)[2] == 30


# Real processes


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("signals", "together"), [(1, False), (2, False), (1, True)])
def test_an_interrupt_ends_cleanly_and_says_how_far_it_got(
    processes: Processes, signals: int, together: bool
) -> None:
    stripe = Stripe(processes.stripe)
    openmeter = OpenMeter(processes.openmeter)
    for _ in range(4):
        stripe.seed()
        openmeter.use(stripe.ids["customer"], 10)
    if together:  # those on test clocks wait for nobody
        price, clocked = stripe.ids["price"], stripe.call("GET", "subscriptions")["data"]
        for found in clocked:
            stripe.call("DELETE", f"subscriptions/{found['id']}")
        form = {"items[0][price]": price, "items[0][metadata][om_meter_id]": "m1"}
        for _ in range(4):
            customer = stripe.call("POST", "customers")["id"]
            stripe.call("POST", "subscriptions", customer=customer, **form)
            openmeter.use(customer, 10, time=datetime.now(UTC).isoformat())
    call("POST", f"{processes.openmeter}/_fake/faults", {"path": "/query", "delay": 1, "times": 99})
    call("DELETE", f"{processes.openmeter}/_fake/requests")
    command = [*REPORT, "--workers", "1"]
    run = processes.start("flask report", command, processes.environment())
    seen = f"{processes.openmeter}/_fake/requests"
    while not call("GET", seen)["requests"]:
        time.sleep(0.02)
    for _ in range(signals):
        run.popen.send_signal(signal.SIGINT)
        time.sleep(0.2)
    status, printed = run.popen.wait(30), run.printed()
    assert status == 130, printed
    assert "Traceback" not in printed
    assert "interrupted: what has begun is finished" in printed
    assert re.search(r"^subscriptions: 1, items: 1, reported: 1, .*failed: 0", printed, re.M), (
        printed
    )
    assert len(call("GET", seen)["requests"]) == 1


def test_a_run_that_cannot_start_has_a_status_of_its_own() -> None:
    done = subprocess.run(
        [*REPORT, "--dry-run"], cwd=ROOT, env={**os.environ, "STRIPE_KEY": "a b"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Cannot start" in done.stderr
