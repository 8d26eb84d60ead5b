"""How the commands end, and what is seen of them: real processes, pipes and a terminal."""

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest

from fakes.processes import ROOT, Processes, call
from tests.conftest import ENDIVE, OpenMeter, Stripe

METERED = {"metadata[om_meter_id]": "m1"}
FLASK = [sys.executable, "-m", "flask"]
COMMANDS = [
    ["report", "--json"], ["report", "--dry-run"], ["report", "--dry-run", "--json"], ["report"],
    ["replay"], ["replay", "--json", "--dry-run"], ["audit"], ["audit", "--json"],
]  # fmt: skip


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


@pytest.fixture
def stripe(processes: Processes) -> Stripe:
    """Return a Stripe with three subscriptions of 10 units each, whose events wait."""
    stripe, openmeter = Stripe(processes.stripe), OpenMeter(processes.openmeter)
    stripe.collect_events(ENDIVE)
    for _ in range(3):
        stripe.seed(METERED)
        openmeter.use(stripe.ids["customer"], 10)
    return stripe


def run(processes: Processes, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with pipes."""
    return subprocess.run(
        [*FLASK, *command], cwd=ROOT, env={**processes.environment(), **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def on_terminal(processes: Processes, *command: str) -> tuple[int, str]:
    """Run a command on a terminal; return its exit status and all that was written there."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    running = subprocess.Popen(
        [*FLASK, *command], cwd=ROOT, env=processes.environment(), stdout=side, stderr=side
    )
    os.close(side)
    printed = b""
    try:
        while chunk := os.read(main, 4_096):
            printed += chunk
    except OSError:  # Linux says so when the other side has closed
        pass
    os.close(main)
    return running.wait(60), printed.decode()


def fail_queries(processes: Processes, times: int) -> None:
    """Let OpenMeter fail as often."""
    fault = {"path": "/query", "status": 503, "times": times}
    call("POST", f"{processes.openmeter}/_fake/faults", fault)


# What is seen


@pytest.mark.usefixtures("stripe")
def test_a_pipe_gets_a_line_for_each_report(processes: Processes) -> None:
    done = run(processes, "report")
    assert done.returncode == 0
    assert re.fullmatch(r"subscriptions: 3, items: 3, reported: 3, .*\n", done.stdout)
    assert done.stderr.count("total_usage: 10.000000") == 3
    assert "\r" not in done.stderr


@pytest.mark.usefixtures("stripe")
def test_a_terminal_gets_a_bar_that_no_line_buries(processes: Processes) -> None:
    status, printed = on_terminal(processes, "report")
    assert status == 0
    assert "total_usage" not in printed
    assert re.search(r"\r100%\|.*\| 3/3 \[00:0\d<00:00, .*subscriptions/s\]", printed), printed
    assert printed.splitlines()[-1].startswith("subscriptions: 3, items: 3, reported: 3, ")


def test_a_bar_says_that_more_may_come_while_the_list_goes_on(
    processes: Processes, stripe: Stripe
) -> None:
    fault = {"path": "/v1/subscriptions", "method": "GET", "delay": 1, "times": 9}
    stripe.fault(**fault)
    status, printed = on_terminal(processes, "report")
    assert status == 0
    assert re.search(r"\r[0-3] of 3\+ subscriptions \[00:0\d, ", printed), printed
    assert re.search(r"\r100%\|.*\| 3/3 \[", printed), printed


@pytest.mark.usefixtures("stripe")
@pytest.mark.parametrize("way", ["terminal", "pipe"])
def test_each_failure_is_said_once(processes: Processes, way: str) -> None:
    fail_queries(processes, 6)  # each query is tried twice
    if way == "terminal":
        status, printed = on_terminal(processes, "report")
    else:
        done = run(processes, "report")
        status, printed = done.returncode, done.stderr
        assert re.fullmatch(r"subscriptions: 3, items: 3, .*, failed: 3, .*\n", done.stdout)
    assert status == 1
    said = re.findall(r"(ERROR: si_\w+): meter m1: OpenMeter answered 503", printed)
    assert len(said) == len(set(said)) == printed.count("503") == 3


@pytest.mark.usefixtures("stripe")
@pytest.mark.parametrize("form", ["text", "json"])
def test_quiet_says_nothing_of_a_success_and_all_of_a_failure(
    processes: Processes, form: str
) -> None:
    quiet = ["report", "--quiet"]
    done = run(processes, *quiet, LOG_FORMAT=form)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(processes, *quiet, "--dry-run", LOG_FORMAT=form)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert on_terminal(processes, *quiet) == (0, "")
    fail_queries(processes, 6)
    done = run(processes, *quiet, LOG_FORMAT=form)
    assert (done.returncode, done.stderr.count("answered 503")) == (1, 3)
    # A log of JSON has the summary, too.
    assert done.stdout.count("\n") == (form == "text")
    assert len(done.stderr.splitlines()) == 3 + (form == "json")


def test_quiet_says_warnings_and_differences(processes: Processes, stripe: Stripe) -> None:
    done = run(processes, "report", "--quiet", "--dry-run")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "3 of 3 periods differ")
    stripe.update(**{"metadata[om_subject]": "nobody"})
    done = run(processes, "report", "--quiet")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("OpenMeter has no rows") == len(done.stderr.splitlines())


# How a command ends


@pytest.mark.usefixtures("stripe")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_is_gone_ends_a_command_quietly(
    processes: Processes, command: list[str]
) -> None:
    # Unbuffered, nothing would be left for Python's end.
    env = {**processes.environment(), "PYTHONUNBUFFERED": ""}
    for reads_errors in (True, False):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*FLASK, *command], cwd=ROOT, env=env, stdout=writer,
            stderr=subprocess.PIPE if reads_errors else writer,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        os.close(writer)
        assert done.returncode == 141
        assert not re.search("Traceback|Exception|Broken|Error|could not", done.stderr or "")


def test_a_reader_that_leaves_lets_no_other_subscription_begin(
    processes: Processes, stripe: Stripe
) -> None:
    for _ in range(29):
        stripe.seed(METERED)
    stripe.fault(path="/usage_records", delay=0.1, times=99)
    piped = f"{' '.join(FLASK)} report --json --workers 1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", piped], cwd=ROOT, env=processes.environment(),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stdout.splitlines())) == (141, 1)
    assert not re.search("Traceback|Exception|Broken", done.stderr)
    written = [seen for seen in stripe.requests() if seen["path"].endswith("/usage_records")]
    assert 1 <= len(written) < 20
