"""The OpenMeter stand-in takes events, meters and customers by OpenMeter's own rules."""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from fakes.openmeter_api import create_app
from fakes.openmeter_http import number_text, time_text
from fakes.openmeter_store import ULID
from fakes.processes import DIRECT, Failed, call
from tests.conftest import TOKEN, OpenMeter, serve

NOON = "2023-06-07T12:00:00Z"
EVENT = {
    "id": "1",
    "source": "a",
    "specversion": "1.0",
    "type": "execution",
    "subject": "c1",
    "time": NOON,
    "data": {"duration": 1},
}
METER = {"slug": "x", "aggregation": "SUM", "eventType": "x", "valueProperty": "$.v"}
CUSTOMER = {"name": "Epsilon", "usageAttribution": {"subjectKeys": ["c1", "c2"]}}


@pytest.fixture
def client() -> FlaskClient:
    return create_app().test_client()


def total(client: FlaskClient) -> Any:
    """Return what m1 counts, or None if there is no row."""
    rows = client.get("/api/v1/meters/m1/query").get_json()["data"]
    return rows[0]["value"] if rows else None


def ingest(client: FlaskClient, events: Any, content_type: str = "application/json") -> int:
    body = events if isinstance(events, str) else json.dumps(events)
    return client.post("/api/v1/events", data=body, content_type=content_type).status_code


def test_an_event_counts_as_often_as_it_is_sent(client: FlaskClient) -> None:
    assert ingest(client, EVENT) == ingest(client, [EVENT, EVENT]) == 204
    assert total(client) == 3


def test_with_dedupe_an_event_counts_once_by_source_and_id(client: FlaskClient) -> None:
    client.post("/_fake/dedupe", json={"on": True})
    ingest(client, EVENT)
    ingest(client, [EVENT, {**EVENT, "source": "b"}, {**EVENT, "id": "2"}])
    assert total(client) == 3
    client.post("/_fake/dedupe", json={"on": False})
    ingest(client, EVENT)
    assert total(client) == 4


@pytest.mark.parametrize("wrong", [{"subject": ""}, {"data": {"duration": None}}])
def test_a_batch_counts_all_or_none(client: FlaskClient, wrong: dict[str, Any]) -> None:
    assert ingest(client, [EVENT, {**EVENT, **wrong}]) == 400
    assert total(client) is None


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "application/cloudevents-batch+json"]
)
def test_a_body_is_of_the_type_that_it_names(client: FlaskClient, content_type: str) -> None:
    good, wrong = (EVENT, [EVENT]) if content_type.endswith("ts+json") else ([EVENT], EVENT)
    assert ingest(client, good, content_type) == 204
    assert ingest(client, wrong, content_type) == 400


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/json; charset=utf-8"])
def test_another_type_of_body_is_refused(client: FlaskClient, content_type: str) -> None:
    assert ingest(client, EVENT, content_type) == 400


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "[null]",
        '"event"',
        {**EVENT, "id": 1},
        {**EVENT, "specversion": "2.0"},
        {**EVENT, "time": "2023-06-07"},
        {**EVENT, "time": "2023-06-07T12:00:00"},
        {**EVENT, "time": "2023-13-07T12:00:00Z"},
        {**EVENT, "time": 1},
        {**EVENT, "datacontenttype": "text/plain"},
        {**EVENT, "data": 10},
        {**EVENT, "data": {"duration": None}},
        {**EVENT, "data": {"duration": 1, "else": None}},
        {**EVENT, "data": {"duration": float("nan")}},
    ],
)
def test_an_event_of_another_form_is_refused(client: FlaskClient, body: Any) -> None:
    assert ingest(client, body) == 400


@pytest.mark.parametrize(
    "change", [{"time": None}, {"data": None}, {"data": {"a": {"b": None}}}, {"extension": "x"}]
)
def test_what_may_be_missing_may_be_null(client: FlaskClient, change: dict[str, Any]) -> None:
    assert ingest(client, {**EVENT, **change}) == 204


def test_a_meter_is_created_with_200_a_name_annotations_and_metadata(client: FlaskClient) -> None:
    answer = client.post("/api/v1/meters", json=METER)
    assert answer.status_code == 200
    made = answer.get_json()
    assert made == {
        **METER,
        "id": made["id"],
        "name": "x",
        "annotations": None,
        "metadata": None,
        "createdAt": made["createdAt"],
        "updatedAt": made["createdAt"],
    }
    assert ULID.fullmatch(made["id"])
    assert made["id"] == made["id"].upper()
    assert client.get(f"/api/v1/meters/{made['id']}").get_json() == made
    assert client.get("/api/v1/meters/x").get_json() == made
    given = {"slug": "a", "name": "A", "metadata": {"k": "v"}, "groupBy": {"model": "$.model"}}
    other = client.post("/api/v1/meters", json={**METER, **given}).get_json()
    assert {name: other[name] for name in given} == given
    assert client.post("/api/v1/meters", json=METER).status_code == 409


def test_meters_are_listed_by_slug_whatever_page_is_asked_for(client: FlaskClient) -> None:
    for slug in ("z", "a"):
        client.post("/api/v1/meters", json={**METER, "slug": slug})
    for query in ("", "?pageSize=1", "?page=9"):
        listed = client.get(f"/api/v1/meters{query}").get_json()
        assert [meter["slug"] for meter in listed] == ["a", "m1", "z"]
    listed = client.get("/api/v1/meters?orderBy=createdAt&order=DESC").get_json()
    assert listed[-1]["slug"] == "m1"
    assert client.get("/api/v1/meters?orderBy=slug").status_code == 400


@pytest.mark.parametrize(
    "wrong",
    [
        {"slug": ""},
        {"slug": "X"},
        {"slug": "a-b"},
        {"slug": "_a"},
        {"slug": "a" * 65},
        {"name": ""},
        {"eventType": 1},
        {"aggregation": "MEDIAN"},
        {"aggregation": "COUNT"},
        {"valueProperty": ""},
        {"valueProperty": None},
        {"valueProperty": "v"},
        {"valueProperty": "$v"},
        {"groupBy": {"model": "model"}},
        {"groupBy": {"a-b": "$.v"}},
    ],
)
def test_a_meter_outside_the_rules_is_not_created(
    client: FlaskClient, wrong: dict[str, Any]
) -> None:
    assert client.post("/api/v1/meters", json={**METER, **wrong}).status_code == 400
    assert client.get("/api/v1/meters/x").status_code == 404


def test_what_only_the_real_one_has_is_501(client: FlaskClient) -> None:
    for more in ({"valueProperty": "$.v[0]"}, {"valueProperty": "$['v']"}, {"eventFrom": NOON}):
        assert client.post("/api/v1/meters", json={**METER, **more}).status_code == 501
    for query in ("windowTimeZone=CET", "filterGroupBy[model]=x"):
        assert client.get(f"/api/v1/meters/m1/query?{query}").status_code == 501


@pytest.mark.parametrize("key", ["M1", "a-b", "_a", "a" * 65, "8" + "Z" * 25, "a%20b"])
def test_a_meter_of_a_wrong_form_is_400_and_an_unknown_one_404(
    client: FlaskClient, key: str
) -> None:
    for path in ("", "/query"):
        assert client.get(f"/api/v1/meters/{key}{path}").status_code == 400
        assert client.get(f"/api/v1/meters/nothing{path}").status_code == 404
        assert client.get(f"/api/v1/meters/{'7' + 'Z' * 25}{path}").status_code == 404


def test_an_error_is_a_problem_document(client: FlaskClient) -> None:
    answer = client.get("/api/v1/meters/nothing")
    assert answer.content_type == "application/problem+json"
    problem = answer.get_json()
    assert re.match("urn:request:", problem.pop("instance"))
    assert problem == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "meter not found: nothing",
    }
    for answer in (client.get("/api/v9"), client.delete("/api/v1/meters")):
        assert answer.content_type == "application/problem+json"
        assert answer.get_json()["status"] == answer.status_code in (404, 405)


def test_a_customer_owns_its_key_and_its_subjects(client: FlaskClient) -> None:
    answer = client.post("/api/v1/customers", json={**CUSTOMER, "key": "c0"})
    assert answer.status_code == 201
    made = answer.get_json()
    assert made == {
        **CUSTOMER,
        "key": "c0",
        "id": made["id"],
        "createdAt": made["createdAt"],
        "updatedAt": made["updatedAt"],
    }
    assert ULID.fullmatch(made["id"])
    for taken in ({"key": "c0"}, {"usageAttribution": {"subjectKeys": ["c9", "c2"]}}):
        assert client.post("/api/v1/customers", json={"name": "x", **taken}).status_code == 409
    wrongs: list[Any] = [
        None,
        {},
        {"name": "x"},
        {"name": "x", "key": ""},
        {"name": "x", "usageAttribution": {}},
        {"name": "x", "usageAttribution": {"subjectKeys": [""]}},
        {"name": "x", "usageAttribution": {"subjectKeys": []}},
    ]
    for wrong in wrongs:
        assert client.post("/api/v1/customers", json=wrong).status_code == 400


def test_without_clickhouse_only_queries_fail(client: FlaskClient) -> None:
    client.post("/_fake/clickhouse", json={"down": True})
    assert client.get("/api/v1/meters?pageSize=1").status_code == 200
    assert client.get("/api/v1/meters/m1").status_code == 200
    assert ingest(client, EVENT) == 204
    for answer in (
        client.get("/api/v1/meters/m1/query"),
        client.post("/api/v1/meters/m1/query", json={}),
        client.post("/api/v1/meters", json=METER),
    ):
        problem = answer.get_json()
        assert (answer.status_code, problem["status"]) == (500, 500)
        assert "detail" not in problem
    assert client.get("/api/v1/meters/nothing/query").status_code == 404
    assert client.get("/api/v1/meters/m1/query?subject=").status_code == 400
    client.post("/_fake/clickhouse", json={"down": False})
    assert total(client) == 1


def test_a_stalled_sink_is_invisible(client: FlaskClient) -> None:
    ingest(client, EVENT)
    client.post("/_fake/sink", json={"stalled": True})
    assert ingest(client, EVENT) == 204
    assert total(client) == 1
    client.post("/_fake/sink", json={"stalled": False})
    assert total(client) == 2


def test_an_event_is_seen_only_after_the_lag(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = time.time()
    monkeypatch.setattr("time.time", lambda: sent)
    ingest(client, EVENT)
    client.post("/_fake/lag", json={"seconds": 5})
    assert total(client) is None
    monkeypatch.setattr("time.time", lambda: sent + 4)
    assert total(client) is None
    monkeypatch.setattr("time.time", lambda: sent + 5)
    assert total(client) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10.0, "10"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (1e-9, "1e-9"),
        (1.5e-12, "1.5e-12"),
        (1e-6, "0.000001"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
    ],
)
def test_a_number_is_written_as_go_writes_it(value: float, text: str) -> None:
    assert number_text(value) == text
    assert json.loads(text) == value


def test_a_time_is_written_as_go_writes_it() -> None:

    for text in ("2023-06-07T12:00:00Z", "2023-06-07T12:00:00.25+02:00"):
        assert time_text(datetime.fromisoformat(text)) == text
    assert time_text(datetime.fromisoformat("2023-06-07T12:00:00.000+00:00")) == NOON


@pytest.fixture
def guarded() -> Iterator[str]:
    server = serve(create_app(token=TOKEN))
    yield f"http://127.0.0.1:{server.server_port}/api/v1/meters"
    server.shutdown()
    server.server_close()


def test_a_token_is_wanted_where_one_is_set(guarded: str) -> None:
    with pytest.raises(Failed, match="answered 401"):
        call("GET", guarded)
    assert call("GET", guarded, None, {"Authorization": f"Bearer {TOKEN}"})


def test_over_the_wire_the_numbers_are_the_same(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 1e-9, time=NOON)
    with DIRECT.open(f"{openmeter_fake.url}/api/v1/meters/m1/query?subject=c1") as answer:
        assert b'"value":1e-9,' in answer.read()
