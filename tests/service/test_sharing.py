"""What processes share, by the settings."""

import json
import os
import re
import signal
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fakes.processes import WEBHOOK_SECRET, Process, Processes, wait_for
from fakes.stripe_webhooks import signature
from service.shared import SharedRedis
from service.shared_file import SharedFile
from service.sharing import shared_budget, shared_notes, shared_redis
from tests.conftest import Stripe, updated

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
    ("settings", "workers", "folder", "kind"),
    [
        (ALONE, 1, "x", type(None)),
        (ALONE, 2, "x", SharedFile),
        (ALONE, 2, None, type(None)),
        (SHARED, 1, None, SharedRedis),
        (SHARED, 2, "x", SharedRedis),
    ],
)
def test_the_workers_of_a_machine_note_things_in_a_file_if_there_is_no_redis(
    settings: dict[str, Any], workers: int, folder: str | None, kind: type
) -> None:
    settings = settings | {"WEB_CONCURRENCY": workers}
    assert type(shared_notes(shared_redis(settings), settings, folder)) is kind


def worker_pids(service: Process) -> list[int]:
    """Return the two workers of a service, once they have begun."""
    found = r"Booting worker with pid: (\d+)"
    wait_for(lambda: len(re.findall(found, service.printed())) == 2, "two workers", 5)
    return [int(pid) for pid in re.findall(found, service.printed())]


def attempt(address: str, event: dict[str, Any], sent: int) -> dict[str, Any]:
    """Deliver an event, signed at a UTC second; return the answer."""
    body = json.dumps(event)
    with closing(HTTPConnection(urlsplit(address).netloc, timeout=20)) as http:
        headers = {"Stripe-Signature": signature(WEBHOOK_SECRET, body.encode(), sent)}
        http.request("POST", "/webhook", body, headers)
        found: dict[str, Any] = json.load(http.getresponse())
    return found


def test_a_worker_answers_the_next_attempt_of_what_another_reported_too_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of the two is halted, so that the other has to answer."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Processes() as processes:
        service = processes.start_service("--workers", "2")
        one, two = worker_pids(service)
        stripe = Stripe(processes.stripe)
        stripe.seed()
        now = int(time.time())
        event = updated(stripe.subscription()) | {"created": now - 30}
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
    assert list(tmp_path.iterdir()) == []
