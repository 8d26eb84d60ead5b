"""The web edge: POST /webhook, GET /healthz, and the `flask report` command."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
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

import periodic
import usage
from events import EVENTS
from logs import Hide, LevelFormatter
from settings import SECRETS, connect, environment, read_settings

SIGNATURE_TOLERANCE_SECONDS = 300
MAX_BODY_BYTES = 1024 * 1024

log = logging.getLogger("app")


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


def error_as_json(error: HTTPException) -> Response:
    """Answer an HTTP error as JSON, and log it."""
    log.warning("answered %s: %s", error.code, error.description)
    response = error.get_response()
    response.content_type = "application/json"
    response.set_data(json.dumps({"error": error.description}))
    return response


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Build the service; `config`, if given, stands in for the environment.

    Raises SettingsError.
    """
    settings = read_settings(environment() if config is None else config)
    services = connect(settings)
    app = Flask("app", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1, PORT=settings["PORT"])
    app.extensions["services"] = services
    app.cli.add_command(periodic.report)
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
