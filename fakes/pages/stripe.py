"""The pages of Stripe's stand-in: a part of its dashboard, under the dashboard's own paths."""

from collections.abc import Callable
from typing import Any

from flask import Flask, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from fakes.pages import create_room, when
from fakes.pages import stripe_forms as forms
from fakes.pages import stripe_words as words
from fakes.stripe_http import Api
from fakes.stripe_store import Record, StripeError, missing

NAVIGATION = (
    ("Subscriptions", "/test/subscriptions"),
    ("Customers", "/test/customers"),
    ("Products", "/test/products"),
    ("Invoices", "/test/invoices"),
    ("Webhook", "/test/webhooks"),
)
DONE = {
    "updated": "Updated. Stripe tells the service of it: see the deliveries.",
    "nothing": "Nothing was changed, so there is nothing to tell.",
    "canceled": "Canceled. Stripe tells the service of it: see the deliveries.",
    "advanced": "Time went on, and what came due has happened.",
    "resent": "The event is sent once more.",
    "priced": "The price is there. It can be chosen on a subscription's page.",
}
# A cell of a table or list: a text, and where it leads.
Cell = tuple[str, str]
Answer = Response | tuple[str, int]


def create_pages(api: Api) -> Flask:
    """Return the pages of an account."""
    app = create_room("fakes.pages.stripe", "/test", "/test/subscriptions")
    app.jinja_env.globals.update(stands_for="Stripe", other="OpenMeter", navigation=NAVIGATION)

    @app.before_request
    def enter() -> None:
        api.lock.acquire()
        request.environ["pages.locked"] = True
        api.account.catch_up()

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        if request.environ.pop("pages.locked", False):
            api.lock.release()

    @app.errorhandler(StripeError)
    def failed(error: StripeError) -> tuple[str, int]:
        return render_template("error.html", problem=error.body["message"]), error.status

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return render_template("error.html", problem=error.description), error.code or 500

    add_lists(app, api)
    add_objects(app, api)
    add_products(app, api)
    add_subscription(app, api)
    add_webhooks(app, api)
    return app


def said() -> str:
    """Return what was just done, if this page follows a form."""
    return DONE.get(request.args.get("done", ""), "")


def done(act: Callable[[], Any], page: Callable[[str], str], then: Callable[[Any], str]) -> Answer:
    """Do what a form asks and lead on, or show the page again with what Stripe says of it."""
    try:
        result = act()
    except StripeError as error:
        return page(str(error.body["message"])), error.status
    return redirect(then(result), 303)


def linked(kind: str, key: str, text: str = "") -> Cell:
    """Return an object's id or another text of it, and its page."""
    return text or key, f"/test/{kind}/{key}"


def table(heading: str, empty: str, columns: list[str], rows: list[list[Cell]]) -> Record:
    """Return a table of cells, and what is said if it has no rows."""
    return {"heading": heading, "empty": empty, "columns": columns, "rows": rows}


def subscription_table(api: Api, found: list[Record]) -> Record:
    """Return a table of subscriptions, the newest first."""
    account, rows = api.account, []
    for one in found[::-1]:
        customer = account.get("customer", one["customer"])
        items = [words.item_row(account, one, item) for item in account.items(one)]
        prices = "; ".join(item["price_text"] for item in items)
        usage = "; ".join(item["usage"] or "none" for item in items)
        row = [
            linked("subscriptions", one["id"]),
            linked("customers", one["customer"], customer.get("name", "")),
            (one["status"], ""),
            (prices, ""),
            (usage, ""),
            (when(one["due"]), ""),
        ]
        rows.append(row)
    columns = ["Subscription", "Customer", "Status", "Prices", "Usage so far", "Period ends (UTC)"]
    empty = "There is none yet: run setup_stripe.py with STRIPE_API_BASE set to this address."
    return table("Subscriptions", empty, columns, rows)


def invoice_table(invoices: list[Record]) -> Record:
    """Return a table of invoices."""
    rows = [
        [
            linked("invoices", one["id"]),
            linked("subscriptions", one["subscription"]) if one["subscription"] else ("none", ""),
            (one["status"], ""),
            (one["reason"], ""),
            (when(one["created"]), ""),
            (one["total_text"], ""),
        ]
        for one in invoices
    ]
    columns = ["Invoice", "Subscription", "Status", "Made at", "Created (UTC)", "Total"]
    return table("Invoices", "There is none yet.", columns, rows)


def price_table(api: Api, prices: list[Record]) -> Record:
    """Return a table of prices."""
    rows = [
        [linked("prices", price["id"]), (words.price_text(api.account, price), "")]
        for price in prices
    ]
    return table("Prices", "There is none yet.", ["Price", "What it costs"], rows)


def add_lists(app: Flask, api: Api) -> None:
    """Show subscriptions, customers, products and invoices."""
    account = api.account

    @app.get("/test/subscriptions")
    def subscriptions() -> str:
        found = subscription_table(api, account.all("subscription")) | {"heading": ""}
        return render_template("object.html", title="Subscriptions", tables=[found])

    @app.get("/test/customers")
    def customers() -> str:
        rows = [
            [linked("customers", one["id"]), (one.get("name", "none"), ""), clock(one)]
            for one in account.all("customer")[::-1]
        ]
        found = table("", "There is none yet.", ["Customer", "Name", "Test clock"], rows)
        return render_template("object.html", title="Customers", tables=[found])

    def clock(customer: Record) -> Cell:
        key = customer["test_clock"]
        return linked("test-clocks", key) if key else ("none", "")

    @app.get("/test/products")
    def products() -> str:
        rows = [
            [linked("products", one["id"], one["name"]), (one["id"], "")]
            for one in account.all("product")[::-1]
        ]
        found = table("", "There is none yet.", ["Product", "Id"], rows)
        return render_template("object.html", title="Products", tables=[found])

    @app.get("/test/invoices")
    def invoices() -> str:
        found = invoice_table(words.invoices_of(account)) | {"heading": ""}
        return render_template("object.html", title="Invoices", tables=[found])


def add_objects(app: Flask, api: Api) -> None:
    """Show one customer, invoice, price, Billing Meter or test clock."""
    account = api.account

    def show(title: str, facts: list[tuple[str, Cell]], *tables: Record) -> str:
        return render_template("object.html", title=title, facts=facts, tables=tables)

    def having(kind: str, **fields: str) -> list[Record]:
        return [one for one in account.all(kind) if fields.items() <= one.items()]

    @app.get("/test/customers/<key>")
    def customer(key: str) -> str:
        found = account.get("customer", key)
        facts = [("Name", (found.get("name", "none"), "")), ("Subject in OpenMeter", subject(key))]
        if found["test_clock"]:
            facts.append(("Test clock", linked("test-clocks", found["test_clock"])))
        theirs = subscription_table(api, having("subscription", customer=key))
        return show(key, facts, theirs, invoice_table(words.invoices_of(account, customer=key)))

    def subject(key: str) -> Cell:
        neighbour = app.jinja_env.globals["neighbour"]
        return key, f"{neighbour}/metering/subject?name={key}" if neighbour else ""

    @app.get("/test/invoices/<key>")
    def invoice(key: str) -> str:
        found = words.invoice_row(account, account.get("invoice", key))
        return render_template("invoice.html", title=key, invoice=found)

    @app.get("/test/prices/<key>")
    def price(key: str) -> str:
        found = account.get("price", key)
        facts = [
            ("What it costs", (words.price_text(account, found), "")),
            ("Product", linked("products", found["product"])),
            ("Lookup key", (found["lookup_key"] or "none", "")),
            ("Metadata", (words.words(found["metadata"]) or "none", "")),
        ]
        if meter := found["recurring"]["meter"]:
            facts.append(("Billing Meter", linked("meters", meter)))
        return show(key, facts)

    @app.get("/test/meters/<key>")
    def meter(key: str) -> str:
        found = account.get("meter", key)
        facts = [
            ("Event name", (found["event_name"], "")),
            ("Formula", (found["default_aggregation"]["formula"], "")),
            ("Status", (found["status"], "")),
        ]
        rows = [
            [
                (when(event["timestamp"]), ""),
                linked("customers", event["who"]),
                (words.number(event["value"]), ""),
                (when(event["arrived"]), ""),
            ]
            for event in account.meters.events[::-1]
            if event["meter"] == key
        ]
        columns = ["Timestamp (UTC)", "Customer", "Value", "Arrived (UTC)"]
        return show(key, facts, table("Meter events", "None came yet.", columns, rows))

    @app.get("/test/test-clocks/<key>")
    def test_clock(key: str) -> str:
        facts = [("Time (UTC)", (when(account.get("test_clock", key)["frozen_time"]), ""))]
        return show(key, facts, subscription_table(api, having("subscription", test_clock=key)))


def add_products(app: Flask, api: Api) -> None:
    """Show a product, and take new prices of it."""
    account = api.account

    def page(key: str, problem: str = "") -> str:
        found = account.get("product", key)
        prices = [price for price in account.all("price") if price["product"] == key]
        meters = [one for one in account.all("meter") if one["status"] == "active"]
        tables = [price_table(api, prices)]
        about = {"product": found, "meters": meters, "problem": problem, "said": said()}
        return render_template("product.html", title=found["name"], tables=tables, **about)

    @app.get("/test/products/<key>")
    def product(key: str) -> str:
        return page(key)

    @app.post("/test/products/<key>/prices")
    def add_price(key: str) -> Answer:
        return done(
            lambda: forms.create_price(request.form, account, account.get("product", key)["id"]),
            lambda problem: page(key, problem),
            lambda _: url_for("product", key=key, done="priced"),
        )


def add_subscription(app: Flask, api: Api) -> None:
    """Show a subscription, and take updates, cancellations and time."""
    account = api.account

    def page(key: str, problem: str = "") -> str:
        found = account.get("subscription", key)
        about = {
            "subscription": found,
            "customer": account.get("customer", found["customer"]),
            "subject": found["metadata"].get("om_subject", found["customer"]),
            "now": account.now(found["test_clock"]),
            "is_real_time": not found["test_clock"] and not account.clock.ahead,
            "is_over": found["status"] in ("canceled", "incomplete_expired"),
            "items": [words.item_row(account, found, item) for item in account.items(found)],
            "prices": [(one, words.price_text(account, one)) for one in account.all("price")],
            "waiting": words.waiting_rows(account, found),
            "invoices": words.invoices_of(account, subscription=key),
            "advances": forms.advances(account, found),
            "webhook": words.webhook_rows(api, key),
        }
        return render_template(
            "subscription.html", title=key, problem=problem, said=said(), **about
        )

    def form_done(act: Callable[[Record], str], key: str) -> Answer:
        return done(
            lambda: act(account.get("subscription", key)),
            lambda problem: page(key, problem),
            lambda what: url_for("subscription", key=key, done=what),
        )

    @app.get("/test/subscriptions/<key>")
    def subscription(key: str) -> str:
        return page(key)

    @app.post("/test/subscriptions/<key>/update")
    def update(key: str) -> Answer:
        def act(found: Record) -> str:
            asked = forms.update_of(request.form, account, found)
            if asked:
                account.update_subscription(found, asked)
            return "updated" if asked else "nothing"

        return form_done(act, key)

    @app.post("/test/subscriptions/<key>/cancel")
    def cancel(key: str) -> Answer:
        def act(found: Record) -> str:
            forms.cancel(request.form, account, found)
            return "canceled" if request.form.get("when") in ("now", "end") else "updated"

        return form_done(act, key)

    @app.post("/test/subscriptions/<key>/advance")
    def advance(key: str) -> Answer:
        def act(found: Record) -> str:
            forms.advance(request.form, account, found)
            return "advanced"

        return form_done(act, key)


def add_webhooks(app: Flask, api: Api) -> None:
    """Show where events go and what became of them, and send one again."""

    @app.get("/test/webhooks")
    def webhooks() -> str:
        found = words.webhook_rows(api)
        return render_template("webhooks.html", title="Webhook", webhook=found, said=said())

    @app.post("/test/events/<key>/resend")
    def resend(key: str) -> Response:
        if key not in api.endpoint.events:
            raise missing("event", key, "id")
        api.endpoint.deliver(key)
        subscription = request.form.get("subscription")
        if subscription:
            return redirect(url_for("subscription", key=subscription, done="resent"), 303)
        return redirect(url_for("webhooks", done="resent"), 303)
