"""The tables of the commands: 80 columns, figures never cut, and what else there is below a row."""

import textwrap
from collections.abc import Sequence

WIDTH = 80
# How far a name may be cut where figures need its room.
SHORTEST = 6


def many(number: int, name: str) -> str:
    """Return a number of things."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def fit(text: str, width: int) -> str:
    """Return a text that is no wider than a column."""
    return text if len(text) <= width else text[: width - 1] + "…"


def cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of a table: two names to the left, and figures to the right.

    Where figures are wider than their columns, the first name gives way.
    """
    figures = " ".join(text.rjust(width) for text, width in zip(texts[2:], widths[2:], strict=True))
    first, second = widths[:2]
    first = max(SHORTEST, min(first, WIDTH - len(figures) - second - 2))
    names = [
        fit(text, width).ljust(width)
        for text, width in zip(texts[:2], (first, second), strict=True)
    ]
    return " ".join([*names, figures]).rstrip()


def below(text: str) -> list[str]:
    """Return a text below a row, a command in it whole if it can be."""
    return textwrap.wrap(
        text, WIDTH, break_on_hyphens=False, initial_indent="  ", subsequent_indent="    "
    )
