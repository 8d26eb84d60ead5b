"""The calls to Stripe that stand in the source: method, path and the parameters that it names."""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl

from fakes.processes import ROOT
from tests.contract.conftest import Sent

# What leads to `stripe_api.send`, with its method where the name says it.
WIRE = {
    "call": "",
    "call_once": "",
    "fetch_object": "GET",
    "iter_pages": "GET",
    "list_all": "GET",
    "list_marked": "GET",
    "list_page": "GET",
    "listed": "GET",
    "post_latest": "POST",
    "post_object": "POST",
}
ROOMS = ("audit", "billing", "probe")
SCRIPT = re.compile(r"client\.v1\.(.+)\.(create|list)")
OPTIONS = {"idempotency_key", "stripe_version"}
ANY = "[^/?]+"


class Written(NamedTuple):
    """A call as it stands in the source; `path` is a pattern."""

    where: str
    method: str
    path: str
    names: frozenset[str]

    def is_made_by(self, sent: Sent) -> bool:
        """Say whether a request is such a call."""
        path, _, query = sent.path.partition("?")
        named = {name.split("[")[0] for name, _ in parse_qsl(query or sent.form)}
        return (
            sent.method == self.method
            and re.fullmatch(self.path, path) is not None
            and self.names <= named
        )


def written() -> Iterator[Written]:
    """Yield each call to Stripe of the service, its commands, the probe and the script."""
    rooms = [ROOT / "app.py", *(p for name in ROOMS for p in ROOT.glob(f"{name}/*.py"))]
    for path in sorted(rooms):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield from calls_of(node, f"{path.relative_to(ROOT)} {node.name}")
    yield from calls_of_script()


def calls_of(function: ast.FunctionDef, where: str) -> Iterator[Written]:
    """Yield a function's calls, but those whose path its caller gives."""
    for node in ast.walk(function):
        name = called(node)
        if isinstance(node, ast.Call) and name in WIRE:
            method = WIRE[name] or str(ast.literal_eval(node.args[1])).upper()
            names = {keyword.arg for keyword in node.keywords if keyword.arg} - OPTIONS
            paths = patterns(node) or patterns(function)
            is_given = "path" in {argument.arg for argument in function.args.args}
            assert paths or is_given, f"{where} has a call whose path is not seen"
            yield from (Written(where, method, path, frozenset(names)) for path in paths)
        elif isinstance(node, ast.Call) and name == "write_note":
            path = f"/v1/{ast.literal_eval(node.args[0])}s/{ANY}"
            yield Written(where, "POST", path, frozenset({"metadata"}))


def calls_of_script() -> Iterator[Written]:
    """Yield the calls of setup_stripe.py, which has typed ones."""
    for node in ast.walk(ast.parse((ROOT / "setup_stripe.py").read_text())):
        found = SCRIPT.fullmatch(ast.unparse(node.func)) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and found:
            form = node.args[0]
            keys = form.keys if isinstance(form, ast.Dict) else []
            names = {str(ast.literal_eval(key)) for key in keys if key}
            method = {"create": "POST", "list": "GET"}[found[2]]
            path = f"/v1/{found[1].replace('.', '/')}"
            yield Written("setup_stripe.py", method, path, frozenset(names))


def called(node: ast.AST) -> str:
    """Return the name of what a call calls."""
    function = getattr(node, "func", None)
    return str(getattr(function, "attr", getattr(function, "id", "")))


def patterns(tree: ast.AST) -> list[str]:
    """Return the paths of Stripe's in a piece of code, as patterns."""
    found = []
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in node.values}  # fmt: skip
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        if id(node) not in inner and re.match("/v[12]/", str(texts[0])):
            found.append("".join(ANY if text is None else re.escape(str(text)) for text in texts))
    return found
