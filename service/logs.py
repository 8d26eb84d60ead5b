"""How the service logs: one line per outcome, without secrets, as text or as JSON."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

# What the lines of a delivery, and of a report in it, are about: names and ids of JSON's fields.
CONTEXT: ContextVar[Mapping[str, str]] = ContextVar("context", default=MappingProxyType({}))


def replace_log_fields(**fields: str) -> None:
    """Let each line from here on carry these fields alone."""
    CONTEXT.set(fields)


@contextmanager
def bound_log_fields(**fields: str) -> Iterator[None]:
    """Let each line that is logged inside carry these fields, too."""
    token = CONTEXT.set({**CONTEXT.get(), **fields})
    try:
        yield
    finally:
        CONTEXT.reset(token)


class ContextFilter(logging.Filter):
    """Add the fields of the context to each line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them; what the line itself says wins."""
        for name, value in CONTEXT.get().items():
            record.__dict__.setdefault(name, value)
        return True


class SecretFilter(logging.Filter):
    """Take secrets out of what is logged or answered, should a service echo them."""

    def __init__(self, *secrets: str) -> None:
        super().__init__()
        self.secrets = sorted(secrets, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """Return a text without the secrets."""
        for known in self.secrets:
            text = text.replace(known, "[hidden]")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record: its message, its traceback and the fields of its context."""
        record.msg, record.args = self.hide(record.getMessage()), ()
        if record.exc_info:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text, record.exc_info = self.hide(text), None
        for name in CONTEXT.get():
            record.__dict__[name] = self.hide(str(record.__dict__.get(name, "")))
        return True


class TextFormatter(logging.Formatter):
    """Write the time (UTC), the level where it is not the usual one, and the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        when = f"{datetime.fromtimestamp(int(record.created), UTC):%Y-%m-%dT%H:%M:%SZ}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        return f"{when} {level}{super().format(record)}"


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Write to what is standard error at the time.

    Flask's own asks the request for its stream, four times a line.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # a StreamHandler's own would set its stream for good

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Return standard error."""
        return sys.stderr


HANDLER = StandardErrorHandler()


def configure_logger(
    logger: logging.Logger, default: logging.Handler, form: str, secrets: SecretFilter
) -> None:
    """Let a logger write in a LOG_FORMAT, without secrets, by our handler where it has Flask's."""
    # No line says where in the code, and in which thread, it was logged
    # (docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile, logging.logThreads, logging.logMultiprocessing = None, False, False
    logger.setLevel(logging.INFO)
    logger.filters[:] = [ContextFilter(), secrets]
    HANDLER.setFormatter(formatter(form))
    if default in logger.handlers:
        logger.handlers[:] = [HANDLER]


def json_formatter() -> JsonFormatter:
    """Return what writes one JSON object a line: time (UTC), level, message and fields."""
    names = {"timestamp": "time", "levelname": "level"}
    return JsonFormatter("{levelname}{message}", style="{", timestamp=True, rename_fields=names)


def formatter(name: str) -> logging.Formatter:
    """Return the formatter of a LOG_FORMAT."""
    return json_formatter() if name == "json" else TextFormatter()
