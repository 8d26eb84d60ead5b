"""The rows of the commands: how fast they go by a live account's limits, and what they cost."""

from bench.load import OPENMETER_MS, STRIPE_MS, Ran, Stage
from bench.objects import ANCHORS
from bench.rows import Counts, Row, at_least, at_most, say

LATENCY = f"live limits, {OPENMETER_MS}/{STRIPE_MS} ms"
# A hundred milliseconds each, and OpenMeter's: what 800 meter events a second need at a time.
WORKERS = 104


def report(subscriptions: int, *flags: str) -> Ran:
    """Run `flask report` once, with our share of a live account's limits."""
    with Stage(*flags, latency=True, live=True, subscriptions=subscriptions) as stage:
        return stage.report(WORKERS)


def on_meters(planned: Counts) -> list[Row]:
    """Measure runs on Billing Meters, whose anchors are all on one hour, or spread."""
    count = f"{planned.many:,} items"
    say(f"flask report over {count} on Billing Meters")
    same = report(planned.many, "--meter")
    say("the same, anchors spread over a month")
    spread = report(planned.many, "--meter", "--spread")
    what = f"`flask report`, {count} on Billing Meters, {LATENCY}"
    of_queries = f"OpenMeter queries for {count}"
    most, most_spread = planned.many * 15 // 1_000, min(planned.many, 2 * ANCHORS + 60)
    return [
        at_least(what, same.rate, 750, "writes/s"),
        at_most("the same, CPU an item", 1_000 * same.cpu / planned.many, 1.0, "ms"),
        at_most(f"{of_queries}, all anchors on one hour", same.counts["queries"], most),
        at_most(
            f"{of_queries}, spread over {ANCHORS} hours", spread.counts["queries"], most_spread
        ),
    ]


def memory(planned: Counts) -> list[Row]:
    """Measure the memory of a long run against that of a shorter one."""
    say(f"flask report over {planned.most:,} items")
    small, large = report(planned.many, "--meter"), report(planned.most, "--meter")
    growth = f"1.2 x that of {planned.many:,}"
    return [
        at_most(f"`flask report`, {planned.most:,} items, memory", large.memory, 120, "MB"),
        at_most("the same, against growth", large.memory, 1.2 * small.memory, "MB", growth),
    ]


def records(planned: Counts) -> list[Row]:
    """Measure usage records, of which Stripe takes 25 a second."""
    say(f"flask report over {planned.records:,} usage records")
    ran = report(planned.records)
    used = max(ran.counts["used"].values())
    return [
        at_least(f"usage records, {LATENCY}, {planned.records:,} items", ran.rate, 19, "writes/s"),
        at_most("the same, answers of 429", ran.counts["refused"], 0),
        at_most("the same, most of a limit used in a second", used, 85, "%"),
    ]


def audits(planned: Counts) -> list[Row]:
    """Measure `flask audit`: its time, and its memory, of which each line takes a little."""
    say(f"flask audit over {planned.many:,} invoices")
    small, large = audit(planned.few), audit(planned.many)
    kept = f"that of {planned.few} and 2 KB a line"
    most = small.memory + 2 * 2 * planned.many / 1_000
    what = f"`flask audit`, {planned.many:,} invoices of two lines"
    return [
        at_most(what, large.seconds, max(planned.many / 150, 20), "s"),
        at_most("the same, memory", large.memory, most, "MB", kept),
    ]


def audit(invoices: int) -> Ran:
    """Run `flask audit` once over so many invoices, of two lines each, without limits."""
    with Stage(latency=True, invoices=invoices) as stage:
        return stage.audit()
