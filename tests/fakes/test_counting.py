"""What waits until an OpenMeter counts, against a stand-in that counts late."""

import pytest

from fakes.counting import count, make_meter, send_counted
from fakes.openmeter_store import DEFAULT_METER
from fakes.processes import Failed, call
from tests.conftest import OpenMeter


def test_usage_is_counted_once_it_was_sent(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.fake("POST", "lag", {"seconds": 0.3})
    query = f"{openmeter_fake.url}/api/v1/meters/m1/query?subject=late"
    for total in (7, 14):
        event = {"source": "test", "specversion": "1.0", "type": "execution", "subject": "late"}
        events = [{**event, "id": f"{total} {n}", "data": {"duration": n}} for n in (3, 4)]
        send_counted(openmeter_fake.url, events)
        assert [row["value"] for row in call("GET", query)["data"]] == [total]
    assert count(openmeter_fake.url, "count_of_execution", "late") == 4


def test_a_meter_that_is_there_is_taken_and_another_of_its_slug_is_not(
    openmeter_fake: OpenMeter,
) -> None:
    make_meter(openmeter_fake.url, DEFAULT_METER)
    with pytest.raises(Failed, match="another meter m1"):
        make_meter(openmeter_fake.url, {**DEFAULT_METER, "aggregation": "MAX"})
    with pytest.raises(Failed, match="answered 400"):
        make_meter(openmeter_fake.url, {**DEFAULT_METER, "slug": "no slug"})
