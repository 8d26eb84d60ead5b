"""The systemd units, as systemd itself checks them; none is started here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fakes.processes import ROOT

UNITS = sorted((ROOT / "deploy").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
ANALYZE = shutil.which("systemd-analyze")

# CI installs systemd-analyze; a machine without systemd does without it.
with_systemd = pytest.mark.skipif(
    not ANALYZE and os.environ.get("CI") != "true", reason="there is no systemd-analyze"
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
def test_the_timer_comes_a_minute_before_and_a_minute_past_each_hour() -> None:
    timer = (ROOT / "deploy" / "openmeter-stripe-report.timer").read_text()
    (calendar,) = re.findall(r"^OnCalendar=(.*)$", timer, re.M)
    printed = analyze("calendar", "--iterations=3", "--base-time=2026-01-01 00:30:00 UTC", calendar)
    assert re.findall(r"(\d\d:\d\d:\d\d) UTC", printed.split("Next elapse", 1)[1])[:3] == [
        "00:59:00", "01:01:00", "01:59:00",
    ]  # fmt: skip


def test_both_services_have_the_same_bounds() -> None:
    hardening = [
        unit.read_text().split("DynamicUser=yes")[1].split("[Install]")[0].strip()
        for unit in SERVICES
    ]
    assert hardening[0] == hardening[1]
