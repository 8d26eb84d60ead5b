"""The web edge: POST /webhook, what each Stripe event is reported for, and GET /healthz."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any

import stripe
from flask import Flask, request
from flask.logging import default_handler
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    UnprocessableEntity,
)
from werkzeug.wrappers import Response

import billing
import usage
from settings import SECRETS, Services, connect, environment, read_settings

SIGNATURE_TOLERANCE_SECONDS = 300
MAX_BODY_BYTES = 1024 * 1024
FRESH_SECONDS = 5

log = logging.getLogger("app")


class Hide(logging.Filter):
    """Take secrets out of what is logged or answered, should a service echo them."""

    def __init__(self, *secrets: str | None) -> None:
        super().__init__()
        self.secrets = [text for text in secrets if text]

    def hide(self, text: str) -> str:
        """Return a text without the secrets."""
        for known in self.secrets:
            text = text.replace(known, "[hidden]")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite a record."""
        record.msg, record.args = self.hide(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = self.hide(logging.Formatter().formatException(record.exc_info))
        return True


class LevelFormatter(logging.Formatter):
    """Write a report's line as it is and put its level before any other."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = super().format(record)
        return line if record.levelno == logging.INFO else f"{record.levelname}: {line}"


def raw_body() -> bytes:
    """Return the request's body. Raises RequestEntityTooLarge above 1 MiB, or BadRequest."""
    try:
        body = request.get_data(cache=False)
    except (OSError, ParseException) as error:
        raise BadRequest("the body's chunks are malformed") from error
    # Werkzeug refuses a Content-Length over its limit, but cuts a body that comes without one;
    # hence its limit is one byte above ours.
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def genuine_event(body: bytes, signature: str | None, webhook_secret: str) -> dict[str, Any]:
    """Verify a delivery's raw bytes, then parse them.

    Raises BadRequest (docs.stripe.com/webhooks, "Verify webhook signatures manually").
    """
    if not signature:
        raise BadRequest("there is no Stripe-Signature header")
    try:
        stripe.WebhookSignature.verify_header(
            body, signature, webhook_secret, SIGNATURE_TOLERANCE_SECONDS
        )
    except stripe.SignatureVerificationError as error:
        raise BadRequest(f"Stripe-Signature: {error.user_message}") from error
    except (TypeError, UnicodeError) as error:
        raise BadRequest("the signature is not ASCII or the body is not UTF-8") from error
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is no JSON") from error
    if not isinstance(event, dict):
        raise BadRequest("the body is no event")
    return event


def event_name(event: Mapping[str, Any]) -> str:
    """Return an event's id, if it has one, for an error."""
    event_id = event.get("id")
    known = isinstance(event_id, str) and usage.STRIPE_ID.fullmatch(event_id)
    return f"event {event_id}" if known else "an event without id"


def event_object(event: Mapping[str, Any]) -> usage.Json:
    """Return the object that an event carries. Raises InvalidSubscription."""
    data = event.get("data")
    carried = data.get("object") if isinstance(data, dict) else None
    if not isinstance(carried, dict):
        raise usage.InvalidSubscription("data.object is missing")
    return carried


@dataclass(frozen=True)
class Outcome:
    """What became of each item of one delivery; goes out as JSON."""

    reported: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def warn(self, item: str, reason: str) -> None:
        """Note and log what somebody should look at, though no retry would help."""
        log.warning("%s: %s", item, reason)
        self.warnings.append({"item": item, "warning": reason})

    def fail(self, item: str, reason: str) -> None:
        """Note and log what Stripe has to send again."""
        entry = {"item": item, "error": reason}
        if entry not in self.failed:
            log.error("%s: %s", item, reason)
            self.failed.append(entry)

    @contextmanager
    def noting(self, item: str, *, final: bool = True) -> Iterator[None]:
        """Note a report that Stripe refuses, or that fails, and go on behind the `with`.

        Without `final` a refusal counts as a failure, too.
        """
        try:
            yield
        except usage.ReportRefused as error:
            (self.warn if final else self.fail)(item, str(error))
        except usage.ReportFailed as error:
            self.fail(item, str(error))


def report_updated(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the running period of each metered item, and one that closed just before it.

    An item that fails stops no other. Raises InvalidSubscription before anything is written.
    """
    outcome = Outcome()
    items = metered_items(event_object(event), services, outcome)
    running, as_of = as_it_is_now(event, items, services, outcome)
    # Items that the event leaves out are read as they are now, not as they were then: what they
    # closed is reported for the draft invoice.
    listed = [entry["id"] for entry in event_object(event)["items"]["data"]]
    for item in items:
        if item.id in listed:
            report_closed(item, event["data"].get("previous_attributes"), services, outcome)
    for item in running:
        report_item(item, as_of, services, outcome)
    return outcome


def report_deleted(event: Mapping[str, Any], services: Services) -> Outcome:
    """Report the last period of each item backed by a Billing Meter, up to the end."""
    outcome = Outcome()
    subscription = event_object(event)
    items = metered_items(subscription, services, outcome)
    for item in [usage.ended_item(item, subscription) for item in items]:
        if item.stripe_meter:
            report_item(item, item.end, services, outcome)
        else:
            outcome.skipped.append(item.id)
    return outcome


def report_invoice(event: Mapping[str, Any], services: Services) -> Outcome | None:
    """Report the closed period that a renewal's draft invoice bills; None for other invoices.

    While the answer is no 2xx, Stripe holds the draft, for 72 h at most
    (docs.stripe.com/invoicing/integration/workflow-transitions).
    """
    invoice = event_object(event)
    if (invoice.get("status"), invoice.get("billing_reason")) != ("draft", "subscription_cycle"):
        return None
    outcome = Outcome()
    subscription_id = usage.invoiced_subscription(invoice)
    with outcome.noting(subscription_id, final=False):
        subscription = billing.subscription(services.stripe, subscription_id)
        lines = all_lines(invoice, services)
        resets = earlier_resets(subscription, invoice, services)
        items = metered_items(subscription, services, outcome)
        warn_of_changes(lines, items, outcome)
        for item in items:
            closed = usage.invoiced_item(item, lines, subscription)
            if closed and item.stripe_meter:
                closed = replace(closed, exact=closed.exact | resets)
                report_item(closed, closed.end, services, outcome)
            else:
                outcome.skipped.append(item.id)
    return outcome


def warn_of_changes(
    lines: list[usage.Json], items: list[usage.MeteredItem], outcome: Outcome
) -> None:
    """Warn of invoice lines whose item has another price now, or is gone."""
    prices = {item.id: item.price for item in items}
    others = {*prices, *outcome.skipped, *(entry["item"] for entry in outcome.failed)}
    for line in lines:
        item, price = str(usage.line_item(line)), usage.line_price(line)
        if prices.get(item, price) != price or item not in others:
            outcome.warn(item, "is gone or has another price since the invoiced period; check it")


def earlier_resets(
    subscription: usage.Json, invoice: usage.Json, services: Services
) -> frozenset[int]:
    """Return where resets ended periods, if one came between an invoice and now.

    The subscription then no longer knows whether the invoice's period began with a reset.
    """
    anchors, end = usage.moved_anchor(subscription), invoice.get("period_end")
    if type(end) is not int or all(anchor < end for anchor in anchors):
        return frozenset()
    return billing.reset_instants(services.stripe, usage.stripe_id(subscription, "id", ""))


def all_lines(invoice: usage.Json, services: Services) -> list[usage.Json]:
    """Return an invoice's lines, of which an event has the first ten at most."""
    lines = invoice.get("lines")
    if not isinstance(lines, dict) or not isinstance(lines.get("data"), list):
        raise usage.InvalidSubscription("lines.data is missing")
    if lines.get("has_more"):
        return billing.invoice_lines(services.stripe, usage.stripe_id(invoice, "id", ""))
    return [line for line in lines["data"] if isinstance(line, dict)]


def as_it_is_now(
    event: Mapping[str, Any], items: list[usage.MeteredItem], services: Services, outcome: Outcome
) -> tuple[list[usage.MeteredItem], int]:
    """Return the items that run now, and the second (UTC) of which that is known.

    A late event may be of a period that a reset has ended since; the total that it leads to
    would then count in a Billing Meter's next one. So the subscription is read again, unless the
    event is fresh. Stripe itself refuses a late usage record. A test clock has its own time.
    """
    now, created = int(time.time()), event.get("created")
    if not any(item.stripe_meter for item in items):
        return items, now
    known = event_object(event)
    on_test_clock = known.get("test_clock") is not None
    if type(created) is int and now - created <= FRESH_SECONDS and not on_test_clock:
        return items, created
    subscription_id = usage.stripe_id(known, "id", "")
    with outcome.noting(subscription_id):
        if on_test_clock:
            clock_id = usage.reference(known, "test_clock")
            now = billing.test_clock_time(services.stripe, clock_id)
        subscription = billing.subscription(services.stripe, subscription_id)
        if subscription.get("status") != "canceled":
            return metered_items(subscription, services, outcome), now
    return [], now


def metered_items(
    subscription: usage.Json, services: Services, outcome: Outcome
) -> list[usage.MeteredItem]:
    """Return the items to report, none of which shares its Billing Meter with another."""
    found = []
    for n, entry in enumerate(all_items(subscription, services, outcome)):
        path = f"items.data[{n}]"
        if not isinstance(entry, dict):
            raise usage.InvalidSubscription(f"{path} is no subscription item")
        item = usage.metered_item(entry, subscription, path, services.window_size)
        if item:
            found.append(item)
        elif str(entry.get("id")) not in outcome.skipped:
            outcome.skipped.append(str(entry.get("id")))
    shared = {
        meter: [item.id for item in found if item.stripe_meter == meter]
        for meter in {item.stripe_meter for item in found if item.stripe_meter}
    }
    for meter, ids in shared.items():
        if len(ids) > 1:
            reason = f"would overwrite each other's totals on Billing Meter {meter}"
            outcome.fail(" and ".join(ids), f"{reason}, which counts per customer")
    return [item for item in found if len(shared.get(str(item.stripe_meter), [])) <= 1]


def all_items(subscription: usage.Json, services: Services, outcome: Outcome) -> list[Any]:
    """Return the items at hand and those that were left out: Stripe lists at most ten."""
    items = subscription.get("items")
    if not isinstance(items, dict) or not isinstance(items.get("data"), list):
        raise usage.InvalidSubscription("items.data is missing")
    entries: list[Any] = items["data"]
    if not items.get("has_more"):
        return entries
    known = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    subscription_id = usage.stripe_id(subscription, "id", "")
    rest = f"{subscription_id}, items after the first {len(entries)}"
    with outcome.noting(rest):
        stored = billing.subscription_items(services.stripe, subscription_id)
        return entries + [item for item in stored if item["id"] not in known]
    return entries


def report_closed(
    item: usage.MeteredItem, previous: object, services: Services, outcome: Outcome
) -> None:
    """Report the period that closed before an item's running one, if it can still be billed."""
    found = usage.closed_item(item, previous)
    if found is None:
        return
    closed, by_reset = found
    period = usage.period_name(closed)
    if not item.stripe_meter:
        reason = f"{period} has closed and can no longer be written"
        outcome.warn(item.id, f"{reason}: usage after its last report is on no invoice")
        return
    total = report_item(closed, closed.end, services, outcome)
    if by_reset and total is not None:
        reason = f"a reset ended {period}, invoiced with what had been reported by then"
        outcome.warn(
            item.id, f"{reason}; its total is {total:f}, and the rest may be on no invoice"
        )


def report_item(
    item: usage.MeteredItem, as_of: int, services: Services, outcome: Outcome
) -> Decimal | None:
    """Report one period of an item, note what became of it, and return the total if it went."""
    with outcome.noting(item.id):
        total, sent = carry(item, as_of, services)
        if total is None:
            reason = f"OpenMeter has no rows for meter {item.meter} and subject {item.subject!r}"
            outcome.warn(item.id, f"{reason}: no usage, or a wrong subject")
        report = usage.report_fields(item, total or Decimal(0))
        log.info(", ".join(f"{name}: {value}" for name, value in report.items()))
        outcome.reported.append({"item": item.id, "quantity": sent, **report})
        return total or Decimal(0)
    return None


def carry(
    item: usage.MeteredItem, as_of: int, services: Services
) -> tuple[Decimal | None, int | str]:
    """Carry an item's total over; return it, None for no rows, and what Stripe was sent.

    Raises ReportRefused or ReportFailed.
    """
    total = usage.total_usage(services.openmeter, item)
    if not item.stripe_meter:
        wait_for_first_second(item)
    return total, billing.report(services.stripe, item, total or Decimal(0), as_of)


def wait_for_first_second(item: usage.MeteredItem) -> None:
    """Sleep until the record's timestamp: Stripe takes none that lies in the future."""
    seconds = billing.record_timestamp(item) - time.time()
    if 0 < seconds <= 1:
        time.sleep(seconds)


def error_as_json(error: HTTPException) -> Response:
    """Answer an HTTP error as JSON, and log it."""
    log.warning("answered %s: %s", error.code, error.description)
    response = error.get_response()
    response.content_type = "application/json"
    response.set_data(json.dumps({"error": error.description}))
    return response


EVENTS: dict[str, Callable[[Mapping[str, Any], Services], Outcome | None]] = {
    "customer.subscription.updated": report_updated,
    "customer.subscription.deleted": report_deleted,
    "invoice.created": report_invoice,
}


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Build the service; `config`, if given, stands in for the environment.

    Raises SettingsError.
    """
    settings = read_settings(environment() if config is None else config)
    services = connect(settings)
    app = Flask("app", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1, PORT=settings["PORT"])
    app.register_error_handler(HTTPException, error_as_json)
    app.logger.setLevel(logging.INFO)
    default_handler.setFormatter(LevelFormatter())
    hidden = Hide(*(settings[name] for name in SECRETS))
    app.logger.filters[:] = [hidden]

    @app.after_request
    def without_secrets(response: Response) -> Response:
        """Answer no secret that a service may have echoed."""
        response.set_data(hidden.hide(response.get_data(as_text=True)))
        return response

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answer 200 without calling anybody."""
        return {"status": "ok"}

    @app.post("/webhook", provide_automatic_options=False)
    def webhook() -> tuple[dict[str, Any], int]:
        """Report the usage that a Stripe event is about.

        200: every item is reported, skipped, or refused for good (see `warnings`); or the
             event is none of EVENTS.
        400: not genuine: the signature or the body is wrong; nobody was called.
        413: the body is over 1 MiB.
        422: genuine, but a field is missing or cannot be billed; nothing was written.
        500: OpenMeter or Stripe failed for some item; Stripe sends the event again, and
             holds a draft invoice meanwhile.
        """
        signature = request.headers.get("Stripe-Signature")
        event = genuine_event(raw_body(), signature, settings["STRIPE_WEBHOOK_SECRET"])
        if not isinstance(event.get("type"), str):
            raise UnprocessableEntity("type is missing")
        report = EVENTS.get(event["type"])
        try:
            outcome = report(event, services) if report else None
        except usage.InvalidSubscription as error:
            raise UnprocessableEntity(f"{error} ({event_name(event)})") from error
        if outcome is None:
            return {"ignored": event["type"]}, 200
        return asdict(outcome), 500 if outcome.failed else 200

    return app


if __name__ == "__main__":
    development = create_app()
    development.run("localhost", development.config["PORT"])
