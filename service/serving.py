"""How gunicorn serves connections: within bounds of time, and refusing new ones when it stops."""

import errno
import selectors
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from gunicorn.glogging import Logger
from gunicorn.http.unreader import SocketUnreader
from gunicorn.util import close_graceful
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from service.logs import json_formatter

# What a client gets to send a request, and to take each part of an answer.
REQUEST_SECONDS = 10
# How often a worker says that it lives; gunicorn's main process waits for 30 s.
NOTIFY_SECONDS = 1


class TooSlow(ConnectionResetError):
    """Say that a client is too slow; gunicorn drops it, as one that has gone, without an error."""

    def __init__(self) -> None:
        super().__init__(errno.ECONNRESET, "the client is too slow")


@contextmanager
def socket_deadline(deadline: float, sock: socket.socket) -> Iterator[None]:
    """Let a socket read or write until a monotonic second. Raises TooSlow."""
    seconds, before = deadline - time.monotonic(), sock.gettimeout()
    if seconds <= 0:
        raise TooSlow
    sock.settimeout(seconds)
    try:
        yield
    except TimeoutError as error:
        raise TooSlow from error
    finally:
        sock.settimeout(before)


def in_one_piece(application: WSGIApplication) -> WSGIApplication:
    """Return a WSGI application whose answers go out in one piece each.

    gunicorn writes the head and the body of an answer one after the other. Sent so, each of them
    would wake its reader.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        chunks, sock = application(environ, start_response), environ["gunicorn.socket"]
        hold_back(sock, held=True)
        try:
            yield from chunks
        finally:
            hold_back(sock, held=False)
            if hasattr(chunks, "close"):
                chunks.close()

    return answer


def hold_back(sock: socket.socket, *, held: bool) -> None:
    """Let the system hold back what is written, or send it."""
    with suppress(OSError):  # it was closed, or is a Unix socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, held)


class RequestReader(SocketUnreader):  # type: ignore[misc]
    """Read a connection's requests, each until its deadline, a monotonic second."""

    deadline = 0.0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Read what has come. Raises TooSlow."""
        with socket_deadline(self.deadline, self.sock):
            return bytes(super().chunk(size_hint))


class Worker(ThreadWorker):  # type: ignore[misc]
    """Lend a thread to each request, but not to a client that is silent or slow."""

    notified_at = 0.0
    wsgi: WSGIApplication

    def load_wsgi(self) -> None:
        """Load the application."""
        super().load_wsgi()
        if hasattr(socket, "TCP_CORK"):  # Linux
            self.wsgi = in_one_piece(self.wsgi)

    def notify(self) -> None:
        """Say that this worker lives, which gunicorn does twice for each request."""
        if time.monotonic() - self.notified_at >= NOTIFY_SECONDS:
            self.notified_at = time.monotonic()
            super().notify()

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to a thread as soon as it has something to read."""
        if conn.data_ready:
            super().enqueue_req(conn)
            return
        conn.timeout = time.monotonic() + REQUEST_SECONDS
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def handle(self, conn: TConn) -> bool:
        """Serve one request in a thread, and close the connection unless it is kept alive.

        gunicorn closes in the main loop, where a client that does not close holds up all others.
        """
        if not conn.initialized:
            conn.init()
            conn.parser.unreader = RequestReader(conn.sock)
        conn.parser.unreader.deadline = time.monotonic() + REQUEST_SECONDS
        kept = bool(super().handle(conn))
        if not kept:
            close_graceful(conn.sock)
        return kept

    def handle_request(self, req: Any, conn: TConn) -> bool:
        """Answer a request that has been read up to its body."""
        with socket_deadline(time.monotonic() + REQUEST_SECONDS, conn.sock):
            return bool(super().handle_request(req, conn))

    def finish_request(self, conn: TConn, fs: "Future[bool]") -> None:
        """Keep a connection for its next request, or forget what its thread has closed."""
        if fs.exception() or fs.result():
            super().finish_request(conn, fs)
        else:
            self.nr_conns -= 1

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or not; when stopping, refuse new ones and drop silent ones soon."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            listener.close()
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)


class JsonLogger(Logger):  # type: ignore[misc]
    """Let gunicorn's own lines be JSON, too."""

    def _set_handler(self, log: Any, output: Any, _: Any, stream: Any = None) -> None:
        super()._set_handler(log, output, json_formatter(), stream)
