"""The shapes of Stripe's objects by API version, and how an object differs from its shape."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from fakes.processes import ROOT

Json = dict[str, Any]


@cache
def shapes(version: str) -> Json:
    """Return the shape of each kind of object, with what it refers to by `#/$defs/…`."""
    text = (ROOT / "tests" / "specs" / f"stripe-{version}.json").read_text()
    found: Json = json.loads(text)["$defs"]
    return found


@cache
def validator(version: str, kind: str, *, required: bool) -> Draft202012Validator:
    """Return what holds an object against its shape.

    Without `required`, fields may be missing, here and in each object inside. With it, only this
    object's own fields are looked at, not those of the objects of other kinds in it.
    """
    known = shapes(version)
    if required:
        return Draft202012Validator(without(known[kind], "$ref"))
    return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": without(known, "required")})


def without(node: Any, keyword: str) -> Any:
    """Return a shape without a keyword; `required` as a field's name stays."""
    if isinstance(node, list):
        return [without(part, keyword) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        name: without(part, keyword)
        for name, part in node.items()
        if name != keyword or isinstance(part, dict)
    }


def differences(found: Json, version: str) -> Iterator[str]:
    """Yield what an object has otherwise than its kind in a version, as `kind.path: why`."""
    kind = kind_of(found)
    for error in validator(version, kind, required=False).iter_errors(found):
        yield f"{place(kind, error.absolute_path)}: {error.message}"


def missing(found: Json, version: str) -> Iterator[str]:
    """Yield each field that an object of its kind always has and this one lacks."""
    kind = kind_of(found)
    for error in validator(version, kind, required=True).iter_errors(found):
        if error.validator == "required":
            name = error.message.split("'")[1]
            yield f"{place(kind, error.absolute_path)}.{name}"


def kind_of(found: Json) -> str:
    """Return the kind of an object; a thin event and what was deleted are of their own."""
    if found["object"] == "v2.core.event":
        return str(found["type"])
    return f"deleted_{found['object']}" if found.get("deleted") else str(found["object"])


def place(kind: str, path: Any) -> str:
    """Return where in an object something is, whichever entry of a list it is."""
    return ".".join([kind, *(step for step in path if isinstance(step, str))])
