"""A stand-in of the part of Stripe's API around metered usage. State lives in memory."""

import itertools
import re
import sys
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from flask import Flask, Response, jsonify, request

from fakes import stripe_billing as billing
from fakes.serving import Faults, serve
from fakes.stripe_billing import Account, Record, StripeError
from fakes.stripe_webhooks import Endpoint

NEWEST_VERSION = "2026-10-28.endive"
TEST_KEY = re.compile(r"Bearer (sk|rk)_test_\w+")
VERSION = re.compile(r"\d{4}-\d\d-\d\d(\.[a-z]+)?")
NESTED = re.compile(r"\[([^\]]*)\]")
PARAMETERS = {
    "product": {"name", "description", "metadata", "unit_label"},
    "price": {
        "currency", "lookup_key", "metadata", "nickname", "product", "recurring",
        "transfer_lookup_key", "unit_amount",
    },
    "customer": {"description", "email", "metadata", "name", "test_clock"},
    "subscription": {"billing_mode", "customer", "items", "metadata"},
    "subscription update": {
        "billing_cycle_anchor", "cancel_at", "cancel_at_period_end", "items", "metadata",
        "proration_behavior",
    },
    "subscription cancellation": {"invoice_now", "prorate"},
    "usage record": {"action", "quantity", "timestamp"},
    "meter": {
        "customer_mapping", "default_aggregation", "display_name", "event_name",
        "value_settings",
    },
    "meter event": {"event_name", "identifier", "payload", "timestamp"},
    "test clock": {"frozen_time", "name"},
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

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.endpoint = Endpoint(self.accepted)
        self.account = Account(self.tell)
        self.busy: set[tuple[str, ...]] = set()
        self.requests = itertools.count(1)
        self.replies: dict[str, tuple[Record, int, Record]] = {}

    def tell(self, kind: str, after: Record, before: Record) -> bool:
        """Send an event in the shape of the endpoint's version; say whether it goes anywhere."""
        version = self.endpoint.api_version
        if kind == "invoice.created":
            new = old = billing.render_invoice(after, self.price, version)
        else:
            new = billing.render_subscription(after, version)
            old = billing.render_subscription(before, version)
        self.endpoint.emit(kind, deepcopy(new), billing.previous_attributes(old, new))
        return self.endpoint.takes(kind)

    def accepted(self, event: Record) -> None:
        """Let the hour of a draft begin when its event was taken."""
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
        limit = billing.integer(query.get("limit", 10), "limit")
        if not 1 <= limit <= 100:
            raise StripeError(400, "This value must be between 1 and 100.", "limit")
        ids = [record["id"] for record in every or found]
        kept = {record["id"]: record for record in found}
        start, end = 0, len(ids)
        for name in ("starting_after", "ending_before"):
            if name in query and query[name] not in ids:
                raise billing.missing("object", query[name], name)
        if "starting_after" in query:
            start = ids.index(query["starting_after"]) + 1
        if "ending_before" in query:
            end = ids.index(query["ending_before"])
        left = [kept[key] for key in ids[start:end] if key in kept]
        page = left[-limit:] if "ending_before" in query else left[:limit]
        data, more = [render(record) for record in page], len(left) > limit
        return jsonify(object="list", data=data, has_more=more, url=request.path)

    def show_subscription(self, subscription: Record) -> Record:
        """Return a subscription in the request's version."""
        return billing.render_subscription(self.account.state(subscription), self.version)

    def show_item(self, item: Record) -> Record:
        """Return a subscription item in the request's version."""
        subscription = self.account.get("subscription", item["subscription"])
        price = self.account.get("price", item["price"])
        return billing.render_item({**item, "price": price}, subscription, self.version)

    def show_invoice(self, invoice: Record) -> Record:
        """Return an invoice in the request's version."""
        return billing.render_invoice(invoice, self.price, self.version)

    def price(self, key: str) -> Record:
        """Return a price."""
        return self.account.get("price", key)


def shown(kind: str) -> Callable[[Record], Record]:
    """Return how a simple object is shown."""
    hidden = {"metadata"} if kind == "test_helpers.test_clock" else set()
    return lambda record: {
        "object": kind,
        **{key: value for key, value in record.items() if key not in hidden},
    }


def create_app() -> Flask:
    """Build the stand-in."""
    app = Flask("fakes.stripe_api", static_folder=None)
    api, faults = Api(), Faults()
    app.extensions["api"] = api
    faults.install(app)
    add_guards(app, api)
    add_catalog(app, api)
    add_subscriptions(app, api)
    add_usage(app, api)
    add_meters(app, api)
    add_time(app, api)
    add_controls(app, api)
    return app


def add_guards(app: Flask, api: Api) -> None:
    """Check keys, replay idempotent calls, take one call at a time, and answer errors."""

    @app.before_request
    def enter() -> Response | None:
        if request.path.startswith("/_fake/"):
            return None
        key = request.headers.get("Authorization", "")
        if not TEST_KEY.fullmatch(key):
            message = f"Invalid API Key provided: {'*' * 8}{key[-4:]}" if key else "No API key."
            raise StripeError(401, message)
        if not VERSION.fullmatch(api.version):
            raise StripeError(400, f"Invalid Stripe API version: {api.version}")
        call_alone(api)
        api.lock.acquire()
        request.environ["fake.locked"] = True
        api.account.catch_up()
        return replay(api)

    @app.after_request
    def remember(response: Response) -> Response:
        key = request.headers.get("Idempotency-Key")
        real = request.environ.get("fake.locked")
        if key and real and request.method == "POST" and response.status_code < 400:
            call = {"path": request.path, "form": request.form.to_dict()}
            api.replies.setdefault(key, (call, response.status_code, response.get_json()))
        response.headers["Request-Id"] = f"req_{next(api.requests):08d}"
        return response

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        if request.environ.pop("fake.locked", False):
            api.lock.release()
        api.busy.discard(request.environ.pop("fake.alone", ()))

    @app.errorhandler(StripeError)
    def failed(error: StripeError) -> tuple[Response, int]:
        return jsonify(error=error.body), error.status

    @app.errorhandler(404)
    def unknown(_: Exception) -> tuple[Response, int]:
        message = f"Unrecognized request URL ({request.method}: {request.path})."
        return jsonify(error=StripeError(404, message).body), 404


def call_alone(api: Api) -> None:
    """Refuse a second meter event of one customer and meter while the first is under way."""
    if request.path != "/v1/billing/meter_events":
        return
    key = tuple(request.form[name] for name in request.form if "customer" in name)
    key += (request.form.get("event_name", ""),)
    if key in api.busy:
        message = "Another call for this customer and meter is under way."
        raise StripeError(409, message, code="lock_timeout")
    api.busy.add(key)
    request.environ["fake.alone"] = key


def replay(api: Api) -> Response | None:
    """Return the first answer to an idempotency key, if there was one."""
    key = request.headers.get("Idempotency-Key", "")
    if request.method != "POST" or key not in api.replies:
        return None
    call, status, body = api.replies[key]
    if call != {"path": request.path, "form": request.form.to_dict()}:
        message = "Keys for idempotent requests can only be used with the same parameters."
        raise StripeError(400, message, code="idempotency")
    response = jsonify(body)
    response.status_code = status
    response.headers["Idempotent-Replayed"] = "true"
    return response


def add_catalog(app: Flask, api: Api) -> None:
    """Serve products, prices and customers."""
    account = api.account

    @app.post("/v1/products")
    def create_product() -> Record:
        form = api.form("product")
        if not form.get("name"):
            raise StripeError(400, "Missing required param: name.", "name", "parameter_missing")
        return shown("product")(account.add("product", "prod", active=True, **form))

    @app.get("/v1/products")
    def products() -> Response:
        api.filters()
        return api.page(account.all("product")[::-1], shown("product"))

    @app.get("/v1/products/<key>")
    def product(key: str) -> Record:
        return shown("product")(account.get("product", key))

    @app.post("/v1/prices")
    def create_price() -> Record:
        return billing.render_price(account.create_price(api.form("price"), api.version))

    @app.get("/v1/prices")
    def prices() -> Response:
        query = api.filters("active", "lookup_keys", "product")
        keys = query.get("lookup_keys")
        found = [
            price
            for price in account.all("price")[::-1]
            if (keys is None or price["lookup_key"] in keys)
            and query.get("active", "true") == str(price["active"]).lower()
            and query.get("product", price["product"]) == price["product"]
        ]
        return api.page(found, billing.render_price)

    @app.get("/v1/prices/<key>")
    def price(key: str) -> Record:
        return billing.render_price(account.get("price", key))

    @app.post("/v1/customers")
    def create_customer() -> Record:
        form = {"test_clock": None, **api.form("customer")}
        if form["test_clock"]:
            account.get("test_clock", form["test_clock"], "test_clock")
        return shown("customer")(account.add("customer", "cus", **form))

    @app.get("/v1/customers")
    def customers() -> Response:
        api.filters()
        return api.page(account.all("customer")[::-1], shown("customer"))

    @app.get("/v1/customers/<key>")
    def customer(key: str) -> Record:
        return shown("customer")(account.get("customer", key))


def add_subscriptions(app: Flask, api: Api) -> None:
    """Serve subscriptions, their items and invoices."""
    account = api.account

    def show_expanded(subscription: Record) -> Record:
        shown = api.show_subscription(subscription)
        if "data.latest_invoice" in request.args.values():
            shown["latest_invoice"] = api.show_invoice(
                account.get("invoice", subscription["latest_invoice"])
            )
        return shown

    @app.post("/v1/subscriptions")
    def create_subscription() -> Record:
        form = api.form("subscription")
        return api.show_subscription(account.create_subscription(form, api.version))

    @app.get("/v1/subscriptions")
    def subscriptions() -> Response:
        query = api.filters("customer", "status")
        status = query.get("status")
        found = [
            subscription
            for subscription in account.all("subscription")[::-1]
            if query.get("customer", subscription["customer"]) == subscription["customer"]
            and (status == "all" or (status or "active") == subscription["status"])
        ]
        return api.page(found, show_expanded, account.all("subscription")[::-1])

    @app.get("/v1/subscriptions/<key>")
    def subscription(key: str) -> Record:
        return api.show_subscription(account.get("subscription", key))

    @app.post("/v1/subscriptions/<key>")
    def update_subscription(key: str) -> Record:
        found = account.get("subscription", key)
        form = api.form("subscription update")
        return api.show_subscription(account.update_subscription(found, form))

    @app.delete("/v1/subscriptions/<key>")
    def cancel_subscription(key: str) -> Record:
        found = account.get("subscription", key)
        form = api.form("subscription cancellation")
        return api.show_subscription(account.cancel_subscription(found, form))

    @app.get("/v1/subscription_items")
    def subscription_items() -> Response:
        key = api.filters("subscription").get("subscription")
        found = account.get("subscription", key, "subscription")
        items = [account.get("subscription_item", item) for item in found["items"]]
        return api.page(items, api.show_item)

    @app.get("/v1/invoices")
    def invoices() -> Response:
        query = api.filters("customer", "status", "subscription")
        found = [
            invoice
            for invoice in account.all("invoice")[::-1]
            if all(query.get(n, invoice[n]) == invoice[n] for n in query.keys() - PAGING)
        ]
        return api.page(found, api.show_invoice)

    @app.get("/v1/invoices/<key>")
    def invoice(key: str) -> Record:
        return api.show_invoice(account.get("invoice", key))

    @app.get("/v1/invoices/<key>/lines")
    def invoice_lines(key: str) -> Response:
        api.filters()
        found = account.get("invoice", key)
        return api.page(billing.render_lines(found, api.price, api.version), dict)


def add_usage(app: Flask, api: Api) -> None:
    """Serve usage records and their summaries, which end with basil."""
    account = api.account

    def legacy_item(key: str) -> Record:
        if api.version >= billing.BASIL:
            message = f"Unrecognized request URL ({request.method}: {request.path})."
            raise StripeError(404, message)
        return account.get("subscription_item", key, "subscription_item")

    @app.post("/v1/subscription_items/<key>/usage_records")
    def create_usage_record(key: str) -> Record:
        return account.create_usage_record(legacy_item(key), api.form("usage record"))

    @app.get("/v1/subscription_items/<key>/usage_record_summaries")
    def usage_record_summaries(key: str) -> Response:
        api.filters()
        return api.page(account.usage_summaries(legacy_item(key)), dict)


def add_meters(app: Flask, api: Api) -> None:
    """Serve Billing Meters, their events and summaries."""
    account, meters, show = api.account, api.account.meters, shown("billing.meter")

    @app.post("/v1/billing/meters")
    def create_meter() -> Record:
        return show(meters.create(api.form("meter"), api.version))

    @app.get("/v1/billing/meters")
    def list_meters() -> Response:
        query = api.filters("status")
        found = [m for m in account.all("meter") if query.get("status", m["status"]) == m["status"]]
        return api.page(found[::-1], show)

    @app.get("/v1/billing/meters/<key>")
    def meter(key: str) -> Record:
        return show(account.get("meter", key))

    @app.post("/v1/billing/meters/<key>/deactivate")
    def deactivate_meter(key: str) -> Record:
        found = account.get("meter", key)
        found["status"] = "inactive"
        return show(found)

    @app.get("/v1/billing/meters/<key>/event_summaries")
    def event_summaries(key: str) -> Response:
        query = api.filters("customer", "end_time", "start_time")
        return api.page([meters.summary(account.get("meter", key)["id"], query)], dict)

    @app.post("/v1/billing/meter_events")
    def send_meter_event() -> Record:
        return meters.send(api.form("meter event"))


def add_time(app: Flask, api: Api) -> None:
    """Serve test clocks."""
    account, show = api.account, shown("test_helpers.test_clock")

    @app.post("/v1/test_helpers/test_clocks")
    def create_test_clock() -> Record:
        form = api.form("test clock")
        at = billing.integer(form.get("frozen_time"), "frozen_time")
        return show(
            account.add(
                "test_clock", "clock", frozen_time=at, name=form.get("name"), status="ready"
            )
        )

    @app.get("/v1/test_helpers/test_clocks")
    def test_clocks() -> Response:
        api.filters()
        return api.page(account.all("test_clock")[::-1], show)

    @app.get("/v1/test_helpers/test_clocks/<key>")
    def test_clock(key: str) -> Record:
        return show(account.get("test_clock", key))

    @app.post("/v1/test_helpers/test_clocks/<key>/advance")
    def advance(key: str) -> Record:
        at = billing.integer(api.form("test clock").get("frozen_time"), "frozen_time")
        return show(account.advance(account.get("test_clock", key), at))


def add_controls(app: Flask, api: Api) -> None:
    """Serve what real Stripe has in its dashboard or not at all."""

    @app.post("/_fake/webhook")
    def configure_webhook() -> Record:
        with api.lock:
            api.endpoint.configure(request.get_json(), NEWEST_VERSION)
        return {}

    @app.post("/_fake/release")
    def release() -> Record:
        wanted = request.get_json()
        with api.lock:
            return {
                "released": api.endpoint.release(wanted.get("order", ""), wanted.get("copies", 1))
            }

    @app.post("/_fake/events/<key>/deliver")
    def deliver(key: str) -> Record:
        if key not in api.endpoint.events:
            raise billing.missing("event", key, "id")
        api.endpoint.deliver(key)
        return {}

    @app.get("/_fake/deliveries")
    def deliveries() -> Record:
        endpoint = api.endpoint
        with api.lock:
            return {"deliveries": list(endpoint.deliveries), "pending": endpoint.pending}

    @app.get("/_fake/events")
    def events() -> Record:
        with api.lock:
            return {"events": list(api.endpoint.events.values()), "held": api.endpoint.held}

    @app.post("/_fake/readings")
    def choose_readings() -> Record:
        with api.lock:
            api.account.meters.readings |= request.get_json()
            return api.account.meters.readings

    @app.get("/_fake/meter_errors")
    def meter_errors() -> Record:
        with api.lock:
            return {"errors": api.account.meters.errors}

    @app.post("/_fake/advance")
    def skip_time() -> Record:
        with api.lock:
            api.account.ahead += int(request.get_json()["seconds"])
            api.account.catch_up()
        return {"now": api.account.now()}


if __name__ == "__main__":
    serve(create_app(), "Stripe", sys.argv[1:])
