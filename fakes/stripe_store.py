"""The objects of a Stripe account, its clocks, and the errors that Stripe answers with."""

import itertools
import time
from collections.abc import Mapping
from typing import Any

BASIL = "2025-03-31"

Record = dict[str, Any]


class StripeError(Exception):
    """An error answer of Stripe's."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        kind = "idempotency_error" if code == "idempotency" else "invalid_request_error"
        self.status = status
        self.body = {"type": kind, "message": message, "param": param, "code": code}


def missing(kind: str, key: object, param: str) -> StripeError:
    """Return Stripe's answer for an object that is not there."""
    name = kind.replace("_", " ")
    return StripeError(404, f"No such {name}: '{key}'", param, "resource_missing")


def integer(value: object, name: str) -> int:
    """Return a form's whole number."""
    try:
        return int(str(value))
    except ValueError as error:
        raise StripeError(
            400, f"Invalid integer: {value}", name, "parameter_invalid_integer"
        ) from error


def is_true(value: object) -> bool:
    """Read a form's truth value, or JSON's."""
    return value is True or value == "true"


def choice(value: object, name: str, *known: str) -> str:
    """Return a form's value if it is one of those that Stripe knows."""
    if value not in known:
        raise StripeError(400, f"Invalid {name}: must be one of {', '.join(known)}", name)
    return str(value)


def merge_metadata(record: Record, form: Mapping[str, Any]) -> None:
    """Merge a form's metadata; an empty value removes a key."""
    merged = {**record["metadata"], **form.get("metadata", {})}
    record["metadata"] = {key: value for key, value in merged.items() if value != ""}


class Clock:
    """How far Stripe's time is ahead of this machine's, in seconds, or behind (negative)."""

    ahead = 0


class Store:
    """All objects, by kind and id, oldest first. Times are UTC seconds."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Record]] = {}
        self.clock = Clock()
        self.numbers = itertools.count(1)

    def now(self, test_clock: str | None = None) -> int:
        """Return the time of a test clock, or else Stripe's."""
        if test_clock:
            return int(self.get("test_clock", test_clock)["frozen_time"])
        return int(time.time()) + self.clock.ahead

    def add(self, kind: str, prefix: str, **fields: Any) -> Record:
        """Store a new object."""
        key = f"{prefix}_{next(self.numbers):08d}"
        created = self.now(fields.get("test_clock"))
        record = {"id": key, "created": created, "livemode": False, "metadata": {}, **fields}
        self.objects.setdefault(kind, {})[key] = record
        return record

    def get(self, kind: str, key: object, param: str = "id") -> Record:
        """Return an object, or raise Stripe's 404."""
        record = self.objects.get(kind, {}).get(str(key))
        if record is None:
            raise missing(kind, key, param)
        return record

    def all(self, kind: str) -> list[Record]:
        """Return the objects of a kind, oldest first."""
        return list(self.objects.get(kind, {}).values())
