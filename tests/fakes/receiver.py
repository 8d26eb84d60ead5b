"""A webhook endpoint for the Stripe stand-in's events."""

import json
import threading
from typing import Any

from flask import Flask, request
from stripe import WebhookSignature

from fakes.processes import wait_for
from tests.conftest import SECRET, Stripe


class Receiver:
    """A webhook endpoint that answers as told and keeps what it got."""

    def __init__(self, secret: str = SECRET) -> None:
        self.secret = secret
        self.answers: list[int] = []
        self.got: list[tuple[bytes, str]] = []
        self.lock = threading.Lock()
        self.app = Flask("receiver", static_folder=None)
        self.app.add_url_rule("/", view_func=self.take, methods=["POST"])

    def take(self) -> tuple[str, int]:
        with self.lock:
            self.got.append((request.get_data(), request.headers["Stripe-Signature"]))
            return "", self.answers.pop(0) if self.answers else 200

    def events(self) -> list[dict[str, Any]]:
        for body, header in self.got:
            assert WebhookSignature.verify_header(body, header, self.secret, 300)
        return [json.loads(body) for body, _ in self.got]


def settle(stripe: Stripe, count: int) -> list[dict[str, Any]]:
    """Wait until at least `count` deliveries were made and none is under way; return all."""

    def done() -> list[dict[str, Any]] | None:
        state = stripe.fake("GET", "deliveries")
        found: list[dict[str, Any]] = state["deliveries"]
        return found if not state["pending"] and len(found) >= count else None

    return wait_for(done, "deliveries", 10)
