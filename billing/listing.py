"""Which subscriptions can still be billed: those that run, and those with a draft."""

import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from billing import stripe_api
from billing.clock import FRESH_SECONDS, HOUR
from billing.invoices import invoice_subscription_id, is_subscription_draft
from billing.items import InvalidStripeObject
from billing.reports import Services
from billing.stripe_api import Json, Page, ReportFailed, ReportRefused
from billing.subscriptions import (
    RUNNING,
    Subscription,
    fetch_all_entries,
    fetch_current,
    listed_entries,
    soonest_end,
)

# The longest that a draft stays one (docs.stripe.com/invoicing/integration/workflow-transitions).
DRAFT_SECONDS = 72 * HOUR
# How long before the end of a period a subscription has to be fresh, and the longest that any other
# one is taken as it was read.
SOON_SECONDS, OLD_SECONDS = 600, 40


def ends_soon(end: int, as_of: int) -> bool:
    """Say whether a period may end some minutes after a UTC second; 0 is an end not known."""
    return end - as_of < SOON_SECONDS


def is_outdated(read_at: float, end: int, services: Services) -> bool:
    """Say whether to read again what was read at a monotonic second, before it is reported.

    `end` is where its first period ends: by then it can be another one. A reset or a change cannot
    be foreseen, but one that came since does no harm within OLD_SECONDS. A running report's second
    lies before it, for a young period's is that of reading, and another's lags by more than that;
    a usage record of a period that was reset is refused. So what was used since then can at most
    be counted in the former period, too, where Stripe still counts that, and what lies between is
    less than the minute in which Stripe's answers are not known.
    """
    clock, age = services.stripe.clock, time.monotonic() - read_at
    as_of, now = clock.at(read_at), clock.now()
    if as_of < end <= now or age > OLD_SECONDS:
        return True
    return age > FRESH_SECONDS and ends_soon(end, now)


def fetch_complete(subscription: Json, read_at: float, services: Services) -> Subscription:
    """Return a subscription that was listed at a monotonic second, with all of its items.

    It is read again if it is on a test clock, or may be another one by now. Raises ReportRefused
    or ReportFailed.
    """
    try:
        end = soonest_end(subscription, listed_entries(subscription))
        if subscription.get("test_clock") or is_outdated(read_at, end, services):
            return fetch_current(str(subscription["id"]), services, "latest_invoice")
        as_of, entries = (
            services.stripe.clock.at(read_at),
            fetch_all_entries(subscription, services),
        )
        return Subscription(subscription, entries, as_of, read_at)
    except InvalidStripeObject as error:
        raise ReportFailed(str(error)) from error


def fetch_draft_invoices(subscription: Subscription, services: Services) -> list[Json]:
    """Return a subscription's drafts, oldest first, as a rule without asking Stripe again.

    Its latest invoice comes with it: if that is older than a draft can be, or is its first one
    and final, there is none. Raises ReportRefused or ReportFailed.
    """
    latest, oldest = subscription.fields.get("latest_invoice"), subscription.as_of - DRAFT_SECONDS
    if isinstance(latest, dict):
        is_first = latest.get("billing_reason") == "subscription_create"
        is_old = latest.get("created", 0) < oldest
        if is_old or (is_first and latest.get("status") != "draft"):
            return []
    found = stripe_api.list_draft_invoices(services.stripe, str(subscription.fields["id"]))
    return [invoice for invoice in found[::-1] if is_subscription_draft(invoice)]


def iter_running_subscriptions(
    services: Services, expect: Callable[[int], object] = lambda _: None, **filters: str
) -> Iterator[tuple[Json, float]]:
    """Yield subscriptions that can be billed, and the monotonic second since which they are known.

    A page is read while the one before is worked on, and `expect` told how many it has. Raises
    ReportRefused or ReportFailed.
    """

    def read_page(after: str | None) -> tuple[Page, float]:
        began = time.monotonic()
        page = stripe_api.list_subscriptions_with_latest_invoice(services.stripe, after, **filters)
        return page, began

    with ThreadPoolExecutor(1) as reader:
        coming: Future[tuple[Page, float]] | None = reader.submit(read_page, None)
        while coming:
            page, began = coming.result()
            coming = reader.submit(read_page, page.entries[-1]["id"]) if page.has_more else None
            running = [found for found in page.entries if found.get("status") in RUNNING]
            expect(len(running))
            for subscription in running:
                yield subscription, began


def iter_recently_ended(services: Services, hashes: "array[int]") -> Iterator[tuple[Json, float]]:
    """Yield subscriptions that are over, but whose last invoice is still a draft.

    `hashes` are those of the ids of which the run knows that they are not over. Raises
    ReportRefused or ReportFailed.
    """
    seen: set[int] | None = None
    since = services.stripe.clock.now() - DRAFT_SECONDS
    for invoice in stripe_api.list_recent_drafts(services.stripe, since):
        try:
            subscription_id = invoice_subscription_id(invoice)
        except InvalidStripeObject:
            continue  # a draft of no subscription
        seen = set(hashes) if seen is None else seen
        if hash(subscription_id) not in seen:
            seen.add(hash(subscription_id))
            began = time.monotonic()
            found = stripe_api.fetch_subscription(services.stripe, subscription_id)
            yield found, began


def iter_billable_subscriptions(
    services: Services, expect: Callable[[int], object]
) -> Iterator[tuple[Json, float]]:
    """Yield all subscriptions that can still be billed; tell how many more are known to come.

    Stripe's lists say no count beforehand (docs.stripe.com/api/pagination). Raises ReportRefused
    or ReportFailed.
    """
    seen = array("q")  # for there may be a million
    for subscription, read_at in iter_running_subscriptions(services, expect):
        seen.append(hash(str(subscription["id"])))
        yield subscription, read_at
    for subscription, read_at in iter_recently_ended(services, seen):
        expect(1)
        yield subscription, read_at


def iter_billable_subscriptions_by_id(
    services: Services,
    ids: list[str],
    fail: Callable[[str, str], object],
    expect: Callable[[int], object],
) -> Iterator[tuple[Json, float]]:
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
            yield found, began


def fetch_billable(subscription_id: str, services: Services) -> Json:
    """Read a subscription that can still be billed. Raises ReportRefused or ReportFailed."""
    found = stripe_api.fetch_subscription(services.stripe, subscription_id)
    if found.get("status") not in RUNNING and not stripe_api.list_draft_invoices(
        services.stripe, subscription_id
    ):
        raise ReportRefused(f"is {found.get('status')}: nothing more can be billed")
    return found
