"""The metrics, as Prometheus reads them."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.processes import DIRECT, ROOT, Processes
from tests.conftest import OpenMeter, Service, Stripe

Start = Callable[..., Service]
Samples = defaultdict[str, float]
PREFIX = "openmeter_stripe_"
OPERATING = ROOT / "docs" / "operating.md"
UPDATED = "customer.subscription.updated"


def samples(text: str) -> Samples:
    """Return our samples' values by name and labels' values, in the names' order."""
    found = Samples(float)
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            values = [labels[label] for label in sorted(labels)]
            found[" ".join([name.removeprefix(PREFIX), *values])] = value
    return found


@pytest.fixture
def service(start: Start) -> Service:
    """Return a service that counts, with one metered item and 10 units of usage."""
    running = start(METRICS="1")
    running.stripe.seed()
    running.openmeter.use(running.stripe.ids["customer"], 10)
    return running


@pytest.fixture
def counted(service: Service) -> Callable[[], Samples]:
    """Return what was counted since the last call."""
    before = samples(service.open("GET", "/metrics").text)

    def since() -> Samples:
        now = samples(service.open("GET", "/metrics").text)
        difference = Samples(float, {name: now[name] - before[name] for name in now})
        before.clear()
        before.update(now)
        return difference

    return since


Counted = Callable[[], Samples]


def test_there_are_none_unless_asked_for(start: Start) -> None:
    assert start().open("GET", "/metrics").status_code == 404


def test_a_delivery_its_report_and_its_calls_are_counted(
    service: Service, counted: Counted
) -> None:
    began = time.time()
    service.deliver(service.stripe.subscription())
    found = counted()
    assert found[f"deliveries_total reported {UPDATED}"] == 1
    assert found["reports_total reported usage record"] == 1
    assert found["delivery_seconds_count"] == 1
    assert 0 < found["delivery_seconds_sum"] < 5
    assert found["call_seconds_count openmeter"] == found["call_seconds_count stripe"] == 1
    now = samples(service.open("GET", "/metrics").text)
    assert began <= now["last_success_timestamp_seconds"] <= time.time()


def test_what_fails_is_counted_as_that(service: Service, counted: Counted) -> None:
    service.openmeter.fault(path="/query", drop=True, times=9)
    before = samples(service.open("GET", "/metrics").text)["last_success_timestamp_seconds"]
    assert service.deliver(service.stripe.subscription()).status_code == 500
    found = counted()
    assert found[f"deliveries_total failed {UPDATED}"] == 1
    assert found["reports_total failed usage record"] == 1
    assert found["call_seconds_count openmeter"] == 2
    assert found["last_success_timestamp_seconds"] == 0
    assert before == samples(service.open("GET", "/metrics").text)["last_success_timestamp_seconds"]


def test_warnings_are_counted_by_their_kind(service: Service, counted: Counted) -> None:
    service.openmeter.fault(path="/query", status=200, body={"data": []})
    service.deliver(service.stripe.subscription())
    assert counted()["warnings_total no rows"] == 1
    gone = {"error": {"code": "resource_missing", "message": "gone"}}
    service.stripe.fault(path="/usage_records", method="POST", status=404, body=gone)
    service.deliver(service.stripe.subscription())
    found = counted()
    assert found["warnings_total refused"] == 1
    assert found["reports_total refused usage record"] == 1


@pytest.mark.parametrize(
    ("body", "labels"),
    [
        ('{"type": "invoice.paid"}', "ignored other"),
        ('{"type": "customer.subscription.updated"}', f"invalid {UPDATED}"),
        ("{", "not genuine not genuine"),
    ],
)
def test_deliveries_are_counted_by_type_and_outcome(
    service: Service, counted: Counted, body: str, labels: str
) -> None:
    service.post(body)
    found = {name: count for name, count in counted().items() if name.startswith("deliveries_t")}
    assert {name for name, count in found.items() if count} == {f"deliveries_total {labels}"}


def test_what_is_not_signed_is_no_sign_of_a_wrong_secret(
    service: Service, counted: Counted
) -> None:
    service.post("{}", signature="")
    service.post("{}", signature="t=1,v1=0")
    found = {name: count for name, count in counted().items() if name.startswith("deliveries_t")}
    assert {name for name, count in found.items() if count} == {
        "deliveries_total not signed not genuine",
        "deliveries_total not genuine not genuine",
    }


def test_the_docs_name_what_there_is(service: Service) -> None:
    service.openmeter.fault(path="/query", status=200, body={"data": []})
    service.deliver(service.stripe.subscription())
    found = set(samples(service.open("GET", "/metrics").text))
    names = {name.split(" ")[0].removesuffix("_count") for name in found}
    text = OPERATING.read_text()
    table = text.split("| metric | labels |")[1].split("\n\n")[0]
    tabled = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?`) \|", table, re.M))))
    assert {"deliveries_total", "call_seconds"} < tabled <= names


def test_each_counter_begins_at_zero_and_the_docs_name_its_labels(service: Service) -> None:
    found = samples(service.open("GET", "/metrics").text)
    table = OPERATING.read_text().split("| metric | labels |")[1].split("\n\n")[0]
    named = {row.split("`")[1]: re.findall("`([^`]+)`", row)[1:] for row in table.splitlines()[2:6]}
    _, _, *outcomes = named["deliveries_total"]
    for kind in (UPDATED, "invoice.created", "other", "not genuine"):
        assert {f"deliveries_total {outcome} {kind}" for outcome in outcomes} <= found.keys()
    assert {f"warnings_total {kind}" for kind in named["warnings_total"][1:]} == {
        name for name in found if name.startswith("warnings_total")
    }
    assert {f"meter_errors_total {code}" for code in named["meter_errors_total"][1:]} == {
        name for name in found if name.startswith("meter_errors_total")
    }
    assert sum(name.startswith("reports_total") for name in found) == 6


def test_it_is_told_since_when_is_counted(start: Start) -> None:
    began = time.time()
    text = start(METRICS="1").open("GET", "/metrics").text
    assert began <= samples(text)["start_timestamp_seconds"] <= time.time()


@pytest.mark.parametrize("times", [1, 3])
def test_a_service_that_is_made_again_counts_once(start: Start, times: int) -> None:
    for _ in range(times):
        service = start(METRICS="1")
    before = samples(service.open("GET", "/metrics").text)
    service.post("{")
    after = samples(service.open("GET", "/metrics").text)
    name = "deliveries_total not genuine not genuine"
    assert after[name] - before[name] == 1


def test_two_workers_count_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("METRICS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Processes() as processes:
        began = time.time()
        service = processes.start_service("--workers", "2")
        ready = time.time()
        stripe = Stripe(processes.stripe)
        stripe.seed()
        OpenMeter(processes.openmeter).use(stripe.ids["customer"], 10)
        for number in range(20):
            stripe.update(**{"metadata[plan]": str(number)})
        delivered = len(processes.deliveries(20))
        for _ in range(10):
            with DIRECT.open(urllib.request.Request(f"{processes.service}/metrics")) as answer:
                found = samples(answer.read().decode())
            assert sum(found[name] for name in found if name.startswith("deliveries_t")) == (
                delivered
            )
        assert found["reports_total reported usage record"] >= 20
        assert began < found["start_timestamp_seconds"] < ready
        assert "Traceback" not in service.printed()
        assert [folder.name[:17] for folder in tmp_path.iterdir()] == ["openmeter-stripe-"] * 2
    assert list(tmp_path.iterdir()) == []
