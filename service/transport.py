"""How requests go out: over shared connections, and within a bound of time and size.

Both SDKs send through `http_session`, and neither knows of it. libcurl carries what they send: it
keeps to the bounds by itself, and a thread that waits for it holds up no other.
"""

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import TIMEOUT_MAX
from typing import Any

import pycurl
import requests
from requests.adapters import BaseAdapter
from requests.exceptions import ProxyError, SSLError
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


class Body(io.BytesIO):
    """An answer's body. OpenMeter's SDK sets an attribute on it."""


class BoundedAdapter(BaseAdapter):
    """Send with our bounds, directly or through a proxy, over connections that are kept.

    Each is a handle's of libcurl, which one thread has at a time. A kept connection that turns
    out to be closed is opened anew within the same attempt. What is sent twice so changes nothing
    twice: it is a GET, a query, or has an idempotency key.
    """

    def __init__(self, proxy: str, certificates: str) -> None:
        super().__init__()
        self.proxy, self.certificates = proxy, certificates
        self.idle = deque[pycurl.Curl]()

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, timeout: tuple[float, float], **_: Any
    ) -> requests.Response:
        """Send a request and read the answer, within seconds as BOUND. Raises RequestException."""
        try:
            curl = self.idle.pop()
        except IndexError:
            curl = self.new_handle()
        try:
            response = exchange(curl, request, timeout)
        except pycurl.error as error:
            raise self.request_error(curl, *error.args) from error
        self.idle.append(curl)
        return response

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

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self.idle:
            self.idle.pop().close()


def exchange(
    curl: pycurl.Curl, request: requests.PreparedRequest, timeout: tuple[float, float]
) -> requests.Response:
    """Send a request and read the answer. Raises pycurl.error."""
    response, lines = requests.Response(), list[bytes]()
    response.raw = body = Body()
    connect, total = timeout
    headers = [f"{name}: {value!s}" for name, value in request.headers.items()]
    if not {"\n", "\r"}.isdisjoint("".join(headers)):
        raise requests.exceptions.InvalidHeader("a header has more than one line")
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
    body.seek(0)
    response.status_code, response.url = curl.getinfo(pycurl.RESPONSE_CODE), str(request.url)
    read_headers(lines, response)
    return response


def read_headers(lines: list[bytes], response: requests.Response) -> None:
    """Give a response the headers of the last answer in what was received; hints come before it."""
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            response.headers[name] = value.strip()
        elif response.headers and name.startswith("HTTP/"):
            response.headers = CaseInsensitiveDict()


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
        **_: Any,
    ) -> requests.Response:
        """Send with our bounds, whatever the caller's are, and read the answer."""
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method.upper(), url, data
        request.headers = headers or {}  # type: ignore[assignment]  # no look-up comes
        began = time.monotonic()
        try:
            response = self.get_adapter(url).send(request, timeout=attempt_timeout())
        except requests.RequestException as error:
            if self.told:
                error.add_note(failure_text(error, self.told))
            raise
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


def http_session(
    url: str, observe: Observe = unobserved, setting: str | None = None
) -> requests.Session:
    """Return a session for one service, which the threads of a process share.

    What the environment says of proxies and certificates is read here, once. Without a `setting`
    that leads there, no error says the address.
    """
    session = BoundedSession(observe, f"{url}, as {setting} says" if setting else "")
    found = session.merge_environment_settings(url, {}, None, True, None)
    certificates = DEFAULT_CA_BUNDLE_PATH if found["verify"] is True else found["verify"]
    adapter = BoundedAdapter(select_proxy(url, found["proxies"]) or "", certificates)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session
