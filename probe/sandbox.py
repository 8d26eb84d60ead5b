"""What the probe makes in a sandbox, under names of its own, and how it is removed."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from billing.stripe_api import (
    Json,
    NotReported,
    ReportFailed,
    StripeConnection,
    call,
    has_id,
    iter_pages,
)
from probe.questions import Answer, NotFoundOut

# What all names, event names and metadata of ours begin with.
MARK = "om_probe"
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0


@dataclass(frozen=True)
class Sandbox:
    """A connection to a sandbox, this run's name in it, and how many seconds it waits at most.

    `made` has the ids of what all experiments share: a product, and a Billing Meter for marks.
    """

    account: StripeConnection
    run: str
    patience: float
    made: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)


# What answers a question.
Experiment = Callable[[Sandbox], Answer]


@dataclass(frozen=True)
class Meter:
    """A Billing Meter, and the name of its events."""

    id: str
    event_name: str


def wait_until(look: Callable[[], bool], patience: float, what: str) -> float:
    """Look until it is so, and return after how many seconds. Raises NotFoundOut."""
    began, pause = time.monotonic(), FIRST_PAUSE
    while not look():
        left = began + patience - time.monotonic()
        if left <= 0:
            raise NotFoundOut(f"{what} within {patience:g} s")
        time.sleep(min(pause, left))
        pause = min(2 * pause, LONGEST_PAUSE)
    return time.monotonic() - began


def post_object(sandbox: Sandbox, path: str, **form: Any) -> Json:
    """Make an object or change one, and return it. Raises ReportRefused or ReportFailed."""
    made = call(sandbox.account, "post", path, **form)
    if not has_id(made):
        raise ReportFailed("Stripe's answer is no object")
    return made


def product(sandbox: Sandbox) -> str:
    """Return the run's one product, made when it is first needed."""
    if "product" not in sandbox.made:
        mark = {MARK: sandbox.run}
        made = post_object(sandbox, "/v1/products", name=f"{MARK} {sandbox.run}", metadata=mark)
        sandbox.made["product"] = str(made["id"])
    return sandbox.made["product"]


def make_meter(sandbox: Sandbox, formula: str = "last", **options: str) -> Meter:
    """Make a Billing Meter."""
    name = f"{MARK}_{sandbox.run}_{next(sandbox.numbers)}"
    made = post_object(
        sandbox,
        "/v1/billing/meters",
        display_name=name,
        event_name=name,
        default_aggregation={"formula": formula},
        **options,
    )
    return Meter(str(made["id"]), name)


def make_price(sandbox: Sandbox, meter: Meter) -> str:
    """Make a price of a dollar a unit and day that a Billing Meter backs."""
    recurring = {"interval": "day", "usage_type": "metered", "meter": meter.id}
    return daily_price(sandbox, recurring)


def daily_price(sandbox: Sandbox, recurring: Json, **options: Any) -> str:
    """Make a price of a dollar a unit and day."""
    made = post_object(
        sandbox,
        "/v1/prices",
        product=product(sandbox),
        currency="usd",
        unit_amount=100,
        recurring={"interval": "day", **recurring},
        metadata={MARK: sandbox.run},
        **options,
    )
    return str(made["id"])


def listed(account: StripeConnection, path: str, **filters: Any) -> list[Json]:
    """Read a list to its end. Raises ReportRefused or ReportFailed."""
    return [entry for page in iter_pages(account, path, **filters) for entry in page]


def is_ours(entry: Json) -> bool:
    """Say whether an object has the probe's mark, in its metadata or as a part of its name."""
    names = (entry.get("name"), entry.get("event_name"))
    marked = any(str(name).startswith((f"{MARK}_", f"{MARK} ")) for name in names)
    return MARK in (entry.get("metadata") or {}) or marked


def remove_all(account: StripeConnection, patience: float) -> int:
    """Remove what this run or an earlier one made, and return how many objects that were.

    Test clocks go with their customers and subscriptions; prices and products, which Stripe keeps,
    are archived, and Billing Meters deactivated. Raises NotFoundOut, which says what stays and why,
    when the others are removed.
    """
    kinds: tuple[tuple[str, dict[str, Any], Callable[[str], object]], ...] = (
        ("/v1/test_helpers/test_clocks", {}, partial(remove_clock, account, patience)),
        ("/v1/products", {"active": True}, partial(archive_product, account)),
        ("/v1/billing/meters", {"status": "active"}, partial(deactivate_meter, account)),
    )
    count, failed = 0, list[str]()
    for path, filters, remove in kinds:
        try:
            found = list_marked(account, path, **filters)
        except NotReported as error:
            failed.append(str(error))
            continue
        for entry in found:
            try:
                remove(str(entry["id"]))
            except (NotReported, NotFoundOut) as error:
                failed.append(str(error))
            else:
                count += 1
    if failed:
        raise NotFoundOut("; ".join(dict.fromkeys(failed)))
    return count


def remove_clock(account: StripeConnection, patience: float, clock: str) -> None:
    """Remove a test clock, but not while it advances."""
    wait_until_ready(account, clock, patience)
    call(account, "delete", f"/v1/test_helpers/test_clocks/{clock}")


def archive_product(account: StripeConnection, key: str) -> None:
    """Archive a product with its prices."""
    for price in listed(account, "/v1/prices", product=key, active=True):
        call(account, "post", f"/v1/prices/{price['id']}", active=False)
    call(account, "post", f"/v1/products/{key}", active=False)


def deactivate_meter(account: StripeConnection, meter: str) -> None:
    """Deactivate a Billing Meter."""
    call(account, "post", f"/v1/billing/meters/{meter}/deactivate")


def wait_until_ready(account: StripeConnection, clock: str, patience: float) -> None:
    """Wait until a test clock has advanced. Raises NotFoundOut, ReportRefused or ReportFailed."""

    def is_ready() -> bool:
        status = call(account, "get", f"/v1/test_helpers/test_clocks/{clock}").get("status")
        if status not in ("ready", "advancing"):
            raise NotFoundOut(f"the test clock says {status}")
        return bool(status == "ready")

    wait_until(is_ready, patience, "the test clock did not advance")


def list_marked(account: StripeConnection, path: str, **filters: Any) -> list[Json]:
    """Read what the probe made of a list, before any of it is removed."""
    return [entry for entry in listed(account, path, **filters) if is_ours(entry)]
