"""Send usage to an OpenMeter and wait until it counts, which a real one does only later."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fakes.processes import Failed, call, wait_for

COUNT_SECONDS = 60


def make_meter(url: str, fields: Mapping[str, Any]) -> None:
    """Create a meter, if it is not there. Raises Failed where another has its slug."""
    try:
        call("POST", f"{url}/api/v1/meters", dict(fields))
    except Failed as error:
        if "answered 409" not in str(error):
            raise
        known = call("GET", f"{url}/api/v1/meters/{fields['slug']}")
        if any(known.get(name) != value for name, value in fields.items()):
            said = f"OpenMeter has another meter {fields['slug']}: take one that is empty"
            raise Failed(said) from error


def send_counted(
    url: str, events: list[dict[str, Any]], headers: Mapping[str, str] | None = None
) -> None:
    """Send CloudEvents of one type and subject, and wait until queries see all of them.

    Raises Failed if they do not within a minute.
    """
    kind, subject = events[0]["type"], events[0]["subject"]
    meter = f"count_of_{kind}"
    make_meter(url, {"slug": meter, "aggregation": "COUNT", "eventType": kind})
    wanted = count(url, meter, subject) + len(events)
    call("POST", f"{url}/api/v1/events", events, headers)
    what = f"OpenMeter to count {wanted} events of {subject}"
    wait_for(lambda: count(url, meter, subject) >= wanted, what, COUNT_SECONDS)


def count(url: str, meter: str, subject: str) -> int:
    """Return how many events of a subject a COUNT meter has counted."""
    query = urlencode({"subject": subject})
    rows = call("GET", f"{url}/api/v1/meters/{meter}/query?{query}")["data"]
    return sum(int(row["value"]) for row in rows)
