"""How requests go out: over shared connections, and within a bound of time and size.

Both SDKs send through `http_session`, and neither knows of it.
"""

import io
import socket
import ssl
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
# What requests reads of certificates (requests.readthedocs.io, "SSL Cert Verification").
CA_VARIABLES = "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
# What OpenSSL says where the answer is no TLS.
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")


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
    is told the seconds of each. An error has a note with the address and the setting that leads
    there, if `told` names them.
    """

    def __init__(self, observe: Observe, told: str = "") -> None:
        super().__init__()
        self.observe, self.told = observe, told

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
                # Stripe's SDK brings certificates of its own; the environment's go before them.
                verify=verify if self.verify is True else self.verify,
                proxies=self.proxies,
            )
            response.content  # noqa: B018 - reads it, so that what fails does so here
        except requests.RequestException as error:
            if self.told:
                error.add_note(failure_text(error, self.told))
            raise
        except OSError as error:  # requests' own, if there is no file of that name
            failed = requests.exceptions.SSLError("a variable names no file of certificates")
            failed.add_note(f"there is no such file as {CA_VARIABLES} says")
            raise failed from error
        finally:
            self.observe(time.monotonic() - began)
        return response


def unobserved(_: float) -> None:
    """Leave a request's seconds alone."""


def failure_text(error: requests.RequestException, told: str) -> str:
    """Say what failed at an address, and what to look at; nothing of the request.

    Of a proxy not even the address is said: it can have a password.
    """
    kind = type(error).__name__
    if isinstance(error, requests.exceptions.ProxyError):
        return f"{kind}, on the way to {told}: is the proxy of the environment right?"
    if isinstance(error, requests.exceptions.SSLError):
        return f"{kind} at {told}: {tls_cure(error)}"
    return f"{kind} at {told}"


def tls_cure(error: requests.exceptions.SSLError) -> str:
    """Say what is wrong with a server's TLS, and what to set."""
    cause = tls_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the server's certificate is not accepted ({cause.verify_message}); if its authority "
            f"is your own, set {CA_VARIABLES} to a file with that authority's certificate"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
        return "it speaks no TLS there: is it http:// instead of https://?"
    return f"no TLS came about; what {CA_VARIABLES} names, if set, must be a file of certificates"


def tls_cause(error: BaseException) -> BaseException | None:
    """Return what TLS itself said, from inside the errors around it."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ssl.SSLError):
        inner = inner.__cause__ or inner.__context__
    return inner


def http_session(
    url: str, observe: Observe = unobserved, setting: str | None = None
) -> requests.Session:
    """Return a session for one service, which the threads of a process share.

    What the environment says of proxies and certificates is read here, once. Without a `setting`
    that leads there, no error says the address.
    """
    session = BoundedSession(observe, f"{url}, as {setting} says" if setting else "")
    found = session.merge_environment_settings(url, {}, None, True, None)
    session.proxies, session.verify = found["proxies"], found["verify"]
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(pool_maxsize=MAX_CONNECTIONS))
    return session
