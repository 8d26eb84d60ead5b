"""What units cost by a price's own scheme, in exact decimals.

Per unit, in packages, or by graduated or volume tiers (docs.stripe.com/api/prices/object). Nothing
is called here.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal

from billing.invoices import MAX_AMOUNT, MINOR_DIGITS, as_number, plain
from billing.stripe_api import Json

# How many units a package or tier may have, at most.
MAX_UNITS = 10**16


def cost(price: Json, units: Decimal) -> Decimal | None:
    """Return what units cost in the currency's minor unit, not rounded.

    None means that the price does not say it: a tiered one shows its tiers only where they were
    asked for (docs.stripe.com/expand).
    """
    if price.get("billing_scheme", "per_unit") == "tiered":
        return tiered_cost(price, units)
    each = amount(price, "unit_amount")
    counted = packages(price, units)
    return None if each is None or counted is None else counted * each


def amount(holder: Json, name: str) -> Decimal | None:
    """Return an amount in the minor unit, of which parts stand in a field of their own."""
    given = holder.get(f"{name}_decimal")
    return as_number(holder.get(name) if given is None else given, MAX_AMOUNT)


def packages(price: Json, units: Decimal) -> Decimal | None:
    """Return how many packages units are, or the units where the price has none.

    (docs.stripe.com/api/prices/object, transform_quantity)
    """
    package = price.get("transform_quantity")
    if not isinstance(package, dict):
        return units
    each = as_number(package.get("divide_by"), MAX_UNITS)
    if not each or each < 0:
        return None
    rounding = ROUND_CEILING if package.get("round") == "up" else ROUND_FLOOR
    return (units / each).to_integral_value(rounding)


def tiered_cost(price: Json, units: Decimal) -> Decimal | None:
    """Return what units cost by tiers: each in its own, or all in the one that they reach."""
    tiers = price.get("tiers")
    if not isinstance(tiers, list) or not all(isinstance(tier, dict) for tier in tiers):
        return None
    is_volume = price.get("tiers_mode") == "volume"
    total, below = Decimal(0), Decimal(0)
    for tier in tiers:
        bound = units if tier.get("up_to") is None else as_number(tier["up_to"], MAX_UNITS)
        if bound is None:
            return None
        within = units if is_volume else min(units, bound) - below
        if within > 0 and (not is_volume or units <= bound):
            total += tier_cost(tier, within)
        below = bound
        if units <= bound:
            return total
    return None


def tier_cost(tier: Json, units: Decimal) -> Decimal:
    """Return what units cost in a tier; its flat amount is due with its first unit."""
    flat = amount(tier, "flat_amount") or Decimal(0)
    return units * (amount(tier, "unit_amount") or Decimal(0)) + flat


def as_charged(minor: Decimal) -> int:
    """Return an amount as Stripe charges it: whole in the minor unit."""
    return int(minor.to_integral_value(ROUND_HALF_UP))


def amount_text(minor: Decimal, currency: str) -> str:
    """Return an amount in the major unit, with the currency's digits, or more if it has more."""
    digits = MINOR_DIGITS.get(currency, 2)
    found = minor.scaleb(-digits)
    rounded = round(found, digits)
    return f"{rounded:f}" if rounded == found else plain(found)


def money(minor: Decimal, currency: str) -> str:
    """Return an amount for a person: 15.00 USD."""
    return f"{amount_text(minor, currency)} {currency}".strip()
