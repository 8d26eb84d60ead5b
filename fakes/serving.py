"""What both stand-ins share: faults on demand, a log of requests, and a threaded server."""

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Flask, Response, request
from werkzeug.http import http_date
from werkzeug.serving import WSGIRequestHandler, make_server

LOOPBACK = "127.0.0.1"


class Faults:
    """Answers that stand in for the real ones, and the requests seen so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.planned: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []

    def install(self, app: Flask, now: Callable[[], float] = time.time) -> None:
        """Add `/_fake/faults` and `/_fake/requests` to an app, and date its answers."""

        def date(response: Response) -> Response:
            response.headers.setdefault("Date", http_date(now()))  # a fault may have its own
            return response

        app.after_request(date)  # the first one added is the last one called
        app.before_request(self.meet)
        app.after_request(self.spoil)
        app.add_url_rule("/_fake/faults", view_func=self.plan, methods=["POST", "DELETE"])
        app.add_url_rule("/_fake/requests", view_func=self.seen, methods=["GET", "DELETE"])

    def plan(self) -> Any:
        """Plan a fault: `method`, `path` (a part of it), `times`, `skip`, and what happens.

        `delay` waits (seconds), `drop` closes the connection, `status` with `body` (`latin` for
        one that is no UTF-8), `headers` and `content_type` answers; with `after`, when the call
        has taken effect. A `Content-Length` above the body's cuts it off. `trickle` waits before
        each byte of such an answer, or with `after` of the real one.
        """
        with self.lock:
            if request.method == "DELETE":
                self.planned.clear()
            else:
                self.planned.append({"times": 1, "skip": 0, **request.get_json()})
        return {}

    def seen(self) -> Any:
        """Return the requests so far, oldest first, or forget them."""
        with self.lock:
            if request.method == "DELETE":
                self.requests.clear()
            return {"requests": list(self.requests)}

    def meet(self) -> Response | None:
        """Note a request, and answer it with a planned fault if there is one for it."""
        if request.path.startswith("/_fake/"):
            return None
        entry = {
            "method": request.method,
            "path": request.path,
            "query": request.query_string.decode(),
            "form": request.form.to_dict(),
            "version": request.headers.get("Stripe-Version"),
            "account": request.headers.get("Stripe-Account"),
            "context": request.headers.get("Stripe-Context"),
        }
        with self.lock:
            self.requests.append(entry)
            fault = self._take(entry)
        if fault is None:
            return None
        if fault.get("after"):
            request.environ["fake.fault"] = fault
            return None
        return perform(fault)

    def spoil(self, response: Response) -> Response:
        """Put a fault in the place of an answer whose call has taken effect."""
        fault = request.environ.get("fake.fault")
        return response if fault is None else perform(fault, response) or response

    def _take(self, entry: Mapping[str, Any]) -> dict[str, Any] | None:
        for fault in self.planned:
            if fault.get("method", entry["method"]) != entry["method"]:
                continue
            if fault.get("path", "") not in entry["path"] or fault["times"] == 0:
                continue
            if fault["skip"] > 0:
                fault["skip"] -= 1
                return None
            fault["times"] -= 1
            return fault
        return None


def perform(fault: Mapping[str, Any], response: Response | None = None) -> Response | None:
    """Do what a fault says; None lets the real answer follow (after a delay)."""
    time.sleep(fault.get("delay", 0))
    if fault.get("drop"):
        connection: socket.socket = request.environ["werkzeug.socket"]
        connection.shutdown(socket.SHUT_RDWR)
        return Response(status=500)
    if "status" in fault:
        body = fault.get("body", "")
        text = body if isinstance(body, str) else json.dumps(body)
        response = Response(
            fault["latin"].encode("latin-1") if "latin" in fault else text,
            fault["status"],
            content_type=fault.get("content_type", "application/json"),
        )
        response.headers.update(fault.get("headers", {}))
    if response is not None and "trickle" in fault:
        trickle(response, fault["trickle"])
    return response


def trickle(response: Response, seconds: float) -> None:
    """Let an answer go out byte by byte, its head with the first one."""

    def apart(body: bytes) -> Iterator[bytes]:
        for n in range(len(body)):
            time.sleep(seconds)
            yield body[n : n + 1]

    body = response.get_data()
    response.content_length = len(body)
    response.response = apart(body)


class QuietHandler(WSGIRequestHandler):
    """Serve without a log line for each request, and answer without waiting for more to send."""

    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one segment

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer without this machine's date: the app knows its own."""
        self.send_response_only(code, message)

    def finish(self) -> None:
        """Close, though the other side may have gone before it got its answer."""
        with contextlib.suppress(OSError):
            super().finish()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Stay quiet."""


def serve(app: Flask, name: str, argv: list[str], hint: str = "") -> None:
    """Serve a stand-in on `--host` and `--port` (0 picks a free one) until it is interrupted."""
    parser = argparse.ArgumentParser(description=f"A local stand-in of {name}.")
    parser.add_argument("--host", default=LOOPBACK, help="0.0.0.0 for a container's ports")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    given = parser.parse_args(argv)
    host, port = given.host, given.port
    try:
        server = make_server(host, port, app, threaded=True, request_handler=QuietHandler)
    except SystemExit:
        sys.exit(f"Cannot listen on port {port}: is something else running there?")
    print(f"A stand-in of {name}, for trying and testing only: nothing in it is real.{hint}")
    # Whatever --host: a container's port has the same number on the machine that it runs on.
    print(f"Listening on http://{LOOPBACK}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
