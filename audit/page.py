"""The audit as a page: one HTML file that fetches nothing and needs no script."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from jinja2 import Environment, FileSystemLoader

from audit import pricing
from audit.report import NAMES, Money, Spool, Sums
from audit.rows import LINE, Row, utc

PAGES = Path(__file__).parent / "pages"
# Of a chart, in the SVG's own units.
WIDTH, HEIGHT, FLOOR = 720, 240, 210
WIDEST_BAR = 40


@dataclass
class Page:
    """The rows of a page, on disk until it is written: those that differ come first."""

    differing: Spool
    agreeing: Spool

    def add(self, row: Row, *, is_first: bool) -> None:
        """Keep a row."""
        name = row.number or row.invoice if row.kind == LINE else NAMES[row.kind]
        shown = {**row.shown(), "name": name, "money_text": row.money_text}
        (self.differing if is_first else self.agreeing).write(shown)

    def write(self, file: IO[str], sums: Sums, **about: Any) -> None:
        """Write the page; `about` has the time, the accounts, and what could not be read."""
        room = Environment(loader=FileSystemLoader(PAGES), autoescape=True, trim_blocks=True)
        parts = room.get_template("audit.html").generate(
            **about,
            sentence=sums.sentence(),
            differs=sums.differing > 0,
            charts=list(charts(sums)),
            differing=self.differing,
            differing_count=self.differing.count,
            agreeing=self.agreeing,
            agreeing_count=self.agreeing.count,
        )
        file.writelines(parts)


def time_text(second: int) -> str:
    """Return a UTC second for a reader."""
    return utc(second)[:16].replace("T", " ")


def charts(sums: Sums) -> Iterator[dict[str, Any]]:
    """Yield a chart for each currency, its months in their order."""
    by_currency: dict[str, dict[str, Money]] = defaultdict(dict)
    for (currency, month), money in sorted(sums.months.items()):
        by_currency[currency][month] = money
    for currency, months in by_currency.items():
        yield chart(currency, months)


def chart(currency: str, months: Mapping[str, Money]) -> dict[str, Any]:
    """Return the bars of a currency: metered, and beside it billed with what is missing on top."""
    top = max((max(one.metered, one.billed + one.missing) for one in months.values()), default=0)
    scale = Decimal(FLOOR - 10) / top if top > 0 else Decimal(0)
    step = Decimal(WIDTH) / max(len(months), 1)
    width = min(step * Decimal("0.35"), Decimal(WIDEST_BAR))
    bars, shown = [], []
    for n, (month, money) in enumerate(months.items()):
        middle = step * n + step / 2
        texts = amounts(money, currency)
        heights = {name: getattr(money, name) * scale for name in ("metered", "billed", "missing")}
        bars.append(bar("metered", middle - width, width, heights["metered"], Decimal(0)))
        bars.append(bar("billed", middle, width, heights["billed"], Decimal(0)))
        bars.append(bar("missing", middle, width, heights["missing"], heights["billed"]))
        for one in bars[-3:]:
            one["title"] = f"{month}: {one['kind']} {texts[one['kind']]} {currency}".strip()
        shown.append({"name": month, "x": f"{middle:.1f}", **texts})
    sizes = {"width": WIDTH, "height": HEIGHT, "floor": FLOOR}
    return {"currency": currency or "?", "bars": bars, "months": shown, **sizes}


def amounts(money: Money, currency: str) -> dict[str, str]:
    """Return a month's sums as texts."""
    names = ("metered", "billed", "missing", "over")
    return {name: pricing.amount_text(getattr(money, name), currency) for name in names}


def bar(kind: str, x: Decimal, width: Decimal, height: Decimal, below: Decimal) -> dict[str, str]:
    """Return a bar that stands on the floor, or on another one."""
    tall = max(height, Decimal(0))
    return {
        "kind": kind,
        "x": f"{x:.1f}",
        "y": f"{FLOOR - below - tall:.1f}",
        "width": f"{width:.1f}",
        "height": f"{tall:.1f}",
    }
