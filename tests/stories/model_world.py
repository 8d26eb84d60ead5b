"""One process for the model's histories: the service and both stand-ins, on one clock.

No sockets, no threads: calls go from one Flask application to the other, and only a history moves
the clock.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import requests
from flask import Flask

from service.transport import Answer, Connections, Request
from tests.conftest import START

DROPPED = 599  # a planned answer that stands for a connection which breaks instead


class Clock:
    """The one clock of a history."""

    now = float(START)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Wire(Connections):
    """Carry the service's calls to the stand-ins without a socket."""

    def __init__(self, hosts: dict[str, Flask]) -> None:
        super().__init__("http://stripe")
        self.clients = {host: application.test_client() for host, application in hosts.items()}

    def send(self, request: Request, *_: object) -> Answer:
        url = urlsplit(request.url)
        answer = self.clients[str(url.hostname)].open(
            f"{url.path}?{url.query}",
            method=request.method,
            headers=dict(request.headers),
            data=request.body,
        )
        if answer.status_code == DROPPED:
            raise requests.ConnectionError("dropped")
        return answered(answer.status_code, dict(answer.headers), answer.data)


def answered(status: int, headers: dict[str, str], body: bytes) -> Answer:
    """Return an answer as if it had come over a connection."""
    return Answer(
        status, [f"{name}: {value}\r\n".encode() for name, value in headers.items()], body
    )


class InTurn(Executor):
    """Run one thing after the other, so that a history has one order."""

    def submit(  # type: ignore[override]
        self, call: Callable[..., Any], *args: Any
    ) -> Future[Any]:
        """Run it now."""
        done: Future[Any] = Future()
        done.set_result(call(*args))
        return done


@contextmanager
def in_one_process(clock: Clock, wire: Wire) -> Iterator[None]:
    """Let the service and the stand-ins run on one clock and one wire."""
    with ExitStack() as stack:
        for name in ("time.time", "time.monotonic"):
            stack.enter_context(mock.patch(name, partial(getattr, clock, "now")))
        stack.enter_context(mock.patch("time.sleep", clock.sleep))
        stack.enter_context(mock.patch("service.clients.Connections", return_value=wire))
        stack.enter_context(mock.patch("service.clients.ThreadPoolExecutor", return_value=InTurn()))
        stack.enter_context(mock.patch("stripe.HTTPClient._sleep_time_seconds", return_value=0))
        yield
