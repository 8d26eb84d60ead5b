"""Whether both services answer, what the key may read, and what the clock says."""

from collections.abc import Iterator

import stripe

from billing.clock import OFF_SECONDS
from billing.reports import Services
from billing.stripe_api import NotReported, StripeConnection, call
from doctor.findings import Finding, fine, to_do
from usage import openmeter_state, window_start_at

# What each right is needed for, and a list that it lets read
# (docs.stripe.com/stripe-apps/reference/permissions).
RIGHTS = {
    "subscription_read": ("/v1/subscriptions", "all reports"),
    "invoice_read": ("/v1/invoices", "drafts and the audit"),
    "plan_read": ("/v1/prices", "drafts and the audit"),
    "event_read": ("/v1/events", "flask replay and refused meter events"),
    "billing_meter_read": ("/v1/billing/meters", "Billing Meters"),
}
OF_SANDBOXES = {"billing_clock_read": ("/v1/test_helpers/test_clocks", "test clocks")}
WRITING = "what writes cannot be tried without writing: see the README's table of rights"


def lacks_a_right(error: NotReported) -> bool:
    """Say whether Stripe knows the key, but does not let it do this (docs.stripe.com/keys)."""
    return isinstance(error.__cause__, stripe.PermissionError)


def check_openmeter(services: Services, address: str) -> Finding:
    """See that OpenMeter answers; its meters are asked later, each that is named."""
    now = window_start_at(services.stripe.clock.now(), 60)
    state = openmeter_state(services.openmeter, "", now)
    if state == "ok":
        return fine("openmeter", f"answers at {address}")
    return to_do("openmeter", state)


def check_stripe(account: StripeConnection, address: str) -> Finding:
    """See that Stripe answers and knows the key, whatever that may do."""
    try:
        call(account, "get", "/v1/subscriptions", limit=1)
    except NotReported as error:
        if not lacks_a_right(error):
            return to_do("stripe", str(error))
    return fine("stripe", f"answers at {address}, and knows the key")


def check_shared_budget(account: StripeConnection) -> Iterator[Finding]:
    """See that the budget that machines share answered the call to Stripe just before."""
    rates = account.rates
    if rates.share and rates.shared:
        if rates.shared.is_gone():
            said = "does not answer: does Redis run, and let us in, at that address?"
            yield to_do("redis", f"RATE_LIMIT_REDIS {said}")
        else:
            yield fine("redis", "RATE_LIMIT_REDIS answers")


def check_clock(account: StripeConnection) -> Finding:
    """See that this host's clock is about right; Stripe has answered before."""
    ahead = account.clock.host_is_ahead()
    side = "ahead of" if ahead > 0 else "behind"
    said = f"this host's is {abs(ahead)} s {side} Stripe's"
    if abs(ahead) > OFF_SECONDS:
        return to_do("clock", f"{said}: set it, for signatures older than 300 s are refused")
    return fine("clock", said)


def check_rights(services: Services) -> Iterator[Finding]:
    """Read one entry of each list that is needed, and tell which the key may not read."""
    needed = RIGHTS | ({} if services.is_live else OF_SANDBOXES)
    lacking = 0
    for right, (path, purpose) in needed.items():
        try:
            call(services.stripe, "get", path, limit=1)
        except NotReported as error:
            lacking += 1
            what = f"give STRIPE_KEY {right}, for {purpose}" if lacks_a_right(error) else error
            yield to_do("rights", str(what))
    if not lacking:
        yield fine("rights", f"the key reads {', '.join(needed)}; {WRITING}")
