"""How the service logs: one line per outcome, without secrets, as text or as JSON."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from flask import Flask, g
from flask.logging import default_handler
from pythonjsonlogger.json import JsonFormatter
from werkzeug.wrappers import Response

# What the lines of a delivery, and of a report in it, are about: names and ids of JSON's fields.
ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


def begin(**fields: str) -> None:
    """Let each line from here on be about these fields alone."""
    ABOUT.set(fields)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Let each line that is logged inside be about these fields, too."""
    token = ABOUT.set({**ABOUT.get(), **fields})
    try:
        yield
    finally:
        ABOUT.reset(token)


class Hide(logging.Filter):
    """Take secrets out of what is logged or answered, should a service echo them.

    It also lets a line say what it is about.
    """

    def __init__(self, *secrets: str) -> None:
        super().__init__()
        self.secrets = sorted(secrets, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a text without the secrets."""
        for known in self.secrets:
            text = text.replace(known, "[hidden]")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record."""
        record.msg, record.args = self.hide(record.getMessage()), ()
        if record.exc_info:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text, record.exc_info = self.hide(text), None
        for name, value in ABOUT.get().items():
            record.__dict__.setdefault(name, self.hide(value))
        return True


class LevelFormatter(logging.Formatter):
    """Write a report's line as it is and put its level before any other."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = super().format(record)
        return line if record.levelno == logging.INFO else f"{record.levelname}: {line}"


def register(app: Flask, form: str, secrets: Iterable[str]) -> None:
    """Log in a LOG_FORMAT, and neither log nor answer secrets."""
    hidden = Hide(*secrets)
    app.logger.setLevel(logging.INFO)
    app.logger.filters[:] = [hidden]
    # OpenMeter's SDK warns of what our own lines say.
    logging.getLogger("corehttp").setLevel(logging.ERROR)
    default_handler.setFormatter(formatter(form))

    @app.before_request
    def begin_request() -> None:
        """Note when a request began, and that nothing is known of it yet."""
        g.began = time.monotonic()
        begin()

    @app.after_request
    def without_secrets(response: Response) -> Response:
        """Answer no secret that a service may have echoed."""
        response.set_data(hidden.hide(response.get_data(as_text=True)))
        return response


def json_formatter() -> JsonFormatter:
    """Return what writes one JSON object a line: time (UTC), level, message and fields."""
    names = {"timestamp": "time", "levelname": "level"}
    return JsonFormatter("{levelname}{message}", style="{", timestamp=True, rename_fields=names)


def formatter(name: str) -> logging.Formatter:
    """Return the formatter of a LOG_FORMAT."""
    return json_formatter() if name == "json" else LevelFormatter()
