"""Pages to try the stand-ins on by clicks: server-rendered, without scripts, nothing fetched.

They work through what the stand-ins themselves offer. The stand-ins know of them only that they
are there: `Beside` leads a browser to them.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from flask import Flask, Response, redirect, request
from jinja2 import ChoiceLoader, FileSystemLoader
from werkzeug.exceptions import BadRequest, Forbidden
from werkzeug.wrappers import Response as Redirect

from fakes.processes import ROOT

TEMPLATES = Path(__file__).parent / "templates"
# The style sheet is the audit's: one look for all pages.
LOOK = ROOT / "audit" / "pages"
MINUTE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)


class Beside:
    """Leads what is for the pages to them, and every other call to the API beside them."""

    def __init__(self, api: WSGIApplication, pages: Flask) -> None:
        self.api = api
        self.pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a call, as WSGI has it."""
        path, prefix = environ["PATH_INFO"], self.pages.config["PREFIX"]
        is_page = path in ("/", prefix) or path.startswith(f"{prefix}/")
        return (self.pages if is_page else self.api)(environ, start_response)


def create_room(name: str, prefix: str, first: str) -> Flask:
    """Return an app for pages under a prefix; `/` leads to the first of them.

    Its `neighbour` is where the other stand-in's pages are, once they are told.
    """
    app = Flask(name, static_folder=None, template_folder=None)
    app.jinja_loader = ChoiceLoader([FileSystemLoader(TEMPLATES), FileSystemLoader(LOOK)])
    app.config["PREFIX"] = prefix
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    app.jinja_env.filters["when"] = when
    app.jinja_env.globals["neighbour"] = ""

    @app.before_request
    def refuse_others() -> None:
        """Take forms of these pages only: no other page in the browser sends one here."""
        origin = request.headers.get("Origin")
        if request.method == "POST" and origin not in (None, request.host_url.rstrip("/")):
            raise Forbidden("this form came from another page")

    @app.after_request
    def keep_to_itself(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    @app.get(prefix)
    def begin() -> Redirect:
        return redirect(first, 303)

    @app.post(f"{prefix}/neighbour")
    def meet_neighbour() -> tuple[str, int]:
        """Note where the other stand-in is."""
        url = request.form.get("url", "")
        if urlsplit(url).scheme != "http":
            raise BadRequest("url is no address such as http://127.0.0.1:4011")
        app.jinja_env.globals["neighbour"] = url.rstrip("/")
        return "", 204

    return app


def when(second: int | None) -> str:
    """Return a UTC second for a reader."""
    if second is None:
        return "none"
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")


def moment(text: str, otherwise: Callable[[], datetime]) -> datetime:
    """Return the time in a form's field, in UTC; nothing in it is now."""
    if not text.strip():
        return otherwise()
    if not MINUTE.fullmatch(text.strip()):
        raise ValueError(f"{text} is no time such as 2026-01-31 13:45 (UTC)")
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)
