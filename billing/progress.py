"""What a person at a terminal sees of a run, and what a log does.

On a terminal a bar, and above it only warnings and errors; elsewhere no bar, and every line.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from billing.reports import log

UNIT = " subscriptions"
# While the list goes on: how many are done of those that are known so far.
OPEN = "{n_fmt} of {total_fmt}+{unit} [{elapsed}, {rate_fmt}]"


@dataclass(frozen=True)
class Progress:
    """The bar of a run; its total grows with each page of the list."""

    bar: Any

    def expect(self, count: int) -> None:
        """Let so many more come, or fewer."""
        self.bar.total += count
        self.bar.refresh()

    def expect_no_more(self) -> None:
        """Show the bar whole, for its total is known."""
        self.bar.bar_format = None
        self.bar.refresh()

    def advance(self) -> None:
        """Have done with one."""
        self.bar.update()

    def say(self, text: str) -> None:
        """Print a line at once, above the bar if both are on a terminal."""
        with tqdm.external_write_mode(file=sys.stdout):
            click.echo(text)


def unseen() -> Progress:
    """Return what nobody sees."""
    return Progress(tqdm(total=0, disable=True))


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """Show how far a run is if standard error is a terminal, unless it shall be quiet."""
    with ExitStack() as stack:
        disable = True if quiet else None
        bar = stack.enter_context(tqdm(total=0, unit=UNIT, disable=disable, bar_format=OPEN))
        if not bar.disable:
            stack.enter_context(logging_redirect_tqdm([log]))
        if quiet or not bar.disable:
            stack.enter_context(only_warnings())
        yield Progress(bar)


@contextmanager
def only_warnings() -> Iterator[None]:
    """Let the log write warnings and errors only."""
    levels = [(handler, handler.level) for handler in log.handlers]
    for handler, _ in levels:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)
