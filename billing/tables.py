"""The tables of the commands: 80 columns, figures never cut, and what else there is below a row."""

import textwrap
from collections.abc import Sequence

WIDTH = 80
# How far a name may be cut where figures need its room.
SHORTEST = 3


def many(number: int, name: str) -> str:
    """Return a number of things."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def fit(text: str, width: int) -> str:
    """Return a text that is as wide as a column."""
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of a table: two names to the left, and figures to the right.

    Where figures are wider than their columns, the names give way.
    """
    figures = " ".join(text.rjust(width) for text, width in zip(texts[2:], widths[2:], strict=True))
    room = WIDTH - len(figures) - 2
    second = min(widths[1], max(SHORTEST, room - widths[0], room // 2))
    first = min(widths[0], max(SHORTEST, room - second))
    return " ".join([fit(texts[0], first), fit(texts[1], second), figures]).rstrip()


def below(text: str) -> list[str]:
    """Return a text below a row, a command in it whole if it can be."""
    return textwrap.wrap(
        text, WIDTH, break_on_hyphens=False, initial_indent="  ", subsequent_indent="    "
    )
