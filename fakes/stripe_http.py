"""How the Stripe stand-in reads calls and answers them: versions, forms, lists, events."""

import itertools
import operator
import re
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from flask import Response, jsonify, request

from fakes import stripe_render as render
from fakes.stripe_billing import Account
from fakes.stripe_store import Clock, Record, StripeError, integer, missing
from fakes.stripe_webhooks import Endpoint

NEWEST_VERSION = "2026-10-28.endive"
NESTED = re.compile(r"\[([^\]]*)\]")
PARAMETERS = {
    "product": {"name", "description", "metadata", "unit_label"},
    "product update": {"active"},
    "price update": {"active"},
    "invoice preview": {"subscription"},
    "schedule": {"from_subscription"},
    "schedule update": {"end_behavior", "phases"},
    "price": {
        "billing_scheme", "currency", "lookup_key", "metadata", "nickname", "product",
        "recurring", "tiers", "tiers_mode", "transfer_lookup_key", "transform_quantity",
        "unit_amount", "unit_amount_decimal",
    },
    "customer": {"description", "email", "metadata", "name", "test_clock"},
    "subscription": {
        "backdate_start_date", "billing_cycle_anchor", "billing_mode", "cancel_at",
        "cancel_at_period_end", "customer", "items", "metadata", "payment_behavior",
        "proration_behavior", "trial_end", "trial_period_days",
    },
    "subscription update": {
        "billing_cycle_anchor", "cancel_at", "cancel_at_period_end", "items", "metadata",
        "proration_behavior", "trial_end",
    },
    "subscription cancellation": {"invoice_now", "prorate"},
    "subscription item": {
        "metadata", "price", "proration_behavior", "quantity", "subscription",
    },
    "subscription item update": {"metadata", "price", "proration_behavior", "quantity"},
    "subscription item deletion": {"clear_usage", "proration_behavior"},
    "invoice item": {
        "amount", "currency", "customer", "description", "metadata", "period", "price",
        "pricing", "quantity", "quantity_decimal", "subscription", "tax_behavior",
        "unit_amount_decimal",
    },
    "invoice": {"auto_advance", "automatically_finalizes_at"},
    "usage record": {"action", "quantity", "timestamp"},
    "meter": {
        "customer_mapping", "default_aggregation", "dimension_payload_keys", "display_name",
        "event_name", "event_time_window", "value_settings",
    },
    "meter event": {"event_name", "identifier", "payload", "timestamp"},
    "test clock": {"frozen_time", "name"},
    "webhook endpoint": {
        "api_version", "connect", "description", "enabled_events", "metadata", "url",
    },
    "webhook endpoint update": {
        "description", "disabled", "enabled_events", "metadata", "url",
    },
}  # fmt: skip
BOUNDS: dict[str, Callable[[int, int], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
PAGING = {"limit", "starting_after", "ending_before"}


def nested_form(flat: list[tuple[str, str]]) -> Record:
    """Return `items[0][price]=p` as {"items": [{"price": "p"}]}, as Stripe reads forms."""
    tree: Record = {}
    for name, value in flat:
        first = name.split("[", 1)[0]
        path = [first, *NESTED.findall(name)]
        node = tree
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1] or str(len(node))] = value
    return {name: as_lists(value) for name, value in tree.items()}


def as_lists(node: Any) -> Any:
    """Turn objects whose keys are 0, 1, … into lists."""
    if not isinstance(node, dict):
        return node
    children = {name: as_lists(value) for name, value in node.items()}
    if children and all(name.isdigit() for name in children):
        return [children[name] for name in sorted(children, key=int)]
    return children


class Api:
    """One account behind HTTP: versions, keys, forms, lists and idempotency."""

    def __init__(self, clock: Clock, name: str | None) -> None:
        self.name = name
        self.lock = threading.RLock()
        self.account = Account(self.tell)
        self.account.clock = clock  # the time of all accounts is one
        self.endpoint = Endpoint(self.accepted, self.account.now, name)
        self.busy: set[tuple[str, ...]] = set()
        self.requests = itertools.count(1)
        self.replies: dict[str, tuple[Record, int, Record]] = {}

    def tell(self, kind: str, after: Record, before: Record) -> bool:
        """Send an event in the shape of a version; say whether it goes anywhere."""

        def change(version: str) -> Record:
            if kind == "invoice.created":
                new = old = render.render_invoice(after, self.price, version)
            else:
                new = render.render_subscription(after, version)
                old = render.render_subscription(before, version)
            previous = render.previous_attributes(old, new)
            return {"object": deepcopy(new), "previous_attributes": previous}

        self.endpoint.emit(kind, change)
        return self.endpoint.takes(kind)

    def accepted(self, event: Record) -> None:
        """Note that an event was taken, which lets the hour of a draft begin."""
        self.endpoint.taken.add(event["id"])
        if event["type"] == "invoice.created":
            with self.lock:
                invoice = self.account.get("invoice", event["data"]["object"]["id"])
                if invoice["accepted_at"] is None:
                    invoice["accepted_at"] = self.account.now(invoice["test_clock"])

    @property
    def version(self) -> str:
        """Return the request's API version."""
        return request.headers.get("Stripe-Version", NEWEST_VERSION)

    def form(self, kind: str) -> Record:
        """Return the request's form; an unknown parameter is an error, as with Stripe."""
        form = nested_form([*request.form.items(multi=True), *request.args.items(multi=True)])
        for name in form.keys() - PARAMETERS[kind] - {"expand"}:
            raise StripeError(400, f"Received unknown parameter: {name}", name, "parameter_unknown")
        return form

    def filters(self, *names: str) -> Record:
        """Return the request's query; an unknown parameter is an error, as with Stripe."""
        query = nested_form(list(request.args.items(multi=True)))
        for name in query.keys() - {*names, *PAGING, "expand"}:
            raise StripeError(400, f"Received unknown parameter: {name}", name, "parameter_unknown")
        return query

    def page(
        self,
        found: list[Record],
        render: Callable[[Record], Record],
        every: list[Record] | None = None,
    ) -> Response:
        """Return a page of a list; a cursor may be one of `every`, found or not."""
        query = request.args
        limit = integer(query.get("limit", 10), "limit")
        if not 1 <= limit <= 100:
            raise StripeError(400, "This value must be between 1 and 100.", "limit")
        ids = [record["id"] for record in every or found]
        kept = {record["id"]: record for record in found}
        start, end = 0, len(ids)
        for name in ("starting_after", "ending_before"):
            if name in query and query[name] not in ids:
                raise missing("object", query[name], name)
        if "starting_after" in query:
            start = ids.index(query["starting_after"]) + 1
        if "ending_before" in query:
            end = ids.index(query["ending_before"])
        left = [kept[key] for key in ids[start:end] if key in kept]
        page = left[-limit:] if "ending_before" in query else left[:limit]
        data, more = [render(record) for record in page], len(left) > limit
        return jsonify(object="list", data=data, has_more=more, url=request.path)

    def expands(self, name: str) -> bool:
        """Say whether the request wants a field as an object, in one answer or in a list's."""
        wanted = nested_form([*request.form.items(multi=True), *request.args.items(multi=True)])
        expand = wanted.get("expand", [])
        return name in expand or f"data.{name}" in expand

    def show_subscription(self, subscription: Record) -> Record:
        """Return a subscription in the request's version."""
        shown = render.render_subscription(self.account.state(subscription), self.version)
        if shown["latest_invoice"] and self.expands("latest_invoice"):
            invoice = self.account.get("invoice", shown["latest_invoice"])
            shown["latest_invoice"] = self.show_invoice(invoice)
        return shown

    def show_price(self, price: Record) -> Record:
        """Return a price."""
        return render.render_price(price, self.expands("tiers"))

    def show_item(self, item: Record) -> Record:
        """Return a subscription item in the request's version."""
        subscription = self.account.get("subscription", item["subscription"])
        price = self.account.get("price", item["price"])
        return render.render_item({**item, "price": price}, subscription, self.version)

    def show_invoice(self, invoice: Record) -> Record:
        """Return an invoice in the request's version, with its subscription if asked for."""
        shown = render.render_invoice(invoice, self.price, self.version)
        if invoice["subscription"] and self.expands("parent.subscription_details.subscription"):
            subscription = self.account.get("subscription", invoice["subscription"])
            details = shown["parent"]["subscription_details"]
            details["subscription"] = self.show_subscription(subscription)
        return shown

    def show_invoice_item(self, item: Record) -> Record:
        """Return an invoice item in the request's version."""
        return render.render_invoice_item(item, self.price, self.version)

    def price(self, key: str) -> Record:
        """Return a price."""
        return self.account.get("price", key)


def in_bounds(query: Record, name: str, moment: int) -> bool:
    """Say whether a time is one that a query's `created` and the like ask for."""
    wanted = query.get(name)
    if wanted is None:
        return True
    if not isinstance(wanted, dict):
        return moment == integer(wanted, name)
    for bound, value in wanted.items():
        if bound not in BOUNDS:
            raise StripeError(400, f"Received unknown parameter: {name}[{bound}]", name)
        if not BOUNDS[bound](moment, integer(value, f"{name}[{bound}]")):
            return False
    return True
