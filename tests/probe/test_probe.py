"""The probe prints exactly the reading that the stand-in was told, or that it found out nothing."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes import stripe_api
from fakes.processes import ROOT, Process, wait_for
from fakes.stripe_meters import READINGS, SECONDS
from fakes.stripe_webhooks import ENABLED_EVENTS
from probe import command, telling
from probe.questions import Answer, without_ids
from tests.conftest import ACACIA, ENDIVE, KEY, Stripe, assert_no_secret, serve

Answers = dict[str, str | None]
Run = Callable[..., tuple[Any, str, str]]
Probe = Callable[..., tuple[Any, Answers]]
# What no question is about: how a refusal is worded.
NOT_ASKED = {"time_codes", "refusal_words"}
BY_DEFAULT = {name: known[0] for name, known in READINGS.items()} | dict.fromkeys(SECONDS, 0)
NO_ENDPOINT = {"url": None, "unsent": None, "enabled_events": list(ENABLED_EVENTS)}
HELD = {"url": "http://127.0.0.1:9", "hold": True}
METERS = ("order", "tie", "draft-hour", "boundary-end", "boundary-start", "fractions")
SOON = "up to a minute"
CHANGES: Answers = {
    "changed-draft-classic": "lost", "changed-draft-flexible": "lost",
    "former-price-classic": "nothing", "former-price-flexible": "frozen",
    "switch-lines-classic": "an invoice of its own", "switch-lines-flexible": "the renewal's",
    "switch-reason-classic": "subscription_cycle", "switch-reason-flexible": "subscription_cycle",
    "changed-item-start": "stays", "added-item-start": "stays",
}  # fmt: skip
ENDINGS: Answers = {
    "reset-classic": "final", "reset-flexible": "final", "cancel-later": "counted",
    "cancel-now": "nothing", "cancel-invoice-now": "final", "trial-end": "absent",
}  # fmt: skip
# What the stand-in is told, and what has to come out; what it is not told is as by default.
TOLD: list[tuple[dict[str, str], Answers]] = [
    ({}, dict(zip(METERS, ("timestamp", "first", "counted", "later", "counts", "exact"),
                  strict=True))),
    ({"last_by": "arrival"}, {"order": "arrival", "tie": "last", "boundary-end": "later"}),
    ({"last_by": "arrival", "tie": "last"}, {"order": "arrival", "tie": "last"}),
    ({"tie": "last"}, {"order": "timestamp", "tie": "last", "draft-hour": "counted"}),
    (
        {"boundary": "earlier"},
        {"boundary-end": "earlier", "boundary-start": "does not count", "order": "timestamp"},
    ),
    (
        {"boundary": "earlier", "last_by": "arrival", "draft_hour": "lost"},
        {"boundary-end": "earlier", "boundary-start": "does not count", "draft-hour": "lost"},
    ),
    (
        {"draft_hour": "lost"},
        {"draft-hour": "lost", "boundary-end": "later", "event-time-window": "replaced"},
    ),
    ({"fractions": "whole"}, {"fractions": "whole", "order": "timestamp"}),
    ({}, CHANGES),
    ({"last_by": "arrival"}, {"former-price-flexible": "frozen", "changed-draft-flexible": "lost"}),
    (
        {"changed_draft": "counted"},
        {"changed-draft-classic": "counted", "changed-draft-flexible": "counted"},
    ),
    ({"draft_hour": "lost"}, {"changed-draft-classic": "lost", "changed-draft-flexible": "lost"}),
    (
        {"changed_recount": "recounted"},
        {"former-price-flexible": "recounted", "former-price-classic": "nothing"},
    ),
    (
        {"changed_recount": "recounted", "last_by": "arrival", "changed_start": "moves"},
        {"former-price-flexible": "recounted", "changed-item-start": "moves"},
    ),
    (
        {"changed_start": "moves"},
        {"changed-item-start": "moves", "added-item-start": "moves",
         "former-price-flexible": "frozen", "changed-draft-flexible": "lost"},
    ),
    (
        {"switch_reason": "subscription_update"},
        {"switch-reason-classic": "subscription_update",
         "switch-reason-flexible": "subscription_update",
         "switch-lines-classic": "an invoice of its own", "switch-lines-flexible": "the renewal's"},
    ),
    ({"plain_reset": "waits"}, {**ENDINGS, "reset-flexible-plain": "the next invoice"}),
    ({"plain_reset": "lost"}, {"reset-flexible-plain": "nothing", "reset-flexible": "final"}),
    ({"reset_invoice": "draft"}, {"reset-classic": "draft", "reset-flexible": "draft"}),
    ({"last_draft": "lost"}, {"cancel-later": "lost", "draft-hour": "counted"}),
    ({"cancel_now": "billed"}, {"cancel-now": "billed", "cancel-invoice-now": "final"}),
    ({}, {"meterless-price": "made", "closed-record": "refused"}),
    ({"meterless": "refused"}, {"meterless-price": "refused", "closed-record": None}),
    ({"closed_record": "taken"}, {"closed-record": "taken", "meterless-price": "made"}),
    ({}, {"event-time-window": "replaced", "test-clock-time": "the test clock's", "lag": SOON}),
    ({"time_window": "keeps"}, {"event-time-window": "kept"}),
    ({"event_time": "machine"}, {"test-clock-time": "the machine's", "order": "timestamp"}),
    ({"trial_line": "zero"}, {"trial-end": "zero"}),
    ({"trial_line": "billed"}, {"trial-end": "billed"}),
    ({"plain_reset": "invoiced"}, {"reset-flexible-plain": "an invoice at once"}),
    (
        {"reset_invoice": "absent", "plain_reset": "waits"},
        {"reset-classic": "no invoice", "reset-flexible": "no invoice",
         "reset-flexible-plain": "the next invoice"},
    ),
    ({"last_draft": "absent"}, {"cancel-later": "nothing"}),
    ({"cancel_invoice": "draft"}, {"cancel-invoice-now": "draft", "cancel-now": "nothing"}),
    ({"cancel_invoice": "absent"}, {"cancel-invoice-now": "nothing"}),
    (
        {"former_price": "billed", "changed_recount": "recounted"},
        {"former-price-classic": "billed", "former-price-flexible": "recounted"},
    ),
    (
        {"former_price": "lost"},
        {"former-price-classic": "nothing", "former-price-flexible": "nothing"},
    ),
    (
        {"switch_lines": "apart"},
        {"switch-lines-classic": "an invoice of its own",
         "switch-lines-flexible": "an invoice of its own"},
    ),
    (
        {"switch_lines": "together", "switch_reason": "subscription_update"},
        {"switch-lines-classic": "the renewal's", "switch-lines-flexible": "the renewal's",
         "switch-reason-classic": "subscription_update",
         "switch-reason-flexible": "subscription_update"},
    ),
    (
        {"switch_lines": "absent"},
        {"switch-lines-classic": "none", "switch-lines-flexible": "none"},
    ),
]  # fmt: skip

# Of each reading the second value, and the last one.
TOLD.append(
    (
        {name: known[1] for name, known in READINGS.items()},
        {
            "order": "arrival",
            "tie": "last",
            "draft-hour": "lost",
            "boundary-end": "earlier",
            "boundary-start": "does not count",
            "fractions": "whole",
            "changed-draft-classic": "counted",
            "changed-draft-flexible": "counted",
            "former-price-classic": "billed",
            "former-price-flexible": "recounted",
            "switch-lines-classic": "an invoice of its own",
            "switch-lines-flexible": "an invoice of its own",
            "switch-reason-classic": "subscription_update",
            "switch-reason-flexible": "subscription_update",
            "changed-item-start": "moves",
            "added-item-start": "moves",
            "reset-classic": "draft",
            "reset-flexible": "draft",
            "reset-flexible-plain": "the next invoice",
            "cancel-later": "lost",
            "cancel-now": "billed",
            "cancel-invoice-now": "draft",
            "trial-end": "zero",
            "meterless-price": "refused",
            "closed-record": None,
            "event-time-window": "kept",
            "test-clock-time": "the machine's",
            "lag": SOON,
        },
    )
)
TOLD.append(
    (
        {name: known[-1] for name, known in READINGS.items()} | {"meterless": "made"},
        {
            **TOLD[-1][1],
            "former-price-classic": "nothing",
            "former-price-flexible": "nothing",
            "switch-lines-classic": "none",
            "switch-lines-flexible": "none",
            "switch-reason-classic": None,
            "switch-reason-flexible": None,
            "reset-classic": "no invoice",
            "reset-flexible": "no invoice",
            "reset-flexible-plain": "an invoice at once",
            "cancel-later": "nothing",
            "cancel-invoice-now": "nothing",
            "trial-end": "billed",
            "meterless-price": "made",
            "closed-record": "taken",
        },
    )
)
# Where there is an answer, it is that of a stand-in that is told all this.
OTHER = {"last_by": "arrival", "boundary": "earlier", "draft_hour": "lost", "fractions": "whole"}
TRUTH = {"order": "arrival", "boundary-end": "earlier", "draft-hour": "lost", "fractions": "whole"}


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Stripe]:
    """Serve one stand-in for all tests here: to build it takes longer than to ask it a question."""
    application = stripe_api.create_app()
    server = serve(application)
    account = application.extensions["api"].account
    yield Stripe(f"http://127.0.0.1:{server.server_port}", account=account)
    server.shutdown()
    server.server_close()


@pytest.fixture
def stripe_fake(stand_in: Stripe) -> Stripe:
    """Return the stand-in as if it had just begun."""
    stand_in.account.objects.clear()
    stand_in.account.meters.events.clear()
    for known in ("faults", "requests"):
        stand_in.fake("DELETE", known)
    stand_in.fake("POST", "readings", BY_DEFAULT)
    stand_in.fake("POST", "webhook", NO_ENDPOINT)
    return stand_in


@pytest.fixture
def run(
    stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the probe on the stand-in; return its exit status and what it printed."""
    found = {"STRIPE_KEY": KEY, "STRIPE_API_BASE": stripe_fake.url, "STRIPE_RATE_SHARE": "0"}
    monkeypatch.setattr(command, "load_environment", lambda: found)

    def ran(*options: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            command.main(list(options))
        printed = capsys.readouterr()
        assert_no_secret(printed.out + printed.err)
        return ended.value.code, printed.out, printed.err

    return ran


@pytest.fixture
def probe(run: Run) -> Probe:
    """Ask some questions; return the exit status and the answers."""

    def asked(*names: str, patience: float = 20, options: tuple[str, ...] = ()) -> Any:
        only = [part for name in names for part in ("--only", name)]
        status, printed, _ = run("--patience", str(patience), "--json", *options, *only)
        answers = json.loads(printed)["answers"]
        return status, {entry["name"]: entry["answer"] for entry in answers}

    return asked


def left(stripe: Stripe) -> list[str]:
    """Return what is there of the probe's that should not be."""
    kinds: dict[str, dict[str, object]] = {"test_clock": {}, "subscription": {}}
    kinds |= {"product": {"active": True}, "price": {"active": True}}
    kinds["meter"] = {"status": "active"}
    return [
        record["id"]
        for kind, wanted in kinds.items()
        for record in stripe.account.all(kind)
        if all(record[name] == value for name, value in wanted.items())
    ]


@pytest.mark.parametrize(("told", "answers"), TOLD, ids=str)
def test_it_prints_the_reading_that_the_stand_in_was_told(
    probe: Probe, stripe_fake: Stripe, told: dict[str, str], answers: Answers
) -> None:
    stripe_fake.fake("POST", "readings", told)
    status, found = probe(*answers)
    assert found == answers
    right = {name: question.right for name, (question, _) in command.EXPERIMENTS.items()}
    differs = any(key not in right[name] for name, key in answers.items())
    assert status == (1 if None in answers.values() else 3 if differs else 0)
    assert left(stripe_fake) == []


def test_each_reading_of_the_stand_in_has_to_be_recognised() -> None:
    told = {entry for readings, _ in TOLD for entry in readings.items()}
    others = {(name, known) for name, all_of in READINGS.items() for known in all_of[1:]}
    assert {entry for entry in others if entry[0] not in NOT_ASKED} <= told


def test_it_tells_what_is_seen_late(
    probe: Probe, stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "SOON_SECONDS", 0.1)
    stripe_fake.fake("POST", "readings", {"shown_after_seconds": 0.2})
    assert probe("lag") == (0, {"lag": "longer"})


# What is told of where events go, and what has to come out.
EVENTS_TOLD: list[tuple[dict[str, Any], Answers]] = [
    ({}, {"events-listed": "not all", "delivery-success": None}),
    ({**HELD, "enabled_events": ["invoice.created"]}, {"events-listed": "not all"}),
    (HELD, {"events-listed": "all", "delivery-success": None}),
    ({"unsent": "taken"}, {"events-listed": "all", "delivery-success": "not listed"}),
    ({"unsent": "failed"}, {"events-listed": "all", "delivery-success": "listed"}),
]


@pytest.mark.parametrize(("told", "answers"), EVENTS_TOLD, ids=str)
def test_it_tells_which_events_are_listed(
    probe: Probe, stripe_fake: Stripe, told: dict[str, Any], answers: Answers
) -> None:
    stripe_fake.fake("POST", "webhook", told)
    status = 1 if None in answers.values() else 3 if "not all" in answers.values() else 0
    assert probe(*answers, patience=0.5) == (status, answers)


def test_an_endpoint_that_holds_drafts_changes_no_answer(probe: Probe, stripe_fake: Stripe) -> None:
    stripe_fake.fake("POST", "webhook", HELD)
    expected = {"draft-hour": "counted", "former-price-flexible": "frozen", "trial-end": "absent"}
    assert probe(*expected) == (0, expected)


def test_each_question_is_answered_in_each_way_that_it_knows() -> None:
    came: list[Answers] = [answers for _, answers in [*TOLD, *EVENTS_TOLD]]
    came.append({"lag": "longer"})
    found = {entry for answers in came for entry in answers.items() if entry[1]}
    every = {(name, key) for name, (question, _) in command.EXPERIMENTS.items()
             for key in question.means}  # fmt: skip
    assert found == every


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no call wait before it is repeated."""
    monkeypatch.setattr("stripe.HTTPClient._sleep_time_seconds", lambda *_: 0)
    monkeypatch.setattr(command, "BUSY_SECONDS", 0)


def nothing_but_the_truth(status: Any, found: Answers) -> None:
    assert status == 1
    assert set(found.items()) <= {*TRUTH.items(), *((name, None) for name in TRUTH)}
    assert None in found.values()


@pytest.mark.parametrize("slow", ["shown_after_seconds", "advances_for_seconds"])
def test_what_takes_longer_than_it_waits_is_not_found_out(
    probe: Probe, stripe_fake: Stripe, slow: str
) -> None:
    stripe_fake.fake("POST", "readings", {**OTHER, slow: 60})
    assert probe(*TRUTH, patience=0.2) == (1, dict.fromkeys(TRUTH))


@pytest.mark.parametrize("slow", ["shown_after_seconds", "advances_for_seconds"])
def test_what_takes_its_time_is_waited_for(probe: Probe, stripe_fake: Stripe, slow: str) -> None:
    stripe_fake.fake("POST", "readings", {**OTHER, slow: 0.2})
    expected = {"order": "arrival", "tie": "last", "boundary-end": "earlier"}
    assert probe(*expected) == (0, expected)


@pytest.mark.parametrize("skip", [3, 12, 19, 23, 31, 47])
def test_what_is_cut_off_midway_is_not_found_out(
    probe: Probe, stripe_fake: Stripe, hasty: None, skip: int
) -> None:
    stripe_fake.fake("POST", "readings", OTHER)
    stripe_fake.fault(path="/v1/", drop=True, skip=skip, times=10_000)
    nothing_but_the_truth(*probe(*TRUTH))


REFUSED = {"error": {"message": "No such thing.", "type": "invalid_request_error"}}
REFUSALS: list[dict[str, Any]] = [
    {"status": 400, "body": REFUSED},
    {"status": 500, "body": ""},
    {"status": 200, "body": {"object": "list", "data": []}},
]
ODD_ANSWERS: list[dict[str, Any]] = [
    {"status": 200, "body": {"id": "x", "status": "ready", "items": {"data": [{"id": "y"}]}}},
    {"status": 200, "body": []},
]
# By a part of its path, how many calls are answered rightly before.
ODD = dict.fromkeys(("meters", "test_clocks", "advance", "meter_events", "event_summaries"), 1)
ODD |= dict.fromkeys(("prices", "customers", "subscriptions", "invoices", "lines"), 0)
SPOILT = [(path, answer) for path in ODD for answer in ODD_ANSWERS]
SPOILT += [(path, answer) for path in ("subscriptions", "event_summaries", "invoices")
           for answer in REFUSALS]  # fmt: skip


@pytest.mark.parametrize(("path", "answer"), SPOILT, ids=str)
def test_what_is_refused_or_answered_oddly_is_not_found_out(
    probe: Probe, stripe_fake: Stripe, hasty: None, path: str, answer: dict[str, Any]
) -> None:
    stripe_fake.fake("POST", "readings", OTHER)
    stripe_fake.fault(path=path, skip=ODD[path], times=10_000, **answer)
    assert probe("order", patience=0.1) == (1, {"order": None})


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("closed-record", "usage_records", 400),
        ("closed-record", "usage_records", 500),
        ("test-clock-time", "meter_events", 400),
        ("test-clock-time", "meter_events", 429),
        ("meterless-price", "prices", 403),
        ("meterless-price", "prices", 500),
    ],
)
@pytest.mark.usefixtures("hasty")
def test_what_is_refused_for_another_reason_is_no_answer(
    probe: Probe, stripe_fake: Stripe, name: str, path: str, status: int
) -> None:
    stripe_fake.fault(path=path, skip=1, times=10_000, status=status, body=REFUSED)
    assert probe(name, patience=0.1) == (1, {name: None})


# All that is known of a stand-in that is told nothing, to see that nothing else is said of it.
DEFAULT: Answers = dict(TOLD[0][1]) | CHANGES | ENDINGS
DEFAULT |= {"meterless-price": "made", "closed-record": "refused", "lag": SOON}
DEFAULT |= {"event-time-window": "replaced", "test-clock-time": "the test clock's"}


@pytest.mark.parametrize(("path", "skip"), [("/v1/", 170), ("/v1/", 340), ("/v1/invoices", 20)])
def test_no_question_has_a_wrong_answer_once_nothing_is_answered(
    probe: Probe, stripe_fake: Stripe, hasty: None, path: str, skip: int
) -> None:
    stripe_fake.fault(path=path, status=503, body="", skip=skip, times=10_000)
    status, found = probe(*DEFAULT, patience=0.2)
    assert status == 1
    assert 3 < sum(answer is not None for answer in found.values()) < len(found)
    assert found == {name: answer and DEFAULT[name] for name, answer in found.items()}


# The key, what is left behind, and what is printed


@pytest.mark.parametrize("key", ["sk_live_7Kq2", "rk_live_7Kq2", "sk_org_test_7Kq2", "sk_7Kq2"])
def test_it_takes_no_other_than_a_test_key_and_calls_nobody(
    run: Run, stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    found = {"STRIPE_KEY": key, "STRIPE_API_BASE": stripe_fake.url}
    monkeypatch.setattr(command, "load_environment", lambda: found)
    said = "STRIPE_KEY is no test key (sk_test_..., rk_test_...): the probe takes no other."
    assert run() == (said, "", "")
    assert stripe_fake.requests() == []


def test_a_setting_that_is_missing_is_told(
    run: Run, stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_environment", lambda: {"STRIPE_API_BASE": stripe_fake.url})
    assert run() == (1, "", "Cannot start: missing: STRIPE_KEY (see .env.example)\n")


@pytest.mark.parametrize("given", ["/nowhere/answers.json", "/"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_made(
    run: Run, stripe_fake: Stripe, given: str
) -> None:
    status, _, told = run("--json", given)
    assert (status, f"'{given}' cannot be written to" in told) == (2, True)
    assert stripe_fake.requests() == []


def test_what_is_somebody_else_s_stays(probe: Probe, stripe_fake: Stripe) -> None:
    stripe_fake.seed()
    stripe_fake.metered_price()
    before = left(stripe_fake)
    assert len(before) == 7
    probe("order")
    assert left(stripe_fake) == before


def test_what_is_kept_is_removed_by_the_next_run(probe: Probe, stripe_fake: Stripe) -> None:
    probe("tie", options=("--keep",))
    kept = left(stripe_fake)
    assert len(kept) == 8  # a test clock, a subscription, a product, 2 prices, 3 Billing Meters
    probe("order", options=("--keep",))
    new = left(stripe_fake)
    assert len(new) == 5
    assert not set(new) & set(kept)


def test_an_interrupt_leaves_nothing_and_prints_what_was_found_out(
    probe: Probe, stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(telling, "wait_until", interrupt)
    assert probe("order", "lag", "tie") == (130, {"order": "timestamp"})
    assert left(stripe_fake) == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(
    stripe_fake: Stripe, interruptible: None, sent: signal.Signals
) -> None:
    stripe_fake.fake("POST", "readings", {"advances_for_seconds": 0.5})
    env = {**os.environ, "STRIPE_KEY": KEY, "STRIPE_API_BASE": stripe_fake.url}
    process = Process("probe", [sys.executable, "-m", "probe", "--only", "order"], env)
    try:
        wait_for(lambda: left(stripe_fake)[4:] or None, "the first subscription", 30)
        process.popen.send_signal(sent)
        assert process.popen.wait(30) == 130, process.printed()
        assert "Interrupted.\nRemoved what this run made: 3" in process.printed()
        assert left(stripe_fake) == []
    finally:
        process.stop()


def test_a_clock_that_still_advances_is_removed_when_it_is_ready(
    probe: Probe, stripe_fake: Stripe
) -> None:
    stripe_fake.fake("POST", "readings", {"advances_for_seconds": 0.4})
    assert probe("order", patience=0.3) == (1, {"order": None})
    assert left(stripe_fake) == []


def test_what_cannot_be_removed_is_said(run: Run, stripe_fake: Stripe, hasty: None) -> None:
    stripe_fake.fault(path="/deactivate", status=503, body="", times=10)
    status, printed, told = run("--only", "order")
    assert (status, printed.splitlines()[1].split()[:2]) == (1, ["order", "timestamp"])
    assert "Not all was removed: Stripe answered 503 and no usable answer." in told
    assert len(left(stripe_fake)) == 1


def test_what_cannot_be_removed_keeps_nothing_else(
    probe: Probe, stripe_fake: Stripe, hasty: None
) -> None:
    stripe_fake.fault(path="/test_clocks", method="DELETE", status=500, body="", times=2)
    assert probe("tie", "order")[0] == 1
    assert [key.split("_")[0] for key in left(stripe_fake)] == ["clock", "sub"]


def test_it_asks_nothing_where_what_was_left_cannot_be_removed(
    run: Run, stripe_fake: Stripe, hasty: None
) -> None:
    stripe_fake.fault(path="/v1/", status=503, body="", times=10_000)
    said = "What an earlier run left cannot be removed: Stripe answered 503 and no usable answer"
    assert run()[:2] == (said, "")
    assert {seen["method"] for seen in stripe_fake.requests()} == {"GET"}


def test_the_table_says_what_is_asked_answered_assumed_and_what_it_means(
    run: Run, stripe_fake: Stripe
) -> None:
    stripe_fake.fake("POST", "webhook", HELD)
    stripe_fake.fake("POST", "readings", {"draft_hour": "lost"})
    names = ("tie", "draft-hour", "delivery-success")
    status, printed, told = run(*(part for name in names for part in ("--only", name)))
    assert status == 1
    assert printed.splitlines() == [
        "question                   answer                             the service",
        "tie                        first                              agrees",
        "  Of two events of a `last` meter at one second, which one counts?",
        "  seen: sent 5 and 3, and 3 and 5: billed 5 and 3",
        "  the service assumes nothing: reports a minute apart have seconds of their own",
        "  for your money: of two reports at one second the older total stands until the",
        "    next one",
        "draft-hour                 lost                               DIFFERS",
        "  Does usage of a closed period count that is reported in the draft's hour?",
        "  seen: reported 5, and 7 in the hour, which showed after 0 s: billed 5",
        "  the service assumes it counts: the period is closed once more at the renewal",
        "  for your money: what is used after the last report before a period's end is on",
        "    no invoice",
        "delivery-success           could not be found out             unknown",
        "  Does delivery_success=false list an event that no endpoint was there for?",
        "  why not: this sandbox has a webhook endpoint: ask in one that has none",
        "  the service assumes nothing: flask replay works on what is listed, twice does",
        "    no harm",
        "  for your money: unknown as before",
        "3 questions: the service agrees with 1, differs from 1; 1 could not be found out",
    ]
    assert told.startswith("It makes test clocks, customers, subscriptions, Billing Meters,")
    assert told.splitlines()[-5:] == [
        "3 questions, about 6 minutes.",
        "[1/3] tie ... first (0 s)",
        "[2/3] draft-hour ... lost (0 s)",
        "[3/3] delivery-success ... could not be found out (0 s)",
        "Removed what this run made: 7 test clocks, products and meters.",
    ]


def test_an_answer_that_nobody_expected_is_none(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (command.EXPERIMENTS["order"][0], lambda _: Answer("17", "sent 5"))
    monkeypatch.setitem(command.EXPERIMENTS, "order", asked)
    assert probe("order") == (1, {"order": None})


def test_the_file_has_the_day_and_the_versions_and_no_id(
    run: Run, stripe_fake: Stripe, tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    refused = {"error": {"message": "No such price: price_00001.", "param": "timestamp"}}
    stripe_fake.fault(path="usage_records", skip=1, status=400, body=refused)
    run("--only", "meterless-price", "--only", "closed-record", "--json", str(path))
    found = json.loads(path.read_text())
    assert found.keys() == {"date", "api_version", "usage_record_version", "answers"}
    assert (found["api_version"], found["usage_record_version"]) == (ENDIVE, ACACIA)
    assert [entry["agrees"] for entry in found["answers"]] == [True, True]
    assert "400: No such price: price_…" in found["answers"][1]["seen"]


def test_an_id_is_cut_down_to_its_kind() -> None:
    said = "No such price: 'price_1Qa2Bc'; it is of acct_1Xy9 and sub_sched_00000012, not om_probe"
    assert without_ids(said) == (
        "No such price: 'price_…'; it is of acct_… and sub_sched_…, not om_probe"
    )


def facts() -> str:
    return (ROOT / "docs" / "stripe-facts.md").read_text()


def test_the_facts_have_each_question_with_its_answers() -> None:
    part = facts().split("\n## ")[2]
    rows = re.findall(r"^\| ([^|]*): ([^|]*) \|", part, re.M)
    named = {name: text for names, text in rows for name in re.findall("`([^`]+)`", names)}
    assert list(named) == list(command.EXPERIMENTS)
    for name, (question, _) in command.EXPERIMENTS.items():
        assert set(question.means) <= set(re.findall("`([^`]+)`", named[name])), name


def test_the_facts_have_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    options = set(re.findall(r"--[a-z]+", capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(r"^\| `(--[a-z]+)", facts(), re.M)) == options


def test_the_stand_in_s_readings_are_told() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "fakes" / "README.md").read_text(), re.M
    )
    told = {name: tuple(re.findall("`([^`]+)`", values)) for name, values in rows}
    assert {name: told.get(name) for name in READINGS} == READINGS
    assert told.keys() >= {*SECONDS}
