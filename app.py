"""The web edge: POST /webhook, and what the service is made of."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from http.client import INTERNAL_SERVER_ERROR, OK, SERVICE_UNAVAILABLE, UNPROCESSABLE_ENTITY
from typing import Any

import click
from flask import Flask, g, request
from flask.cli import AppGroup, FlaskGroup
from flask.logging import default_handler
from gunicorn.http.errors import ParseException
from pyrate_limiter import Duration, Rate
from stripe import SignatureVerificationError, WebhookSignature
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    UnprocessableEntity,
)
from werkzeug.utils import import_string
from werkzeug.wrappers import Response

from billing import events
from billing.clock import StripeClock
from billing.items import STRIPE_ID, InvalidStripeObject
from billing.reports import Outcome, Services, milliseconds_since
from billing.stripe_api import StripeConnection, stripe_state
from service import logs
from service.clients import create_clients
from service.cores import stay_on_one_core
from service.health import Check, Readiness
from service.late import LateAnswers, sent_at
from service.rates import Rates, SharedBudget
from service.settings import (
    NOTES_FOLDER,
    is_live,
    key_kind,
    load_environment,
    read_settings,
    secrets_of,
)
from service.sharing import shared_budget, shared_notes, shared_redis
from service.transport import Observe, limit_time_of_calls
from usage import one_line, openmeter_state, window_start_at

SIGNATURE_TOLERANCE_SECONDS = 300
# How far this host's clock may be ahead before Stripe has told its time.
HOST_AHEAD_SECONDS = 300
MAX_BODY_BYTES = 1024 * 1024
# So that a delivery is answered within 40 s; Stripe's own time-out is not published.
DELIVERY_SECONDS = 38
# How long Stripe need not answer anything before a probe asks it, and how often one does at most,
# twelve times an hour: an account's reads are limited (docs.stripe.com/rate-limits).
QUIET_SECONDS, PROBE_RATE = 300, Rate(2, 10 * Duration.MINUTE)
# How long it waits for a turn and an answer.
PROBE_SECONDS = 10
RESENT = (
    "nothing is reported, and Stripe sends this event again for up to three days, as it was; "
    "mend its object in Stripe, which sends a new event, or run flask report --subscription"
)
# The settings that commands and app.py look up; none is a secret but the heartbeat's.
CONFIG = ("HOST", "PORT", "HEARTBEAT_URL", "LOG_FORMAT", "STRIPE_API_BASE", "OPENMETER_URL")
OUTCOMES = {UNPROCESSABLE_ENTITY: "invalid", INTERNAL_SERVER_ERROR: "error"}
COMMANDS = {
    "audit": "audit.command:audit_command",
    "doctor": "doctor.command:doctor_command",
    "replay": "billing.replay:replay_command",
    "report": "billing.periodic:report_command",
}

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


def verify_signature(
    body: bytes, signature: str | None, secrets: tuple[str, ...], clock: StripeClock
) -> None:
    """See that a delivery's raw bytes were signed of late with one of the secrets.

    The age goes by this host's clock, which may be ahead of Stripe's. Raises BadRequest
    (docs.stripe.com/webhooks, "Verify webhook signatures manually").
    """
    if not signature:
        raise BadRequest("there is no Stripe-Signature header")
    ahead = clock.host_is_ahead() if clock.is_known else HOST_AHEAD_SECONDS
    tolerance = SIGNATURE_TOLERANCE_SECONDS + max(0, ahead)
    reasons: dict[str | None, None] = {}
    for secret in secrets:
        try:
            WebhookSignature.verify_header(body, signature, secret, tolerance)
        except SignatureVerificationError as error:
            reasons[error.user_message] = None
        except (TypeError, UnicodeError) as error:
            raise BadRequest("the signature is not ASCII or the body is not UTF-8") from error
        else:
            return
    raise BadRequest(f"Stripe-Signature: {' / '.join(map(str, reasons))}")


def parse_event(body: bytes) -> dict[str, Any]:
    """Return a verified delivery's event. Raises BadRequest."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is no JSON") from error
    if not isinstance(event, dict):
        raise BadRequest("the body is no event")
    return event


def event_id_text(event: Mapping[str, Any]) -> str:
    """Return an event's id, if it has one, for a line."""
    event_id = event.get("id")
    known = isinstance(event_id, str) and STRIPE_ID.fullmatch(event_id)
    return f"event {event_id}" if known else "an event without id"


def parties_text(parties: Mapping[str, str]) -> str:
    """Return whose event it is, as far as it says that, for a line."""
    found = ", ".join(parties.values())
    return f" of {found}" if found else ""


def report_in_time(
    event: Mapping[str, Any], parties: Mapping[str, str], services: Services
) -> Outcome | None:
    """Report what a genuine event is about; None if it is ignored. Raises UnprocessableEntity."""
    try:
        with limit_time_of_calls(DELIVERY_SECONDS):
            return events.report_event(event, services)
    except InvalidStripeObject as error:
        said = f"{error} ({event_id_text(event)}{parties_text(parties)})"
        raise UnprocessableEntity(f"{said}: {RESENT}") from error


def log_delivery(level: int, said: str, status: int, outcome: str) -> None:
    """Log what became of a delivery, once."""
    taken = {"milliseconds": milliseconds_since(g.began)}
    log.log(level, said, extra={"status": status, "outcome": outcome, **taken})


def log_and_respond(
    event: Mapping[str, Any], parties: Mapping[str, str], outcome: Outcome | None
) -> tuple[dict[str, Any], int]:
    """Return what a genuine event is answered with, and log it."""
    label = f"{event_id_text(event)} ({one_line(event['type'])}){parties_text(parties)}"
    if outcome is None:
        log_delivery(logging.INFO, f"{label}: ignored", OK, "ignored")
        return {"ignored": event["type"]}, OK
    status, word = (INTERNAL_SERVER_ERROR, "failed") if outcome.failed else (OK, "reported")
    log_delivery(logging.INFO, f"{label}: {outcome}", status, word)
    return outcome.as_json(), status


def log_and_repeat(event: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return what an event is answered with that was reported before, and log it."""
    log_delivery(
        logging.INFO,
        f"{event_id_text(event)}: reported before, too late for Stripe to hear of it",
        OK,
        "repeated",
    )
    return {"repeated": event["id"]}, OK


def outcome_of(code: int) -> str:
    """Return what a delivery counts as that was answered with an error."""
    # Anybody may send what is not signed; a signature that is wrong points to our secret.
    is_signed = "Stripe-Signature" in request.headers
    return OUTCOMES.get(code, "not genuine" if is_signed else "not signed")


def log_and_respond_to_error(error: HTTPException) -> Response:
    """Answer an HTTP error as JSON, and log it."""
    code, said = int(error.code or 0), f"answered {error.code}: {error.description}"
    if request.endpoint == "webhook":
        # A genuine one that nothing is reported for needs somebody; any other needs a look.
        level = logging.ERROR if code == UNPROCESSABLE_ENTITY else logging.WARNING
        log_delivery(level, said, code, outcome_of(code))
    else:
        log.info(said)  # a scanner's, or a path mistyped
    response = error.get_response()
    response.content_type = "application/json"
    response.set_data(json.dumps({"error": error.description}))
    return response


class SyncFlask(Flask):
    """Flask, with views and hooks that are all plain functions."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function as it is, without a look at what it is in each request."""
        return func


class Commands(AppGroup):
    """The commands of `flask`, each imported when it is asked for: a worker needs none of them."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return their names."""
        return list(COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """Return the one of a name."""
        place = COMMANDS.get(cmd_name)
        return import_string(place) if place else None


def is_for_a_command() -> bool:
    """Say whether `flask` itself asks for the service, to find one of its commands.

    `flask run` asks from a context of its own, and gunicorn and app.py from none.
    """
    context = click.get_current_context(silent=True)
    return context is not None and isinstance(context.command, FlaskGroup)


def create_app(config: Mapping[str, object] | None = None) -> Flask:
    """Build the service; `config`, if given, stands in for the environment.

    Only for a command it can be without a webhook's secret, and then has no /webhook. Raises
    StartupExit.
    """
    source = load_environment() if config is None else config
    if is_for_a_command():
        stay_on_one_core()
    settings = read_settings(source, serves=not is_for_a_command())
    redis = shared_redis(settings)
    services = build_services(settings, build_rates(settings, shared_budget(redis)))
    app = SyncFlask("app", static_folder=None)
    app.cli = Commands("app")
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES + 1)
    app.config.update({name: settings[name] for name in CONFIG})
    app.config["WEBHOOK_SECRETS"] = len(settings["STRIPE_WEBHOOK_SECRET"] or ())
    app.config["KEY_KIND"] = key_kind(settings["STRIPE_KEY"])
    app.extensions["services"] = services
    app.register_error_handler(HTTPException, log_and_respond_to_error)
    configure_logging(app, settings)
    if settings["STRIPE_WEBHOOK_SECRET"]:
        secrets = settings["STRIPE_WEBHOOK_SECRET"]
        late = LateAnswers(secrets, shared_notes(redis, source.get(NOTES_FOLDER)))
        add_webhook(app, services, secrets, late)
    add_probes(app, services)
    if settings["METRICS"]:
        enable_metrics(app)
    return app


def build_rates(settings: Mapping[str, Any], shared: SharedBudget | None) -> Rates:
    """Return our share of what Stripe allows, for a worker of the service or for a command."""
    is_command = is_for_a_command()
    return Rates(
        settings["STRIPE_RATE_SHARE"],
        is_live=is_live(settings["STRIPE_KEY"]),
        is_command=is_command,
        processes=1 if is_command else settings["WEB_CONCURRENCY"],
        shared=shared,
    )


def call_observer() -> Callable[[str], Observe]:
    """Return what counts the calls to a service."""
    # Prometheus' client takes a megabyte, which a worker without metrics need not have.
    from service import metrics  # noqa: PLC0415

    return metrics.observer


def build_services(settings: Mapping[str, Any], rates: Rates) -> Services:
    """Return what deliveries and commands report with."""
    observer = {"observe": call_observer()} if settings["METRICS"] else {}
    clients = create_clients(settings, **observer)
    return Services(
        openmeter=clients.openmeter,
        stripe=StripeConnection(clients.stripe, settings["USAGE_ROUNDING"], rates=rates),
        window_size=settings["OPENMETER_WINDOW_SIZE"],
        pool=clients.pool,
        grace_seconds=settings["INVOICE_GRACE_HOURS"] * 3_600,
        is_live=is_live(settings["STRIPE_KEY"]),
        account_option="stripe_context" if "_org_" in settings["STRIPE_KEY"] else "stripe_account",
    )


def configure_logging(app: Flask, settings: Mapping[str, Any]) -> None:
    """Log a line for each outcome, and neither log nor answer secrets."""
    hidden = logs.SecretFilter(*secrets_of(settings))
    logs.configure_logger(app.logger, default_handler, settings["LOG_FORMAT"], hidden)
    app.extensions["secrets"] = hidden

    @app.before_request
    def begin_request() -> None:
        """Note when a request began, and that nothing is known of it yet."""
        g.began = time.monotonic()
        logs.replace_log_fields()

    @app.after_request
    def without_secrets(response: Response) -> Response:
        """Answer no secret that a service may have echoed."""
        said = response.get_data(as_text=True)
        if (kept := hidden.hide(said)) != said:
            response.set_data(kept)
        return response


def add_webhook(
    app: Flask, services: Services, secrets: tuple[str, ...], late: LateAnswers
) -> None:
    """Answer Stripe's deliveries that are signed with one of the secrets."""

    @app.post("/webhook", provide_automatic_options=False)
    def webhook() -> tuple[dict[str, Any], int]:
        """Report the usage that a Stripe event is about.

        200: every item is reported, skipped, or refused for good (see `warnings`); or the
             event is none of EVENTS, or of the other mode than the key; or this is the next
             attempt of one that was reported too late for Stripe to hear of it.
        400: not genuine: the signature or the body is wrong; nobody was called.
        413: the body is over 1 MiB.
        422: genuine, but a field is missing or cannot be billed; nothing was written.
        500: OpenMeter or Stripe failed for some item; Stripe sends the event again, and
             holds a draft invoice meanwhile.
        """
        body, signature = raw_body(), request.headers.get("Stripe-Signature")
        verify_signature(body, signature, secrets, services.stripe.clock)
        event = parse_event(body)
        about = {"event": one_line(event.get("id")), "type": one_line(event.get("type"))}
        parties = events.parties(event)
        logs.replace_log_fields(**about, **parties)
        sent = sent_at(signature)
        is_repeated = late.take(event, sent)
        outcome = None if is_repeated else report_in_time(event, parties, services)
        if is_repeated or (outcome is not None and not outcome.failed):
            late.note(event, sent, services.stripe.clock.now())
        return log_and_repeat(event) if is_repeated else log_and_respond(event, parties, outcome)


def add_probes(app: Flask, services: Services) -> None:
    """Answer whether this process runs, and whether it can do its work."""

    def ask_openmeter() -> str:
        """Ask for a meter that was reported last."""
        now = window_start_at(services.stripe.clock.now(), 60)
        return openmeter_state(services.openmeter, services.queried.meter, now)

    def ask_stripe() -> str:
        """Ask for anything, unless what is under way takes all turns."""
        with limit_time_of_calls(PROBE_SECONDS):
            return stripe_state(services.stripe)

    checks = {
        "openmeter": Check(ask_openmeter, services.queried),
        "stripe": Check(
            ask_stripe,
            services.stripe.answered,
            ok_seconds=QUIET_SECONDS,
            rate=PROBE_RATE,
        ),
    }
    readiness = Readiness(checks, services.pool)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """Answer 200 without calling anybody."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> tuple[dict[str, str], int]:
        """Answer 200 if both services answered within the last seconds, or 503 and why not."""
        found = readiness.current_answers()
        return found, OK if set(found.values()) == {"ok"} else SERVICE_UNAVAILABLE


def enable_metrics(app: Flask) -> None:
    """Count from here on, and answer what was counted."""
    from prometheus_client import CONTENT_TYPE_LATEST  # noqa: PLC0415

    from service import metrics  # noqa: PLC0415

    metrics.count_lines(app.logger, events.EVENTS)

    @app.get("/metrics")
    def metrics_page() -> Response:
        """Answer in Prometheus' text form."""
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)


if __name__ == "__main__":
    development = create_app()
    development.run(development.config["HOST"].strip("[]"), development.config["PORT"])
