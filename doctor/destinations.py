"""Where the account sends its events: whether those that are needed come here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from billing.stripe_api import (
    Json,
    NotReported,
    ReportFailed,
    StripeConnection,
    call,
    has_id,
    list_all,
)
from doctor.findings import Finding, fine, to_do
from doctor.reached import lacks_a_right

SNAPSHOT_TYPES = (
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.created",
)
THIN_TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
ALL_TYPES = "*"
PATH = "/webhook"
LISTENS = "or leave this out with --no-webhooks, as where `stripe listen` runs"


@dataclass(frozen=True)
class Destination:
    """A webhook endpoint, or an event destination that leads to one."""

    id: str
    address: str
    types: frozenset[str]
    is_thin: bool
    is_enabled: bool

    @property
    def shown(self) -> str:
        """Return the address without what can be a password in it."""
        url = urlsplit(self.address)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    def leads_to(self, address: str | None) -> bool:
        """Say whether it leads to an address, or as it seems to a service like this one."""
        if address is not None:
            return self.address.rstrip("/") == address.rstrip("/")
        return urlsplit(self.address).path.rstrip("/").endswith(PATH)


def read_destination(fields: Json, address: object, *, is_thin: bool = False) -> Destination:
    """Return an entry of one of the two lists. Raises ReportFailed."""
    types = fields.get("enabled_events")
    if not isinstance(address, str) or not isinstance(types, list):
        raise ReportFailed("Stripe's answer is no list of webhook endpoints")
    is_enabled = fields.get("status") == "enabled"
    return Destination(str(fields["id"]), address, frozenset(types), is_thin, is_enabled)


def fetch_destinations(account: StripeConnection) -> list[Destination]:
    """Read both lists, the second's first 100. Raises ReportRefused or ReportFailed.

    (docs.stripe.com/api/webhook_endpoints/list, docs.stripe.com/api/v2/core/event_destinations)
    """
    found = [
        read_destination(fields, fields.get("url"))
        for fields in list_all(account, "/v1/webhook_endpoints")
    ]
    path, query = "/v2/core/event_destinations", {"include": ["webhook_endpoint.url"]}
    listed: Any = call(account, "get", path, limit=100, **query).get("data")
    if not isinstance(listed, list) or not all(map(has_id, listed)):
        raise ReportFailed("Stripe's answer is no list of event destinations")
    for fields in listed:
        endpoint = fields.get("webhook_endpoint")
        if isinstance(endpoint, dict):
            is_thin = fields.get("event_payload") == "thin"
            found.append(read_destination(fields, endpoint.get("url"), is_thin=is_thin))
    return found


def check_destinations(
    account: StripeConnection, address: str | None, secrets: int, *, uses_billing_meters: bool
) -> Iterator[Finding]:
    """See that each type that is needed comes here, and that there are secrets enough for it."""
    try:
        every = fetch_destinations(account)
    except NotReported as error:
        reason = "STRIPE_KEY may not read them" if lacks_a_right(error) else str(error)
        yield to_do("webhooks", f"{reason}: give it webhook_read, {LISTENS}")
        return
    here = [one for one in every if one.leads_to(address)]
    where = address or f"an address that ends in {PATH}"
    yield check_types("webhooks", [one for one in here if not one.is_thin], SNAPSHOT_TYPES, where)
    thin = [one for one in here if one.is_thin]
    if uses_billing_meters:
        yield check_types("thin events", thin, THIN_TYPES, where)
    kinds = len({one.is_thin for one in here if one.is_enabled})
    if secrets < kinds:
        yield to_do("webhooks", f"STRIPE_WEBHOOK_SECRET has {secrets} of {kinds} secrets: add each")


def check_types(
    check: str, here: Iterable[Destination], wanted: tuple[str, ...], where: str
) -> Finding:
    """See that what is enabled has all of the types."""
    disabled = [one.id for one in here if not one.is_enabled]
    enabled = [one for one in here if one.is_enabled]
    come = frozenset[str]().union(*(one.types for one in enabled))
    lacking = [kind for kind in wanted if kind not in come and ALL_TYPES not in come]
    names = ", ".join(one.id for one in enabled)
    if not lacking:
        return fine(check, f"{names} to {', '.join(sorted({one.shown for one in enabled}))}")
    if disabled:
        return to_do(check, f"{', '.join(disabled)} is disabled: enable it in Stripe")
    if not enabled:
        kind = "event destination with thin payloads" if wanted == THIN_TYPES else "endpoint"
        return to_do(check, f"make an {kind} to {where} for {', '.join(wanted)}, {LISTENS}")
    return to_do(check, f"{names} lacks {', '.join(lacking)}: add it in Stripe")
