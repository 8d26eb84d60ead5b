"""Signed deliveries of the Stripe stand-in: retried, and held, doubled or reordered on demand."""

import hashlib
import hmac
import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

TIMEOUT_SECONDS = 60
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENABLED_EVENTS = (
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
)
SETTINGS = (
    "url",
    "secret",
    "thin_secret",
    "api_version",
    "account_version",
    "enabled_events",
    "livemode",
    "context",
    "delay_seconds",
    "retry_seconds",
    "hold",
    "unsent",
)
THIN = "v2.core.event"


def signature(secret: str, body: bytes, timestamp: int) -> str:
    """Return a `Stripe-Signature` header (docs.stripe.com/webhooks)."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={digest.hexdigest()}"


def time_text(second: int) -> str:
    """Return a time as API v2 writes it, in RFC 3339 with milliseconds."""
    text = datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class Endpoint:
    """The one webhook endpoint of the account, and what was sent to it."""

    def __init__(
        self,
        accepted: Callable[[dict[str, Any]], None],
        now: Callable[[], int],
        account: str | None,
    ) -> None:
        self.accepted = accepted
        self.now = now
        self.account = account
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.url: str | None = None
        self.secret = ""
        self.thin_secret: str | None = None
        self.api_version = ""
        self.account_version: str | None = None
        self.livemode = False
        self.context = False
        self.delay_seconds = 0.0
        self.retry_seconds: list[float] = [1, 2, 4, 8]
        self.enabled_events = list(ENABLED_EVENTS)
        self.hold = False
        self.unsent: str | None = None
        # What is sent; what `GET /v1/events` shows; what `GET /v2/core/events/<id>` shows.
        self.events: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.thin: dict[str, dict[str, Any]] = {}
        self.taken: set[str] = set()
        self.held: list[str] = []
        self.deliveries: list[dict[str, Any]] = []
        self.pending = 0

    def configure(self, settings: dict[str, Any], default_version: str) -> None:
        """Set what is given: where events go, in which version, and how deliveries go.

        The first try comes `delay_seconds` after the event, the others `retry_seconds` apart;
        `hold` keeps events back until they are released. Thin events have a `thin_secret` of
        their own, and are made only with one. Another account's events name it as `account`, or
        with `context` as an organization's do. `account_version` is the version in which
        `GET /v1/events` shows what happens from now on, if that is not the endpoint's. `unsent`
        lets it show what goes to no endpoint, too: as `taken`, or as `failed`.
        """
        self.api_version = self.api_version or default_version
        for name in SETTINGS:
            setattr(self, name, settings.get(name, getattr(self, name)))

    def takes(self, kind: str) -> bool:
        """Say whether events of a kind are sent anywhere."""
        return self.url is not None and kind in self.enabled_events

    def takes_thin(self) -> bool:
        """Say whether thin events are sent anywhere."""
        return self.url is not None and self.thin_secret is not None

    def emit(self, kind: str, change: Callable[[str], dict[str, Any]]) -> None:
        """Make an event of a change, which is had in a version, and deliver it, or hold it."""
        if not self.takes(kind) and self.unsent is None:
            return
        event: dict[str, Any] = {
            "id": self.new_id(),
            "object": "event",
            "api_version": self.api_version,
            "created": self.now(),
            "data": change(self.api_version),
            "livemode": self.livemode,
            "pending_webhooks": 1,
            "type": kind,
        }
        if self.account is not None:
            event["context" if self.context else "account"] = self.account
        # Lists show events in the version that the account had then, whatever the endpoint's is
        # (docs.stripe.com/api/events/list).
        shown, version = event, self.account_version
        if version not in (None, self.api_version):
            shown = event | {"api_version": version, "data": change(str(version))}
        self.snapshots[event["id"]] = shown
        if self.takes(kind):
            self.send(event)
        elif self.unsent == "taken":
            self.taken.add(event["id"])

    def emit_thin(
        self, kind: str, related: dict[str, Any] | None, data: dict[str, Any]
    ) -> dict[str, Any]:
        """Make a thin event, which is sent without its data, and return what is sent."""
        event: dict[str, Any] = {
            "id": self.new_id(),
            "object": THIN,
            "type": kind,
            "created": time_text(self.now()),
            "livemode": self.livemode,
            "context": self.account,
            "reason": None,
            "related_object": related,
        }
        self.thin[event["id"]] = event | {"data": data}
        self.send(event)
        return event

    def new_id(self) -> str:
        """Return the id of the next event."""
        return f"evt_{next(self.numbers):08d}"

    def send(self, event: dict[str, Any]) -> None:
        """Deliver an event, or hold it."""
        self.events[event["id"]] = event
        if self.hold:
            self.held.append(event["id"])
        else:
            self.deliver(event["id"])

    def release(self, order: str, copies: int) -> list[str]:
        """Deliver what was held: `as-is`, `reversed` or `shuffled`, each `copies` times."""
        released, self.held, self.hold = self.held * copies, [], False
        if order == "reversed":
            released.reverse()
        elif order == "shuffled":
            random.shuffle(released)
        self.deliver(*released)
        return released

    def deliver(self, *event_ids: str) -> None:
        """Deliver events in the background, one after the other."""
        with self.lock:
            self.pending += len(event_ids)
        threading.Thread(target=self._deliver_all, args=event_ids, daemon=True).start()

    def _deliver_all(self, *event_ids: str) -> None:
        for event_id in event_ids:
            self._deliver(event_id)
            with self.lock:
                self.pending -= 1

    def _deliver(self, event_id: str) -> None:
        """Send an event until it is taken, each time with a new signature."""
        for attempt, wait in enumerate([self.delay_seconds, *self.retry_seconds], start=1):
            time.sleep(wait)
            status, answer = self._post(self.events[event_id])
            entry = {"event": event_id, "attempt": attempt, "status": status, "answer": answer}
            entry |= {"type": self.events[event_id]["type"], "at": self.now()}
            with self.lock:
                self.deliveries.append(entry)
            if 200 <= status < 300:
                self.accepted(self.events[event_id])
                return

    def _post(self, event: dict[str, Any]) -> tuple[int, str]:
        """Return status and body of the endpoint's answer; 0 if there was none."""
        body = json.dumps(event).encode()
        secret = self.thin_secret if event["object"] == THIN else self.secret
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(str(secret), body, self.now()),
        }
        post = urllib.request.Request(str(self.url), body, headers)
        try:
            with DIRECT.open(post, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)
