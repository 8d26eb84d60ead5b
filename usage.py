"""What OpenMeter counted: windows, the query, exact totals.

Knows no object of Stripe's, and reads no setting, request or clock. Times are UTC.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_UP, ROUND_UP, Decimal
from http.client import FORBIDDEN, NOT_FOUND, OK, UNAUTHORIZED
from typing import Any
from urllib.parse import quote

import openmeter
from corehttp.exceptions import BaseError
from corehttp.rest import HttpRequest, HttpResponse

# The most subjects that one query takes (openmeter.io/docs/api, queryMeterPost).
MAX_SUBJECTS = 100
WINDOW_SECONDS = {"MINUTE": 60, "HOUR": 3_600, "DAY": 86_400}
ROUNDING = {"down": ROUND_DOWN, "half-up": ROUND_HALF_UP, "up": ROUND_UP}

# Above it, a JSON number is no longer exact (OpenMeter's value is a JSON double).
MAX_QUANTITY = 2**53
NINE_DECIMALS = Decimal("1e-9")
EXACT_JSON = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal)
# A ULID, and for {meterIdOrSlug} a slug, too, as OpenMeter's API document has them
# (openmeter.io/docs/api).
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{25}")
METER = re.compile(rf"[a-z0-9]+(?:_[a-z0-9]+)*|{ULID.pattern}")


class QueryFailed(Exception):
    """Say why OpenMeter gave no total now; a later query may succeed."""


@dataclass(frozen=True, slots=True)
class OpenMeterCustomer:
    """A customer of OpenMeter's by its ULID: who counts it counts its key and all its subjects."""

    id: str

    def __str__(self) -> str:
        return f"om_customer {self.id}"


# Whose usage is counted. A subject whose text is a customer's ULID is not that customer.
Whose = str | OpenMeterCustomer


def whose_text(whose: Whose) -> str:
    """Say whose usage is counted, for a person."""
    return f"subject {whose!r}" if isinstance(whose, str) else str(whose)


def window_start_at(seconds: int, window: int) -> datetime:
    """Return the start of the window (its length in seconds) that holds a UTC second."""
    return datetime.fromtimestamp(seconds - seconds % window, UTC)


def total(
    client: openmeter.Client, meter: str, whose: Whose | None, start: datetime, end: datetime
) -> Decimal | None:
    """Ask OpenMeter for a total in [start, end), in the meter's own aggregation.

    It is a subject's, that of all subjects of a customer together, or, of None, everybody's. None
    means an answer without rows: no usage, or a subject that OpenMeter does not know. Of a
    customer that it does not know it answers 404. Raises QueryFailed, naming the meter.
    """
    if start >= end:
        return Decimal(0)  # OpenMeter refuses an empty period
    query, customer = f"from={rfc3339(start)}&to={rfc3339(end)}", ""
    if isinstance(whose, OpenMeterCustomer):
        customer = whose.id
        query = f"filterCustomerId={customer}&{query}"
    elif whose is not None:
        query = f"subject={quote(whose, safe='')}&{query}"
    target = f"/api/v1/meters/{meter}/query?{query}"
    try:
        body = fetch_body(client, HttpRequest("GET", target), customer=customer, meter=meter)
        return parse_total(body, customer)
    except QueryFailed as error:
        raise QueryFailed(f"meter {meter}: {error}") from error


def totals(
    client: openmeter.Client,
    meter: str,
    subjects: list[str] | OpenMeterCustomer | None,
    start: datetime,
    end: datetime,
) -> dict[str, Decimal]:
    """Ask OpenMeter for the totals of up to 100 subjects in [start, end), as `total` does for one.

    Of a customer, it is those of each of its subjects; without subjects, all that there are. One
    without rows is left out. Raises QueryFailed, naming the meter.
    """
    if start >= end or subjects == []:
        return {}
    query: dict[str, Any] = {"from": rfc3339(start), "to": rfc3339(end), "groupBy": ["subject"]}
    customer = ""
    if isinstance(subjects, OpenMeterCustomer):
        customer = subjects.id
        query["filterCustomerId"] = [customer]
    elif subjects is not None:
        query["subject"] = subjects
    request = HttpRequest("POST", f"/api/v1/meters/{meter}/query", json=query)
    try:
        body = fetch_body(client, request, customer=customer, meter=meter)
        found = parse_totals(body, customer)
    except QueryFailed as error:
        raise QueryFailed(f"meter {meter}: {error}") from error
    if not isinstance(subjects, list):
        return found
    return {name: found[name] for name in subjects if name in found}


def rfc3339(moment: datetime) -> str:
    """Return a UTC time as OpenMeter's queries take it."""
    return f"{moment.replace(tzinfo=None).isoformat()}Z"


def openmeter_state(client: openmeter.Client, meter: str, at: datetime) -> str:
    """Return `ok` if OpenMeter answers a query of a meter's last whole minute, or why it does not.

    Its list of meters, which is asked where no meter is known, needs no store of usage.
    """
    try:
        if meter:
            total(client, meter, None, at - timedelta(minutes=1), at)
        else:
            fetch_body(client, HttpRequest("GET", "/api/v1/meters?pageSize=1"))
    except QueryFailed as error:
        return str(error)
    return "ok"


def fetch_body(client: openmeter.Client, request: HttpRequest, **named: str) -> str:
    """Return the body that OpenMeter answers a request with, which names what there has to be.

    Raises QueryFailed.
    """
    try:
        # Not the typed call: it turns the numbers into floats before anybody can see them.
        response = client.send_request(request)
    except BaseError as error:
        cause = cause_text(error.inner_exception or error)
        raise QueryFailed(f"OpenMeter did not answer ({cause})") from error
    if response.status_code != OK:
        raise QueryFailed(f"OpenMeter answered {problem_text(response, named)}")
    # JSON is UTF-8 (RFC 8259); whatever is not, cannot be parsed.
    return response.content.decode("utf-8-sig", errors="replace")


def cause_text(error: BaseException) -> str:
    """Return what the transport noted of an error, such as the address; else what kind it is."""
    return "; ".join(getattr(error, "__notes__", [])) or type(error).__name__


def problem_text(response: HttpResponse, named: Mapping[str, str]) -> str:
    """Return the status, and the detail of an `application/problem+json` (RFC 9457).

    OpenMeter's 404 of a customer or a meter names it; any other is of a path that it has not.
    """
    status = response.status_code
    try:
        detail = one_line(json.loads(response.content)["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        detail = ""
    if status == NOT_FOUND:
        is_problem = str(response.content_type).startswith("application/problem+json")
        for kind, name in named.items():
            if name and name in detail and is_problem:
                return f"{status}, no such {kind}: {detail}"
        return (
            f"{status}, no such path: OPENMETER_URL leads to something else, or has a path too many"
        )
    is_of_token = status in (UNAUTHORIZED, FORBIDDEN)
    return f"{status}: {detail}" if detail and not is_of_token else str(status)


def parse_total(body: str, customer: str = "") -> Decimal | None:
    """Return the one total in an answer, or None if it has no rows. Raises QueryFailed."""
    rows = parse_rows(body, customer)
    if len(rows) > 1:
        raise QueryFailed(f"OpenMeter answered {len(rows)} totals instead of one")
    return normalized_total(rows[0]["value"]) if rows else None


def parse_totals(body: str, customer: str = "") -> dict[str, Decimal]:
    """Return the totals in an answer by their subject. Raises QueryFailed."""
    found: dict[str, Decimal] = {}
    for row in parse_rows(body, customer):
        subject = row.get("subject")
        if subject is None:
            continue  # usage without a subject is nobody's
        if not isinstance(subject, str):
            raise QueryFailed("OpenMeter's answer is unreadable")
        if subject in found:
            raise QueryFailed(f"OpenMeter answered two totals of the subject {one_line(subject)}")
        found[subject] = normalized_total(row["value"])
    return found


def parse_rows(body: str, customer: str) -> list[dict[str, Any]]:
    """Return the rows of an answer, each with a value, and of a customer's where it was asked for.

    OpenMeter ignores parameters that it does not know, so a version without customers would
    answer everybody's usage. Raises QueryFailed.
    """
    try:
        rows = EXACT_JSON.decode(body)["data"]
    except (ValueError, LookupError, TypeError, RecursionError, ArithmeticError) as error:
        raise QueryFailed("OpenMeter's answer is unreadable") from error
    is_list = isinstance(rows, list)
    if not is_list or not all(isinstance(row, dict) and "value" in row for row in rows):
        raise QueryFailed("OpenMeter's answer is unreadable")
    if customer and any(row.get("customerId") != customer for row in rows):
        raise QueryFailed("OpenMeter answered other usage than that customer's: is it too old?")
    return list(rows)


def normalized_total(value: Any) -> Decimal:
    """Return OpenMeter's value without float noise, which is all beyond nine decimals.

    It can be negative, by corrections. Raises QueryFailed if it is no number, not finite, or
    beyond 2**53 either way.
    """
    if not isinstance(value, Decimal) or not value.is_finite():
        raise QueryFailed(f"the total is no finite number: {one_line(value)}")
    if not -MAX_QUANTITY <= value <= MAX_QUANTITY:
        raise QueryFailed(f"the total {one_line(value)} is beyond 2**53 and no longer exact")
    rounded = value.quantize(NINE_DECIMALS)
    return rounded if rounded else abs(rounded)  # a zero without a sign


def whole_quantity(exact: Decimal, rounding: str) -> int:
    """Return a total as a whole number, rounded `down`, `half-up` or `up`."""
    return int(exact.to_integral_value(ROUNDING[rounding]))


def one_line(text: object) -> str:
    """Return a text on one printable line of 300 characters at most."""
    line = str(text)[:1_000]
    if not line.isprintable():
        line = "".join(char if char.isprintable() else " " for char in line)
    return " ".join(line.split())[:300]
