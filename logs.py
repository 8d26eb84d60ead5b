"""How the service logs: one line per outcome, without secrets."""

import logging


class Hide(logging.Filter):
    """Take secrets out of what is logged or answered, should a service echo them."""

    def __init__(self, *secrets: str | None) -> None:
        super().__init__()
        self.secrets = [text for text in secrets if text]

    def hide(self, text: str) -> str:
        """Return a text without the secrets."""
        for known in self.secrets:
            text = text.replace(known, "[hidden]")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record."""
        record.msg, record.args = self.hide(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = self.hide(logging.Formatter().formatException(record.exc_info))
        return True


class LevelFormatter(logging.Formatter):
    """Write a report's line as it is and put its level before any other."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = super().format(record)
        return line if record.levelno == logging.INFO else f"{record.levelname}: {line}"
