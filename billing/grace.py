"""How long a renewal's draft waits for late usage, where the team lets it wait.

Until it becomes final, what is reported of its periods still counts
(docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period). Times are UTC seconds.
"""

from billing import stripe_api
from billing.clock import HOUR
from billing.items import utc_text
from billing.reports import PendingReport, Services, log
from billing.stripe_api import Json, ReportFailed

# Stripe schedules no later time by itself, so a later one was set by somebody.
LONGEST_SCHEDULED = 72 * HOUR


def let_draft_wait(
    invoice_id: str, reports: list[PendingReport], as_of: int, services: Services
) -> None:
    """Let a draft become final the grace after its periods' end, if they still count until then.

    Stripe then holds it no more for a failed delivery (docs.stripe.com/invoicing/
    scheduled-finalization), so this comes after the reports. Raises ReportRefused or ReportFailed.
    """
    items = [report.item for report in reports if report.counts_until_final]
    if not items or not services.grace_seconds:
        return
    # A grace may not be as long as the period itself (configure-grace-period).
    if services.grace_seconds >= min(item.end - item.start for item in items):
        log.info("%s: its periods are shorter than INVOICE_GRACE_HOURS", invoice_id)
        return
    until = max(item.end for item in items) + services.grace_seconds
    # After a delivery that was taken, a draft waits for an hour anyway.
    if until <= as_of + HOUR:
        return
    if is_to_wait(stripe_api.fetch_invoice(services.stripe, invoice_id), until):
        set_finalization(invoice_id, until, services)


def is_to_wait(invoice: Json, until: int) -> bool:
    """Say whether an invoice is a draft that becomes final by itself, at no time that was set."""
    scheduled, created = invoice.get("automatically_finalizes_at"), invoice.get("created")
    if invoice.get("status") != "draft" or invoice.get("auto_advance") is not True:
        return False
    if type(scheduled) is not int or type(created) is not int:
        return True
    return scheduled != until and scheduled <= created + LONGEST_SCHEDULED


def set_finalization(invoice_id: str, until: int, services: Services) -> None:
    """Set when a draft becomes final. Raises ReportRefused or ReportFailed."""
    try:
        stripe_api.set_finalization(services.stripe, invoice_id, until)
    except ReportFailed as error:
        reason = f"could not be let wait for INVOICE_GRACE_HOURS: {error}"
        needs = "STRIPE_KEY needs the right invoice_write"
        raise ReportFailed(f"{reason}; {needs}", error.request_id) from error
    log.info("%s: becomes final at %s", invoice_id, utc_text(until))
