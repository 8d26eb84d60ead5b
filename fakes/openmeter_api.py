"""A stand-in of OpenMeter's API v1: events in, meters, queries out. State lives in memory."""

import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from fakes.serving import Faults, serve

WINDOW_SECONDS = {"MINUTE": 60, "HOUR": 3_600, "DAY": 86_400}
EVENT_FIELDS = ("id", "source", "specversion", "type", "subject")
DEFAULT_METER = {
    "slug": "m1",
    "aggregation": "SUM",
    "eventType": "execution",
    "valueProperty": "$.duration",
}

Group = list[tuple[dict[str, Any], Any]]


class Problem(HTTPException):
    """An error in OpenMeter's form, `application/problem+json`."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.title = status, title

    def get_response(self, *_: Any, **__: Any) -> Response:
        """Return the problem document."""
        problem = {
            "type": "about:blank",
            "title": self.title,
            "status": self.code,
            "detail": self.description,
            "instance": f"urn:request:{id(self)}",
        }
        response = jsonify(problem)
        response.status_code = self.code or 500
        response.content_type = "application/problem+json"
        return response


def bad_request(detail: str) -> Problem:
    """Return OpenMeter's 400."""
    return Problem(400, "Bad Request", detail)


def parse_time(text: str, name: str) -> datetime:
    """Return an RFC 3339 time as UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise bad_request(f"{name} is no RFC 3339 time: {text}") from error
    if moment.tzinfo is None:
        raise bad_request(f"{name} has no time zone: {text}")
    return moment.astimezone(UTC)


def latest(events: list[dict[str, Any]], values: list[Any]) -> float:
    """Return the value of the event with the latest time."""
    newest = max(range(len(events)), key=lambda n: (events[n]["at"], n))
    return float(values[newest])


AGGREGATIONS: dict[str, Callable[[list[dict[str, Any]], list[Any]], float]] = {
    "SUM": lambda _, values: sum(map(float, values)),
    "COUNT": lambda events, _: len(events),
    "AVG": lambda _, values: sum(map(float, values)) / len(values),
    "MIN": lambda _, values: min(map(float, values)),
    "MAX": lambda _, values: max(map(float, values)),
    "UNIQUE_COUNT": lambda _, values: len(set(map(str, values))),
    "LATEST": latest,
}


class Store:
    """Meters and events."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.meters: dict[str, dict[str, Any]] = {}
        self.events: dict[tuple[str, str], dict[str, Any]] = {}
        # How long an event takes from its acceptance until a query sees it.
        self.lag_seconds = 0.0

    def meter(self, slug: str) -> dict[str, Any]:
        """Return a meter by its slug or id."""
        for meter in self.meters.values():
            if slug in (meter["slug"], meter["id"]):
                return meter
        raise Problem(404, "Not Found", f"meter not found: {slug}")

    def add_meter(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Create a meter."""
        for name in ("slug", "aggregation", "eventType"):
            if not isinstance(fields.get(name), str) or not fields[name]:
                raise bad_request(f"{name} is required")
        if fields["aggregation"] not in AGGREGATIONS:
            raise bad_request(f"unknown aggregation: {fields['aggregation']}")
        if fields["aggregation"] != "COUNT" and not fields.get("valueProperty"):
            raise bad_request(f"valueProperty is required for {fields['aggregation']}")
        with self.lock:
            if fields["slug"] in self.meters:
                raise Problem(409, "Conflict", f"meter {fields['slug']} exists")
            now = datetime.now(UTC).isoformat()
            number = f"{len(self.meters):026d}"
            meter = {**fields, "id": number, "createdAt": now, "updatedAt": now}
            self.meters[fields["slug"]] = meter
        return meter

    def ingest(self, events: list[Any]) -> None:
        """Store CloudEvents, all or none; a source and id seen before change nothing."""
        checked = [checked_event(event) for event in events]
        sent = time.time()
        with self.lock:
            for event in checked:
                self.events.setdefault((event["source"], event["id"]), {**event, "sent": sent})

    def counted(self, meter: dict[str, Any]) -> list[tuple[dict[str, Any], Any]]:
        """Return the events of a meter's type with their values; those without one drop out.

        OpenMeter takes events at once but works on them later, so the newest may be missing.
        """
        with self.lock:
            seen = time.time() - self.lag_seconds
            events = [
                event
                for event in self.events.values()
                if event["type"] == meter["eventType"] and event["sent"] <= seen
            ]
        pairs = [(event, value_of(event, meter)) for event in events]
        return [(event, value) for event, value in pairs if value is not None]


def checked_event(event: Any) -> dict[str, Any]:
    """Return a CloudEvent with its time as `at`; an event without one happened now."""
    if not isinstance(event, dict):
        raise bad_request("an event is no object")
    for name in EVENT_FIELDS:
        if not isinstance(event.get(name), str) or not event[name]:
            raise bad_request(f"{name} is required")
    given = event.get("time")
    return {**event, "at": parse_time(str(given), "time") if given else datetime.now(UTC)}


def value_of(event: dict[str, Any], meter: dict[str, Any]) -> Any:
    """Return what a meter counts in an event; a path is of the form `$.a.b`."""
    if meter["aggregation"] == "COUNT":
        return 1
    value: Any = event.get("data")
    for step in meter["valueProperty"].removeprefix("$.").split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if meter["aggregation"] == "UNIQUE_COUNT" or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def query_rows(store: Store, meter: dict[str, Any], args: Any) -> list[dict[str, Any]]:
    """Return one row per subject asked for and window, or per window for everybody."""
    start = parse_time(args["from"], "from") if "from" in args else None
    end = parse_time(args["to"], "to") if "to" in args else None
    if start and end and start >= end:
        raise bad_request("from must be before to")
    window = args.get("windowSize")
    if window and window not in WINDOW_SECONDS:
        raise bad_request(f"windowSize is not one of {', '.join(WINDOW_SECONDS)}")
    subjects = args.getlist("subject")
    groups: dict[tuple[str, datetime | None], Group] = {}
    for event, value in store.counted(meter):
        at = event["at"]
        if (start and at < start) or (end and at >= end):
            continue
        if subjects and event["subject"] not in subjects:
            continue
        key = (event["subject"] if subjects else "", window_of(at, window))
        groups.setdefault(key, []).append((event, value))
    rows = []
    for (subject, opened), group in groups.items():
        times = [event["at"] for event, _ in group]
        length = timedelta(seconds=WINDOW_SECONDS[window]) if window else None
        first = opened or start or min(times)
        last = opened + length if opened and length else end or max(times)
        rows.append(row(meter, group, subject, (first, last)))
    return sorted(rows, key=lambda row: (row["subject"] or "", row["windowStart"]))


def window_of(at: datetime, window: str | None) -> datetime | None:
    """Return the start of the window that holds an instant."""
    if window is None:
        return None
    seconds = int(at.timestamp())
    return datetime.fromtimestamp(seconds - seconds % WINDOW_SECONDS[window], UTC)


def row(
    meter: dict[str, Any], group: Group, subject: str, span: tuple[datetime, datetime]
) -> dict[str, Any]:
    """Return a row of a query's answer."""
    events, values = [event for event, _ in group], [value for _, value in group]
    return {
        "value": AGGREGATIONS[meter["aggregation"]](events, values),
        "windowStart": span[0].isoformat().replace("+00:00", "Z"),
        "windowEnd": span[1].isoformat().replace("+00:00", "Z"),
        "subject": subject or None,
        "groupBy": {},
    }


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
            raise Problem(401, "Unauthorized", "a bearer token is required")

    @app.post("/api/v1/events")
    def ingest() -> tuple[str, int]:
        body = request.get_json(silent=True, force=True)
        store.ingest(body if isinstance(body, list) else [body])
        return "", 204

    @app.post("/_fake/lag")
    def lag() -> dict[str, float]:
        store.lag_seconds = float(request.get_json()["seconds"])
        return {"seconds": store.lag_seconds}

    @app.get("/api/v1/meters")
    def meters() -> Response:
        return jsonify(list(store.meters.values()))

    @app.post("/api/v1/meters")
    def create_meter() -> tuple[Response, int]:
        return jsonify(store.add_meter(request.get_json(silent=True) or {})), 201

    @app.get("/api/v1/meters/<slug>")
    def meter(slug: str) -> Response:
        return jsonify(store.meter(slug))

    @app.get("/api/v1/meters/<slug>/query")
    def query(slug: str) -> Response:
        unknown = set(request.args) - {"from", "to", "subject", "windowSize"}
        if unknown:
            raise bad_request(f"this stand-in does not know {', '.join(sorted(unknown))}")
        found = store.meter(slug)
        rows = query_rows(store, found, request.args)
        asked = {
            name: request.args[name]
            for name in ("from", "to", "windowSize")
            if name in request.args
        }
        return jsonify({**asked, "data": rows})

    return app


if __name__ == "__main__":
    hint = f" It has the meter m1: {DEFAULT_METER}."
    serve(create_app(), "OpenMeter", sys.argv[1:], hint)
