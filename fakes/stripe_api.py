"""A stand-in of the part of Stripe's API around metered usage. State lives in memory."""

import re
import sys
import time
from collections.abc import Callable

from flask import Flask, Response, jsonify, request

from fakes import stripe_render as render
from fakes.pages import Beside, stripe
from fakes.serving import Faults, serve
from fakes.stripe_accounts import Accounts, account_of
from fakes.stripe_controls import add_controls
from fakes.stripe_endpoints import add_destinations, add_endpoints
from fakes.stripe_events import add_events
from fakes.stripe_http import Api, in_bounds
from fakes.stripe_store import BASIL, Clock, Record, StripeError, integer, is_true

__all__ = ["Api", "create_app"]

TEST_KEY = re.compile(r"Bearer (sk|rk|sk_org)_test_\w+")
VERSION = re.compile(r"\d{4}-\d\d-\d\d(\.[a-z]+)?")
ENDED = ("canceled", "incomplete_expired")


def shown(kind: str) -> Callable[[Record], Record]:
    """Return how a simple object is shown."""
    hidden = {"metadata"} if kind == "test_helpers.test_clock" else set()
    return lambda record: {
        "object": kind,
        **{key: value for key, value in record.items() if key not in hidden},
    }


def create_app() -> Flask:
    """Build the stand-in: the key's own account, and others as calls name them."""
    clock = Clock()
    app = account_app(clock)
    accounts = Accounts(app.wsgi_app, lambda name: account_app(clock, name))
    app.extensions["accounts"] = accounts
    pages = stripe.create_pages(app.extensions["api"])
    app.wsgi_app = Beside(accounts, pages)  # type: ignore[method-assign]
    return app


def account_app(clock: Clock, name: str | None = None) -> Flask:
    """Build one account; only the key's own has no name."""
    app = Flask("fakes.stripe_api", static_folder=None)
    api, faults = Api(clock, name), Faults()
    app.extensions["api"] = api
    faults.install(app, api.account.now)
    add_guards(app, api)
    add_catalog(app, api)
    add_subscriptions(app, api)
    add_schedules(app, api)
    add_items(app, api)
    add_invoices(app, api)
    add_usage(app, api)
    add_meters(app, api)
    add_time(app, api)
    add_events(app, api)
    add_endpoints(app, api)
    add_destinations(app, api)
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
        check_account(api, key)
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


def check_account(api: Api, key: str) -> None:
    """Refuse an account that there is not, and an organization's key without an account."""
    if key.startswith("Bearer sk_org_"):  # docs.stripe.com/keys/organization-api-keys
        for header in ("Stripe-Context", "Stripe-Version"):
            if header not in request.headers:
                raise StripeError(400, f"Organization API keys need the {header} header.")
    name = account_of(request.environ)
    if name != api.name:
        message = f"The provided key does not have access to account '{name}'."
        raise StripeError(403, message, code="account_invalid")


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
        query = api.filters("active")
        found = account.all("product")[::-1]
        if "active" in query:
            found = [each for each in found if each["active"] == is_true(query["active"])]
        return api.page(found, shown("product"))

    @app.post("/v1/products/<key>")
    def update_product(key: str) -> Record:
        found = account.get("product", key)
        found["active"] = is_true(api.form("product update").get("active", found["active"]))
        return shown("product")(found)

    @app.get("/v1/products/<key>")
    def product(key: str) -> Record:
        return shown("product")(account.get("product", key))

    @app.post("/v1/prices")
    def create_price() -> Record:
        return api.show_price(account.create_price(api.form("price"), api.version))

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
        return api.page(found, api.show_price)

    @app.post("/v1/prices/<key>")
    def update_price(key: str) -> Record:
        found = account.get("price", key)
        found["active"] = is_true(api.form("price update").get("active", found["active"]))
        return api.show_price(found)

    @app.get("/v1/prices/<key>")
    def price(key: str) -> Record:
        return api.show_price(account.get("price", key))

    @app.post("/v1/customers")
    def create_customer() -> Record:
        form: Record = {"test_clock": None, **api.form("customer")}
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
    """Serve subscriptions."""
    account = api.account

    def is_listed(subscription: Record, query: Record) -> bool:
        """Say whether a list shows a subscription: test clocks' are shown if asked for."""
        status = query.get("status")
        asked = account.lists_test_clocks or query.keys() & {"customer", "test_clock"}
        if subscription["test_clock"] and not asked:
            return False
        if status is None and subscription["status"] == "canceled":
            return False
        ended = status == "ended" and subscription["status"] in ENDED
        return (
            (status in (None, "all", subscription["status"]) or ended)
            and query.get("customer", subscription["customer"]) == subscription["customer"]
            and query.get("test_clock", subscription["test_clock"]) == subscription["test_clock"]
            and in_bounds(query, "created", subscription["created"])
            and ("price" not in query or query["price"] in prices(subscription))
        )

    def prices(subscription: Record) -> list[str]:
        return [item["price"] for item in account.items(subscription)]

    @app.post("/v1/subscriptions")
    def create_subscription() -> Record:
        form = api.form("subscription")
        return api.show_subscription(account.create_subscription(form, api.version))

    @app.get("/v1/subscriptions")
    def subscriptions() -> Response:
        query = api.filters("created", "customer", "price", "status", "test_clock")
        every = account.all("subscription")[::-1]
        found = [subscription for subscription in every if is_listed(subscription, query)]
        return api.page(found, api.show_subscription, every)

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


def add_schedules(app: Flask, api: Api) -> None:
    """Serve schedules of subscriptions that run: what a second phase has."""
    account = api.account

    @app.post("/v1/subscription_schedules")
    def create_schedule() -> Record:
        key = api.form("schedule").get("from_subscription")
        found = account.get("subscription", key, "from_subscription")
        return shown("subscription_schedule")(account.schedule(found))

    @app.post("/v1/subscription_schedules/<key>")
    def update_schedule(key: str) -> Record:
        form = api.form("schedule update")
        found = account.update_schedule(account.get("subscription_schedule", key), form)
        return shown("subscription_schedule")(found)


def add_items(app: Flask, api: Api) -> None:
    """Serve subscription items; a change of one is an update of its subscription."""
    account = api.account

    def update(subscription: Record, entry: Record) -> None:
        form: Record = {"items": [entry]}
        if "proration_behavior" in entry:
            form["proration_behavior"] = entry.pop("proration_behavior")
        account.update_subscription(subscription, form)

    @app.get("/v1/subscription_items")
    def subscription_items() -> Response:
        key = api.filters("subscription").get("subscription")
        found = account.get("subscription", key, "subscription")
        return api.page(account.items(found), api.show_item)

    @app.post("/v1/subscription_items")
    def create_subscription_item() -> Record:
        form = api.form("subscription item")
        found = account.get("subscription", form.pop("subscription", None), "subscription")
        update(found, form)
        return api.show_item(account.items(found)[-1])

    @app.get("/v1/subscription_items/<key>")
    def subscription_item(key: str) -> Record:
        return api.show_item(account.get("subscription_item", key))

    @app.post("/v1/subscription_items/<key>")
    def update_subscription_item(key: str) -> Record:
        item = account.get("subscription_item", key)
        form = api.form("subscription item update")
        update(account.get("subscription", item["subscription"]), {**form, "id": key})
        return api.show_item(item)

    @app.delete("/v1/subscription_items/<key>")
    def delete_subscription_item(key: str) -> Record:
        item = account.get("subscription_item", key)
        form = api.form("subscription item deletion")
        found = account.get("subscription", item["subscription"])
        update(found, {**form, "id": key, "deleted": "true"})
        return {"id": key, "object": "subscription_item", "deleted": True}


def add_invoices(app: Flask, api: Api) -> None:
    """Serve invoices, their lines, and the items that wait for one."""
    account = api.account

    @app.get("/v1/invoices")
    def invoices() -> Response:
        same = ("collection_method", "customer", "status", "subscription")
        query = api.filters("created", *same)
        found = [
            invoice
            for invoice in account.all("invoice")[::-1]
            if all(query.get(n, invoice[n]) == invoice[n] for n in same)
            and in_bounds(query, "created", invoice["created"])
        ]
        return api.page(found, api.show_invoice)

    @app.post("/v1/invoices/create_preview")
    def create_preview() -> Record:
        form = api.form("invoice preview")
        found = account.get("subscription", form.get("subscription"), "subscription")
        return api.show_invoice(account.preview(found))

    @app.get("/v1/invoices/<key>")
    def invoice(key: str) -> Record:
        return api.show_invoice(account.get("invoice", key))

    @app.post("/v1/invoices/<key>")
    def update_invoice(key: str) -> Record:
        form = api.form("invoice")
        return api.show_invoice(account.update_invoice(account.get("invoice", key), form))

    @app.get("/v1/invoices/<key>/lines")
    def invoice_lines(key: str) -> Response:
        api.filters()
        found = account.get("invoice", key)
        return api.page(render.render_lines(found, api.price, api.version), dict)

    @app.post("/v1/invoiceitems")
    def create_invoice_item() -> Record:
        return api.show_invoice_item(account.create_invoice_item(api.form("invoice item")))

    @app.get("/v1/invoiceitems")
    def invoice_items() -> Response:
        query = api.filters("customer", "pending")
        found = [
            item
            for item in account.all("invoiceitem")[::-1]
            if query.get("customer", item["customer"]) == item["customer"]
            and ("pending" not in query or is_true(query["pending"]) == (item["invoice"] is None))
        ]
        return api.page(found, api.show_invoice_item)

    @app.get("/v1/invoiceitems/<key>")
    def invoice_item(key: str) -> Record:
        return api.show_invoice_item(account.get("invoiceitem", key))


def add_usage(app: Flask, api: Api) -> None:
    """Serve usage records and their summaries, which end with basil."""
    account = api.account

    def legacy_item(key: str) -> Record:
        if api.version >= BASIL:
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
        return show(meters.set_status(account.get("meter", key), "inactive"))

    @app.post("/v1/billing/meters/<key>/reactivate")
    def reactivate_meter(key: str) -> Record:
        return show(meters.set_status(account.get("meter", key), "active"))

    @app.get("/v1/billing/meters/<key>/event_summaries")
    def event_summaries(key: str) -> Response:
        query = api.filters("customer", "end_time", "start_time")
        return api.page([meters.summary(account.get("meter", key)["id"], query)], dict)

    @app.post("/v1/billing/meter_events")
    def send_meter_event() -> Record:
        return meters.send(api.form("meter event"))


def add_time(app: Flask, api: Api) -> None:
    """Serve test clocks."""
    account = api.account

    def show(clock: Record) -> Record:
        """Return a test clock, which takes its time to advance."""
        busy = clock["ready_at"] > time.monotonic()
        fields = {name: value for name, value in clock.items() if name != "ready_at"}
        fields["status"] = "advancing" if busy else "ready"
        return shown("test_helpers.test_clock")(fields)

    @app.post("/v1/test_helpers/test_clocks")
    def create_test_clock() -> Record:
        form = api.form("test clock")
        at = integer(form.get("frozen_time"), "frozen_time")
        return show(
            account.add("test_clock", "clock", frozen_time=at, name=form.get("name"), ready_at=0.0)
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
        at = integer(api.form("test clock").get("frozen_time"), "frozen_time")
        return show(account.advance(account.get("test_clock", key), at))

    @app.delete("/v1/test_helpers/test_clocks/<key>")
    def delete_test_clock(key: str) -> Record:
        account.delete_test_clock(account.get("test_clock", key))
        return {"id": key, "object": "test_helpers.test_clock", "deleted": True}


if __name__ == "__main__":
    serve(create_app(), "Stripe", sys.argv[1:])
