"""The OpenMeter stand-in keeps OpenMeter's own rules."""

import time
from typing import Any
from urllib.parse import urlencode

import pytest

from fakes.openmeter_api import create_app
from fakes.processes import Failed, call
from tests.conftest import TOKEN, OpenMeter, serve

NOON, ONE = "2023-06-07T12:00:00Z", "2023-06-07T13:00:00Z"


def query(openmeter: OpenMeter, slug: str = "m1", **args: Any) -> list[dict[str, Any]]:
    arguments = urlencode({"from": NOON, "to": ONE, **args}, doseq=True)
    answer = call("GET", f"{openmeter.url}/api/v1/meters/{slug}/query?{arguments}")
    rows: list[dict[str, Any]] = answer["data"]
    return rows


def ingest(openmeter: OpenMeter, events: Any) -> None:
    call("POST", f"{openmeter.url}/api/v1/events", events)


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        ("SUM", 0.4),
        ("COUNT", 5),
        ("AVG", 0.4 / 3),
        ("MIN", 0.1),
        ("MAX", 0.2),
        ("UNIQUE_COUNT", 3),
        ("LATEST", 0.2),
    ],
)
def test_aggregations(openmeter_fake: OpenMeter, aggregation: str, value: float) -> None:
    openmeter_fake.meter("x", aggregation)
    openmeter_fake.use("c1", 0.2, time="2023-06-07T12:59:59Z", kind="x")
    openmeter_fake.use("c1", 0.1, "0.1", None, "much", time=NOON, kind="x")
    (row,) = query(openmeter_fake, "x", subject="c1")
    assert row["value"] == pytest.approx(value)


def test_a_sum_of_doubles_has_a_doubles_noise(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 0.1, 0.2, time=NOON)
    assert query(openmeter_fake, subject="c1")[0]["value"] == 0.1 + 0.2 != 0.3


def test_from_is_inclusive_and_to_is_exclusive(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 1, time="2023-06-07T11:59:59.999Z")
    openmeter_fake.use("c1", 2, time=NOON)
    openmeter_fake.use("c1", 4, time="2023-06-07T14:59:59.999+02:00")
    openmeter_fake.use("c1", 8, time=ONE)
    (row,) = query(openmeter_fake, subject="c1")
    assert row == {
        "value": 6,
        "windowStart": "2023-06-07T12:00:00Z",
        "windowEnd": "2023-06-07T13:00:00Z",
        "subject": "c1",
        "groupBy": {},
    }


def test_one_row_for_each_subject_none_without_usage_and_one_for_everybody(
    openmeter_fake: OpenMeter,
) -> None:
    openmeter_fake.use("c1", 1, time=NOON)
    openmeter_fake.use("c2", 2, time=NOON)
    assert [row["subject"] for row in query(openmeter_fake, subject=["c1", "c2"])] == ["c1", "c2"]
    assert query(openmeter_fake, subject="nobody") == []
    assert [(row["subject"], row["value"]) for row in query(openmeter_fake)] == [(None, 3)]


def test_windows(openmeter_fake: OpenMeter) -> None:
    for minute in ("12:00:30", "12:00:59", "12:07:00"):
        openmeter_fake.use("c1", 1, time=f"2023-06-07T{minute}Z")
    rows = query(openmeter_fake, subject="c1", windowSize="MINUTE")
    assert [(row["windowStart"], row["windowEnd"], row["value"]) for row in rows] == [
        ("2023-06-07T12:00:00Z", "2023-06-07T12:01:00Z", 2),
        ("2023-06-07T12:07:00Z", "2023-06-07T12:08:00Z", 1),
    ]


def test_an_event_counts_once_by_source_and_id_and_a_batch_all_or_none(
    openmeter_fake: OpenMeter,
) -> None:
    event = {
        "id": "1",
        "source": "a",
        "specversion": "1.0",
        "type": "execution",
        "subject": "c1",
        "time": NOON,
        "data": {"duration": 1},
    }
    ingest(openmeter_fake, event)
    ingest(openmeter_fake, [event, {**event, "source": "b"}])
    with pytest.raises(Failed, match="400: (?s:.)*subject is required"):
        ingest(openmeter_fake, [{**event, "id": "2"}, {**event, "id": "3", "subject": ""}])
    assert query(openmeter_fake, subject="c1")[0]["value"] == 2


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"to": NOON}, "400: (?s:.)*from must be before to"),
        ({"from": ONE, "to": NOON}, "400: (?s:.)*from must be before to"),
        ({"from": "yesterday"}, "400: (?s:.)*no RFC 3339 time"),
        ({"from": "2023-06-07T12:00:00"}, "400: (?s:.)*no time zone"),
        ({"windowSize": "WEEK"}, "400: (?s:.)*windowSize"),
        ({"groupBy": "model"}, "400: (?s:.)*does not know groupBy"),
    ],
)
def test_a_query_outside_the_rules_is_a_problem_document(
    openmeter_fake: OpenMeter, args: dict[str, str], reason: str
) -> None:
    with pytest.raises(Failed, match=reason):
        query(openmeter_fake, **args)


def test_an_unknown_meter_is_404_and_a_wrong_one_is_not_created(openmeter_fake: OpenMeter) -> None:
    with pytest.raises(Failed, match="404: (?s:.)*meter not found: nothing"):
        query(openmeter_fake, "nothing")
    url = f"{openmeter_fake.url}/api/v1/meters"
    good = {"slug": "x", "aggregation": "SUM", "eventType": "x", "valueProperty": "$.v"}
    for wrong in ({"slug": ""}, {"aggregation": "MEDIAN"}, {"valueProperty": ""}):
        with pytest.raises(Failed, match="answered 400"):
            call("POST", url, {**good, **wrong})
    made = call("POST", url, good)
    assert call("GET", f"{url}/{made['id']}") == made
    assert [meter["slug"] for meter in call("GET", url)] == ["m1", "x"]
    with pytest.raises(Failed, match="answered 409"):
        call("POST", url, good)


def test_a_token_is_wanted_where_one_is_set() -> None:
    server = serve(create_app(token=TOKEN))
    url = f"http://127.0.0.1:{server.server_port}/api/v1/meters"
    try:
        with pytest.raises(Failed, match="answered 401"):
            call("GET", url)
        assert call("GET", url, None, {"Authorization": f"Bearer {TOKEN}"})
    finally:
        server.shutdown()
        server.server_close()


def test_an_event_is_seen_only_after_the_lag(
    openmeter_fake: OpenMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = time.time()
    monkeypatch.setattr("time.time", lambda: sent)
    openmeter_fake.use("c1", 1, time=NOON)
    openmeter_fake.fake("POST", "lag", {"seconds": 5})
    assert query(openmeter_fake, subject="c1") == []
    monkeypatch.setattr("time.time", lambda: sent + 4)
    assert query(openmeter_fake, subject="c1") == []
    monkeypatch.setattr("time.time", lambda: sent + 5)
    assert query(openmeter_fake, subject="c1")[0]["value"] == 1
