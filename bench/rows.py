"""The table: what was measured, its goal, and whether that is met."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median, quantiles

# How many digits a unit is shown with, where it is not one.
DIGITS = {"s": 2, "ms": 2, "x": 2, "": 0, "writes/s": 0, "webhooks/s": 0}


@dataclass(frozen=True)
class Counts:
    """How much of each is measured: what is short `runs` times, `idle` deliveries in all of them.

    A burst takes a quarter of an hour by Stripe's limits alone: see README.md.
    """

    runs: int
    floor: int = 50
    one: int = 200
    several: int = 50
    idle: int = 10_000
    loaded: int = 4_000
    burst: int = 10_000
    many: int = 10_000
    most: int = 100_000
    records: int = 1_200
    few: int = 100


QUICK = {
    "floor": 10,
    "one": 20,
    "several": 10,
    "idle": 300,
    "loaded": 320,
    "burst": 40,
    "many": 1_000,
    "most": 2_000,
    "records": 60,
}


@dataclass(frozen=True)
class Row:
    """A measurement and its goal, as the table shows them."""

    what: str
    measured: str
    goal: str
    met: bool


def counts() -> Counts:
    """Return how much to measure, as the environment says."""
    if os.environ.get("BENCH_QUICK") == "1":
        return Counts(int(os.environ.get("BENCH_RUNS", "1")), **QUICK)
    return Counts(int(os.environ.get("BENCH_RUNS", "5")))


def say(what: str) -> None:
    """Tell a person who waits what is measured now."""
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def shown(value: float, unit: str) -> str:
    """Return a value as the table shows it."""
    return f"{value:,.{DIGITS.get(unit, 1)}f} {unit}".rstrip()


def at_most(what: str, value: float, goal: float, unit: str = "", why: str = "") -> Row:
    """Return the row of a value that must not be larger."""
    limit = f"at most {shown(goal, unit)}"
    return Row(what, shown(value, unit), f"{limit} ({why})" if why else limit, value <= goal)


def at_least(what: str, value: float, goal: float, unit: str, why: str = "") -> Row:
    """Return the row of a value that must not be smaller."""
    limit = f"at least {shown(goal, unit)}"
    return Row(what, shown(value, unit), f"{limit} ({why})" if why else limit, value >= goal)


def ratio(what: str, seconds: float, times: float, floor: float, read: float = 0) -> Row:
    """Return the row of a latency against `times` the floor, and one read on top."""
    why = f"{1_000 * (times * floor + read):.1f} ms"
    row = at_most(what, (seconds - read) / floor, times, "x", why)
    return Row(row.what, f"{row.measured} ({1_000 * seconds:.1f} ms)", row.goal, row.met)


def of_medians(runs: Iterable[list[float]]) -> float:
    """Return the median of the runs' medians."""
    return median(map(median, runs))


def p99(seconds: list[float]) -> float:
    """Return what 99 of 100 stay under."""
    return quantiles(seconds, n=100)[-1]


def table(rows: list[Row]) -> str:
    """Return what was measured as a table in Markdown."""
    lines = [("what", "measured", "goal", "met"), ("---",) * 4]
    lines += [(row.what, row.measured, row.goal, "yes" if row.met else "no") for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
