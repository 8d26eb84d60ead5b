"""Billing dates: an anchor plus whole intervals. Times are UTC seconds."""

import calendar
from datetime import UTC, datetime, timedelta

from fakes.stripe_store import Record

DAY = 86_400
LONGEST = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY, "year": 366 * DAY}


def add_intervals(anchor: int, interval: str, count: int) -> int:
    """Return the anchor plus `count` intervals; a month keeps the anchor's day where it can."""
    start = datetime.fromtimestamp(anchor, UTC)
    if interval in ("day", "week"):
        days = count * (7 if interval == "week" else 1)
        return int((start + timedelta(days=days)).timestamp())
    months = start.month - 1 + count * (12 if interval == "year" else 1)
    year, month = start.year + months // 12, months % 12 + 1
    day = min(start.day, calendar.monthrange(year, month)[1])
    return int(start.replace(year=year, month=month, day=day).timestamp())


def length(recurring: Record) -> int:
    """Return how long a price's interval is at most, to tell which of two is shorter."""
    return LONGEST[recurring["interval"]] * int(recurring["interval_count"])


def next_date(anchor: int, recurring: Record, moment: int) -> int:
    """Return a price's first billing date after a moment; the anchor may lie ahead of it."""
    interval, each = recurring["interval"], int(recurring["interval_count"])
    n = (moment - anchor) // length(recurring)
    while add_intervals(anchor, interval, n * each) > moment:
        n -= 1
    while add_intervals(anchor, interval, n * each) <= moment:
        n += 1
    return add_intervals(anchor, interval, n * each)


def dates(anchor: int, recurring: Record, start: int, end: int) -> list[int]:
    """Return `start` and each of a price's billing dates after it, up to `end`."""
    found = [start]
    while (date := next_date(anchor, recurring, found[-1])) <= end:
        found.append(date)
    return found


def before(end: int, recurring: Record) -> int:
    """Return where the interval begins that ends at a time."""
    return add_intervals(end, recurring["interval"], -int(recurring["interval_count"]))


def after(start: int, recurring: Record) -> int:
    """Return where the interval ends that begins at a time."""
    return add_intervals(start, recurring["interval"], int(recurring["interval_count"]))
