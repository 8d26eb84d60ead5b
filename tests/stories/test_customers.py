"""A customer of OpenMeter's with several subjects, billed whole by one subscription."""

import json
import re
from typing import Any

import pytest

from tests.conftest import DAY, END, START
from tests.fakes.test_stripe_life import FLEXIBLE
from tests.stories.test_audit import audit, figures, rows
from tests.stories.test_life import FINAL, SHAPES, WAYS, Story, T, Tell

NAMED = "metadata[om_customer]"
UNKNOWN = "01G65Z755AFWAKHE12NY0CQ9FH"


def owned(story: Story) -> str:
    """Create a customer in OpenMeter with two subjects; return its ULID."""
    return story.openmeter.customer(*subjects(story))


def subjects(story: Story) -> list[str]:
    return [f"{story.customer} a", f"{story.customer} b"]


def use_both(story: Story, units: float, at: int) -> None:
    """Let both subjects use units, which is twice as many of the customer."""
    for subject in subjects(story):
        story.use(units, at, subject=subject)


def asked_for(story: Story) -> set[str]:
    """Return whom OpenMeter was asked for by himself."""
    seen = [one for one in story.openmeter.requests() if one["path"].endswith("/query")]
    return {re.split("[=&]", one["query"])[1] for one in seen if one["method"] == "GET"}


def kinds(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return kind, subject and missing units of an audit's rows."""
    return [(row["kind"], row["subject"], row["missing"]) for row in found]


@SHAPES
@WAYS
def test_a_customer_of_two_subjects_is_billed_whole_and_the_audit_agrees(
    tell: Tell, version: str, way: tuple[str, str]
) -> None:
    story = tell(version)
    owner = owned(story)
    story.subscribe(*way, **{NAMED: owner})
    story.use(9_000, T - DAY)
    use_both(story, 20, T - DAY)
    story.to(T)
    story.touch()
    story.deliver()
    use_both(story, 1.5, T + 60)
    story.to(T + DAY)
    assert story.run().exit_code == 0
    assert asked_for(story) == {owner}
    assert story.run("--dry-run").exit_code == 0
    use_both(story, 2, END - DAY)
    story.to(END - 60)
    assert story.run().exit_code == 0
    story.to(END + 60)
    story.deliver()
    story.to(END + FINAL)
    assert set(story.warned()) == set(story.warned("no rows"))  # of the period that began
    ((_, lines),) = story.billed()
    assert [units for _, units, _ in lines] == [47]
    found = rows(story, status=3)
    assert figures(found) == [
        ("line", "47", "47", "0", "0.00"),
        ("nobody", "9000", "0", "9000", None),
    ]
    assert [row["subject"] for row in found] == [f"om_customer {owner}", story.customer]
    assert f"subject om_customer {owner}" in " ".join(audit(story, "--all").stdout.split())


@SHAPES
@WAYS
@pytest.mark.parametrize("late", [0, 60], ids=["fresh", "late"])
def test_a_whole_customer_in_a_subjects_place_is_warned_of_with_both_totals(
    tell: Tell, version: str, way: tuple[str, str], late: int
) -> None:
    story = tell(version)
    owner = owned(story)
    story.subscribe(*way, **{"metadata[om_subject]": subjects(story)[0]})
    use_both(story, 111, T - DAY)
    story.to(T)
    story.update(**{"metadata[om_subject]": "", NAMED: owner})
    answer = story.deliver(seconds=late)[-1]
    assert [entry["total_usage"] for entry in answer.json["reported"]] == ["222.000000"]
    (said,) = story.warned()
    assert story.warned("changed") == [said]
    assert f"meter m1, om_customer {owner}, window HOUR now: 222 units" in said
    assert f"no longer 111 of meter m1, subject {subjects(story)[0]!r}" in said


@WAYS
def test_an_unknown_customer_fails_and_what_stands_in_stripe_stays(
    tell: Tell, way: tuple[str, str]
) -> None:
    story = tell()
    story.subscribe(*way)
    story.used(10, T)
    story.update(**{NAMED: UNKNOWN})
    (event,) = story.fresh()
    story.post(event, 500)
    result = story.run()
    assert result.exit_code == 1
    assert any(f"no such customer: customer with id {UNKNOWN}" in line for line in failures(story))
    if way[1] == "A":
        assert {value for _, value in story.sent()} == {"10"}
    else:
        assert story.stripe.usage(story.items()[0]) == [10]


def failures(story: Story) -> list[str]:
    return [record.getMessage() for record in story.caplog.records if record.levelname == "ERROR"]


def test_a_run_names_two_subscriptions_that_bill_the_same_customer(tell: Tell) -> None:
    story = tell()
    owner = owned(story)
    items = []
    for price in ("A", "twin"):
        story.subscribe(FLEXIBLE, price, **{NAMED: owner})
        items += story.items()
    use_both(story, 5, T - 60)
    story.to(T)
    assert story.run().exit_code == 0
    (said,) = story.warned("billed twice")
    assert all(item in said for item in items)
    assert f"of meter m1 and om_customer {owner}:" in said
    found = rows(story, status=3)
    assert kinds(found) == [("overlap", f"om_customer {owner}", "-10")]


def test_a_subject_of_a_customers_ulid_is_not_that_customer(tell: Tell) -> None:
    story = tell()
    owner = owned(story)
    for price, key in (("A", "om_customer"), ("twin", "om_subject")):
        story.subscribe(FLEXIBLE, price, **{f"metadata[{key}]": owner})
    use_both(story, 5, T - 60)
    story.use(3, T - 60, subject=owner)
    story.to(T)
    assert story.run().exit_code == 0
    assert story.warned() == []
    assert (story.sent()[-1][1], story.sent("twin")[-1][1]) == ("10", "3")
    assert rows(story) == []


def test_the_audit_names_a_subject_that_is_billed_beside_its_customer(tell: Tell) -> None:
    story = tell()
    owner = owned(story)
    story.subscribe(FLEXIBLE, "A", **{NAMED: owner})
    whole = story.subscription
    second = subjects(story)[1]
    story.subscribe(FLEXIBLE, "twin", **{"metadata[om_subject]": second})
    use_both(story, 5, T - 60)
    story.to(T)
    assert story.run().exit_code == 0
    found = rows(story, status=3)
    assert kinds(found) == [("overlap", second, "-5")]
    assert found[0]["subscription"] == f"{whole} and {story.subscription}"
    for subscription in (whole, story.subscription):
        alone = rows(story, "--subscription", subscription, status=3)
        assert kinds(alone) == [("overlap", second, "-5")]


def test_subjects_that_were_billed_one_by_one_before_leave_no_gap(tell: Tell) -> None:
    story = tell()
    owner, first = owned(story), subjects(story)[0]
    story.subscribe(FLEXIBLE, "A", **{"metadata[om_subject]": first})
    story.use(10, T - 60, subject=first)
    story.to(T)
    story.touch()
    story.deliver()
    story.call("DELETE", f"subscriptions/{story.subscription}", invoice_now="true")
    story.deliver()
    story.subscribe(FLEXIBLE, "twin", **{NAMED: owner})
    use_both(story, 5, T + 60)
    story.use(3, T - 60, subject=subjects(story)[1])
    story.to(T + DAY)
    found = rows(story, status=3)
    assert kinds(found) == [("line", first, "0"), ("gap", subjects(story)[1], "3")]
    assert found[1]["todo"].startswith("no subscription counted it then")


def test_a_gap_of_a_customers_own_is_one_over_all_its_subjects(tell: Tell) -> None:
    story = tell()
    owner = owned(story)
    story.subscribe("classic", "A", **{NAMED: owner})
    use_both(story, 500, T - 2 * DAY)
    story.to(T - DAY)
    story.touch()
    story.deliver()
    story.to(T)
    story.change("B")
    story.deliver()
    found = rows(story, status=3)
    assert figures(found) == [("gap", "1000", "0", "1000", "100.00")]
    assert found[0]["subject"] == f"om_customer {owner}"
    assert found[0]["price"] == story.prices["A"]


def test_a_customer_without_usage_is_idle(tell: Tell) -> None:
    story = tell()
    owner = owned(story)
    story.subscribe(FLEXIBLE, "A", **{NAMED: owner})
    story.to(T)
    assert kinds(rows(story)) == [("idle", f"om_customer {owner}", "0")]
    use_both(story, 1, START + DAY)
    assert rows(story) == []


def test_a_customer_that_is_gone_from_openmeter_is_told_by_the_audit(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A", **{NAMED: UNKNOWN})
    story.use(5, T, subject="somebody's")
    story.to(T + DAY)
    result = audit(story, "--json")
    assert result.exit_code == 1
    assert kinds([json.loads(line) for line in result.stdout.splitlines()]) == [
        ("nobody", "somebody's", "5")
    ]
    assert f"failed: om_customer {UNKNOWN}: meter m1: OpenMeter answered 404" in result.stderr
    assert "its subjects may stand among those that nobody counts" in result.stderr
