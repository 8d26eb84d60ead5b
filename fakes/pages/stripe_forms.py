"""What the forms on the pages of Stripe's stand-in ask of its API."""

import re
from decimal import Decimal

from werkzeug.datastructures import MultiDict

from fakes.stripe_billing import RENEWING, Account
from fakes.stripe_http import NEWEST_VERSION
from fakes.stripe_invoices import finalization
from fakes.stripe_store import Record, StripeError, is_true

# The last version in which a metered price needs no Billing Meter.
USAGE_RECORD_VERSION = "2025-02-24.acacia"
DOLLARS = re.compile(r"\d{1,9}(\.\d{1,12})?")
MINUTE, HOUR, DAY = 60, 3_600, 86_400

Form = MultiDict[str, str]


def pairs(text: str) -> dict[str, str]:
    """Return metadata from a text with a `name=value` on each line."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, value = line.partition("=")
        if not (sign and name.strip()):
            raise StripeError(400, f"Metadata is written as name=value, not as: {line}")
        found[name.strip()] = value.strip()
    return found


def metadata_changes(form: Form, name: str) -> dict[str, str]:
    """Return what a form changes in the metadata that it had shown; empty removes a name."""
    known, wanted = pairs(form.get(f"was-{name}", "")), pairs(form.get(name, ""))
    gone = dict.fromkeys(known.keys() - wanted.keys(), "")
    return gone | {key: value for key, value in wanted.items() if known.get(key) != value}


def update_of(form: Form, account: Account, subscription: Record) -> Record:
    """Return the update that a form asks for; nothing if it changes nothing."""
    asked: Record = {}
    if changes := metadata_changes(form, "metadata"):
        asked["metadata"] = changes
    entries = [entry_of(form, item) for item in account.items(subscription)]
    if form.get("new-price"):
        entries.append({"price": form["new-price"]})
        if added := metadata_changes(form, "new-metadata"):
            entries[-1]["metadata"] = added
    if entries := [entry for entry in entries if entry.keys() - {"id"}]:
        asked["items"] = entries
    if "reset" in form:
        asked["billing_cycle_anchor"] = "now"
        if subscription["billing_mode"] == "flexible":
            # With another it is refused, for what Stripe does then is not known.
            asked["proration_behavior"] = "always_invoice"
    if asked and form.get("prorations"):
        asked["proration_behavior"] = form["prorations"]
    return asked


def entry_of(form: Form, item: Record) -> Record:
    """Return what a form asks of an item: to remove or to change it, or just its id."""
    key, entry = item["id"], {"id": item["id"]}
    if f"remove-{key}" in form:
        return {**entry, "deleted": "true"}
    if form.get(f"price-{key}", item["price"]) != item["price"]:
        entry["price"] = form[f"price-{key}"]
    if changes := metadata_changes(form, f"metadata-{key}"):
        return {**entry, "metadata": changes}
    return entry


def cancel(form: Form, account: Account, subscription: Record) -> None:
    """Cancel a subscription now or at the period's end, or let it go on."""
    if form.get("when") == "now":
        invoices = str(is_true(form.get("invoice_now"))).lower()
        account.cancel_subscription(subscription, {"invoice_now": invoices})
    else:
        ends = str(form.get("when") == "end").lower()
        account.update_subscription(subscription, {"cancel_at_period_end": ends})


def advances(account: Account, subscription: Record) -> list[Record]:
    """Return how far time can be advanced, with the second that each way leads to."""
    now = account.now(subscription["test_clock"])
    found = [("hour", "An hour", now + HOUR), ("day", "A day", now + DAY)]
    if subscription["status"] in RENEWING:
        found.append(("renewal", "Over the renewal", subscription["due"] + MINUTE))
    drafts = [
        finalization(invoice)
        for invoice in account.all("invoice")
        if invoice["subscription"] == subscription["id"]
        and invoice["status"] == "draft"
        and invoice["auto_advance"]
    ]
    if drafts:
        found.append(("final", "Past the draft hour", max(drafts) + MINUTE))
    return [{"name": name, "text": text, "to": to} for name, text, to in found]


def advance(form: Form, account: Account, subscription: Record) -> None:
    """Advance the time of a subscription: of its test clock, or of all that has none."""
    ways = {way["name"]: way["to"] for way in advances(account, subscription)}
    if form.get("to") not in ways:
        raise StripeError(400, "There is no such time to advance to any more.")
    to = ways[form["to"]]
    if clock := subscription["test_clock"]:
        account.advance(account.get("test_clock", clock), to)
    else:
        account.clock.ahead += to - account.now()
        account.catch_up()


def create_price(form: Form, account: Account, product: str) -> Record:
    """Make a monthly metered price of a product, with a Billing Meter or for usage records."""
    dollars = form.get("dollars", "").strip()
    if not DOLLARS.fullmatch(dollars):
        raise StripeError(400, f"An amount is written as 0.20, not as: {dollars}")
    recurring = {"interval": "month", "usage_type": "metered"}
    if form.get("meter"):
        recurring["meter"] = form["meter"]
    asked: Record = {
        "product": product,
        "recurring": recurring,
        "unit_amount_decimal": f"{(Decimal(dollars) * 100).normalize():f}",
        "metadata": metadata_changes(form, "metadata"),
    }
    version = NEWEST_VERSION if form.get("meter") else USAGE_RECORD_VERSION
    return account.create_price(asked, version)
