"""Invoices: their lines, what the lines count, and when a draft becomes final.

A line of a metered item has the closed period, a licensed item's the coming one. `start` and
`end` are the period that the line shows. What it counts can be less: from `counted_from` and to
`counted_until`, where a price changed or an item came or went in mid-period.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal

from fakes.stripe_periods import after, before
from fakes.stripe_prices import cents, is_metered, number, parts
from fakes.stripe_store import Record, StripeError, integer, is_true
from fakes.stripe_usage import Usage

DRAFT_SECONDS = 3_600
HOLD_SECONDS = 72 * 3_600
FIVE_YEARS = 5 * 366 * 86_400
NEVER = 253_402_300_799

Tell = Callable[[str, Record, Record], bool]


class Ledger(Usage):
    """The invoices of an account, and the invoice items that wait for one."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.tell = tell

    # Lines

    def closing_line(
        self, item: Record, end: int, free: bool = False, draft: bool = False
    ) -> Record:
        """Return the line that bills a metered item's period up to its end."""
        return {
            "item": item["id"],
            "price": item["price"],
            "start": item["start"],
            "end": end,
            "quantity": Decimal(0),
            "amount": 0,
            "type": "subscription",
            "counted_from": item["counted_from"],
            "counted_until": None,
            "arrived_before": end if draft and self.is_lost_in_draft(item) else None,
            "frozen": free,
        }

    def is_lost_in_draft(self, item: Record) -> bool:
        """Say whether what comes in the draft hour does not count.

        Where the price changed in the cycle it does not
        (docs.stripe.com/billing/subscriptions/usage-based/configure-grace-period).
        """
        reading = "changed_draft" if item["changed"] else "draft_hour"
        return bool(self.meters.readings[reading] == "lost")

    def licensed_line(self, item: Record) -> Record:
        """Return the line over a licensed item's whole price."""
        quantity = Decimal(item["quantity"])
        return {
            **self.closing_line(item, item["end"], free=True),
            "quantity": quantity,
            "amount": self.amount(item["price"], quantity),
        }

    def coming_line(self, item: Record) -> Record:
        """Return the line that bills a licensed item in advance, a shorter period in part."""
        line = self.licensed_line(item)
        whole = after(line["start"], self.get("price", item["price"])["recurring"])
        if line["end"] < whole:
            share = Decimal(line["end"] - line["start"]) / (whole - line["start"])
            line["amount"] = cents(line["amount"] * share)
        return line

    def amount(self, price: str, quantity: Decimal) -> int:
        """Return what a quantity of a price costs."""
        return sum(amount for _, amount in parts(self.get("price", price), quantity))

    def count(self, line: Record, customer: str, as_of: int | None = None) -> None:
        """Count the usage that a line bills, by a time."""
        price = self.get("price", line["price"])
        start, end = line["start"], line["end"]
        if meter := price["recurring"]["meter"]:
            since, until = self.meters.window(start, end)
            # Within a period Stripe counts to the second; only at its boundaries it is open.
            since = since if line["counted_from"] is None else line["counted_from"]
            until = until if line["counted_until"] is None else line["counted_until"]
            window, before = (since, until), line["arrived_before"]
            counted = self.meters.count(meter, customer, window, as_of, before)
            if self.meters.readings["fractions"] == "whole":
                counted = Decimal(int(counted))
        else:
            since = start if line["counted_from"] is None else line["counted_from"] - 1
            counted = Decimal(self.usage(line["item"], since, end))
        line["quantity"] = max(Decimal(0), counted)
        line["amount"] = self.amount(line["price"], line["quantity"])

    # Invoice items, which wait for the next invoice

    def add_invoice_item(self, subscription: Record, line: Record, **fields: object) -> Record:
        """Keep a line until the subscription's next invoice."""
        return self.add(
            "invoiceitem",
            "ii",
            customer=subscription["customer"],
            invoice=None,
            line={**line, "type": "invoiceitem", "frozen": True},
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
            **{"proration": False, "description": None, **fields},
        )

    def bill_usage(self, subscription: Record, item: Record, now: int) -> None:
        """Let an invoice item bill a metered item's usage so far, as reported by now."""
        line = self.closing_line(item, now)
        line["start"] = item["start"] if item["counted_from"] is None else item["counted_from"]
        line |= {"counted_until": now, "usage": True}
        if line["start"] < now:
            self.count(line, subscription["customer"])
            self.add_invoice_item(subscription, line)

    def prorate(
        self, subscription: Record, item: Record, start: int, end: int, credit: bool
    ) -> None:
        """Let an invoice item credit or charge a licensed item for a part of its period."""
        line = self.licensed_line(item)
        whole = end - before(end, self.get("price", item["price"])["recurring"])
        amount = cents(Decimal(line["amount"]) * (end - start) / whole)
        line |= {"start": start, "end": end, "amount": -amount if credit else amount}
        if amount:
            self.add_invoice_item(subscription, line, proration=True)

    def create_invoice_item(self, form: Record) -> Record:
        """Add an amount, or a price's, to a customer's or a subscription's next invoice."""
        customer = self.get("customer", form.get("customer"), "customer")
        subscription = form.get("subscription")
        if subscription is not None:
            self.get("subscription", subscription, "subscription")
        price = form.get("price") or form.get("pricing", {}).get("price")
        quantity = item_quantity(form)
        if price is not None:
            amount = self.amount(self.get("price", price, "price")["id"], quantity)
        elif "unit_amount_decimal" in form:
            amount = cents(quantity * number(form["unit_amount_decimal"], "unit_amount_decimal"))
        elif "amount" in form:
            amount = integer(form["amount"], "amount")
        else:
            raise StripeError(400, "Missing required param: amount.", "amount")
        now = self.now(customer["test_clock"])
        period = form.get("period", {})
        line = {
            "item": None,
            "price": price,
            "start": integer(period.get("start", now), "period[start]"),
            "end": integer(period.get("end", now), "period[end]"),
            "quantity": quantity,
            "amount": amount,
            "currency": form.get("currency", "usd"),
        }
        owner = {"customer": customer["id"], "id": subscription}
        owner["test_clock"] = customer["test_clock"]
        fields = {"description": form.get("description"), "metadata": form.get("metadata", {})}
        return self.add_invoice_item(owner, line, **fields)

    def pending(self, subscription: Record) -> list[Record]:
        """Return the invoice items that a subscription's next invoice takes up."""
        return [
            item
            for item in self.all("invoiceitem")
            if item["invoice"] is None
            and item["customer"] == subscription["customer"]
            and item["subscription"] in (None, subscription["id"])
        ]

    # Invoices

    def invoice(
        self,
        subscription: Record,
        reason: str,
        lines: Sequence[Record],
        period: tuple[int, int],
        draft: bool = False,
    ) -> Record:
        """Make an invoice at a period's end of lines and of what waited for it."""
        at = period[1]
        invoice = self.add(
            "invoice",
            "in",
            accepted_at=at,
            auto_advance=True,
            automatically_finalizes_at=None,
            finalized_at=None,
            billing_reason=reason,
            collection_method="charge_automatically",
            customer=subscription["customer"],
            lines=list(lines),
            period_end=at,
            period_start=period[0],
            status="draft",
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
        )
        invoice["created"] = at
        for item in self.pending(subscription):
            item["invoice"] = invoice["id"]
            about = {"invoice_item": item["id"], "proration": item["proration"]}
            about |= {"metadata": item["metadata"], "description": item["description"]}
            line = {**item["line"], **about}
            invoice["lines"].append(line)
        self.refresh(invoice, at)
        subscription["latest_invoice"] = invoice["id"]
        if not draft:
            self.finalize(invoice, at)
        if self.tell("invoice.created", invoice, invoice):
            invoice["accepted_at"] = None
        return invoice

    def refresh(self, invoice: Record, as_of: int, final: bool = False) -> None:
        """Count the metered usage of an invoice's lines and sum them up."""
        recounted = final and self.meters.readings["changed_recount"] == "recounted"
        for line in invoice["lines"]:
            if not line["frozen"] or (recounted and line.get("usage")):
                self.count(line, invoice["customer"], as_of)
        invoice["total"] = sum(line["amount"] for line in invoice["lines"])

    def preview(self, subscription: Record) -> Record:
        """Return what a subscription's next invoice would bill, as of now."""
        now = self.now(subscription["test_clock"])
        items = [self.get("subscription_item", key) for key in subscription["items"]]
        invoice = {
            "id": "upcoming_in",
            "auto_advance": True,
            "automatically_finalizes_at": None,
            "accepted_at": now,
            "billing_reason": "upcoming",
            "collection_method": "charge_automatically",
            "created": now,
            "customer": subscription["customer"],
            "finalized_at": None,
            "lines": [self.closing_line(i, i["end"]) for i in items if self.metered(i)],
            "livemode": False,
            "metadata": {},
            "period_end": subscription["end"],
            "period_start": subscription["start"],
            "status": "draft",
            "subscription": subscription["id"],
            "test_clock": subscription["test_clock"],
        }
        self.refresh(invoice, now)
        return invoice

    def finalize(self, invoice: Record, at: int) -> None:
        """Count once more and close a draft; one over nothing is paid at once."""
        self.refresh(invoice, at, final=True)
        invoice["status"] = "open" if invoice["total"] > 0 else "paid"
        invoice["finalized_at"] = at

    def update_invoice(self, invoice: Record, form: Record) -> Record:
        """Let a draft advance by itself or not, or become final at a time of its own.

        (docs.stripe.com/invoicing/scheduled-finalization)
        """
        if invoice["status"] != "draft":
            raise StripeError(400, "This invoice is finalized and can no longer be changed so.")
        if "auto_advance" in form:
            invoice["auto_advance"] = is_true(form["auto_advance"])
        name = "automatically_finalizes_at"
        if name in form:
            at, now = integer(form[name], name), self.now(invoice["test_clock"])
            if not invoice["auto_advance"]:
                raise StripeError(400, f"{name} needs auto_advance to be true.", name)
            if not now < at <= now + FIVE_YEARS:
                raise StripeError(400, f"{name} must be in the next 5 years.", name)
            invoice[name] = at
        return invoice

    def metered(self, item: Record) -> bool:
        """Say whether an item bills usage."""
        return is_metered(self.get("price", item["price"]))


def finalization(invoice: Record) -> int:
    """Return when a draft is due: an hour after its event was taken, in 72 h at most.

    One with a time of its own does not wait for its event
    (docs.stripe.com/invoicing/scheduled-finalization).
    """
    if not invoice["auto_advance"]:
        return NEVER
    if invoice["automatically_finalizes_at"] is not None:
        return int(invoice["automatically_finalizes_at"])
    latest = int(invoice["created"]) + HOLD_SECONDS
    accepted = invoice["accepted_at"]
    return latest if accepted is None else min(int(accepted) + DRAFT_SECONDS, latest)


def item_quantity(form: Record) -> Decimal:
    """Return how many units an invoice item is over, of which parts may be given."""
    if "quantity_decimal" in form:
        return number(form["quantity_decimal"], "quantity_decimal")
    return Decimal(integer(form.get("quantity", 1), "quantity"))
