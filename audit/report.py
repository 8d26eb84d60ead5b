"""What `flask audit` prints: a table of 80 columns, CSV, JSON, sums, and one sentence."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import IO, Any

from audit import pricing
from audit.rows import COLUMNS, GAP, IDLE, LINE, NOBODY, OVERLAP, ZERO, Row, utc
from billing.invoices import plain
from billing.tables import below, cells, many

HEADER = ("invoice", "meter", "metered", "billed", "missing", "money")
WIDTHS = (18, 10, 11, 11, 11, 14)
NAMES = {GAP: "in no line", OVERLAP: "in two lines", NOBODY: "counted by nobody", IDLE: "idle"}


# What drafts lack that a report still changes: no difference of an invoice yet.
MENDABLE = "mendable"


@dataclass
class Money:
    """The sums of one currency, in its minor unit."""

    metered: Decimal = ZERO
    billed: Decimal = ZERO
    missing: Decimal = ZERO
    over: Decimal = ZERO


@dataclass
class Sums:
    """What all rows so far come to: invoices, units by kind, money by currency and month."""

    tolerance: Decimal = ZERO
    counts: Counter[str] = field(default_factory=Counter)
    missing: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    over: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    money: dict[tuple[str, str], Money] = field(default_factory=lambda: defaultdict(Money))
    months: dict[tuple[str, str], Money] = field(default_factory=lambda: defaultdict(Money))

    def add_invoice(self, rows: list[Row]) -> None:
        """Add the rows of an invoice."""
        self.counts["invoices"] += 1
        self.counts["unknown"] += not all(row.is_compared for row in rows)
        differing = [row for row in rows if row.differs(self.tolerance)]
        if all(row.is_compared for row in rows):
            is_mendable = bool(differing) and all(row.can_be_mended for row in differing)
            self.counts["mendable"] += is_mendable
            self.counts["differing"] += bool(differing) and not is_mendable
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Add a row."""
        self.counts[row.kind] += 1
        self.counts["repaired"] += row.repaired > 0
        if row.kind == LINE:
            month = self.months[row.currency, utc(row.end)[:7]]
            for sums in (self.money[row.kind, row.currency], month):
                sums.metered += row.metered_money or ZERO
                sums.billed += row.billed_money or ZERO
        if row.differs(self.tolerance):
            kind = MENDABLE if row.can_be_mended else row.kind
            self.counts[f"differing {kind}"] += 1
            self.add_difference(row, kind)

    def add_difference(self, row: Row, kind: str) -> None:
        """Add what a row lacks, or has too much."""
        found = [self.money[kind, row.currency]]
        if kind == LINE:
            found.append(self.months[row.currency, utc(row.end)[:7]])
        if row.missing > 0:
            self.missing[kind] += row.missing
        else:
            self.over[kind] -= row.missing
        for money in found:
            money.missing += max(row.money or ZERO, ZERO)
            money.over -= min(row.money or ZERO, ZERO)

    @property
    def differing(self) -> int:
        """Return how many rows lack something, or have too much."""
        return sum(self.counts[f"differing {kind}"] for kind in (LINE, GAP, NOBODY, OVERLAP))

    @property
    def agreeing(self) -> int:
        """Return how many invoices agree."""
        others = ("differing", "unknown", "mendable")
        return self.counts["invoices"] - sum(self.counts[name] for name in others)

    def money_text(self, kind: str, name: str) -> str:
        """Return the money of a kind's rows in each currency, if there is some."""
        found = [
            pricing.money(getattr(money, name), currency)
            for (of_kind, currency), money in sorted(self.money.items())
            if of_kind == kind and getattr(money, name)
        ]
        return ", " + " and ".join(found) if found else ""

    def sentence(self) -> str:
        """Return what was found in one sentence."""
        counts = self.counts
        said = [f"{many(counts['invoices'], 'invoice')}, {self.agreeing} agree"]
        if counts["differing"]:
            said[0] += f", {counts['differing']} differ: {self.difference_text(LINE)}"
        if counts["unknown"]:
            said.append(f"{counts['unknown']} could not be compared")
        if counts["mendable"]:
            drafts = many(counts["mendable"], "draft")
            said.append(f"{drafts} can still be mended: {self.difference_text(MENDABLE)}")
        if counts["repaired"]:
            said.append(f"{many(counts['repaired'], 'line')} repaired")
        for kind, name in ((GAP, "gap"), (NOBODY, "subject")):
            if counts[f"differing {kind}"]:
                units = f"{plain(self.missing[kind])} units{self.money_text(kind, 'missing')}"
                billed_by = "in no line" if kind == GAP else "counted by nobody"
                number = many(counts[f"differing {kind}"], name)
                said.append(f"{number} {billed_by}: {units}")
        if counts[f"differing {OVERLAP}"]:
            number = many(counts[f"differing {OVERLAP}"], "overlap")
            said.append(f"{number}: {plain(self.over[OVERLAP])} units billed twice")
        if counts[IDLE]:
            said.append(f"{many(counts[IDLE], 'running item')} without usage")
        return "; ".join(said)

    def difference_text(self, kind: str) -> str:
        """Return the units and the money that lines lack, and have too much."""
        said = []
        if self.missing[kind]:
            money = self.money_text(kind, "missing")
            said.append(f"{plain(self.missing[kind])} units{money} not billed")
        if self.over[kind]:
            money = self.money_text(kind, "over")
            said.append(f"{plain(self.over[kind])} units{money} billed too many")
        return " and ".join(said)


def table_row(row: Row) -> str:
    """Return a row of the table, and below it which line it is and what to do."""
    name = row.number or row.invoice if row.kind == LINE else NAMES[row.kind]
    figures = ["-" if row.metered is None else plain(row.metered), plain(row.billed)]
    figures += [plain(row.missing) if row.is_compared else "?", row.money_text]
    period = f"{utc(row.start)[:16]} - {utc(row.end)[:16]}".replace("T", " ")
    where = [row.account, f"{row.invoice} {row.status}".strip(), row.subscription, row.item]
    where += [row.price, f"subject {row.subject}"]
    about = ", ".join([period, *filter(None, where)])
    return "\n".join([cells([name, row.meter, *figures], WIDTHS), *below(about), *below(row.todo)])


def sums_table(sums: Sums) -> str:
    """Return the sums by currency."""
    lines = [cells(("currency", "", "metered", "billed", "missing", "over"), WIDTHS)]
    for (kind, currency), money in sorted(sums.money.items()):
        if kind == LINE:
            amounts = (money.metered, money.billed, money.missing, money.over)
            shown = [pricing.amount_text(amount, currency) for amount in amounts]
            lines.append(cells((currency or "?", "", *shown), WIDTHS))
    return "\n".join(lines)


class CsvSink:
    """Write rows for spreadsheets."""

    def __init__(self, file: IO[str]) -> None:
        self.writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        self.writer.writeheader()

    def write(self, row: Row) -> None:
        """Write a row; what a spreadsheet would take as a formula comes as text."""
        self.writer.writerow({name: as_text(value) for name, value in row.shown().items()})


def as_text(value: str | None) -> str | None:
    """Return a cell that no spreadsheet computes; a number stays one."""
    if (value and value[0] in "=+@\t\r") or (value and value[0] == "-" and not is_number(value)):
        return f"'{value}"
    return value


def is_number(text: str) -> bool:
    """Say whether a text is a plain number."""
    return text.removeprefix("-").replace(".", "", 1).isdigit()


class Spool:
    """Rows on disk, as they will be shown later."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.count = file, 0

    def write(self, shown: object) -> None:
        """Keep one."""
        self.count += 1
        self.file.write(json.dumps(shown) + "\n")

    def __iter__(self) -> Iterator[Any]:
        """Yield them in their order."""
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)
