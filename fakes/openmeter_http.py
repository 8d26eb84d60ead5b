"""How OpenMeter says things: problem documents, times, numbers and ids."""

import json
import random
import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any

from flask import Response, jsonify
from werkzeug.exceptions import HTTPException

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Problem(HTTPException):
    """An error in OpenMeter's form, `application/problem+json`."""

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(detail)
        self.code = status

    def get_response(self, *_: Any, **__: Any) -> Response:
        """Return the problem document; a 500 keeps to itself what went wrong."""
        status = HTTPStatus(self.code or 500)
        problem = {
            "type": "about:blank",
            "title": status.phrase,
            "status": status.value,
            "instance": f"urn:request:{id(self)}",
        }
        if self.description and status != HTTPStatus.INTERNAL_SERVER_ERROR:
            problem["detail"] = self.description
        response = jsonify(problem)
        response.status_code = status.value
        response.content_type = "application/problem+json"
        return response


def bad_request(detail: str) -> Problem:
    """Return OpenMeter's 400."""
    return Problem(400, detail)


def missing_here(what: str) -> Problem:
    """Say that the real one can do something, which OpenMeter never answers itself."""
    return Problem(501, f"this stand-in does not have {what}")


def parse_json(body: bytes) -> Any:
    """Return what a body says, by the rules of JSON alone: no NaN, no infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is no JSON: {error}") from error


def parse_time(text: Any, name: str) -> datetime:
    """Return an RFC 3339 time in its own time zone."""
    refused = bad_request(f"{name} is no RFC 3339 time with a time zone: {text}")
    if not isinstance(text, str) or not RFC3339.fullmatch(text):
        raise refused
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise refused from error


def time_text(moment: datetime) -> str:
    """Return a time as Go writes it: a fraction without zeros at its end, Z for UTC."""
    whole, fraction, zone = (
        moment.strftime("%Y-%m-%dT%H:%M:%S"),
        f"{moment.microsecond:06d}".rstrip("0"),
        moment.isoformat()[-6:].replace("+00:00", "Z"),
    )
    return whole + (f".{fraction}" if fraction else "") + zone


def number_text(value: float) -> str:
    """Return a double as Go writes it in JSON: `10`, `0.00001`, `1e-9`, `1e+21`."""
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:  # the bounds of Go's encoding/json
        return f"{Decimal(repr(value)).normalize():f}"
    return re.sub(r"e-0?", "e-", repr(value))


def ulid() -> str:
    """Return a new ULID: 48 bits of the time in milliseconds, 80 bits by chance."""
    number = time.time_ns() // 1_000_000 << 80 | random.getrandbits(80)
    return "".join(CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def now_text() -> str:
    """Return the time now."""
    return time_text(datetime.now(UTC))
