"""What others learn of a command's run: the file for node_exporter, and the heartbeat."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask, Response
from prometheus_client.parser import text_string_to_metric_families

from service import transport, watching
from service.watching import Ended, Figure
from tests.conftest import DAY, END, Service, free_port, serve

PING = "/ping/6f0c-standin"


def read(path: Path) -> dict[tuple[str, ...], float]:
    """Return a file's samples by name and labels' values, in the labels' order."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def ended(status: int = 0, *accounts: str, command: str = "report") -> Ended:
    figures = [Figure("items", "Items", 7), Figure("money", "Money", 0.2, {"currency": "USD"})]
    return Ended(command, status, list(accounts), figures)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "report.prom"


Clock = Callable[[float], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set the clock."""
    return lambda second: monkeypatch.setattr(time, "time", lambda: second)


def test_a_run_is_written_with_its_figures(file: Path, at: Clock) -> None:
    at(1_000)
    watching.tell_watchers(ended(), str(file), None)
    assert read(file) == {
        ("openmeter_stripe_report_last_success_timestamp_seconds", ""): 1_000,
        ("openmeter_stripe_report_last_run_timestamp_seconds", ""): 1_000,
        ("openmeter_stripe_report_exit_status", ""): 0,
        ("openmeter_stripe_report_items", ""): 7,
        ("openmeter_stripe_report_money", "", "USD"): 0.2,
    }
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("status", [1, 3, 130])
def test_the_last_success_survives_runs_that_fail(file: Path, at: Clock, status: int) -> None:
    for second, each in ((1_000, 0), (2_000, status), (3_000, status)):
        at(second)
        watching.tell_watchers(ended(each, "acct_1", "acct_2"), str(file), None)
    found = read(file)
    both = "acct_1,acct_2"
    assert found["openmeter_stripe_report_last_success_timestamp_seconds", both] == 1_000
    assert found["openmeter_stripe_report_last_run_timestamp_seconds", both] == 3_000
    assert found["openmeter_stripe_report_exit_status", both] == status


@pytest.mark.parametrize(
    "before",
    [
        None,
        b"",
        b"openmeter_stripe_report_last_success_timestamp_seconds{accounts=",
        b"\xff\xfe",
        b'openmeter_stripe_report_last_success_timestamp_seconds{accounts="acct_9"} 5\n',
        b'openmeter_stripe_audit_last_success_timestamp_seconds{accounts=""} 5\n',
    ],
    ids=["none", "empty", "cut off", "no text", "another account's", "another command's"],
)
def test_where_no_success_is_known_it_is_0(file: Path, before: bytes | None) -> None:
    if before is not None:
        file.write_bytes(before)
    watching.tell_watchers(ended(1), str(file), None)
    assert read(file)["openmeter_stripe_report_last_success_timestamp_seconds", ""] == 0


def test_a_file_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watching.tell_watchers(ended(), str(tmp_path / "none" / "a.prom"), None)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a.prom could not be written: No such file or directory" in caplog.text


class Receiver:
    """Who takes the heartbeats, and how they are answered."""

    def __init__(self) -> None:
        self.called, self.answers, self.seconds = list[str](), [200], 0.0
        application = Flask("receiver")

        @application.route("/<path:path>", methods=["GET", "POST", "HEAD"])
        def beat(path: str) -> Response:
            self.called.append(f"/{path}")
            time.sleep(self.seconds)
            # The last answer stays.
            status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            return Response(status=status, headers={"Location": "/elsewhere"})

        self.server = serve(application)
        self.url = f"http://127.0.0.1:{self.server.server_port}{PING}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def no_address_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, "app")
    yield
    assert PING not in caplog.text


@pytest.mark.parametrize(
    ("status", "path"), [(0, PING), (1, f"{PING}/fail"), (3, f"{PING}/fail"), (130, f"{PING}/fail")]
)
def test_a_heartbeat_tells_how_a_run_ended(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, path: str
) -> None:
    watching.tell_watchers(ended(status), None, receiver.url)
    assert receiver.called == [path]
    assert not caplog.records


def test_a_heartbeat_that_fails_once_is_called_once_more(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [503, 204]
    watching.tell_watchers(ended(), None, receiver.url)
    assert receiver.called == [PING, PING]
    assert not caplog.records


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_heartbeat_that_goes_on_failing_is_a_warning(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    receiver.answers = [status]
    watching.tell_watchers(ended(), None, receiver.url)
    assert receiver.called == [PING, PING]
    assert caplog.messages == [f"HEARTBEAT_URL answered {status}"]
    assert caplog.records[0].levelname == "WARNING"


def test_a_heartbeat_that_nobody_takes_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    watching.tell_watchers(ended(), None, f"http://127.0.0.1:{free_port()}{PING}")
    assert caplog.messages == ["HEARTBEAT_URL did not answer (ConnectionError)"]


def test_a_heartbeat_is_waited_for_within_bounds(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "BOUND", (1, 0.2))
    receiver.seconds = 1
    began = time.monotonic()
    watching.tell_watchers(ended(), None, receiver.url)
    assert time.monotonic() - began < 1
    assert caplog.messages == ["HEARTBEAT_URL did not answer (ReadTimeout)"]


# The commands


def run(service: Service, *command: str, status: int = 0) -> Result:
    """Run a command in this process, which ends with a status."""
    runner = service.client.application.test_cli_runner()
    result = runner.invoke(args=[*command])
    assert result.exit_code == status, result.output
    return result


@pytest.fixture
def watched(start: Callable[..., Service], receiver: Receiver) -> Service:
    """Return a service that has a heartbeat, one metered item, and 10 units of usage."""
    running = start(HEARTBEAT_URL=receiver.url)
    running.stripe.seed()
    running.openmeter.use(running.stripe.ids["customer"], 10)
    return running


AUDIT = ("audit", "--since", "2023-06-01")


def test_a_report_writes_its_counts_and_calls_its_heartbeat(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    began = time.time()
    run(watched, "report", "--metrics", str(file))
    found = {
        name.removeprefix("openmeter_stripe_report_"): n for (name, _), n in read(file).items()
    }
    last = found.pop("last_success_timestamp_seconds")
    assert began <= last == found.pop("last_run_timestamp_seconds") <= time.time()
    assert found == {
        "exit_status": 0, "subscriptions": 1, "items": 1, "reported": 1, "skipped": 0,
        "warned": 0, "failed": 0,
    }  # fmt: skip
    assert receiver.called == [PING]


def test_a_report_that_fails_keeps_the_last_success_and_says_so(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    run(watched, "report", "--metrics", str(file))
    before = read(file)
    watched.openmeter.fault(path="/query", status=503, times=9)
    run(watched, "report", "--metrics", str(file), status=1)
    after = read(file)
    name = "openmeter_stripe_report_last_success_timestamp_seconds"
    assert before[name, ""] == after[name, ""]
    assert after["openmeter_stripe_report_exit_status", ""] == 1
    assert after["openmeter_stripe_report_failed", ""] == 1
    assert receiver.called == [PING, f"{PING}/fail"]


def test_several_accounts_are_summed_and_named(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    accounts = ("--account", "acct_1", "--account", "acct_2")
    run(watched, "report", "--metrics", str(file), *accounts)
    assert read(file)["openmeter_stripe_report_subscriptions", "acct_1,acct_2"] == 0
    assert receiver.called == [PING]


def test_a_run_that_is_not_whole_tells_nobody(watched: Service, receiver: Receiver) -> None:
    one = ("--subscription", watched.stripe.ids["subscription"])
    run(watched, "report", "--dry-run", status=3)
    run(watched, "report", *one)
    run(watched, *AUDIT, *one)
    assert receiver.called == []


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--dry-run"),
        ("report", "--subscription", "sub_1"),
        ("report", "--ending-within", "10m"),
        ("audit", "--subscription", "sub_1"),
        ("audit", "--repair"),
    ],
    ids=" ".join,
)
def test_a_run_that_is_not_whole_writes_no_metrics(
    watched: Service, receiver: Receiver, file: Path, command: tuple[str, ...]
) -> None:
    watched.forget()
    result = run(watched, *command, "--metrics", str(file), status=2)
    assert "--metrics is for whole" in result.output
    assert not watched.called()
    assert not receiver.called
    assert not file.exists()


@pytest.mark.parametrize("command", ["report", "audit"])
def test_a_file_in_no_folder_is_refused_at_once(
    watched: Service, receiver: Receiver, tmp_path: Path, command: str
) -> None:
    result = run(watched, command, "--metrics", str(tmp_path / "none" / "a.prom"), status=2)
    assert "is in no folder that can be written to" in result.output
    assert receiver.called == []


def test_a_heartbeat_that_fails_leaves_the_exit_status(
    watched: Service, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [500]
    run(watched, "report")
    assert "HEARTBEAT_URL answered 500" in caplog.text


def test_an_audit_writes_rows_and_money_and_that_it_found_something(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    watched.openmeter.use("nobody", 5)
    run(watched, "report")
    watched.openmeter.use(watched.stripe.ids["customer"], 2)
    watched.stripe.advance(END + 3 * DAY)
    run(watched, *AUDIT, "--until", "2023-07-20", "--metrics", str(file), status=3)
    found = {
        " ".join([key[0].removeprefix("openmeter_stripe_audit_"), *key[2:]]): value
        for key, value in read(file).items()
    }
    assert (
        found.pop("last_run_timestamp_seconds") > found.pop("last_success_timestamp_seconds") == 0
    )
    assert {name: value for name, value in found.items() if value} == {
        "exit_status": 3,
        "invoices differ": 1,
        "rows line": 1,
        "rows nobody": 1,
        "differing_rows line": 1,
        "differing_rows nobody": 1,
        "missing_money USD line": 0.2,
    }
    assert found["over_money USD line"] == found["invoices agree"] == 0
    assert receiver.called == [PING, f"{PING}/fail"]


def test_an_audit_that_is_satisfied_says_so(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    run(watched, "report")
    watched.stripe.advance(END + 3 * DAY)
    run(watched, *AUDIT, "--metrics", str(file))
    assert read(file)["openmeter_stripe_audit_invoices", "", "agree"] == 1
    assert read(file)["openmeter_stripe_audit_exit_status", ""] == 0
    assert receiver.called == [PING, PING]


def test_a_draft_that_can_still_be_mended_is_no_finding(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    stripe, price = watched.stripe, watched.stripe.metered_price()
    stripe.seed({"price": price, "metadata[om_meter_id]": "m1"})
    run(watched, "report")
    watched.openmeter.use(stripe.ids["customer"], 2)
    stripe.advance(END + 60)
    run(watched, *AUDIT, "--metrics", str(file))
    found = read(file)
    assert found["openmeter_stripe_audit_invoices", "", "can be mended"] == 1
    assert found["openmeter_stripe_audit_missing_money", "", "USD", "mendable"] == 0.2
    assert found["openmeter_stripe_audit_differing_rows", "", "line"] == 0
    assert receiver.called == [PING, PING]


def test_an_audit_that_could_not_read_says_so(
    watched: Service, receiver: Receiver, file: Path
) -> None:
    watched.stripe.fault(path="/v1/invoices", status=503, times=9)
    run(watched, *AUDIT, "--metrics", str(file), status=1)
    assert read(file)["openmeter_stripe_audit_failed", ""] == 1
    assert receiver.called == [f"{PING}/fail"]
