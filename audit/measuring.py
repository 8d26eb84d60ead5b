"""OpenMeter's totals of many subjects: one query for up to 100 whose time is the same."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from decimal import Decimal
from itertools import islice
from typing import NamedTuple

import openmeter

import usage
from usage import MAX_SUBJECTS, QueryFailed, window_start_at


class Wanted(NamedTuple):
    """A subject's usage in a meter in [start, end), UTC seconds."""

    meter: str
    subject: str
    start: int
    end: int


Found = Decimal | QueryFailed | None


def fetch_totals(
    client: openmeter.Client, wanted: Iterable[Wanted], pool: Executor
) -> dict[Wanted, Found]:
    """Return each total, None without rows, or why there is none."""

    def ask(batch: list[Wanted]) -> dict[Wanted, Found]:
        meter, _, start, end = batch[0]
        times = (window_start_at(start, 1), window_start_at(end, 1))
        subjects = [each.subject for each in batch]
        try:
            found = usage.totals(client, meter, subjects, *times)
        except QueryFailed as error:
            return dict.fromkeys(batch, error)
        return {each: found.get(each.subject) for each in batch}

    answers: dict[Wanted, Found] = {}
    for answer in pool.map(ask, batches(wanted)):
        answers |= answer
    return answers


def batches(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Yield what one query can ask for."""
    alike: dict[tuple[str, int, int], dict[Wanted, None]] = defaultdict(dict)
    for each in wanted:
        alike[each.meter, each.start, each.end][each] = None
    for same in alike.values():
        left = iter(same)
        while batch := list(islice(left, MAX_SUBJECTS)):
            yield batch
