"""`flask audit --repair`: the invoice items that bill what is on no invoice.

Each names in its metadata the line, or the gap, of which it bills what is missing, and how many
units. That is how a second run knows it (docs.stripe.com/api/invoiceitems).
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from audit import pricing
from audit.reading import REPAIRED_LINE, Source
from audit.rows import Row
from billing import stripe_api
from billing.invoices import MAX_QUANTITY, as_number, plain, unit_amount
from billing.stripe_api import GoneFromStripe, Json, ReportFailed
from billing.subscriptions import OVER
from usage import window_start_at

REPAIRED_UNITS = "om_units"
# An item that was made and deleted again leaves its key in use for a day
# (docs.stripe.com/api/idempotent_requests).
MOST_TRIES = 5
# Stripe shows the last trial of a subscription only.
MAY_BE_FREE = "not repaired: its subscription had a trial, and perhaps one before that; look first"


class Repaired(NamedTuple):
    """How many units of a line invoice items bill by now, and where they are."""

    units: Decimal
    state: str


@dataclass
class Repairs:
    """What invoice items bill by now, of customers whose lines differ; each is asked for once."""

    known: dict[tuple[str, str], dict[str, Repaired]] = field(default_factory=dict)

    def fetch(self, customer: str, source: Source) -> dict[str, Repaired]:
        """Return a customer's repairs, by line. Raises ReportRefused or ReportFailed."""
        key = (source.name, customer)
        if key not in self.known:
            self.known[key] = fetch_repairs(customer, source)
        return self.known[key]


def fetch_repairs(customer: str, source: Source) -> dict[str, Repaired]:
    """Read a customer's repairs, by line. Raises ReportRefused or ReportFailed."""
    found: dict[str, Repaired] = {}
    stripe = source.services.stripe
    for page in stripe_api.iter_pages(stripe, "/v1/invoiceitems", customer=customer):
        for item in page:
            metadata = item.get("metadata")
            given = metadata if isinstance(metadata, dict) else {}
            units = as_number(given.get(REPAIRED_UNITS), MAX_QUANTITY)
            line = given.get(REPAIRED_LINE)
            if isinstance(line, str) and units:
                invoice = item.get("invoice")
                state = f"on invoice {invoice}" if invoice else "pending"
                before = found.get(line, Repaired(Decimal(0), ""))
                states = ", ".join(part for part in (before.state, state) if part)
                found[line] = Repaired(before.units + units, states)
    return found


@dataclass(frozen=True)
class Repair:
    """An invoice item to create for a row: its parameters, and what it comes to in minor units."""

    row: Row
    form: dict[str, Any]
    amount: int


def plan(row: Row, source: Source) -> Repair:
    """Return the invoice item that bills what a row lacks.

    A subscription that is over has no further invoice: its item waits for the customer's next
    one. Raises ReportRefused or ReportFailed, also where the row may be of a trial.
    """
    stripe = source.services.stripe
    price = source.fetch_price(row.price, {})
    subscription = stripe_api.fetch_subscription(stripe, row.subscription)
    if subscription.get("trial_start") is not None:
        raise ReportFailed(MAY_BE_FREE)
    form: dict[str, Any] = {
        "customer": row.customer,
        "currency": row.currency.lower(),
        "period": {"start": row.start, "end": row.end},
        "description": description(row, product_name(price, source)),
        "metadata": {REPAIRED_LINE: row.line, REPAIRED_UNITS: plain(row.missing)},
    }
    if subscription.get("status") not in OVER:
        form["subscription"] = row.subscription
    if price.get("tax_behavior") in ("exclusive", "inclusive"):
        form["tax_behavior"] = price["tax_behavior"]
    amount = pricing.as_charged(row.money or Decimal(0))
    return Repair(row, {**form, **charge(row, price, amount)}, amount)


def charge(row: Row, price: Json, amount: int) -> dict[str, Any]:
    """Return quantity and unit amount of what is missing or, by packages and tiers, the money."""
    each = unit_amount(price)
    if each is None:
        return {"amount": amount}
    is_whole = row.missing == row.missing.to_integral_value()
    name = "quantity" if is_whole else "quantity_decimal"
    return {"unit_amount_decimal": plain(each), name: plain(row.missing)}


def product_name(price: Json, source: Source) -> str:
    """Return what a customer knows a price's product as. Raises ReportRefused or ReportFailed."""
    product = price.get("product")
    if isinstance(product, str):
        stripe = source.services.stripe
        product = stripe_api.fetch_object(stripe, "product", f"/v1/products/{product}")
    name = product.get("name") if isinstance(product, dict) else None
    return str(name or "Usage")


def description(row: Row, product: str) -> str:
    """Return what the customer reads on the invoice."""
    start, end = (window_start_at(at, 1).strftime("%d %b %Y %H:%M") for at in (row.start, row.end))
    return f"{product}: {plain(row.missing)} units from {start} to {end} UTC, not billed before"


def create(repair: Repair, source: Source) -> str:
    """Create the invoice item of a repair, once, and return its id.

    Two runs at the same time make one. Raises ReportRefused or ReportFailed.
    """
    stripe, row = source.services.stripe, repair.row
    for tries in range(MOST_TRIES):
        key = f"audit {row.line} {plain(row.repaired)} {plain(row.missing)} {tries}"
        made = stripe_api.call(
            stripe, "post", "/v1/invoiceitems", **repair.form, idempotency_key=key
        )
        if made.get("object") != "invoiceitem":
            raise ReportFailed("Stripe's answer is no invoice item")
        try:
            path = f"/v1/invoiceitems/{made.get('id')}"
            stripe_api.fetch_object(stripe, "invoiceitem", path)
        except GoneFromStripe:
            continue  # it was deleted since: this answer is the one of then
        return str(made["id"])
    raise ReportFailed("it was created and deleted again and again")
