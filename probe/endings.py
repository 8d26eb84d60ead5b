"""What bills the usage of a period that ends otherwise: a reset, a cancellation, a trial."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from billing.clock import HOUR
from billing.stripe_api import call
from probe.questions import Answer, NotFoundOut, Question
from probe.sandbox import Experiment, Meter, Sandbox, make_meter, make_price
from probe.scene import MINUTE, Line, Scene, begin, only, plain

AT = 6 * HOUR
# How many units are used before that.
USED = 5
# A version in which the anchor is a word: it is an object since 2026-09-30.endive, which is younger
# than what judges our requests.
RESET_VERSION = "2026-08-26.dahlia"
RESET: Mapping[str, str] = {"billing_cycle_anchor": "now", "stripe_version": RESET_VERSION}


def reset_question(mode: str) -> Question:
    """Return the question about a reset's invoice."""
    asks = "Is the invoice of a reset a draft for an hour, or final at once"
    how = ", with always_invoice" if mode == "flexible" else ""
    return Question(
        name=f"reset-{mode}",
        asks=f"{asks} ({mode}{how})?",
        assumes="it is final: what it lacks is warned of",
        means={
            "final": "report, wait, and reset then: what is reported later is on no invoice",
            "draft": "a reset's invoice is closed once more, as a renewal's; if that counts, a "
            "report before the reset is not needed",
            "no invoice": "a reset bills no usage: report, wait, and look at the next invoice",
        },
        right=frozenset({"final"}),
    )


PLAIN_RESET = Question(
    name="reset-flexible-plain",
    asks="A reset in flexible billing without always_invoice: what bills the usage before it?",
    assumes="no invoice is made at once: it is warned of as closed",
    means={
        "the next invoice": "the usage is billed later; a warning that it is not is wrong",
        "nothing": "never reset without always_invoice: the usage is on no invoice",
        "an invoice at once": "nothing is lost; the warning says reset instead",
    },
    right=frozenset({"the next invoice", "nothing"}),
)
CANCEL_LATER = Question(
    name="cancel-later",
    asks="A subscription ends with its period. Does usage count that is reported in the hour "
    "after that?",
    assumes="it counts while the last invoice is a draft: the period is closed then",
    means={
        "counted": "the last invoice is complete",
        "lost": "what is used after the last report before the end is on no invoice",
        "nothing": "the last period's usage is on no invoice",
    },
    right=frozenset({"counted"}),
)
CANCEL_NOW = Question(
    name="cancel-now",
    asks="A subscription is cancelled at once, without invoice_now. Is its usage billed?",
    assumes="it is not: it is warned of",
    means={
        "nothing": "cancel with invoice_now, or the usage of the period is on no invoice",
        "billed": "the usage is billed; a warning that it is not is wrong",
    },
    right=frozenset({"nothing"}),
)
CANCEL_INVOICE_NOW = Question(
    name="cancel-invoice-now",
    asks="A subscription is cancelled at once, with invoice_now. Is its usage billed, and is the "
    "invoice a draft?",
    assumes="it is billed as reported before: nothing can be written any more",
    means={
        "final": "report, wait, and cancel then: what is reported later is on no invoice",
        "draft": "the invoice could be closed once more, but the service does not",
        "nothing": "the usage of the period is on no invoice",
    },
    right=frozenset({"final"}),
)
TRIAL = Question(
    name="trial-end",
    asks="Has the invoice at a trial's end a line for the usage in it?",
    assumes="usage in a trial is free, whether there is a line or not",
    means={
        "absent": "nothing changes",
        "zero": "nothing changes: the line is over 0 units",
        "billed": "usage in a trial is billed: the service warns of nothing",
    },
    right=frozenset({"absent", "zero"}),
)


def metered(sandbox: Sandbox, about: str, mode: str, **form: Any) -> tuple[Scene, Meter, str]:
    """Begin a subscription to a metered price, and report usage before its sixth hour."""
    scene, meter = begin(sandbox, about), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe(mode, price, **{name: at + scene.start for name, at in form.items()})
    scene.advance(scene.start + AT - HOUR)
    scene.report(meter, str(USED), scene.now - HOUR + 30)
    return scene, meter, price


def status_of(found: list[Line], missing: str) -> Answer:
    """Say whether the one invoice of some lines is a draft, and what it bills."""
    if not found:
        return Answer(missing, "no line bills the 5 that were reported")
    line = only(found)
    if line.quantity != USED:
        raise NotFoundOut(f"the line bills {plain(line.quantity)} of 5")
    status = "draft" if line.status == "draft" else "final"
    return Answer(status, f"its invoice is {line.status}, and bills 5 of 5")


def reset(mode: str, sandbox: Sandbox) -> Answer:
    """Reset the billing cycle, and read the invoice at once."""
    scene, _, price = metered(sandbox, f"reset {mode}", mode)
    scene.advance(scene.start + AT)
    more = {"proration_behavior": "always_invoice"} if mode == "flexible" else {}
    scene.update(**RESET, **more)
    return status_of(scene.lines(price, scene.now), "no invoice")


def plain_reset(sandbox: Sandbox) -> Answer:
    """Reset without always_invoice, and see whether an invoice up to the next renewal bills it."""
    scene, _, price = metered(sandbox, PLAIN_RESET.name, "flexible")
    scene.advance(scene.start + AT)
    at = scene.now
    scene.update(**RESET, proration_behavior="none")
    if scene.lines(price, at):
        return Answer("an invoice at once", "the reset made an invoice")
    renewal = at + scene.end - scene.start
    if not scene.final_lines(price, renewal):
        raise NotFoundOut("no line bills the period after the reset")
    billed = [plain(line.quantity) for line in scene.lines(price) if line.end == at]
    key = {"5": "the next invoice", "0": "nothing", "": "nothing"}.get(",".join(billed))
    return Answer(key or str(billed), f"billed up to the reset, in the end: {billed or 'nothing'}")


def cancel_later(sandbox: Sandbox) -> Answer:
    """Let the subscription end with its period, and report in the hour after that."""
    scene, meter, price = metered(sandbox, CANCEL_LATER.name, "flexible")
    scene.update(cancel_at_period_end=True)
    scene.advance(scene.end + MINUTE)
    found = scene.lines(price, scene.end)
    if not found:
        return Answer("nothing", "no line bills the last period")
    was = only(found).status
    scene.report(meter, "7", scene.end - 30)
    billed = plain(scene.final_quantity(price, scene.end))
    seen = f"the last invoice was {was}; reported 5, and 7 in the hour: billed {billed}"
    return Answer({"7": "counted", "5": "lost"}.get(billed, billed), seen)


def cancelled(sandbox: Sandbox, about: str, **form: str) -> list[Line]:
    """Cancel at once, and return the lines that bill the period."""
    scene, _, price = metered(sandbox, about, "flexible")
    scene.advance(scene.start + AT)
    call(sandbox.account, "delete", f"/v1/subscriptions/{scene.subscription}", **form)
    return scene.lines(price)


def cancel_now(sandbox: Sandbox) -> Answer:
    """Cancel at once, and see whether anything bills the usage."""
    found = cancelled(sandbox, CANCEL_NOW.name)
    billed = [plain(line.quantity) for line in found]
    key = {"": "nothing", "0": "nothing", "5": "billed"}.get(",".join(billed), str(billed))
    return Answer(key, f"reported 5: billed {billed or 'nothing'}")


def cancel_invoice_now(sandbox: Sandbox) -> Answer:
    """Cancel at once with an invoice, and read that."""
    found = cancelled(sandbox, CANCEL_INVOICE_NOW.name, invoice_now="true")
    return status_of(found, "nothing")


def trial(sandbox: Sandbox) -> Answer:
    """Use in a trial, and read the invoice at its end."""
    scene, _, price = metered(sandbox, TRIAL.name, "flexible", trial_end=AT)
    end = scene.start + AT
    billed = [plain(line.quantity) for line in scene.final_lines(price, end)]
    key = {"": "absent", "0": "zero", "5": "billed"}.get(",".join(billed), str(billed))
    return Answer(key, f"reported 5 in the trial: billed {billed or 'nothing'}")


EXPERIMENTS: tuple[tuple[Question, Experiment], ...] = (
    *((reset_question(mode), partial(reset, mode)) for mode in ("classic", "flexible")),
    (PLAIN_RESET, plain_reset),
    (CANCEL_LATER, cancel_later),
    (CANCEL_NOW, cancel_now),
    (CANCEL_INVOICE_NOW, cancel_invoice_now),
    (TRIAL, trial),
)
