"""What is reported of periods that ended: by an update, or as an invoice says.

Times are UTC seconds.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from billing import changes, losses, stripe_api
from billing.changes import EndedPeriod
from billing.clock import KEPT_SECONDS
from billing.invoices import InvoicedPeriod, ItemsAtPeriodEnd, fetch_invoiced_periods, is_of_reset
from billing.items import (
    LATEST_SECOND,
    InvalidStripeObject,
    MeteredItem,
    is_free,
    read_item,
    require_expandable_id,
)
from billing.reports import Outcome, PendingReport, Services
from billing.stripe_api import Json, ReportFailed
from billing.subscriptions import Subscription, fail_items_that_overwrite

UNSEEN = "is gone or has another price, but the customer.subscription.updated of that was not seen"
ITEM_PATH = "previous_attributes.items"


@dataclass(frozen=True)
class Update:
    """A subscription after an update, what that changed, as it was before, and the periods ended.

    `as_of` is the UTC second at which all this was known.
    """

    subscription: Subscription
    as_of: int
    previous: Json = field(default_factory=dict)
    ended: list[EndedPeriod] = field(default_factory=list)

    @property
    def item_periods_known(self) -> bool:
        """Say whether it shows the period of each item."""
        return changes.item_periods_known(self.previous, self.subscription.entries)

    def can_change_what_counts(self, current: Subscription) -> bool:
        """Say whether, since before it, an item may have come to count something else."""
        changed = self.previous.get("metadata")
        names = changed if isinstance(changed, dict) else {}
        is_ours = "items" in self.previous or any(name.startswith("om_") for name in names)
        return is_ours or current != self.subscription

    @property
    def fields_with_previous_metadata(self) -> Json:
        """Return the subscription with the metadata that it had before."""
        return changes.with_previous_metadata(self.previous, self.subscription.fields)

    @property
    def boundaries_before(self) -> frozenset[int]:
        """Return where boundaries were that are not rounded, and that it no longer shows."""
        return changes.boundaries_before(self.previous, self.subscription.fields)


def as_it_is(current: Subscription) -> Update:
    """Return a subscription without a change."""
    return Update(current, current.as_of)


def read_ended_item(update: Update, period: EndedPeriod, services: Services) -> MeteredItem | None:
    """Return an item as it was in a period that ended; None if it names no meter.

    Only where the same item and price go on from a renewal, its end is rounded to the window.
    Raises InvalidStripeObject.
    """
    bounds = (period.start, period.end)
    fields = update.fields_with_previous_metadata
    item = read_item(period.before, fields, ITEM_PATH, services.window_size, bounds)
    if item is None:
        return None
    ends = frozenset() if period.renewed_unchanged else frozenset([period.end])
    return replace(item, unrounded=item.unrounded | update.boundaries_before | ends)


def read_chargeable_item(
    update: Update, period: EndedPeriod, services: Services
) -> MeteredItem | None:
    """Return an item as it was in a period that ended; None if it names no meter, or was free."""
    if is_free(period.before, update.fields_with_previous_metadata, period.start, period.end):
        return None
    return read_ended_item(update, period, services)


def changed_reports(update: Update, services: Services, outcome: Outcome) -> list[PendingReport]:
    """Return the periods that ended in the middle: their item is gone, or has another price.

    Raises InvalidStripeObject.
    """
    reports = []
    for period in update.ended:
        item = read_chargeable_item(update, period, services)
        if period.by != "change" or item is None or period.carries_usage_over:
            continue
        if not update.item_periods_known:
            losses.warn_of_unknown_period(item.id, outcome)
            continue
        # Whoever did not know of the change may have told the new price's usage with a second of
        # this period: this report has the last one.
        as_of = max(update.as_of, item.end + KEPT_SECONDS)
        mode = update.subscription.billing_mode
        check = partial(losses.warn_of_change, after=period.after, mode=mode)
        writes = item.billing_meter is not None
        reports.append(PendingReport(item, as_of, writes=writes, check=check))
    return reports


def closing_reports(update: Update, services: Services, outcome: Outcome) -> list[PendingReport]:
    """Return the periods that a renewal, a reset or a subscription's end closed.

    The latest invoice says what it bills of them. Where it has no line for one, the item as it
    was has to do. Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    closed = [period for period in update.ended if period.by != "change"]
    if not closed:
        return []
    reports = ended_reports_from_latest_invoice(replace(update, ended=closed), services, outcome)
    billed = {(report.item.id, report.item.end) for report in reports}
    if update.item_periods_known:
        for period in closed:
            item = read_chargeable_item(update, period, services)
            if item and (item.id, item.end) not in billed:
                reports.append(report_without_invoice_line(item, period.by, update.as_of))
    return reports


def late_change_corrections(
    update: Update, current: Subscription, services: Services, outcome: Outcome
) -> list[PendingReport]:
    """Return closed periods that a change began, where its event came only after their renewal.

    What was reported of them counted too much. Raises InvalidStripeObject, ReportRefused or
    ReportFailed.
    """
    began = {
        str(period.before.get("id")): period.end
        for period in update.ended
        if period.by == "change" and period.starts_new_count
    }
    late = {
        str(entry.get("id"))
        for entry in current.entries
        if (changes.period_now(entry, current.fields)[0] or 0)
        > began.get(str(entry.get("id")), LATEST_SECOND)
    }
    if not late:
        return []
    invoice = fetch_latest_invoice(current, services)
    if invoice is None:
        return []
    reports = invoice_reports(invoice, as_it_is(current), services, outcome, wanted=late)
    return [report for report in reports if report.item.end > began[report.item.id]]


def report_without_invoice_line(item: MeteredItem, by: str, as_of: int) -> PendingReport:
    """Return what to do about a closed period for which the latest invoice has no line.

    Another draft of a renewal may have it, as in classic billing mode after a schedule's switch.
    """
    by_meter = item.billing_meter is not None
    expected = by_meter and by == "renewal"
    check = None if expected else partial(losses.warn_of_no_invoice, by=by)
    return PendingReport(item, as_of, writes=by_meter and by != "end", check=check)


def ended_reports_from_latest_invoice(
    update: Update, services: Services, outcome: Outcome
) -> list[PendingReport]:
    """Return the periods that ended, as the invoice that a subscription names its latest has them.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    invoice = fetch_latest_invoice(update.subscription, services)
    if invoice is None:
        return []
    ends = {period.end for period in update.ended}
    reports = invoice_reports(invoice, update, services, outcome)
    return [report for report in reports if report.item.end in ends]


def fetch_latest_invoice(subscription: Subscription, services: Services) -> Json | None:
    """Read the invoice that a subscription names as its latest, if there is one.

    Raises InvalidStripeObject, ReportRefused or ReportFailed.
    """
    if subscription.fields.get("latest_invoice") is None:
        return None
    invoice_id = require_expandable_id(subscription.fields, "latest_invoice")
    return stripe_api.fetch_invoice(services.stripe, invoice_id)


def invoice_reports(
    invoice: Json,
    update: Update,
    services: Services,
    outcome: Outcome,
    wanted: set[str] | None = None,
) -> list[PendingReport]:
    """Return the closed periods that an invoice bills: of all items, or of those that are wanted.

    Lines of which no event told enough yet fail, but where an update's own event looks at an
    invoice: those it leaves to the draft's. Raises ReportRefused, or ReportFailed also where
    Stripe's answer cannot be read.
    """
    subscription = update.subscription
    try:
        found = fetch_invoiced_periods(
            invoice,
            subscription.fields,
            known_items(update),
            services.stripe,
            services.window_size,
        )
    except InvalidStripeObject as error:
        raise ReportFailed(f"as it is in Stripe now, {error}") from error
    for item in () if update.ended else found.unseen:
        if wanted is None or item in wanted:
            outcome.fail(item, f"{UNSEEN}: resend it in Stripe")
    kept = fail_items_that_overwrite([period.item for period in found.periods], outcome)
    by_reset = is_of_reset(invoice)
    return [
        invoice_report(period, update.as_of, by_reset)
        for period in found.periods
        if period.item in kept and (wanted is None or period.item.id in wanted)
    ]


def known_items(update: Update) -> ItemsAtPeriodEnd:
    """Return what an update tells of a subscription's items, or else how they are now."""
    before = {str(period.before.get("id")): period for period in update.ended}
    entries = {str(entry.get("id")): entry for entry in update.subscription.entries}
    return ItemsAtPeriodEnd(
        entries | {item: period.before for item, period in before.items()},
        {item: period.renewed_unchanged for item, period in before.items()},
        update.boundaries_before,
    )


def invoice_report(period: InvoicedPeriod, as_of: int, by_reset: bool) -> PendingReport:
    """Return what to do about a period that an invoice bills.

    A final one can only be compared. That a reset's has no draft hour is observed, not documented.
    """
    item = period.item
    check = partial(losses.warn_of_invoice_difference, invoiced=period, by_reset=by_reset)
    return PendingReport(
        item,
        as_of,
        writes=(period.is_draft or by_reset) and item.billing_meter is not None,
        check=check if period.is_fixed else None,
        invoiced=period,
    )
