"""The probe prints exactly the reading that the stand-in was told, or that it found out nothing."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fakes.stripe_meters import READINGS
from probe import command, telling
from tests.conftest import KEY, Stripe

Answers = dict[str, str | None]
Probe = Callable[..., tuple[int, Answers]]
# What no question is about: how a refusal is worded.
NOT_ASKED = {"time_codes", "refusal_words"}
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
    ({"draft_hour": "lost"}, {"draft-hour": "lost", "boundary-end": "later", "tie": "first"}),
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

# Where there is an answer, it is that of a stand-in that is told all this.
OTHER = {"last_by": "arrival", "boundary": "earlier", "draft_hour": "lost", "fractions": "whole"}
TRUTH = {"order": "arrival", "boundary-end": "earlier", "draft-hour": "lost", "fractions": "whole"}


@pytest.fixture
def probe(
    stripe_fake: Stripe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Probe:
    """Run the probe on the stand-in; return its exit status and its answers."""
    found = {"STRIPE_KEY": KEY, "STRIPE_API_BASE": stripe_fake.url}
    monkeypatch.setattr(command, "load_environment", lambda: found)

    def run(*names: str, patience: float = 20, options: tuple[str, ...] = ()) -> Any:
        only = [part for name in names for part in ("--only", name)]
        given = ["--rate", "0", "--patience", str(patience), "--json", *options, *only]
        with pytest.raises(SystemExit) as ended:
            command.main(given)
        printed = capsys.readouterr()
        assert KEY not in printed.out + printed.err
        answers = json.loads(printed.out)["answers"]
        return ended.value.code, {entry["name"]: entry["answer"] for entry in answers}

    return run


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
HELD = {"url": "http://127.0.0.1:9", "hold": True}
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
    stripe_fake.fake("POST", "readings", OTHER)
    assert probe(*TRUTH) == (3, TRUTH)


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


def nothing_but_the_truth(status: int, found: Answers) -> None:
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
    assert probe("order", "boundary-end") == (0, {"order": "arrival", "boundary-end": "earlier"})


@pytest.mark.parametrize("skip", [3, 12, 19, 23, 31, 47])
def test_what_is_cut_off_midway_is_not_found_out(
    probe: Probe, stripe_fake: Stripe, hasty: None, skip: int
) -> None:
    stripe_fake.fake("POST", "readings", OTHER)
    stripe_fake.fault(path="/v1/", drop=True, skip=skip, times=10_000)
    nothing_but_the_truth(*probe(*TRUTH))


REFUSED = {"error": {"message": "No such thing.", "type": "invalid_request_error"}}
# By a part of its path, how many calls are answered rightly before.
ODD = dict.fromkeys(("meters", "test_clocks", "advance", "meter_events", "event_summaries"), 1)
ODD |= dict.fromkeys(("prices", "customers", "subscriptions", "invoices", "lines"), 0)


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize(
    "answer",
    [
        {"status": 400, "body": REFUSED},
        {"status": 403, "body": REFUSED},
        {"status": 500, "body": ""},
        {"status": 200, "body": {"object": "list", "data": []}},
        {"status": 200, "body": {"object": "list", "data": [{"id": "x"}], "has_more": False}},
        {"status": 200, "body": {"id": "x", "status": "ready", "items": {"data": [{"id": "y"}]}}},
        {"status": 200, "body": []},
    ],
    ids=lambda answer: f"{answer['status']}-{json.dumps(answer['body'])}",
)
def test_what_is_refused_or_answered_oddly_is_not_found_out(
    probe: Probe, stripe_fake: Stripe, hasty: None, path: str, answer: dict[str, Any]
) -> None:
    stripe_fake.fake("POST", "readings", OTHER)
    stripe_fake.fault(path=path, skip=ODD[path], times=10_000, **answer)
    assert probe("order", patience=0.1) == (1, {"order": None})
