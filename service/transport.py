"""How requests go out: over shared connections, and within a bound of time and size.

Both SDKs send through `Connections` (clients.py). libcurl carries what they send: it keeps to the
bounds by itself, and a thread that waits for it holds up no other.
"""

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import TIMEOUT_MAX
from typing import NamedTuple

import pycurl
import requests
from requests.exceptions import InvalidHeader, ProxyError, SSLError
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy

Observe = Callable[[float], object]

MAX_ANSWER_BYTES = 32 * 1024 * 1024
# What a connection keeps room for to send: the least that libcurl takes, for requests are small.
SENT_BYTES = 16 * 1024
# Seconds of one attempt: to connect, and in all; what is left of the delivery's time can be less.
BOUND = (3.0, 9.0)
# The monotonic second at which a delivery's time is used up.
DEADLINE: ContextVar[float] = ContextVar("deadline", default=TIMEOUT_MAX)
# What requests reads of certificates (requests.readthedocs.io, "SSL Cert Verification").
CA_VARIABLES = "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE"
# Of the server and of a proxy that speaks TLS.
CA_FILE = (pycurl.CAINFO, pycurl.PROXY_CAINFO)
CA_FOLDER = (pycurl.CAPATH, pycurl.PROXY_CAPATH)
# libcurl's errors (curl.se/libcurl/c/libcurl-errors.html) that are not of the connection itself.
NOT_TRUSTED, NO_CERTIFICATES = pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE
TLS_ERRORS = (NOT_TRUSTED, NO_CERTIFICATES, pycurl.E_SSL_CONNECT_ERROR)
# What OpenSSL says where the answer is no TLS.
NO_TLS = ("wrong version number", "http request", "record layer failure")


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


def attempt_timeout() -> tuple[float, float]:
    """Return the bounds of an attempt that begins now, as BOUND. Raises ReadTimeout."""
    connect, total = BOUND
    left = seconds_left()
    if left <= 0:
        raise requests.ReadTimeout("no time is left")
    return connect, min(total, left)


class Request(NamedTuple):
    """What is sent, as it is: no cookies, nothing of a `.netrc`."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: str | bytes | None


class Answer(NamedTuple):
    """What was answered: the `lines` of its head, and of hints before it, and the body."""

    status_code: int
    lines: list[bytes]
    content: bytes

    @property
    def headers(self) -> CaseInsensitiveDict[str]:
        """Return the headers of the answer itself; hints come before it."""
        found: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        for line in self.lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if colon:
                found[name] = value.strip()
            elif found and name.startswith("HTTP/"):
                found = CaseInsensitiveDict()
        return found

    @property
    def content_type(self) -> str | None:
        """Return what the body is said to be."""
        return self.headers.get("Content-Type")


def unobserved(_: float) -> None:
    """Leave a request's seconds alone."""


class Connections:
    """Connections to one service, directly or through a proxy, which a process's threads share.

    Each is a handle's of libcurl, which one thread has at a time. A kept connection that turns
    out to be closed is opened anew within the same attempt. What is sent twice so changes nothing
    twice: it is a GET, a query, or has an idempotency key.

    What the environment says of proxies and certificates is read once. `observe` is told the
    seconds of each request. Without a `setting` that leads to `url`, no error says the address.
    """

    def __init__(self, url: str, observe: Observe = unobserved, setting: str | None = None) -> None:
        self.observe, self.told = observe, f"{url}, as {setting} says" if setting else ""
        with requests.Session() as session:
            found = session.merge_environment_settings(url, {}, None, True, None)
        self.certificates = DEFAULT_CA_BUNDLE_PATH if found["verify"] is True else found["verify"]
        self.proxy = select_proxy(url, found["proxies"]) or ""
        self.idle = deque[pycurl.Curl]()

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: str | bytes | None = None,
    ) -> Answer:
        """Send a request within our bounds, and read the answer.

        Raises RequestException, with a note of the address and the setting that leads there.
        """
        began = time.monotonic()
        try:
            return self.send(Request(method.upper(), url, headers or {}, body), attempt_timeout())
        except requests.RequestException as error:
            if self.told:
                error.add_note(failure_text(error, self.told))
            raise
        finally:
            self.observe(time.monotonic() - began)

    def send(self, request: Request, timeout: tuple[float, float]) -> Answer:
        """Send a request and read the answer, within seconds as BOUND. Raises RequestException."""
        try:
            curl = self.idle.pop()
        except IndexError:
            curl = self.new_handle()
        try:
            answer = exchange(curl, request, timeout)
        except pycurl.error as error:
            raise self.request_error(curl, *error.args) from error
        self.idle.append(curl)
        return answer

    def close(self) -> None:
        """Close those that nobody uses."""
        while self.idle:
            self.idle.pop().close()

    def new_handle(self) -> pycurl.Curl:
        """Return a handle with all that no request changes."""
        curl = pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, True)  # threads share the process' signals
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        for option in CA_FOLDER if os.path.isdir(self.certificates) else CA_FILE:
            curl.setopt(option, self.certificates)
        curl.setopt(pycurl.PROXY, self.proxy)
        curl.setopt(pycurl.NOPROXY, "")
        curl.setopt(pycurl.MAXFILESIZE_LARGE, MAX_ANSWER_BYTES)
        curl.setopt(pycurl.UPLOAD_BUFFERSIZE, SENT_BYTES)
        return curl

    def request_error(self, curl: pycurl.Curl, code: int, said: str) -> requests.RequestException:
        """Return what requests calls an error of libcurl's, of which the handle is not kept."""
        is_sent = curl.getinfo(pycurl.REQUEST_SIZE) > 0
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return requests.ReadTimeout(said) if is_sent else requests.ConnectTimeout(said)
        if code in TLS_ERRORS:
            return SSLError(code, said)
        if self.proxy and not is_sent:
            return ProxyError("the proxy cannot be reached, or refuses")
        return requests.ConnectionError(said)


def exchange(curl: pycurl.Curl, request: Request, timeout: tuple[float, float]) -> Answer:
    """Send a request and read the answer. Raises pycurl.error."""
    lines, body = list[bytes](), io.BytesIO()
    connect, total = timeout
    headers = [f"{name}: {value!s}" for name, value in request.headers.items()]
    if not {"\n", "\r"}.isdisjoint("".join(headers)):
        raise InvalidHeader("a header has more than one line")
    if request.body or request.method == "POST":
        curl.setopt(pycurl.POSTFIELDS, request.body or "")
    else:
        curl.setopt(pycurl.HTTPGET, True)
    curl.setopt(pycurl.CUSTOMREQUEST, request.method)
    curl.setopt(pycurl.URL, request.url)
    curl.setopt(pycurl.HTTPHEADER, headers)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, round(1_000 * connect))
    curl.setopt(pycurl.TIMEOUT_MS, max(1, round(1_000 * total)))  # 0 is no bound
    curl.setopt(pycurl.HEADERFUNCTION, lines.append)
    curl.setopt(pycurl.WRITEFUNCTION, body.write)
    curl.perform()
    return Answer(curl.getinfo(pycurl.RESPONSE_CODE), lines, body.getvalue())


def failure_text(error: requests.RequestException, told: str) -> str:
    """Say what failed at an address, and what to look at; nothing of the request.

    Of a proxy not even the address is said: it can have a password.
    """
    kind = type(error).__name__
    if isinstance(error, ProxyError):
        return f"{kind}, on the way to {told}: is the proxy of the environment right?"
    if isinstance(error, SSLError):
        return f"{kind} at {told}: {tls_cure(error)}"
    return f"{kind} at {told}"


def tls_cure(error: SSLError) -> str:
    """Say what is wrong with a server's TLS, and what to set."""
    code, said = error.args
    if code == NO_CERTIFICATES:
        return f"what {CA_VARIABLES} names must be a file of certificates"
    if code == NOT_TRUSTED:
        return (
            f"the server's certificate is not accepted ({said}); if its authority "
            f"is your own, set {CA_VARIABLES} to a file with that authority's certificate"
        )
    if any(sign in said for sign in NO_TLS):
        return "it speaks no TLS there: is it http:// instead of https://?"
    return f"no TLS came about ({said})"
