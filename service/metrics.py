"""What the service counts, in Prometheus' text form: its log's lines, and the calls it makes.

Under several processes, `PROMETHEUS_MULTIPROC_DIR` is where they count together; it has to be set
before this module is imported, which `gunicorn.conf.py` does.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from itertools import product

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

# What makes two warnings of one event the same.
WARNING_KEY = ("event", "item", "warning", "meter_error", "period")
# How many warnings are remembered, so that an event that comes again does not count again.
MOST_WARNED = 10_000
PREFIX = "openmeter_stripe"
NOT_GENUINE, OTHER = "not genuine", "other"
LABELS = {
    "deliveries": (
        "reported",
        "repeated",
        "ignored",
        "failed",
        "invalid",
        NOT_GENUINE,
        "not signed",
        "error",
    ),
    "reports": ("reported", "failed", "refused"),
    "ways": ("usage record", "meter event"),
    "warnings": (
        "no rows",
        "closed",
        "refused",
        "reset",
        "changed",
        "below zero",
        "billed twice",
        "empty meter",
        "mode",
        "clock",
    ),
}  # fmt: skip
# Why Stripe refuses a meter event later
# (docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api).
METER_ERROR_CODES = (
    "archived_meter",
    "meter_event_customer_not_found",
    "meter_event_dimension_count_too_high",
    "meter_event_invalid_value",
    "meter_event_no_customer_defined",
    "meter_event_value_not_found",
    "meter_event_value_too_many_digits",
    "no_meter",
    "timestamp_in_future",
    "timestamp_too_far_in_past",
)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40)

DELIVERIES = Counter(f"{PREFIX}_deliveries", "Deliveries answered", ["type", "outcome"])
DELIVERY_SECONDS = Histogram(f"{PREFIX}_delivery_seconds", "Time until an answer", buckets=SECONDS)
REPORTS = Counter(f"{PREFIX}_reports", "Reports of an item's period", ["way", "outcome"])
METER_ERRORS = Counter(f"{PREFIX}_meter_errors", "Meter events that Stripe refused later", ["code"])
WARNINGS = Counter(f"{PREFIX}_warnings", "What somebody should look at", ["warning"])
CALL_SECONDS = Histogram(
    f"{PREFIX}_call_seconds", "Time of a call to a service", ["service"], buckets=SECONDS
)
LAST_SUCCESS = Gauge(
    f"{PREFIX}_last_success_timestamp_seconds",
    "When a delivery was reported in full",
    multiprocess_mode="max",
)
# Of all processes, the dead ones too: what these counted still counts.
START = Gauge(
    f"{PREFIX}_start_timestamp_seconds", "Since when this is counted", multiprocess_mode="min"
)


class CountLines(logging.Handler):
    """Count deliveries, reports and warnings as they are logged.

    Types of events other than `types` are counted as one.
    """

    def __init__(self, types: Collection[str]) -> None:
        super().__init__(logging.INFO)
        self.types = types
        self.warned: OrderedDict[tuple[object, ...], None] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line by its fields."""
        fields = vars(record)
        if "status" in fields:
            self.count_delivery(fields)
        if "warning" in fields and not self.repeats_warning(fields):
            WARNINGS.labels(fields["warning"]).inc()
        if "meter_error" in fields and not self.repeats_warning(fields):
            code = fields["meter_error"]
            METER_ERRORS.labels(code if code in METER_ERROR_CODES else OTHER).inc(fields["count"])
        if "way" in fields and fields.get("outcome") in LABELS["reports"]:
            REPORTS.labels(fields["way"], fields["outcome"]).inc()

    def repeats_warning(self, fields: dict[str, object]) -> bool:
        """Say whether an event that came again warned of the same before."""
        if "event" not in fields:
            return False
        key = tuple(fields.get(name) for name in WARNING_KEY)
        known = key in self.warned
        self.warned[key] = None
        if len(self.warned) > MOST_WARNED:
            self.warned.popitem(last=False)
        return known

    def count_delivery(self, fields: dict[str, object]) -> None:
        """Count a delivery's line."""
        known = fields.get("type", NOT_GENUINE)
        kind = known if known in {*self.types, NOT_GENUINE} else OTHER
        DELIVERIES.labels(kind, fields["outcome"]).inc()
        DELIVERY_SECONDS.observe(float(str(fields["milliseconds"])) / 1_000)
        if fields["outcome"] == "reported":
            LAST_SUCCESS.set_to_current_time()


def observer(service: str) -> Callable[[float], None]:
    """Return what takes the seconds of each call to a service."""
    return CALL_SECONDS.labels(service).observe


def begin_at_zero(types: Collection[str]) -> None:
    """Let each counter be there before it counts: Prometheus sees no increase in a first value.

    What was counted before Prometheus first asked is all from after the start.
    """
    START.set_to_current_time()
    for kind, outcome in product([*types, OTHER, NOT_GENUINE], LABELS["deliveries"]):
        DELIVERIES.labels(kind, outcome)
    for way, outcome in product(LABELS["ways"], LABELS["reports"]):
        REPORTS.labels(way, outcome)
    for warning in LABELS["warnings"]:
        WARNINGS.labels(warning)
    for code in (*METER_ERROR_CODES, OTHER):
        METER_ERRORS.labels(code)


def count_lines(logger: logging.Logger, types: Collection[str]) -> None:
    """Count a logger's lines from here on."""
    others = [handler for handler in logger.handlers if not isinstance(handler, CountLines)]
    logger.handlers[:] = [*others, CountLines(types)]
    begin_at_zero(types)


def exposition() -> bytes:
    """Return what was counted, in all processes, in Prometheus' text form."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
