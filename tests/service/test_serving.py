"""The service under gunicorn: slow clients, a stop, a restart under load, and two processes."""

import json
import os
import random
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from errno import ECONNREFUSED
from functools import partial
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gunicorn.workers.gthread import ThreadWorker
from pytest_mock import MockerFixture
from stripe import WebhookSignature
from werkzeug.wsgi import ClosingIterator

from fakes.processes import WEBHOOK_SECRET, Process, Processes, answers, wait_for
from service.serving import REQUEST_SECONDS, RequestReader, TooSlow, Worker, in_one_piece
from tests.conftest import DAY, END, ENDIVE, OpenMeter, Stripe, free_port, updated
from tests.service.conftest import pids, wait_for_workers

DELIVERY = b"POST /webhook HTTP/1.1\r\nHost: x\r\nStripe-Signature: t=1,v1=0\r\n"
# What a slow client sends first, and then again and again.
SLOW = {
    "silent": (b"", b""),
    "head": (b"POST /webhook HTTP/1.1\r\nA: ", b"a"),
    "body": (DELIVERY + b"Content-Length: 99999\r\n\r\n", b"a"),
    "chunks": (DELIVERY + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "never closes": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b""),
}
METERED = {"metadata[om_meter_id]": "m1"}
Dropped = tuple[float, bytes]


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


def connection(address: str) -> HTTPConnection:
    return HTTPConnection(urlsplit(address).netloc, timeout=60)


def post(http: HTTPConnection, body: str) -> int:
    """Post a signed body over a connection; return the status."""
    signature = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    http.request("POST", "/webhook", body, {"Stripe-Signature": signature})
    answer = http.getresponse()
    answer.read()
    return answer.status


def deliver(address: str, body: str) -> int:
    """Post a signed body over a connection of its own; return the status."""
    with closing(connection(address)) as http:
        return post(http, body)


def timed(function: Callable[..., int], *args: Any) -> tuple[int, float]:
    """Call a function; return what it does, and the seconds that it took."""
    began = time.monotonic()
    return function(*args), time.monotonic() - began


def subscribed(processes: Processes, meter: str = "m1") -> dict[str, Any]:
    """Return a new subscription with one metered item."""
    stripe = Stripe(processes.stripe)
    stripe.seed({"metadata[om_meter_id]": meter})
    return stripe.subscription()


def slow_delivery(processes: Processes, seconds: float) -> str:
    """Return the body of a delivery whose upstreams take so long, half of it each."""
    openmeter, stripe = OpenMeter(processes.openmeter), Stripe(processes.stripe)
    openmeter.meter("slow")
    subscription = subscribed(processes, "slow")
    openmeter.fault(path="/slow/query", delay=seconds / 2)
    stripe.fault(path=f"/{subscription['items']['data'][0]['id']}/usage_records", delay=seconds / 2)
    return json.dumps(updated(subscription))


def has_begun(processes: Processes) -> bool:
    """Say whether a slow delivery has reached its first upstream."""
    seen = OpenMeter(processes.openmeter).requests()
    return any("/slow/query" in request["path"] for request in seen)


def until_dropped(client: socket.socket, first: bytes, again: bytes) -> Dropped:
    """Send slowly until the service closes; return the seconds, and what it answered."""
    began, answer = time.monotonic(), b""
    client.settimeout(0.2)
    with suppress(ConnectionError):
        client.sendall(first)
        while time.monotonic() < began + 2 * REQUEST_SECONDS:
            with suppress(TimeoutError):
                received = client.recv(4096)
                answer += received
                if not received:
                    break
            client.sendall(again)
    return time.monotonic() - began, answer


def slow_clients(address: str, count: int, opened: ExitStack) -> "list[Future[Dropped]]":
    """Start clients of all kinds of SLOW; none closes its side before `opened` does."""
    where = (urlsplit(address).hostname, urlsplit(address).port)
    pool = opened.enter_context(ThreadPoolExecutor(count))
    started = []
    for first, again in islice(cycle(SLOW.values()), count):
        client = opened.enter_context(socket.create_connection(where))
        started.append(pool.submit(until_dropped, client, first, again))
    return started


def test_fifty_slow_clients_hold_up_no_delivery_and_are_dropped_in_time(
    processes: Processes,
) -> None:
    service = processes.start_service()
    quick, long = json.dumps(updated(subscribed(processes))), slow_delivery(processes, 12)
    took = []
    with ThreadPoolExecutor(1) as beside, ExitStack() as opened:
        kept = opened.enter_context(closing(connection(processes.service)))
        answered = beside.submit(timed, deliver, processes.service, long)
        wait_for(partial(has_begun, processes), "the slow delivery", 5)
        clients = slow_clients(processes.service, 50, opened)
        while not (answered.done() and all(client.done() for client in clients)):
            took += [timed(deliver, processes.service, quick), timed(post, kept, quick)]
            time.sleep(0.05)
        status, seconds = answered.result()
    assert (status, seconds > 12 > REQUEST_SECONDS) == (200, True)
    assert {status for status, _ in took} == {200}
    assert max(seconds for _, seconds in took) < 2
    for client in clients:
        seconds, answer = client.result()
        assert seconds < REQUEST_SECONDS + 2
        assert re.match(rb"HTTP/1.1 (400|200) |$", answer)
    assert "ERROR" not in service.printed()
    assert "Traceback" not in service.printed()


def test_silent_clients_take_no_thread(processes: Processes) -> None:
    processes.start_service("--threads", "1")
    with ExitStack() as opened:
        slow_clients(processes.service, 1, opened)
        status, seconds = timed(deliver, processes.service, '{"type": "invoice.paid"}')
    assert (status, seconds < 2) == (200, True)


def test_a_request_that_keeps_coming_is_cut_at_its_deadline() -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        reader = RequestReader(ours)
        theirs.sendall(b"a")
        reader.deadline = time.monotonic() + 10
        assert reader.chunk() == b"a"
        theirs.sendall(b"a")
        reader.deadline = time.monotonic()
        with pytest.raises(TooSlow):
            reader.chunk()


def test_a_worker_says_once_a_second_that_it_lives(mocker: MockerFixture) -> None:
    said = mocker.patch.object(ThreadWorker, "notify")
    mocker.patch("time.monotonic", side_effect=cycle([100.0, 100.0, 100.9, 101.0, 101.0]))
    worker = Worker.__new__(Worker)
    for _ in range(3):  # at 100, 100.9 and 101
        worker.notify()
    assert said.call_count == 2


def test_an_answer_that_is_not_taken_is_given_up_in_time(mocker: MockerFixture) -> None:
    mocker.patch("service.serving.REQUEST_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    answer = mocker.patch.object(ThreadWorker, "handle_request")
    answer.side_effect = lambda *_: ours.sendall(bytes(2**24))
    worker = object.__new__(Worker)
    ours.settimeout(5)
    with closing(ours), closing(theirs), pytest.raises(TooSlow):
        worker.handle_request(mocker.Mock(), mocker.Mock(sock=ours))


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="only Linux sends in one piece")
def test_an_answer_goes_out_in_one_piece(mocker: MockerFixture) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    theirs.setblocking(False)

    closed, worker = mocker.Mock(), object.__new__(Worker)
    body = ClosingIterator([b"bo", b"dy"], closed)
    worker.app = mocker.Mock(**{"wsgi.return_value": lambda *_: body})
    worker.load_wsgi()
    chunks = iter(worker.wsgi({"gunicorn.socket": ours}, mocker.Mock()))
    with closing(ours), closing(theirs):
        first = next(chunks)
        for written in (b"head, ", first, next(chunks)):
            ours.sendall(written)
            with pytest.raises(BlockingIOError):
                theirs.recv(100)
        closed.assert_not_called()
        assert list(chunks) == []
        closed.assert_called_once()
        theirs.settimeout(0.15)  # held for longer, the system sends it after 0.2 s
        assert theirs.recv(100) == b"head, body"


def test_who_expects_a_hundred_gets_it_at_once(processes: Processes) -> None:
    head = DELIVERY + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    address = urlsplit(processes.start_service().address())
    place = (str(address.hostname), address.port or 0)
    with closing(socket.create_connection(place, timeout=5)) as client:
        client.sendall(head)
        began = time.monotonic()
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        assert time.monotonic() - began < 0.15
        client.sendall(b"{}")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")


def test_no_header_changes_where_a_request_goes(processes: Processes) -> None:
    processes.start_service()
    with closing(connection(processes.service)) as http:
        forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-SSL": "off"}
        http.request("GET", "/nothing", headers={"PATH_INFO": "/healthz", **forwarded})
        assert http.getresponse().status == 404


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="only Linux sends in one piece")
def test_what_was_closed_meanwhile_is_sent_no_more(mocker: MockerFixture) -> None:
    with closing(socket.socket()) as ours:
        chunks = in_one_piece(lambda *_: [b"body"])({"gunicorn.socket": ours}, mocker.Mock())
        ours.close()
        assert list(chunks) == [b"body"]


def refuses(address: str) -> bool:
    """Say whether nobody listens on an address any more."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", urlsplit(address).port)) == ECONNREFUSED


def test_a_stop_finishes_what_runs_and_refuses_what_is_new(processes: Processes) -> None:
    service = processes.start_service()
    body = slow_delivery(processes, 4)
    with ThreadPoolExecutor(1) as beside:
        answered = beside.submit(deliver, processes.service, body)
        wait_for(partial(has_begun, processes), "the slow delivery", 5)
        service.popen.terminate()
        wait_for(partial(refuses, processes.service), "new connections to be refused", 2)
        assert not answered.done()
        assert answered.result() == 200
    assert service.popen.wait(3) == 0
    assert "ERROR" not in service.printed()


def test_a_stop_waits_for_no_idle_connection(processes: Processes) -> None:
    service = processes.start_service()
    with ExitStack() as opened:
        kept = opened.enter_context(closing(connection(processes.service)))
        assert post(kept, '{"type": "invoice.paid"}') == 200
        (silent,) = slow_clients(processes.service, 1, opened)
        service.popen.terminate()
        assert service.popen.wait(5) == 0
        assert silent.result()[1] == b""
    assert "ERROR" not in service.printed()


def keep_delivering(address: str, body: str, until: threading.Event, *, kept: bool) -> list[int]:
    """Deliver over one connection that is kept, or over new ones; return the statuses."""
    statuses = []
    with closing(connection(address)) as http:
        while not until.is_set():
            statuses.append(post(http, body) if kept else deliver(address, body))
    return statuses


def test_a_restart_under_load_loses_no_delivery(processes: Processes) -> None:
    service = processes.start_service("--workers", "2")
    wait_for_workers(service, 2, "Booting worker")
    body, enough = json.dumps(updated(subscribed(processes))), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        load = [
            pool.submit(keep_delivering, processes.service, body, enough, kept=kept)
            for kept in (True, False, True, False)
        ]
        try:
            wait_for(lambda: service.printed().count("total_usage") > 20, "deliveries", 10)
            service.popen.send_signal(signal.SIGHUP)
            wait_for_workers(service, 2, "Worker exiting")
            known = service.printed().count("total_usage")
            wait_for(lambda: service.printed().count("total_usage") > known + 20, "more", 10)
        finally:
            enough.set()
        statuses = [status for loader in load for status in loader.result()]
    assert set(statuses) == {200}
    old, new = pids(service, "Booting worker")[:2], pids(service, "Booting worker")[2:]
    assert sorted(pids(service, "Worker exiting")) == sorted(old)
    assert len(new) == 2
    assert "ERROR" not in service.printed()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no process stays on a core here")
def test_each_worker_stays_on_a_core_of_its_own(processes: Processes) -> None:
    ours = os.sched_getaffinity(0)
    service = processes.start_service("--workers", "2")
    workers = wait_for_workers(service, 2, "Booting worker")
    wait_for(lambda: all(len(os.sched_getaffinity(pid)) == 1 for pid in workers), "cores", 5)
    assert len(set.union(*map(os.sched_getaffinity, workers))) == min(2, len(ours))
    assert os.sched_getaffinity(service.popen.pid) == ours


NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream service {{ server {servers[0]}; server {servers[1]}; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://service; }}
  }}
}}
"""


def start_nginx(processes: Processes, folder: Path, services: list[Process]) -> str:
    """Start nginx in front of two services; return its address."""
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if command is None and os.environ.get("CI") == "true":
        pytest.fail("CI has to install nginx-light")
    if command is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    servers = [urlsplit(service.address()).netloc for service in services]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, servers=servers, port=port))
    processes.start("nginx", [command, "-p", str(folder), "-c", str(config)])
    address = f"http://127.0.0.1:{port}"
    wait_for(partial(answers, f"{address}/healthz"), "nginx", 10)
    return address


def deliver_mixed(address: str, events: list[dict[str, Any]]) -> None:
    """Deliver events three times each, in disorder, eight at a time."""
    bodies = [json.dumps(event) for event in events * 3]
    random.Random(1).shuffle(bodies)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(partial(deliver, address), bodies)) == {200}


def billed(processes: Processes, address: str) -> tuple[list[int], list[Any]]:
    """Deliver a period and its renewal; return the record's totals, and the invoices."""
    stripe, openmeter = Stripe(processes.stripe), OpenMeter(processes.openmeter)
    stripe.collect_events(ENDIVE)
    stripe.seed({**METERED, "price": stripe.metered_price()}, METERED)
    customer = stripe.ids["customer"]
    openmeter.use(customer, 10)
    for n in range(5):
        stripe.update(**{"metadata[n]": str(n)})
    deliver_mixed(address, stripe.events())
    known = len(stripe.events())
    openmeter.use(customer, 4, time="2023-07-07T13:59:59Z")
    openmeter.use(customer, 2, time="2023-07-08T00:00:00Z")
    stripe.advance(END + DAY)
    deliver_mixed(address, stripe.events()[known:])
    totals = stripe.usage(stripe.items()[1])
    stripe.advance(END + 4 * DAY)
    return totals, stripe.invoiced()


def test_two_processes_behind_nginx_bill_what_one_does_alone(
    processes: Processes, tmp_path: Path
) -> None:
    services = [processes.start_service(), processes.start_service()]
    address = start_nginx(processes, tmp_path, services)
    with Processes() as others:
        others.start_service()
        alone = billed(others, others.service)
    assert billed(processes, address) == alone == ([2, 10], [("open", [14, 10])])
    for service in services:
        assert service.printed().count("total_usage") > 10
        assert "ERROR" not in service.printed()
