"""The web edge: settings, clients, POST /webhook and GET /healthz."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openmeter
import requests
import stripe
from corehttp.runtime.pipeline import PipelineResponse
from corehttp.runtime.policies import RetryPolicy
from corehttp.transport.requests import RequestsTransport
from dotenv import dotenv_values
from flask import Flask, request
from flask.logging import default_handler
from requests.adapters import HTTPAdapter
from urllib3 import Timeout
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    UnprocessableEntity,
)
from werkzeug.wrappers import Response

import usage

SIGNATURE_TOLERANCE_SECONDS = 300
MAX_BODY_BYTES = 1024 * 1024
MAX_THREADS = 32
LAST_PORT = 65_535

log = logging.getLogger("app")


class SettingsError(SystemExit):
    """Say on standard error why the service cannot start, and end it without a traceback.

    The exit status is 3, at which gunicorn stops instead of starting the worker again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 3
        print(message, file=sys.stderr)


def secret(value: str) -> str:
    """Accept what an HTTP header can carry, so that no error has to quote it."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be printable ASCII without spaces or line ends")
    return value


def base_url(value: str) -> str:
    """Accept an http(s) address without user name or query, and drop a trailing slash."""
    try:
        url = urlsplit(value)
        good = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s@?#]", value):
        raise ValueError("must be an address such as https://openmeter.example/path")
    return value.rstrip("/")


def one_of(*choices: str) -> Callable[[str], str]:
    """Accept one of the choices, spelt as here."""

    def choice(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return choice


def tcp_port(value: str) -> int:
    """Accept a TCP port."""
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= LAST_PORT:
        raise ValueError("must be a port from 1 to 65535")
    return int(value)


# Name, default (None: required; empty: optional), and what a value has to be.
SETTINGS: dict[str, tuple[str | None, Callable[[str], Any]]] = {
    "STRIPE_KEY": (None, secret),
    "STRIPE_WEBHOOK_SECRET": (None, secret),
    "STRIPE_API_BASE": ("https://api.stripe.com", base_url),
    "OPENMETER_URL": ("http://localhost:8888", base_url),
    "OPENMETER_TOKEN": ("", secret),
    "OPENMETER_WINDOW_SIZE": ("HOUR", one_of(*usage.WINDOW_SECONDS)),
    "USAGE_ROUNDING": ("down", one_of(*usage.ROUNDING)),
    "PORT": ("4242", tcp_port),
}


def read_settings(source: Mapping[str, object]) -> dict[str, Any]:
    """Return every setting of SETTINGS, checked; an empty value counts as not set.

    Raises SettingsError, whose one message names all that are missing or not valid.
    """
    settings: dict[str, Any] = {}
    missing, invalid = [], []
    for name, (default, check) in SETTINGS.items():
        given = source.get(name)
        value = str(default or "" if given in (None, "") else given)
        if not value and default is None:
            missing.append(name)
        try:
            settings[name] = check(value) if value else None
        except ValueError as error:
            invalid.append(f"{name} {error}")
    if missing or invalid:
        lines = [f"missing: {', '.join(missing)} (see .env.example)"] if missing else []
        raise SettingsError("Cannot start: " + "; ".join(lines + invalid))
    return settings


def environment() -> dict[str, str | None]:
    """Return the environment over the `.env` file beside this module."""
    return {**dotenv_values(Path(__file__).with_name(".env")), **os.environ}


class BoundedAdapter(HTTPAdapter):
    """Give one attempt 3 s to connect, 8 s to read and 9.5 s for both.

    With one retry at either service, an item's four attempts stay under 40 s.
    """

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        """Send with our time-outs, whatever the caller's are."""
        options["timeout"] = Timeout(connect=3, read=8, total=9.5)
        return super().send(request, **options)


class RetryOnce(RetryPolicy):
    """Retry at once: a `Retry-After` could make the caller sleep for hours."""

    def get_retry_after(self, response: PipelineResponse[Any, Any]) -> None:
        """Return no wait."""


def http_session() -> requests.Session:
    """Return a session that the threads of a process share."""
    session = requests.Session()
    session.max_redirects = 0
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(pool_maxsize=MAX_THREADS))
    return session


@dataclass(frozen=True)
class Clients:
    """The process's one client of each service, for all its threads."""

    stripe: stripe.StripeClient
    openmeter: openmeter.Client


def connect(settings: Mapping[str, Any]) -> Clients:
    """Return the clients; nothing is sent yet."""
    stripe.enable_telemetry = False
    return Clients(
        stripe=stripe.StripeClient(
            settings["STRIPE_KEY"],
            base_addresses={"api": settings["STRIPE_API_BASE"]},
            max_network_retries=1,
            http_client=stripe.RequestsClient(session=http_session()),
        ),
        openmeter=openmeter.Client(
            endpoint=settings["OPENMETER_URL"],
            token=settings["OPENMETER_TOKEN"],
            retry_policy=RetryOnce(retry_total=1),
            transport=RequestsTransport(session=http_session()),
        ),
    )


class LevelFormatter(logging.Formatter):
    """Write a report's line as it is and put its level before any other."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = super().format(record)
        return line if record.levelno == logging.INFO else f"{record.levelname}: {line}"


def raw_body() -> bytes:
    """Return the request's body. Raises RequestEntityTooLarge above 1 MiB."""
    body = request.get_data(cache=False)
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


def updated_subscription(event: Mapping[str, Any]) -> usage.Json:
    """Return the subscription that an event carries. Raises InvalidSubscription."""
    data = event.get("data")
    subscription = data.get("object") if isinstance(data, dict) else None
    if not isinstance(subscription, dict):
        raise usage.InvalidSubscription("data.object is missing")
    return subscription


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
        log.error("%s: %s", item, reason)
        self.failed.append({"item": item, "error": reason})


def report_subscription(
    subscription: usage.Json, clients: Clients, settings: Mapping[str, Any]
) -> Outcome:
    """Report the running period of each metered item; an item that fails stops no other.

    Raises InvalidSubscription before anything is written.
    """
    outcome = Outcome()
    planned = []
    for n, entry in enumerate(all_items(subscription, clients, outcome)):
        path = f"items.data[{n}]"
        if not isinstance(entry, dict):
            raise usage.InvalidSubscription(f"{path} is no subscription item")
        item = usage.metered_item(entry, subscription, path, settings["OPENMETER_WINDOW_SIZE"])
        if item:
            planned.append(item)
        else:
            outcome.skipped.append(str(entry.get("id")))
    for item in planned:
        report_item(item, clients, settings["USAGE_ROUNDING"], outcome)
    return outcome


def all_items(subscription: usage.Json, clients: Clients, outcome: Outcome) -> list[Any]:
    """Return the event's items and those that it left out: Stripe puts at most ten into it."""
    items = subscription.get("items")
    if not isinstance(items, dict) or not isinstance(items.get("data"), list):
        raise usage.InvalidSubscription("items.data is missing")
    entries: list[Any] = items["data"]
    if not items.get("has_more"):
        return entries
    known = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    subscription_id = usage.stripe_id(subscription, "id", "")
    rest = f"{subscription_id}, items after the first {len(entries)}"
    try:
        stored = usage.subscription_items(clients.stripe, subscription_id)
    except usage.ReportRefused as error:
        outcome.warn(rest, str(error))
    except usage.ReportFailed as error:
        outcome.fail(rest, str(error))
    else:
        return entries + [item for item in stored if item["id"] not in known]
    return entries


def report_item(item: usage.MeteredItem, clients: Clients, rounding: str, outcome: Outcome) -> None:
    """Report one item and note what became of it."""
    try:
        total, quantity = carry(item, clients, rounding)
    except usage.ReportRefused as error:
        outcome.warn(item.id, str(error))
    except usage.ReportFailed as error:
        outcome.fail(item.id, str(error))
    else:
        if total is None:
            reason = f"OpenMeter has no rows for meter {item.meter} and subject {item.subject!r}"
            outcome.warn(item.id, f"{reason}: no usage, or a wrong subject")
        report = usage.report_fields(item, total or Decimal(0))
        log.info(", ".join(f"{name}: {value}" for name, value in report.items()))
        outcome.reported.append({"item": item.id, "quantity": quantity, **report})


def carry(item: usage.MeteredItem, clients: Clients, rounding: str) -> tuple[Decimal | None, int]:
    """Set what OpenMeter counted as Stripe's quantity; return both, None for no rows.

    Raises ReportRefused or ReportFailed.
    """
    total = usage.total_usage(clients.openmeter, item)
    quantity = usage.quantity(total or Decimal(0), rounding)
    wait_for_first_second(item)
    usage.set_usage_record(clients.stripe, item, quantity)
    return total, quantity


def wait_for_first_second(item: usage.MeteredItem) -> None:
    """Sleep until the record's timestamp: Stripe takes none that lies in the future."""
    seconds = item.record_timestamp - time.time()
    if 0 < seconds <= 1:
        time.sleep(seconds)


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
    clients = connect(settings)
    app = Flask("app", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1, PORT=settings["PORT"])
    app.register_error_handler(HTTPException, error_as_json)
    app.logger.setLevel(logging.INFO)
    default_handler.setFormatter(LevelFormatter())

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answer 200 without calling anybody."""
        return {"status": "ok"}

    @app.post("/webhook", provide_automatic_options=False)
    def webhook() -> tuple[dict[str, Any], int]:
        """Report the usage of the subscription that a Stripe event carries.

        200: every item is reported, skipped, or refused for good (see `warnings`); or the
             event is of another type.
        400: not genuine: the signature or the body is wrong; nobody was called.
        413: the body is over 1 MiB.
        422: genuine, but a field is missing or cannot be billed; nothing was written.
        500: OpenMeter or Stripe failed for some item; Stripe sends the event again.
        """
        signature = request.headers.get("Stripe-Signature")
        event = genuine_event(raw_body(), signature, settings["STRIPE_WEBHOOK_SECRET"])
        if not isinstance(event.get("type"), str):
            raise UnprocessableEntity("type is missing")
        if event["type"] != "customer.subscription.updated":
            return {"ignored": event["type"]}, 200
        try:
            outcome = report_subscription(updated_subscription(event), clients, settings)
        except usage.InvalidSubscription as error:
            event_id = str(event.get("id"))[:64]
            raise UnprocessableEntity(f"{error} (event {event_id!r})") from error
        return asdict(outcome), 500 if outcome.failed else 200

    return app


if __name__ == "__main__":
    development = create_app()
    development.run("localhost", development.config["PORT"])
