"""What a report would change: a period in OpenMeter, in Stripe, and in Stripe after a report."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any

from billing import ways
from billing.invoices import InvoicedPeriod, plain
from billing.items import MeteredItem
from billing.reports import PendingReport, Services, ask_total, report_fields
from billing.tables import below, cells, many

ZERO = Decimal(0)
MINUTE = 60
HEADER = ("item", "meter", "openmeter", "stripe", "after", "difference")
WIDTHS = (18, 13, 11, 11, 11, 11)


@dataclass(frozen=True)
class Comparison:
    """One period of an item in OpenMeter, in Stripe, and in Stripe after a report.

    None stands for no rows in OpenMeter, and for what Stripe does not tell. `difference` is what
    a report would add to the value that Stripe holds, `left` what OpenMeter's total would be
    above the value after a report, and `note` why.
    """

    subscription: str
    item: str
    meter: str
    subject: str
    period: str
    openmeter: Decimal | None
    stripe: Decimal | None
    after: Decimal | None
    difference: Decimal | None
    left: Decimal
    note: str

    @property
    def is_known(self) -> bool:
        """Say whether Stripe tells what it holds."""
        return self.stripe is not None

    @property
    def differs(self) -> bool:
        """Say whether a report would change something, or leave something; unknown is neither."""
        return self.is_known and bool(self.difference or self.left)

    def shown(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def compare(report: PendingReport, services: Services, *, moving: bool = False) -> Comparison:
    """Return both services' values for a period. Raises ReportRefused or ReportFailed.

    With `moving`, what usage records hold is another reporter's.
    """
    item = report.item
    found, _ = ask_total(report, services)
    total = max(found or ZERO, ZERO)
    value = ways.rounded_value(services.stripe, item, total)
    held = fetch_held_value(report, value, services)
    is_written = found is not None or services.trust_no_rows(report)
    after = value_after(report, value, held, moving=moving) if is_written else held
    left = ZERO if after is None or not is_written else value - after
    fields = report_fields(item, total)
    return Comparison(
        item.subscription,
        item.id,
        item.meter,
        str(item.subject),
        f"{fields['from']} - {fields['to']}".replace(" +0000 UTC", ""),
        None if found is None else found.normalize(),
        None if held is None else held.normalize(),
        None if after is None else after.normalize(),
        None if held is None or after is None else (after - held).normalize(),
        left.normalize(),
        note_of(report, held, after, left),
    )


def fetch_held_value(report: PendingReport, value: Decimal, services: Services) -> Decimal | None:
    """Return what Stripe holds for a period of which a report would send a value.

    None is unknown. Raises ReportRefused or ReportFailed.
    """
    stripe, item = services.stripe, report.item
    if item.billing_meter is None:
        return ways.fetch_running_record_total(stripe, item)
    if report.invoiced is not None:
        return fetch_closed_value(report.invoiced, value, services)
    return fetch_running_value(item, report.as_of, value, services)


def fetch_closed_value(
    invoiced: InvoicedPeriod, value: Decimal, services: Services
) -> Decimal | None:
    """Return what Stripe holds for a period whose draft has a Billing Meter's line.

    The line has what Stripe had counted when it made the draft, and is counted once more when it
    becomes final, unless it is fixed
    (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period). The summary has
    what came since, but by full minutes: where a period ends within one, it lacks its seconds in
    it. Reports come before those, so a report's value that it has was counted. Where only the line
    has that value, it is unknown what came since. Raises ReportRefused or ReportFailed.
    """
    item = invoiced.item
    billed = value if invoiced.agrees_with(value) else invoiced.billed.units
    if invoiced.is_fixed:
        return billed
    end = item.end - item.end % MINUTE
    counted = ways.fetch_meter_event_total(services.stripe, item, item.start, end)
    if end == item.end or counted in (value, billed):
        return counted
    return None if billed == value else billed


def fetch_running_value(
    item: MeteredItem, as_of: int, value: Decimal, services: Services
) -> Decimal | None:
    """Return what a Billing Meter holds for a running period.

    None where that may be of the period before, whose last seconds are in the same full minute.
    Raises ReportRefused or ReportFailed.
    """
    end = min(as_of + MINUTE - as_of % MINUTE, item.end - item.end % -MINUTE)
    held = ways.fetch_meter_event_total(services.stripe, item, item.start, end)
    within = -item.start % MINUTE
    if held in (ZERO, value) or not within:
        return held
    later = item.start + within
    is_of_later = later < end and held == ways.fetch_meter_event_total(
        services.stripe, item, later, end
    )
    return held if is_of_later else None


def value_after(
    report: PendingReport, value: Decimal, held: Decimal | None, *, moving: bool
) -> Decimal | None:
    """Return what Stripe would hold after a report of a value.

    A usage record takes the place of the one that this service set before, but adds to those of
    other timestamps. Of them Stripe tells the sum only
    (docs.stripe.com/billing/subscriptions/usage-based-legacy/recording-usage).
    """
    if report.invoiced is not None and report.invoiced.is_fixed:
        return held
    if moving and report.item.billing_meter is None:
        return value + (held or ZERO)
    return value


def note_of(
    report: PendingReport, held: Decimal | None, after: Decimal | None, left: Decimal
) -> str:
    """Say why a row is as it is, where that is not plain."""
    if held is None and report.invoiced is not None:
        return "unknown: the draft has it, but the meter's summary has another value since"
    if held is None:
        return "unknown: Stripe tells it together with the last seconds of the period before"
    if report.invoiced is not None and report.invoiced.is_fixed and left:
        return f"{left_text(left)}: its price began in mid-period, and its draft counts no more"
    if left:
        return f"{left_text(left)}: what another reporter wrote stays"
    if report.item.billing_meter is None and after is not None and held > after:
        return "a report lowers it only to what others wrote at other timestamps"
    return ""


def left_text(left: Decimal) -> str:
    """Say what a report would leave."""
    return f"after a report {plain(abs(left))} {'missing' if left > 0 else 'too many'}"


@dataclass
class Compared:
    """What a dry run found so far: the rows to show, sums by meter, and counts."""

    show_all: bool = False
    rows: list[Comparison] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, list[Decimal]] = field(default_factory=lambda: defaultdict(lambda: [ZERO] * 4))

    def add(self, row: Comparison) -> None:
        """Count a row, and keep it if it is to be shown."""
        self.counts["periods"] += 1
        self.counts["different"] += row.differs
        self.counts["left"] += row.differs and bool(row.left)
        self.counts["unknown"] += not row.is_known
        if row.is_known:
            values = (row.openmeter, row.stripe, row.after, row.difference)
            sums = self.sums[row.meter]
            self.sums[row.meter] = [
                so_far + (value or ZERO) for so_far, value in zip(sums, values, strict=True)
            ]
        if self.show_all or row.differs or not row.is_known:
            self.rows.append(row)

    def table(self) -> str:
        """Return the rows to show, by subscription, item and period, and the sums by meter."""
        lines = [cells(HEADER, WIDTHS)]
        for row in sorted(self.rows, key=lambda row: (row.subscription, row.item, row.period)):
            lines += row_lines(row)
        if self.rows:
            lines.append("")
        for meter, sums in sorted(self.sums.items()):
            lines.append(cells(("sum", meter, *map(plain, sums)), WIDTHS))
        return "\n".join(lines)


def sentence(counts: Counter[str], *, is_whole: bool) -> str:
    """Return what the exit status says, in words."""
    said = [] if is_whole else ["interrupted, this is not all"]
    periods, unknown = counts["periods"], counts["unknown"]
    if counts["different"]:
        said.append(f"{counts['different']} of {many(periods, 'period')} differ")
    elif is_whole and not (unknown or counts["failed"] or counts["empty"]):
        said.append("all agree")
    elif periods:
        said.append(f"{periods - unknown} of {many(periods, 'period')} agree")
    if counts["left"]:
        said.append(f"{counts['left']} would after a report, too")
    if unknown:
        said.append(f"{unknown} unknown")
    if counts["failed"]:
        said.append(f"{counts['failed']} could not be compared")
    if counts["empty"]:
        said.append(f"{many(counts['empty'], 'meter')} empty")
    return "; ".join(said)


def row_lines(row: Comparison) -> list[str]:
    """Return a row of the table, and below it which period it is."""
    figures = (
        "-" if row.openmeter is None else plain(row.openmeter),
        *("?" if value is None else plain(value) for value in (row.stripe, row.after)),
        "?" if row.difference is None else plain(row.difference),
    )
    about = f"{row.period}, {row.subscription}, {row.item}, subject {row.subject}"
    texts = (row.item, row.meter, *figures)
    return [cells(texts, WIDTHS), *below(about), *below(row.note)]
