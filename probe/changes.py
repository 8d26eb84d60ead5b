"""What becomes of usage when a price changes in mid-period, or another item takes over."""

from functools import partial

from billing.clock import HOUR
from billing.stripe_api import Json, fetch_object
from probe.questions import Answer, NotFoundOut, Question
from probe.sandbox import (
    MARK,
    Experiment,
    Meter,
    Sandbox,
    daily_price,
    make_meter,
    make_price,
    post_object,
)
from probe.scene import MINUTE, Line, Scene, begin, only, plain

# How long after a period's start something changes in it.
CHANGES_AFTER = 6 * HOUR


def changed_draft_question(mode: str) -> Question:
    """Return the question about the draft's hour after a change."""
    return Question(
        name=f"changed-draft-{mode}",
        asks="A price changed in mid-period. Does the new one's usage count that is reported in "
        f"the draft's hour ({mode})?",
        assumes="it does not: what is missing then is warned of",
        means={
            "lost": "report before such a period ends: what is used after that is on no invoice",
            "counted": "such an invoice is complete; a warning that units are missing may be wrong",
        },
        right=frozenset({"lost"}),
    )


FORMER_CLASSIC = Question(
    name="former-price-classic",
    asks="A price changed in mid-period. What bills the former one's usage (classic)?",
    assumes="nothing bills it: it is warned of with its units",
    means={
        "nothing": "reset the anchor in the same call, or bill the whole period at the new price",
        "billed": "the former price's usage is billed; a warning that it is not is wrong",
    },
    right=frozenset({"nothing"}),
)
FORMER_FLEXIBLE = Question(
    name="former-price-flexible",
    asks="A price changed in mid-period. What bills the former one's usage (flexible), and does "
    "an event of the second before the change count that comes after it?",
    assumes="an invoice item bills it as reported by then; what comes later may count or not",
    means={
        "frozen": "report before you change a price: what is reported later is on no invoice",
        "recounted": "what is reported later for the time before the change is billed, too",
        "nothing": "the former price's usage is on no invoice",
    },
    right=frozenset({"frozen", "recounted"}),
)
CHANGED_START = Question(
    name="changed-item-start",
    asks="A price changed in mid-period. Where does the item's own period begin then?",
    assumes="nothing: it counts from the second of the change",
    means={
        "stays": "the notes in om_counted_from are needed",
        "moves": "the item itself says from when it counts",
    },
    right=frozenset({"stays", "moves"}),
)
ADDED_START = Question(
    name="added-item-start",
    asks="An item was added in mid-period. Where does its own period begin?",
    assumes="nothing: it counts from the second in which it was added",
    means={
        "stays": "the item's `created` says from when it counts",
        "moves": "the item's own period says from when it counts",
    },
    right=frozenset({"stays", "moves"}),
)
REASONS = {
    "subscription_cycle": "nothing changes",
    "subscription_update": "nothing changes; who takes only subscription_cycle for a renewal errs",
}


def switch_question(mode: str) -> Question:
    """Return the question about the reason of a switch's invoice."""
    return Question(
        name=f"switch-reason-{mode}",
        asks="A schedule puts another price in place at the renewal. Which `billing_reason` has "
        f"the invoice of the former one ({mode})?",
        assumes="nothing: it goes by the invoice's lines",
        means=REASONS,
        right=frozenset(REASONS),
    )


def switch_lines_question(mode: str, right: str) -> Question:
    """Return the question about where the lines of a switch stand."""
    return Question(
        name=f"switch-lines-{mode}",
        asks="A schedule puts another price in place at the renewal. On which invoice is the "
        f"former one's usage ({mode})?",
        assumes=f"{right}; it closes the period on either",
        means={
            "an invoice of its own": "there are two invoices at that renewal",
            "the renewal's": "there is one invoice at that renewal",
            "none": "the former price's usage is on no invoice",
        },
        right=frozenset({"an invoice of its own", "the renewal's"}),
    )


def change(scene: Scene, price: str) -> Json:
    """Give the one item another price; return the subscription."""
    return scene.update(items=[{"id": scene.item, "price": price}])


def two_prices(sandbox: Sandbox, about: str, mode: str) -> tuple[Scene, Meter, str, str]:
    """Begin a subscription to the first of two prices of a meter."""
    scene, meter = begin(sandbox, about), make_meter(sandbox)
    former, new = make_price(sandbox, meter), make_price(sandbox, meter)
    scene.subscribe(mode, former)
    return scene, meter, former, new


def changed_draft(mode: str, sandbox: Sandbox) -> Answer:
    """Change the price, report once before the period's end and once in the draft's hour."""
    scene, meter, _, new = two_prices(sandbox, f"changed draft {mode}", mode)
    scene.advance(scene.start + CHANGES_AFTER)
    change(scene, new)
    scene.advance(scene.start + CHANGES_AFTER + 2 * HOUR)
    scene.report(meter, "5", scene.now - HOUR + 30)
    scene.advance(scene.end + MINUTE)
    if only(scene.lines(new, scene.end)).status != "draft":
        raise NotFoundOut("the renewal's invoice was final within a minute")
    scene.report(meter, "7", scene.end - 30)
    billed = plain(scene.final_quantity(new, scene.end))
    seen = f"reported 5, and 7 in the hour: billed {billed}"
    return Answer({"7": "counted", "5": "lost"}.get(billed, billed), seen)


def former_lines(mode: str, sandbox: Sandbox) -> list[Line]:
    """Change the price and report for a second before it; return the former price's lines."""
    scene, meter, former, new = two_prices(sandbox, f"former price {mode}", mode)
    scene.advance(scene.start + CHANGES_AFTER)
    scene.report(meter, "4", scene.now - HOUR + 30)
    change(scene, new)
    scene.advance(scene.now + HOUR)
    scene.report(meter, "6", scene.start + CHANGES_AFTER - 1)
    if not scene.final_lines(new, scene.end):
        raise NotFoundOut("no line bills the new price")
    return scene.lines(former)


def former_classic(sandbox: Sandbox) -> Answer:
    """See whether any line bills the former price."""
    billed = [plain(line.quantity) for line in former_lines("classic", sandbox)]
    key = "billed" if set(billed) - {"0"} else "nothing"
    return Answer(key, f"reported 4 before the change and 6 after it: billed {billed or 'nothing'}")


def former_flexible(sandbox: Sandbox) -> Answer:
    """See what the line of the former price bills."""
    found = former_lines("flexible", sandbox)
    billed = plain(only(found).quantity) if found else "nothing"
    seen = f"reported 4 before the change and 6 after it: billed {billed}"
    known = {"4": "frozen", "6": "recounted", "nothing": "nothing", "0": "nothing"}
    return Answer(known.get(billed, billed), seen)


def start_of(item: Json, scene: Scene) -> Answer:
    """Say where an item's own period begins after a change."""
    began = item["current_period_start"]
    known = {scene.start: "stays", scene.now: "moves"}
    seen = f"{began - scene.start} s after the period's start"
    return Answer(known.get(began, seen), f"its period begins {seen}")


def changed_start(sandbox: Sandbox) -> Answer:
    """Change the price of an item, and read the item."""
    scene, _, _, new = two_prices(sandbox, CHANGED_START.name, "flexible")
    scene.advance(scene.start + CHANGES_AFTER)
    change(scene, new)
    path = f"/v1/subscription_items/{scene.item}"
    item = fetch_object(sandbox.account, "subscription_item", path)
    return start_of(item, scene)


def added_start(sandbox: Sandbox) -> Answer:
    """Add an item, and read it."""
    scene = begin(sandbox, ADDED_START.name)
    first, second = (make_price(sandbox, make_meter(sandbox)) for _ in range(2))
    scene.subscribe("flexible", first)
    scene.advance(scene.start + CHANGES_AFTER)
    made = scene.update(items=[{"price": second}])
    (item,) = (item for item in made["items"]["data"] if item["price"]["id"] == second)
    return start_of(item, scene)


def switched(mode: str, sandbox: Sandbox) -> tuple[list[Line], list[Line]]:
    """Let a schedule replace a metered price by a flat one; return the lines of both."""
    scene, meter = begin(sandbox, f"switch {mode}"), make_meter(sandbox)
    former, flat = make_price(sandbox, meter), daily_price(sandbox, {"usage_type": "licensed"})
    scene.subscribe(mode, former)
    own = scene.subscription
    made = post_object(sandbox, "/v1/subscription_schedules", from_subscription=own)
    running = {"start_date": scene.start, "end_date": scene.end, "items": [{"price": former}]}
    coming = {"start_date": scene.end, "items": [{"price": flat}], "metadata": {MARK: sandbox.run}}
    phases, key = [running, coming], made["id"]
    post_object(sandbox, f"/v1/subscription_schedules/{key}", phases=phases, end_behavior="release")
    scene.advance(scene.start + 2 * HOUR)
    scene.report(meter, "5", scene.start + HOUR + 30)
    closing = scene.final_lines(former, scene.end)
    return closing, [line for line in scene.lines(flat) if line.start == scene.end]


def switch_reason(mode: str, sandbox: Sandbox) -> Answer:
    """Read the reason of the invoice that bills the former price."""
    closing = only(switched(mode, sandbox)[0])
    return Answer(closing.reason, f"its invoice bills {plain(closing.quantity)} of 5")


def switch_lines(mode: str, sandbox: Sandbox) -> Answer:
    """See whether one invoice bills both prices."""
    closing, coming = switched(mode, sandbox)
    if not closing:
        return Answer("none", "no line bills the former price")
    same = only(closing).invoice == only(coming).invoice
    key = "the renewal's" if same else "an invoice of its own"
    return Answer(key, f"it bills {plain(only(closing).quantity)} of 5")


MODES = {"classic": "an invoice of its own", "flexible": "the renewal's"}
EXPERIMENTS: tuple[tuple[Question, Experiment], ...] = (
    *((changed_draft_question(mode), partial(changed_draft, mode)) for mode in MODES),
    (FORMER_CLASSIC, former_classic),
    (FORMER_FLEXIBLE, former_flexible),
    *((switch_lines_question(mode, right), partial(switch_lines, mode))
      for mode, right in MODES.items()),
    *((switch_question(mode), partial(switch_reason, mode)) for mode in MODES),
    (CHANGED_START, changed_start),
    (ADDED_START, added_start),
)  # fmt: skip
