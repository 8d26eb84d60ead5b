"""Requests to both services: bounded, over shared connections, with nothing added to them."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import requests
import stripe
from pytest_mock import MockerFixture
from stripe import _api_requestor

from billing.stripe_api import StripeConnection, stripe_state
from service.clients import create_clients
from service.settings import read_settings
from service.transport import Connections, limit_time_of_calls
from tests.conftest import KEY, SECRET, free_port
from usage import openmeter_state

OK = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[..., str]


class KeptAlive(BaseHTTPRequestHandler):
    """Answer any call on connections that stay open."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set[int]] = set()
    heads: ClassVar[list[dict[str, str]]] = []
    requests: ClassVar[list[tuple[str, str | None, bytes]]] = []
    open: ClassVar[list[socket.socket]] = []

    def do_GET(self) -> None:
        self.connections.add(self.client_address[1])
        self.heads.append(dict(self.headers))
        length = self.headers["Content-Length"]
        self.requests.append((self.command, length, self.rfile.read(int(length or 0))))
        self.open.append(self.connection)
        time.sleep(0.01)
        self.send_response(200)
        self.send_header("Set-Cookie", "a=b")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_DELETE = do_GET  # noqa: N815 - their names in http.server

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    @classmethod
    def close_all(cls) -> None:
        """Close the connections, as a server does with what is idle."""
        for connection in cls.open:
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def kept_alive() -> Iterator[str]:
    for seen in (KeptAlive.connections, KeptAlive.heads, KeptAlive.requests, KeptAlive.open):
        seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeptAlive)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_threads_of_a_process_share_and_reuse_connections(kept_alive: str) -> None:
    with closing(Connections(kept_alive)) as connections, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: connections.request("GET", kept_alive), range(200)))
    assert len(KeptAlive.connections) <= 16


def test_a_request_carries_its_own_headers_only(
    kept_alive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with closing(Connections(kept_alive)) as connections:
        for _ in range(2):
            connections.request("GET", kept_alive, {"Authorization": "Bearer key"})
    for head in KeptAlive.heads:
        assert head["Authorization"] == "Bearer key"
        assert "Cookie" not in head


def test_a_kept_connection_that_was_closed_is_opened_anew(kept_alive: str) -> None:
    with closing(Connections(kept_alive)) as connections:
        connections.request("GET", kept_alive)
        KeptAlive.close_all()
        assert connections.request("GET", kept_alive).status_code == 200
    assert len(KeptAlive.connections) == 2


def test_a_request_has_its_method_and_its_body(kept_alive: str) -> None:
    """Also where the one before, over the same connection, had others."""
    sent = [("POST", "a=b"), ("GET", None), ("POST", None), ("DELETE", None), ("POST", b"c")]
    with closing(Connections(kept_alive)) as connections:
        for method, body in sent:
            connections.request(method.lower(), kept_alive, {"A": "b"}, body)
    assert KeptAlive.requests == [
        ("POST", "3", b"a=b"), ("GET", None, b""), ("POST", "0", b""), ("DELETE", None, b""),
        ("POST", "1", b"c"),
    ]  # fmt: skip


def test_an_answer_has_its_own_headers_only(serve: Serve) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nDate: hint\r\n\r\n"
    url = serve(hint + OK + b"date:answer \r\nX: a:b\r\nContent-Length: 2\r\n\r\nok", b"")
    with closing(Connections(url)) as connections:
        answer = connections.request("GET", url)
    assert dict(answer.headers) == {"date": "answer", "X": "a:b", "Content-Length": "2"}
    assert (answer.headers["Date"], answer.content) == ("answer", b"ok")


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c", "a\rB: c"])
def test_a_header_of_more_than_one_line_is_not_sent(kept_alive: str, value: str) -> None:
    with (
        closing(Connections(kept_alive)) as connections,
        pytest.raises(requests.exceptions.InvalidHeader, match="more than one line"),
    ):
        connections.request("GET", kept_alive, {"A": value})
    assert KeptAlive.heads == []


def test_proxy_and_certificates_come_from_the_environment(
    kept_alive: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Of its own, libcurl would not read it in capitals.
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", kept_alive)
    monkeypatch.setenv("no_proxy", "openmeter.internal")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    with closing(Connections("http://api.example")) as connections:
        assert connections.request("GET", "http://api.example/v1").status_code == 200
        assert connections.certificates == str(tmp_path)
    with closing(Connections("http://openmeter.internal")) as connections:
        assert connections.proxy == ""
    assert [head["Host"] for head in KeptAlive.heads] == ["api.example"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve one connection: send `first`, then `again` every 0.05 s until the other side goes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def converse(first: bytes, again: bytes, pause: float, tls: ssl.SSLContext | None) -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            if tls:
                connection = tls.wrap_socket(connection, server_side=True)
            with connection:
                connection.recv(65_536)
                connection.sendall(first)
                while again:
                    time.sleep(pause)
                    connection.sendall(again)

    def started(
        first: bytes, again: bytes, pause: float = 0.05, tls: ssl.SSLContext | None = None
    ) -> str:
        threading.Thread(target=converse, args=(first, again, pause, tls), daemon=True).start()
        return f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}/"

    yield started
    listening.close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(OK + b"Content-Length: 99999\r\n\r\n", b"a", id="the body"),
        pytest.param(OK + b"\r\n", b"a", id="a body without an end"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", id="chunks"),
        pytest.param(OK + b"A: ", b"a", id="a header"),
        pytest.param(b"HTTP/1.1 200 ", b"a", id="the status line"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="hints"),
    ],
)
def test_an_answer_that_trickles_in_is_given_up_in_time(
    serve: Serve, mocker: MockerFixture, first: bytes, again: bytes
) -> None:
    mocker.patch("service.transport.BOUND", (0.3, 0.5))
    url = serve(first, again)
    began = time.monotonic()
    with (
        closing(Connections(url)) as connections,
        pytest.raises(requests.RequestException, match=r"."),
    ):
        connections.request("GET", url)
    assert 0.25 < time.monotonic() - began < 1


def test_an_attempt_takes_no_more_than_is_left_of_its_delivery(serve: Serve) -> None:
    url, began = serve(b"HTTP/1.1 200 ", b"a"), time.monotonic()
    with limit_time_of_calls(0.3), closing(Connections(url)) as connections:
        for _ in range(2):  # the second has no time at all
            with pytest.raises(requests.ReadTimeout):
                connections.request("GET", url)
    assert 0.25 < time.monotonic() - began < 1


@pytest.mark.parametrize("coded", [b"", b"Content-Encoding: gzip\r\n"])
def test_an_answer_without_end_takes_no_more_memory_than_it_may(
    serve: Serve, mocker: MockerFixture, coded: bytes
) -> None:
    mocker.patch("service.transport.MAX_ANSWER_BYTES", 100_000)
    url = serve(OK + coded + b"\r\n", b"a" * 65_536, 0)
    with (
        closing(Connections(url)) as connections,
        pytest.raises(requests.ConnectionError, match="file size"),
    ):
        connections.request("GET", url)


def test_the_bounds_begin_anew_with_each_answer(kept_alive: str, mocker: MockerFixture) -> None:
    mocker.patch("service.transport.BOUND", (0.3, 0.5))
    mocker.patch("service.transport.MAX_ANSWER_BYTES", 300)
    with closing(Connections(kept_alive)) as connections:
        for _ in range(5):
            connections.request("GET", kept_alive)
            time.sleep(0.1)
    assert len(KeptAlive.connections) == 1


OPENSSL = shutil.which("openssl")
with_openssl = pytest.mark.skipif(
    not OPENSSL and os.environ.get("CI") != "true", reason="there is no openssl"
)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate that its own key signed, for 127.0.0.1, and return both in one file."""
    made, key = tmp_path / "made.pem", tmp_path / "key.pem"
    options = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {made}"
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [OPENSSL or "openssl", *options.split(), *names]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    made.write_text(made.read_text() + key.read_text())
    return made


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    """Return what a server with that certificate speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def over_tls(tls: ssl.SSLContext) -> Iterator[str]:
    """Answer any call over TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeptAlive)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@with_openssl
def test_answers_over_tls_have_bounds_too(
    serve: Serve,
    tls: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.transport.BOUND", (0.4, 0.5))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    url = serve(OK + b"Content-Length: 99999\r\n\r\n", b"a", tls=tls)
    began = time.monotonic()
    with closing(Connections(url)) as connections, pytest.raises(requests.ReadTimeout):
        connections.request("GET", url)
    assert 0.25 < time.monotonic() - began < 1


def states(url: str) -> dict[str, str]:
    """Return what both services' states are, if both are at an address."""
    keys = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET}
    clients = create_clients(read_settings({**keys, "STRIPE_API_BASE": url, "OPENMETER_URL": url}))
    clients.pool.shutdown()
    return {
        "OPENMETER_URL": openmeter_state(clients.openmeter, "", datetime.now(UTC)),
        "STRIPE_API_BASE": stripe_state(StripeConnection(clients.stripe, "down")),
    }


@pytest.mark.parametrize(
    ("error", "by_stripes_sdk"),
    [
        (requests.ConnectionError("gone"), 2),
        (requests.ReadTimeout("slow"), 2),
        (requests.exceptions.SSLError(60, "not trusted"), 1),  # which no second attempt mends
    ],
)
def test_a_call_without_an_answer_is_made_once_more(
    mocker: MockerFixture, error: requests.RequestException, by_stripes_sdk: int
) -> None:
    mocker.patch("stripe.HTTPClient._sleep_time_seconds", return_value=0)
    send = mocker.patch.object(Connections, "send", side_effect=error)
    states("http://api.example")
    called = [call.args[0].url.split("/")[3] for call in send.call_args_list]
    assert (called.count("api"), called.count("v1")) == (2, by_stripes_sdk)


def test_stripes_sdk_writes_no_log_of_its_own(
    kept_alive: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stripe, "log", "debug")
    assert states(kept_alive)["STRIPE_API_BASE"] == "Stripe answered 200 and no usable answer"
    assert capsys.readouterr().err == ""


def test_stripes_sdk_tells_nothing_of_the_environment(
    kept_alive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_api_requestor._APIRequestor, "AI_AGENTS", [("SOME_TOOL", "some")])
    monkeypatch.setenv("SOME_TOOL", "1")
    states(kept_alive)
    heads = [head for head in KeptAlive.heads if "X-Stripe-Client-User-Agent" in head]
    assert len(heads) == 1
    assert "some" not in str(heads[0].values()).lower()


def test_who_is_not_there_is_told_with_address_and_setting() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for setting, said in states(url).items():
        assert said.endswith(f"did not answer (ConnectionError at {url}, as {setting} says)")


@with_openssl
def test_a_certificate_that_is_not_trusted_is_told_with_whose_it_is_and_what_to_set(
    over_tls: str,
) -> None:
    cure = (
        "the server's certificate is not accepted (SSL certificate OpenSSL verify result: "
        "self-signed certificate (18)); if its authority is your own, set REQUESTS_CA_BUNDLE or "
        "CURL_CA_BUNDLE to a file with that authority's certificate)"
    )
    for setting, said in states(over_tls).items():
        assert said.endswith(f"(SSLError at {over_tls}, as {setting} says: {cure}")


@with_openssl
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_an_authority_of_the_environment_is_trusted_for_both(
    over_tls: str, certificate: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(certificate))
    assert set(states(over_tls).values()) == {"ok", "Stripe answered 200 and no usable answer"}


@with_openssl
def test_a_file_of_certificates_that_is_none_is_told(
    over_tls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").touch()
    cure = "what REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names must be a file of certificates)"
    for name in ("none.pem", "empty.pem"):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
        for setting, said in states(over_tls).items():
            assert said.endswith(
                f"did not answer (SSLError at {over_tls}, as {setting} says: {cure}"
            )


def test_an_answer_that_is_no_tls_asks_for_http(kept_alive: str) -> None:
    url = kept_alive.replace("http:", "https:").rstrip("/")
    for said in states(url).values():
        assert said.endswith("it speaks no TLS there: is it http:// instead of https://?)")


def test_a_proxy_that_is_not_there_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:hidden@127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    for said in states("http://api.example").values():
        assert "ProxyError, on the way to http://api.example" in said
        assert "is the proxy of the environment right?" in said
        assert "hidden" not in said


def test_a_proxy_that_refuses_is_told(kept_alive: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", kept_alive)  # which knows no CONNECT
    monkeypatch.delenv("no_proxy", raising=False)
    for said in states("https://api.example").values():
        assert "ProxyError, on the way to https://api.example" in said


def test_a_proxy_that_is_slow_is_given_up_in_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.transport.BOUND", (0.3, 0.5))
    monkeypatch.setenv("https_proxy", serve(b"HTTP/1.1 200 ", b"a"))
    monkeypatch.delenv("no_proxy", raising=False)
    url, began = "https://api.example", time.monotonic()
    with closing(Connections(url)) as connections, pytest.raises(requests.ConnectTimeout):
        connections.request("GET", url)
    assert 0.25 < time.monotonic() - began < 1


@with_openssl
def test_a_proxy_that_speaks_tls_is_trusted_by_the_same_certificates(
    over_tls: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", over_tls)
    monkeypatch.delenv("no_proxy", raising=False)
    url = "http://api.example"
    with closing(Connections(url)) as connections, pytest.raises(requests.exceptions.SSLError):
        connections.request("GET", url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with closing(Connections(url)) as connections:
        assert connections.request("GET", url).status_code == 200


def test_an_address_that_is_a_secret_is_in_no_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/6f0c"
    with (
        closing(Connections(url)) as connections,
        pytest.raises(requests.ConnectionError) as failed,
    ):
        connections.request("GET", url)
    assert not hasattr(failed.value, "__notes__")
