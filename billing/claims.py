"""What a run's items take: their customers' Billing Meters, and the usage that they bill.

Of each item it keeps some 170 bytes, for there may be a million. Times are UTC seconds.
"""

from collections.abc import Hashable
from dataclasses import replace
from struct import Struct
from threading import Lock
from typing import NamedTuple

from billing.items import MeteredItem, overlap
from billing.reports import Outcome
from billing.subscriptions import counted, fail_items_that_overwrite, warn_of_double_billing

LATEST = 2**32 - 1
# The fields of a `Taken` in their order, with the length of the item's id, which stands behind.
FIELDS = Struct("<IIqIIB")


class Taken(NamedTuple):
    """What an item took, and in which period; 0 is no meter, and no Billing Meter.

    Two with the same `counts` have the same total.
    """

    counted_from: int
    end: int
    counts: int
    meter: int
    billing_meter: int
    item: str


def packed(taken: list[Taken]) -> bytes:
    """Return what some items took as bytes."""
    return b"".join(FIELDS.pack(*fields, len(item)) + item.encode() for *fields, item in taken)


def unpacked(stored: bytes) -> list[Taken]:
    """Return what some items took, from bytes."""
    found = []
    while stored:
        *fields, length = FIELDS.unpack_from(stored)
        after = FIELDS.size + length
        found.append(Taken._make([*fields, stored[FIELDS.size : after].decode()]))
        stored = stored[after:]
    return found


class Claims:
    """What was taken so far, by the hash of the customer or subject, which no two of them share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.taken: dict[int, bytes] = {}
        self.numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """Return what stands for a meter; there are few of them."""
        return self.numbers.setdefault(name, len(self.numbers) + 1) if name else 0

    def of(self, name: Hashable, item: MeteredItem) -> tuple[Taken, list[Taken]]:
        """Return what an item, and what others took of a customer or subject."""
        found = unpacked(self.taken.get(hash(name), b""))
        others = [taken for taken in found if taken.item != item.id]
        mine = next((taken for taken in found if taken.item == item.id), None)
        return mine or Taken(0, 0, 0, 0, 0, item.id), others

    def note(self, name: Hashable, item: MeteredItem, mine: Taken, others: list[Taken]) -> None:
        """Note what an item takes now."""
        mine = mine._replace(
            counted_from=min(item.counted_from, LATEST),
            end=min(item.end, LATEST),
            counts=hash(counted(item)),
        )
        self.taken[hash(name)] = packed([*others, mine])

    def take_billing_meter(self, item: MeteredItem) -> list[MeteredItem]:
        """Take an item's Billing Meter; return the item that has it before, if its total differs.

        Of that one only its id and period are known.
        """
        with self.lock:
            number = self.number(item.billing_meter)
            mine, others = self.of(item.customer, item)
            owner = next((taken for taken in others if taken.billing_meter == number), None)
            if number and not owner:
                self.note(item.customer, item, mine._replace(billing_meter=number), others)
        if not number or not owner or owner.counts == hash(counted(item)):
            return []
        return [replace(as_item(owner, item), meter="")]

    def may_send(self, item: MeteredItem, outcome: Outcome) -> bool:
        """Take an item's Billing Meter; fail it if another one sends that other totals."""
        return item in fail_items_that_overwrite([*self.take_billing_meter(item), item], outcome)

    def warn_of_double_billing(self, item: MeteredItem, outcome: Outcome) -> None:
        """Take the usage that an item bills, once; warn if another one bills it, too."""
        with self.lock:
            number = self.number(item.meter)
            mine, others = self.of(item.subject, item)
            if mine.meter == number:
                return  # it was read again
            self.note(item.subject, item, mine._replace(meter=number), others)
        for taken in others:
            other = as_item(taken, item)
            if taken.meter == number and overlap([other, item]):
                warn_of_double_billing([other, item], outcome)


def as_item(taken: Taken, like: MeteredItem) -> MeteredItem:
    """Return the item that took what another one takes, too."""
    return replace(like, id=taken.item, counted_from=taken.counted_from, end=taken.end)
