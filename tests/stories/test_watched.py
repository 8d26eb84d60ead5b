"""Which alerts a subscription's life raises, by the counters that the rules look at."""

import re
from collections.abc import Callable

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fakes.processes import ROOT
from tests.conftest import DAY, END
from tests.fakes.test_stripe_life import CLASSIC, FLEXIBLE
from tests.stories.test_life import FINAL, WAYS, Story, T, Tell

RULES = (ROOT / "deploy" / "prometheus" / "openmeter-stripe.rules.yml").read_text()
INCREASE = re.compile(r"^ *increase\((\w+)(?:\{(.*)\})?\[6h\]\) > 0$", re.M)
MATCHER = re.compile(r'(\w+)(=~?)"([^"]*)"')

Counts = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def counters(story: Story) -> Counts:
    """Return what was counted so far."""
    text = story.service.open("GET", "/metrics").text
    families: list[Metric] = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}


def looked_at() -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    """Return the counter of each alert that looks at one, with its matchers of labels."""
    parts = re.split(r"- alert: (\w+)\n", RULES)
    rules = zip(parts[1::2], parts[2::2], strict=True)
    found = {name: INCREASE.findall(rule) for name, rule in rules}
    return {name: (one[0][0], MATCHER.findall(one[0][1])) for name, one in found.items() if one}


def matches(labels: dict[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    """Say whether a series is one that a rule looks at."""
    return all(
        re.fullmatch(value if kind == "=~" else re.escape(value), labels[name])
        for name, kind, value in matchers
    )


Raised = Callable[[], set[str]]


def raised(story: Story) -> Raised:
    """Return what tells which alerts' counters went up from here on."""
    before = counters(story)

    def since() -> set[str]:
        up = [key for key, value in counters(story).items() if value > before[key]]
        return {
            alert
            for alert, (counter, matchers) in looked_at().items()
            if any(name == counter and matches(dict(labels), matchers) for name, labels in up)
        }

    return since


def test_the_rules_look_at_five_counters() -> None:
    assert list(looked_at()) == [
        "DeliveriesNotGenuine", "DeliveriesFail", "InvoiceMayBeWrong", "ReportsRefused",
        "MeterEventsRefused",
    ]  # fmt: skip


@WAYS
def test_a_renewal_without_loss_raises_none(tell: Tell, way: tuple[str, str]) -> None:
    story = tell(METRICS="1")
    alerts = raised(story)
    story.subscribe(*way)
    story.used(10, T)
    story.to(END + 60)
    story.deliver()
    story.used(5, END + DAY)
    story.to(END + FINAL)
    story.deliver()
    assert story.run().exit_code == 0
    assert story.billed()
    assert alerts() == set()


def test_a_customer_without_usage_raises_none(tell: Tell) -> None:
    story = tell(METRICS="1")
    alerts = raised(story)
    story.subscribe(FLEXIBLE, "A")
    story.to(END + 60)
    story.deliver()
    assert story.warned("no rows")
    assert alerts() == set()


def test_a_reset_that_lacks_units_raises_one(tell: Tell) -> None:
    story = tell(METRICS="1")
    story.subscribe(CLASSIC, "A")
    story.used(10, T - DAY)
    alerts = raised(story)
    story.use(2, T - 30)
    story.to(T)
    story.update(billing_cycle_anchor="now", proration_behavior="always_invoice")
    story.deliver()
    assert alerts() == {"InvoiceMayBeWrong"}


def test_an_outage_of_openmeter_raises_one(tell: Tell) -> None:
    story = tell(METRICS="1")
    story.subscribe(CLASSIC, "A")
    story.deliver()
    alerts = raised(story)
    story.openmeter.fault(path="/query", status=503, times=2)
    story.touch()
    story.deliver()
    assert alerts() == {"DeliveriesFail"}


@pytest.mark.parametrize(
    ("signature", "expected"), [("t=1,v1=0", {"DeliveriesNotGenuine"}), ("", set())]
)
def test_only_a_wrong_signature_points_to_the_secret(
    tell: Tell, signature: str, expected: set[str]
) -> None:
    story = tell(METRICS="1")
    alerts = raised(story)
    assert story.service.post("{}", signature).status_code == 400
    assert alerts() == expected
