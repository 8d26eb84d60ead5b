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
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import requests
import urllib3
from pytest_mock import MockerFixture

from billing.stripe_api import StripeConnection, stripe_state
from service import transport
from service.clients import create_clients
from service.settings import read_settings
from service.transport import http_session
from tests.conftest import KEY, SECRET, free_port
from usage import openmeter_state

OK = b"HTTP/1.1 200 OK\r\n"
Serve = Callable[..., str]


class KeptAlive(BaseHTTPRequestHandler):
    """Answer any call on connections that stay open."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[set[int]] = set()
    heads: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.connections.add(self.client_address[1])
        self.heads.append(dict(self.headers))
        time.sleep(0.01)
        self.send_response(200)
        self.send_header("Set-Cookie", "a=b")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def kept_alive() -> Iterator[str]:
    KeptAlive.connections.clear()
    KeptAlive.heads.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeptAlive)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_the_threads_of_a_process_share_and_reuse_connections(kept_alive: str) -> None:
    with http_session(kept_alive) as session, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: session.request("GET", kept_alive), range(200)))
    assert len(KeptAlive.connections) <= 16


def test_a_request_carries_its_own_headers_only(
    kept_alive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with http_session(kept_alive) as session:
        for _ in range(2):
            session.request("GET", kept_alive, {"Authorization": "Bearer key"})
    for head in KeptAlive.heads:
        assert head["Authorization"] == "Bearer key"
        assert "Cookie" not in head


def test_proxy_and_certificates_come_from_the_environment(
    kept_alive: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("http_proxy", kept_alive)
    monkeypatch.setenv("no_proxy", "openmeter.internal")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    with http_session("http://api.example") as session:
        assert session.request("GET", "http://api.example/v1").status_code == 200
        assert session.verify == str(tmp_path)
    with http_session("http://openmeter.internal") as session:
        assert session.proxies == {}
    assert [head["Host"] for head in KeptAlive.heads] == ["api.example"]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve one connection: send `first`, then `again` every 0.05 s until the other side goes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def converse(first: bytes, again: bytes, pause: float) -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(first)
                while again:
                    time.sleep(pause)
                    connection.sendall(again)

    def started(first: bytes, again: bytes, pause: float = 0.05) -> str:
        threading.Thread(target=converse, args=(first, again, pause), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield started
    listening.close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(OK + b"Content-Length: 99999\r\n\r\n", b"a", id="the body"),
        pytest.param(OK + b"\r\n", b"a", id="a body without an end"),
        pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", id="chunks"),
        pytest.param(OK + b"A: ", b"a", id="a header"),
        pytest.param(b"", b"H", id="the status line"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 2, b"H", id="hints"),
    ],
)
def test_an_answer_that_trickles_in_is_given_up_in_time(
    serve: Serve, mocker: MockerFixture, first: bytes, again: bytes
) -> None:
    mocker.patch("service.transport.BOUND", urllib3.Timeout(connect=0.3, read=0.3, total=0.5))
    url = serve(first, again)
    began = time.monotonic()
    with http_session(url) as session, pytest.raises(requests.RequestException, match=r"."):
        session.request("GET", url)
    assert 0.25 < time.monotonic() - began < 1


@pytest.mark.parametrize("coded", [b"", b"Content-Encoding: gzip\r\n"])
def test_an_answer_without_end_takes_no_more_memory_than_it_may(
    serve: Serve, mocker: MockerFixture, coded: bytes
) -> None:
    mocker.patch("service.transport.MAX_ANSWER_BYTES", 100_000)
    url = serve(OK + coded + b"\r\n", b"a" * 65_536, 0)
    with http_session(url) as session, pytest.raises(requests.RequestException, match=r"."):
        session.request("GET", url)


def test_the_bounds_begin_anew_with_each_answer(kept_alive: str, mocker: MockerFixture) -> None:
    mocker.patch("service.transport.BOUND", urllib3.Timeout(connect=0.3, read=0.3, total=0.5))
    mocker.patch("service.transport.MAX_ANSWER_BYTES", 300)
    with http_session(kept_alive) as session:
        for _ in range(5):
            session.request("GET", kept_alive)
            time.sleep(0.1)
    assert len(KeptAlive.connections) == 1


def test_tls_connections_have_bounds_too() -> None:
    with http_session("https://api.example") as session:
        adapter = session.get_adapter("https://api.example")
        assert isinstance(adapter, transport.BoundedAdapter)
        direct = adapter.poolmanager.connection_from_url("https://api.example")
        proxied = adapter.proxy_manager_for("http://127.0.0.1:9").connection_from_url(
            "https://api.example"
        )
    for pool in (direct, proxied):
        assert issubclass(pool.ConnectionCls, transport.BoundedTLSConnection)
    assert transport.BoundedTLSConnection.response_class is transport.BoundedResponse


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
def over_tls(certificate: Path) -> Iterator[str]:
    """Answer any call over TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeptAlive)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def states(url: str) -> dict[str, str]:
    """Return what both services' states are, if both are at an address."""
    keys = {"STRIPE_KEY": KEY, "STRIPE_WEBHOOK_SECRET": SECRET}
    clients = create_clients(read_settings({**keys, "STRIPE_API_BASE": url, "OPENMETER_URL": url}))
    clients.pool.shutdown()
    return {
        "OPENMETER_URL": openmeter_state(clients.openmeter, "", datetime.now(UTC)),
        "STRIPE_API_BASE": stripe_state(StripeConnection(clients.stripe, "down")),
    }


def test_who_is_not_there_is_told_with_address_and_setting() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for setting, said in states(url).items():
        assert said.endswith(f"did not answer (ConnectionError at {url}, as {setting} says)")


@with_openssl
def test_a_certificate_that_is_not_trusted_is_told_with_whose_it_is_and_what_to_set(
    over_tls: str,
) -> None:
    cure = (
        "the server's certificate is not accepted (self-signed certificate); if its authority is "
        "your own, set REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE to a file with that authority's "
        "certificate)"
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
    for name, said in [("none.pem", "there is no such file as"), ("empty.pem", "a file of certif")]:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
        for state in states(over_tls).values():
            assert "did not answer" in state
            assert said in state
            assert "REQUESTS_CA_BUNDLE" in state


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


def test_an_address_that_is_a_secret_is_in_no_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/6f0c"
    with http_session(url) as session, pytest.raises(requests.ConnectionError) as failed:
        session.request("GET", url)
    assert not hasattr(failed.value, "__notes__")
