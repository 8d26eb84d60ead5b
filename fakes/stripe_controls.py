"""What real Stripe has in its dashboard or not at all, under `/_fake/`."""

import itertools

from flask import Flask, request

from fakes.stripe_events import report_meter_errors
from fakes.stripe_http import NEWEST_VERSION, Api
from fakes.stripe_store import Record, missing


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
            raise missing("event", key, "id")
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
            return api.account.meters.choose(request.get_json())

    @app.post("/_fake/lists")
    def choose_lists() -> Record:
        with api.lock:
            api.account.lists_test_clocks = bool(request.get_json()["test_clocks"])
            return {"test_clocks": api.account.lists_test_clocks}

    @app.get("/_fake/meter_errors")
    def meter_errors() -> Record:
        with api.lock:
            return {"errors": api.account.meters.errors}

    @app.post("/_fake/report_meter_errors")
    def tell_meter_errors() -> Record:
        with api.lock:
            return {"events": report_meter_errors(api)}

    @app.post("/_fake/ids")
    def number_ids() -> Record:
        first = int(request.get_json()["first"])
        with api.lock:
            api.account.numbers = itertools.count(first)
        return {"first": first}

    @app.post("/_fake/advance")
    def skip_time() -> Record:
        return set_ahead(api.account.clock.ahead + int(request.get_json()["seconds"]))

    @app.post("/_fake/offset")
    def set_offset() -> Record:
        return set_ahead(int(request.get_json()["seconds"]))

    def set_ahead(seconds: int) -> Record:
        with api.lock:
            api.account.clock.ahead = seconds
            api.account.catch_up()
            return {"now": api.account.now()}

    @app.post("/_fake/subscriptions/<key>")
    def set_status(key: str) -> Record:
        with api.lock:
            api.account.catch_up()
            found = api.account.get("subscription", key)
            api.account.set_status(found, request.get_json().get("status"))
            return api.show_subscription(found)

    @app.post("/_fake/subscriptions/<key>/switch_at_renewal")
    def switch_at_renewal(key: str) -> Record:
        with api.lock:
            api.account.catch_up()
            found = api.account.get("subscription", key)
            api.account.switch_at_renewal(found, request.get_json()["items"])
            return api.show_subscription(found)

    @app.post("/_fake/subscription_items/<key>")
    def set_item_trial(key: str) -> Record:
        with api.lock:
            api.account.catch_up()
            found = api.account.get("subscription_item", key)
            return api.show_item(
                api.account.set_item_trial(found, request.get_json()["current_trial"])
            )
