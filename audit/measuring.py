"""OpenMeter's totals of many subjects: one query for up to 100 whose time is the same.

A customer of OpenMeter's is asked for alone: one that it does not know fails the whole query.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Executor
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

import openmeter

import usage
from usage import MAX_SUBJECTS, OpenMeterCustomer, QueryFailed, Whose, window_start_at


class Wanted(NamedTuple):
    """Usage of a subject, or of a whole customer, in a meter in [start, end), UTC seconds."""

    meter: str
    subject: Whose
    start: int
    end: int


Found = Decimal | QueryFailed | None


def fetch_totals(
    client: openmeter.Client, wanted: Iterable[Wanted], pool: Executor
) -> dict[Wanted, Found]:
    """Return each total, None without rows, or why there is none."""

    def ask(batch: list[Wanted]) -> dict[Wanted, Found]:
        meter, whose, start, end = batch[0]
        times = (window_start_at(start, 1), window_start_at(end, 1))
        subjects = {each.subject: each for each in batch if isinstance(each.subject, str)}
        try:
            if isinstance(whose, OpenMeterCustomer):
                return {batch[0]: usage.total(client, meter, whose, *times)}
            found = usage.totals(client, meter, list(subjects), *times)
        except QueryFailed as error:
            return dict.fromkeys(batch, error)
        return {each: found.get(subject) for subject, each in subjects.items()}

    answers: dict[Wanted, Found] = {}
    for answer in pool.map(ask, batches(wanted)):
        answers |= answer
    return answers


def batches(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Yield what one query can ask for."""
    alike: dict[tuple[Hashable, ...], dict[Wanted, None]] = defaultdict(dict)
    for each in wanted:
        alone = each.subject if isinstance(each.subject, OpenMeterCustomer) else None
        alike[each.meter, each.start, each.end, alone][each] = None
    for same in alike.values():
        left = iter(same)
        while batch := list(islice(left, MAX_SUBJECTS)):
            yield batch
