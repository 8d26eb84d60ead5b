"""Billing Meters and their events, and what Stripe's documents leave open."""

import re
import time
from decimal import Decimal

from fakes.stripe_prices import number
from fakes.stripe_store import BASIL, Record, Store, StripeError, choice, integer, missing

DAY = 86_400
WINDOWS = {"hour": 3_600, "day": DAY}
# What Stripe leaves open, with what it may be; the first of each holds unless it is told.
READINGS = {
    "last_by": ("timestamp", "arrival"),
    "tie": ("first", "last"),
    "boundary": ("later", "earlier"),
    "changed_start": ("stays", "moves"),
    "changed_recount": ("frozen", "recounted"),
    "draft_hour": ("counted", "lost"),
    "changed_draft": ("lost", "counted"),
    "last_draft": ("counted", "lost", "absent"),
    "former_price": ("by mode", "billed", "lost"),
    "switch_lines": ("by mode", "apart", "together", "absent"),
    "reset_invoice": ("final", "draft", "absent"),
    "plain_reset": ("unknown", "waits", "lost", "invoiced"),
    "cancel_now": ("nothing", "billed"),
    "cancel_invoice": ("final", "draft", "absent"),
    "fractions": ("exact", "whole"),
    "meterless": ("made", "refused"),
    "closed_record": ("refused", "taken"),
    "switch_reason": ("subscription_cycle", "subscription_update"),
    "trial_line": ("absent", "zero", "billed"),
    "time_codes": ("absent", "given"),
    "refusal_words": ("plain", "other"),
    "time_window": ("replaces", "keeps"),
    "event_time": ("clock", "machine"),
}
# What takes seconds of this machine's, whatever a test clock says.
SECONDS = ("shown_after_seconds", "advances_for_seconds")
# The refusals whose words are not known to us, in two wordings: nobody may go by either.
WORDS = {
    "timestamp": {
        "plain": "The timestamp must be within the past 35 days or up to 5 minutes ahead.",
        "other": "Events of this moment can no longer or not yet be recorded.",
    },
    "value": {"plain": "Invalid value: {}", "other": "This cannot be counted: {}"},
}


class Meters:
    """Billing Meters and their events.

    What Stripe leaves unknown can be read either way: whether "last" goes by `timestamp` or by
    `arrival`, whether the `first` or the `last` of equal timestamps wins, and whether an event
    at a boundary counts in the `earlier` or the `later` period. An event counts only some
    seconds after it was taken, for Stripe works on them later: of its account's time, which for a
    test clock's customer is that clock's, and of this machine's (`shown_after_seconds`).
    """

    def __init__(self, account: Store) -> None:
        self.account = account
        self.events: list[Record] = []
        self.identifiers: set[str] = set()
        self.errors: list[Record] = []
        self.told = 0
        self.readings: Record = {name: known[0] for name, known in READINGS.items()}
        self.readings |= dict.fromkeys(("counts_after_seconds", *SECONDS), 0)

    def choose(self, wanted: Record) -> Record:
        """Set readings, all or none, and return them all."""
        for name, value in wanted.items():
            if name == "counts_after_seconds":
                integer(value, name)
            elif name in SECONDS:
                number(value, name)
            elif name not in READINGS:
                raise missing("reading", name, name)
            else:
                choice(value, name, *READINGS[name])
        self.readings |= wanted
        return self.readings

    def create(self, form: Record, version: str) -> Record:
        """Create a Billing Meter; the formula `last` is younger than acacia."""
        formula = form.get("default_aggregation", {}).get("formula")
        formulas = ("sum", "count", "last") if version >= BASIL else ("sum", "count")
        choice(formula, "default_aggregation[formula]", *formulas)
        window = form.get("event_time_window")
        if window is not None:
            choice(window, "event_time_window", *WINDOWS)
        if self.active(form.get("event_name")):
            raise StripeError(400, "An active meter with this event_name exists.", "event_name")
        dimensions = form.get("dimension_payload_keys")
        if not isinstance(dimensions, list | None):
            raise StripeError(400, "Invalid array", "dimension_payload_keys")
        meter = self.account.add(
            "meter",
            "mtr",
            customer_mapping=form.get(
                "customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"}
            ),
            default_aggregation={"formula": formula},
            display_name=form.get("display_name"),
            event_name=form.get("event_name"),
            event_time_window=window,
            status="active",
            status_transitions={"deactivated_at": None},
            value_settings=form.get("value_settings", {"event_payload_key": "value"}),
        )
        del meter["metadata"]
        meter["updated"] = meter["created"]
        if dimensions is not None:  # a preview: other meters do not have the field at all
            meter["dimension_payload_keys"] = dimensions
        return meter

    def active(self, event_name: object) -> list[Record]:
        """Return the meter that takes events of a name, if there is one."""
        named = [m for m in self.account.all("meter") if m["event_name"] == event_name]
        return [meter for meter in named if meter["status"] == "active"]

    def set_status(self, meter: Record, status: str) -> Record:
        """Deactivate a meter or activate it again, unless another took its events since."""
        if status == "active" and meter not in (self.active(meter["event_name"]) or [meter]):
            raise StripeError(400, "An active meter with this event_name exists.", "event_name")
        now = self.account.now()
        meter |= {"status": status, "updated": now}
        meter["status_transitions"] = {"deactivated_at": None if status == "active" else now}
        return meter

    def send(self, form: Record) -> Record:
        """Take an event; what it names is checked later."""
        payload, identifier = form.get("payload", {}), form.get("identifier")
        if identifier in self.identifiers:
            message = f"An event already exists with identifier {identifier}."
            raise StripeError(400, message, "identifier")
        named = [m for m in self.account.all("meter") if m["event_name"] == form["event_name"]]
        meters = self.active(form["event_name"]) or named[-1:]
        key = meters[0]["customer_mapping"]["event_payload_key"] if meters else None
        who = self.account.objects.get("customer", {}).get(payload.get(key))
        now = self.account.now(who["test_clock"] if who else None)
        at = integer(form.get("timestamp", now), "timestamp")
        if who:
            by_clock = self.readings["event_time"] == "clock"
            self.check_time(at, now if by_clock else self.account.now())
        event = {"event_name": form["event_name"], "payload": payload, "timestamp": at}
        identifier = identifier or f"event-{len(self.events) + len(self.errors) + 1}"
        problem = problem_of(form["event_name"], payload, meters, bool(who))
        if who and problem is None:
            value = self.value(payload.get(meters[0]["value_settings"]["event_payload_key"]))
            found = {"meter": meters[0]["id"], "who": who["id"], "value": value}
            self.events.append(event | found | {"arrived": now, "taken": time.monotonic()})
        elif problem:
            meter = meters[0]["id"] if meters else None
            known = {"identifier": identifier, "meter": meter, "arrived": self.account.now()}
            self.errors.append(event | problem | known)
        self.identifiers.add(identifier)
        shown = {"object": "billing.meter_event", "created": now, "livemode": False}
        return event | shown | {"identifier": identifier}

    def check_time(self, at: int, now: int) -> None:
        """Refuse an event of a time too far back or ahead."""
        if now - 35 * DAY <= at <= now + 300:
            return
        code = "timestamp_in_future" if at > now else "timestamp_too_far_in_past"
        message = WORDS["timestamp"][self.readings["refusal_words"]]
        given = self.readings["time_codes"] == "given"
        raise StripeError(400, message, "timestamp", code if given else None)

    def value(self, text: object) -> Decimal:
        """Return an event's value, a plain decimal of at most 15 digits."""
        plain = re.fullmatch(r"-?\d+(\.\d+)?", str(text))
        if not plain or len(re.sub(r"\D", "", str(text))) > 15:
            message = WORDS["value"][self.readings["refusal_words"]].format(text)
            raise StripeError(400, message, "payload")
        return Decimal(str(text))

    def untold(self) -> dict[str | None, list[Record]]:
        """Return the errors since the last time by their meter; None is that of no meter."""
        found: dict[str | None, list[Record]] = {}
        for error in self.errors[self.told :]:
            found.setdefault(error["meter"], []).append(error)
        self.told = len(self.errors)
        return found

    def window(self, start: int, end: int) -> tuple[int, int]:
        """Return the seconds from .. to (not included) that count in a period."""
        shift = 1 if self.readings["boundary"] == "earlier" else 0
        return start + shift, end + shift

    def usage(self, meter: str, who: str, start: int, end: int) -> Decimal:
        """Return what a meter counts for a customer in a period."""
        return self.count(meter, who, self.window(start, end))

    def count(
        self,
        meter: str,
        who: str,
        window: tuple[int, int],
        as_of: int | None = None,
        before: int | None = None,
    ) -> Decimal:
        """Return what a meter counts of what it had worked on `as_of` a time (and `before` one)."""
        if as_of is None:
            as_of = self.account.now(self.account.get("customer", who)["test_clock"])
        lag = int(self.readings["counts_after_seconds"])
        shown = time.monotonic() - float(self.readings["shown_after_seconds"])
        known = [
            (event["timestamp"], n, event["value"])
            for n, event in enumerate(self.events)
            if (event["meter"], event["who"]) == (meter, who)
            and event["arrived"] + lag <= as_of
            and event["taken"] <= shown
            and (before is None or event["arrived"] + lag < before)
        ]
        found = self.in_time_windows(meter, known)
        return self.aggregate(meter, [e for e in found if window[0] <= e[0] < window[1]])

    def in_time_windows(
        self, meter: str, events: list[tuple[int, int, Decimal]]
    ) -> list[tuple[int, int, Decimal]]:
        """Return the last received event of each hour or day, where a meter has such windows."""
        name = self.account.get("meter", meter)["event_time_window"]
        if name is None or self.readings["time_window"] == "keeps":
            return events
        return list({event[0] // WINDOWS[name]: event for event in events}.values())

    def aggregate(self, meter: str, found: list[tuple[int, int, Decimal]]) -> Decimal:
        """Return what a meter's formula makes of events: timestamp, turn and value of each."""
        formula = self.account.get("meter", meter)["default_aggregation"]["formula"]
        if formula == "count":
            return Decimal(len(found))
        if formula == "sum":
            return max(Decimal(0), sum((value for _, _, value in found), Decimal(0)))
        if self.readings["last_by"] == "arrival":
            found = [(n, n, value) for _, n, value in found]
        sign = 1 if self.readings["tie"] == "last" else -1
        return max(
            found, key=lambda event: (event[0], sign * event[1]), default=(0, 0, Decimal(0))
        )[2]

    def summary(self, meter: str, query: Record) -> Record:
        """Return a meter's event summary for a customer and time."""
        start = integer(query.get("start_time"), "start_time")
        end = integer(query.get("end_time"), "end_time")
        for name, second in (("start_time", start), ("end_time", end)):
            if second % 60:
                raise StripeError(400, "This value must align with minute boundaries.", name)
        who = self.account.get("customer", query.get("customer"), "customer")["id"]
        return {
            "id": f"mtrusg_{meter}_{start}",
            "object": "billing.meter_event_summary",
            "aggregated_value": float(self.usage(meter, who, start, end)),
            "start_time": start,
            "end_time": end,
            "livemode": False,
            "meter": meter,
        }


def problem_of(
    name: str, payload: Record, meters: list[Record], has_customer: bool
) -> Record | None:
    """Return why Stripe will not count an event, by the code and message of its thin events."""
    if not meters:
        return {"code": "no_meter", "message": f"No meter found for event name {name}."}
    if meters[0]["status"] != "active":
        return {"code": "archived_meter", "message": f"The meter of {name} is archived."}
    key = meters[0]["customer_mapping"]["event_payload_key"]
    if key not in payload:
        message = f"Customer mapping key {key} not found in payload."
        return {"code": "meter_event_no_customer_defined", "message": message}
    if not has_customer:
        message = f"No customer found with ID {payload[key]}."
        return {"code": "meter_event_customer_not_found", "message": message}
    return None
