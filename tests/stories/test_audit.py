"""`flask audit`: a subscription's life seen afterwards, over HTTP to both stand-ins."""

import csv
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.conftest import DAY, END, START, OpenMeter
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE
from tests.stories.test_life import FINAL, HOUR, MODES, Story, T, Tell

YEAR = "365d"


def audit(story: Story, *options: str) -> Result:
    """Run the command over all that the story had."""
    runner = story.service.client.application.test_cli_runner()
    return runner.invoke(args=["audit", "--since", YEAR, *options])


def rows(story: Story, *options: str, status: int = 0) -> list[dict[str, Any]]:
    """Return the rows of an audit that ends with a status."""
    result = audit(story, "--json", *options)
    assert result.exit_code == status, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def figures(found: list[dict[str, Any]]) -> list[tuple[str | None, ...]]:
    """Return kind, metered, billed, missing and money of rows."""
    names = ("kind", "metered", "billed", "missing", "money")
    return [tuple(row[name] for name in names) for row in found]


@MODES
def test_a_life_without_loss_agrees(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(1_000, T)
    story.to(END + 60)
    story.deliver()
    story.used(5, END + DAY)
    story.to(END + FINAL)
    result = audit(story)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "1 invoice, 1 agree"
    (row,) = rows(story)
    assert row["from"], row["to"] == ("2023-06-07T14:20:30Z", "2023-07-07T14:00:00Z")
    assert figures([row]) == [("line", "1000", "1000", "0", "0.00")]


@MODES
def test_a_reset_with_two_units_missing(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(10, T - DAY)
    story.use(2, T - 30)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    found = rows(story, status=3)
    assert figures(found) == [("line", "12", "10", "2", "0.20")]
    assert "flask audit --repair" in found[0]["todo"]
    said = audit(story).stdout.splitlines()[-1]
    assert said == "1 invoice, 0 agree, 1 differ: 2 units, 0.20 USD not billed"


def test_a_price_changed_in_classic_mode_leaves_a_gap(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.deliver()
    story.used(500, T + DAY)
    story.to(END + 60)
    story.deliver()
    story.to(END + FINAL)
    found = rows(story, status=3)
    assert figures(found) == [
        ("line", "500", "500", "0", "0.00"),
        ("gap", "1000", "0", "1000", "100.00"),
    ]
    assert found[1]["price"] == story.prices["A"]


def test_a_price_changed_in_flexible_mode_leaves_none(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.deliver()
    story.used(500, T + DAY)
    assert rows(story) == []
    story.to(END + 60)
    story.deliver()
    story.to(END + FINAL)
    assert sorted(figures(rows(story))) == [
        ("line", "1000", "1000", "0", "0.00"),
        ("line", "500", "500", "0", "0.00"),
    ]


def test_an_invoice_item_that_prorates_bills_no_usage_while_it_waits(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.deliver()
    (waiting,) = story.stripe.account.all("invoiceitem")
    waiting["proration"] = True
    assert figures(rows(story, status=3)) == [("gap", "1000", "0", "1000", None)]


@MODES
def test_swapped_items_leave_a_gap_in_classic_mode_only(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A")
    story.used(40, T - DAY)
    story.to(T)
    old = story.items()[0]
    story.update(
        **{
            "items[0][id]": old,
            "items[0][deleted]": "true",
            "items[1][price]": story.prices["B"],
        }
    )
    story.deliver()
    story.used(7, T + DAY)
    story.to(END + 60)
    story.deliver()
    story.to(END + FINAL)
    lines = [("line", "7", "7", "0", "0.00")]
    if mode == CLASSIC:
        found = rows(story, status=3)
        assert figures(found) == [*lines, ("gap", "40", "0", "40", "4.00")]
        assert (found[1]["item"], found[1]["price"]) == (old, story.prices["A"])
    else:
        assert sorted(figures(rows(story))) == [("line", "40", "40", "0", "0.00"), *lines]


def test_a_removed_item_leaves_a_gap_that_ends_with_it(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "flat", "A")
    story.used(40, T - DAY)
    story.to(T)
    story.remove(1)
    story.deliver()
    story.use(9, T + DAY)
    story.to(T + 2 * DAY)
    found = rows(story, status=3)
    assert figures(found) == [
        ("gap", "40", "0", "40", "4.00"),
        ("gap", "9", "0", "9", "0.90"),
    ]
    assert "--repair" in found[0]["todo"]
    assert found[1]["todo"].startswith("no subscription counted it then")


@MODES
def test_a_trial_is_no_gap(tell: Tell, mode: str) -> None:
    story = tell()
    story.subscribe(mode, "A", trial_end=T)
    story.used(30, T - DAY)
    story.to(T + 60)
    story.deliver()
    story.used(4, T + DAY)
    assert [row["kind"] for row in rows(story)] == []
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver()
    story.to(end + FINAL)
    assert figures(rows(story)) == [("line", "4", "4", "0", "0.00")]


def test_usage_of_a_wrong_subject_is_billed_by_nobody(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.use(20, T, subject="someone else")
    story.to(T + DAY)
    found = rows(story, status=3)
    assert [(row["kind"], row["subject"], row["missing"]) for row in found] == [
        ("nobody", "someone else", "20"),
        ("idle", story.customer, "0"),
    ]
    assert "counted by nobody: 20 units" in audit(story).stdout.splitlines()[-1]


def test_two_subscriptions_on_one_meter_overlap(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    first = story.subscription
    story.subscribe(FLEXIBLE, "twin")
    story.use(8, T)
    story.to(T + DAY)
    (row,) = rows(story, status=3)
    assert (row["kind"], row["missing"]) == ("overlap", "-8")
    assert row["subscription"] == f"{first} and {story.subscription}"


def test_a_subscription_that_came_late_leaves_what_was_used_before(tell: Tell) -> None:
    story = tell()
    story.to(START + 1)
    story.use(6, START + HOUR)
    story.to(T)
    story.subscribe(FLEXIBLE, "A")
    story.use(4, T + 60)
    story.to(T + DAY)
    (row,) = rows(story, status=3)
    assert figures([row]) == [("gap", "6", "0", "6", None)]
    assert row["todo"].startswith("no subscription counted it then")


def test_a_draft_that_lacks_units_can_still_be_mended(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(10, T)
    story.use(5, END - 4_000)
    story.to(END + 60)
    (row,) = rows(story, "--differing")
    assert (row["status"], row["missing"]) == ("draft", "5")
    assert row["todo"].startswith("still a draft, which counts what flask report sends")
    said = "1 invoice, 0 agree; 1 draft can still be mended: 5 units, 0.50 USD not billed"
    assert audit(story).stdout.splitlines()[-1] == said
    assert story.run("--subscription", story.subscription).exit_code == 0
    story.to(END + FINAL)
    assert figures(rows(story)) == [("line", "15", "15", "0", "0.00")]


def test_a_price_changed_twice_tells_no_price_for_its_second_stay(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A")
    story.used(100, T - DAY)
    for n, name in enumerate(("B", "A")):
        story.to(T + 2 * n * DAY)
        story.change(name)
        story.deliver()
        story.used(20, T + 2 * n * DAY + DAY)
    found = rows(story, status=3)
    assert figures(found) == [
        ("gap", "100", "0", "100", "10.00"),
        ("gap", "20", "0", "20", None),
    ]
    assert found[1]["todo"].endswith("bill it by hand")


# Repair


def invoice_items(story: Story) -> list[Any]:
    """Return the customer's invoice items, newest first."""
    found: list[Any] = story.call("GET", "invoiceitems", customer=story.customer)["data"]
    return found


def lacking(tell: Tell, mode: str = FLEXIBLE) -> Story:
    """Tell of a reset with 2 of 12 units missing."""
    return lacking_on(tell(), "A", mode)


def lacking_on(story: Story, name: str, mode: str = FLEXIBLE) -> Story:
    """Go on with a reset that leaves 2 of 12 units of a price missing."""
    story.subscribe(mode, name)
    story.used(10, T - DAY)
    story.use(2, T - 30)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    return story


def test_a_repair_is_listed_and_made_after_a_yes_only(tell: Tell) -> None:
    story = lacking(tell)
    runner = story.service.client.application.test_cli_runner()
    asked = ["audit", "--since", YEAR, "--repair"]
    result = runner.invoke(args=asked, input="n\n")
    assert (result.exit_code, invoice_items(story)) == (3, [])
    assert "A: 2 units from 07 Jun 2023 14:20 to 17 Jun 2023 14:41 UTC" in result.output
    assert "Create 1 invoice item over 0.20 USD?" in result.output
    result = runner.invoke(args=asked, input="y\n")
    assert result.exit_code == 0, result.output
    (item,) = invoice_items(story)
    assert (item["quantity"], item["amount"], item["invoice"]) == (2, 20, None)
    assert item["parent"]["subscription_details"]["subscription"] == story.subscription
    assert item["metadata"]["om_units"] == "2"
    assert item["period"]["end"] == T


@MODES
def test_a_repair_is_made_once_and_counts_as_billed(tell: Tell, mode: str) -> None:
    story = lacking(tell, mode)
    assert audit(story, "--repair", "--yes").exit_code == 0
    again = audit(story, "--repair", "--yes")
    assert (again.exit_code, len(invoice_items(story))) == (0, 1)
    assert "nothing to repair" in again.stdout
    assert "1 invoice, 1 agree; 1 line repaired" in again.stdout
    (row,) = rows(story)
    assert (row["repaired"], row["missing"]) == ("2", "0")
    assert row["todo"] == "repaired: an invoice item over 2 units is pending"
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver()
    story.to(end + FINAL)
    found = rows(story)
    assert [row["missing"] for row in found] == ["0", "0"]
    assert "is on invoice in_" in found[1]["todo"]
    assert sum(line["amount"] for i in story.invoices() for line in i["lines"]["data"]) == 120


def test_a_subscription_that_had_a_trial_is_not_repaired(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A", trial_end=str(START + DAY))
    story.to(START + DAY)
    story.use(7, T - 60)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    result = audit(story, "--repair", "--yes")
    assert result.exit_code == 1
    assert "not repaired: its subscription had a trial" in result.stderr
    assert invoice_items(story) == []


def test_what_comes_after_a_repair_is_repaired_alone(tell: Tell) -> None:
    story = lacking(tell)
    assert audit(story, "--repair", "--yes").exit_code == 0
    story.use(3, T - 20)
    (row,) = rows(story, status=3)
    assert figures([row]) == [("line", "15", "10", "3", "0.30")]
    assert audit(story, "--repair", "--yes").exit_code == 0
    assert [item["quantity"] for item in invoice_items(story)] == [3, 2]
    assert rows(story)[0]["repaired"] == "5"


def test_a_repair_that_was_deleted_is_made_again(tell: Tell) -> None:
    story = lacking(tell)
    assert audit(story, "--repair", "--yes").exit_code == 0
    (item,) = invoice_items(story)
    del story.stripe.account.objects["invoiceitem"][item["id"]]
    assert audit(story, "--repair", "--yes").exit_code == 0
    assert len(invoice_items(story)) == 1


def test_a_gap_is_repaired_at_the_price_of_then(tell: Tell) -> None:
    story = tell()
    story.subscribe(CLASSIC, "A")
    story.used(1_000, T - DAY)
    story.to(T)
    story.change("B")
    story.deliver()
    story.used(500, T + DAY)
    assert audit(story, "--repair", "--yes").exit_code == 0
    (item,) = invoice_items(story)
    assert (item["quantity"], item["amount"]) == (1_000, 10_000)
    (row,) = rows(story)
    assert (row["kind"], row["repaired"], row["missing"]) == ("gap", "1000", "0")


def test_a_subscription_that_is_over_is_repaired_on_the_customers_next_invoice(tell: Tell) -> None:
    story = lacking(tell)
    story.call("DELETE", f"subscriptions/{story.subscription}")
    result = audit(story, "--repair", "--yes")
    assert result.exit_code == 0
    assert f"no subscription ({story.subscription} is over): 0.20 USD" in result.stdout
    assert invoice_items(story)[0]["parent"] is None


def test_amounts_over_are_listed_and_never_credited(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(10, T - DAY)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    story.use(-4, T - DAY)
    result = audit(story, "--repair", "--yes")
    assert (result.exit_code, invoice_items(story)) == (3, [])
    assert "4 units, 0.40 USD billed too many" in result.stdout
    assert "nothing to repair" in result.stdout


def test_a_live_key_needs_a_word_of_its_own(tell: Tell) -> None:
    story = tell(STRIPE_KEY="sk_live_1")
    result = audit(story, "--repair", "--yes")
    assert (result.exit_code, "needs --live" in result.stderr) == (2, True)


TIERS: dict[str, Any] = {
    "billing_scheme": "tiered",
    "metadata[om_meter_id]": "m1",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 10,
    "tiers[0][unit_amount]": 10,
    "tiers[0][flat_amount]": 100,
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount]": 5,
}


def test_tiers_are_one_row_and_their_money_is_repaired(tell: Tell) -> None:
    story = tell()
    story.price("tiers", **TIERS)
    story.subscribe(FLEXIBLE, "tiers")
    story.used(12, T - DAY)
    story.use(4, T - 30)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    (row,) = rows(story, status=3)
    assert figures([row]) == [("line", "16", "12", "4", "0.20")]
    assert audit(story, "--repair", "--yes").exit_code == 0
    (item,) = invoice_items(story)
    assert (item["amount"], item["metadata"]["om_units"]) == (20, "4")
    assert rows(story)[0]["missing"] == "0"


# What is shown, and what is not read


def test_the_table_fits_80_columns_and_has_what_differs_first(tell: Tell) -> None:
    story = lacking(tell)
    result = audit(story)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.startswith("invoice            meter")
    assert "12          10           2       0.20 USD" in result.stdout
    assert audit(story, "--until", "2023-06-01").stdout == "0 invoices, 0 agree\n"


def test_every_line_is_shown_if_asked_for(tell: Tell) -> None:
    story = lacking(tell)
    assert audit(story, "--repair", "--yes").exit_code == 0
    story.to(START + 60 * DAY)
    story.deliver()
    story.to(START + 65 * DAY)
    shown = audit(story).stdout
    assert "in_" in shown
    everything = audit(story, "--all").stdout
    assert everything.count("subject cus_") > shown.count("subject cus_")


def test_a_csv_file_has_a_line_for_each_row(tell: Tell, tmp_path: Path) -> None:
    story = lacking(tell)
    file = tmp_path / "audit.csv"
    assert audit(story, "--csv", str(file)).exit_code == 3
    (row,) = csv.DictReader(file.read_text().splitlines())
    assert (row["kind"], row["missing"], row["money"]) == ("line", "2", "0.20")
    assert row["url"].startswith("https://dashboard.stripe.com/test/invoices/in_")


def test_a_difference_within_the_tolerance_is_none(tell: Tell) -> None:
    story = lacking(tell)
    assert audit(story, "--tolerance", "2").exit_code == 0
    assert audit(story, "--tolerance", "1.5").exit_code == 3
    assert rows(story, "--tolerance", "2", "--differing") == []


def test_one_subscription_is_audited_with_what_its_customers_others_bill(tell: Tell) -> None:
    story = lacking(tell)
    first = story.subscription
    story.use(7, T, subject="someone else")
    story.subscribe(FLEXIBLE, "other")
    story.to(T + DAY)
    assert [row["kind"] for row in rows(story, "--subscription", first, status=3)] == ["line"]
    found = rows(story, "--subscription", story.subscription)
    assert [row["kind"] for row in found] == ["idle"]


def test_what_cannot_be_read_is_said_and_the_rest_goes_on(tell: Tell) -> None:
    story = lacking(tell)
    story.openmeter.fault(path="/api/v1/meters/m1/query", status=500, times=9)
    result = audit(story)
    assert result.exit_code == 1
    assert "failed: " in result.stderr
    assert "not compared: OpenMeter did not tell its total" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 invoice, 0 agree; 1 could not be compared"
    story.stripe.fault(path="/v1/invoices", status=503, times=9)
    result = audit(story)
    assert (result.exit_code, "failed: the account" in result.stderr) == (1, True)


def test_an_empty_openmeter_is_not_taken_for_no_usage(
    tell: Tell, empty_openmeter: OpenMeter
) -> None:
    story = lacking(tell)
    story.service = story.start(OPENMETER_URL=empty_openmeter.url)
    result = audit(story)
    assert result.exit_code == 1
    assert "nobody had usage in that time: is OPENMETER_URL right" in result.stderr


@pytest.mark.parametrize("given", ["", "2", "0d", "2w", "-1d", "2026-13-01", "yesterday"])
def test_a_time_that_is_none_is_refused(tell: Tell, given: str) -> None:
    result = audit(tell(), "--until", given)
    assert (result.exit_code, "is no time such as 35d" in result.stderr) == (2, True)


def test_only_invoices_of_the_time_asked_for_have_a_row(tell: Tell) -> None:
    story = lacking(tell)
    day = datetime.fromtimestamp(T, UTC).date().isoformat()
    assert [row["kind"] for row in rows(story, "--until", day)] == []
    found = audit(story, "--since", day, "--json")
    assert [json.loads(line)["kind"] for line in found.stdout.splitlines()] == ["line"]


def test_a_void_invoice_lacks_nothing_and_leaves_no_gap(tell: Tell) -> None:
    story = lacking(tell)
    story.stripe.account.get("invoice", story.invoices()[-1]["id"])["status"] = "void"
    (row,) = rows(story)
    assert (row["status"], row["missing"]) == ("void", "0")
    assert row["todo"] == "the invoice is void: nobody pays it"


@pytest.mark.parametrize(("rounding", "missing"), [("down", "0"), ("up", "1")])
def test_a_usage_record_is_compared_as_it_is_rounded(
    tell: Tell, rounding: str, missing: str
) -> None:
    story = tell()
    story.subscribe(CLASSIC, "R")
    story.used(10.5, T)
    story.to(END + FINAL)
    story.service = story.start(USAGE_ROUNDING=rounding)
    (row,) = rows(story, status=3 if missing != "0" else 0)
    assert (row["metered"], row["billed"], row["missing"]) == ("10.5", "10", missing)


def test_a_total_below_zero_lacks_nothing(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A")
    story.used(-5, T)
    story.to(END + 60)
    story.deliver()
    story.to(END + FINAL)
    assert figures(rows(story)) == [("line", "-5", "0", "0", "0.00")]


def test_a_line_whose_items_end_no_event_told_is_not_compared(tell: Tell) -> None:
    story = tell()
    story.subscribe(FLEXIBLE, "A", "flat")
    story.used(10, T)
    story.switch({"id": story.items()[0], "deleted": "true"})
    story.to(END + FINAL)
    result = audit(story)
    assert result.exit_code == 1
    assert "the customer.subscription.updated of that was not seen" in result.stderr
    assert "1 invoice, 0 agree; 1 could not be compared" in result.stdout
    assert "in no line" not in result.stdout


def test_packages_are_repaired_with_their_money(tell: Tell) -> None:
    story = tell()
    form: dict[str, Any] = {"transform_quantity[divide_by]": 5, "transform_quantity[round]": "up"}
    form["metadata[om_meter_id]"] = "m1"
    story.price("packs", **form)
    (row,) = rows(lacking_on(story, "packs"), status=3)
    assert figures([row]) == [("line", "12", "10", "2", "0.10")]
    assert audit(story, "--repair", "--yes").exit_code == 0
    assert [item["amount"] for item in invoice_items(story)] == [10]


def test_a_fraction_is_repaired_with_its_decimals(tell: Tell) -> None:
    story = lacking(tell)
    story.use(0.25, T - 20)
    assert audit(story, "--repair", "--yes").exit_code == 0
    (item,) = invoice_items(story)
    assert (item["quantity_decimal"], item["amount"]) == ("2.25", 23)
    assert rows(story)[0]["missing"] == "0"


def test_accounts_are_audited_together(tell: Tell) -> None:
    story = tell()
    result = audit(story, "--account", "acct_1", "--account", "acct_2")
    assert (result.exit_code, result.stdout) == (0, "0 invoices, 0 agree\n")
    for account in ("acct_1", "acct_2"):
        seen = story.stripe.fake("GET", f"accounts/{account}/requests")["requests"]
        assert {entry["path"] for entry in seen} == {
            "/v1/invoices",
            "/v1/subscriptions",
            "/v1/invoiceitems",
        }


def test_many_lines_of_one_time_are_asked_for_together(tell: Tell) -> None:
    story = tell()
    for n in range(5):
        story.call("POST", "customers", name=str(n))
        story.subscribe(FLEXIBLE, "A", **{"metadata[om_subject]": f"s{n}"})
        story.use(n + 1, T, subject=f"s{n}")
    story.to(END + FINAL)
    story.openmeter.fake("DELETE", "requests")
    assert len([row for row in rows(story, status=3) if row["kind"] == "line"]) == 5
    asked = [seen for seen in story.openmeter.requests() if seen["path"].endswith("/query")]
    assert len(asked) == 3  # the lines, all of the meter's usage, and what overlaps


def test_pages_are_read_to_their_end(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    story = lacking(tell)
    for n in range(3):
        story.to(T + (n + 1) * DAY)
        story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    before = rows(story, status=3)
    monkeypatch.setattr("billing.stripe_api.PAGE_LIMIT", 2)
    assert rows(story, status=3) == before
    assert len(before) >= 3


class Reader(HTMLParser):
    """What a reader sees of a page, what it links to, and what a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.append(str(value))
            elif name in ("src", "href", "srcset", "data", "action"):
                self.fetched.append(str(value))
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


def page_of(story: Story, path: Path, status: int = 3) -> Reader:
    """Write an audit as a page and read it."""
    result = audit(story, "--html", str(path / "audit.html"))
    assert result.exit_code == status, result.output
    return Reader((path / "audit.html").read_text())


def test_a_page_shows_what_differs_and_then_what_agrees(tell: Tell, tmp_path: Path) -> None:
    story = lacking(tell)
    story.use(20, T, subject="some <b>one</b>")
    story.used(70, T + DAY)
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver()
    story.to(end + FINAL)
    page = page_of(story, tmp_path)
    said = (
        "2 invoices, 1 agree, 1 differ: 2 units, 0.20 USD not billed; 1 subject counted by nobody"
    )
    assert said in page.text
    assert page.text.index("What differs") < page.text.index("some <b>one</b>")
    assert page.text.index("counted by nobody") < page.text.index("USD by month")
    assert "2023-06 1.20 1.00 0.20 0.00" in page.text
    assert "2023-07 7.00 7.00 0.00 0.00" in page.text
    assert "1 lines" not in page.text
    assert page.text.index("What agrees") > page.text.index("USD by month")
    assert {link.split("/in_")[0] for link in page.links} == {
        "https://dashboard.stripe.com/test/invoices"
    }
    assert page.tags.count("rect") == 6


def test_a_page_fetches_nothing_and_needs_no_script(tell: Tell, tmp_path: Path) -> None:
    page = page_of(lacking(tell), tmp_path)
    source = (tmp_path / "audit.html").read_text()
    assert page.fetched == []
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"@import|url\(|expression\(", source)
    assert "default-src 'none'" in source
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_a_page_says_what_could_not_be_read(tell: Tell, tmp_path: Path) -> None:
    story = lacking(tell)
    story.openmeter.fault(path="/api/v1/meters/m1/query", status=500, times=9)
    page = page_of(story, tmp_path, status=1)
    assert "What could not be read" in page.text
    assert "not compared: OpenMeter did not tell its total" in page.text


def test_a_repair_fills_a_months_bar(tell: Tell, tmp_path: Path) -> None:
    story = lacking(tell)
    assert audit(story, "--repair", "--yes").exit_code == 0
    page = page_of(story, tmp_path, status=0)
    assert "2023-06 1.20 1.20 0.00 0.00" in page.text
    assert "and 2 repaired" in page.text


def test_one_form_of_output_is_chosen(tell: Tell) -> None:
    result = audit(tell(), "--json", "--csv", "-")
    assert (result.exit_code, "choose one of" in result.stderr) == (2, True)
