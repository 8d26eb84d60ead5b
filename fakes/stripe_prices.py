"""Products and prices, and what a price makes of a quantity."""

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from fakes.stripe_store import BASIL, Record, Store, StripeError, choice, integer

NEEDS_METER = (
    "Starting with Stripe version `2025-03-31.basil`, metered prices must be backed by meters."
)

Part = tuple[Decimal, int]


def number(value: object, name: str) -> Decimal:
    """Return a form's decimal."""
    try:
        return Decimal(str(value))
    except InvalidOperation as error:
        raise StripeError(400, f"Invalid decimal: {value}", name) from error


def unit_amount(form: Record) -> Decimal:
    """Return a price per unit in cents, of which parts may be given."""
    if "unit_amount_decimal" in form:
        return number(form["unit_amount_decimal"], "unit_amount_decimal")
    return Decimal(integer(form.get("unit_amount"), "unit_amount"))


def amounts(name: str, value: Decimal | None) -> Record:
    """Return an amount as Stripe shows it: whole cents where they are, and a decimal text."""
    whole = None if value is None or value % 1 else int(value)
    return {name: whole, f"{name}_decimal": None if value is None else f"{value:f}"}


def checked_tiers(form: Record) -> list[Record]:
    """Return the tiers of a price, the last of which has no bound."""
    given = form.get("tiers") or []
    if not given or given[-1].get("up_to") != "inf":
        raise StripeError(400, "The last of the tiers must be up to `inf`.", "tiers")
    tiers = []
    for tier in given:
        bound = None if tier.get("up_to") == "inf" else integer(tier.get("up_to"), "up_to")
        per_unit = unit_amount({"unit_amount": 0, **tier})
        tiers.append({"up_to": bound, **amounts("unit_amount", per_unit)})
        tiers[-1] |= amounts("flat_amount", number(tier.get("flat_amount", 0), "flat_amount"))
    return tiers


def scheme(form: Record) -> Record:
    """Return how a price bills a quantity: by unit, by package or by tiers."""
    if form.get("billing_scheme", "per_unit") == "tiered":
        if "transform_quantity" in form:
            message = "transform_quantity cannot be combined with tiers."
            raise StripeError(400, message, "transform_quantity")
        mode = choice(form.get("tiers_mode"), "tiers_mode", "graduated", "volume")
        tiers = checked_tiers(form)
        found = {"billing_scheme": "tiered", "tiers": tiers, "tiers_mode": mode}
        return found | amounts("unit_amount", None) | {"transform_quantity": None}
    package = form.get("transform_quantity")
    if package:
        rounds = choice(package.get("round"), "transform_quantity[round]", "up", "down")
        each = integer(package.get("divide_by"), "transform_quantity[divide_by]")
        package = {"divide_by": each, "round": rounds}
    return {
        "billing_scheme": "per_unit",
        "tiers": None,
        "tiers_mode": None,
        "transform_quantity": package,
        **amounts("unit_amount", unit_amount(form)),
    }


def cents(amount: Decimal) -> int:
    """Round an amount to whole cents."""
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def tier_amount(tier: Record, quantity: Decimal) -> int:
    """Return what a quantity costs in a tier; its flat amount is due with its first unit."""
    flat = Decimal(tier["flat_amount_decimal"]) if quantity else 0
    return cents(quantity * Decimal(tier["unit_amount_decimal"]) + flat)


def graduated(tiers: list[Record], quantity: Decimal) -> list[Part]:
    """Return the part of a quantity in each tier that it reaches."""
    found: list[Part] = []
    below = Decimal(0)
    for tier in tiers:
        bound = quantity if tier["up_to"] is None else Decimal(tier["up_to"])
        part = min(quantity, bound) - below
        if part > 0 or not found:
            found.append((part, tier_amount(tier, part)))
        below = bound
    return found


def parts(price: Record, quantity: Decimal) -> list[Part]:
    """Return quantity and amount of each line that a quantity of a price is billed in."""
    if price["tiers_mode"] == "graduated":
        return graduated(price["tiers"], quantity)
    if price["tiers_mode"] == "volume":
        tiers = price["tiers"]
        tier = next(t for t in tiers if t["up_to"] is None or quantity <= t["up_to"])
        return [(quantity, tier_amount(tier, quantity))]
    units = quantity
    if package := price["transform_quantity"]:
        way = ROUND_CEILING if package["round"] == "up" else ROUND_FLOOR
        units = (quantity / package["divide_by"]).quantize(Decimal(1), way)
    return [(quantity, cents(units * Decimal(price["unit_amount_decimal"])))]


def is_metered(price: Record) -> bool:
    """Say whether a price bills usage."""
    return bool(price["recurring"]["usage_type"] == "metered")


def is_free(price: Record) -> bool:
    """Say whether a price is zero."""
    return price["tiers"] is None and not Decimal(price["unit_amount_decimal"])


class Catalog(Store):
    """Products and prices."""

    def create_price(self, form: Record, version: str) -> Record:
        """Create a recurring price; since basil a metered one needs a meter."""
        recurring = form.get("recurring", {})
        metered, meter = recurring.get("usage_type") == "metered", recurring.get("meter")
        if metered and not meter and (version >= BASIL or self.refuses_meterless()):
            raise StripeError(400, NEEDS_METER, "recurring[meter]")
        if meter:
            self.get("meter", meter, "recurring[meter]")
        if recurring.get("interval") not in ("day", "week", "month", "year"):
            raise StripeError(400, "Missing required param: recurring[interval].", "recurring")
        self.get("product", form.get("product"), "product")
        fields: dict[str, Any] = scheme(form)
        self.free_lookup_key(form)
        return self.add(
            "price",
            "price",
            active=True,
            currency=form.get("currency", "usd"),
            lookup_key=form.get("lookup_key"),
            metadata=form.get("metadata", {}),
            product=form["product"],
            recurring={
                "interval": recurring["interval"],
                "interval_count": integer(recurring.get("interval_count", 1), "interval_count"),
                "meter": meter,
                "usage_type": recurring.get("usage_type", "licensed"),
            },
            type="recurring",
            **fields,
        )

    def refuses_meterless(self) -> bool:
        """Say whether old versions make no metered price without a meter any more."""
        return False

    def free_lookup_key(self, form: Record) -> None:
        """Take the lookup key from the price that has it, if the form asks for that."""
        for price in self.all("price"):
            if form.get("lookup_key") and price["lookup_key"] == form["lookup_key"]:
                if form.get("transfer_lookup_key") != "true":
                    message = f"A price with the lookup key `{price['lookup_key']}` already exists."
                    raise StripeError(400, message, "lookup_key")
                price["lookup_key"] = None
