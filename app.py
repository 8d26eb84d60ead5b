"""The web edge: POST /webhook, and what the service is made of."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from http.client import INTERNAL_SERVER_ERROR, OK, UNPROCESSABLE_ENTITY
from typing import Any

import stripe
from flask import Flask, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    UnprocessableEntity,
)
from werkzeug.wrappers import Response

import health
import logs
import metrics
import periodic
import usage
from events import EVENTS
from reports import Outcome, milliseconds_since
from settings import connect, environment, read_settings, secrets_of
from transport import within

SIGNATURE_TOLERANCE_SECONDS = 300
MAX_BODY_BYTES = 1024 * 1024
# So that a delivery is answered within 40 s; Stripe's own time-out is not published.
DELIVERY_SECONDS = 38
OUTCOMES = {UNPROCESSABLE_ENTITY: "invalid", INTERNAL_SERVER_ERROR: "error"}

log = logging.getLogger("app")


def raw_body() -> bytes:
    """Return the request's body. Raises RequestEntityTooLarge above 1 MiB, or BadRequest."""
    try:
        body = request.get_data(cache=False)
    except ClientDisconnected as error:
        raise BadRequest("the body did not come whole, or too slowly") from error
    except (OSError, ParseException) as error:
        raise BadRequest("the body's chunks are malformed") from error
    # Werkzeug refuses a Content-Length over its limit, but cuts a body that comes without one;
    # hence its limit is one byte above ours.
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def verify(body: bytes, signature: str | None, secrets: tuple[str, ...]) -> None:
    """See that a delivery's raw bytes were signed with one of the secrets.

    Raises BadRequest (docs.stripe.com/webhooks, "Verify webhook signatures manually").
    """
    if not signature:
        raise BadRequest("there is no Stripe-Signature header")
    reasons: dict[str | None, None] = {}
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(
                body, signature, secret, SIGNATURE_TOLERANCE_SECONDS
            )
        except stripe.SignatureVerificationError as error:
            reasons[error.user_message] = None
        except (TypeError, UnicodeError) as error:
            raise BadRequest("the signature is not ASCII or the body is not UTF-8") from error
        else:
            return
    raise BadRequest(f"Stripe-Signature: {' / '.join(map(str, reasons))}")


def parsed(body: bytes) -> dict[str, Any]:
    """Return a verified delivery's event. Raises BadRequest."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is no JSON") from error
    if not isinstance(event, dict):
        raise BadRequest("the body is no event")
    return event


def event_name(event: Mapping[str, Any]) -> str:
    """Return an event's id, if it has one, for a line."""
    event_id = event.get("id")
    known = isinstance(event_id, str) and usage.STRIPE_ID.fullmatch(event_id)
    return f"event {event_id}" if known else "an event without id"


def log_delivery(level: int, said: str, status: int, outcome: str) -> None:
    """Log what became of a delivery, once."""
    taken = {"milliseconds": milliseconds_since(g.began)}
    log.log(level, said, extra={"status": status, "outcome": outcome, **taken})


def answer(event: Mapping[str, Any], outcome: Outcome | None) -> tuple[dict[str, Any], int]:
    """Return what a genuine event is answered with, and log it."""
    name = f"{event_name(event)} ({usage.one_line(event['type'])})"
    if outcome is None:
        log_delivery(logging.INFO, f"{name}: ignored", OK, "ignored")
        return {"ignored": event["type"]}, OK
    status, word = (INTERNAL_SERVER_ERROR, "failed") if outcome.failed else (OK, "reported")
    log_delivery(logging.INFO, f"{name}: {outcome}", status, word)
    return asdict(outcome), status


def error_as_json(error: HTTPException) -> Response:
    """Answer an HTTP error as JSON, and log it."""
    code, said = int(error.code or 0), f"answered {error.code}: {error.description}"
    if request.endpoint == "webhook":
        log_delivery(logging.WARNING, said, code, OUTCOMES.get(code, "not genuine"))
    else:
        log.warning(said)
    response = error.get_response()
    response.content_type = "application/json"
    response.set_data(json.dumps({"error": error.description}))
    return response


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Build the service; `config`, if given, stands in for the environment.

    Raises SettingsError.
    """
    settings = read_settings(environment() if config is None else config)
    services = connect(settings, metrics.observer) if settings["METRICS"] else connect(settings)
    app = Flask("app", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1, PORT=settings["PORT"])
    app.extensions["services"] = services
    app.cli.add_command(periodic.report)
    app.register_error_handler(HTTPException, error_as_json)
    logs.register(app, settings["LOG_FORMAT"], secrets_of(settings))
    health.register(app, services)
    if settings["METRICS"]:
        metrics.register(app, EVENTS)

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
        body, signature = raw_body(), request.headers.get("Stripe-Signature")
        verify(body, signature, settings["STRIPE_WEBHOOK_SECRET"])
        event = parsed(body)
        logs.begin(event=usage.one_line(event.get("id")), type=usage.one_line(event.get("type")))
        if not isinstance(event.get("type"), str):
            raise UnprocessableEntity("type is missing")
        report = EVENTS.get(event["type"])
        try:
            with within(DELIVERY_SECONDS):
                outcome = report(event, services) if report else None
        except usage.InvalidSubscription as error:
            raise UnprocessableEntity(f"{error} ({event_name(event)})") from error
        return answer(event, outcome)

    return app


if __name__ == "__main__":
    development = create_app()
    development.run("localhost", development.config["PORT"])
