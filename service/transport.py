"""How requests go out: over shared connections, and within a bound of time and size.

Both SDKs send through `http_session`, and neither knows of it.
"""

import io
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPResponse
from threading import TIMEOUT_MAX
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection

Observe = Callable[[float], object]

# To one service: of gunicorn's threads, and of the pool beside them.
MAX_CONNECTIONS = 96
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# For one attempt; what is left of the delivery's time can be less.
BOUND = Timeout(connect=3, read=8, total=9)
# The monotonic second at which a delivery's time is used up.
DEADLINE: ContextVar[float] = ContextVar("deadline", default=TIMEOUT_MAX)


@contextmanager
def limit_time_of_calls(seconds: float) -> Iterator[None]:
    """Bound the time of all requests that are made inside, taken together."""
    token = DEADLINE.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        DEADLINE.reset(token)


def seconds_left() -> float:
    """Return how much is left of the delivery's time."""
    return DEADLINE.get() - time.monotonic()


def attempt_timeout() -> Timeout:
    """Return the bound of an attempt that begins now. Raises ReadTimeout."""
    left = seconds_left()
    if left <= 0:
        raise requests.ReadTimeout("no time is left")
    attempt = BOUND.clone()
    attempt.total = min(attempt.total, left)  # type: ignore[type-var]
    return attempt


class BoundedReader(io.RawIOBase):
    """Read an answer from a socket until its time or size is used up.

    The socket's own time-out, which is what this one starts with, begins anew with each byte.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self.raw, self.sock = raw, sock
        self.deadline = time.monotonic() + (sock.gettimeout() or 0)
        self.left = MAX_ANSWER_BYTES

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what has come. Raises TimeoutError or OSError."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the answer took too long")
        self.sock.settimeout(seconds)
        count = self.raw.readinto(buffer)
        self.left -= count or 0
        if self.left < 0:
            raise OSError("the answer is too long")
        return count

    def close(self) -> None:
        """Close what it reads from."""
        self.raw.close()
        super().close()


class BoundedResponse(HTTPResponse):
    """An answer, its head and its body, within bounds."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(BoundedReader(self.fp.detach(), sock))


class BoundedConnection(HTTPConnection):
    """A connection whose answers have bounds."""

    response_class = BoundedResponse


class BoundedTLSConnection(HTTPSConnection):
    """The same over TLS."""

    response_class = BoundedResponse


class BoundedPool(HTTPConnectionPool):
    """Connections to a host."""

    ConnectionCls = BoundedConnection


class BoundedTLSPool(HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = BoundedTLSConnection


class BoundedAdapter(HTTPAdapter):
    """Send with our bounds, directly or through a proxy."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*args, **options)
        use_bounded_pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **options: Any) -> PoolManager:
        """Return the pools of a proxy's connections."""
        return use_bounded_pools(super().proxy_manager_for(*args, **options))


def use_bounded_pools(manager: PoolManager) -> PoolManager:
    """Let a manager's pools have bounds."""
    manager.pool_classes_by_scheme = {"http": BoundedPool, "https": BoundedTLSPool}
    return manager


class BoundedSession(requests.Session):
    """Send each request as it is: no cookies, no redirects, nothing of a `.netrc`.

    What a session otherwise looks up for each request takes a third of its CPU time. `observe`
    is told the seconds of each.
    """

    def __init__(self, observe: Observe) -> None:
        super().__init__()
        self.observe = observe

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        verify: bool | str = True,
        **_: Any,
    ) -> requests.Response:
        """Send with our bounds, whatever the caller's are, and read the answer."""
        request = requests.PreparedRequest()
        request.prepare(method, url, headers, data=data)
        began = time.monotonic()
        try:
            response = self.get_adapter(url).send(
                request,
                timeout=attempt_timeout(),  # type: ignore[arg-type]  # HTTPAdapter takes it
                verify=self.verify if verify is True else verify,
                proxies=self.proxies,
            )
            response.content  # noqa: B018 - reads it, so that what fails does so here
        finally:
            self.observe(time.monotonic() - began)
        return response


def unobserved(_: float) -> None:
    """Leave a request's seconds alone."""


def http_session(url: str, observe: Observe = unobserved) -> requests.Session:
    """Return a session for one service, which the threads of a process share.

    What the environment says of proxies and certificates is read here, once.
    """
    session = BoundedSession(observe)
    found = session.merge_environment_settings(url, {}, None, True, None)
    session.proxies, session.verify = found["proxies"], found["verify"]
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(pool_maxsize=MAX_CONNECTIONS))
    return session
