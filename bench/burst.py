"""The rows of a burst: subscriptions on Billing Meters that all renew in one second.

What limits it are not the meter events, of which Stripe takes 1,000 a second, but the reads: an
event of a renewal is worked on with the subscription as it is now, and Stripe answers 25 reads of
a subscription in a second.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from bench.deliveries import connection
from bench.limits import CHECKOUT, ENDPOINT
from bench.load import SHARE, Stage, has_redis
from bench.renewals import HOUR_SECONDS, Renewals
from bench.rows import Counts, Row, at_most, say
from bench.sender import Sender
from fakes.processes import call

WORKERS, MACHINES = 2, 2
# Each of a renewal's two events needs a read of the subscription.
EVENTS = 2
# What the checkout sends in a second, over three connections: an answer takes 100 ms.
CHECKOUTS, CHECKOUT_CONNECTIONS = 15, 3
# What is not answered by then is given up.
MOST_TIMES, LEAST_SECONDS = 3, 60


def one_machine(planned: Counts) -> list[Row]:
    """Measure a burst on two workers."""
    say(f"a burst of {planned.burst:,} renewals")
    with Stage(latency=True, live=True) as stage:
        stage.serve(WORKERS)
        found = renew(stage, planned.burst, [stage.service])
    what = f"burst: {planned.burst:,} subscriptions renew in one second, two workers"
    return rows(what, planned.burst, found)


def two_machines(planned: Counts) -> list[Row]:
    """Measure a burst on two machines' workers, which share in a Redis; none without one."""
    what = "the same with two machines' worth of workers on one Redis"
    if not has_redis():
        say(f"{what}: left out, there is no redis-server")
        return []
    say(what)
    with Stage(latency=True, live=True) as stage:
        redis, services = stage.start_redis(), []
        for _ in range(MACHINES):
            stage.serve(WORKERS, redis)
            services.append(stage.service)
        found = renew(stage, planned.burst, services)
    return rows(what, planned.burst, found)


def renew(stage: Stage, count: int, services: list[str]) -> dict[str, Any]:
    """Let so many subscriptions renew, and return what became of it once all drafts are final."""
    renewals, address = Renewals(int(time.time())), f"{stage.stripe}/_bench/renewals"
    sender, began = Sender(stage.stripe, services, renewals), time.monotonic()
    most = LEAST_SECONDS + MOST_TIMES * allowed_seconds(count)
    with checkout(stage.stripe):
        call("POST", address, {"boundary": renewals.boundary})
        try:
            asyncio.run(asyncio.wait_for(sender.send(count), most))
        except TimeoutError:
            say(f"gave up after {most:.0f} s")
        time.sleep(HOUR_SECONDS)
    state = call("GET", address)
    return {
        **state,
        **stage.counts(),
        "last_closed": state["last_closed"] - began,
        "last_answered": max(sender.answered, default=began) - began,
        "answered": len(sender.answered),
        "attempts": sender.attempts,
        "timed_out": sender.timed_out,
    }


def allowed_seconds(count: int) -> float:
    """Return how long so many renewals take by our share of the limit that hurts."""
    return EVENTS * count / (ENDPOINT * SHARE / 100)


@contextmanager
def checkout(stripe: str) -> Iterator[None]:
    """Send what a checkout on the same account does, evenly, until the end."""
    ended = threading.Event()
    method, path = CHECKOUT.split(" ")

    def send() -> None:
        with closing(connection(stripe)) as http:
            due = time.monotonic()
            while not ended.wait(max(0, due - time.monotonic())):
                http.request(method, path, b"amount=1000")
                http.getresponse().read()
                due = max(due + CHECKOUT_CONNECTIONS / CHECKOUTS, time.monotonic())

    threads = [threading.Thread(target=send) for _ in range(CHECKOUT_CONNECTIONS)]
    for thread in threads:
        thread.start()
        ended.wait(1 / CHECKOUTS)
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def rows(what: str, count: int, found: dict[str, Any]) -> list[Row]:
    """Return the rows of a burst."""
    allowed = allowed_seconds(count)
    why = f"1.3 x {allowed:.0f} s, by {SHARE} % of {ENDPOINT} reads a second"
    closed = at_most(f"{what}: all closed", found["last_closed"], 1.3 * allowed, "s", why)
    share = found["answered"] / EVENTS / count
    answers = f"{share:.0%} answered after {found['last_answered']:.0f} s"
    is_whole = (found["closed"], found["answered"]) == (count, EVENTS * count)
    most = max(found["used"], key=found["used"].get)
    say(
        f"{found['attempts']:,} attempts, of which {found['timed_out']:,} had no answer in time; "
        f"used in percent: {found['used']}"
    )
    return [
        replace(closed, measured=f"{closed.measured}; {answers}", met=closed.met and is_whole),
        at_most(
            f"that burst: most of a limit used in a second, {most}", found["used"][most], 85, "%"
        ),
        at_most("that burst: answers of 429", found["refused"], 0),
        at_most(
            "that burst: drafts final before they were closed", found["final_before_closed"], 0
        ),
        at_most(
            f"that burst: of {CHECKOUTS} checkouts a second, refused", found["checkouts_refused"], 0
        ),
    ]
