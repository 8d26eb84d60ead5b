"""Which meter events count, and in which period."""

from billing.clock import HOUR
from probe.questions import Answer, NotFoundOut, Question
from probe.sandbox import Sandbox, make_meter, make_price
from probe.scene import MINUTE, begin, only, plain

ORDER = Question(
    name="order",
    asks="Of a `last` meter's events in a period, which one is the last?",
    assumes="nothing: a later total never carries an earlier second",
    means={
        "timestamp": "renewals bill right; a reporter that gives events later seconds wins over "
        "the service until it has passed them",
        "arrival": "renewals bill right; of two reports that overtake each other within 5 s the "
        "older total may stand until the next one",
    },
    right=frozenset({"timestamp", "arrival"}),
)
TIE = Question(
    name="tie",
    asks="Of two events of a `last` meter at one second, which one counts?",
    assumes="nothing: reports a minute apart have seconds of their own",
    means={
        "first": "of two reports at one second the older total stands until the next one",
        "last": "of two reports at one second the newer total stands",
    },
    right=frozenset({"first", "last"}),
)
BOUNDARY_START = Question(
    name="boundary-start",
    asks="Does an event of the very second in which a subscription begins count?",
    assumes="nothing: no report has that second",
    means={
        "counts": "nothing changes",
        "does not count": "nothing changes; another reporter's events of that second are lost",
    },
    right=frozenset({"counts", "does not count"}),
)
BOUNDARY_END = Question(
    name="boundary-end",
    asks="In which period does an event of the very second of a renewal count?",
    assumes="nothing: no report has that second",
    means={
        "later": "nothing changes; a report in the second of a reset counts in the new period",
        "earlier": "nothing changes; another reporter's events of that second are billed before",
    },
    right=frozenset({"later", "earlier"}),
)
DRAFT_HOUR = Question(
    name="draft-hour",
    asks="Does usage of a closed period count that is reported in the draft's hour?",
    assumes="it counts: the period is closed once more at the renewal",
    means={
        "counted": "a renewal's invoice is complete",
        "lost": "what is used after the last report before a period's end is on no invoice",
    },
    right=frozenset({"counted"}),
)
FRACTIONS = Question(
    name="fractions",
    asks="Does an invoice bill the fraction of a meter event's value?",
    assumes="it does: totals are sent with nine decimals",
    means={
        "exact": "fractions of units are billed",
        "whole": "fractions of units are on no invoice: count in smaller units",
    },
    right=frozenset({"exact"}),
)


def order(sandbox: Sandbox) -> Answer:
    """Send the later second first, and see which of the two the invoice bills."""
    scene, meter = begin(sandbox, ORDER.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.start + 3 * HOUR)
    scene.report(meter, "5", scene.start + 2 * HOUR + 30)
    scene.report(meter, "3", scene.start + HOUR + 30)
    billed = plain(scene.final_quantity(price, scene.end))
    seen = f"sent 5 of the later second, then 3 of the earlier one: billed {billed}"
    return Answer({"5": "timestamp", "3": "arrival"}.get(billed, billed), seen)


def tie(sandbox: Sandbox) -> Answer:
    """Send two of one second to each of two meters, the greater one first and last."""
    scene = begin(sandbox, TIE.name)
    pairs = [(make_meter(sandbox), values) for values in (("5", "3"), ("3", "5"))]
    prices = [make_price(sandbox, meter) for meter, _ in pairs]
    scene.subscribe("flexible", *prices)
    at = scene.start + HOUR + 30
    scene.advance(scene.start + 2 * HOUR)
    for meter, (first, second) in pairs:
        scene.report(meter, first, at)
        scene.send(meter, second, at)
    scene.settle()
    billed = " and ".join(plain(scene.final_quantity(price, scene.end)) for price in prices)
    known = {"5 and 3": "first", "3 and 5": "last"}
    return Answer(known.get(billed, billed), f"sent 5 and 3, and 3 and 5: billed {billed}")


def boundary_start(sandbox: Sandbox) -> Answer:
    """Send one event, of the second in which the subscription begins."""
    scene, meter = begin(sandbox, BOUNDARY_START.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.start + 10 * MINUTE)
    scene.send(meter, "5", scene.start)
    scene.settle()
    billed = plain(scene.final_quantity(price, scene.end))
    known = {"5": "counts", "0": "does not count"}
    return Answer(known.get(billed, billed), f"sent 5: billed {billed}")


def boundary_end(sandbox: Sandbox) -> Answer:
    """Send an event of the second of the renewal, before it, and see which period bills it."""
    scene, meter = begin(sandbox, BOUNDARY_END.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.end - 2 * MINUTE)
    scene.report(meter, "5", scene.end - HOUR + 30)
    scene.send(meter, "7", scene.end)  # up to five minutes ahead are taken
    scene.settle()
    ends = (scene.end, 2 * scene.end - scene.start)
    billed = " and ".join(plain(scene.final_quantity(price, end)) for end in ends)
    seen = f"sent 7 of it, after 5: the two periods billed {billed}"
    return Answer({"7 and 0": "earlier", "5 and 7": "later"}.get(billed, billed), seen)


def draft_hour(sandbox: Sandbox) -> Answer:
    """Report more for the closed period while its invoice is a draft."""
    scene, meter = begin(sandbox, DRAFT_HOUR.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.start + 2 * HOUR)
    scene.report(meter, "5", scene.start + HOUR + 30)
    scene.advance(scene.end + MINUTE)
    if only(scene.lines(price, scene.end)).status != "draft":
        raise NotFoundOut("the renewal's invoice was final within a minute")
    seconds = scene.report(meter, "7", scene.end - 30)
    billed = plain(scene.final_quantity(price, scene.end))
    seen = f"reported 5, and 7 in the hour, which showed after {seconds:.0f} s: billed {billed}"
    return Answer({"7": "counted", "5": "lost"}.get(billed, billed), seen)


def fractions(sandbox: Sandbox) -> Answer:
    """Report two and a half units of a price of a dollar."""
    scene, meter = begin(sandbox, FRACTIONS.name), make_meter(sandbox)
    price = make_price(sandbox, meter)
    scene.subscribe("flexible", price)
    scene.advance(scene.start + 2 * HOUR)
    scene.send(meter, "2.5", scene.start + HOUR + 30)
    scene.settle()
    line = only(scene.final_lines(price, scene.end))
    billed = f"{plain(line.quantity)} units, {line.amount} cents"
    known = {"2.5 units, 250 cents": "exact", "2 units, 200 cents": "whole"}
    return Answer(known.get(billed, billed), f"reported 2.5 units of 1.00: billed {billed}")


EXPERIMENTS = (
    (ORDER, order),
    (TIE, tie),
    (DRAFT_HOUR, draft_hour),
    (BOUNDARY_END, boundary_end),
    (BOUNDARY_START, boundary_start),
    (FRACTIONS, fractions),
)
