"""The systemd units and the alerts, as systemd and Prometheus check them; none is started."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.processes import ROOT, Processes
from tests.conftest import DAY, END, Service

UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
ANALYZE, PROMTOOL = shutil.which("systemd-analyze"), shutil.which("promtool")
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "openmeter-stripe.rules.yml"
TESTS = sorted(PROMETHEUS.glob("*.test.yml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
IS_CI = os.environ.get("CI") == "true"

# CI installs both; a machine without them does without.
with_systemd = pytest.mark.skipif(not ANALYZE and not IS_CI, reason="there is no systemd-analyze")
with_promtool = pytest.mark.skipif(
    not PROMTOOL and not IS_CI, reason="there is no promtool (Debian: prometheus)"
)


def analyze(*options: str) -> str:
    """Run systemd-analyze; return what it printed."""
    done = subprocess.run(
        [ANALYZE or "systemd-analyze", *options],
        capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "TZ": "UTC"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(unit: Path, folder: Path) -> Path:
    """Write a unit as if this folder were where it says that the service is."""
    copy = folder / unit.name
    text = unit.read_text().replace("/srv/openmeter-stripe/", f"{ROOT}/")
    copy.write_text(
        text.replace("WorkingDirectory=/srv/openmeter-stripe", f"WorkingDirectory={ROOT}")
    )
    return copy


@with_systemd
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    copies = [str(installed(unit, tmp_path)) for unit in UNITS]
    assert analyze("verify", "--man=no", *copies) == ""


@with_systemd
def test_a_fault_in_a_unit_would_be_found(tmp_path: Path) -> None:
    copy = installed(SERVICES[0], tmp_path)
    copy.write_text(copy.read_text().replace("ProtectSystem=strict", "ProtectSystem=no-such"))
    assert "no-such" in analyze("verify", "--man=no", str(copy))


@with_systemd
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_services_may_do_little(unit: Path, tmp_path: Path) -> None:
    copy = installed(unit, tmp_path)
    printed = analyze("security", "--offline=true", "--threshold=20", str(copy))
    assert re.search(r"Overall exposure level for \S+: [01]\.\d OK", printed)


@with_systemd
@pytest.mark.parametrize(
    ("timer", "times"),
    [
        ("report", ["01-01 01:01:00", "01-01 02:01:00", "01-01 03:01:00"]),
        ("ending", ["01-01 00:59:00", "01-01 01:59:00", "01-01 02:59:00"]),
        ("audit", ["01-01 05:10:00", "01-02 05:10:00", "01-03 05:10:00"]),
    ],
)
def test_the_timers_come_when_the_docs_say(timer: str, times: list[str]) -> None:
    unit = next(unit for unit in UNITS if unit.name == f"openmeter-stripe-{timer}.timer")
    (calendar,) = re.findall(r"^OnCalendar=(.*)$", unit.read_text(), re.M)
    printed = analyze("calendar", "--iterations=3", "--base-time=2026-01-01 00:30:00 UTC", calendar)
    told = re.findall(r"2026-(\S+ \S+) UTC", printed.split("Next elapse", 1)[1])
    assert list(dict.fromkeys(told)) == times


def test_all_services_have_the_same_bounds() -> None:
    hardening = {
        unit.read_text().split("DynamicUser=yes")[1].split("[Install]")[0].strip()
        for unit in SERVICES
    }
    assert len(SERVICES) == 5
    assert len(hardening) == 1


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_whatever_fails_is_told_once(unit: Path) -> None:
    told = re.findall("^OnFailure=(.*)$", unit.read_text(), re.M)
    assert told == ([] if "failed@" in unit.name else ["openmeter-stripe-failed@%n.service"])


def test_the_runs_write_what_node_exporter_reads() -> None:
    for command in ("report", "audit"):
        text = next(unit for unit in SERVICES if unit.stem.endswith(command)).read_text()
        (written,) = re.findall(rf"^ExecStart=.*/flask {command} .*--metrics (\S+)$", text, re.M)
        (read,) = re.findall(r"^ExecStopPost=-\+/usr/bin/install -m 644 (\S+) \S+$", text, re.M)
        (folder,) = re.findall("^StateDirectory=(.*)$", text, re.M)
        assert written == read == f"/var/lib/{folder}/{command}.prom"


# The alerts


def alerts() -> list[str]:
    """Return the names of the alerts."""
    return re.findall(r"^ *- alert: (\S+)$", RULES.read_text(), re.M)


def prometheus(*command: str, cwd: Path = PROMETHEUS) -> str:
    """Run promtool; return what it printed if it is content. Raises AssertionError."""
    done = subprocess.run(
        [PROMTOOL or "promtool", *command],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@with_promtool
def test_promtool_finds_no_fault_in_the_rules() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in prometheus("check", "rules", RULES.name)


@with_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_alerts_fire_when_they_should(path: Path) -> None:
    assert "SUCCESS" in prometheus("test", "rules", path.name)


@with_promtool
@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        ("service.test.yml", "[6h]", "[1h]"),
        ("service.test.yml", "start_timestamp_seconds < 21600", "start_timestamp_seconds < 0"),
        ("service.test.yml", 'outcome="not genuine"', 'outcome=~"not.*"'),
        ("service.test.yml", "closed|reset", "closed|no rows|reset"),
        ("quiet.test.yml", "[3d]", "[8h]"),
        ("commands.test.yml", "or\n          absent", "and\n          absent"),
    ],
    ids=["hour", "restart", "unsigned", "renewal", "night", "never"],
)
def test_a_fault_in_the_rules_would_be_found(
    tmp_path: Path, path: str, right: str, wrong: str
) -> None:
    text = RULES.read_text()
    assert right in text
    (tmp_path / RULES.name).write_text(text.replace(right, wrong).replace("offset 3d", "offset 8h"))
    shutil.copy(PROMETHEUS / path, tmp_path)
    with pytest.raises(AssertionError, match="FAILED"):
        prometheus("test", "rules", path, cwd=tmp_path)


def test_each_alert_is_tested_and_leads_to_its_section() -> None:
    text, names = RULES.read_text(), alerts()
    assert len(names) == len(set(names)) > 10
    tested = {
        name
        for path in TESTS
        for name in re.findall(r"^ *- alertname: (\S+)$", path.read_text(), re.M)
    }
    assert tested == set(names)
    assert re.findall(r"^ *runbook_url: (.*)$", text, re.M) == [
        f"docs/runbook.md#{name.lower()}" for name in names
    ]
    for what in ("severity: (?:critical|warning)", "summary: .+", "description: .+"):
        assert len(re.findall(what, text)) == len(names)


def test_the_runbook_has_a_section_for_each_alert() -> None:
    sections = re.split("^## ", RUNBOOK.read_text(), flags=re.M)[1:]
    found = {section.split("\n")[0]: section for section in sections}
    for name in alerts():
        assert re.search("`flask (audit|report|replay)|journalctl", found[name]), name
    wrong = [name for name in found if re.fullmatch("([A-Z][a-z]+){2,}", name)]
    assert set(wrong) == set(alerts())


METRIC = re.compile(r"\bopenmeter_stripe_\w+")


def test_each_metric_of_the_alerts_is_one_that_there_is(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    service = start(METRICS="1")
    told = service.open("GET", "/metrics").text
    service.stripe.seed()
    service.openmeter.use(service.stripe.ids["customer"], 10)
    service.stripe.advance(END + 3 * DAY)
    runner = service.client.application.test_cli_runner()
    for command, *options in (["report"], ["audit", "--since", "2023-06-01"]):
        path = tmp_path / f"{command}.prom"
        runner.invoke(args=[command, "--metrics", str(path), *options])
        told += path.read_text()
    there = {
        sample.name for family in text_string_to_metric_families(told) for sample in family.samples
    } | set(re.findall(r"^# TYPE (\S+)", told, re.M))
    for path in (RULES, *TESTS):
        named = set(METRIC.findall(path.read_text()))
        assert named <= there, path.name


def test_the_command_by_hand_works_with_the_settings_where_the_recipe_puts_them(
    tmp_path: Path,
) -> None:
    part = (ROOT / "docs" / "operating.md").read_text().split("\n## systemd\n")[1]
    (command,) = re.findall(r"^\.venv/bin/flask --env-file (\S+) (.+)$", part, re.M)
    units = "".join(unit.read_text() for unit in SERVICES)
    assert f"EnvironmentFile={command[0]}\n" in units
    assert "User=openmeter-stripe\n" in units
    settings, file = ("STRIPE_KEY", "STRIPE_API_BASE", "OPENMETER_URL"), tmp_path / "settings.env"
    with Processes() as processes:
        env = processes.environment()
        file.write_text("".join(f"{name}={env.pop(name)}\n" for name in settings))
        options = ["--env-file", str(file), *command[1].split()]
        done = subprocess.run(
            [sys.executable, "-m", "flask", *options],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert (done.returncode, "Cannot start" in done.stderr) == (0, False), done.stderr
