"""What the service starts with: its settings, from the environment or a `.env` file."""

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values

from usage import ROUNDING, WINDOW_SECONDS

LAST_PORT = 65_535
IPV6 = 6
# The longest that Stripe lets an account's drafts wait
# (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
MOST_GRACE_HOURS = 72
# Of Stripe's limits, in percent.
SHARES = range(10, 101)
ENV_FILE = Path(__file__).parent.parent / ".env"
SIGNING_SECRET = "a webhook's signing secret"  # noqa: S105 - what it is called
API_KEYS = ("a secret key", "a restricted key", "an organization's key")
# How what Stripe gives out begins (docs.stripe.com/keys, docs.stripe.com/webhooks).
KINDS = {
    "sk_org_": API_KEYS[2],
    "sk_": API_KEYS[0],
    "rk_": API_KEYS[1],
    "pk_": "a publishable key",
    "whsec_": SIGNING_SECRET,
}


class StartupExit(SystemExit):
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


def key_kind(value: str) -> str:
    """Return what a key or secret of Stripe's is, by how it begins; empty if it is none."""
    return next((kind for start, kind in KINDS.items() if value.startswith(start)), "")


def is_live(key: str) -> bool:
    """Say whether a key is for live mode."""
    return "_live_" in key


def not_of_kind(kind: str) -> str:
    """Say that a value is of another kind; nothing of it is shown."""
    return f"not {kind}" if kind else "which it is not"


def stripe_key(value: str) -> str:
    """Accept a key that calls can be made with (docs.stripe.com/keys)."""
    if (kind := key_kind(secret(value))) not in API_KEYS:
        wanted = "a secret key (sk_...) or a restricted one (rk_...)"
        raise ValueError(f"must be {wanted}, {not_of_kind(kind)}")
    return value


def webhook_secret(value: str) -> str:
    """Accept what deliveries are signed with (docs.stripe.com/webhooks)."""
    if (kind := key_kind(secret(value))) != SIGNING_SECRET:
        raise ValueError(f"must be {SIGNING_SECRET} (whsec_...), {not_of_kind(kind)}")
    return value


def webhook_secrets(value: str) -> tuple[str, ...]:
    """Accept one, or some separated by commas: each destination of events has its own."""
    return tuple(webhook_secret(part.strip(" ")) for part in value.split(","))


def base_url(value: str) -> str:
    """Accept an http(s) address without user name or query, and drop a trailing slash."""
    if "://" not in value:
        raise ValueError("must be an address with http:// or https:// before it, which is missing")
    try:
        url = urlsplit(value)
        host = (url.hostname or "").encode("idna")
        good = url.scheme in ("http", "https") and host and url.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s@?#]", value):
        raise ValueError("must be an address such as https://openmeter.example/path")
    return value.rstrip("/")


def api_base(calls: str) -> Callable[[str], str]:
    """Accept such an address that does not end in the path that each call begins with."""

    def address(value: str) -> str:
        base, found, _ = f"{base_url(value)}/".partition(f"{calls}/")
        if found:
            raise ValueError(f"must be {base}, without the {calls} of each call")
        return base.rstrip("/")

    return address


def secret_url(value: str) -> str:
    """Accept such an address that tells who we are by itself."""
    return base_url(secret(value))


def one_of(*choices: str) -> Callable[[str], str]:
    """Accept one of the choices, spelt as here."""

    def choice(value: str) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return value

    return choice


def zero_or_one(value: str) -> bool:
    """Accept 0 or 1."""
    return one_of("0", "1")(value) == "1"


def tcp_port(value: str) -> int:
    """Accept a TCP port."""
    if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) <= LAST_PORT:
        raise ValueError("must be a port from 1 to 65535")
    return int(value)


def listening_host(value: str) -> str:
    """Accept a host's name or address, without a port; an IPv6 address comes back in brackets."""
    try:
        address = ipaddress.ip_address(value.strip("[]"))
    except ValueError as error:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", value):
            raise ValueError("must be a host's name or address, without a port") from error
        return value
    return f"[{address}]" if address.version == IPV6 else str(address)


def grace_hours(value: str) -> int:
    """Accept a number of hours that a draft of Stripe's can wait."""
    if not re.fullmatch(r"[0-9]{1,2}", value) or int(value) > MOST_GRACE_HOURS:
        raise ValueError(f"must be a number of hours from 0 to {MOST_GRACE_HOURS}")
    return int(value)


def rate_share(value: str) -> int:
    """Accept a percentage of Stripe's limits, or 0 for none of ours."""
    if not re.fullmatch(r"[0-9]{1,3}", value) or not (value == "0" or int(value) in SHARES):
        raise ValueError("must be a percentage from 10 to 100, or 0")
    return int(value)


def worker_count(value: str) -> int:
    """Accept a number of processes."""
    if not re.fullmatch(r"[1-9][0-9]{0,2}", value):
        raise ValueError("must be a number of processes from 1 to 999")
    return int(value)


def redis_url(value: str) -> str:
    """Accept the address of a Redis, which may have a password."""
    if not re.fullmatch(r"(rediss?|unix)://\S+", secret(value)):
        raise ValueError("must be an address such as redis://redis.example:6379/0")
    return value


# Name, default (None: required; empty: optional), and what a value has to be.
SETTINGS: dict[str, tuple[str | None, Callable[[str], Any]]] = {
    "STRIPE_KEY": (None, stripe_key),
    "STRIPE_WEBHOOK_SECRET": (None, webhook_secrets),
    "STRIPE_API_BASE": ("https://api.stripe.com", api_base("/v1")),
    "OPENMETER_URL": ("http://localhost:8888", api_base("/api/v1")),
    "OPENMETER_TOKEN": ("", secret),
    "OPENMETER_WINDOW_SIZE": ("HOUR", one_of(*WINDOW_SECONDS)),
    "USAGE_ROUNDING": ("down", one_of(*ROUNDING)),
    "INVOICE_GRACE_HOURS": ("0", grace_hours),
    "HOST": ("localhost", listening_host),
    "PORT": ("4242", tcp_port),
    "WEB_CONCURRENCY": ("1", worker_count),
    "STRIPE_RATE_SHARE": ("80", rate_share),
    "RATE_LIMIT_REDIS": ("", redis_url),
    "LOG_FORMAT": ("text", one_of("text", "json")),
    "METRICS": ("0", zero_or_one),
    "HEARTBEAT_URL": ("", secret_url),
}
# Not a setting: with it gunicorn.conf.py tells its workers in which folder they share their notes.
NOTES_FOLDER = "OPENMETER_STRIPE_NOTES"
# What only deliveries are verified with: the commands take none.
OF_DELIVERIES = {"STRIPE_WEBHOOK_SECRET"}


def read_settings(source: Mapping[str, object], *, serves: bool = True) -> dict[str, Any]:
    """Return every setting of SETTINGS, checked; an empty value counts as not set.

    Where nothing is served, those of deliveries may be missing, and are None. Raises StartupExit,
    whose one message names all that are missing or not valid.
    """
    settings: dict[str, Any] = {}
    missing, invalid = [], []
    for name, (default, check) in SETTINGS.items():
        given = source.get(name)
        is_set = given is not None and given != ""
        value = str(given) if is_set else default or ""
        if not value and default is None and (serves or name not in OF_DELIVERIES):
            missing.append(name)
        try:
            settings[name] = check(value) if value else None
        except ValueError as error:
            invalid.append(f"{name} {error}")
    if missing or invalid:
        lines = [f"missing: {', '.join(missing)} (see .env.example)"] if missing else []
        raise StartupExit("Cannot start: " + "; ".join(lines + invalid))
    return settings


def secrets_of(settings: Mapping[str, Any]) -> list[str]:
    """Return what must not be seen."""
    hidden = (secret, secret_url, stripe_key, redis_url)
    single = [settings[name] for name, (_, check) in SETTINGS.items() if check in hidden]
    return [*filter(None, single), *(settings["STRIPE_WEBHOOK_SECRET"] or ())]


def load_environment() -> dict[str, str | None]:
    """Return what is set in the environment over the `.env` file beside app.py."""
    try:
        file = dotenv_values(ENV_FILE)
    except UnicodeError as error:
        raise StartupExit("Cannot start: .env is not UTF-8") from error
    except OSError as error:
        raise StartupExit("Cannot start: .env cannot be read by this user") from error
    return {**file, **{name: value for name, value in os.environ.items() if value}}
