"""Which subscriptions can still be billed: those that run, and those with a draft."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from billing import stripe_api
from billing.clock import FRESH_SECONDS
from billing.invoices import invoice_subscription_id, is_subscription_draft
from billing.items import InvalidStripeObject
from billing.reports import Services
from billing.stripe_api import Json, Page, ReportFailed, ReportRefused
from billing.subscriptions import RUNNING, Subscription, fetch_all_entries, fetch_current

# The longest that a draft stays one (docs.stripe.com/invoicing/integration/workflow-transitions).
DRAFT_SECONDS = 72 * 3_600


def fetch_complete(subscription: Json, as_of: int, services: Services) -> Subscription:
    """Return a listed subscription with all of its items.

    It is read again if it is on a test clock, or its page was read a while ago: a period can have
    ended since, by itself or by a reset. Raises ReportRefused or ReportFailed.
    """
    is_old = services.stripe.clock.now() - as_of > FRESH_SECONDS
    if is_old or subscription.get("test_clock"):
        return fetch_current(str(subscription["id"]), services, "latest_invoice")
    try:
        return Subscription(subscription, fetch_all_entries(subscription, services), as_of)
    except InvalidStripeObject as error:
        raise ReportFailed(str(error)) from error


def fetch_draft_invoices(subscription: Subscription, services: Services) -> list[Json]:
    """Return a subscription's drafts, oldest first, as a rule without asking Stripe again.

    Its latest invoice comes with it: if that is older than a draft can be, or is its first one
    and final, there is none. Raises ReportRefused or ReportFailed.
    """
    latest, oldest = subscription.fields.get("latest_invoice"), subscription.as_of - DRAFT_SECONDS
    if isinstance(latest, Mapping):
        is_first = latest.get("billing_reason") == "subscription_create"
        is_old = latest.get("created", 0) < oldest
        if is_old or (is_first and latest.get("status") != "draft"):
            return []
    found = stripe_api.list_draft_invoices(services.stripe, str(subscription.fields["id"]))
    return [invoice for invoice in found[::-1] if is_subscription_draft(invoice)]


def iter_running_subscriptions(
    services: Services, expect: Callable[[int], object] = lambda _: None, **filters: str
) -> Iterator[tuple[Json, int]]:
    """Yield subscriptions that can be billed, and since which UTC second they are known.

    A page is read while the one before is worked on, and `expect` told how many it has. Raises
    ReportRefused or ReportFailed.
    """

    def read_page(after: str | None) -> tuple[Page, int]:
        began = time.monotonic()
        page = stripe_api.list_subscriptions_with_latest_invoice(services.stripe, after, **filters)
        return page, services.stripe.clock.at(began)

    with ThreadPoolExecutor(1) as reader:
        coming: Future[tuple[Page, int]] | None = reader.submit(read_page, None)
        while coming:
            page, as_of = coming.result()
            coming = reader.submit(read_page, page.entries[-1]["id"]) if page.has_more else None
            running = [found for found in page.entries if found.get("status") in RUNNING]
            expect(len(running))
            for subscription in running:
                yield subscription, as_of


def iter_recently_ended(services: Services, seen: set[str]) -> Iterator[tuple[Json, int]]:
    """Yield subscriptions that are over, but whose last invoice is still a draft.

    `seen` has those of which the run knows that they are not over. Raises ReportRefused or
    ReportFailed.
    """
    since = services.stripe.clock.now() - DRAFT_SECONDS
    for invoice in stripe_api.list_recent_drafts(services.stripe, since):
        try:
            subscription_id = invoice_subscription_id(invoice)
        except InvalidStripeObject:
            continue  # a draft of no subscription
        if subscription_id not in seen:
            seen.add(subscription_id)
            began = time.monotonic()
            found = stripe_api.fetch_subscription(services.stripe, subscription_id)
            yield found, services.stripe.clock.at(began)


def iter_billable_subscriptions(
    services: Services, expect: Callable[[int], object]
) -> Iterator[tuple[Json, int]]:
    """Yield all subscriptions that can still be billed; tell how many more are known to come.

    Stripe's lists say no count beforehand (docs.stripe.com/api/pagination). Raises ReportRefused
    or ReportFailed.
    """
    seen = set[str]()
    for subscription, as_of in iter_running_subscriptions(services, expect):
        seen.add(str(subscription["id"]))
        yield subscription, as_of
    for subscription, as_of in iter_recently_ended(services, seen):
        expect(1)
        yield subscription, as_of


def iter_billable_subscriptions_by_id(
    services: Services,
    ids: list[str],
    fail: Callable[[str, str], object],
    expect: Callable[[int], object],
) -> Iterator[tuple[Json, int]]:
    """Yield the subscriptions of these ids with the second of reading; fail those that are over.

    One is over when it has ended and none of its invoices is a draft any more.
    """
    expect(len(ids))
    for subscription_id in ids:
        began = time.monotonic()
        try:
            found = fetch_billable(subscription_id, services)
        except (ReportRefused, ReportFailed) as error:
            expect(-1)
            fail(subscription_id, str(error))
        else:
            yield found, services.stripe.clock.at(began)


def fetch_billable(subscription_id: str, services: Services) -> Json:
    """Read a subscription that can still be billed. Raises ReportRefused or ReportFailed."""
    found = stripe_api.fetch_subscription(services.stripe, subscription_id)
    if found.get("status") not in RUNNING and not stripe_api.list_draft_invoices(
        services.stripe, subscription_id
    ):
        raise ReportRefused(f"is {found.get('status')}: nothing more can be billed")
    return found
