"""`make play`: what it starts, what it prints, and that nothing of it stays."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from fakes import play
from fakes.processes import DIRECT, ROOT, Failed, Process, Processes, wait_for
from tests.conftest import assert_no_secret

README = (ROOT / "fakes" / "README.md").read_text()
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def read(url: str) -> str:
    with DIRECT.open(url, timeout=10) as page:
        return str(page.read().decode())


def is_listening(address: str) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", urlsplit(address).port)) == 0


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
@pytest.mark.usefixtures("interruptible")
def test_it_prints_one_address_and_ends_with_all_that_it_started(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    command, output = [sys.executable, "-m", "fakes.play"], tmp_path / "output"
    with output.open("w") as file:
        running = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        wait_for(lambda: "Ctrl-C ends" in output.read_text(), "the address", 60)
        (stripe,) = ADDRESS.findall(output.read_text())
        shown = README.split("$ make play\n")[1].split("```")[0]
        assert ADDRESS.sub("", output.read_text()) == ADDRESS.sub("", shown)  # and no log line
        assert (
            read(f"{stripe}/test/subscriptions").count('<td><a href="/test/subscriptions/sub_') == 2
        )
        others = set(ADDRESS.findall(read(f"{stripe}/test/webhooks"))) - {stripe}
        assert len(others) == 2
        assert all(map(is_listening, others))
        running.send_signal(sent)
        assert running.wait(30) == status
    assert not any(map(is_listening, {stripe, *others}))
    assert "Traceback" not in output.read_text()
    assert_no_secret(output.read_text())


def test_it_shows_what_the_service_logs_and_says_which_process_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Processes() as processes:
        service = play.start(processes)
        turns = [lambda: read_wrong(processes.service), lambda: end(service)]
        monkeypatch.setattr(play, "time", SimpleNamespace(sleep=lambda _: turns.pop(0)()))
        with pytest.raises(Failed, match="the service ended:\n(?s:.)*Listening"):
            play.follow(processes, service)
    assert "answered 404" in capsys.readouterr().out


def end(process: Process) -> None:
    """Let a process end."""
    process.popen.terminate()
    process.popen.wait(10)


def read_wrong(address: str) -> None:
    """Ask the service for what it does not have, which it logs."""
    with pytest.raises(OSError, match="404"):
        read(f"{address}/nothing")
