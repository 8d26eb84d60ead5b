"""Measure the service against an upstream with a set latency: python -m bench [ROW...].

Without a name all rows are measured. BENCH_RUNS says how often what is short is measured (5);
BENCH_QUICK=1 tries all with small counts, which prove nothing.
"""

import argparse
import os
import platform
import resource
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import burst, commands, webhooks
from bench.rows import Counts, Row, counts, table
from fakes.processes import Failed

ROWS: dict[str, Callable[[Counts], list[Row]]] = {
    "one": webhooks.one_item,
    "ten": webhooks.ten_items,
    "cpu": webhooks.idle,
    "start": webhooks.starts,
    "workers": webhooks.loaded,
    "meters": commands.on_meters,
    "memory": commands.memory,
    "records": commands.records,
    "audit": commands.audits,
    "burst": burst.one_machine,
    "machines": burst.two_machines,
}


def machine(planned: Counts) -> str:
    """Say where, with what and when this was measured."""
    names = Path("/proc/cpuinfo").read_text().split("model name")[1:]
    model = names[0].splitlines()[0].strip("\t :") if names else platform.machine()
    parts = [f"{name} {version(name)}" for name in ("flask", "stripe", "gunicorn")]
    python = f"Python {platform.python_version()}"
    cores = f"{model}, {os.cpu_count()} cores"
    runs = f"medians of {planned.runs} runs of what is short"
    return f"{cores}; {python}, {', '.join(parts)}; {datetime.now(UTC):%Y-%m-%d}; {runs}"


def main() -> int:
    """Measure, print the table, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; all unless given"
    )
    names = parser.parse_args().names or list(ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    # A burst's deliveries are as many connections; what is started has the same limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    planned, rows = counts(), list[Row]()
    for name in names:
        rows += ROWS[name](planned)
    print(f"{machine(planned)}\n\n{table(rows)}")
    missed = [row.what for row in rows if not row.met]
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(f"failed: {error}")
