"""Calls to Stripe and pages of its lists, as plain data, and what a refusal means."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import BAD_REQUEST, CONFLICT, TOO_MANY_REQUESTS
from threading import Lock
from typing import Any, NamedTuple

import stripe
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from billing.clock import StripeClock
from service.health import OK, LastAnswer
from service.rates import NoTurn, Rates
from service.transport import DEADLINE, seconds_left
from usage import cause_text, one_line

MAX_PAGES = 10
# The most that Stripe gives in one page (docs.stripe.com/api/pagination).
PAGE_LIMIT = 100
# How long a call is repeated while Stripe is busy: within the time of one delivery.
BUSY_SECONDS = 3
# How long a Billing Meter is taken as it was read: it can be deactivated.
METER_SECONDS = 300

# Whether a code says that a time is past
# (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
TIME_CODES = {"timestamp_too_far_in_past": True, "timestamp_in_future": False}

Json = Mapping[str, Any]


class NotReported(Exception):
    """Say why an item could not be reported; `request_id` is Stripe's, if it answered."""

    def __init__(self, reason: str, request_id: str | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id


class ReportFailed(NotReported):
    """Say why an item could not be reported now; a later try may succeed."""


class StripeBusy(ReportFailed):
    """Say that Stripe asks to come again soon (409, 429)."""


class StripeUnavailable(ReportFailed):
    """Say that Stripe did not answer, or not usably."""


class ReportRefused(NotReported):
    """Say why Stripe does not take an item's report; no later try can succeed."""


class PeriodClosed(ReportRefused):
    """Say that an item's period can no longer be written."""


class GoneFromStripe(ReportRefused):
    """Say that the account of the key has no such object."""


class Page(NamedTuple):
    """A page of a list of Stripe's, and whether more follow."""

    entries: list[Json]
    has_more: bool


class KnownMeters:
    """The Billing Meters that were read within the last minutes, by account and id.

    One reads for all who need it at the same time, so that a run of many threads asks once.
    """

    def __init__(self) -> None:
        self.lock, self.known = Lock(), dict[tuple[str, ...], tuple[float, Json]]()

    def get(self, key: tuple[str, ...], read: Callable[[], Json]) -> Json:
        """Return a meter, read now if need be. Raises what `read` does, or ReportFailed."""
        if found := self.known_of_late(key):
            return found
        if not self.lock.acquire(timeout=max(0, seconds_left())):
            raise ReportFailed(f"Billing Meter {key[-1]} was not read in time")
        try:
            if found := self.known_of_late(key):
                return found
            read_at = time.monotonic()
            found = read()
            self.known[key] = (read_at, found)
            return found
        finally:
            self.lock.release()

    def known_of_late(self, key: tuple[str, ...]) -> Json | None:
        """Return a meter that was read within the last minutes."""
        read_at, found = self.known.get(key, (0.0, None))
        return found if time.monotonic() - read_at <= METER_SECONDS else None


@dataclass(frozen=True)
class StripeConnection:
    """Stripe's client and time, how totals are rounded for it, and the Billing Meters read of late.

    `scope` names another account than the key's: `stripe_account` or `stripe_context`, with its
    id. `rates` gives each request its turn; while Stripe is busy (409, 429), a call is repeated
    for `busy_seconds`. `answered` has what Stripe answered last to the key's own account.
    """

    client: stripe.StripeClient
    rounding: str
    clock: StripeClock = field(default_factory=StripeClock)
    scope: Mapping[str, str] = field(default_factory=dict)
    meters: KnownMeters = field(default_factory=KnownMeters)
    busy_seconds: float = BUSY_SECONDS
    rates: Rates = field(default_factory=Rates)
    answered: LastAnswer = field(default_factory=LastAnswer)

    def for_scope(self, **scope: str) -> "StripeConnection":
        """Return the connection to another account (docs.stripe.com/connect/authentication)."""
        return replace(self, scope=scope)

    def wait_for_turn(self, method: str, path: str) -> None:
        """Wait until a request may go out. Raises ReportFailed."""
        try:
            self.rates.take_turn(method, path, until=DEADLINE.get(), is_scoped=bool(self.scope))
        except NoTurn as error:
            raise ReportFailed(str(error)) from error

    def key_of(self, object_id: str) -> tuple[str, ...]:
        """Return what an object is kept by, beside those of other accounts."""
        return (*self.scope.values(), object_id)


def stripe_state(account: StripeConnection) -> str:
    """Return `ok` if Stripe answers and knows the key, or why not."""
    try:
        call_once(account, "get", "/v1/subscriptions", limit=1)
    except NotReported as error:
        return str(error)
    return "ok"


def fetch_now(account: StripeConnection) -> int:
    """Return Stripe's UTC second; it is asked for it if it has not told it, by any answer.

    Where it does not answer, it is this host's.
    """
    if not account.clock.is_known:
        stripe_state(account)
    return account.clock.now()


def fetch_subscription(account: StripeConnection, subscription_id: str, *expand: str) -> Json:
    """Read a subscription as it is now, with the objects of some fields.

    Raises ReportRefused or ReportFailed.
    """
    path = f"/v1/subscriptions/{subscription_id}"
    return fetch_object(account, "subscription", path, **{"expand": expand} if expand else {})


def fetch_invoice(account: StripeConnection, invoice_id: str) -> Json:
    """Read an invoice as it is now. Raises ReportRefused or ReportFailed."""
    return fetch_object(account, "invoice", f"/v1/invoices/{invoice_id}")


def set_finalization(account: StripeConnection, invoice_id: str, at: int) -> None:
    """Let a draft become final at a UTC second. Raises ReportRefused or ReportFailed.

    (docs.stripe.com/api/invoices/update, automatically_finalizes_at)
    """
    path, when = f"/v1/invoices/{invoice_id}", {"automatically_finalizes_at": at}
    answer = call(account, "post", path, auto_advance=True, **when)
    if answer.get("object") != "invoice":
        raise ReportFailed("Stripe's answer is no invoice")


def set_metadata(
    account: StripeConnection, kind: str, object_id: str, key: str, value: str
) -> None:
    """Write a key of an object's metadata. Raises ReportRefused or ReportFailed."""
    answer = call(account, "post", f"/v1/{kind}s/{object_id}", metadata={key: value})
    if answer.get("object") != kind:
        raise ReportFailed(f"Stripe's answer is no {kind.replace('_', ' ')}")


def fetch_object(account: StripeConnection, kind: str, path: str, **query: Any) -> Json:
    """Read an object and see that it is one of its kind. Raises ReportRefused or ReportFailed."""
    found = call(account, "get", path, **query)
    if found.get("object") != kind:
        raise ReportFailed(f"Stripe's answer is no {kind}")
    return found


def fetch_test_clock_time(account: StripeConnection, test_clock_id: str) -> int:
    """Read the UTC second at which a test clock stands. Raises ReportRefused or ReportFailed."""
    found = call(account, "get", f"/v1/test_helpers/test_clocks/{test_clock_id}")
    if type(found.get("frozen_time")) is not int:
        raise ReportFailed("Stripe's answer is no test clock")
    return int(found["frozen_time"])


def list_subscription_items(account: StripeConnection, subscription_id: str) -> list[Json]:
    """Read all items of a subscription. Raises ReportRefused or ReportFailed."""
    return list_all(account, "/v1/subscription_items", subscription=subscription_id)


def list_invoices(account: StripeConnection, subscription_id: str) -> list[Json]:
    """Read all invoices of a subscription. Raises ReportRefused or ReportFailed."""
    return list_all(account, "/v1/invoices", subscription=subscription_id)


def list_invoice_lines(account: StripeConnection, invoice_id: str) -> list[Json]:
    """Read all lines of an invoice. Raises ReportRefused or ReportFailed."""
    return list_all(account, f"/v1/invoices/{invoice_id}/lines")


def list_draft_invoices(account: StripeConnection, subscription_id: str) -> list[Json]:
    """Read the drafts among a subscription's invoices. Raises ReportRefused or ReportFailed."""
    return list_all(account, "/v1/invoices", subscription=subscription_id, status="draft")


def list_recent_drafts(account: StripeConnection, since: int) -> Iterator[Json]:
    """Yield all drafts that were created since a UTC second.

    Raises ReportRefused or ReportFailed.
    """
    after: str | None = None
    while True:
        page = list_page(
            account, "/v1/invoices", after, status="draft", created={"gte": str(since)}
        )
        yield from page.entries
        if not page.has_more:
            return
        after = str(page.entries[-1]["id"])


def list_subscriptions_with_latest_invoice(
    account: StripeConnection, after: str | None = None, **filters: str
) -> Page:
    """Read up to 100 subscriptions that have not ended, with each one's latest invoice.

    `after` is the last id of the page before. Raises ReportRefused or ReportFailed.
    """
    return list_page(account, "/v1/subscriptions", after, expand=["data.latest_invoice"], **filters)


def list_undelivered_events(
    account: StripeConnection, types: list[str], since: int, after: str | None = None
) -> Page:
    """Read up to 100 events since a UTC second of which a delivery failed or is pending.

    The newest come first; Stripe keeps 30 days (docs.stripe.com/api/events/list). Raises
    ReportRefused or ReportFailed.
    """
    filters = {"types": types, "delivery_success": "false", "created": {"gte": str(since)}}
    return list_page(account, "/v1/events", after, **filters)


def iter_pages(account: StripeConnection, path: str, **filters: Any) -> Iterator[list[Json]]:
    """Yield a list page by page, and read one while the one before is worked on.

    Raises ReportRefused or ReportFailed.
    """
    with ThreadPoolExecutor(1) as reader:
        coming: Future[Page] | None = reader.submit(list_page, account, path, None, **filters)
        while coming:
            page, coming = coming.result(), None
            if page.has_more:
                after = page.entries[-1]["id"]
                coming = reader.submit(list_page, account, path, after, **filters)
            yield page.entries


def list_page(account: StripeConnection, path: str, after: str | None, **filters: Any) -> Page:
    """Read up to 100 entries of a list (docs.stripe.com/api/pagination).

    Raises ReportRefused or ReportFailed.
    """
    start = {"starting_after": after} if after else {}
    page = call(account, "get", path, limit=PAGE_LIMIT, **filters, **start)
    entries = page.get("data")
    if not isinstance(entries, list) or not all(has_id(entry) for entry in entries):
        raise ReportFailed("Stripe's answer is no list")
    return Page(entries, bool(page.get("has_more") and entries))


def list_all(account: StripeConnection, path: str, **filters: Any) -> list[Json]:
    """Read a list to its end, 1,000 entries at most. Raises ReportRefused or ReportFailed."""
    found: list[Json] = []
    for _ in range(MAX_PAGES):
        after = found[-1]["id"] if found else None
        page = list_page(account, path, after, **filters)
        found += page.entries
        if not page.has_more:
            return found
    raise ReportFailed(f"Stripe lists more than {len(found)} at {path}")


def has_id(entry: object) -> bool:
    """Say whether an entry of a list is an object with an id."""
    return isinstance(entry, dict) and isinstance(entry.get("id"), str)


def call(account: StripeConnection, method: str, path: str, **options: Any) -> Json:
    """Call Stripe and return the answer as plain data. Raises ReportRefused or ReportFailed.

    While Stripe is busy, call again with growing, jittered waits (docs.stripe.com/rate-limits).
    """
    return patiently(account, is_busy, partial(call_once, account, method, path, **options))


def post_latest(
    account: StripeConnection, path: str, form: Callable[[], Json], **options: Any
) -> Json:
    """Post what `form` returns once the call has its turn, and anew whenever it is repeated.

    It is repeated while Stripe is busy, and once if Stripe does not answer. Raises ReportRefused,
    or ReportFailed, also of `form`.
    """

    def post() -> Json:
        account.wait_for_turn("post", path)
        return send(account, "post", path, **form(), **options, max_network_retries=0)

    return patiently(account, is_busy_or_first_unavailable, post)


def patiently(
    account: StripeConnection,
    is_worth_it: Callable[[RetryCallState], bool],
    work: Callable[[], Json],
) -> Json:
    """Call Stripe, and again as long as that is worth it; for some seconds while it is busy."""
    failures = list[ReportFailed]()
    try:
        return work()
    except (StripeBusy, StripeUnavailable) as error:
        failures.append(error)

    def attempt() -> Json:
        """Fail as the first attempt did, or make another one."""
        if failures:
            raise failures.pop()
        return work()

    was_busy_for_long = stop_before_delay(account.busy_seconds)
    # tenacity takes a tenth of a call's CPU time, so it sees only calls that fail.
    repeated = Retrying(
        retry=is_worth_it,
        wait=wait_random_exponential(multiplier=0.1, max=1),
        stop=lambda state: is_busy(state) and was_busy_for_long(state),
        reraise=True,
    )
    return repeated(attempt)


is_busy = retry_if_exception_type(StripeBusy)
is_unavailable = retry_if_exception_type(StripeUnavailable)


def is_busy_or_first_unavailable(state: RetryCallState) -> bool:
    """Say whether to repeat a call: while Stripe is busy, and after the first without an answer."""
    return is_busy(state) or (state.attempt_number == 1 and is_unavailable(state))


def call_once(account: StripeConnection, method: str, path: str, **options: Any) -> Json:
    """Call Stripe, in its turn. Raises StripeBusy, ReportRefused or ReportFailed."""
    account.wait_for_turn(method, path)
    return send(account, method, path, **options)


def send(account: StripeConnection, method: str, path: str, **options: Any) -> Json:
    """Call Stripe now. Raises StripeBusy, StripeUnavailable, ReportRefused or ReportFailed."""
    sent_at = time.monotonic()
    try:
        response = account.client.raw_request(method, path, **options, **account.scope)
        account.clock.hear(response.headers, sent_at)
        answer = response.data
        note_answer(account, OK)
    except stripe.InvalidRequestError as error:
        account.clock.hear(error.headers, sent_at)
        note_answer(account, OK)
        now = account.clock.now()
        raise refused_or_failed(error, options.get("timestamp", now), now) from error
    except stripe.StripeError as error:
        account.clock.hear(error.headers, sent_at)
        kind = kind_of_failure(error)
        if kind is not StripeBusy:
            note_answer(account, error_reason(error))
        elif reason := (error.headers or {}).get("Stripe-Rate-Limited-Reason"):
            account.rates.slow_down(method, path, reason, is_scoped=bool(account.scope))
        raise kind(error_reason(error), error.request_id) from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # stripe-python trips over an `error` that is no object.
        raise ReportFailed("Stripe's answer is unreadable") from error
    return answer if isinstance(answer, dict) else {}


def note_answer(account: StripeConnection, said: str) -> None:
    """Note that Stripe answers, or why not, unless it is about another account than the key's."""
    if not account.scope:
        account.answered.note(said)


def kind_of_failure(error: stripe.StripeError) -> type[ReportFailed]:
    """Return what an error is that is none of the request's own."""
    if error.http_status in (CONFLICT, TOO_MANY_REQUESTS):
        # Whatever its Stripe-Should-Retry says: that is about the same request, ours is a new one.
        return StripeBusy
    is_silent = isinstance(error, stripe.APIError | stripe.APIConnectionError)
    return StripeUnavailable if is_silent else ReportFailed


def refused_or_failed(
    error: stripe.InvalidRequestError, timestamp: int, now: int
) -> ReportRefused | ReportFailed:
    """Say whether a later try could succeed, where `timestamp` was sent and it is `now`, if any."""
    reason = error_reason(error)
    if is_of_past(error, timestamp, now):
        return PeriodClosed(f"the billing period has closed: {reason}", error.request_id)
    if error.code == "resource_missing":
        return GoneFromStripe(f"gone from Stripe: {reason}", error.request_id)
    return ReportFailed(reason, error.request_id)


def is_of_past(error: stripe.InvalidRequestError, timestamp: int, now: int) -> bool:
    """Say whether Stripe refuses a time as past: one in the future is taken later.

    Where it gives no code, what was sent tells it, or the words: a test clock has its own time.
    A usage record's "must not be in the future"
    (docs.stripe.com/api/usage_records/create?api-version=2025-02-24.acacia).
    """
    if error.code in TIME_CODES:
        return TIME_CODES[error.code]
    is_of_time = error.param == "timestamp" and error.http_status == BAD_REQUEST
    return is_of_time and timestamp <= now and "future" not in error_reason(error)


def error_reason(error: stripe.StripeError) -> str:
    """Say what failed, without an answer's body or anything that shows a part of the key."""
    if isinstance(error, stripe.APIConnectionError):
        return f"Stripe did not answer ({cause_text(error.__cause__ or error)})"
    if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
        return f"Stripe answered {error.http_status}: STRIPE_KEY is wrong or lacks a permission"
    if isinstance(error, stripe.APIError):
        return f"Stripe answered {error.http_status} and no usable answer"
    return f"Stripe answered {error.http_status}: {one_line(error.user_message)}"
