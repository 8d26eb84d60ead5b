"""Tables and properties of what OpenMeter counted; no network."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl, urlsplit

import openmeter
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_mock import MockerFixture

import usage

START, END = datetime(2023, 6, 7, 14, tzinfo=UTC), datetime(2023, 7, 7, 14, tzinfo=UTC)
seconds = st.integers(0, 4_102_444_800)
windows = st.sampled_from(list(usage.WINDOW_SECONDS.values()))


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(
    ("window", "instant", "rounded"),
    [
        ("MINUTE", "2023-06-07T14:20:30Z", "2023-06-07T14:20:00Z"),
        ("MINUTE", "2023-06-07T14:20:59Z", "2023-06-07T14:20:00Z"),
        ("MINUTE", "2023-06-07T14:21:00Z", "2023-06-07T14:21:00Z"),
        ("HOUR", "2023-06-07T14:20:30Z", "2023-06-07T14:00:00Z"),
        ("HOUR", "2023-06-07T13:59:59Z", "2023-06-07T13:00:00Z"),
        ("HOUR", "2023-06-07T14:00:00Z", "2023-06-07T14:00:00Z"),
        ("DAY", "2023-06-07T23:59:59Z", "2023-06-07T00:00:00Z"),
        ("DAY", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
        ("DAY", "2024-03-01T00:00:01Z", "2024-03-01T00:00:00Z"),
        # A change of the clocks in Europe changes nothing: windows are UTC's.
        ("DAY", "2024-03-31T02:30:00+02:00", "2024-03-31T00:00:00Z"),
        ("DAY", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ],
)
def test_an_instant_is_rounded_down_to_its_window_in_utc(
    window: str, instant: str, rounded: str
) -> None:
    found = usage.window_start_at(at(instant), usage.WINDOW_SECONDS[window])
    assert found == datetime.fromisoformat(rounded)
    assert found.utcoffset() == timedelta(0)


@given(seconds, windows)
def test_rounding_is_idempotent_never_later_and_less_than_a_window(
    second: int, window: int
) -> None:
    rounded = usage.window_start_at(second, window).timestamp()
    assert usage.window_start_at(int(rounded), window).timestamp() == rounded
    assert 0 <= second - rounded < window


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("10", "10"),
        ("0", "0"),
        ("9.9999999996", "10"),
        ("0.30000000000000004", "0.3"),
        ("0.1234567891", "0.123456789"),
        ("2.5e3", "2500"),
        ("-1e-12", "0"),
        ("-0.000000001", "-0.000000001"),
        ("-150", "-150"),
        ("9007199254740992", "9007199254740992"),
        ("-9007199254740992", "-9007199254740992"),
        ("9007199254740991.5", "9007199254740991.5"),
    ],
)
def test_a_total_is_exact_but_for_float_noise(text: str, total: str) -> None:
    found = usage.normalized_total(json.loads(text, parse_float=Decimal, parse_int=Decimal))
    assert found == Decimal(total)
    assert found.is_signed() == (found < 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9007199254740994", "beyond 2\\*\\*53"),
        ("1e21", "beyond 2\\*\\*53"),
        ("1e999999999", "beyond 2\\*\\*53"),
        ("-1e21", "beyond 2\\*\\*53"),
        ("NaN", "no finite number"),
        ("Infinity", "no finite number"),
        ("null", "no finite number"),
        ("true", "no finite number"),
        ('"10"', "no finite number"),
        ("[]", "no finite number"),
    ],
)
def test_a_total_that_is_no_quantity_is_refused(text: str, reason: str) -> None:
    value = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    with pytest.raises(usage.QueryFailed, match=reason):
        usage.normalized_total(value)
    with pytest.raises(usage.QueryFailed, match="no finite number"):
        usage.normalized_total(Decimal("NaN"))


@pytest.mark.parametrize(
    ("total", "down", "half_up", "up"),
    [
        ("10", 10, 10, 10),
        ("0", 0, 0, 0),
        ("0.3", 0, 0, 1),
        ("0.5", 0, 1, 1),
        ("1.5", 1, 2, 2),
        ("2.499999999", 2, 2, 3),
        ("0.000000001", 0, 0, 1),
        ("9007199254740991.5", 2**53 - 1, 2**53, 2**53),
        ("9007199254740992", 2**53, 2**53, 2**53),
    ],
)
def test_a_quantity_is_rounded_as_the_setting_says(
    total: str, down: int, half_up: int, up: int
) -> None:
    quantities = [usage.whole_quantity(Decimal(total), way) for way in ("down", "half-up", "up")]
    assert quantities == [down, half_up, up]


@pytest.mark.parametrize("value", ["10", "10.0", "1e1", "0.1", "12345678.123456789"])
def test_the_one_row_of_an_answer_is_the_total(mocker: MockerFixture, value: str) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.content = f'{{"data": [{{"value": {value}}}]}}'.encode()
    assert usage.total(client, "m1", "cus_123", START, END) == Decimal(value)


@pytest.mark.parametrize("start", [END, END + timedelta(seconds=1230)])
def test_an_empty_period_is_zero_without_a_query(mocker: MockerFixture, start: datetime) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    assert usage.total(client, "m1", "cus_123", start, END) == 0
    client.send_request.assert_not_called()


@pytest.mark.parametrize(
    "body",
    ["", "[]", "null", "{}", '{"data": null}', '{"data": [1]}', '{"data": [{}]}', "[" * 100_000],
)
def test_an_unreadable_answer_names_the_meter(mocker: MockerFixture, body: str) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.content = body.encode()
    with pytest.raises(usage.QueryFailed, match="meter m1: .* unreadable"):
        usage.total(client, "m1", "cus_123", START, END)


@pytest.mark.parametrize("value", ["NaN", "1e21", "null", "9007199254740994"])
def test_a_total_that_cannot_be_billed_names_the_meter(mocker: MockerFixture, value: str) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.content = f'{{"data": [{{"value": {value}}}]}}'.encode()
    with pytest.raises(usage.QueryFailed, match="meter m1: the total"):
        usage.total(client, "m1", "cus_123", START, END)


def test_two_totals_are_not_added_up(mocker: MockerFixture) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.content = b'{"data": [{"value": 1}, {"value": 2}]}'
    with pytest.raises(usage.QueryFailed, match="meter m1: OpenMeter answered 2 totals"):
        usage.total(client, "m1", "cus_123", START, END)


def answering(mocker: MockerFixture, body: str) -> openmeter.Client:
    """Return a client that answers every request with a body."""
    client = mocker.create_autospec(openmeter.Client, instance=True)
    client.send_request.return_value.status_code = 200
    client.send_request.return_value.content = body.encode()
    return client


def test_totals_of_many_subjects_are_asked_for_in_one_query(mocker: MockerFixture) -> None:
    rows = [
        '{"subject": "b", "value": 9.9999999996, "groupBy": {"subject": "b"}}',
        '{"subject": "a", "value": -2, "groupBy": {"subject": "a"}}',
        '{"subject": null, "value": 5, "groupBy": {}}',
        '{"subject": "unasked", "value": 7, "groupBy": {}}',
    ]
    client = answering(mocker, f'{{"data": [{", ".join(rows)}]}}')
    found = usage.totals(client, "m1", ["a", "b", "c"], START, END)
    assert found == {"a": Decimal(-2), "b": Decimal(10)}
    (request,) = client.send_request.call_args.args  # type: ignore[attr-defined]
    assert (request.method, request.url) == ("POST", "/api/v1/meters/m1/query")
    assert json.loads(request.content) == {
        "from": "2023-06-07T14:00:00Z",
        "to": "2023-07-07T14:00:00Z",
        "subject": ["a", "b", "c"],
        "groupBy": ["subject"],
    }
    assert usage.totals(client, "m1", None, START, END).keys() == {"a", "b", "unasked"}


@pytest.mark.parametrize("subjects", [[], ["a"]])
def test_nobodys_totals_and_an_empty_time_need_no_query(
    mocker: MockerFixture, subjects: list[str]
) -> None:
    client = answering(mocker, "")
    assert usage.totals(client, "m1", subjects, END, END if subjects else START) == {}
    assert usage.totals(client, "m1", [], START, END) == {}
    client.send_request.assert_not_called()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "unreadable"),
        ('{"data": null}', "unreadable"),
        ('{"data": {}}', "unreadable"),
        ('{"data": [1]}', "unreadable"),
        ('{"data": [{"subject": "a"}]}', "unreadable"),
        ('{"data": [{"subject": 1, "value": 1}]}', "unreadable"),
        ('{"data": [{"subject": "a", "value": "1"}]}', "no finite number"),
        ('{"data": [{"subject": "a", "value": NaN}]}', "no finite number"),
        ('{"data": [{"subject": "a", "value": 1e21}]}', "no longer exact"),
        (
            '{"data": [{"subject": "a", "value": 1}, {"subject": "a", "value": 2}]}',
            "two totals of the subject a",
        ),
    ],
)
def test_totals_that_cannot_be_told_name_the_meter(
    mocker: MockerFixture, body: str, reason: str
) -> None:
    with pytest.raises(usage.QueryFailed, match=f"meter m1: .*{reason}"):
        usage.totals(answering(mocker, body), "m1", ["a"], START, END)


ULID = "01G65Z755AFWAKHE12NY0CQ9FH"
CUSTOMER = usage.OpenMeterCustomer(ULID)


def test_a_customer_is_asked_for_by_its_ulid_and_without_a_subject(mocker: MockerFixture) -> None:
    client = answering(mocker, f'{{"data": [{{"value": 12.5, "customerId": "{ULID}"}}]}}')
    assert usage.total(client, "m1", CUSTOMER, START, END) == Decimal("12.5")
    (request,) = client.send_request.call_args.args  # type: ignore[attr-defined]
    assert (request.method, request.url) == (
        "GET",
        f"/api/v1/meters/m1/query?filterCustomerId={ULID}"
        "&from=2023-06-07T14:00:00Z&to=2023-07-07T14:00:00Z",
    )
    assert usage.total(answering(mocker, '{"data": []}'), "m1", CUSTOMER, START, END) is None
    assert usage.total(client, "m1", CUSTOMER, END, END) == 0


@pytest.mark.parametrize("subject", ["cus_1", "a/b", "a&from=b", "a+b c", "ü#?%"])
def test_a_subject_is_asked_for_as_it_is_written(mocker: MockerFixture, subject: str) -> None:
    client = answering(mocker, '{"data": [{"value": 1, "subject": "any"}]}')
    assert usage.total(client, "m1", subject, START, END) == 1
    (request,) = client.send_request.call_args.args  # type: ignore[attr-defined]
    target = urlsplit(request.url)
    assert target.path == "/api/v1/meters/m1/query"
    times = [("from", "2023-06-07T14:00:00Z"), ("to", "2023-07-07T14:00:00Z")]
    assert parse_qsl(target.query) == [("subject", subject), *times]
    assert "/" not in target.query


def test_a_customers_subjects_are_asked_for_in_one_query(mocker: MockerFixture) -> None:
    rows = [f'{{"subject": "{name}", "value": 3, "customerId": "{ULID}"}}' for name in "ab"]
    client = answering(mocker, f'{{"data": [{", ".join(rows)}]}}')
    assert usage.totals(client, "m1", CUSTOMER, START, END) == {"a": 3, "b": 3}
    (request,) = client.send_request.call_args.args  # type: ignore[attr-defined]
    assert json.loads(request.content) == {
        "from": "2023-06-07T14:00:00Z",
        "to": "2023-07-07T14:00:00Z",
        "groupBy": ["subject"],
        "filterCustomerId": [ULID],
    }


@pytest.mark.parametrize(
    "row", ['"customerId": null', '"customerId": "01G65Z755AFWAKHE12NY0CQ9FJ"', '"groupBy": {}']
)
def test_usage_that_is_not_known_to_be_the_customers_is_none_of_its_total(
    mocker: MockerFixture, row: str
) -> None:
    client = answering(mocker, f'{{"data": [{{"subject": "a", "value": 7, {row}}}]}}')
    for ask in (usage.total, usage.totals):
        with pytest.raises(usage.QueryFailed, match="meter m1: .*other usage than that customer's"):
            ask(client, "m1", CUSTOMER, START, END)
    assert usage.total(client, "m1", ULID, START, END) == 7


def test_a_customer_is_no_subject_of_the_same_text() -> None:
    assert len({CUSTOMER, ULID, usage.OpenMeterCustomer(ULID)}) == 2
    assert usage.whose_text(CUSTOMER) == f"om_customer {ULID}"
    assert usage.whose_text("cus_1") == "subject 'cus_1'"


def test_a_text_of_somebody_elses_is_one_printable_line() -> None:
    assert usage.one_line("no\n such\x1b[2J\x00 meter\u2028\u202e") == "no such [2J meter"
    assert len(usage.one_line("x" * 2_000)) == 300


PROBLEM = "application/problem+json"
NO_PATH = "404, no such path: OPENMETER_URL leads to something else, or has a path too many$"


@pytest.mark.parametrize(
    ("status", "kind", "detail", "said"),
    [
        (401, PROBLEM, "of tok_1", "401$"),
        (403, PROBLEM, "of tok_1", "403$"),
        (400, PROBLEM, "of tok_1", "400: of tok_1$"),
        (404, PROBLEM, "meter not found: m1", "404, no such meter: meter not found: m1$"),
        (404, PROBLEM, "Not Found", NO_PATH),
        (
            404,
            PROBLEM,
            f"customer with id {ULID} not found",
            f"404, no such customer: .*{ULID} not",
        ),
        (404, "application/json", "no /api/v1/meters/m1/query", NO_PATH),
    ],
)
def test_an_answer_that_is_none_is_told_apart_and_without_what_it_says_of_the_token(
    mocker: MockerFixture, status: int, kind: str, detail: str, said: str
) -> None:
    client = mocker.create_autospec(openmeter.Client, instance=True)
    response = client.send_request.return_value
    response.status_code, response.content_type = status, kind
    response.content = json.dumps({"detail": detail}).encode()
    with pytest.raises(usage.QueryFailed, match=f"OpenMeter answered {said}"):
        usage.total(client, "m1", CUSTOMER, START, END)
