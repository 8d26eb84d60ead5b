"""Measure the service against an upstream with a set latency: python -m bench.

BENCH_RUNS says how often (5); BENCH_QUICK=1 tries all with small counts, which prove nothing.
The deliveries come one after the other over one connection that is kept alive.
"""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

from bench.load import (
    OPENMETER_MS,
    STRIPE_MS,
    Ran,
    Stage,
    cpu_seconds,
    resident_mb,
    seconds_to_first_answer,
    worker,
)
from fakes.processes import Failed

WORKERS = 16
RATE = 100
FLOOR, ONE_READ = (OPENMETER_MS + STRIPE_MS) / 1_000, STRIPE_MS / 1_000


@dataclass(frozen=True)
class Counts:
    """How much of each is measured, `runs` times; `idle` deliveries are made in all runs."""

    runs: int
    floor: int = 100
    one: int = 200
    several: int = 50
    idle: int = 10_000
    few: int = 100
    many: int = 2_000
    most: int = 10_000


@dataclass(frozen=True)
class Row:
    """A measurement and its bound, as the table shows them."""

    what: str
    bound: str
    measured: str
    met: bool


def counts() -> Counts:
    """Return how much to measure, as the environment says."""
    runs = int(os.environ.get("BENCH_RUNS", "5"))
    if os.environ.get("BENCH_QUICK") == "1":
        return Counts(runs, floor=20, one=30, several=10, idle=1_000, many=300, most=500)
    return Counts(runs)


def say(what: str) -> None:
    """Tell a person who waits what is measured now."""
    print(f"{datetime.now(UTC):%H:%M:%S} {what}", file=sys.stderr, flush=True)


def at_most(what: str, value: float, bound: float, unit: str, why: str = "") -> Row:
    """Return the row of a value that must not be larger."""
    digits = 1 if unit != "s" else 2
    measured, limit = f"{value:.{digits}f} {unit}", f"at most {bound:.{digits}f} {unit}"
    return Row(what, f"{limit} ({why})" if why else limit, measured, value <= bound)


def ratio(what: str, seconds: float, times: float, floor: float, read: float = 0) -> Row:
    """Return the row of a latency against `times` the floor, and one read on top."""
    bound = times * floor + read
    why = f"{times:g} x {floor * 1_000:.1f}" + (f" + {read * 1_000:.0f}" if read else "")
    row = at_most(what, seconds * 1_000, bound * 1_000, "ms", why)
    return Row(row.what, row.bound, f"{row.measured} ({(seconds - read) / floor:.2f} x)", row.met)


def latencies(planned: Counts) -> tuple[float, list[Row]]:
    """Measure deliveries with latency; return the measured floor, and the rows."""
    runs = range(planned.runs)
    with Stage(latency=True) as stage:
        say("the floor")
        measured = median(stage.floor(planned.floor))
        floor = max(FLOOR, measured)
        stage.serve()
        say("one item")
        one = [stage.deliver(planned.one) for _ in runs]
        metered = [stage.deliver(planned.several, 1, "mtr_1") for _ in runs]
        say("ten items, and twenty")
        ten = [stage.deliver(planned.several, 10) for _ in runs]
        twenty = [stage.deliver(planned.several, 20) for _ in runs]
    return measured, [
        ratio("one item, median", of_medians(one), 1.05, floor),
        ratio("one item, p99", median(map(p99, one)), 1.15, floor),
        ratio("one item on a Billing Meter, median", of_medians(metered), 1.05, floor),
        ratio("ten items, median", of_medians(ten), 1.25, floor),
        ratio("twenty items, ten of them read, median", of_medians(twenty), 1.25, floor, ONE_READ),
    ]


def of_medians(runs: Iterable[list[float]]) -> float:
    """Return the median of the runs' medians."""
    return median(map(median, runs))


def p99(seconds: list[float]) -> float:
    """Return what 99 of 100 stay under."""
    return quantiles(seconds, n=100)[-1]


def idle(planned: Counts) -> list[Row]:
    """Measure what a delivery costs the worker when nobody has to be waited for."""
    say("CPU and memory")
    each = planned.idle // planned.runs
    cpu, memory = [], []
    with Stage(latency=False) as stage:
        pid = worker(stage.serve())
        for _ in range(planned.runs):
            began = cpu_seconds(pid)
            stage.deliver(each)
            cpu.append((cpu_seconds(pid) - began) / each)
            memory.append(resident_mb(pid))
    growth = f"1.02 x that after {each:,}"
    after = f"worker's memory after {planned.idle:,} webhooks"
    return [
        at_most("CPU a webhook, no latency", median(cpu) * 1_000, 3.5, "ms"),
        at_most(after, memory[-1], 80, "MB"),
        at_most("the same, against growth", memory[-1], 1.02 * memory[0], "MB", growth),
    ]


def starts(planned: Counts) -> Row:
    """Measure how long the service takes to answer for the first time."""
    say("start")
    with Stage(latency=False) as stage:
        seconds = median(seconds_to_first_answer(stage) for _ in range(planned.runs))
    return at_most("start to the first /healthz", seconds, 1.2, "s")


def report(subscriptions: int, rate: int) -> Ran:
    """Run `flask report` once over so many subscriptions."""
    with Stage(latency=True, subscriptions=subscriptions) as stage:
        return stage.report(rate)


def reports(planned: Counts, floor: float) -> list[Row]:
    """Measure `flask report`: its time, its memory, and how closely it keeps to a rate."""
    runs, many, most = range(planned.runs), planned.many, planned.most
    say("flask report without a limit")
    small = median(report(planned.few, 0).memory for _ in runs)
    large = [report(many, 0) for _ in runs]
    say(f"flask report at {RATE} a second")
    rate = median(report(most, RATE).rate for _ in runs)
    seconds, memory = median(ran.seconds for ran in large), median(ran.memory for ran in large)
    ideal = many * floor / WORKERS
    least = 0.95 * RATE
    row = at_most(f"`flask report`, {many:,}", seconds, 1.3 * ideal, "s", f"1.3 x {ideal:.2f}")
    return [
        row,
        at_most("the same, memory", memory, small + 30, "MB", f"30 above that of {planned.few}"),
        Row(
            f"`flask report --rate {RATE}`, {most:,}",
            f"at least {least:.0f} writes/s",
            f"{rate:.1f} writes/s",
            rate >= least,
        ),
    ]


def audit(invoices: int) -> Ran:
    """Run `flask audit` once over so many invoices, of two lines each."""
    with Stage(latency=True, invoices=invoices) as stage:
        return stage.audit()


def audits(planned: Counts) -> list[Row]:
    """Measure `flask audit`: its time, and its memory, of which each line takes a little."""
    say("flask audit")
    small, large = audit(planned.few), audit(planned.most)
    what = f"`flask audit`, {planned.most:,} invoices of two lines"
    kept = f"that of {planned.few} and 2 KB a line"
    most = small.memory + 2 * 2 * planned.most / 1_000
    return [
        at_most(what, large.seconds, planned.most / 150, "s"),
        at_most("the same, memory", large.memory, most, "MB", kept),
    ]


def machine(planned: Counts) -> str:
    """Say where, with what and when this was measured."""
    names = Path("/proc/cpuinfo").read_text().split("model name")[1:]
    model = names[0].splitlines()[0].strip("\t :") if names else platform.machine()
    parts = [f"{name} {version(name)}" for name in ("flask", "stripe", "gunicorn")]
    python = f"Python {platform.python_version()}"
    cores = f"{model}, {os.cpu_count()} cores"
    runs = f"medians of {planned.runs} runs"
    return f"{cores}; {python}, {', '.join(parts)}; {datetime.now(UTC):%Y-%m-%d}; {runs}"


def floors(measured: float) -> str:
    """Say what a delivery takes at least, and which of the two decides."""
    one, other = (f"{seconds * 1_000:.1f} ms" for seconds in (FLOOR, measured))
    return f"floor {one}, measured without the service {other}: the larger one decides"


def table(rows: list[Row]) -> str:
    """Return what was measured as a table in Markdown."""
    lines = [("what", "bound", "measured", "met"), ("---",) * 4]
    lines += [(row.what, row.bound, row.measured, "yes" if row.met else "no") for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Measure all, print the table, and return 1 if a bound is missed."""
    planned = counts()
    floor, rows = latencies(planned)
    rows += [
        *idle(planned),
        starts(planned),
        *reports(planned, max(FLOOR, floor)),
        *audits(planned),
    ]
    print(f"{machine(planned)}; {floors(floor)}\n\n{table(rows)}")
    missed = [row.what for row in rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"failed: {error}")
