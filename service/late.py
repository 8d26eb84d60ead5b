"""Events whose work was done, but so late that Stripe may not have waited for the answer.

Stripe's time-out is not published. Where many deliveries come at once, it gives up on many, and
sends those again with growing waits for three days (docs.stripe.com/webhooks, "Retry behavior").
With the work to do again they would be too late again, and their drafts be held all that time.
"""

import re
import time
from collections import OrderedDict
from threading import Lock

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


class LateAnswers:
    """The ids of events that this process answered late, and the monotonic second of that."""

    def __init__(self) -> None:
        self.lock, self.at = Lock(), OrderedDict[str, float]()

    def note(self, event_id: object, sent: int | None, now: int) -> None:
        """Note an event whose work is done, if by now, a UTC second, that is late."""
        if not isinstance(event_id, str) or sent is None or now - sent < LATE_SECONDS:
            return
        with self.lock:
            self.at[event_id] = time.monotonic()
            if len(self.at) > MOST_LATE:
                self.at.popitem(last=False)

    def take(self, event_id: object) -> bool:
        """Say whether an event's last attempt was answered late; it is said once."""
        with self.lock:
            at = self.at.pop(event_id, None) if isinstance(event_id, str) else None
        return at is not None and time.monotonic() - at < EXPECTED_SECONDS
