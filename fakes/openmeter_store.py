"""What the stand-in of OpenMeter keeps: meters, customers and events, each checked as it comes."""

import random
import re
import threading
import time
from datetime import UTC, datetime
from typing import Any

from fakes.openmeter_http import Problem, bad_request, missing_here, now_text, parse_time, ulid

AGGREGATIONS = ("SUM", "COUNT", "AVG", "MIN", "MAX", "UNIQUE_COUNT", "LATEST")
SLUG = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")
PATH = re.compile(r"\$(\.\w+)+")
GROUP_NAME = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")
SPEC_VERSIONS = ("0.3", "1.0")
EVENT_FIELDS = ("id", "source", "specversion", "type", "subject")
SINGLE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
EITHER = "application/json"
DEFAULT_METER = {
    "slug": "m1",
    "aggregation": "SUM",
    "eventType": "execution",
    "valueProperty": "$.duration",
}


class Store:
    """Meters, customers and events, and what `/_fake/...` says of how they are worked on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.meters: dict[str, dict[str, Any]] = {}
        self.customers: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.known: set[tuple[str, str]] = set()
        self.order = random.Random(0)
        self.dedupes = False
        self.clickhouse_is_down = False
        # How long an event takes from its acceptance until a query sees it.
        self.lag_seconds = 0.0
        self.stalled_since: float | None = None

    def meter(self, key: str) -> dict[str, Any]:
        """Return a meter by its slug or id."""
        if len(key) > 64 or not (SLUG.fullmatch(key) or ULID.fullmatch(key)):
            raise bad_request(f"meterIdOrSlug is neither a slug nor a ULID: {key}")
        for meter in self.meters.values():
            if key in (meter["slug"], meter["id"]):
                return meter
        raise Problem(404, f"meter not found: {key}")

    def add_meter(self, fields: Any) -> dict[str, Any]:
        """Create a meter."""
        made = checked_meter(fields)
        if self.clickhouse_is_down and ("valueProperty" in made or "groupBy" in made):
            raise Problem(500)  # ClickHouse is asked whether the paths are good ones
        with self.lock:
            if made["slug"] in self.meters:
                raise Problem(409, "meter with the same slug already exists")
            now = now_text()
            made |= {"id": ulid(), "createdAt": now, "updatedAt": now}
            self.meters[made["slug"]] = made
        return made

    def add_customer(self, fields: Any) -> dict[str, Any]:
        """Create a customer, whose usage is that of its key and of its subjects."""
        made = checked_customer(fields)
        with self.lock:
            taken = {subject for other in self.customers.values() for subject in subjects_of(other)}
            if taken & set(subjects_of(made)):
                raise Problem(409, "a key or subject is another customer's")
            now = now_text()
            made |= {"id": ulid(), "createdAt": now, "updatedAt": now}
            self.customers[made["id"]] = made
        return made

    def owners(self, ids: list[str]) -> dict[str, str]:
        """Return the customer of each subject that some customers own."""
        owners: dict[str, str] = {}
        for key in ids:
            if key not in self.customers:
                raise Problem(404, f"customer with id {key} not found")
            owners |= dict.fromkeys(subjects_of(self.customers[key]), key)
        return owners

    def ingest(self, content_type: str | None, body: Any) -> None:
        """Store CloudEvents, all or none; only with dedupe does a source and id count once."""
        events = [checked_event(event) for event in events_in(content_type, body)]
        sent = time.time()
        with self.lock:
            for event in events:
                key = (event["source"], event["id"])
                if self.dedupes and key in self.known:
                    continue
                if self.dedupes:
                    self.known.add(key)
                self.events.append({**event, "sent": sent})

    def seen(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a type that queries see: they are worked on some time later."""
        with self.lock:
            until = time.time() if self.stalled_since is None else self.stalled_since
            until -= self.lag_seconds
            return [
                event for event in self.events if event["type"] == kind and event["sent"] <= until
            ]

    def shuffle(self, rows: list[Any]) -> None:
        """Put rows in an order that nobody can count on."""
        with self.lock:
            self.order.shuffle(rows)


def checked_meter(fields: Any) -> dict[str, Any]:
    """Return a new meter without its id and times."""
    if not isinstance(fields, dict):
        raise bad_request("the body is no object")
    for name in ("slug", "aggregation", "eventType"):
        if not is_text(fields.get(name)):
            raise bad_request(f"{name} is required")
    for name in ("name", "valueProperty", "description"):
        if name in fields and not is_text(fields[name]):
            raise bad_request(f"{name} is no text")
    slug, aggregation = fields["slug"], fields["aggregation"]
    if len(slug) > 64 or not SLUG.fullmatch(slug):
        raise bad_request(f"slug has another form: {slug}")
    if aggregation not in AGGREGATIONS:
        raise bad_request(f"unknown aggregation: {aggregation}")
    if (aggregation == "COUNT") == ("valueProperty" in fields):
        wanted = "not allowed" if aggregation == "COUNT" else "required"
        raise bad_request(f"valueProperty is {wanted} for {aggregation}")
    if "valueProperty" in fields:
        check_path(fields["valueProperty"], "valueProperty")
    groups = fields.get("groupBy", {})
    if not isinstance(groups, dict) or not all(map(GROUP_NAME.fullmatch, groups)):
        raise bad_request("groupBy is no object of names and paths")
    for name, path in groups.items():
        check_path(path, f"groupBy {name}")
    if "eventFrom" in fields:
        raise missing_here("eventFrom")
    optional = ("description", "valueProperty")
    return {
        "slug": slug,
        "name": fields.get("name", slug),
        "aggregation": aggregation,
        "eventType": fields["eventType"],
        "annotations": None,
        "metadata": fields.get("metadata"),
        **{name: fields[name] for name in optional if name in fields},
        **({"groupBy": groups} if groups else {}),
    }


def check_path(path: Any, name: str) -> None:
    """Refuse a path that is no JSONPath, and one of a form that only the real one knows."""
    if isinstance(path, str) and PATH.fullmatch(path):
        return
    if isinstance(path, str) and re.match(r"\$(\[|\..*[\[*])", path):
        raise missing_here(f"a path as in {name}: {path}")
    raise bad_request(f"{name} is no path that begins with $.: {path}")


def checked_customer(fields: Any) -> dict[str, Any]:
    """Return a new customer without its id and times."""
    if not isinstance(fields, dict) or not is_text(fields.get("name")):
        raise bad_request("name is required")
    attribution = fields.get("usageAttribution", {"subjectKeys": []})
    subjects = attribution.get("subjectKeys") if isinstance(attribution, dict) else None
    if not isinstance(subjects, list) or not all(map(is_text, subjects)):
        raise bad_request("usageAttribution.subjectKeys is no list of subjects")
    if "key" in fields and not is_text(fields["key"]):
        raise bad_request("key is no text")
    if "key" not in fields and not subjects:
        raise bad_request("either key or usageAttribution.subjectKeys must be provided")
    names = ("name", "key", "usageAttribution", "metadata")
    return {name: fields[name] for name in names if fields.get(name)}


def subjects_of(customer: dict[str, Any]) -> list[str]:
    """Return the subjects whose usage is a customer's; its key is one of them."""
    attributed: list[str] = customer.get("usageAttribution", {}).get("subjectKeys", [])
    return [customer["key"], *attributed] if "key" in customer else attributed


def events_in(content_type: str | None, body: Any) -> list[Any]:
    """Return the CloudEvents in a body of a type that OpenMeter takes; parameters are refused."""
    if content_type not in (SINGLE, BATCH, EITHER):
        raise bad_request(f"invalid content type: {content_type}")
    if isinstance(body, list) == (content_type == SINGLE) and content_type != EITHER:
        raise bad_request(f"this is no {content_type}")
    events = body if isinstance(body, list) else [body]
    if not events:
        raise bad_request("no events found")
    return events


def checked_event(event: Any) -> dict[str, Any]:
    """Return a CloudEvent with its second as `at`; an event without a time happened now."""
    if not isinstance(event, dict):
        raise bad_request("an event is no object")
    for name in EVENT_FIELDS:
        if not is_text(event.get(name)):
            raise bad_request(f"{name} is required")
    if event["specversion"] not in SPEC_VERSIONS:
        raise bad_request(f"unknown specversion: {event['specversion']}")
    if event.get("datacontenttype") not in (None, "application/json"):
        raise bad_request("datacontenttype is not application/json")
    data = event.get("data")
    if data is not None and not isinstance(data, dict):
        raise bad_request("data is no object")
    if data is not None and None in data.values():
        raise bad_request("a value in data is null")  # deeper ones may be
    given = event.get("time")
    at = datetime.now(UTC) if given is None else parse_time(given, "time").astimezone(UTC)
    return {**event, "at": at.replace(microsecond=0)}  # ClickHouse keeps no more


def is_text(value: Any) -> bool:
    """Say whether a value is a text with something in it."""
    return isinstance(value, str) and value != ""
