"""A stand-in of OpenMeter's API v1: events in, meters, queries out. State lives in memory."""

import random
import sys
import time
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from fakes.openmeter_http import Problem, bad_request, parse_json
from fakes.openmeter_query import answer_query, asked_in_body, asked_in_url
from fakes.openmeter_store import DEFAULT_METER, Store
from fakes.pages import Beside, openmeter
from fakes.serving import Faults, serve

# Of a list of meters; `pageSize` and `page` are taken and change nothing.
ORDERS = ("key", "name", "aggregation", "createdAt", "updatedAt")


def create_app(token: str | None = None) -> Flask:
    """Build the stand-in; with a token it wants it as a bearer token, as the cloud does."""
    app = Flask("fakes.openmeter_api", static_folder=None)
    store, faults = Store(), Faults()
    store.add_meter(DEFAULT_METER)
    faults.install(app)

    @app.before_request
    def authenticate() -> None:
        given = request.headers.get("Authorization")
        if token and request.path.startswith("/api/") and given != f"Bearer {token}":
            raise Problem(401, "a bearer token is required")

    @app.errorhandler(HTTPException)
    def problem(error: HTTPException) -> Response:
        """Answer in OpenMeter's form, also where no route is."""
        return (error if isinstance(error, Problem) else Problem(error.code or 500)).get_response()

    @app.post("/api/v1/events")
    def ingest() -> tuple[str, int]:
        store.ingest(request.headers.get("Content-Type"), parse_json(request.get_data()))
        return "", 204

    @app.get("/api/v1/meters")
    def meters() -> Response:
        by, order = request.args.get("orderBy", "key"), request.args.get("order", "ASC")
        if by not in ORDERS or order not in ("ASC", "DESC"):
            raise bad_request("no such order")
        name = "slug" if by == "key" else by
        found = sorted(store.meters.values(), key=lambda meter: str(meter[name]))
        return jsonify(found[::-1] if order == "DESC" else found)

    @app.post("/api/v1/meters")
    def create_meter() -> Response:
        return jsonify(store.add_meter(json_body()))  # 200, where the API document says 201

    @app.get("/api/v1/meters/<key>")
    def meter(key: str) -> Response:
        return jsonify(store.meter(key))

    @app.get("/api/v1/meters/<key>/query")
    def query(key: str) -> Response:
        asked = asked_in_url(request.args)
        return said(answer_query(store, store.meter(key), asked))

    @app.post("/api/v1/meters/<key>/query")
    def query_by_body(key: str) -> Response:
        asked = asked_in_body(json_body())
        return said(answer_query(store, store.meter(key), asked))

    @app.post("/api/v1/customers")
    def create_customer() -> tuple[Response, int]:
        return jsonify(store.add_customer(json_body())), 201

    @app.post("/_fake/lag")
    def lag() -> dict[str, float]:
        store.lag_seconds = float(request.get_json()["seconds"])
        return {"seconds": store.lag_seconds}

    @app.post("/_fake/sink")
    def sink() -> dict[str, bool]:
        stalled = bool(request.get_json()["stalled"])
        store.stalled_since = time.time() if stalled else None
        return {"stalled": stalled}

    @app.post("/_fake/dedupe")
    def dedupe() -> dict[str, bool]:
        store.dedupes = bool(request.get_json()["on"])
        return {"on": store.dedupes}

    @app.post("/_fake/clickhouse")
    def clickhouse() -> dict[str, bool]:
        store.clickhouse_is_down = bool(request.get_json()["down"])
        return {"down": store.clickhouse_is_down}

    @app.post("/_fake/order")
    def order() -> dict[str, int]:
        seed = int(request.get_json()["seed"])
        store.order = random.Random(seed)
        return {"seed": seed}

    app.wsgi_app = Beside(app.wsgi_app, openmeter.create_pages(store))  # type: ignore[method-assign]
    return app


def json_body() -> Any:
    """Return a body that says that it is JSON."""
    if request.mimetype != "application/json":
        raise bad_request(f"header Content-Type has unexpected value: {request.mimetype}")
    return parse_json(request.get_data())


def said(text: str) -> Response:
    """Return an answer in JSON."""
    return Response(text, content_type="application/json")


if __name__ == "__main__":
    hint = f" It has the meter m1: {DEFAULT_METER}."
    serve(create_app(), "OpenMeter", sys.argv[1:], hint)
