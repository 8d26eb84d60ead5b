"""What the service starts with: its settings, and the clients that they lead to."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openmeter
import stripe
from corehttp.runtime.pipeline import PipelineResponse
from corehttp.runtime.policies import RetryPolicy
from corehttp.transport.requests import RequestsTransport
from dotenv import dotenv_values

import billing
import usage
from transport import Observe, http_session, unobserved

# Items that one process reports at the same time; gunicorn's 64 threads read beside them.
POOL_THREADS = 32
LAST_PORT = 65_535


class SettingsError(SystemExit):
    """Say on standard error why the service cannot start, and end it without a traceback.

    The exit status is 3, at which gunicorn stops instead of starting the worker again; under
    the `flask` command 1, for `flask report` has its own 3.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 1 if os.environ.get("FLASK_RUN_FROM_CLI") else 3
        print(message, file=sys.stderr)


def secret(value: str) -> str:
    """Accept what an HTTP header can carry, so that no error has to quote it."""
    if not re.fullmatch(r"[!-~]+", value):
        raise ValueError("must be printable ASCII without spaces or line ends")
    return value


def one_or_two_secrets(value: str) -> tuple[str, ...]:
    """Accept a secret, or two separated by a comma while one replaces the other."""
    given = tuple(part.strip(" ") for part in value.split(","))
    if len(given) > 2:  # noqa: PLR2004 - as the name says
        raise ValueError("must be one secret, or two separated by a comma")
    return tuple(secret(part) for part in given)


def base_url(value: str) -> str:
    """Accept an http(s) address without user name or query, and drop a trailing slash."""
    try:
        url = urlsplit(value)
        host = (url.hostname or "").encode("idna")
        good = url.scheme in ("http", "https") and host and url.port != 0
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


def switch(value: str) -> bool:
    """Accept 0 or 1."""
    return one_of("0", "1")(value) == "1"


def tcp_port(value: str) -> int:
    """Accept a TCP port."""
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= LAST_PORT:
        raise ValueError("must be a port from 1 to 65535")
    return int(value)


# Name, default (None: required; empty: optional), and what a value has to be.
SETTINGS: dict[str, tuple[str | None, Callable[[str], Any]]] = {
    "STRIPE_KEY": (None, secret),
    "STRIPE_WEBHOOK_SECRET": (None, one_or_two_secrets),
    "STRIPE_API_BASE": ("https://api.stripe.com", base_url),
    "OPENMETER_URL": ("http://localhost:8888", base_url),
    "OPENMETER_TOKEN": ("", secret),
    "OPENMETER_WINDOW_SIZE": ("HOUR", one_of(*usage.WINDOW_SECONDS)),
    "USAGE_ROUNDING": ("down", one_of(*usage.ROUNDING)),
    "PORT": ("4242", tcp_port),
    "LOG_FORMAT": ("text", one_of("text", "json")),
    "METRICS": ("0", switch),
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


def secrets_of(settings: Mapping[str, Any]) -> list[str]:
    """Return what must not be seen."""
    single = [settings[name] for name, (_, check) in SETTINGS.items() if check is secret]
    return [*filter(None, single), *settings["STRIPE_WEBHOOK_SECRET"]]


def environment() -> dict[str, str | None]:
    """Return what is set in the environment over the `.env` file beside this module."""
    try:
        file = dotenv_values(Path(__file__).with_name(".env"))
    except UnicodeError as error:
        raise SettingsError("Cannot start: .env is not UTF-8") from error
    except OSError as error:
        raise SettingsError("Cannot start: .env cannot be read by this user") from error
    return {**file, **{name: value for name, value in os.environ.items() if value}}


class RetryOnce(RetryPolicy):
    """Retry at once: a `Retry-After` could make the caller sleep for hours."""

    def get_retry_after(self, response: PipelineResponse[Any, Any]) -> None:
        """Return no wait."""


@dataclass(frozen=True)
class Services:
    """The process's one client of each service, its pool of threads, and the usual window."""

    openmeter: openmeter.Client
    stripe: billing.Account
    window_size: str
    pool: Executor
    is_live: bool


def connect(
    settings: Mapping[str, Any], observe: Callable[[str], Observe] = lambda _: unobserved
) -> Services:
    """Return the clients; nothing is sent yet.

    `observe` returns, for a service's name, what takes the seconds of each of its calls.
    """
    stripe.enable_telemetry = False
    stripe_session = http_session(settings["STRIPE_API_BASE"], observe("stripe"))
    openmeter_session = http_session(settings["OPENMETER_URL"], observe("openmeter"))
    stripe_client = stripe.StripeClient(
        settings["STRIPE_KEY"],
        base_addresses={"api": settings["STRIPE_API_BASE"]},
        max_network_retries=1,
        http_client=stripe.RequestsClient(session=stripe_session),
    )
    openmeter_client = openmeter.Client(
        endpoint=settings["OPENMETER_URL"],
        token=settings["OPENMETER_TOKEN"],
        retry_policy=RetryOnce(retry_total=1),
        transport=RequestsTransport(session=openmeter_session),
    )
    return Services(
        openmeter=openmeter_client,
        stripe=billing.Account(stripe_client, settings["USAGE_ROUNDING"]),
        window_size=settings["OPENMETER_WINDOW_SIZE"],
        pool=ThreadPoolExecutor(POOL_THREADS, "report"),
        is_live="_live_" in settings["STRIPE_KEY"],
    )
