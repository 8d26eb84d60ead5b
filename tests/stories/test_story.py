"""The whole job over real HTTP with real processes."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from stripe import WebhookSignature

from fakes import demo
from fakes.processes import ROOT, WEBHOOK_SECRET, Processes, answers, wait_for
from tests.conftest import ACACIA, DAY, END, ENDIVE, OpenMeter, Stripe, free_port, updated

README = (ROOT / "README.md").read_text()
BY_HAND = (ROOT / "fakes" / "README.md").read_text().split("## By hand in four terminals\n")[1]
MAKEFILE = (ROOT / "Makefile").read_text()
INSTALLING = re.compile(r'@echo "Installing (.*)"')
UPDATED = ["customer.subscription.updated"]
DEMO = [sys.executable, "-m", "fakes.demo"]


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


def seeded(processes: Processes, units: int) -> Stripe:
    """Return the Stripe stand-in with one metered subscription and its usage."""
    stripe = Stripe(processes.stripe)
    stripe.seed()
    OpenMeter(processes.openmeter).use(stripe.ids["customer"], *[1] * units)
    return stripe


@pytest.mark.parametrize("version", [ACACIA, ENDIVE])
def test_each_period_of_a_renewed_subscription_is_on_its_own_invoice(
    processes: Processes, version: str
) -> None:
    service = processes.start_service(api_version=version, enabled_events=UPDATED)
    stripe = seeded(processes, 10)
    openmeter = OpenMeter(processes.openmeter, count=100)
    path = f"subscriptions/{stripe.ids['subscription']}"
    stripe.call("POST", path, **{"metadata[a]": "1"})
    processes.deliveries(1)
    stripe.advance(END + DAY)
    processes.deliveries(2)
    openmeter.use(stripe.ids["customer"], 5, time="2023-07-08T00:00:00Z")
    stripe.call("POST", path, **{"metadata[a]": "2"})
    deliveries = processes.deliveries(3)
    stripe.advance(END + 40 * DAY)
    assert [delivery["status"] for delivery in deliveries] == [200] * 3
    lines = [
        line["quantity"]
        for invoice in stripe.call("GET", "invoices", limit=100)["data"]
        for line in invoice["lines"]["data"]
    ]
    assert lines == [5, 10, 0]
    assert service.printed().count("total_usage: 10.000000") == 1
    assert "Traceback" not in service.printed()


def test_deliveries_doubled_reversed_and_failing_end_in_the_same_record(
    processes: Processes,
) -> None:
    processes.start_service(
        api_version=ENDIVE, enabled_events=UPDATED, hold=True, retry_seconds=[0.1] * 5
    )
    stripe = seeded(processes, 10)
    for n in range(3):
        stripe.call(
            "POST", f"subscriptions/{stripe.ids['subscription']}", **{"metadata[n]": str(n)}
        )
    stripe.advance(END + DAY)
    OpenMeter(processes.openmeter).fault(path="/query", status=503, times=4)
    stripe.fake("POST", "release", {"order": "reversed", "copies": 2})
    deliveries = processes.deliveries(9)
    assert sum(delivery["status"] == 500 for delivery in deliveries) >= 1
    # The renewal closed the first period before anything was reported: nothing can be written
    # to it any more, which is said with its number, and the late events are of the new one.
    assert stripe.usage() == [0, 0]
    lost = [d for d in deliveries if "10 units (1.00 USD) not billed" in d["answer"]]
    assert {d["event"] for d in lost if d["status"] == 200} == {deliveries[0]["event"]}


def test_two_hundred_deliveries_at_once_over_one_process(processes: Processes) -> None:
    service = processes.start_service()
    stripe, openmeter = Stripe(processes.stripe), OpenMeter(processes.openmeter)
    stripe.seed(*[{"metadata[om_meter_id]": "m1"}] * 10)
    openmeter.use(stripe.ids["customer"], 10)
    subscription = stripe.subscription()

    def deliver(_: int) -> tuple[int, int]:
        status, answer = post(processes.service, json.dumps(updated(subscription)))
        return status, len(answer["reported"] + answer["skipped"])

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(deliver, range(200)))
    assert answers == [(200, 10)] * 200
    assert {item: stripe.usage(item) for item in stripe.items()} == {
        item: [10] for item in stripe.items()
    }
    printed = service.printed()
    overtaken = printed.count("a later report of it came first")
    assert printed.count("total_usage: 10.000000") + overtaken == 2_000
    assert "Traceback" not in printed


def post(address: str, body: str, *, chunked: bool = False) -> tuple[int, Any]:
    """Post a signed body, with a Content-Length or in chunks; return status and JSON."""
    signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    sent: Any = iter([body.encode()]) if chunked else body.encode()
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    with closing(connection):
        connection.request("POST", "/webhook", sent, {"Stripe-Signature": signature})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_body_in_chunks_is_read_up_to_a_mebibyte(processes: Processes) -> None:
    processes.start_service()
    for size, status in ((100, 200), (1024 * 1024, 200), (1024 * 1024 + 1, 413)):
        for chunked in (False, True):
            body = '{"type": "invoice.paid"}'.ljust(size)
            assert post(processes.service, body, chunked=chunked)[0] == status


ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


def test_malformed_chunks_are_answered_with_400(processes: Processes) -> None:
    service = processes.start_service()
    with socket.create_connection(("127.0.0.1", urlsplit(processes.service).port), 30) as client:
        client.sendall(
            b"POST /webhook HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1,v1=0\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        assert client.recv(64).startswith(b"HTTP/1.1 400")
    assert "Traceback" not in service.printed()


def listening(output: str) -> list[int]:
    """Return the ports of the demo's three servers that still take connections."""
    ports = {int(port) for port in ADDRESS.findall(output)}
    assert len(ports) == 3
    taken = []
    for port in ports:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(port)
    return taken


def test_the_demo_ends_in_an_invoice_as_the_readme_shows() -> None:
    shown = README.split("$ make demo\n")[1].split("```")[0].splitlines()
    assert shown[0] == f"Installing {INSTALLING.search(MAKEFILE)[1]}"  # type: ignore[index]
    shown = [line for line in shown[1:] if line != "..."]
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    changing = re.compile(
        r"(?<=127\.0\.0\.1:)\d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|(?<=frozen_time=)\d+"
        r"|(?<=seconds: )[\d.]+|(?<=--until )\S+"
    )
    printed = changing.sub("…", done.stdout).splitlines()
    places = [printed.index(changing.sub("…", line)) for line in shown]
    assert len(shown) >= 10
    assert places == sorted(set(places))
    invoices = [line for line in printed if line.startswith("Invoice ")]
    assert [line.split(": ")[1] for line in invoices] == [
        "10 units, $1.00",
        "7 units, $0.70",
        "3 units, $0.30",
        "0 units, $0.00",
    ]
    assert [line for line in shown if line.startswith("Invoice ")] == invoices[:3]
    assert any("10 metered" in line and "(1.00 USD) not billed" in line for line in printed)
    assert shown[-1] == printed[-1]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands by hand need curl")
def test_the_way_by_hand_ends_in_the_same_invoice(tmp_path: Path) -> None:
    for module in ROOT.glob("*.py"):
        shutil.copy(module, tmp_path)
    for folder in ("audit", "billing", "doctor", "service", "fakes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    blocks = re.findall(r"```bash\n(.*?)```", BY_HAND.split("\n## ")[0], re.S)
    assert len(blocks) == 4
    ports = {port: free_port() for port in ("4010", "4011", "4242")}
    for port, free in ports.items():
        blocks = [block.replace(port, free) for block in blocks]
    blocks = [block.replace(".venv/bin/python", sys.executable) for block in blocks]
    env = {**os.environ, "PORT": ports["4242"], "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "output").open("w") as output, ExitStack() as servers:
        for block in blocks[:3]:
            server = subprocess.Popen(
                ["bash", "-ec", block],
                cwd=tmp_path,
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            servers.callback(server.wait, 10)
            servers.callback(os.killpg, server.pid, signal.SIGTERM)
        for port, path in (
            ("4010", "_fake/events"),
            ("4011", "api/v1/meters"),
            ("4242", "healthz"),
        ):
            wait_for(partial(answers, f"http://127.0.0.1:{ports[port]}/{path}"), port, 30)
        user = subprocess.run(
            ["bash", "-ec", blocks[3]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        logged = re.compile(r"^\S+Z stripe_customer: cus_00000003, .* total_usage: (\S+),", re.M)
        wait_for(lambda: len(logged.findall((tmp_path / "output").read_text())) == 2, "reports", 10)
    assert re.search(r" 10 +10 +0$", user.stdout, re.M)
    assert user.stdout.endswith('"quantity":10\n"total":100\n')
    assert logged.findall((tmp_path / "output").read_text()) == ["10.000000", "0.000000"]


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_demo_leaves_no_process_behind(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(DEMO, cwd=ROOT, stdout=output, stderr=output)
        wait_for(lambda: "2. Use" in (tmp_path / "output").read_text(), "the demo", 60)
        assert len(listening((tmp_path / "output").read_text())) == 3
        running.send_signal(sent)
        assert running.wait(30) == status
    assert listening((tmp_path / "output").read_text()) == []
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("EXECUTIONS", [4, 3, 2], "reported .*9.000000.* instead of .*10.000000"),
        ("SETUP_LINE", re.compile("nothing"), r"setup_stripe\.py did not say what it made"),
    ],
)
def test_a_step_that_goes_wrong_ends_the_demo_with_status_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: object,
    reason: str,
) -> None:
    monkeypatch.setattr(demo, name, value)
    with pytest.raises(SystemExit, match=f"The demo failed: (?s:.)*{reason}"):
        demo.main([])
    assert listening(capsys.readouterr().out) == []
