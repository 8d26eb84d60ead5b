"""Events whose work was done, but so late that Stripe may not have waited for the answer.

Stripe's time-out is not published. Where many deliveries come at once, it gives up on many, and
sends those again with growing waits for three days (docs.stripe.com/webhooks, "Retry behavior").
With the work to do again they would be too late again, and their drafts be held all that time.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from threading import Lock
from typing import Any, Protocol

# How long after it was sent a delivery's answer may have come too late, and for how long its next
# attempt is expected. Each attempt is signed anew.
LATE_SECONDS, EXPECTED_SECONDS = 10, 24 * 3_600
MOST_LATE = 50_000
# (docs.stripe.com/webhooks, "Verify webhook signatures manually")
SENT = re.compile(r"(?:^|,)\s*t=([0-9]{1,12})(?:,|$)")


def sent_at(signature: str | None) -> int | None:
    """Return the UTC second at which an attempt was sent, which its signature says."""
    found = SENT.search(signature or "")
    return int(found[1]) if found else None


class SharedNotes(Protocol):
    """What several processes note; it can be gone."""

    def note(self, name: str, seconds: int) -> bool:
        """Note a name for so many seconds; say whether it is noted."""

    def take(self, name: str) -> bool:
        """Say whether a name is noted, to one of all who ask."""


class LateAnswers:
    """The events that were answered late, and the monotonic second of that.

    With `shared`, all processes of an endpoint know them, whose signing `secrets` they have:
    Stripe sends the next attempt to any of them. Another endpoint's report is another one.
    """

    def __init__(self, secrets: tuple[str, ...] = (), shared: SharedNotes | None = None) -> None:
        self.lock, self.at = Lock(), OrderedDict[str, float]()
        self.shared, self.endpoint = shared, sha256(" ".join(sorted(secrets)).encode()).hexdigest()

    def note(self, event: Mapping[str, Any], sent: int | None, now: int) -> None:
        """Note an event whose work is done, if by now, a UTC second, that is late."""
        event_id = event.get("id")
        if not isinstance(event_id, str) or sent is None or now - sent < LATE_SECONDS:
            return
        if self.shared and self.shared.note(self.name_of(event_id), EXPECTED_SECONDS):
            return
        with self.lock:
            self.at[event_id] = time.monotonic()
            if len(self.at) > MOST_LATE:
                self.at.popitem(last=False)

    def take(self, event: Mapping[str, Any], sent: int | None) -> bool:
        """Say whether the last attempt of an event was answered late; it is said once."""
        event_id, created = event.get("id"), event.get("created")
        if not isinstance(event_id, str):
            return False
        with self.lock:
            at = self.at.pop(event_id, None)
        if at is not None and time.monotonic() - at < EXPECTED_SECONDS:
            return True
        # Had an attempt before this one been answered late, this one would be sent that late, too.
        is_first = type(created) is int and sent is not None and sent - created < LATE_SECONDS
        if self.shared is None or is_first:
            return False
        return self.shared.take(self.name_of(event_id))

    def name_of(self, event_id: str) -> str:
        """Return what an event is noted as among those of other endpoints."""
        return f"late:{self.endpoint[:16]}:{event_id}"
