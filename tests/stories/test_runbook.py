"""Each recipe of docs/runbook.md, as it stands there, after the mishap that it is for."""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import pytest

from fakes.processes import ROOT, WEBHOOK_SECRET, Process, Processes, call
from tests.conftest import OpenMeter, Stripe
from tests.fakes.test_stripe_life import Life

HOUR = 3_600
DIFFERENT = 3
METERED = {"metadata[om_meter_id]": "m1"}
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


@dataclass
class World:
    """Both stand-ins, the service, and commands as a person types them."""

    processes: Processes
    life: Life
    service: Process
    openmeter: OpenMeter
    began: int
    ids: dict[str, str] = field(default_factory=dict)

    def subscribe(self, name: str, price: str, mode: str = "classic") -> None:
        """Let a new customer subscribe to a price, by a name."""
        self.life.customer = self.life.call("POST", "customers")["id"]
        self.life.subscribe(mode, price)
        self.ids[name] = self.life.subscription
        self.ids[f"{name}'s customer"] = self.life.customer

    def use(self, name: str, units: int, hours: int, subject: str = "") -> None:
        """Let a customer use units some hours after the beginning."""
        when = datetime.fromtimestamp(self.began + hours * HOUR, UTC)
        who = subject or self.ids[f"{name}'s customer"]
        self.openmeter.use(who, units, time=when.strftime("%Y-%m-%dT%H:%M:%SZ"))

    def end_of(self, name: str) -> int:
        """Return when a subscription's running period ends."""
        found = self.life.call("GET", f"subscriptions/{self.ids[name]}")
        return int(found["items"]["data"][0]["current_period_end"])

    def to(self, second: int) -> None:
        """Let Stripe's time go on to a second, with all that comes due."""
        ahead = second - int(time.time())
        self.life.stripe.fake("POST", "offset", {"seconds": ahead})

    def settle(self) -> list[dict[str, object]]:
        """Wait until no delivery is under way; return all that were made."""
        return self.processes.deliveries(0, 60)

    def retry(self) -> None:
        """Let Stripe send what was not taken again."""
        done = self.settle()
        taken = {each["event"] for each in done if each["status"] == HTTPStatus.OK}
        for event in dict.fromkeys(each["event"] for each in done):
            if event not in taken:
                self.life.stripe.fake("POST", f"events/{event}/deliver")
        self.settle()

    def run(self, title: str, *statuses: int) -> str:
        """Run the commands of a recipe in their order; return what they print."""
        part = RUNBOOK.split(f"\n## {title}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"```bash\n(.*?)```", part, re.S)
        lines = [line for block in blocks for line in block.splitlines()]
        assert len(lines) == len(statuses)
        printed = [self.command(*each) for each in zip(lines, statuses, strict=True)]
        return "\n".join(printed)

    def command(self, line: str, status: int) -> str:
        """Run a command as the runbook has it, with yes for an answer; return what it prints."""
        program, *words = shlex.split(line.replace("sub_…", self.ids.get("wanted", "")))
        assert program == ".venv/bin/flask"
        done = subprocess.run(
            [sys.executable, "-m", "flask", *words],
            cwd=ROOT,
            env=self.processes.environment(),
            input="y\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def billed(self, name: str) -> list[int]:
        """Return the units on a subscription's final invoices, oldest first."""
        listed = self.life.call("GET", "invoices", subscription=self.ids[name], limit=100)
        found = [i for i in listed["data"] if i["status"] != "draft"]
        lines = [line for invoice in found[::-1] for line in invoice["lines"]["data"]]
        return [line["quantity"] for line in lines if line["quantity"]]


@pytest.fixture
def world() -> Iterator[World]:
    with Processes() as processes:
        stripe = Stripe(processes.stripe)
        service = processes.start_service(retry_seconds=[])
        life = Life(stripe)
        life.price("meter", 10, "m1", **METERED)
        life.price("records", 10, "records", **METERED)
        openmeter = OpenMeter(processes.openmeter)
        yield World(processes, life, service, openmeter, int(time.time()))


def down(world: World) -> None:
    fault = {"path": "/query", "status": 503, "times": 100_000}
    call("POST", f"{world.processes.openmeter}/_fake/faults", fault)


def up(world: World) -> None:
    call("DELETE", f"{world.processes.openmeter}/_fake/faults")


def renewal_of_two(world: World) -> int:
    """Let one subscribe by each way to report, and each use units; return when they renew."""
    world.subscribe("meter", "meter")
    world.subscribe("records", "records")
    world.use("meter", 40, 1)
    world.use("records", 150, 1)
    return max(world.end_of("meter"), world.end_of("records"))


def renew(world: World, end: int) -> None:
    """Go over a renewal, and let its events be taken."""
    world.to(end + 60)
    world.settle()


def test_after_an_outage_of_openmeter_nothing_is_lost(world: World) -> None:
    end = renewal_of_two(world)
    down(world)
    world.to(end + 6 * HOUR)
    world.settle()
    up(world)
    world.retry()
    world.to(end + 8 * HOUR)
    printed = world.run("After an outage of OpenMeter", 0, 0, DIFFERENT, 0)
    assert "150 units, 15.00 USD not billed" in printed
    assert printed.count("created ii_") == 1
    assert world.billed("meter") == [40]
    assert "2 agree" in world.command(".venv/bin/flask audit --since 7d", 0)


def test_after_an_outage_of_stripe_one_run_puts_the_totals_right(world: World) -> None:
    world.subscribe("meter", "meter")
    world.use("meter", 40, 1)
    world.to(world.began + 2 * HOUR)
    fault = {"path": "/v1/", "status": 503, "times": 100_000}
    call("POST", f"{world.processes.stripe}/_fake/faults", fault)
    assert "503" in world.command(".venv/bin/flask report", 1)
    call("DELETE", f"{world.processes.stripe}/_fake/faults")
    world.run("After an outage of Stripe", 0, 0)
    end = world.end_of("meter")
    renew(world, end)
    world.to(end + 2 * HOUR)
    assert world.billed("meter") == [40]


def test_after_an_outage_of_ours_what_was_missed_is_billed(world: World) -> None:
    end = renewal_of_two(world)
    world.command(".venv/bin/flask report", 0)
    world.use("meter", 2, 24)
    world.service.stop()
    world.to(end + 6 * HOUR)
    world.settle()
    world.processes.start_service()
    world.run("After an outage of ours", 0, 0, 0)
    world.retry()
    world.to(end + 8 * HOUR)
    assert (world.billed("meter"), world.billed("records")) == ([42], [150])


def test_after_a_wrong_secret_what_was_refused_is_billed(world: World) -> None:
    end = renewal_of_two(world)
    world.command(".venv/bin/flask report", 0)
    wrong = {"secret": "whsec_another"}
    call("POST", f"{world.processes.stripe}/_fake/webhook", wrong)
    world.use("meter", 2, 24)
    world.to(end + 6 * HOUR)
    world.settle()
    assert "No signatures found matching" in world.service.printed()
    world.run("After a wrong secret", 0, 0, 0)
    call("POST", f"{world.processes.stripe}/_fake/webhook", {"secret": WEBHOOK_SECRET})
    world.retry()
    world.to(end + 8 * HOUR)
    assert (world.billed("meter"), world.billed("records")) == ([42], [150])


def test_after_a_wrong_subject_the_usage_is_found_and_billed(world: World) -> None:
    world.subscribe("wanted", "meter")
    end = world.end_of("wanted")
    world.use("wanted", 7, 1, subject="acme")
    renew(world, end)
    world.to(end + 30 * HOUR)
    assert world.billed("wanted") == []
    found = world.command(".venv/bin/flask audit --differing", DIFFERENT)
    assert re.search(r"\bacme\b", found)
    form = {"metadata[om_subject]": "acme"}
    world.life.call("POST", f"subscriptions/{world.ids['wanted']}", **form)
    world.settle()
    printed = world.run("After a wrong subject", DIFFERENT, 0, DIFFERENT, 0)
    assert "7 units, 0.70 USD not billed" in printed
    assert "created ii_" in printed
    assert "1 agree" in world.command(".venv/bin/flask audit", 0)


def test_each_recipe_is_tried_here() -> None:
    recipes = re.findall(r"^## (After .*)$", RUNBOOK, re.M)
    tried = re.findall(r'world\.run\("(After [^"]+)"', Path(__file__).read_text())
    assert recipes
    assert set(recipes) == set(tried)


def test_with_a_log_of_json_each_line_of_the_commands_is_an_object(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "json")
    end = renewal_of_two(world)
    world.subscribe("other", "meter")
    down(world)
    commands = [("report", 1), ("report --dry-run", 1)]
    failed = [world.command(f".venv/bin/flask {line}", status) for line, status in commands]
    world.to(end + 6 * HOUR)
    world.settle()
    up(world)
    commands = [("replay --dry-run", 0), ("replay", 0), ("report --dry-run", 0), ("report", 0)]
    world.retry()
    commands += [("audit", DIFFERENT), ("audit --repair", DIFFERENT)]
    printed = [world.command(f".venv/bin/flask {line}", status) for line, status in commands]
    for text in failed + printed:
        lines = text.splitlines()
        assert lines
        assert all(isinstance(json.loads(line), dict) for line in lines), text
