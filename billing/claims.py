"""What a run's items take: their customers' Billing Meters, and the usage that they bill.

Of each item it keeps some 60 bytes, for there may be a million. Times are UTC seconds.
"""

from array import array
from collections.abc import Hashable, Iterator
from dataclasses import replace
from struct import Struct
from threading import Lock
from typing import NamedTuple

from billing.items import MeteredItem, overlap
from billing.reports import Outcome
from billing.subscriptions import counted, fail_items_that_overwrite, warn_of_double_billing

LATEST = 2**32 - 1
# So many that of a million records fifteen share one, which a search goes through.
CHAINS = 65_536
# Where the next record of its chain begins, a key, the fields of a `Taken` in their order, and how
# long the item's id is, which follows.
RECORD, NEXT = Struct("<IqIIqIIB"), Struct("<I")


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


class Records:
    """What was taken by key, a hash of 64 bits that no two names share.

    It stands in one large piece: an object for each would take three times the memory, and small
    pieces that grow would leave holes in it.
    """

    def __init__(self) -> None:
        # No record begins at 0, which is the end of a chain.
        self.newest, self.records = array("I", [0]) * CHAINS, bytearray(1)

    def places(self, key: int) -> Iterator[tuple[int, Taken]]:
        """Yield what was taken by a key, the latest first, and where its record begins."""
        at = self.newest[key % CHAINS]
        while at:
            before, found, *fields, length = RECORD.unpack_from(self.records, at)
            if found == key:
                begin = at + RECORD.size
                name = self.records[begin : begin + length].decode()
                yield at, Taken._make([*fields, name])
            at = before

    def put(self, key: int, taken: Taken) -> None:
        """Note what an item takes by a key, in place of what it took before."""
        *fields, item = taken
        name, chain = item.encode(), key % CHAINS
        for at, known in self.places(key):
            if known.item == item:
                (before,) = NEXT.unpack_from(self.records, at)
                RECORD.pack_into(self.records, at, before, key, *fields, len(name))
                return
        record = RECORD.pack(self.newest[chain], key, *fields, len(name))
        self.newest[chain] = len(self.records)
        self.records += record + name


class Claims:
    """What was taken so far, of each customer and each subject."""

    def __init__(self) -> None:
        self.lock, self.taken = Lock(), Records()
        self.numbers: dict[str, int] = {}

    def number(self, name: str | None) -> int:
        """Return what stands for a meter; there are few of them."""
        return self.numbers.setdefault(name, len(self.numbers) + 1) if name else 0

    def of(self, name: Hashable, item: MeteredItem) -> tuple[Taken, list[Taken]]:
        """Return what an item took of a customer or subject, and what others took, oldest first."""
        found = [taken for _, taken in self.taken.places(hash(name))][::-1]
        others = [taken for taken in found if taken.item != item.id]
        mine = next((taken for taken in found if taken.item == item.id), None)
        return mine or Taken(0, 0, 0, 0, 0, item.id), others

    def note(self, name: Hashable, item: MeteredItem, mine: Taken) -> None:
        """Note what an item takes now."""
        mine = mine._replace(
            counted_from=min(item.counted_from, LATEST),
            end=min(item.end, LATEST),
            counts=hash(counted(item)),
        )
        self.taken.put(hash(name), mine)

    def take_billing_meter(self, item: MeteredItem) -> list[MeteredItem]:
        """Take an item's Billing Meter; return the item that has it before, if its total differs.

        Of that one only its id and period are known.
        """
        with self.lock:
            number = self.number(item.billing_meter)
            mine, others = self.of(item.customer, item)
            owner = next((taken for taken in others if taken.billing_meter == number), None)
            if number and not owner:
                self.note(item.customer, item, mine._replace(billing_meter=number))
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
            self.note(item.subject, item, mine._replace(meter=number))
        for taken in others:
            other = as_item(taken, item)
            if taken.meter == number and overlap([other, item]):
                warn_of_double_billing([other, item], outcome)


def as_item(taken: Taken, like: MeteredItem) -> MeteredItem:
    """Return the item that took what another one takes, too."""
    return replace(like, id=taken.item, counted_from=taken.counted_from, end=taken.end)
