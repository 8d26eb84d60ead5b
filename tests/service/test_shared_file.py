"""What the workers of one machine note for each other."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from fakes.processes import ROOT
from service import shared_file
from service.late import LateAnswers
from service.shared_file import SharedFile

NOW = 1_700_000_000
DAY = 86_400
EVENT = {"id": "evt_1"}

Open = Callable[[], SharedFile]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open the file of a test as another process does."""
    files = []

    def another() -> SharedFile:
        files.append(SharedFile(tmp_path / "notes"))
        return files[-1]

    yield another
    for each in files:
        if "file" in vars(each):
            each.file.close()


def test_what_one_worker_noted_is_told_to_one_of_all(opened: Open) -> None:
    one, two = opened(), opened()
    assert one.take("evt_1") is False
    assert one.note("evt_1", DAY) is True
    assert [each.take(name) for each in (two, one) for name in ("evt_2", "evt_1")] == [
        False,
        True,
        False,
        False,
    ]


def test_what_is_noted_again_is_told_once(opened: Open) -> None:
    one, two = opened(), opened()
    assert [each.note("evt_1", DAY) for each in (one, two)] == [True, True]
    assert [each.take("evt_1") for each in (one, two)] == [True, False]


def test_a_note_is_valid_for_its_seconds_from_when_it_was_made_last(
    opened: Open, mocker: MockerFixture
) -> None:
    clock = mocker.patch("service.shared_file.time.time", return_value=float(NOW))
    file = opened()
    for name in ("evt_1", "evt_2", "evt_2", "evt_3"):
        file.note(name, DAY)
        clock.return_value += 1
    clock.return_value = float(NOW + DAY)
    assert [file.take(name) for name in ("evt_1", "evt_2")] == [False, True]
    clock.return_value = float(NOW + DAY + 3)
    assert file.take("evt_3") is False


def test_the_oldest_are_forgotten_after_so_many(opened: Open, mocker: MockerFixture) -> None:
    mocker.patch.object(shared_file, "MOST_NOTED", 2)
    file = opened()
    for name in ("evt_1", "evt_2", "evt_1", "evt_3"):
        file.note(name, DAY)
    assert [file.take(name) for name in ("evt_1", "evt_2", "evt_3")] == [True, False, True]


def test_many_threads_of_several_processes_note_and_take_each_name_once(tmp_path: Path) -> None:
    """The names of all are the same: each is noted by one of them, and taken by one of all."""
    script = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from service.shared_file import SharedFile
file, which = SharedFile(Path({str(tmp_path / "notes")!r})), int(sys.argv[1])
names = [f"evt_{{number}}" for number in range(1_000)]
with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(lambda name: file.note(name, 60), names[which::3]))
    print("noted", flush=True)
    sys.stdin.readline()
    print(sum(pool.map(file.take, names)))
assert not file.is_gone
file.file.close()
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(which)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for which in range(3)
    ]
    try:
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == "noted\n"
        with ThreadPoolExecutor(3) as pool:
            taken = list(pool.map(lambda each: int(each.communicate("\n", timeout=30)[0]), running))
        assert [each.returncode for each in running] == [0, 0, 0]
        assert sum(taken) == 1_000
    finally:
        for each in running:
            each.kill()
            each.communicate()


@pytest.mark.parametrize("spoilt", ["no folder", "no database", "locked"])
def test_a_file_that_cannot_be_used_is_done_without_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mocker: MockerFixture, spoilt: str
) -> None:
    path = tmp_path / "gone" / "notes" if spoilt == "no folder" else tmp_path / "notes"
    if spoilt == "no database":
        path.write_text("a file of something else, which is of some length" * 10)
    other = sqlite3.connect(tmp_path / "notes", isolation_level=None)
    if spoilt == "locked":
        mocker.patch.object(shared_file, "BUSY_SECONDS", 0.05)
        other.execute("BEGIN EXCLUSIVE")
    answers, began = LateAnswers(("a",), SharedFile(path)), time.monotonic()
    for _ in range(2):
        answers.note(EVENT, NOW - 60, NOW)
        assert [answers.take(EVENT, NOW) for _ in range(2)] == [True, False]
    assert time.monotonic() - began < 5
    other.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the workers' notes cannot be used" in caplog.text


def test_a_file_that_was_removed_is_used_by_those_who_have_it_open(
    opened: Open, tmp_path: Path
) -> None:
    """Systems remove what lies in /tmp for days."""
    file = opened()
    file.note("evt_1", DAY)
    (tmp_path / "notes").unlink()
    assert file.note("evt_2", DAY) is True
    assert [file.take(name) for name in ("evt_1", "evt_2", "evt_3")] == [True, True, False]
