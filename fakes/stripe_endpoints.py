"""Where events go, as API calls list it: webhook endpoints, and event destinations.

What `/_fake/webhook` sets is one of each. Those that calls make are only listed: nothing is sent.
"""

from typing import Any

from flask import Flask, Response, request

from fakes.stripe_http import Api
from fakes.stripe_store import Record, StripeError, is_true
from fakes.stripe_webhooks import time_text

THIN_TYPES = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")
OWN_ENDPOINT, OWN_DESTINATION = "we_00000000", "ed_00000000"
STATUS = ("disabled", "enabled")


def add_endpoints(app: Flask, api: Api) -> None:
    """Serve webhook endpoints (docs.stripe.com/api/webhook_endpoints)."""
    account = api.account

    def every() -> list[Record]:
        """Return all, the newest first."""
        made = account.all("webhook_endpoint")[::-1]
        return made if api.endpoint.url is None else [*made, own_endpoint(api)]

    @app.get("/v1/webhook_endpoints")
    def webhook_endpoints() -> Response:
        api.filters()
        return api.page(every(), show_endpoint)

    @app.post("/v1/webhook_endpoints")
    def create_webhook_endpoint() -> Record:
        form = api.form("webhook endpoint")
        for name in ("url", "enabled_events"):
            if not form.get(name):
                raise StripeError(
                    400, f"Missing required param: {name}.", name, "parameter_missing"
                )
        is_connect = is_true(form.pop("connect", False))
        fields = {"api_version": None, "description": None, "status": "enabled", **form}
        application = {"application": "ca_standin" if is_connect else None}
        made = account.add("webhook_endpoint", "we", **fields, **application)
        return {**show_endpoint(made), "secret": f"whsec_{made['id']}"}

    @app.get("/v1/webhook_endpoints/<key>")
    def webhook_endpoint(key: str) -> Record:
        found = {one["id"]: one for one in every()}.get(key)
        return show_endpoint(found or account.get("webhook_endpoint", key))

    @app.post("/v1/webhook_endpoints/<key>")
    def update_webhook_endpoint(key: str) -> Record:
        found = account.get("webhook_endpoint", key)
        form = api.form("webhook endpoint update")
        if "disabled" in form:
            found["status"] = STATUS[not is_true(form.pop("disabled"))]
        found.update(form)
        return show_endpoint(found)

    @app.delete("/v1/webhook_endpoints/<key>")
    def delete_webhook_endpoint(key: str) -> Record:
        account.get("webhook_endpoint", key)
        del account.objects["webhook_endpoint"][key]
        return {"id": key, "object": "webhook_endpoint", "deleted": True}


def own_endpoint(api: Api) -> Record:
    """Return where snapshots go that this stand-in delivers."""
    endpoint = api.endpoint
    return {
        "id": OWN_ENDPOINT,
        "url": endpoint.url,
        "enabled_events": endpoint.enabled_events,
        "api_version": endpoint.api_version,
        "livemode": endpoint.livemode,
        "status": "enabled",
        "application": None,
        "created": 0,
        "description": None,
        "metadata": {},
    }


def show_endpoint(record: Record) -> Record:
    """Return a webhook endpoint; its secret was told when it was made."""
    return {"object": "webhook_endpoint", **record}


def add_destinations(app: Flask, api: Api) -> None:
    """Serve event destinations (docs.stripe.com/api/v2/core/event_destinations)."""
    account = api.account

    def show(record: Record) -> Record:
        """Return one, with its address if it is asked for."""
        included = [
            *request.args.values(),
            *(request.get_json(silent=True) or {}).get("include", []),
        ]
        is_shown = "webhook_endpoint.url" in included
        endpoint = {"url": record["url"] if is_shown else None, "signing_secret": None}
        hidden = {"url", "created"}
        return {
            "object": "v2.core.event_destination",
            **{key: value for key, value in record.items() if key not in hidden},
            "created": time_text(record["created"]),
            "webhook_endpoint": endpoint,
        }

    @app.get("/v2/core/event_destinations")
    def event_destinations() -> Record:
        found = account.all("event_destination")[::-1]
        if api.endpoint.takes_thin():
            found.append(own_destination(api))
        data = [show(one) for one in found]
        return {"data": data, "next_page_url": None, "previous_page_url": None}

    @app.post("/v2/core/event_destinations")
    def create_event_destination() -> Record:
        wanted: dict[str, Any] = request.get_json()
        for name in ("name", "type", "event_payload", "enabled_events"):
            if not wanted.get(name):
                raise StripeError(
                    400, f"Missing required param: {name}.", name, "parameter_missing"
                )
        kept = {name: wanted[name] for name in ("name", "type", "event_payload", "enabled_events")}
        url = wanted.get("webhook_endpoint", {}).get("url")
        return show(account.add("event_destination", "ed", **kept, url=url, status="enabled"))

    @app.post("/v2/core/event_destinations/<key>/<turn>")
    def switch_event_destination(key: str, turn: str) -> Record:
        found = account.get("event_destination", key)
        if f"{turn}d" not in STATUS:
            raise StripeError(404, f"Unrecognized request URL ({request.method}: {request.path}).")
        found["status"] = f"{turn}d"
        return show(found)


def own_destination(api: Api) -> Record:
    """Return where thin events go that this stand-in delivers."""
    return {
        "id": OWN_DESTINATION,
        "name": "thin",
        "type": "webhook_endpoint",
        "event_payload": "thin",
        "enabled_events": list(THIN_TYPES),
        "livemode": api.endpoint.livemode,
        "status": "enabled",
        "created": 0,
        "metadata": {},
        "url": api.endpoint.url,
    }
