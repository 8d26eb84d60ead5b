"""A meter's query: what is asked, which events count, and the rows of the answer."""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

from werkzeug.datastructures import MultiDict

from fakes.openmeter_http import (
    Problem,
    bad_request,
    missing_here,
    number_text,
    parse_time,
    time_text,
)
from fakes.openmeter_store import Store

WINDOWS = ("MINUTE", "HOUR", "DAY", "MONTH")
MOST = 100
TEXTS, LISTS = ("from", "to", "windowSize"), ("subject", "filterCustomerId", "groupBy")
OTHERS = ("windowTimeZone", "filterGroupBy", "advancedMeterGroupByFilters")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
MINUTE = timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Query:
    """What is asked of a meter."""

    start: datetime | None = None
    end: datetime | None = None
    window: str | None = None
    subjects: list[str] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    group_by: list[str] = field(default_factory=list)


@dataclass
class Group:
    """The events that one row is about, and their values (None for one without)."""

    events: list[dict[str, Any]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


def asked_in_url(args: MultiDict[str, str]) -> dict[str, Any]:
    """Return the query parameters that OpenMeter knows, as a body would have them."""
    asked: dict[str, Any] = {}
    for name, values in args.lists():
        known = name.split("[")[0]
        if known in (*TEXTS, *LISTS, *OTHERS):
            if "" in values:
                raise bad_request(f"{name} is empty")
            asked[known] = values if name in LISTS else values[0]
    check_form(asked)
    return asked


def asked_in_body(body: Any) -> dict[str, Any]:
    """Return what a body asks."""
    if not isinstance(body, dict):
        raise bad_request("the body is no object")
    for name in ("subject", "groupBy"):  # in a URL there may be more
        if isinstance(body.get(name), list) and len(body[name]) > MOST:
            raise bad_request(f"{name} has more than {MOST} items")
    check_form(body)
    return body


def check_form(asked: dict[str, Any]) -> None:
    """Refuse what the API document does not allow, whichever meter it is asked of."""
    for name in LISTS:
        values = asked.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise bad_request(f"{name} is no list of texts")
    if len(asked.get("filterCustomerId", [])) > MOST:
        raise bad_request(f"filterCustomerId has more than {MOST} items")
    for name in ("from", "to"):
        if name in asked:
            parse_time(asked[name], name)
    if asked.get("windowSize", "DAY") not in WINDOWS:
        raise bad_request(f"windowSize is not one of {', '.join(WINDOWS)}")
    if asked.get("windowTimeZone", "UTC") != "UTC":
        raise missing_here("windowTimeZone")
    for name in ("filterGroupBy", "advancedMeterGroupByFilters"):
        if name in asked:
            raise missing_here(name)


def parse_query(store: Store, meter: dict[str, Any], asked: dict[str, Any]) -> Query:
    """Return what is asked of a meter, if the meter and the customers allow it."""
    group_by = list(dict.fromkeys(asked.get("groupBy", [])))
    for name in group_by:
        if name not in ("subject", "customer_id", *meter.get("groupBy", {})):
            raise bad_request(f"invalid group by: {name}")
    customers = asked.get("filterCustomerId", [])
    owners = store.owners(customers)
    # A filter also groups; an empty list of subjects groups, and filters nobody out.
    if "subject" in asked and "subject" not in group_by:
        group_by.append("subject")
    if customers and "customer_id" not in group_by:
        group_by.append("customer_id")
    start = parse_time(asked["from"], "from") if "from" in asked else None
    end = parse_time(asked["to"], "to") if "to" in asked else None
    if start and end and start >= end:
        raise bad_request("from must be before to")
    if "customer_id" in group_by and not customers:
        raise bad_request("customer filter is required with customer_id group by")
    return Query(start, end, asked.get("windowSize"), asked.get("subject", []), owners, group_by)


def answer_query(store: Store, meter: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return the answer to a query as JSON."""
    query = parse_query(store, meter, asked)
    if store.clickhouse_is_down:
        raise Problem(500)
    rows = list(rows_of(meter, query, store.seen(meter["eventType"])))
    store.shuffle(rows)
    if query.window:
        rows.sort(key=lambda row: str(row["windowStart"]))
    heads = {"from": query.start, "to": query.end}
    head: dict[str, Any] = {name: time_text(at) for name, at in heads.items() if at}
    if query.window:
        head["windowSize"] = query.window
    # By hand, for json.dumps writes doubles in its own way.
    data = ",".join(
        f'{{"value":{number_text(row.pop("value"))},{json.dumps(row)[1:]}' for row in rows
    )
    return f'{json.dumps(head)[:-1]}{", " if head else ""}"data":[{data}]}}'


def rows_of(
    meter: dict[str, Any], query: Query, events: list[dict[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Yield a row for each group and window that has a value."""
    groups: dict[tuple[Any, ...], Group] = {}
    if not query.group_by and not query.window:
        groups[(None,)] = Group()  # SQL's row without a GROUP BY is there in any case
    for event in events:
        if counts(query, event):
            parts = [part_of(meter, query, event, name) for name in query.group_by]
            group = groups.setdefault((opened(event["at"], query.window), *parts), Group())
            group.events.append(event)
            group.values.append(value_of(event, meter))
    for (window, *parts), group in groups.items():
        value = AGGREGATIONS[meter["aggregation"]](group)
        if value is None:
            continue
        if not math.isfinite(value):
            raise Problem(500)
        first, last = span(query, window, [event["at"] for event in group.events])
        by_name = dict(zip(query.group_by, parts, strict=True))
        row = {
            "value": float(value),
            "windowStart": time_text(first),
            "windowEnd": time_text(last),
            "subject": by_name.pop("subject", None),
        }
        if "customer_id" in by_name:
            row["customerId"] = by_name.pop("customer_id")
        yield {**row, "groupBy": by_name}


def counts(query: Query, event: dict[str, Any]) -> bool:
    """Say whether a query asks for an event; its bounds are whole seconds in ClickHouse."""
    at = event["at"]
    if query.start and at < query.start.replace(microsecond=0):
        return False
    if query.end and at >= query.end.replace(microsecond=0):
        return False
    if query.owners and event["subject"] not in query.owners:
        return False
    return not query.subjects or event["subject"] in query.subjects


def part_of(meter: dict[str, Any], query: Query, event: dict[str, Any], name: str) -> str:
    """Return what an event has of a thing to group by."""
    if name == "subject":
        return str(event["subject"])
    if name == "customer_id":
        return query.owners[event["subject"]]
    return text_at(event, meter["groupBy"][name])


def opened(at: datetime, window: str | None) -> datetime | None:
    """Return the start of the window that holds an instant, in UTC."""
    if window is None:
        return None
    at = at.replace(second=0)
    if window == "MINUTE":
        return at
    at = at.replace(minute=0)
    if window == "HOUR":
        return at
    at = at.replace(hour=0)
    return at if window == "DAY" else at.replace(day=1)


def closed(start: datetime, window: str | None) -> datetime:
    """Return the end of a window."""
    if window == "MONTH":
        return (start + timedelta(days=31)).replace(day=1)
    return start + {"HOUR": timedelta(hours=1), "DAY": timedelta(days=1)}.get(window or "", MINUTE)


def span(query: Query, window: datetime | None, times: list[datetime]) -> tuple[datetime, datetime]:
    """Return a row's period: its window, or what was asked for, or the minutes of its events."""
    if window is not None:
        return window, closed(window, query.window)
    first, last = min(times, default=EPOCH), max(times, default=EPOCH)
    return query.start or first.replace(second=0), query.end or last.replace(second=0) + MINUTE


def text_at(event: dict[str, Any], path: str) -> str:
    """Return what stands at a path, as ClickHouse's JSON_VALUE: nothing for what is not there."""
    value: Any = event.get("data")
    for step in path.split(".")[1:]:
        value = value.get(step, "") if isinstance(value, dict) else ""
    if isinstance(value, dict | list):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def value_of(event: dict[str, Any], meter: dict[str, Any]) -> Any:
    """Return what a meter counts in an event, or None."""
    if meter["aggregation"] == "COUNT":
        return 1
    text = text_at(event, meter["valueProperty"])
    if meter["aggregation"] == "UNIQUE_COUNT":
        return None if text == "null" else text
    number = float(text) if NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def over_numbers(total: Callable[[list[float]], float]) -> Callable[[Group], float | None]:
    """Return an aggregation over the values that are numbers; None if there is none."""

    def aggregate(group: Group) -> float | None:
        numbers = [value for value in group.values if value is not None]
        return total(numbers) if numbers else None

    return aggregate


def plain_sum(numbers: list[float]) -> float:
    """Add doubles up without the compensation that Python's own sum has since 3.12."""
    return reduce(operator.add, numbers)


def latest(group: Group) -> float | None:
    """Return the value of the latest second; which of two there is the last one to come."""
    pairs = zip(group.events, group.values, strict=True)
    valued = [
        (event["at"], n, value) for n, (event, value) in enumerate(pairs) if value is not None
    ]
    return max(valued)[2] if valued else None


AGGREGATIONS: dict[str, Callable[[Group], float | None]] = {
    "SUM": over_numbers(plain_sum),
    "COUNT": lambda group: len(group.values),
    "AVG": over_numbers(lambda numbers: plain_sum(numbers) / len(numbers)),
    "MIN": over_numbers(min),
    "MAX": over_numbers(max),
    "UNIQUE_COUNT": lambda group: len(set(group.values) - {None}),
    "LATEST": latest,
}
