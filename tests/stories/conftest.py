"""What stories in several files begin with, and what happens while the service waits for an answer.

A story's machine clock is Stripe's time here, also where the host's clock is off.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from stripe import WebhookSignature

from service.transport import Answer, Connections, Request
from tests.stories.test_life import Story, empty_openmeter, tell

__all__ = ["empty_openmeter", "tell"]


@dataclass
class Wire:
    """What happens, once, before some call of the service arrives or once it is answered."""

    planned: list[tuple[str, bool, Callable[[], object]]] = field(default_factory=list)
    changes: list[Callable[[Answer], object]] = field(default_factory=list)

    def before(self, call: str, act: Callable[[], object]) -> None:
        """Act once a call, such as `POST /v1/billing/meter_events`, is under way."""
        self.planned.append((call, True, act))

    def after(self, call: str, act: Callable[[], object]) -> None:
        """Act while a call's answer is on its way back."""
        self.planned.append((call, False, act))

    def take(self, request: Request, *, before: bool) -> None:
        """Act as planned."""
        method, path = request.method, request.url.partition("?")[0]
        for entry in list(self.planned):
            (wanted, _, part), at, act = entry[0].partition(" "), entry[1], entry[2]
            if at is before and wanted == method and part in path and entry in self.planned:
                self.planned.remove(entry)
                act()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    planned, send = Wire(), Connections.send

    def sent(connections: Connections, request: Request, *bounds: Any) -> Answer:
        planned.take(request, before=True)
        answer = send(connections, request, *bounds)
        planned.take(request, before=False)
        for change in planned.changes:
            change(answer)
        return answer

    monkeypatch.setattr(Connections, "send", sent)
    return planned


Off = Callable[[Story, int], None]


@pytest.fixture
def host_off(monkeypatch: pytest.MonkeyPatch) -> Off:
    """Set the host's clock some seconds ahead of Stripe's, whose time signatures carry."""

    def off(story: Story, seconds: int) -> None:
        sign = WebhookSignature.generate_signature_header

        def signed(payload: str, secret: str, at: int | None = None) -> str:
            return str(sign(payload, secret, at or story.machine.now))

        monkeypatch.setattr(WebhookSignature, "generate_signature_header", staticmethod(signed))
        monkeypatch.setattr(time, "time", lambda: float(story.machine.now + seconds))
        story.stripe.fake("POST", "offset", {"seconds": -seconds})

    return off


@pytest.fixture
def sleeping(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Let the machine's clock, and nobody's time, pass while somebody sleeps."""

    def told(story: Story) -> None:
        lock = threading.Lock()

        def sleep(seconds: float) -> None:
            with lock:
                story.machine.now += max(1, round(seconds))

        monkeypatch.setattr(time, "sleep", mock.Mock(side_effect=sleep))

    return told
