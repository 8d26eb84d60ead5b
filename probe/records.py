"""Whether usage records are still to be had, and what of a closed period."""

from http.client import BAD_REQUEST

import stripe

from billing.clock import HOUR
from billing.stripe_api import NotReported, ReportFailed, call
from billing.ways import USAGE_RECORD_VERSION
from probe.questions import Answer, NotFoundOut, Question
from probe.sandbox import Sandbox, daily_price
from probe.scene import MINUTE, Scene, begin, only

METERLESS = Question(
    name="meterless-price",
    asks=f"Can this account still make a price for usage records, with {USAGE_RECORD_VERSION}?",
    assumes="nothing: a script that cannot make one says so",
    means={
        "made": "prices without a meter can still be made",
        "refused": "new prices need a Billing Meter: setup_stripe.py --billing meter",
    },
    right=frozenset({"made", "refused"}),
)
CLOSED_RECORD = Question(
    name="closed-record",
    asks="Is a usage record of a closed period taken, while its invoice is a draft?",
    assumes="it is refused: a closed period is not written",
    means={
        "refused": "what is used after the last report before a period's end is on no invoice",
        "taken": "a closed period could be reported once more, which the service does not",
    },
    right=frozenset({"refused"}),
)
METERED = {"usage_type": "metered"}
OLD = {"stripe_version": USAGE_RECORD_VERSION}


def is_refused(error: NotReported, param: str | None = None) -> bool:
    """Say whether Stripe refused a call for what it asks, or for one parameter of it."""
    cause = error.__cause__
    if not isinstance(cause, stripe.InvalidRequestError):
        return False
    return cause.http_status == BAD_REQUEST and param in (None, cause.param)


def meterless(sandbox: Sandbox) -> Answer:
    """Make a flat price with the old version, which has to work, and then one without a meter."""
    daily_price(sandbox, {"usage_type": "licensed"}, **OLD)
    try:
        daily_price(sandbox, METERED, **OLD)
    except NotReported as error:
        if not is_refused(error):
            raise
        return Answer("refused", str(error))
    return Answer("made", "a metered price without a meter was made")


def closed_record(sandbox: Sandbox) -> Answer:
    """Set a record of the running period, which has to work, and then one after its end."""
    scene, price = begin(sandbox, CLOSED_RECORD.name), daily_price(sandbox, METERED, **OLD)
    scene.subscribe("", price, **OLD)
    scene.advance(scene.start + 2 * HOUR)
    record(scene, scene.start + HOUR)
    scene.advance(scene.end + MINUTE)
    if only(scene.lines(price, scene.end)).status != "draft":
        raise NotFoundOut("the renewal's invoice was final within a minute")
    try:
        record(scene, scene.start + 2 * HOUR)
    except NotReported as error:
        if not is_refused(error, "timestamp"):
            raise
        return Answer("refused", str(error))
    return Answer("taken", "a record was taken a minute after the end")


def record(scene: Scene, at: int) -> None:
    """Set the usage of a UTC second to 5. Raises ReportRefused or ReportFailed."""
    path = f"/v1/subscription_items/{scene.item}/usage_records"
    account = scene.sandbox.account
    made = call(account, "post", path, quantity=5, timestamp=at, action="set", **OLD)
    if made.get("object") != "usage_record":
        raise ReportFailed("Stripe's answer is no usage record")


EXPERIMENTS = ((METERLESS, meterless), (CLOSED_RECORD, closed_record))
