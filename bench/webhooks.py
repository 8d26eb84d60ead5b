"""The rows of the webhook: how long a delivery takes, what it costs, how many go in a second."""

from statistics import median

from bench.deliveries import one_after_the_other, rate
from bench.load import (
    OPENMETER_MS,
    STRIPE_MS,
    Stage,
    cpu_of,
    resident_mb,
    seconds_to_first_answer,
    workers_of,
)
from bench.rows import Counts, Row, at_least, at_most, of_medians, p99, ratio, say

FLOOR, ONE_READ = (OPENMETER_MS + STRIPE_MS) / 1_000, STRIPE_MS / 1_000
CONNECTIONS, WORKERS = 16, 2


def measured_floor(stage: Stage, planned: Counts) -> float:
    """Return what a delivery takes at least: one query and one write, one after the other.

    The larger one of what is set and what is measured without the service decides. It is measured
    anew before each run, for the machine may be faster a minute later.
    """
    found = median(stage.floor(planned.floor))
    say(f"the floor is {FLOOR * 1_000:.1f} ms, measured {found * 1_000:.1f} ms")
    return max(FLOOR, found)


def one_item(planned: Counts) -> list[Row]:
    """Measure deliveries of one item, with latency."""
    name = f"one item, floor of {FLOOR * 1_000:.0f} ms"
    floors, one, metered = list[float](), list[list[float]](), list[list[float]]()
    say("one item, and one item on a Billing Meter")
    with Stage(latency=True) as stage:
        stage.serve()
        for _ in range(planned.runs):
            floors.append(measured_floor(stage, planned))
            one.append(one_after_the_other(stage.service, planned.one))
            metered.append(one_after_the_other(stage.service, planned.several, 1, "mtr_1"))
    floor = median(floors)
    return [
        ratio(f"{name}, p50", of_medians(one), 1.02, floor),
        ratio("the same, p99", median(map(p99, one)), 1.15, floor),
        ratio("the same on a Billing Meter, p50", of_medians(metered), 1.02, floor),
    ]


def ten_items(planned: Counts) -> list[Row]:
    """Measure deliveries of several items, with latency."""
    floors, ten, twenty = list[float](), list[list[float]](), list[list[float]]()
    say("ten items, and twenty")
    with Stage(latency=True) as stage:
        stage.serve()
        for _ in range(planned.runs):
            floors.append(measured_floor(stage, planned))
            ten.append(one_after_the_other(stage.service, planned.several, 10))
            twenty.append(one_after_the_other(stage.service, planned.several, 20))
    floor = median(floors)
    return [
        ratio("ten items", of_medians(ten), 1.05, floor),
        ratio("twenty items, ten of them read", of_medians(twenty), 1.25, floor, ONE_READ),
    ]


def idle(planned: Counts) -> list[Row]:
    """Measure what a delivery costs the worker when nobody has to be waited for."""
    say("CPU and memory")
    each = planned.idle // planned.runs
    cpu, memory = [], []
    with Stage() as stage:
        pids = workers_of(stage.serve())
        for _ in range(planned.runs):
            began = cpu_of(pids)
            one_after_the_other(stage.service, each)
            cpu.append((cpu_of(pids) - began) / each)
            memory.append(resident_mb(pids[0]))
    growth = f"1.02 x that after {each:,}"
    return [
        at_most("CPU a webhook, no latency", median(cpu) * 1_000, 1.2, "ms"),
        at_most("resident memory of a worker", memory[-1], 75, "MB", f"{planned.idle:,} webhooks"),
        at_most("the same, against growth", memory[-1], 1.02 * memory[0], "MB", growth),
    ]


def starts(planned: Counts) -> list[Row]:
    """Measure how long the service takes to answer for the first time."""
    say("start")
    with Stage() as stage:
        seconds = median(seconds_to_first_answer(stage) for _ in range(planned.runs))
    return [at_most("start to the first /healthz", seconds, 1.2, "s")]


def loaded(planned: Counts) -> list[Row]:
    """Measure how many deliveries go in a second; load and upstream are on the same cores."""
    runs = range(planned.runs)
    say(f"two workers at {CONNECTIONS} connections")
    with Stage() as stage:
        stage.serve(WORKERS)
        rate(stage.service, 4 * CONNECTIONS, CONNECTIONS)
        two = median(rate(stage.service, planned.loaded, CONNECTIONS) for _ in runs)
    say(f"one worker at one connection and at {CONNECTIONS}")
    with Stage() as stage:
        stage.serve()
        rate(stage.service, 4 * CONNECTIONS, CONNECTIONS)
        pairs = [
            [rate(stage.service, planned.loaded // 2, n) for n in (1, CONNECTIONS)] for _ in runs
        ]
    times, alone = median(many / one for one, many in pairs), median(one for one, _ in pairs)
    one_connection = f"{alone:,.0f} webhooks/s at one"
    return [
        at_least(f"two workers, no latency, {CONNECTIONS} connections", two, 1_000, "webhooks/s"),
        at_least(f"one worker, {CONNECTIONS} connections to one", times, 1, "x", one_connection),
    ]
