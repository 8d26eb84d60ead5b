"""What the measurements' upstream answers and counts."""

import json

import pytest

from bench.answers import Upstream
from bench.objects import ANCHORS, HOUR, NOW
from bench.upstream import message

RECORD = "/v1/subscription_items/si_{}/usage_records"


def test_above_a_limit_the_answer_is_429_with_its_reason() -> None:
    upstream = Upstream(limited=True)
    answers = [upstream.answer("POST", RECORD.format(n)) for n in range(26)]
    assert [answer.status for answer in answers] == [200] * 25 + [429]
    assert b"\r\nStripe-Rate-Limited-Reason: endpoint-rate\r\n" in message(answers[-1])
    assert b"Rate-Limited" not in message(answers[0])
    counts = json.loads(upstream.answer("GET", "/_bench/counts").body)
    assert (counts["writes"], counts["refused"]) == (25, 1)
    assert counts["used"]["POST /v1/subscription_items/*/usage_records"] == 104


def test_without_limits_and_from_openmeter_all_is_taken() -> None:
    target = "/api/v1/meters/m/query?from=1&to=2"
    for upstream, method, path in (
        (Upstream(), "POST", RECORD.format(1)),
        (Upstream(limited=True), "GET", target),
    ):
        assert {upstream.answer(method, path).status for _ in range(200)} == {200}


def test_a_query_for_many_subjects_is_one() -> None:
    upstream = Upstream(subscriptions=100)
    asked = {"subject": [f"cus_sub_{n}" for n in range(100)], "to": "2026-11-26T00:00:00Z"}
    body = json.dumps(asked).encode()
    rows = json.loads(upstream.answer("POST", "/api/v1/meters/m/query", body).body)["data"]
    assert sorted(row["subject"] for row in rows) == sorted(asked["subject"])
    assert upstream.queries == 1


@pytest.mark.parametrize(("spread", "hours"), [(False, 1), (True, ANCHORS)])
def test_anchors_are_on_one_hour_or_spread_over_a_months(spread: bool, hours: int) -> None:
    upstream = Upstream(spread=spread, meter_id="mtr_1")
    listed = [upstream.listed(number) for number in range(2 * ANCHORS)]
    assert len({each["current_period_start"] // HOUR for each in listed}) == hours
    assert all(each["current_period_start"] < NOW < each["current_period_end"] for each in listed)
