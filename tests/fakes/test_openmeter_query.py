"""The OpenMeter stand-in answers queries by OpenMeter's own rules."""

from typing import Any
from urllib.parse import urlencode

import pytest

from fakes.processes import Failed, call
from tests.conftest import OpenMeter

NOON, ONE = "2023-06-07T12:00:00Z", "2023-06-07T13:00:00Z"


def query(openmeter: OpenMeter, slug: str = "m1", **args: Any) -> list[dict[str, Any]]:
    arguments = urlencode({"from": NOON, "to": ONE, **args}, doseq=True)
    answer = call("GET", f"{openmeter.url}/api/v1/meters/{slug}/query?{arguments}")
    rows: list[dict[str, Any]] = answer["data"]
    return rows


def post(openmeter: OpenMeter, slug: str = "m1", **body: Any) -> list[dict[str, Any]]:
    url = f"{openmeter.url}/api/v1/meters/{slug}/query"
    rows: list[dict[str, Any]] = call("POST", url, {"from": NOON, "to": ONE, **body})["data"]
    return rows


def values(rows: list[dict[str, Any]], name: str = "subject") -> dict[str, float]:
    """Return the values by subject; no subject has two rows."""
    found = {row[name]: row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        ("SUM", 0.4),
        ("COUNT", 6),
        ("AVG", 0.4 / 3),
        ("MIN", 0.1),
        ("MAX", 0.2),
        ("UNIQUE_COUNT", 5),
        ("LATEST", 0.2),
    ],
)
def test_aggregations(openmeter_fake: OpenMeter, aggregation: str, value: float) -> None:
    openmeter_fake.meter("x", aggregation)
    openmeter_fake.use("c1", 0.2, time="2023-06-07T12:59:59Z", kind="x")
    openmeter_fake.use("c1", 0.1, "0.1", "much", True, {"a": 1}, time=NOON, kind="x")
    (row,) = query(openmeter_fake, "x", subject="c1")
    assert row["value"] == pytest.approx(value)


@pytest.mark.parametrize("aggregation", ["SUM", "AVG", "MIN", "MAX", "LATEST"])
@pytest.mark.parametrize("value", [True, "much", "", "inf", "1_0", [1], {}, 10**400])
def test_what_is_no_number_gives_no_row(
    openmeter_fake: OpenMeter, aggregation: str, value: Any
) -> None:
    openmeter_fake.meter("x", aggregation)
    openmeter_fake.use("c1", value, time=NOON, kind="x")
    assert query(openmeter_fake, "x", subject="c1") == []


def test_unique_count_counts_all_that_is_missing_as_one(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.meter("x", "UNIQUE_COUNT")
    event = {"source": "t", "specversion": "1.0", "type": "x", "subject": "c1", "time": NOON}
    datas: list[Any] = [None, {}, {"other": 1}, {"duration": ""}, {"duration": "a"}]
    events = [{**event, "id": str(n), "data": data} for n, data in enumerate(datas)]
    call("POST", f"{openmeter_fake.url}/api/v1/events", events)
    assert query(openmeter_fake, "x", subject="c1")[0]["value"] == 2


def test_a_count_without_a_subject_has_a_row_though_there_is_nothing(
    openmeter_fake: OpenMeter,
) -> None:
    for slug, aggregation in (("n", "COUNT"), ("u", "UNIQUE_COUNT")):
        openmeter_fake.meter(slug, aggregation)
        (row,) = query(openmeter_fake, slug)
        assert row == {
            "value": 0,
            "windowStart": NOON,
            "windowEnd": ONE,
            "subject": None,
            "groupBy": {},
        }
        assert query(openmeter_fake, slug, subject="c1") == []
        assert query(openmeter_fake, slug, windowSize="DAY") == []
    assert query(openmeter_fake, "m1") == []


def test_a_sum_of_doubles_has_a_doubles_noise(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 0.1, 0.2, time=NOON)
    assert query(openmeter_fake, subject="c1")[0]["value"] == 0.1 + 0.2 != 0.3


def test_a_sum_beyond_a_double_is_500(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 1e308, 1e308, time=NOON)
    with pytest.raises(Failed, match="answered 500"):
        query(openmeter_fake)


def test_from_is_inclusive_and_to_is_exclusive_in_whole_seconds(openmeter_fake: OpenMeter) -> None:
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
    (row,) = query(openmeter_fake, subject="c1", **{"from": "2023-06-07T12:00:00.9Z"})
    assert row["value"] == 6


def test_an_answer_says_what_was_asked(openmeter_fake: OpenMeter) -> None:
    asked = {"from": "2023-06-07T12:00:00+02:00", "to": ONE, "windowSize": "DAY"}
    url = f"{openmeter_fake.url}/api/v1/meters/m1/query"
    assert call("GET", f"{url}?{urlencode(asked)}") == {**asked, "data": []}
    assert call("POST", url, asked) == {**asked, "data": []}
    assert call("GET", url) == {"data": []}


def test_without_bounds_a_row_is_over_the_minutes_of_its_events(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 1, time="2023-06-07T12:00:30Z")
    openmeter_fake.use("c1", 1, time="2023-06-07T12:07:00Z")
    (row,) = call("GET", f"{openmeter_fake.url}/api/v1/meters/m1/query")["data"]
    assert (row["windowStart"], row["windowEnd"]) == (NOON, "2023-06-07T12:08:00Z")


def test_one_row_for_each_subject_none_without_usage_and_one_for_everybody(
    openmeter_fake: OpenMeter,
) -> None:
    openmeter_fake.use("c1", 1, time=NOON)
    openmeter_fake.use("c2", 2, time=NOON)
    for ask in (query, post):
        assert values(ask(openmeter_fake, subject=["c1", "c2", "c3"])) == {"c1": 1, "c2": 2}
        assert ask(openmeter_fake, subject=["nobody"]) == []
        assert values(ask(openmeter_fake)) == {None: 3}
        assert values(ask(openmeter_fake, groupBy=["subject"])) == {"c1": 1, "c2": 2}
    (row,) = post(openmeter_fake, subject=["c1"], groupBy=["subject"])
    assert row == {
        "value": 1,
        "windowStart": NOON,
        "windowEnd": ONE,
        "subject": "c1",
        "groupBy": {},
    }
    # An empty list groups, and filters nobody out.
    assert values(post(openmeter_fake, subject=[])) == {"c1": 1, "c2": 2}


def test_rows_come_in_no_fixed_order(openmeter_fake: OpenMeter) -> None:
    subjects = [f"c{n}" for n in range(50)]
    for subject in subjects:
        openmeter_fake.use(subject, 1, time=NOON)

    def asked() -> list[str]:
        return [row["subject"] for row in post(openmeter_fake, subject=subjects)]

    openmeter_fake.fake("POST", "order", {"seed": 1})
    first, second = asked(), asked()
    assert first != second
    assert sorted(first) == sorted(second) == sorted(subjects)
    openmeter_fake.fake("POST", "order", {"seed": 1})
    assert [asked(), asked()] == [first, second]
    openmeter_fake.fake("POST", "order", {"seed": 2})
    assert asked() != first


def test_a_customer_has_one_row_over_all_its_subjects(openmeter_fake: OpenMeter) -> None:
    for n, subject in enumerate(["c1", "c2", "c3", "c4"]):
        openmeter_fake.use(subject, 10**n, time=NOON)
    first, second = openmeter_fake.customer("c1", "c2"), openmeter_fake.customer("c3", "c9")
    idle = openmeter_fake.customer("c10")
    for ask in (query, post):
        (row,) = ask(openmeter_fake, filterCustomerId=[first])
        assert row == {
            "value": 11,
            "windowStart": NOON,
            "windowEnd": ONE,
            "subject": None,
            "customerId": first,
            "groupBy": {},
        }
        rows = ask(openmeter_fake, filterCustomerId=[second, idle, first])
        assert values(rows, "customerId") == {first: 11, second: 100}
        rows = ask(openmeter_fake, filterCustomerId=[first, second], groupBy=["subject"])
        assert values(rows) == {"c1": 1, "c2": 10, "c3": 100}
        assert {row["customerId"] for row in rows} == {first, second}
        rows = ask(openmeter_fake, filterCustomerId=[first], subject=["c2", "c3"])
        assert values(rows) == {"c2": 10}
        with pytest.raises(Failed, match="answered 404"):
            ask(openmeter_fake, filterCustomerId=[first, "01G65Z755AFWAKHE12NY0CQ9FH"])
    assert values(post(openmeter_fake, filterCustomerId=[])) == {None: 1111}


def test_rows_by_what_a_meter_groups_by(openmeter_fake: OpenMeter) -> None:
    url = f"{openmeter_fake.url}/api/v1"
    meter = {"slug": "x", "aggregation": "COUNT", "eventType": "x", "groupBy": {"size": "$.a.b"}}
    call("POST", f"{url}/meters", meter)
    event = {"source": "t", "specversion": "1.0", "type": "x", "subject": "c1", "time": NOON}
    datas: list[Any] = [{"a": {"b": 1}}, {"a": {"b": "1"}}, {"a": 1}]
    events = [{**event, "id": str(n), "data": data} for n, data in enumerate(datas)]
    call("POST", f"{url}/events", events)
    rows = query(openmeter_fake, "x", groupBy="size")
    assert {row["groupBy"]["size"]: row["value"] for row in rows} == {"1": 2, "": 1}


@pytest.mark.parametrize(
    ("window", "starts", "end"),
    [
        ("MINUTE", ["31T23:58", "31T23:59", "01T00:00"], "2024-02-01T00:01:00Z"),
        ("HOUR", ["31T23:00", "01T00:00"], "2024-02-01T01:00:00Z"),
        ("DAY", ["31T00:00", "01T00:00"], "2024-02-02T00:00:00Z"),
        ("MONTH", ["01T00:00", "01T00:00"], "2024-03-01T00:00:00Z"),
    ],
)
def test_windows_come_in_order_and_none_without_usage(
    openmeter_fake: OpenMeter, window: str, starts: list[str], end: str
) -> None:
    for at in ("02-01T00:00:59", "01-31T23:58:00", "01-31T23:59:59", "02-01T00:00:00"):
        openmeter_fake.use("c1", 1, time=f"2024-{at}Z")
        openmeter_fake.use("c2", 1, time=f"2024-{at}Z")
    span = {"from": "2024-01-31T12:00:00Z", "to": "2024-12-01T00:00:00Z", "windowSize": window}
    rows = query(openmeter_fake, subject="c1", **span)
    assert [row["windowStart"][8:16] for row in rows] == starts
    assert (rows[-1]["windowEnd"], rows[-1]["value"]) == (end, 2)
    both = query(openmeter_fake, groupBy="subject", **span)
    assert [row["windowStart"][8:16] for row in both] == [start for start in starts for _ in "12"]


@pytest.mark.parametrize(
    "args",
    [
        {"to": NOON},
        {"from": ONE, "to": NOON},
        {"from": "yesterday"},
        {"from": "2023-06-07"},
        {"from": "2023-06-07T12:00:00"},
        {"from": ""},
        {"windowSize": "WEEK"},
        {"windowSize": ""},
        {"groupBy": "model"},
        {"groupBy": ""},
        {"groupBy": "customer_id"},
        {"subject": ""},
        {"filterCustomerId": ""},
        {"filterCustomerId": ["c"] * 101},
    ],
)
def test_a_query_outside_the_rules_is_400(openmeter_fake: OpenMeter, args: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="answered 400"):
        query(openmeter_fake, **args)


@pytest.mark.parametrize(
    "body",
    [
        {"from": None},
        {"from": 1_686_139_200},
        {"to": NOON},
        {"windowSize": ["DAY"]},
        {"windowSize": None},
        {"subject": "c1"},
        {"subject": [1]},
        {"subject": None},
        {"subject": ["c"] * 101},
        {"groupBy": ["subject"] * 101},
        {"groupBy": ["model"]},
        {"filterCustomerId": ["c"] * 101},
    ],
)
def test_a_body_outside_the_rules_is_400(openmeter_fake: OpenMeter, body: dict[str, Any]) -> None:
    with pytest.raises(Failed, match="answered 400"):
        post(openmeter_fake, **body)


@pytest.mark.parametrize("body", [[], b"from=x", "text"])
def test_another_body_is_400(openmeter_fake: OpenMeter, body: Any) -> None:
    with pytest.raises(Failed, match="answered 400"):
        call("POST", f"{openmeter_fake.url}/api/v1/meters/m1/query", body)


def test_a_hundred_subjects_in_a_body_and_more_in_a_url(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c7", 1, time=NOON)
    subjects = [f"c{n}" for n in range(150)]
    assert values(post(openmeter_fake, subject=subjects[:100])) == {"c7": 1}
    assert values(query(openmeter_fake, subject=subjects)) == {"c7": 1}


def test_what_openmeter_does_not_know_is_ignored(openmeter_fake: OpenMeter) -> None:
    openmeter_fake.use("c1", 1, time=NOON)
    assert values(query(openmeter_fake, subject="c1", group="x", clientId="me")) == {"c1": 1}
    assert values(post(openmeter_fake, subject=["c1"], group="x")) == {"c1": 1}
