"""Whether the meters that are named are there, and whether somebody bills what is in them."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

import usage
from billing.reports import Services
from billing.stripe_api import NotReported
from billing.ways import fetch_usable_billing_meter
from doctor.findings import Finding, fine, to_do
from doctor.reading import MOST_PAGES, Reading
from usage import OpenMeterCustomer, QueryFailed, window_start_at

# How long ago somebody may have had usage to be looked for.
USED_DAYS = 7
# Of meters of each kind, and of what could not be read, so many are looked at.
MOST = 100
# Of so many customers of OpenMeter's that bill a meter it is asked: of each by itself.
MOST_CUSTOMERS = 20


def check_reading(reading: Reading) -> Iterator[Finding]:
    """Tell what could not be read, and how much was."""
    for name, reason in reading.faults[:MOST]:
        yield to_do("metadata", f"{name}: {reason}")
    if not reading.meters:
        yield to_do(
            "metadata",
            "no running subscription, but for test clocks, and no price names om_meter_id: set it",
        )
    elif not reading.faults:
        read = f"{len(reading.items)} running items name a meter"
        more = "" if reading.is_whole else f"; of each list only {MOST_PAGES * 100:,} were read"
        yield fine("metadata", read + more)


def check_meters(reading: Reading, services: Services) -> Iterator[Finding]:
    """See that OpenMeter has each meter, and answers of what usage it has."""
    end = window_start_at(services.stripe.clock.now() + 60, 1)
    start = end - timedelta(days=USED_DAYS)
    for meter, where in islice(sorted(reading.meters.items()), MOST):
        try:
            used = usage.totals(services.openmeter, meter, None, start, end)
        except QueryFailed as error:
            yield to_do("meter", f"{error} (named by {where})")
            continue
        owned = fetch_owned(meter, reading, services, (start, end))
        for named_by, found in owned.items():
            if isinstance(found, QueryFailed):
                yield to_do("meter", f"{found} (named by {named_by})")
        yield check_subjects(meter, {name for name, total in used.items() if total}, owned, reading)
    if len(reading.meters) > MOST:
        yield fine("meter", f"only {MOST} of {len(reading.meters)} were looked at")


def fetch_owned(
    meter: str, reading: Reading, services: Services, times: tuple[datetime, datetime]
) -> dict[str, set[str] | QueryFailed]:
    """Return the subjects with usage of OpenMeter's customers, by a subscription that names one.

    Of each it has why OpenMeter did not tell it, if it did not.
    """
    customers = {
        item.subject: item.subscription
        for item in reading.items
        if item.meter == meter and isinstance(item.subject, OpenMeterCustomer)
    }
    owned: dict[str, set[str] | QueryFailed] = {}
    for customer, subscription in islice(customers.items(), MOST_CUSTOMERS):
        try:
            owned[subscription] = set(usage.totals(services.openmeter, meter, customer, *times))
        except QueryFailed as error:
            owned[subscription] = error
    return owned


def check_subjects(
    meter: str, used: set[str], owned: Mapping[str, set[str] | QueryFailed], reading: Reading
) -> Finding:
    """See that some running item bills each subject that had usage."""
    billed = {item.subject for item in reading.items if item.meter == meter}
    known = [found for found in owned.values() if isinstance(found, set)]
    nobodys = sorted(used.difference(billed, *known))
    customers = [whose for whose in billed if isinstance(whose, OpenMeterCustomer)]
    is_whole = reading.is_whole and len(known) == len(customers)
    said = f"{meter} is in OpenMeter, with usage of {len(used)} subjects in {USED_DAYS} days"
    if not nobodys:
        return fine("meter", said)
    if not is_whole:
        return fine("meter", f"{said}; who bills them, flask audit tells")
    return to_do(
        "meter",
        f"no running item bills {meter}'s usage of {len(nobodys)} subjects, such as "
        f"{usage.one_line(nobodys[0])}: is a subject wrong, did it end, is it on a test clock? "
        f"flask audit has them all",
    )


def check_billing_meters(reading: Reading, services: Services) -> Iterator[Finding]:
    """See that each Billing Meter bills the last running total."""
    for meter, price in islice(sorted(reading.billing_meters.items()), MOST):
        try:
            fetch_usable_billing_meter(services.stripe, meter)
        except NotReported as error:
            yield to_do("Billing Meter", f"{error} (of {price})")
        else:
            yield fine("Billing Meter", f"{meter} takes running totals")
    if len(reading.billing_meters) > MOST:
        yield fine("Billing Meter", f"only {MOST} of {len(reading.billing_meters)} were looked at")
