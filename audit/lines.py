"""The audit: every metered line of some time against OpenMeter, and usage that no line bills.

Pages of invoices are worked on one after the other, so that few are in memory; of each line, the
time that it covers stays. Times are UTC seconds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial

from audit import pricing
from audit.measuring import Found, Wanted, fetch_totals
from audit.reading import (
    SUBSCRIPTION_OF_INVOICE,
    AuditedInvoice,
    AuditedLine,
    Source,
    counted_of,
    read_invoice,
    read_pending_item,
    read_running,
)
from audit.repair import Repairs
from audit.rows import (
    ZERO,
    Row,
    line_key,
    missing_money,
    todo_of_line,
    with_repairs,
)
from audit.spans import Counted, Coverage
from billing import stripe_api, ways
from billing.items import InvalidStripeObject, MeteredItem
from billing.stripe_api import Json, NotReported
from usage import QueryFailed, one_line

# How many gaps are asked for at once.
MANY = 1_000


@dataclass
class Audit:
    """What is audited, from and to which second, and what was found of it so far.

    `wanted` has the subscriptions, None for all of them. `show` is told each row, `fail` what
    could not be read, `tick` the second that the list of invoices, newest first, has reached.
    `used` has the meters in which OpenMeter told some usage.
    """

    since: int
    until: int
    sources: list[Source]
    pool: Executor
    show: Callable[[Row], object]
    fail: Callable[[str, str], object]
    tick: Callable[[int], object] = lambda _: None
    wanted: set[str] | None = None
    coverage: Coverage = field(default_factory=Coverage)
    repairs: Repairs = field(default_factory=Repairs)
    billed: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    used: set[str] = field(default_factory=set)
    of_wanted: set[Counted] = field(default_factory=set)

    def run(self) -> Iterator[list[Row]]:
        """Read all accounts, and yield the rows of each invoice that has some.

        What cannot be read at all fails, and the rest goes on.
        """
        for source in self.sources:
            try:
                for filters in self.filters(source):
                    yield from self.invoices(source, filters)
                    self.read_what_runs(source, filters)
            except NotReported as error:
                self.fail(f"the account {source.name}".strip(), str(error))

    def filters(self, source: Source) -> list[dict[str, str]]:
        """Return which lists to read: all, or those of the wanted subscriptions' customers.

        Another subscription of theirs can bill what one of these does not. Raises ReportRefused
        or ReportFailed.
        """
        if self.wanted is None:
            return [{}]
        customers = set()
        for subscription in sorted(self.wanted):
            found = stripe_api.fetch_subscription(source.services.stripe, subscription)
            customers.add(str(found.get("customer")))
        return [{"customer": customer} for customer in sorted(customers)]

    def invoices(self, source: Source, filters: Mapping[str, str]) -> Iterator[list[Row]]:
        """Read the invoices that were created since then, newest first, and yield their rows.

        Those of after the end have no row, but cover the time before it. Raises ReportRefused or
        ReportFailed.
        """
        pages = stripe_api.iter_pages(
            source.services.stripe,
            "/v1/invoices",
            created={"gte": str(self.since)},
            expand=[SUBSCRIPTION_OF_INVOICE],
            **filters,
        )
        for page in pages:
            found = list(self.pool.map(partial(self.read_invoice, source=source), page))
            for invoice in found:
                self.coverage.add(invoice.coverage)
                for name, reason in invoice.failed:
                    self.fail(name, reason)
            yield from self.rows_of_page(found, source)
            if page:
                self.tick(int(page[-1].get("created") or self.since))

    def read_invoice(self, invoice: Json, source: Source) -> AuditedInvoice:
        """Read an invoice; one that cannot be read fails alone."""
        try:
            return read_invoice(invoice, source)
        except (InvalidStripeObject, NotReported) as error:
            return AuditedInvoice(invoice, failed=[(str(invoice["id"]), str(error))])

    def source_of(self, account: str) -> Source:
        """Return an account by its name."""
        return next(source for source in self.sources if source.name == account)

    def rows_of_page(self, invoices: list[AuditedInvoice], source: Source) -> Iterator[list[Row]]:
        """Yield the rows of each invoice of a page that was created in time."""
        chosen = [(invoice, self.chosen_lines(invoice)) for invoice in invoices]
        asked = (wanted_of(line) for _, lines in chosen for line in lines if not line.is_unseen)
        totals = fetch_totals(source.services.openmeter, asked, self.pool)
        rows = [
            [(self.line_row(line, invoice.fields, totals, source), line.price) for line in lines]
            for invoice, lines in chosen
            if lines
        ]
        self.fetch_repairs([row for each in rows for row, _ in each])
        for each in rows:
            yield [self.repaired(row, price) for row, price in each]

    def chosen_lines(self, invoice: AuditedInvoice) -> list[AuditedLine]:
        """Return the lines of an invoice that have a row, and note whose usage they bill."""
        created = invoice.fields.get("created")
        if type(created) is not int or created >= self.until:
            return []
        lines = [line for line in invoice.lines if self.is_wanted(line.period.item.subscription)]
        self.note_wanted(line.period.item for line in lines)
        return lines

    def note_wanted(self, items: Iterable[MeteredItem]) -> None:
        """Note whose usage the wanted subscriptions count, if not all are wanted."""
        if self.wanted is not None:
            self.of_wanted.update(counted_of(item) for item in items)

    def is_wanted(self, subscription: str) -> bool:
        """Say whether a subscription is audited."""
        return self.wanted is None or subscription in self.wanted

    def line_row(
        self, line: AuditedLine, invoice: Json, totals: Mapping[Wanted, Found], source: Source
    ) -> Row:
        """Return the row of a line; what OpenMeter or we cannot tell of it fails."""
        row = row_of_line(line, invoice, source)
        self.billed[row.meter] += row.billed
        found = totals.get(wanted_of(line))
        if isinstance(found, Decimal) and found:
            self.used.add(row.meter)
        if line.is_unseen:
            return not_compared(row, "the event of its item's change was not seen")
        if isinstance(found, QueryFailed):
            self.fail(f"{row.item} on {row.invoice}", str(found))
            return not_compared(row, "OpenMeter did not tell its total")
        try:
            return compared(row, line, found, source)
        except NotReported as error:
            self.fail(f"{row.item} on {row.invoice}", str(error))
            return not_compared(replace(row, metered=found), "it is beyond what Stripe takes")

    def fetch_repairs(self, rows: list[Row]) -> None:
        """Read what invoice items bill by now of rows with missing units."""
        lacking = {(row.account, row.customer) for row in rows if row.missing > 0 and row.line}

        def fetch(key: tuple[str, str]) -> None:
            try:
                self.repairs.fetch(key[1], self.source_of(key[0]))
            except NotReported as error:
                self.fail(f"the invoice items of {key[1]}", str(error))

        list(self.pool.map(fetch, sorted(lacking)))

    def repaired(self, row: Row, price: Json) -> Row:
        """Return a row with what invoice items bill of it; unknown ones let none be made."""
        if row.missing <= 0 or not row.line:
            return row
        known = self.repairs.known.get((row.account, row.customer))
        if known is None:
            return replace(row, repair=False)
        found = known.get(row.line)
        return with_repairs(row, price, found.units, found.state) if found else row

    def read_what_runs(self, source: Source, filters: Mapping[str, str]) -> None:
        """Add what running items and waiting invoice items cover.

        Raises ReportRefused or ReportFailed.
        """
        stripe = source.services.stripe

        def running(subscription: Json) -> Coverage:
            found, items = read_running(subscription, source)
            if self.is_wanted(str(subscription["id"])):
                self.note_wanted(items)
            return found

        self.add_all(stripe_api.iter_pages(stripe, "/v1/subscriptions", **filters), running)
        pending = stripe_api.iter_pages(stripe, "/v1/invoiceitems", pending="true", **filters)
        self.add_all(pending, partial(read_pending_item, source=source))

    def add_all(self, pages: Iterable[list[Json]], read: Callable[[Json], Coverage]) -> None:
        """Add what some objects cover; one that cannot be read fails alone."""

        def read_one(found: Json) -> Coverage:
            try:
                return read(found)
            except (InvalidStripeObject, NotReported) as error:
                self.fail(str(found["id"]), str(error))
                return Coverage()

        for page in pages:
            for coverage in self.pool.map(read_one, page):
                self.coverage.add(coverage)


def wanted_of(line: AuditedLine) -> Wanted:
    """Return what to ask OpenMeter for a line."""
    item = line.period.item
    start, end = int(item.window_start.timestamp()), int(item.window_end.timestamp())
    return Wanted(item.meter, item.subject, start, end)


def row_of_line(line: AuditedLine, invoice: Json, source: Source) -> Row:
    """Return the row of a line that is not compared yet."""
    period, asked = line.period, wanted_of(line)
    item = period.item
    billed = period.billed.units
    return Row(
        account=source.name,
        invoice=period.invoice,
        number=one_line(invoice.get("number") or ""),
        status=one_line(invoice.get("status")),
        customer=item.customer,
        subscription=item.subscription,
        item=item.id,
        price=item.price,
        meter=item.meter,
        subject=str(item.subject),
        start=asked.start,
        end=asked.end,
        billed=billed,
        currency=period.currency,
        billed_money=pricing.cost(line.price, billed) if line.charged is None else line.charged,
        line=line_key(item.id, item.price, item.start, item.end),
        is_live=source.services.is_live,
    )


def not_compared(row: Row, reason: str) -> Row:
    """Return a row of which it is not known what it lacks."""
    return replace(row, is_compared=False, todo=f"not compared: {reason}")


def compared(row: Row, line: AuditedLine, total: Decimal | None, source: Source) -> Row:
    """Return a line's row with OpenMeter's total, and what it lacks. Raises ReportFailed.

    A total counts as a report would send it: no rows, and less than nothing, as 0.
    """
    item, billed = line.period.item, line.period.billed
    sent = ways.rounded_value(source.services.stripe, item, max(total or ZERO, ZERO))
    missing = sent - billed.units
    if (billed.are_whole and int(sent) == billed.units) or row.status == "void":
        missing = ZERO
    row = replace(row, metered=total, missing=missing)
    return replace(
        row,
        money=missing_money(line.price, sent, billed.units, line.charged) if missing else ZERO,
        metered_money=pricing.cost(line.price, sent),
        todo=todo_of_line(row, is_fixed=line.period.is_fixed),
        repair=missing > 0 and row.status not in ("draft", "void"),
    )
