"""Which room may import which: arrows run one way."""

import ast
import re
import sys
from pathlib import Path

import pytest

from fakes.processes import ROOT

OURS = {
    "app",
    "audit",
    "billing",
    "bench",
    "doctor",
    "fakes",
    "probe",
    "service",
    "setup_stripe",
    "tests",
    "usage",
}
# What each module may import of ours; one that is not named here is not known to the house.
ARROWS = {
    "app": {
        "audit.command",
        "billing.clock",
        "billing.events",
        "billing.items",
        "billing.periodic",
        "billing.replay",
        "billing.reports",
        "billing.stripe_api",
        "doctor.command",
        "service.clients",
        "service.cores",
        "service.health",
        "service.late",
        "service.logs",
        "service.metrics",
        "service.rates",
        "service.settings",
        "service.sharing",
        "service.transport",
        "usage",
    },
    "usage": set(),
    "setup_stripe": set(),
    "gunicorn.conf": {
        "service.cores",
        "service.settings",
    },
    "billing.clock": set(),
    "billing.tables": set(),
    "billing.stripe_api": {
        "billing.clock",
        "service.health",
        "service.rates",
        "service.transport",
        "usage",
    },
    "billing.notes": {
        "billing.stripe_api",
    },
    "billing.items": {
        "billing.notes",
        "billing.stripe_api",
        "usage",
    },
    "billing.changes": {
        "billing.items",
        "billing.stripe_api",
    },
    "billing.invoices": {
        "billing.items",
        "billing.notes",
        "billing.stripe_api",
    },
    "billing.ways": {
        "billing.clock",
        "billing.items",
        "billing.stripe_api",
        "usage",
    },
    "billing.reports": {
        "billing.invoices",
        "billing.items",
        "billing.stripe_api",
        "billing.turns",
        "billing.ways",
        "service.health",
        "service.logs",
        "service.transport",
        "usage",
    },
    "billing.turns": {
        "billing.stripe_api",
        "service.transport",
    },
    "billing.losses": {
        "billing.invoices",
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "usage",
    },
    "billing.subscriptions": {
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "usage",
    },
    "billing.closings": {
        "billing.changes",
        "billing.clock",
        "billing.invoices",
        "billing.items",
        "billing.losses",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
    },
    "billing.noting": {
        "billing.changes",
        "billing.closings",
        "billing.items",
        "billing.notes",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
        "usage",
    },
    "billing.grace": {
        "billing.clock",
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
    },
    "billing.refusals": {
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "usage",
    },
    "billing.events": {
        "billing.changes",
        "billing.clock",
        "billing.closings",
        "billing.grace",
        "billing.invoices",
        "billing.items",
        "billing.losses",
        "billing.notes",
        "billing.noting",
        "billing.refusals",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
    },
    "billing.commands": {
        "billing.items",
        "billing.reports",
    },
    "billing.listing": {
        "billing.clock",
        "billing.invoices",
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
    },
    "billing.batches": {
        "billing.items",
        "billing.listing",
        "billing.reports",
        "usage",
    },
    "billing.claims": {
        "billing.items",
        "billing.reports",
        "billing.subscriptions",
    },
    "billing.comparing": {
        "billing.invoices",
        "billing.items",
        "billing.reports",
        "billing.tables",
        "billing.ways",
    },
    "billing.progress": {
        "billing.reports",
    },
    "billing.runs": {
        "billing.batches",
        "billing.claims",
        "billing.closings",
        "billing.commands",
        "billing.comparing",
        "billing.items",
        "billing.listing",
        "billing.progress",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
        "usage",
    },
    "billing.periodic": {
        "billing.commands",
        "billing.comparing",
        "billing.progress",
        "billing.reports",
        "billing.runs",
        "service.watching",
    },
    "billing.replay": {
        "billing.commands",
        "billing.events",
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "service.transport",
    },
    "audit.spans": {
        "usage",
    },
    "audit.pricing": {
        "billing.invoices",
        "billing.stripe_api",
    },
    "audit.rows": {
        "audit.pricing",
        "billing.invoices",
        "billing.stripe_api",
        "usage",
    },
    "audit.measuring": {
        "usage",
    },
    "audit.reading": {
        "audit.spans",
        "billing.closings",
        "billing.invoices",
        "billing.items",
        "billing.notes",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
    },
    "audit.repair": {
        "audit.pricing",
        "audit.reading",
        "audit.rows",
        "billing.invoices",
        "billing.stripe_api",
        "billing.subscriptions",
        "usage",
    },
    "audit.lines": {
        "audit.measuring",
        "audit.pricing",
        "audit.reading",
        "audit.repair",
        "audit.rows",
        "audit.spans",
        "billing.items",
        "billing.stripe_api",
        "billing.ways",
        "usage",
    },
    "audit.unbilled": {
        "audit.lines",
        "audit.measuring",
        "audit.rows",
        "audit.spans",
        "billing.invoices",
        "billing.stripe_api",
        "usage",
    },
    "audit.report": {
        "audit.pricing",
        "audit.rows",
        "billing.invoices",
        "billing.tables",
    },
    "audit.figures": {
        "audit.pricing",
        "audit.report",
        "audit.rows",
        "service.watching",
    },
    "audit.page": {
        "audit.pricing",
        "audit.report",
        "audit.rows",
    },
    "audit.command": {
        "audit.figures",
        "audit.lines",
        "audit.page",
        "audit.pricing",
        "audit.reading",
        "audit.repair",
        "audit.report",
        "audit.rows",
        "audit.unbilled",
        "billing.commands",
        "billing.stripe_api",
        "billing.tables",
        "service.watching",
    },
    "doctor.findings": set(),
    "doctor.reached": {
        "billing.clock",
        "billing.reports",
        "billing.stripe_api",
        "doctor.findings",
        "usage",
    },
    "doctor.destinations": {
        "billing.stripe_api",
        "doctor.findings",
        "doctor.reached",
    },
    "doctor.reading": {
        "billing.items",
        "billing.reports",
        "billing.stripe_api",
        "billing.subscriptions",
    },
    "doctor.meters": {
        "billing.reports",
        "billing.stripe_api",
        "billing.ways",
        "doctor.findings",
        "doctor.reading",
        "usage",
    },
    "doctor.command": {
        "billing.commands",
        "billing.reports",
        "doctor.destinations",
        "doctor.findings",
        "doctor.meters",
        "doctor.reached",
        "doctor.reading",
    },
    "probe.questions": set(),
    "probe.sandbox": {
        "billing.stripe_api",
        "probe.questions",
    },
    "probe.scene": {
        "billing.clock",
        "billing.stripe_api",
        "billing.ways",
        "probe.questions",
        "probe.sandbox",
    },
    "probe.meter_events": {
        "billing.clock",
        "probe.questions",
        "probe.sandbox",
        "probe.scene",
    },
    "probe.changes": {
        "billing.clock",
        "billing.stripe_api",
        "probe.questions",
        "probe.sandbox",
        "probe.scene",
    },
    "probe.endings": {
        "billing.clock",
        "billing.stripe_api",
        "probe.questions",
        "probe.sandbox",
        "probe.scene",
    },
    "probe.records": {
        "billing.clock",
        "billing.stripe_api",
        "billing.ways",
        "probe.questions",
        "probe.sandbox",
        "probe.scene",
    },
    "probe.telling": {
        "billing.clock",
        "billing.stripe_api",
        "probe.questions",
        "probe.records",
        "probe.sandbox",
        "probe.scene",
    },
    "probe.table": {
        "billing.tables",
        "probe.questions",
    },
    "probe.command": {
        "billing.commands",
        "billing.stripe_api",
        "billing.tables",
        "billing.ways",
        "probe.changes",
        "probe.endings",
        "probe.meter_events",
        "probe.questions",
        "probe.records",
        "probe.sandbox",
        "probe.table",
        "probe.telling",
        "service.clients",
        "service.rates",
        "service.settings",
    },
    "probe.__main__": {
        "probe.command",
    },
    "service.clients": {
        "service.transport",
    },
    "service.__main__": set(),
    "service.health": set(),
    "service.late": set(),
    "service.cores": set(),
    "service.rates": set(),
    "service.rates_redis": {
        "service.rates",
        "service.shared_redis",
    },
    "service.shared_redis": set(),
    "service.shared_file": set(),
    "service.sharing": {
        "service.late",
        "service.rates",
        "service.rates_redis",
        "service.settings",
        "service.shared_redis",
        "service.shared_file",
    },
    "service.logs": set(),
    "service.metrics": set(),
    "service.serving": {
        "service.logs",
    },
    "service.settings": {
        "usage",
    },
    "service.transport": set(),
    "service.watching": {
        "service.metrics",
        "service.transport",
    },
}
FLASK = {
    "app",
    "audit.command",
    "doctor.command",
    "billing.commands",
    "billing.periodic",
    "billing.replay",
}


# What imports by name: `module:attribute`.
PLACE = r"[a-z_]+\.[a-z_]+:[a-z_]+"


def imported(path: Path) -> set[str]:
    """Return the dotted names that a module imports, or names as `module:attribute`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & ARROWS.keys() or {module}
        elif isinstance(node, ast.Constant) and re.fullmatch(PLACE, str(node.value)):
            found.add(str(node.value).partition(":")[0])
    return found


def path_of(module: str) -> Path:
    """Return a module's file."""
    if module == "gunicorn.conf":
        return ROOT / "gunicorn.conf.py"
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def roots(names: set[str]) -> set[str]:
    """Return the first parts of dotted names."""
    return {name.split(".")[0] for name in names}


def test_the_house_has_these_rooms_and_no_other() -> None:
    folders = (ROOT, *(ROOT / name for name in ("audit", "billing", "doctor", "probe", "service")))
    files = {path for folder in folders for path in folder.glob("*.py")}
    assert {path for path in files if path.name != "__init__.py"} == set(map(path_of, ARROWS))
    assert len(list(ROOT.glob("*.py"))) == 4


@pytest.mark.parametrize("module", ARROWS)
def test_each_room_imports_what_its_arrows_say(module: str) -> None:
    names = imported(path_of(module))
    ours = {name for name in names if name.split(".")[0] in OURS}
    assert ours == ARROWS[module]
    assert ("flask" in roots(names)) == (module in FLASK)


def test_the_arrows_run_one_way() -> None:
    allowed = {
        "app": {"audit", "billing", "doctor", "service", "usage"},
        "doctor": {"doctor", "billing", "usage"},
        "probe": {"probe", "billing", "service"},
        "audit": {"audit", "billing", "service", "usage"},
        "billing": {"billing", "service", "usage"},
        "service": {"service", "usage"},
        "usage": set(),
        "setup_stripe": set(),
        "gunicorn": {"service"},
    }
    for module, arrows in ARROWS.items():
        assert roots(arrows) <= allowed[module.split(".")[0]], module
    left = dict(ARROWS)
    while left:  # takes away, again and again, what imports nothing that is left
        free = [module for module, arrows in left.items() if not arrows & left.keys()]
        assert free, f"these import each other: {', '.join(left)}"
        for module in free:
            del left[module]


def test_the_stand_ins_import_nothing_of_the_service() -> None:
    for path in (ROOT / "fakes").rglob("*.py"):
        theirs = {"flask", "jinja2", "werkzeug", "fakes"}
        assert roots(imported(path)) <= sys.stdlib_module_names | theirs


def test_the_stand_ins_lead_to_their_pages_and_know_no_more_of_them() -> None:
    for path in (ROOT / "fakes").glob("*.py"):
        pages = {name for name in imported(path) if name.startswith("fakes.pages")}
        assert (pages != set()) == (path.name in ("openmeter_api.py", "stripe_api.py")), path
        if pages:
            assert path.read_text().count("create_pages(") == 1
