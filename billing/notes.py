"""What the service notes in Stripe's metadata, for no object of Stripe's says it afterwards.

The events of changes come once, and in any order with those of invoices. What they alone say is
kept where every process and the next run can read it. Times are UTC seconds.
"""

import re
from typing import NamedTuple

from billing.stripe_api import Json

# In a subscription item's metadata: when it got another price, the newest last.
COUNTED_FROM = "om_counted_from"
# In a subscription's metadata: the metered items that were removed from it, the newest last.
REMOVED = "om_removed"
# How many of each are kept; a value has at most 500 characters (docs.stripe.com/api/metadata).
MOST_SECONDS, MOST_REMOVED, MOST_CHARACTERS = 20, 6, 500

REMOVED_ITEM = re.compile(
    r"([A-Za-z0-9_-]{1,255}) ([0-9]{1,12}) ([0-9]{1,12}) ([A-Za-z0-9_]+|-) (MINUTE|HOUR|DAY)"
)
NO_METER = "-"


class RemovedItem(NamedTuple):
    """A metered item that was removed: when, and in which meter its usage counted.

    `counted_from` is where its last period began if that is not rounded down, or else 0.
    """

    id: str
    counted_from: int
    removed_at: int
    meter: str
    window_size: str

    def as_entry(self) -> Json:
        """Return it as a subscription item."""
        kept = {"om_window_size": self.window_size}
        if self.meter != NO_METER:
            kept["om_meter_id"] = self.meter
        if self.counted_from:
            kept[COUNTED_FROM] = str(self.counted_from)
        return {"id": self.id, "metadata": kept}


def metadata_text(holder: Json, key: str) -> str:
    """Return a key of an object's metadata; empty if it is not set, or no text."""
    metadata = holder.get("metadata")
    value = metadata.get(key) if isinstance(metadata, dict) else None
    return value if isinstance(value, str) else ""


def noted_seconds(item: Json) -> list[int]:
    """Return when an item got another price, oldest first."""
    noted = metadata_text(item, COUNTED_FROM)
    return sorted({int(second) for second in re.findall(r"[0-9]{1,12}", noted)}) if noted else []


def with_second(item: Json, *seconds: int) -> Json:
    """Return an item whose metadata keeps more seconds."""
    noted = sorted({*noted_seconds(item), *seconds})[-MOST_SECONDS:]
    metadata = item.get("metadata") or {}
    return {**item, "metadata": {**metadata, COUNTED_FROM: ",".join(map(str, noted))}}


def removed_items(subscription: Json) -> dict[str, RemovedItem]:
    """Return the metered items that were removed from a subscription, by id."""
    found = {}
    for part in metadata_text(subscription, REMOVED).split(","):
        if match := REMOVED_ITEM.fullmatch(part):
            item, counted_from, removed_at, meter, window_size = match.groups()
            found[item] = RemovedItem(item, int(counted_from), int(removed_at), meter, window_size)
    return found


def with_removed(subscription: Json, items: list[RemovedItem]) -> str:
    """Return what a subscription's metadata is to keep, with more items, the newest of all."""
    known = removed_items(subscription) | {item.id: item for item in items}
    newest = sorted(known.values(), key=lambda item: item.removed_at)[-MOST_REMOVED:]
    parts = [" ".join(map(str, item)) for item in newest]
    while len(",".join(parts)) > MOST_CHARACTERS:
        del parts[0]
    return ",".join(parts)
