"""Usage that no line bills, or two do: what nobody counts, gaps, overlaps, idle items.

It is known once all lines and running items are read. Times are UTC seconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import TypeVar

import usage
from audit.lines import Audit
from audit.measuring import Wanted, fetch_totals
from audit.rows import GAP, IDLE, NOBODY, OVERLAP, ZERO, Row, line_key, missing_money
from audit.spans import OPEN_END, Counted, Gap, Overlap
from billing.invoices import read_currency
from billing.stripe_api import Json, NotReported
from usage import OpenMeterCustomer, QueryFailed, Whose, window_start_at

# How many times are asked for at once.
MANY = 1_000

Timed = TypeVar("Timed")


def find_unbilled(audit: Audit) -> Iterator[Row]:
    """Yield what no line bills, or two do, meter by meter."""
    client = audit.sources[0].services.openmeter
    start, end = window_start_at(audit.since, 1), window_start_at(audit.until, 1)
    for meter in audit.coverage.meters:
        try:
            used = usage.totals(client, meter, None, start, end)
        except QueryFailed as error:
            audit.fail(f"meter {meter}", str(error))
            continue
        if not used and audit.billed[meter] and meter not in audit.used:
            reason = (
                "nobody had usage in that time: is OPENMETER_URL right, and OpenMeter complete?"
            )
            audit.fail(f"meter {meter}", reason)
            continue
        yield from find_in_meter(meter, used, audit)


def find_in_meter(meter: str, used: Mapping[str, Decimal], audit: Audit) -> Iterator[Row]:
    """Yield a meter's gaps, what nobody bills, overlaps, and running items without usage.

    `used` has the usage of each subject that had some.
    """
    largest = fetch_usage_of_customers(meter, audit)
    largest.update(used.items())
    counted = sorted(
        (each for each in audit.coverage.counted if each.meter == meter and is_wanted(each, audit)),
        key=lambda each: str(each.subject),
    )
    busy = [each for each in counted if each.subject in largest]
    yield from gap_rows(busy, audit)
    if audit.wanted is None:
        for subject in sorted(used.keys() - {each.subject for each in counted}):
            if used[subject]:
                yield nobody_row(Counted(meter, subject), used[subject], audit)
    yield from overlap_rows(busy, audit)
    for each in counted:
        if largest.get(each.subject, ZERO) == 0:
            yield from idle_rows(each, audit)


def is_wanted(counted: Counted, audit: Audit) -> bool:
    """Say whether a wanted subscription counts a subject or customer, if not all are wanted."""
    owner = audit.coverage.owners.get(counted)
    return audit.wanted is None or counted in audit.of_wanted or owner in audit.of_wanted


def fetch_usage_of_customers(meter: str, audit: Audit) -> dict[Whose, Decimal | None]:
    """Return the largest total that a subject of each customer with usage had.

    Notes whose these subjects are, as they are now. A customer of whom OpenMeter does not tell
    that fails, and has None.
    """
    client = audit.sources[0].services.openmeter
    start, end = window_start_at(audit.since, 1), window_start_at(audit.until, 1)
    customers = [
        (each, each.subject)
        for each in audit.coverage.counted
        if each.meter == meter and isinstance(each.subject, OpenMeterCustomer)
    ]

    def ask(customer: OpenMeterCustomer) -> dict[str, Decimal] | None:
        try:
            return usage.totals(client, meter, customer, start, end)
        except QueryFailed as error:
            unknown = "its subjects may stand among those that nobody counts"
            audit.fail(str(customer), f"{error}; {unknown}")
            return None

    largest: dict[Whose, Decimal | None] = {}
    found = audit.pool.map(ask, [customer for _, customer in customers])
    for (counted, customer), totals in zip(customers, found, strict=True):
        if totals is None:
            largest[customer] = None
            continue
        audit.coverage.owners |= {Counted(meter, subject): counted for subject in totals}
        if totals:
            largest[customer] = max(totals.values(), key=abs)
    return largest


def gap_rows(counted: list[Counted], audit: Audit) -> Iterator[Row]:
    """Yield the gaps that hold usage."""
    found = (
        (each, gap)
        for each in counted
        for gap in audit.coverage.gaps(each, audit.since, audit.until)
    )
    for some in portions(found):
        totals = fetch_all(((each, gap.start, gap.end) for each, gap in some), audit)
        rows = [
            priced_gap(each, gap, total, audit)
            for each, gap in some
            if (total := totals[Wanted(*each, gap.start, gap.end)])
        ]
        audit.fetch_repairs([row for row, _ in rows])
        yield from (audit.repaired(row, price) for row, price in rows)


def priced_gap(counted: Counted, gap: Gap, total: Decimal, audit: Audit) -> tuple[Row, Json]:
    """Return the row of a gap, and the price that last applied if it is known."""
    row = gap_row(counted, gap, total)
    if gap.before is None or not gap.knows_price:
        return row, {}
    source = audit.source_of(gap.before.account)
    try:
        price = source.fetch_price(gap.before.price, {})
    except NotReported as error:
        audit.fail(gap.before.price, str(error))
        return row, {}
    money = missing_money(price, max(total, ZERO), ZERO)
    row = replace(row, currency=read_currency(price), money=money, is_live=source.services.is_live)
    is_due = gap.is_inside and bool(money) and total > 0
    return replace(row, repair=is_due), price


def gap_row(counted: Counted, gap: Gap, total: Decimal) -> Row:
    """Return the row of a gap, with what came before it."""
    before = gap.before
    if not gap.is_inside:
        todo = "no subscription counted it then: is that meant?"
    elif before is None or not gap.knows_price:
        todo = "on no invoice, and no line tells its price: bill it by hand"
    else:
        todo = "on no invoice: flask audit --repair makes an invoice item over it"
    row = Row(
        kind=GAP,
        meter=counted.meter,
        subject=str(counted.subject),
        start=gap.start,
        end=gap.end,
        metered=total,
        missing=total,
        todo=todo,
    )
    if before is None:
        return row
    return replace(
        row,
        account=before.account,
        customer=before.customer,
        subscription=before.subscription,
        item=before.item,
        price=before.price if gap.knows_price else "",
        line=line_key(before.item, before.price, gap.start, gap.end) if gap.knows_price else "",
    )


def nobody_row(counted: Counted, total: Decimal, audit: Audit) -> Row:
    """Return the row of a subject that no line and no running item counts."""
    return Row(
        kind=NOBODY,
        meter=counted.meter,
        subject=str(counted.subject),
        start=audit.since,
        end=audit.until,
        metered=total,
        missing=total,
        todo="no line and no running item counts this subject: is a subject wrong?",
    )


def overlap_rows(counted: list[Counted], audit: Audit) -> Iterator[Row]:
    """Yield the overlaps that hold usage."""
    found = (
        (each, overlap)
        for each in counted
        for overlap in audit.coverage.overlaps(each, audit.since, audit.until)
    )
    for some in portions(found):
        totals = fetch_all(((each, over.start, over.end) for each, over in some), audit)
        for each, over in some:
            total = totals[Wanted(*each, over.start, over.end)]
            if total:
                yield overlap_row(each, over, total)


def overlap_row(counted: Counted, overlap: Overlap, total: Decimal) -> Row:
    """Return the row of usage that two lines, or running items, bill."""
    both = (overlap.first, overlap.second)
    return Row(
        kind=OVERLAP,
        account=both[0].account,
        invoice=together(span.invoice or "running" for span in both),
        customer=together(span.customer for span in both),
        subscription=together(span.subscription for span in both),
        item=together(span.item for span in both),
        price=together(span.price for span in both),
        meter=counted.meter,
        subject=str(counted.subject),
        start=overlap.start,
        end=overlap.end,
        metered=total,
        billed=2 * total,
        missing=-total,
        todo="two items bill the same usage: let each name its own meter or subject",
    )


def together(names: Iterable[str]) -> str:
    """Return names in one text, each once."""
    return " and ".join(dict.fromkeys(names))


def idle_rows(counted: Counted, audit: Audit) -> Iterator[Row]:
    """Yield a subject's running items: it had no usage in that time."""
    for span in audit.coverage.spans.get(counted, []):
        if span.end == OPEN_END and span.start < audit.until:
            yield Row(
                kind=IDLE,
                account=span.account,
                customer=span.customer,
                subscription=span.subscription,
                item=span.item,
                price=span.price,
                meter=counted.meter,
                subject=str(counted.subject),
                start=audit.since,
                end=audit.until,
                todo="runs without any usage: is its subject right?",
            )


def portions(found: Iterable[Timed]) -> Iterator[list[Timed]]:
    """Yield as many as are asked for at once."""
    left = iter(found)
    while some := list(islice(left, MANY)):
        yield some


def fetch_all(
    asked: Iterable[tuple[Counted, int, int]], audit: Audit
) -> dict[Wanted, Decimal | None]:
    """Return the totals of some times; one that OpenMeter does not tell fails."""
    wanted = [Wanted(*counted, start, end) for counted, start, end in asked]
    found = fetch_totals(audit.sources[0].services.openmeter, wanted, audit.pool)
    totals: dict[Wanted, Decimal | None] = {}
    for each, total in found.items():
        if isinstance(total, QueryFailed):
            audit.fail(f"subject {each.subject}", str(total))
        totals[each] = None if isinstance(total, QueryFailed) else total
    return totals
