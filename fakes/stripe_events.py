"""Events as API calls: the list of snapshots, and thin events of what meters did not count."""

from fnmatch import fnmatchcase
from typing import Any

from flask import Flask, Response

from fakes.stripe_http import Api, in_bounds
from fakes.stripe_store import Record, StripeError, missing
from fakes.stripe_webhooks import time_text

KEPT_SECONDS = 30 * 86_400
MOST_SAMPLES = 5
MOST_TYPES = 20


def add_events(app: Flask, api: Api) -> None:
    """Serve what happened in the last 30 days (docs.stripe.com/api/events)."""
    endpoint = api.endpoint

    def kept() -> list[Record]:
        """Return the snapshots of the last 30 days, the newest first."""
        since = api.account.now() - KEPT_SECONDS
        found = [event for event in endpoint.snapshots.values() if event["created"] > since]
        return sorted(found, key=lambda event: int(event["created"]))[::-1]

    def show(event: Record) -> Record:
        """Return an event as it was made; only what is pending of it changes."""
        is_pending = event["id"] in endpoint.events.keys() - endpoint.taken
        return event | {"pending_webhooks": int(is_pending)}

    @app.get("/v1/events")
    def list_events() -> Response:
        query = api.filters("created", "delivery_success", "type", "types")
        wanted, every = wanted_types(query), kept()
        success = query.get("delivery_success")
        if success not in (None, "true", "false"):
            raise StripeError(400, f"Invalid boolean: {success}", "delivery_success")
        found = [
            event
            for event in every
            if any(fnmatchcase(event["type"], kind) for kind in wanted)
            and in_bounds(query, "created", event["created"])
            and success in (None, str(event["id"] in endpoint.taken).lower())
        ]
        return api.page(found, show, every)

    @app.get("/v1/events/<key>")
    def retrieve_event(key: str) -> Record:
        for found in kept():
            if found["id"] == key:
                return show(found)
        raise missing("event", key, "id")

    @app.get("/v2/core/events/<key>")
    def retrieve_thin_event(key: str) -> Record:
        if key not in endpoint.thin:
            raise missing("event", key, "id")
        return endpoint.thin[key]


def wanted_types(query: Record) -> list[Any]:
    """Return the types that a list is asked for; `*` stands for any part of one."""
    kinds = query.get("types")
    if kinds is None:
        return [query.get("type", "*")]
    if "type" in query:
        raise StripeError(400, "You may only specify one of these parameters: type, types.", "type")
    if not isinstance(kinds, list) or len(kinds) > MOST_TYPES:
        raise StripeError(400, f"types must be an array of up to {MOST_TYPES}.", "types")
    return kinds


def report_meter_errors(api: Api) -> list[str]:
    """Make the thin events of what meters did not count since the last time; return their ids."""
    if not api.endpoint.takes_thin():
        return []
    made = []
    for meter, errors in api.account.meters.untold().items():
        kind, related = "no_meter_found", None
        if meter is not None:
            kind = "error_report_triggered"
            url = f"/v1/billing/meters/{meter}"
            related = {"id": meter, "type": "billing.meter", "url": url}
        data = error_report(errors, api.account.now())
        made.append(api.endpoint.emit_thin(f"v1.billing.meter.{kind}", related, data)["id"])
    return made


def error_report(errors: list[Record], now: int) -> Record:
    """Return the data of a thin event: errors counted by their code, with some samples."""
    by_code: dict[str, list[Record]] = {}
    for error in errors:
        by_code.setdefault(error["code"], []).append(error)
    count = len(errors)
    events = "is 1 invalid event" if count == 1 else f"are {count} invalid events"
    return {
        "developer_message_summary": f"There {events}",
        "reason": {
            "error_count": count,
            "error_types": [
                {
                    "code": code,
                    "error_count": len(found),
                    "sample_errors": [sample(error) for error in found[:MOST_SAMPLES]],
                }
                for code, found in by_code.items()
            ],
        },
        "validation_start": time_text(errors[0]["arrived"]),
        "validation_end": time_text(now),
    }


def sample(error: Record) -> Record:
    """Return an error as a thin event's data shows it."""
    request = {"identifier": error["identifier"]}
    return {"error_message": error["message"], "request": request}
