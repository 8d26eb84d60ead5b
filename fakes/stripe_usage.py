"""Usage records, the way to report usage of metered prices without a meter."""

from fakes.stripe_meters import Meters
from fakes.stripe_prices import Catalog, is_metered
from fakes.stripe_store import Record, StripeError, integer, missing

CLOSED = (
    "Cannot create the usage record with this timestamp because timestamps must be after the "
    "subscription's last invoice period (or current period start time)."
)
NOT_LEGACY = (
    "Cannot create a usage record for `{}` because it is not on the legacy metered billing "
    "system. Call /v1/billing/meter_events instead."
)
OVER = ("canceled", "incomplete_expired")


class Usage(Catalog):
    """The usage of subscription items: records by their second, and meters."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, dict[int, int]] = {}
        self.meters = Meters(self)

    def refuses_meterless(self) -> bool:
        """Say whether old versions make no metered price without a meter any more."""
        return bool(self.meters.readings["meterless"] == "refused")

    def create_usage_record(self, item: Record, form: Record) -> Record:
        """Set or increment the usage at one instant of the running period."""
        subscription = self.get("subscription", item["subscription"])
        if subscription["status"] in OVER:
            raise missing("subscription_item", item["id"], "subscription_item")
        price = self.get("price", item["price"])
        if not is_metered(price):
            raise StripeError(400, "Usage records need a metered price.", "subscription_item")
        if price["recurring"]["meter"]:
            raise StripeError(400, NOT_LEGACY.format(item["id"]), "subscription_item")
        quantity = integer(form.get("quantity"), "quantity")
        if quantity < 0:
            raise StripeError(400, "This value must be greater than or equal to 0.", "quantity")
        timestamp = self.record_time(item, form)
        action = form.get("action", "increment")
        if action not in ("set", "increment"):
            raise StripeError(400, "Invalid action: must be set or increment", "action")
        records = self.records[item["id"]]
        records[timestamp] = quantity + (records.get(timestamp, 0) if action == "increment" else 0)
        return {
            "id": f"mbur_{item['id']}_{timestamp}",
            "object": "usage_record",
            "livemode": False,
            "quantity": quantity,
            "subscription_item": item["id"],
            "timestamp": timestamp,
        }

    def record_time(self, item: Record, form: Record) -> int:
        """Return a record's timestamp, which lies in the item's running period."""
        now = self.now(item["test_clock"])
        given = form.get("timestamp", "now")
        timestamp = now if given == "now" else integer(given, "timestamp")
        if timestamp <= item["start"] and self.meters.readings["closed_record"] == "refused":
            raise StripeError(400, CLOSED, "timestamp")
        if timestamp > now:
            message = "Cannot create the usage record with a timestamp in the future."
            raise StripeError(400, message, "timestamp")
        return timestamp

    def usage(self, item: str, start: int, end: int) -> int:
        """Return the sum of the usage in (start, end]."""
        return sum(q for at, q in self.records[item].items() if start < at <= end)

    def usage_summaries(self, item: Record) -> list[Record]:
        """Return the usage of each period, the running one first."""
        since = item["start"] if item["counted_from"] is None else item["counted_from"] - 1
        total = self.usage(item["id"], since, item["end"])
        periods = [(None, item["start"], item["end"], total)]
        for invoice in reversed(self.all("invoice")):
            for line in invoice["lines"]:
                if line["item"] == item["id"] and line["start"] < line["end"]:
                    total = int(line["quantity"])
                    periods.append((invoice["id"], line["start"], line["end"], total))
        return [
            {
                "id": f"sis_{item['id']}_{start}",
                "object": "usage_record_summary",
                "invoice": invoice,
                "livemode": False,
                "period": {"start": start, "end": end},
                "subscription_item": item["id"],
                "total_usage": total,
            }
            for invoice, start, end, total in periods
        ]
