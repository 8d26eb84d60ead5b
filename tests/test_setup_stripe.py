"""The seeding script against the Stripe stand-in."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from pytest_mock import MockerFixture

import setup_stripe
from fakes.processes import DIRECT
from tests.conftest import ACACIA, ENDIVE, KEY, Service, Stripe, free_port

LIVE = ["sk_live_4Tz1", "rk_live_4Tz1"]
LINE = re.compile(r"Stripe (\w+) (created|already there): http://127\.0\.0\.1:\d+/(.+)")


@pytest.fixture(autouse=True)
def account(stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_stripe, "dotenv_values", lambda _: {})
    monkeypatch.setenv("STRIPE_KEY", KEY)
    monkeypatch.setenv("STRIPE_API_BASE", stripe_fake.url + "/")


def printed(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    lines = capsys.readouterr().out.splitlines()
    return [match.groups() for line in lines if (match := LINE.fullmatch(line))]  # type: ignore[misc]


def test_it_creates_all_four_with_the_meter_on_the_item(
    stripe_fake: Stripe, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_stripe.main(["--meter", "cpu_seconds"])
    lines = printed(capsys)
    ids = {kind: path.rsplit("/", 1)[1] for kind, _, path in lines}
    assert [(kind, state, path) for kind, state, path in lines] == [
        (kind, "created", f"test/{kind}s/{ids[kind]}")
        for kind in ("product", "price", "customer", "subscription")
    ]
    assert {seen["version"] for seen in stripe_fake.requests()} == {ACACIA}
    subscription = stripe_fake.call("GET", f"subscriptions/{ids['subscription']}")
    (item,) = subscription["items"]["data"]
    assert subscription["customer"] == ids["customer"]
    assert item["metadata"] == {"om_meter_id": "cpu_seconds"}
    assert item["price"]["id"] == ids["price"]
    assert item["price"]["product"] == ids["product"]
    assert (item["price"]["unit_amount"], item["price"]["currency"]) == (10, "usd")
    assert item["price"]["recurring"] == {
        "interval": "month",
        "interval_count": 1,
        "meter": None,
        "usage_type": "metered",
    }


def test_a_second_run_finds_product_and_price_again(capsys: pytest.CaptureFixture[str]) -> None:
    setup_stripe.main([])
    first = printed(capsys)
    setup_stripe.main([])
    second = printed(capsys)
    assert [state for _, state, _ in second] == ["already there"] * 2 + ["created"] * 2
    assert [path for _, _, path in second[:2]] == [path for _, _, path in first[:2]]
    assert {path for _, _, path in second[2:]}.isdisjoint(path for _, _, path in first[2:])


def test_the_links_lead_to_the_stand_ins_pages_and_it_is_said(
    stripe_fake: Stripe, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_stripe.main(["--billing", "meter", "--test-clock"])
    lines = capsys.readouterr().out.splitlines()
    said = f"STRIPE_API_BASE is not Stripe's: the links lead to {stripe_fake.url}."
    assert lines[0] == said
    links = [line.rsplit(" ", 1)[1] for line in lines if ": http" in line and line != said]
    assert len(links) == 6
    for link in links:
        with DIRECT.open(link, timeout=10) as page:
            assert link.rsplit("/", 1)[1] in page.read().decode()


@pytest.mark.parametrize("base", [None, "", "https://api.stripe.com", "https://api.stripe.com/"])
def test_the_links_lead_to_stripes_dashboard_otherwise(
    capsys: pytest.CaptureFixture[str], base: str | None
) -> None:
    found = setup_stripe.dashboard_of({"STRIPE_API_BASE": base})
    assert (found, capsys.readouterr().out) == ("https://dashboard.stripe.com", "")


@pytest.mark.parametrize("key", LIVE)
def test_a_live_key_is_refused_before_any_call(
    stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("STRIPE_KEY", key)
    with pytest.raises(SystemExit, match="a live key: use a test key, or give --live"):
        setup_stripe.main([])
    assert stripe_fake.requests() == []


@pytest.mark.parametrize("key", LIVE)
def test_live_leads_to_the_live_dashboard(
    monkeypatch: pytest.MonkeyPatch,
    mocker: MockerFixture,
    capsys: pytest.CaptureFixture[str],
    key: str,
) -> None:
    monkeypatch.setenv("STRIPE_KEY", key)
    made = [setup_stripe.SeededObject("product", "prod_1")]
    mocker.patch("setup_stripe.seed", return_value=made)  # the stand-in takes no live key
    setup_stripe.main(["--live"])
    assert printed(capsys) == [("product", "created", "products/prod_1")]


def test_live_with_a_test_key_is_refused_before_any_call(stripe_fake: Stripe) -> None:
    with pytest.raises(SystemExit, match="is no live key: leave out --live, or use a live key"):
        setup_stripe.main(["--live"])
    assert stripe_fake.requests() == []


NO_KEY = "STRIPE_KEY is no secret key (sk_...) and no restricted one (rk_...)."


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STRIPE_KEY", "", "STRIPE_KEY is missing: copy .env.example to .env and set it there."),
        ("STRIPE_KEY", "sk test", NO_KEY),
        ("STRIPE_KEY", "sk_test_1\n", NO_KEY),
        ("STRIPE_KEY", "pk_test_7Kq2", NO_KEY),
        ("STRIPE_KEY", "whsec_9Zr4", NO_KEY),
        (
            "STRIPE_API_BASE",
            "localhost:4010",
            "STRIPE_API_BASE lacks http:// or https:// before it.",
        ),
    ],
)
def test_a_setting_that_is_missing_or_not_valid_is_refused(
    stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        setup_stripe.main([])
    assert str(ended.value.code).startswith(said)
    assert stripe_fake.requests() == []


@pytest.mark.parametrize("meter", ["", "M1", "a b", "../x"])
def test_a_meter_that_is_no_slug_is_refused(stripe_fake: Stripe, meter: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        setup_stripe.main(["--meter", meter])
    assert stripe_fake.requests() == []


@pytest.mark.parametrize(
    ("path", "kind", "done"),
    [
        ("prices", "product", "nothing"),
        ("products", "product", "nothing"),
        ("customers", "customer", r"product prod_\w+, price price_\w+"),
        ("subscriptions", "subscription", r"product prod_\w+, price price_\w+, customer cus_\w+"),
    ],
)
def test_an_error_says_what_failed_what_to_do_and_what_was_there_by_then(
    stripe_fake: Stripe, path: str, kind: str, done: str
) -> None:
    error = {"error": {"message": "It is\n closed."}}
    stripe_fake.fault(path=f"/v1/{path}", status=400, body=error)
    with pytest.raises(SystemExit) as ended:
        setup_stripe.main([])
    said = (
        f"Stripe {kind} not created: Stripe answered 400: It is closed. Mend that, then run this "
        f"again. Done by then: {done}."
    )
    assert re.fullmatch(said, str(ended.value.code))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"status": 401, "body": {"error": {"message": KEY}}}, "401. Check STRIPE_KEY"),
        ({"status": 403, "body": {"error": {"message": KEY}}}, "403. Check STRIPE_KEY"),
        ({"status": 503, "body": "<h1>", "times": 2}, "503. Run this again in a while."),
        ({"status": 200, "body": "<h1>"}, "200. Run this again in a while."),
        ({"drop": True, "times": 2}, "no answer (ConnectionError at http://127.0.0.1:"),
        ({"status": 400, "body": {"error": []}}, "the answer is not Stripe's. Check STRIPE_API"),
        ({"status": 200, "body": []}, "the answer is not Stripe's. Check STRIPE_API"),
        ({"status": 200, "body": {}}, "the answer is not Stripe's. Check STRIPE_API"),
        ({"status": 429, "body": {"error": {}}}, "429. Run this again in a while."),
        (
            {"status": 400, "body": {"error": {"message": "must be backed by meters."}}},
            "must be backed by meters. This account takes no usage records: run this with",
        ),
    ],
)
def test_each_kind_of_error_is_one_line_without_the_key(
    stripe_fake: Stripe, fault: dict[str, object], reason: str
) -> None:
    stripe_fake.fault(path="/v1/prices", **fault)
    with pytest.raises(SystemExit) as ended:
        setup_stripe.main([])
    assert reason in str(ended.value.code)
    assert "\n" not in str(ended.value.code)
    assert KEY not in str(ended.value.code)


def test_a_billing_meter_and_its_price_are_made_once(
    stripe_fake: Stripe, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_stripe.main(["--billing", "meter", "--meter", "cpu_seconds"])
    first = printed(capsys)
    assert [kind for kind, _, _ in first] == [
        "meter", "product", "price", "customer", "subscription",
    ]  # fmt: skip
    assert {seen["version"] for seen in stripe_fake.requests()} == {ENDIVE}
    (made,) = stripe_fake.call("GET", "billing/meters", ENDIVE)["data"]
    assert made["event_name"] == "openmeter_cpu_seconds"
    assert made["default_aggregation"] == {"formula": "last"}
    (price,) = stripe_fake.call("GET", "prices", ENDIVE)["data"]
    assert (price["recurring"]["meter"], price["unit_amount"]) == (made["id"], 10)
    setup_stripe.main(["--billing", "meter", "--meter", "cpu_seconds"])
    second = printed(capsys)
    assert [state for _, state, _ in second] == ["already there"] * 3 + ["created"] * 2
    assert [path for _, _, path in second[:3]] == [path for _, _, path in first[:3]]
    setup_stripe.main([])
    assert [state for _, state, _ in printed(capsys)] == ["created"] * 4


def test_a_meter_that_adds_up_is_not_taken(stripe_fake: Stripe) -> None:
    stripe_fake.metered_price("m1", "sum")
    with pytest.raises(SystemExit, match="adds totals up: deactivate it"):
        setup_stripe.main(["--billing", "meter"])


@pytest.mark.parametrize("options", [["--billing", "meter"], []])
def test_a_test_clock_comes_with_the_walk_from_usage_to_the_invoice(
    start: Callable[..., Service], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    setup_stripe.main([*options, "--test-clock"])
    customer, *walk = [
        line
        for line in capsys.readouterr().out.splitlines()
        if not line.startswith(("Stripe ", "STRIPE_API_BASE "))
    ]
    assert [line[:6] for line in walk] == [
        "# 2. A", "stripe", "# 3. R", ".venv/", "# 4. A", "stripe", "stripe",
    ]  # fmt: skip
    service = start()
    subject = re.search(r"cus_\w+", customer)
    assert subject
    service.openmeter.use(subject[0], 7, time=datetime.now(UTC).isoformat())
    for line in walk:
        if advance := re.fullmatch(r"stripe post /v1/(\S+) -d frozen_time=(\d+)", line):
            service.stripe.call("POST", advance[1], frozen_time=advance[2])
        elif report := re.fullmatch(r"\.venv/bin/flask (.*)", line):
            done = service.client.application.test_cli_runner().invoke(args=report[1].split())
            assert done.exit_code == 0, done.output
    invoice = service.stripe.call("GET", "invoices")["data"][0]
    assert (invoice["billing_reason"], invoice["status"]) == ("subscription_cycle", "open")
    assert [line["quantity"] for line in invoice["lines"]["data"]] == [7]


def test_a_test_clock_with_a_live_key_is_refused(stripe_fake: Stripe) -> None:
    with pytest.raises(SystemExit, match="2"):
        setup_stripe.main(["--live", "--test-clock"])
    assert stripe_fake.requests() == []


def test_a_service_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("STRIPE_API_BASE", url)
    said = f"no answer (ConnectionError at {url}). Check STRIPE_API_BASE and the network"
    with pytest.raises(SystemExit, match=re.escape(said)):
        setup_stripe.main([])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(), "cannot be read by this user"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, ""), "is not UTF-8"),
    ],
)
def test_an_env_file_that_is_no_use_is_no_traceback(
    mocker: MockerFixture, error: Exception, said: str
) -> None:
    mocker.patch("setup_stripe.dotenv_values", side_effect=error)
    with pytest.raises(SystemExit, match=said):
        setup_stripe.main([])
