"""The rules of the Stripe stand-in: a subscription from its first second to its last.

No HTTP here. Times are UTC seconds. Objects are kept in one shape and rendered in the shape of
an API version. `tell` is called with an event's type and the state after and before it.

A subscription is billed in one of two modes (docs.stripe.com/billing/subscriptions/billing-mode):
in `classic` all items share a period, and the usage of a price that was replaced in mid-period is
on no invoice; in `flexible` each item has its own, and an invoice item bills that usage.
"""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from decimal import Decimal
from itertools import pairwise
from typing import Any

from fakes.stripe_invoices import Ledger, Tell, finalization
from fakes.stripe_periods import DAY, after, dates, length, next_date
from fakes.stripe_prices import cents, is_free, is_metered
from fakes.stripe_store import Record, StripeError, choice, integer, is_true, merge_metadata

__all__ = ["Account", "Record", "StripeError"]

FLEXIBLE_DEFAULT = "2025-09-30"
RENEWING = ("active", "trialing", "past_due", "unpaid")
STATUSES = (*RENEWING, "incomplete", "incomplete_expired", "paused")
BEHAVIORS = ("create_prorations", "always_invoice", "none")
ONE_INTERVAL = "All prices on a subscription in classic billing mode must have the same interval."
LEGACY = "Flexible billing mode does not support metered prices that no meter backs."
RESET = "This stand-in resets flexible subscriptions with always_invoice only."

Entries = list[Record]


class Account(Ledger):
    """One Stripe account."""

    def __init__(self, tell: Tell) -> None:
        super().__init__(tell)
        # Whether lists show what hangs on test clocks without being asked; real ones do not.
        self.lists_test_clocks = False

    # Beginnings

    def create_subscription(self, form: Record, version: str) -> Record:
        """Start a subscription now and invoice what is due in advance."""
        customer = self.get("customer", form.get("customer"), "customer")
        entries = form.get("items") or []
        if not entries:
            raise StripeError(400, "Missing required param: items.", "items")
        now = self.now(customer["test_clock"])
        usual = "flexible" if version >= FLEXIBLE_DEFAULT else "classic"
        mode = form.get("billing_mode", {}).get("type", usual)
        prices = [self.entry_price(entry, n) for n, entry in enumerate(entries)]
        check_prices(mode, prices)
        started = integer(form.get("backdate_start_date", now), "backdate_start_date")
        if started > now:
            raise StripeError(400, "The start date must be in the past.", "backdate_start_date")
        trial_end = trial_end_of(form, now)
        subscription = self.add(
            "subscription",
            "sub",
            anchor=self.first_anchor(form, prices, trial_end or now),
            billing_mode=mode,
            cancel_at=None,
            cancel_at_period_end=form.get("cancel_at_period_end") == "true",
            canceled_at=None,
            customer=customer["id"],
            ended_at=None,
            fixed_anchor="billing_cycle_anchor" in form,
            items=[],
            latest_invoice=None,
            metadata=form.get("metadata", {}),
            schedule=None,
            start=now,
            start_date=started,
            status="trialing" if trial_end else "active",
            switch=None,
            test_clock=customer["test_clock"],
            trial_end=trial_end,
            trial_start=now if trial_end else None,
        )
        for n, entry in enumerate(entries):
            self.begin(subscription, self.add_item(subscription, entry, n, now), now)
        self.set_end(subscription, form)
        self.first_invoice(subscription, form, now)
        return subscription

    def first_anchor(self, form: Record, prices: list[Record], start: int) -> int:
        """Return where billing dates are counted from: what was asked for, or the start."""
        if "billing_cycle_anchor" not in form:
            return start
        anchor = integer(form["billing_cycle_anchor"], "billing_cycle_anchor")
        natural = min(after(start, price["recurring"]) for price in prices)
        if not start <= anchor <= natural:
            message = "billing_cycle_anchor must be before the next natural billing date."
            raise StripeError(400, message, "billing_cycle_anchor")
        return anchor

    def first_invoice(self, subscription: Record, form: Record, now: int) -> None:
        """Invoice what is due in advance, and what a start in the past left unbilled.

        Classic has a line over zero for a metered item; flexible has none, and no empty invoice
        (docs.stripe.com/billing/subscriptions/billing-mode/compare).
        """
        behavior = behavior_of(form)
        lines = []
        for item in self.items(subscription):
            lines += self.backdated_lines(subscription, item, now, behavior)
            if not self.metered(item):
                lines += self.first_licensed_lines(subscription, item, behavior)
            elif subscription["billing_mode"] == "classic":
                lines.append({**self.closing_line(item, now, free=True), "start": now})
        if lines or subscription["billing_mode"] == "classic":
            self.invoice(subscription, "subscription_create", lines, (now, now))
            due = self.get("invoice", subscription["latest_invoice"])["total"]
            if due > 0 and form.get("payment_behavior") == "default_incomplete":
                subscription["status"] = "incomplete"

    def first_licensed_lines(
        self, subscription: Record, item: Record, behavior: str
    ) -> list[Record]:
        """Return the first line of a licensed item: free in a trial, a part up to an anchor."""
        line = self.coming_line(item)
        if subscription["status"] == "trialing":
            return [line | {"amount": 0}]
        in_part = line["amount"] != self.amount(item["price"], line["quantity"])
        return [] if in_part and behavior == "none" else [line]

    def backdated_lines(
        self, subscription: Record, item: Record, now: int, behavior: str
    ) -> list[Record]:
        """Return what a start in the past adds to the first invoice.

        For usage: in flexible a line for each period that is over; in classic nothing, for the
        next invoice has it. For a licensed item the part of an interval that begins then
        (docs.stripe.com/billing/subscriptions/backdating).
        """
        started = subscription["start_date"]
        if started == now or subscription["status"] == "trialing":
            return []
        recurring = self.get("price", item["price"])["recurring"]
        if not self.metered(item):
            share = Decimal(now - started) / (after(started, recurring) - started)
            line = self.licensed_line(item) | {"start": started, "end": now}
            line["amount"] = cents(line["amount"] * share)
            return [] if behavior == "none" else [line]
        if subscription["billing_mode"] == "classic":
            item["start"] = item["began"] = started
            self.show_period(subscription)
            return []
        ends = dates(subscription["anchor"], recurring, started, now)
        item["start"] = item["began"] = ends[-1]
        self.show_period(subscription)
        return [self.closing_line({**item, "start": start}, end) for start, end in pairwise(ends)]

    # Items and their periods

    def items(self, subscription: Record) -> list[Record]:
        """Return the items of a subscription."""
        return [self.get("subscription_item", key) for key in subscription["items"]]

    def entry_price(self, entry: Mapping[str, Any], n: int) -> Record:
        """Return the price that an entry of `items` names or, without one, its item has."""
        if "price" in entry or "id" not in entry:
            price = self.get("price", entry.get("price"), f"items[{n}][price]")
            if is_metered(price) and "quantity" in entry:
                message = "Quantity should not be specified where usage_type is `metered`."
                raise StripeError(400, message, f"items[{n}][quantity]")
            return price
        item = self.get("subscription_item", entry["id"], f"items[{n}][id]")
        return self.get("price", item["price"])

    def add_item(
        self, subscription: Record, entry: Mapping[str, Any], n: int, created: int
    ) -> Record:
        """Add an item to a subscription."""
        price = self.entry_price(entry, n)
        quantity = None if is_metered(price) else integer(entry.get("quantity", 1), "quantity")
        item = self.add(
            "subscription_item",
            "si",
            changed=False,
            counted_from=None,
            current_trial=None,
            metadata=entry.get("metadata", {}),
            price=price["id"],
            quantity=quantity,
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
        )
        item["created"] = created
        subscription["items"].append(item["id"])
        self.records[item["id"]] = {}
        return item

    def remove_item(self, subscription: Record, item: Record) -> None:
        """Remove an item; its usage records stay, for lines that still count them."""
        subscription["items"].remove(item["id"])
        del self.objects["subscription_item"][item["id"]]

    def begin(self, subscription: Record, item: Record, at: int) -> None:
        """Let an item's next period begin."""
        item |= {"start": at, "began": at, "counted_from": None, "changed": False}
        item["end"] = self.end_of(subscription, item)
        self.show_period(subscription)

    def end_of(self, subscription: Record, item: Record) -> int:
        """Return where an item's period ends: at a trial's end, a billing date, or for good."""
        recurring = self.get("price", item["price"])["recurring"]
        if item["current_trial"]:
            end = int(item["current_trial"]["end_date"])
        elif subscription["status"] == "trialing":
            end = int(subscription["trial_end"])
        else:
            running = max(item["began"], item["created"])
            end = next_date(subscription["anchor"], recurring, running)
        cancel_at = subscription["cancel_at"]
        return min(end, cancel_at) if cancel_at and cancel_at > item["began"] else end

    def show_period(self, subscription: Record) -> None:
        """Let the subscription's own fields show the period of its shortest interval."""
        items = [item for item in self.items(subscription) if "end" in item]
        if items:
            shortest = min(
                items, key=lambda item: length(self.get("price", item["price"])["recurring"])
            )
            subscription |= {"start": shortest["began"], "end": shortest["end"]}
            subscription["due"] = min(item["end"] for item in items)

    # Updates

    def update_subscription(self, subscription: Record, form: Record) -> Record:
        """Apply an update; with `billing_cycle_anchor` the running period ends now."""
        before = deepcopy(self.state(subscription))
        entries: Entries = form.get("items", [])
        behavior = behavior_of(form)
        self.check_update(subscription, form)
        now = self.now(subscription["test_clock"])
        resets = is_now(form.get("billing_cycle_anchor")) or self.resets_itself(subscription, form)
        closing = self.close_for_reset(subscription, now, behavior) if resets else {}
        for n, entry in enumerate(entries):
            self.update_item(subscription, entry, n, "" if resets else behavior)
        merge_metadata(subscription, form)
        self.set_end(subscription, form)
        if resets:
            self.reset(subscription, closing, now, behavior)
        elif "trial_end" in form:
            self.set_trial(subscription, form["trial_end"], now, behavior)
        if behavior == "always_invoice" and any(
            item["subscription"] == subscription["id"] for item in self.pending(subscription)
        ):
            self.invoice(subscription, "subscription_update", [], (subscription["start"], now))
        self.show_period(subscription)
        self.notify(before, subscription)
        return subscription

    def check_update(self, subscription: Record, form: Record) -> None:
        """Refuse an update that cannot be made, before any of it is."""
        if subscription["status"] in ("canceled", "incomplete_expired"):
            message = "A canceled subscription can only update its metadata."
            if form.keys() - {"metadata"}:
                raise StripeError(400, message)
        anchor = form.get("billing_cycle_anchor")
        flexible = subscription["billing_mode"] == "flexible"
        plain = is_now(anchor) and flexible and behavior_of(form) != "always_invoice"
        if plain and self.meters.readings["plain_reset"] == "unknown":
            raise StripeError(400, RESET, "proration_behavior")
        self.check_entries(subscription, form.get("items", []))

    def check_entries(self, subscription: Record, entries: Entries) -> None:
        """Refuse items that would not go together, or none at all."""
        prices = {item["id"]: item["price"] for item in self.items(subscription)}
        for n, entry in enumerate(entries):
            key = entry.get("id", f"new {n}")
            if "id" in entry and key not in prices:
                raise StripeError(404, f"No such subscription item: '{key}'", f"items[{n}][id]")
            if is_true(entry.get("deleted")):
                prices.pop(key)
            else:
                prices[key] = self.entry_price(entry, n)["id"]
        if not prices:
            raise StripeError(400, "A subscription must have at least one active item.", "items")
        check_prices(
            subscription["billing_mode"], [self.get("price", key) for key in prices.values()]
        )

    def update_item(
        self, subscription: Record, entry: Mapping[str, Any], n: int, behavior: str
    ) -> None:
        """Change, add or remove an item; without a behavior what it costs is billed elsewhere."""
        now = self.now(subscription["test_clock"])
        if "id" not in entry:
            self.enter(subscription, self.add_item(subscription, entry, n, now), behavior)
            return
        item = self.get("subscription_item", entry["id"], f"items[{n}][id]")
        if is_true(entry.get("deleted")):
            self.leave(subscription, item, behavior)
            self.remove_item(subscription, item)
            return
        merge_metadata(item, entry)
        price, former = self.entry_price(entry, n), self.get("price", item["price"])
        quantity = (
            None
            if is_metered(price)
            else integer(entry.get("quantity", item["quantity"] or 1), "quantity")
        )
        if (price["id"], quantity) == (item["price"], item["quantity"]):
            return
        # Usage records go over to a new price without a meter: its period counts on.
        goes_over = all(is_metered(p) and not p["recurring"]["meter"] for p in (price, former))
        if not goes_over:
            self.leave(subscription, item, behavior)
        item |= {"price": price["id"], "quantity": quantity}
        if not goes_over:
            item["changed"] = item["changed"] or price != former
            same = length(price["recurring"]) == length(former["recurring"])
            self.enter(subscription, item, behavior, since=item["began"] if same else None)

    def leave(self, subscription: Record, item: Record, behavior: str) -> None:
        """Settle what an item's price is still due for when it goes in mid-period.

        Classic forgets its usage; flexible bills it as reported by now
        (docs.stripe.com/billing/subscriptions/usage-based/manage-billing-setup).
        """
        now = self.now(subscription["test_clock"])
        if behavior in ("", "none") or self.is_free_now(subscription, item):
            return
        if not self.metered(item):
            self.prorate(subscription, item, now, item["end"], credit=True)
        elif self.bills_former_price(subscription):
            self.bill_usage(subscription, item, now)

    def bills_former_price(self, subscription: Record) -> bool:
        """Say whether an invoice item bills the usage of a price that goes in mid-period."""
        reading = self.meters.readings["former_price"]
        flexible = subscription["billing_mode"] == "flexible"
        return bool(reading == "billed" or (reading == "by mode" and flexible))

    def enter(
        self, subscription: Record, item: Record, behavior: str, since: int | None = None
    ) -> None:
        """Let an item's price take over in mid-period: it counts from now on."""
        now = self.now(subscription["test_clock"])
        began = self.shared_start(subscription, item) if since is None else since
        item |= {"began": now if began is None else began, "counted_from": now}
        moves = self.meters.readings["changed_start"] == "moves"
        item["start"] = now if moves else item["began"]
        item["end"] = self.end_of(subscription, item)
        if not self.metered(item):
            item["counted_from"] = None
            if behavior not in ("", "none") and not self.is_free_now(subscription, item):
                self.prorate(subscription, item, now, item["end"], credit=False)

    def shared_start(self, subscription: Record, item: Record) -> int | None:
        """Return where the period of the other items of this interval began, if there are any."""
        mine = self.get("price", item["price"])["recurring"]
        for other in self.items(subscription):
            recurring = self.get("price", other["price"])["recurring"]
            if other is not item and "began" in other and length(recurring) == length(mine):
                return int(other["began"])
        return None

    def is_free_now(self, subscription: Record, item: Record) -> bool:
        """Say whether an item's running period is a trial, or can never be billed."""
        free = subscription["status"] == "trialing" or item["current_trial"]
        return bool(free) or subscription["status"] not in RENEWING

    def set_end(self, subscription: Record, form: Record) -> None:
        """Set or clear when a subscription is to end, which moves the end of its periods."""
        if "cancel_at_period_end" in form:
            subscription["cancel_at_period_end"] = is_true(form["cancel_at_period_end"])
        if "cancel_at" in form:
            subscription["cancel_at"] = self.cancellation_time(subscription, form)
            for item in self.items(subscription):
                item["end"] = self.end_of(subscription, item)
            self.show_period(subscription)

    def cancellation_time(self, subscription: Record, form: Record) -> int | None:
        """Return the time of a `cancel_at`, which may name the end of an item's period."""
        at = form["cancel_at"]
        ends = [item["end"] for item in self.items(subscription)]
        if at in ("min_period_end", "max_period_end"):
            return int(min(ends) if at == "min_period_end" else max(ends))
        return integer(at, "cancel_at") if at else None

    # Resets

    def resets_itself(self, subscription: Record, form: Record) -> bool:
        """Say whether classic resets the anchor without being asked.

        It does for another interval, for a price from zero to more, and for a `cancel_at` before
        the renewal; flexible never does (docs.stripe.com/billing/subscriptions/billing-mode).
        """
        if subscription["billing_mode"] == "flexible" or subscription["status"] != "active":
            return False
        if form.get("cancel_at"):
            at = self.cancellation_time(subscription, form)
            if at != subscription["cancel_at"] and at and at < subscription["end"]:
                return True
        for n, entry in enumerate(form.get("items", [])):
            if "id" in entry and "price" in entry:
                item = self.get("subscription_item", entry["id"], f"items[{n}][id]")
                old, new = self.get("price", item["price"]), self.entry_price(entry, n)
                if length(old["recurring"]) != length(new["recurring"]):
                    return True
                if is_free(old) and not is_free(new):
                    return True
        return False

    def close_for_reset(self, subscription: Record, now: int, behavior: str) -> dict[str, Record]:
        """Return the lines that close the running period, at the prices that ran in it."""
        closing = {}
        for item in self.items(subscription):
            if self.metered(item):
                closing[item["id"]] = self.closing_line(item, now)
            elif behavior != "none" and not self.is_free_now(subscription, item):
                self.prorate(subscription, item, now, item["end"], credit=True)
        return closing

    def reset(
        self, subscription: Record, closing: dict[str, Record], now: int, behavior: str
    ) -> None:
        """Let new periods begin now, and invoice the closed ones without a draft hour."""
        period, readings = (subscription["start"], now), self.meters.readings
        invoices = readings["reset_invoice"] != "absent"
        if subscription["billing_mode"] == "flexible" and behavior != "always_invoice":
            invoices = readings["plain_reset"] == "invoiced"
            for item in filter(self.metered, self.items(subscription)):
                if readings["plain_reset"] == "waits":
                    self.bill_usage(subscription, item, now)
        subscription |= {"anchor": now, "fixed_anchor": False}
        for item in self.items(subscription):
            self.begin(subscription, item, now)
        gone = [line for key, line in closing.items() if key not in subscription["items"]]
        if subscription["billing_mode"] == "classic":
            gone = []
        lines = self.renewal_lines(subscription, self.items(subscription), closing)
        if invoices:
            draft = readings["reset_invoice"] == "draft"
            self.invoice(subscription, "subscription_update", [*gone, *lines], period, draft)

    def renewal_lines(
        self, subscription: Record, items: list[Record], closing: dict[str, Record]
    ) -> list[Record]:
        """Return what is billed where periods meet: usage of the closed, fees of the coming."""
        lines = []
        for item in items:
            if item["id"] in closing:
                lines.append(closing[item["id"]])
            if not self.metered(item) and subscription["status"] != "trialing":
                lines.append(self.coming_line(item))
        return lines

    # Trials

    def set_trial(self, subscription: Record, given: object, now: int, behavior: str) -> None:
        """Begin a trial now, which ends the running period, or move or end the one that runs."""
        if subscription["status"] == "trialing":
            if given == "now":
                subscription["trial_end"] = now
                self.end_trial(subscription, now)
            else:
                self.move_trial(subscription, future(given, now))
        elif given != "now":
            self.begin_trial(subscription, future(given, now), now, behavior)

    def move_trial(self, subscription: Record, trial_end: int) -> None:
        """Let a trial end at another time, with the anchor unless that lies later."""
        subscription["trial_end"] = trial_end
        if not subscription["fixed_anchor"] or subscription["anchor"] < trial_end:
            subscription["anchor"] = trial_end
        for item in self.items(subscription):
            item["end"] = self.end_of(subscription, item)

    def begin_trial(self, subscription: Record, trial_end: int, now: int, behavior: str) -> None:
        """End the running period with a trial; classic invoices it, flexible lets it wait."""
        period, classic = (subscription["start"], now), subscription["billing_mode"] == "classic"
        closing = {}
        if classic:
            closing = self.close_for_reset(subscription, now, behavior)
        else:
            for item in self.items(subscription):
                self.leave(subscription, item, behavior)
        subscription |= {"status": "trialing", "trial_start": now, "trial_end": trial_end}
        subscription |= {"anchor": trial_end, "fixed_anchor": False}
        for item in self.items(subscription):
            self.begin(subscription, item, now)
        if classic:
            lines = self.renewal_lines(subscription, self.items(subscription), closing)
            self.invoice(subscription, "subscription_update", lines, period)

    def end_trial(self, subscription: Record, now: int) -> None:
        """Let billing begin now; what is due in advance is invoiced at once."""
        period = (subscription["start"], now)
        closing = self.closings(subscription, self.items(subscription), now)
        subscription["status"] = "active"
        if not subscription["fixed_anchor"] or subscription["anchor"] <= now:
            subscription["anchor"] = now
        for item in self.items(subscription):
            self.begin(subscription, item, now)
        lines = self.renewal_lines(subscription, self.items(subscription), closing)
        if lines or subscription["billing_mode"] == "classic":
            self.invoice(subscription, "subscription_update", lines, period)

    def set_item_trial(self, item: Record, wanted: Record | None) -> Record:
        """Give an item a trial of its own, or end the one that it has."""
        subscription = self.get("subscription", item["subscription"])
        if subscription["billing_mode"] != "flexible":
            message = "Only items of flexible subscriptions have periods of their own."
            raise StripeError(400, message, "current_trial")
        before, now = deepcopy(self.state(subscription)), self.now(item["test_clock"])
        if wanted is not None:
            self.leave(subscription, item, "create_prorations")
            end = future(wanted.get("end_date"), now)
            offer = wanted.get("trial_offer", "trialoffer_1")
            wanted = {"start_date": now, "end_date": end, "trial_offer": offer}
        item["current_trial"] = wanted
        self.begin(subscription, item, now)
        self.notify(before, subscription)
        return item

    # Ends and statuses

    def cancel_subscription(self, subscription: Record, form: Record) -> Record:
        """Cancel at once; metered usage is billed with `invoice_now` only."""
        now = self.now(subscription["test_clock"])
        if form.get("prorate") == "true":
            for item in self.items(subscription):
                if not self.metered(item) and not self.is_free_now(subscription, item):
                    self.prorate(subscription, item, now, item["end"], credit=True)
        if self.bills_cancellation(form) and subscription["status"] in RENEWING:
            closing = self.closings(subscription, self.items(subscription), now)
            lines, period = list(closing.values()), (subscription["start"], now)
            draft = self.meters.readings["cancel_invoice"] == "draft"
            self.invoice(subscription, "subscription_update", lines, period, draft)
        self.end(subscription, now)
        return subscription

    def bills_cancellation(self, form: Record) -> bool:
        """Say whether a cancellation at once bills the usage so far."""
        readings = self.meters.readings
        if form.get("invoice_now") == "true":
            return bool(readings["cancel_invoice"] != "absent")
        return bool(readings["cancel_now"] == "billed")

    def end(self, subscription: Record, at: int) -> None:
        """End a subscription and tell."""
        subscription |= {"status": "canceled", "canceled_at": at, "ended_at": at}
        state = deepcopy(self.state(subscription))
        self.tell("customer.subscription.deleted", state, state)

    def set_status(self, subscription: Record, status: object) -> Record:
        """Let a subscription be paused, unpaid, incomplete or active, as payments make it."""
        before = deepcopy(self.state(subscription))
        subscription["status"] = choice(status, "status", *STATUSES)
        now = self.now(subscription["test_clock"])
        if status in RENEWING and any(i["end"] <= now for i in self.items(subscription)):
            # What is resumed after its period is over begins anew; the time between is free.
            subscription["anchor"] = now
            for item in self.items(subscription):
                self.begin(subscription, item, now)
        self.notify(before, subscription)
        return subscription

    # Renewals and a schedule's switch

    def switch_at_renewal(self, subscription: Record, entries: Entries) -> Record:
        """Keep what a schedule's next phase has, until the running period ends."""
        self.check_entries(subscription, entries)
        subscription["switch"] = entries
        # Stripe's subscriptions name the schedule that is attached to them, in its last phase too
        # (docs.stripe.com/api/subscriptions/object, schedule).
        subscription["schedule"] = subscription["schedule"] or f"sub_sched_{subscription['id']}"
        return subscription

    def closings(
        self, subscription: Record, items: list[Record], at: int, draft: bool = False
    ) -> dict[str, Record]:
        """Return the lines that close metered items' periods; usage in a trial is free."""
        closing = {}
        for item in items:
            free = self.is_free_now(subscription, item)
            reading = self.meters.readings["trial_line"]
            if self.metered(item) and (not free or reading != "absent"):
                unbilled = bool(free) and reading == "zero"
                closing[item["id"]] = self.closing_line(item, at, unbilled, draft)
        return closing

    def renew(self, subscription: Record, at: int) -> None:
        """Close the periods that end now with a draft, and start the next ones or end."""
        before = deepcopy(self.state(subscription))
        period = (subscription["start"], at)
        if self.is_over(subscription, at):
            items = self.items(subscription)
            lines = list(self.closings(subscription, items, at, draft=True).values())
            if self.meters.readings["last_draft"] == "lost":
                lines = [line | {"arrived_before": at} for line in lines]
            elif self.meters.readings["last_draft"] == "absent":
                lines = []
            if lines or self.pending(subscription):
                self.invoice(subscription, "subscription_cycle", lines, period, draft=True)
            self.end(subscription, at)
            return
        ending = [item for item in self.items(subscription) if item["end"] == at]
        closing = self.closings(subscription, ending, at, draft=True)
        if subscription["status"] == "trialing" and subscription["trial_end"] == at:
            subscription["status"] = "active"
        gone, switched = [], subscription["switch"] is not None and at == subscription["end"]
        if switched:
            gone = self.switch(subscription, ending, closing, at)
        for item in ending:
            item["current_trial"] = None
            self.begin(subscription, item, at)
        self.show_period(subscription)  # a switch can have removed the one of the shortest interval
        lines = self.renewal_lines(subscription, ending, closing)
        self.invoice_renewal(subscription, gone, lines, period, switched)
        self.notify(before, subscription)

    def is_over(self, subscription: Record, at: int) -> bool:
        """Say whether a subscription ends here."""
        last = max(item["end"] for item in self.items(subscription))
        asked = subscription["cancel_at_period_end"] and at >= last
        return bool(asked) or subscription["cancel_at"] == at

    def schedule(self, subscription: Record) -> Record:
        """Put a schedule over a subscription, with its running period as the one phase."""
        made = self.add(
            "subscription_schedule",
            "sub_sched",
            customer=subscription["customer"],
            end_behavior="release",
            phases=[{"start_date": subscription["start"], "end_date": subscription["end"]}],
            status="active",
            subscription=subscription["id"],
            test_clock=subscription["test_clock"],
        )
        subscription["schedule"] = made["id"]
        return made

    def update_schedule(self, schedule: Record, form: Record) -> Record:
        """Let a second phase replace all items at the running period's end."""
        subscription = self.get("subscription", schedule["subscription"])
        running, coming = form.get("phases") or [{}, {}]
        at = integer(coming.get("start_date", running.get("end_date")), "phases[1][start_date]")
        if at != subscription["end"]:
            raise StripeError(400, "This stand-in switches at the running period's end.", "phases")
        goes = [{"id": item["id"], "deleted": "true"} for item in self.items(subscription)]
        comes = [{"price": entry.get("price")} for entry in coming.get("items", [])]
        self.switch_at_renewal(subscription, [*comes, *goes])
        return schedule

    def switch(
        self,
        subscription: Record,
        ending: list[Record],
        closing: dict[str, Record],
        at: int,
    ) -> list[Record]:
        """Let a schedule's next phase take over; return the lines of what it replaces."""
        entries, subscription["switch"] = subscription["switch"], None
        intervals = [self.get("price", item["price"])["recurring"] for item in ending]
        gone = []
        for n, entry in enumerate(entries):
            if "id" not in entry:
                ending.append(self.add_item(subscription, entry, n, at))
                continue
            item = self.get("subscription_item", entry["id"], f"items[{n}][id]")
            price = self.entry_price(entry, n)
            if is_true(entry.get("deleted")) or price["id"] != item["price"]:
                gone += self.replaced_lines(item, closing, at)
            if is_true(entry.get("deleted")):
                ending[:] = [other for other in ending if other is not item]
                self.remove_item(subscription, item)
                continue
            merge_metadata(item, entry)
            quantity = integer(entry.get("quantity", item["quantity"] or 1), "quantity")
            item |= {"price": price["id"], "quantity": None if is_metered(price) else quantity}
            ending += [] if any(other is item for other in ending) else [item]
        same = [self.get("price", item["price"])["recurring"] for item in ending]
        if subscription["billing_mode"] == "classic" and set(map(length, same)) != set(
            map(length, intervals)
        ):
            subscription["anchor"] = at
        return gone

    def replaced_lines(self, item: Record, closing: dict[str, Record], at: int) -> list[Record]:
        """Return the line of an item that a switch replaces, though its period goes on."""
        if item["id"] in closing:
            return [closing.pop(item["id"])]
        goes_on = item["end"] > at and self.metered(item)
        return [self.closing_line(item, at, draft=True)] if goes_on else []

    def invoice_renewal(
        self,
        subscription: Record,
        gone: list[Record],
        lines: list[Record],
        period: tuple[int, int],
        switched: bool,
    ) -> None:
        """Invoice a renewal; classic gives what a schedule replaced an invoice of its own."""
        switch_reason = self.meters.readings["switch_reason"]
        how = self.meters.readings["switch_lines"]
        if how == "absent":
            gone = []
        classic = subscription["billing_mode"] == "classic"
        if gone and (how == "apart" or (how == "by mode" and classic)):
            self.invoice(subscription, switch_reason, gone, period, draft=True)
            gone, switched_reason = [], "subscription_cycle"
            if not lines and not self.pending(subscription):
                return
        else:
            switched_reason = switch_reason
        reason = switched_reason if switched else "subscription_cycle"
        self.invoice(subscription, reason, [*gone, *lines], period, draft=True)

    # Time

    def advance(self, test_clock: Record, frozen_time: int) -> Record:
        """Move a test clock, and all that hangs on it, forward."""
        if frozen_time <= test_clock["frozen_time"]:
            message = "The time to advance to must be after the test clock's present one."
            raise StripeError(400, message, "frozen_time")
        test_clock["frozen_time"] = frozen_time
        busy = float(self.meters.readings["advances_for_seconds"])
        test_clock["ready_at"] = time.monotonic() + busy
        self.catch_up()
        return test_clock

    def delete_test_clock(self, test_clock: Record) -> None:
        """Remove a test clock with all that hangs on it, unless it advances."""
        if test_clock["ready_at"] > time.monotonic():
            raise StripeError(400, "The test clock is advancing.")
        for objects in self.objects.values():
            for found in list(objects.values()):
                if found.get("test_clock") == test_clock["id"]:
                    del objects[found["id"]]
        del self.objects["test_clock"][test_clock["id"]]

    def catch_up(self) -> None:
        """Let happen what has come due: renewals, ends and finalizations, in order."""
        while due := sorted(self.due(), key=lambda entry: entry[0]):
            due[0][1]()

    def due(self) -> list[tuple[int, Callable[[], None]]]:
        """Return what has come due, with its time."""
        found: list[tuple[int, Callable[[], None]]] = []
        for invoice in self.all("invoice"):
            if invoice["status"] == "draft":
                at = finalization(invoice)
                if at <= self.now(invoice["test_clock"]):
                    found.append((at, lambda i=invoice, at=at: self.finalize(i, at)))  # type: ignore[misc]
        for subscription in self.all("subscription"):
            if subscription["status"] in RENEWING:
                at = subscription["due"]
                if at <= self.now(subscription["test_clock"]):
                    found.append((at, lambda s=subscription, at=at: self.renew(s, at)))  # type: ignore[misc]
        return found

    # What a subscription looks like

    def state(self, subscription: Record) -> Record:
        """Return a subscription with its items and their prices in place."""
        whole = [
            {**item, "price": self.get("price", item["price"])} for item in self.items(subscription)
        ]
        return {**subscription, "items": whole}

    def notify(self, before: Record, subscription: Record) -> None:
        """Tell of an update if there was one."""
        after = deepcopy(self.state(subscription))
        if after != before:
            self.tell("customer.subscription.updated", after, before)


def check_prices(mode: str, prices: list[Record]) -> None:
    """Refuse prices that a billing mode does not take."""
    if mode == "classic" and len({length(price["recurring"]) for price in prices}) > 1:
        raise StripeError(400, ONE_INTERVAL, "items")
    legacy = any(is_metered(price) and not price["recurring"]["meter"] for price in prices)
    if mode == "flexible" and legacy:
        raise StripeError(400, LEGACY, "items")


def behavior_of(form: Record) -> str:
    """Return what a form says of prorations, or the default."""
    given = form.get("proration_behavior", BEHAVIORS[0])
    return choice(given, "proration_behavior", *BEHAVIORS)


def is_now(anchor: object) -> bool:
    """Read `billing_cycle_anchor`, which is an object since 2026-09-30.endive."""
    return anchor == "now" or (isinstance(anchor, dict) and anchor.get("type") == "now")


def future(value: object, now: int) -> int:
    """Return when a trial is to end."""
    at = integer(value, "trial_end")
    if at <= now:
        raise StripeError(400, "Invalid timestamp: must be an integer in the future.", "trial_end")
    return at


def trial_end_of(form: Record, now: int) -> int | None:
    """Return when the trial of a new subscription ends, if it has one."""
    if form.get("trial_end", "now") != "now":
        return future(form["trial_end"], now)
    days = integer(form.get("trial_period_days", 0), "trial_period_days")
    return now + days * DAY if days and "trial_end" not in form else None
