"""A row of `flask audit`: what one item was metered and billed, and what to do about it.

Times are UTC seconds. Money is in the currency's minor unit, exact, until it is shown.
"""

from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import Any

from audit import pricing
from billing.invoices import plain, unit_amount
from billing.stripe_api import Json
from usage import rfc3339, window_start_at

DASHBOARD = "https://dashboard.stripe.com"
LINE, GAP, OVERLAP, NOBODY, IDLE = "line", "gap", "overlap", "nobody", "idle"
ZERO = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A metered line of an invoice, or usage that no line bills, or two do.

    `metered` is OpenMeter's total now, None without rows. `missing` is what is not billed of it,
    below zero what is billed too much; `money` is what that costs, None where no price says it.
    Without `is_compared` neither is known. `repaired` is what invoice items of `flask audit
    --repair` bill, which counts as billed; `line` names it in their metadata, and `repair` says
    whether one can be made.
    """

    kind: str = LINE
    account: str = ""
    invoice: str = ""
    number: str = ""
    status: str = ""
    customer: str = ""
    subscription: str = ""
    item: str = ""
    price: str = ""
    meter: str
    subject: str
    start: int
    end: int
    metered: Decimal | None = None
    billed: Decimal = ZERO
    repaired: Decimal = ZERO
    missing: Decimal = ZERO
    currency: str = ""
    money: Decimal | None = None
    metered_money: Decimal | None = None
    billed_money: Decimal | None = None
    todo: str = ""
    line: str = ""
    is_compared: bool = True
    repair: bool = False
    is_live: bool = False

    def differs(self, tolerance: Decimal) -> bool:
        """Say whether more units are missing, or over, than are tolerated."""
        return abs(self.missing) > tolerance

    @property
    def can_be_mended(self) -> bool:
        """Say whether a report still changes what a draft bills."""
        return self.kind == LINE and self.status == "draft" and self.todo.startswith(MEND)

    @property
    def url(self) -> str:
        """Return where Stripe's dashboard shows it; empty if nowhere."""
        parts = [DASHBOARD, self.account, "" if self.is_live else "test"]
        if self.invoice and " " not in self.invoice:
            parts += ["invoices", self.invoice]
        elif self.subscription and " " not in self.subscription:
            parts += ["subscriptions", self.subscription]
        else:
            return ""
        return "/".join(part for part in parts if part)

    def shown(self) -> dict[str, str | None]:
        """Return it for programs and spreadsheets: times, units and money as texts."""
        found: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("metered", "billed", "repaired", "missing"):
            found[name] = None if found[name] is None else plain(found[name])
        found["from"], found["to"] = utc(self.start), utc(self.end)
        if not self.is_compared:
            found["missing"] = None
        if self.money is not None:
            found["money"] = pricing.amount_text(self.money, self.currency)
        found["url"] = self.url
        return {name: found[name] for name in COLUMNS}

    @property
    def money_text(self) -> str:
        """Return what is missing, or over, for a person; a dash where no price says it."""
        return "-" if self.money is None else pricing.money(abs(self.money), self.currency)


COLUMNS = (
    "kind", "account", "invoice", "number", "status", "customer", "subscription", "item", "price",
    "meter", "subject", "from", "to", "metered", "billed", "repaired", "missing", "currency",
    "money", "todo", "line", "url",
)  # fmt: skip
MEND = "still a draft"


def utc(second: int) -> str:
    """Return a UTC second as RFC 3339 has it."""
    return rfc3339(window_start_at(second, 1))


def line_key(item: str, price: str, start: int, end: int) -> str:
    """Return what names a line, or a gap, in the metadata of its repair."""
    return f"{item} {price} {start} {end}"


def missing_money(
    price: Json, metered: Decimal, billed: Decimal, charged: Decimal | None = None
) -> Decimal | None:
    """Return what the units cost that are metered and not billed; None where it cannot be told.

    By packages and tiers, that is what all cost together less what is charged by now.
    """
    each = unit_amount(price)
    if each is not None:
        return (metered - billed) * each
    whole = pricing.cost(price, metered)
    before = pricing.cost(price, billed) if charged is None else charged
    return None if whole is None or before is None else whole - before


def with_repairs(row: Row, price: Json, units: Decimal, state: str) -> Row:
    """Return a row of which invoice items bill some units by now."""
    if not units:
        return row
    missing = row.missing - units
    billed = row.billed + units
    money = missing_money(price, billed + missing, billed)
    paid = (row.money or ZERO) - (money or ZERO)
    todo = f"repaired: an invoice item over {plain(units)} units is {state}"
    return replace(
        row,
        repaired=units,
        missing=missing,
        money=money,
        billed_money=None if row.billed_money is None else row.billed_money + paid,
        todo=f"{todo}; {row.todo}" if missing > 0 else todo,
        repair=row.repair and missing > 0,
    )


def todo_of_line(row: Row, *, is_fixed: bool) -> str:
    """Say what to do about a line. With `is_fixed`, a report changes nothing of it any more."""
    if row.status == "void":
        return "the invoice is void: nobody pays it"
    if row.missing == 0:
        return ""
    if row.status == "draft" and not is_fixed:
        return f"{MEND}, which counts what flask report sends when it becomes final"
    if row.status == "draft":
        return "a draft that counts nothing more: flask audit --repair once it is final"
    if row.missing < 0:
        return "billed too many: credit it in Stripe, if it is yours to credit"
    return "not billed: flask audit --repair makes an invoice item over it"
