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
from typing import Any

TIMEOUT_SECONDS = 60
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENABLED_EVENTS = (
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
)


def signature(secret: str, body: bytes, timestamp: int) -> str:
    """Return a `Stripe-Signature` header (docs.stripe.com/webhooks)."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={digest.hexdigest()}"


class Endpoint:
    """The one webhook endpoint of the account, and what was sent to it."""

    def __init__(self, accepted: Callable[[dict[str, Any]], None]) -> None:
        self.accepted = accepted
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.url: str | None = None
        self.secret = ""
        self.api_version = ""
        self.delay_seconds = 0.0
        self.retry_seconds: list[float] = [1, 2, 4, 8]
        self.enabled_events = list(ENABLED_EVENTS)
        self.hold = False
        self.events: dict[str, dict[str, Any]] = {}
        self.held: list[str] = []
        self.deliveries: list[dict[str, Any]] = []
        self.pending = 0

    def configure(self, settings: dict[str, Any], default_version: str) -> None:
        """Set `url`, `secret`, `api_version`, `enabled_events`, and how deliveries go.

        The first try comes `delay_seconds` after the event, the others `retry_seconds` apart;
        `hold` keeps events back until they are released.
        """
        self.url = settings.get("url", self.url)
        self.secret = settings.get("secret", self.secret)
        self.api_version = settings.get("api_version", self.api_version or default_version)
        self.delay_seconds = settings.get("delay_seconds", self.delay_seconds)
        self.retry_seconds = settings.get("retry_seconds", self.retry_seconds)
        self.enabled_events = settings.get("enabled_events", self.enabled_events)
        self.hold = settings.get("hold", self.hold)

    def takes(self, kind: str) -> bool:
        """Say whether events of a kind are sent anywhere."""
        return self.url is not None and kind in self.enabled_events

    def emit(self, kind: str, subject: dict[str, Any], previous: dict[str, Any]) -> None:
        """Make an event of an object's change and deliver it, or hold it."""
        if not self.takes(kind):
            return
        event_id = f"evt_{next(self.numbers):08d}"
        self.events[event_id] = {
            "id": event_id,
            "object": "event",
            "api_version": self.api_version,
            "created": int(time.time()),
            "data": {"object": subject, "previous_attributes": previous},
            "livemode": False,
            "pending_webhooks": 1,
            "type": kind,
        }
        if self.hold:
            self.held.append(event_id)
        else:
            self.deliver(event_id)

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
            status, answer = self._post(json.dumps(self.events[event_id]).encode())
            entry = {"event": event_id, "attempt": attempt, "status": status, "answer": answer}
            with self.lock:
                self.deliveries.append({**entry, "type": self.events[event_id]["type"]})
            if 200 <= status < 300:
                self.accepted(self.events[event_id])
                return

    def _post(self, body: bytes) -> tuple[int, str]:
        """Return status and body of the endpoint's answer; 0 if there was none."""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(self.secret, body, int(time.time())),
        }
        post = urllib.request.Request(str(self.url), body, headers)
        try:
            with DIRECT.open(post, timeout=TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)
