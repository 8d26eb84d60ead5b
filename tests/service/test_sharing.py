"""What processes share, by the settings."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.processes import WEBHOOK_SECRET, Processes, call
from fakes.stripe_webhooks import signature
from service.shared_file import SharedFile
from service.shared_redis import SharedRedis
from service.sharing import shared_budget, shared_notes, shared_redis
from tests.conftest import Stripe, updated
from tests.service.conftest import wait_for_workers

SHARED = {"STRIPE_KEY": "sk_test_1", "RATE_LIMIT_REDIS": "redis://localhost:6379"}
ALONE = SHARED | {"RATE_LIMIT_REDIS": None}


@pytest.mark.parametrize("mode", ["live", "test"])
def test_live_and_test_mode_share_apart(mode: str) -> None:
    shared = shared_redis(SHARED | {"STRIPE_KEY": f"sk_{mode}_1"})
    assert shared is not None
    assert shared.prefix == f"openmeter-stripe:{mode}"


def test_without_a_redis_there_is_no_budget_of_several_machines() -> None:
    assert shared_redis(ALONE) is None
    assert shared_budget(None) is None


@pytest.mark.parametrize(
    ("settings", "folder", "kind"),
    [
        (ALONE, None, type(None)),
        (ALONE, "x", SharedFile),
        (SHARED, None, SharedRedis),
        (SHARED, "x", SharedRedis),
    ],
)
def test_the_workers_of_a_machine_note_things_in_a_file_if_there_is_no_redis(
    settings: dict[str, Any], folder: str | None, kind: type
) -> None:
    assert type(shared_notes(shared_redis(settings), folder)) is kind


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Processes]:
    """Start the stand-ins; see that nothing of the service stays in the folder for such."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Processes() as running:
        yield running
    assert list(tmp_path.iterdir()) == []


def attempt(address: str, event: dict[str, Any], sent: int) -> dict[str, Any]:
    """Deliver an event, signed at a UTC second; return the answer."""
    signed = signature(WEBHOOK_SECRET, json.dumps(event).encode(), sent)
    found: dict[str, Any] = call("POST", f"{address}/webhook", event, {"Stripe-Signature": signed})
    return found


def late_event(processes: Processes) -> tuple[dict[str, Any], int]:
    """Return an event of half a minute ago, and the UTC second of now."""
    stripe, now = Stripe(processes.stripe), int(time.time())
    stripe.seed()
    return updated(stripe.subscription()) | {"created": now - 30}, now


def test_a_worker_answers_the_next_attempt_of_what_another_reported_too_late(
    processes: Processes,
) -> None:
    """One of the two is halted, so that the other has to answer."""
    service = processes.start_service("--workers", "2")
    one, two = wait_for_workers(service, 2, "Booting worker")
    event, now = late_event(processes)
    try:
        os.kill(two, signal.SIGSTOP)
        assert len(attempt(processes.service, event, now - 30)["reported"]) == 1
        os.kill(two, signal.SIGCONT)
        os.kill(one, signal.SIGSTOP)
        assert attempt(processes.service, event, now) == {"repeated": "evt_1"}
        assert len(attempt(processes.service, event, now)["reported"]) == 1
    finally:
        for pid in (one, two):
            os.kill(pid, signal.SIGCONT)
    assert "Traceback" not in service.printed()


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_reported_too_late_is_known_after_a_reload(
    processes: Processes, count: int
) -> None:
    service = processes.start_service("--workers", str(count))
    wait_for_workers(service, count, "Booting worker")
    event, now = late_event(processes)
    assert len(attempt(processes.service, event, now - 30)["reported"]) == 1
    service.popen.send_signal(signal.SIGHUP)
    wait_for_workers(service, count, "Worker exiting")
    assert attempt(processes.service, event, now) == {"repeated": "evt_1"}


def test_a_service_whose_port_is_taken_leaves_no_folder_behind(processes: Processes) -> None:
    taken = urlsplit(processes.stripe).netloc
    command = [sys.executable, "-m", "service", "--bind", taken]
    service = processes.start("the service", command, processes.environment())
    assert service.popen.wait(30) == 1
    assert "Address already in use" in service.printed()
