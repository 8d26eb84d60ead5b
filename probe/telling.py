"""When an event is seen, by which time it is judged, and what the list of events tells."""

from billing.clock import HOUR
from billing.stripe_api import NotReported, call
from probe.questions import Answer, NotFoundOut, Question
from probe.records import is_refused
from probe.sandbox import (
    Experiment,
    Meter,
    Sandbox,
    listed,
    make_meter,
    make_price,
    post_object,
    wait_until,
)
from probe.scene import MINUTE, Scene, begin, plain

# What is counted by then is counted before anybody looks.
SOON_SECONDS = 60
TYPES = ("customer.subscription.updated", "customer.subscription.deleted", "invoice.created")
HALF_PAST = 30 * MINUTE

LAG = Question(
    name="lag",
    asks="How long does it take until a summary and a preview show a meter event?",
    assumes="less than a draft's hour",
    means={
        "up to a minute": "report, wait a minute, and reset or change then",
        "longer": "look with flask report --dry-run before you reset or change: it takes minutes",
    },
    right=frozenset({"up to a minute", "longer"}),
)
CLOCK_TIME = Question(
    name="test-clock-time",
    asks="By which time does Stripe judge a meter event's second where there is a test clock?",
    assumes="by the test clock's",
    means={
        "the test clock's": "nothing changes",
        "the machine's": "no real invoice changes; on a test clock reports can be refused",
    },
    right=frozenset({"the test clock's"}),
)
TIME_WINDOW = Question(
    name="event-time-window",
    asks="A Billing Meter has an event_time_window. Does an event of the next period take the "
    "place of the last one of this period in the same hour?",
    assumes="it does: such a meter is refused",
    means={
        "replaced": "never bill running totals on such a meter",
        "kept": "such a meter could be used, which the service does not",
    },
    right=frozenset({"replaced", "kept"}),
)
EVENTS = Question(
    name="events-listed",
    asks=f"Does the list of events have {', '.join(TYPES)} of a test clock's subscription?",
    assumes="it does: flask replay finds there what was never delivered",
    means={
        "all": "flask replay can work on what was lost",
        "not all": "what an endpoint lost is found by flask report and flask audit only",
    },
    right=frozenset({"all"}),
)
DELIVERY = Question(
    name="delivery-success",
    asks="Does delivery_success=false list an event that no endpoint was there for?",
    assumes="nothing: flask replay works on what is listed, twice does no harm",
    means={
        "listed": "flask replay works on what happened before the endpoint was made, too",
        "not listed": "what happened before the endpoint was made is found by flask report only",
    },
    right=frozenset({"listed", "not listed"}),
)


def lag(sandbox: Sandbox) -> Answer:
    """Send a meter event, and look at the summary and the preview until they show it."""
    scene, meter = begin(sandbox, LAG.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.start + HOUR)

    def is_previewed() -> bool:
        path = "/v1/invoices/create_preview"
        shown = post_object(sandbox, path, subscription=scene.subscription)["lines"]["data"]
        return any(str(line["quantity"]) == "5" for line in shown)

    summary = scene.report(meter, "5", scene.now - 30)
    more = wait_until(is_previewed, sandbox.patience, "the preview did not show a meter event")
    seen = f"the summary showed it after {summary:.0f} s, the preview after {summary + more:.0f} s"
    return Answer("up to a minute" if summary + more <= SOON_SECONDS else "longer", seen)


def clock_time(sandbox: Sandbox) -> Answer:
    """Send an event that is ahead of the test clock, and long past for the machine."""
    scene, meter = begin(sandbox, CLOCK_TIME.name), make_meter(sandbox)
    scene.subscribe("flexible", make_price(sandbox, meter))
    scene.advance(scene.start + HOUR)
    scene.report(meter, "5", scene.now - 30)
    try:
        scene.report(meter, "7", scene.now + HOUR + 30)
    except NotReported as error:
        if not is_refused(error, "timestamp"):
            raise
        return Answer("the test clock's", str(error))
    return Answer("the machine's", "an event an hour ahead of the test clock counts")


def time_window(sandbox: Sandbox) -> Answer:
    """Let a period end at half past; send an event of each period in that hour, before its end."""
    scene = begin(sandbox, TIME_WINDOW.name, HALF_PAST)
    meter = hourly_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.end - 2 * MINUTE)
    scene.report(meter, "5", scene.now - 30)
    scene.report(meter, "7", scene.end + 30)  # up to five minutes ahead are taken
    billed = plain(scene.final_quantity(price, scene.end))
    seen = f"reported 5 of it, and 7 of the next period: the period billed {billed}"
    return Answer({"0": "replaced", "5": "kept"}.get(billed, billed), seen)


def hourly_meter(sandbox: Sandbox) -> Meter:
    """Make a Billing Meter that counts one event an hour."""
    return make_meter(sandbox, event_time_window="hour")


def events_of(scene: Scene, **filters: str) -> set[str]:
    """Return the types of the listed events about the scene's customer."""
    since = {"gte": scene.start}
    found = listed(scene.sandbox.account, "/v1/events", types=list(TYPES), created=since, **filters)
    ours = [event for event in found if event["data"]["object"]["customer"] == scene.customer]
    return {str(event["type"]) for event in ours}


def lived(sandbox: Sandbox, about: str) -> Scene:
    """Let a subscription be changed, renew, and end."""
    scene, meter = begin(sandbox, about), make_meter(sandbox)
    scene.subscribe("flexible", make_price(sandbox, meter))
    scene.update(metadata={"touched": "yes"})
    scene.advance(scene.end + MINUTE)
    call(sandbox.account, "delete", f"/v1/subscriptions/{scene.subscription}")
    return scene


def events_listed(sandbox: Sandbox) -> Answer:
    """Wait until all types are listed; what is not there after that is missing."""
    scene = lived(sandbox, EVENTS.name)
    try:
        wait_until(lambda: events_of(scene) == set(TYPES), min(sandbox.patience, SOON_SECONDS), "")
    except NotFoundOut:
        missing = sorted(set(TYPES) - events_of(scene))
        return Answer("not all", f"{', '.join(missing)} were not listed after a minute")
    return Answer("all", "each type was listed")


def delivery_success(sandbox: Sandbox) -> Answer:
    """Let events happen that no endpoint takes, and see whether they count as not delivered."""
    endpoints = listed(sandbox.account, "/v1/webhook_endpoints")
    if any(endpoint["status"] == "enabled" for endpoint in endpoints):
        raise NotFoundOut("this sandbox has a webhook endpoint: ask in one that has none")
    scene = lived(sandbox, DELIVERY.name)
    wait_until(lambda: events_of(scene) == set(TYPES), sandbox.patience, "no events were listed")
    undelivered = events_of(scene, delivery_success="false")
    if undelivered not in (set(), set(TYPES)):
        raise NotFoundOut(f"only {', '.join(sorted(undelivered))} were listed as not delivered")
    key = "listed" if undelivered else "not listed"
    return Answer(key, f"{len(undelivered)} of {len(TYPES)} types were listed as not delivered")


EXPERIMENTS: tuple[tuple[Question, Experiment], ...] = (
    (LAG, lag),
    (EVENTS, events_listed),
    (DELIVERY, delivery_success),
    (TIME_WINDOW, time_window),
    (CLOCK_TIME, clock_time),
)
