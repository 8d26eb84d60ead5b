"""The pages of OpenMeter's stand-in: meters, subjects, usage to send, and totals by hour."""

import json
import re
import uuid
from datetime import UTC, datetime
from typing import Any

from flask import Flask, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from fakes.openmeter_http import bad_request
from fakes.openmeter_query import answer_query
from fakes.openmeter_store import EITHER, Store
from fakes.pages import create_room, moment

NAVIGATION = (("Meters", "/metering/meters"), ("Subjects", "/metering/subjects"))
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MOST_HOURS, MOST_EVENTS = 24, 20
# Of a chart, in the SVG's own units.
WIDTH, HEIGHT, FLOOR, TOP, WIDEST = 720, 220, 180, 24, 60

Answer = str | Response | tuple[str, int]


def create_pages(store: Store) -> Flask:
    """Return the pages of a store."""
    app = create_room("fakes.pages.openmeter", "/metering", "/metering/meters")
    app.jinja_env.globals.update(stands_for="OpenMeter", other="Stripe", navigation=NAVIGATION)

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        said = error.description or f"OpenMeter answers {error.code}."
        return render_template("error.html", problem=said), error.code or 500

    @app.get("/metering/meters")
    def meters() -> str:
        found = list(store.meters.values())
        return render_template("meters.html", title="Meters", meters=found)

    @app.get("/metering/meters/<slug>")
    def meter(slug: str) -> str:
        found = store.meter(slug)
        totals = rows_of(store, found, groupBy=["subject"])
        hours = chart(rows_of(store, found, windowSize="HOUR"))
        about = {"totals": sorted(totals, key=lambda row: str(row["subject"])), "chart": hours}
        return render_template("meter.html", title=found["slug"], meter=found, **about)

    @app.get("/metering/subjects")
    def subjects() -> str:
        found = dict.fromkeys(event["subject"] for event in store.events[::-1])
        return render_template("subjects.html", title="Subjects", subjects=list(found))

    @app.get("/metering/subject")
    def subject() -> str:
        return subject_page(store, request.args.get("name", ""))

    @app.post("/metering/subject")
    def send() -> Answer:
        name = request.form.get("name", "")
        try:
            store.ingest(EITHER, usage_event(store, name))
        except (HTTPException, ValueError) as error:
            return subject_page(store, name, getattr(error, "description", None) or str(error)), 400
        meter, at = request.form.get("meter"), request.form.get("at") or None
        return redirect(url_for("subject", name=name, meter=meter, at=at, done="sent"), 303)

    return app


def subject_page(store: Store, name: str, problem: str = "") -> str:
    """Return the page of a subject: a form that sends usage, and what each meter has of it."""
    if not name:
        raise bad_request("a subject has a name")
    counted = []
    for meter in store.meters.values():
        if total := rows_of(store, meter, subject=[name]):
            hours = chart(rows_of(store, meter, subject=[name], windowSize="HOUR"))
            counted.append({"slug": meter["slug"], "total": total[0]["value"], "chart": hours})
    events = [event for event in store.events[::-1] if event["subject"] == name]
    about = {
        "title": name,
        "meters": list(store.meters.values()),
        "chosen": request.values.get("meter", ""),
        "at": request.values.get("at", ""),
        "was_sent": request.args.get("done") == "sent",
        "problem": problem,
        "counted": counted,
        "events": [event_row(event) for event in events[:MOST_EVENTS]],
        "older": max(0, len(events) - MOST_EVENTS),
    }
    return render_template("subject.html", **about)


def event_row(event: dict[str, Any]) -> dict[str, str]:
    """Return an event for a reader."""
    data = json.dumps(event.get("data", {}))
    return {"at": hour_text(event["at"], "%H:%M:%S"), "type": event["type"], "data": data}


def usage_event(store: Store, subject: str) -> dict[str, Any]:
    """Return the CloudEvent of the usage in the form. Raises Problem, or ValueError for a time."""
    meter = store.meter(request.form.get("meter", ""))
    at = moment(request.form.get("at", ""), lambda: datetime.now(UTC))
    data: Any = {}
    if "valueProperty" in meter:
        text = request.form.get("value", "").strip()
        if not text:
            raise ValueError("a value is missing")
        data = json.loads(text) if NUMBER.fullmatch(text) else text
        for step in reversed(meter["valueProperty"].split(".")[1:]):
            data = {step: data}
    event = {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "stand-in's page"}
    event |= {"type": meter["eventType"], "subject": subject, "time": at.isoformat()}
    return event | {"data": data}


def rows_of(store: Store, meter: dict[str, Any], **asked: Any) -> list[dict[str, Any]]:
    """Return the rows of a query, as its API answers it. Raises Problem."""
    # Values stay as they are written, for a reader is to see what the API says.
    found = json.loads(answer_query(store, meter, asked), parse_float=str, parse_int=str)
    rows: list[dict[str, Any]] = found["data"]
    return rows


def hour_text(at: datetime, clock: str = "%H:%M") -> str:
    """Return a time for a reader."""
    return at.strftime(f"%Y-%m-%d {clock}")


def chart(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a bar for each of the last hours that have usage, the tallest one up to the top."""
    if not rows:
        return None
    found = sorted(rows, key=lambda row: str(row["windowStart"]))
    shown = found[-MOST_HOURS:]
    values = [max(0.0, float(row["value"])) for row in shown]
    scale = (FLOOR - TOP) / (max(values) or 1)
    step = WIDTH / max(len(shown), 6)
    width = min(step * 0.7, WIDEST)
    bars, days = [], set()
    for n, (row, value) in enumerate(zip(shown, values, strict=True)):
        hour = datetime.fromisoformat(row["windowStart"])
        day, height = hour.strftime("%m-%d"), value * scale
        middle = step * n + step / 2
        bar = {"x": round(middle - width / 2, 1), "middle": round(middle, 1)}
        bar |= {"y": round(FLOOR - height, 1), "height": round(height, 1)}
        bars.append({**bar, "value": row["value"], "hour": f"{hour:%H}h", "at": hour_text(hour)})
        bars[-1]["day"] = "" if day in days else day
        days.add(day)
    sizes = {"width": WIDTH, "height": HEIGHT, "floor": FLOOR, "bar": round(width, 1)}
    return {"bars": bars, "older": len(found) - len(shown), **sizes}
