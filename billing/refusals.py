"""Meter events that Stripe took, and refused later: it tells them in thin events.

Stripe checks a meter event's names and value after its answer. What it pushes then has no details,
which are read (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api,
docs.stripe.com/api/v2/core/events/event-types).
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from billing import stripe_api
from billing.items import require_id, require_object
from billing.reports import Outcome, Services
from billing.stripe_api import Json, ReportFailed
from usage import one_line

NO_METER = "no meter"

log = logging.getLogger("app")


class Refusal(NamedTuple):
    """How many meter events Stripe refused for one reason, and what it says of the first."""

    code: str
    events: int
    message: str


def report_refused_events(event: Mapping[str, Any], services: Services) -> Outcome:
    """Say which meter events Stripe refused. Raises InvalidStripeObject."""
    outcome, event_id = Outcome(), require_id(event, "id", "")
    meter = NO_METER
    if event.get("related_object") is not None:
        meter = require_id(require_object(event, "related_object", ""), "id", "related_object")
    with outcome.record_errors(meter, refusal_is_final=False):
        refusals = list(read_refusals(fetch_reason(event_id, services)))
        for refusal in refusals:
            tell_refusal(meter, refusal, outcome)
    return outcome


def fetch_reason(event_id: str, services: Services) -> Json:
    """Read why Stripe refused meter events. Raises ReportRefused or ReportFailed."""
    path = f"/v2/core/events/{event_id}"
    data = stripe_api.fetch_object(services.stripe, "v2.core.event", path).get("data")
    reason = data.get("reason") if isinstance(data, dict) else None
    if not isinstance(reason, dict):
        raise ReportFailed("Stripe's answer has no data.reason")
    return reason


def read_refusals(reason: Json) -> Iterator[Refusal]:
    """Yield each reason with its count, and the first message. Raises ReportFailed."""
    kinds = reason.get("error_types")
    if not isinstance(kinds, list) or not all(isinstance(kind, dict) for kind in kinds):
        raise ReportFailed("Stripe's answer has no data.reason.error_types")
    for kind in kinds:
        samples, count = kind.get("sample_errors"), kind.get("error_count")
        first = samples[0] if isinstance(samples, list) and samples else {}
        message = first.get("error_message") if isinstance(first, dict) else None
        yield Refusal(
            one_line(kind.get("code")),
            count if type(count) is int else 1,
            one_line(message) if message else "without a message",
        )


def tell_refusal(meter: str, refusal: Refusal, outcome: Outcome) -> None:
    """Log and answer that usage is on no invoice until somebody mends what Stripe refused."""
    events = "event" if refusal.events == 1 else "events"
    reason = f"Stripe refused {refusal.events} meter {events} later: {refusal.code}"
    said = f"{reason} ({refusal.message}); what they told is on no invoice"
    fields = {"meter_error": refusal.code, "count": refusal.events, "outcome": "refused"}
    log.error("%s: %s", meter, said, extra={"item": meter, **fields})
    outcome.warnings.append({"item": meter, "warning": said})
