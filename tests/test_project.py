"""What has to agree across the project's files."""

import ast
import re
from pathlib import Path

import pytest

from fakes.processes import ROOT
from service import metrics, settings

# Distributions whose module has another name, or that are commands.
MODULES = {
    "prometheus-client": "prometheus_client",
    "pyrate-limiter": "pyrate_limiter",
    "pytest-mock": "pytest_mock",
    "python-dotenv": "dotenv",
    "python-json-logger": "pythonjsonlogger",
    "pyyaml": "yaml",
}
# Where OpenMeter's docker compose quickstart answers; the code's default is a bare server's.
QUICKSTART, ADDRESS = "http://localhost:48888", r"http://localhost:\d+"
COMMANDS = {"gunicorn", "mypy", "pytest-socket", "pytest-xdist", "ruff"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    found = [re.fullmatch(r"([a-z][\w-]*)==(\S+) +# \S.*", line) for line in lines]
    kept = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert len(kept) == sum(match is not None for match in found), "each pin needs its reason"
    return {match[1]: match[2] for match in found if match}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_the_example_the_readme_and_the_code_name_the_same_settings() -> None:
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    readme = (ROOT / "README.md").read_text()
    table = re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", readme, re.M)
    defaults = {name: default or "" for name, (default, _) in settings.SETTINGS.items()}
    assert example == {**defaults, "OPENMETER_URL": QUICKSTART}
    # Both give the quickstart's address, and both say what the default is.
    assert set(re.findall(r"http://localhost:\d+(?=/api)", readme)) == {QUICKSTART}
    for text in (readme, (ROOT / ".env.example").read_text()):
        assert {QUICKSTART, defaults["OPENMETER_URL"]} <= set(re.findall(ADDRESS, text))
    assert {name: cell.strip().strip("`") for name, cell in table} == {
        name: "required" if default is None else default or "none"
        for name, (default, _) in settings.SETTINGS.items()
    }


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_each_requirement_is_pinned_as_locked_and_is_used(name: str) -> None:
    locked = dict(
        re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.M)
    )
    folders = ("audit", "billing", "doctor", "service", "fakes", "tests")
    ours = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    used = set().union(*map(imports, ours))
    for package, version in pins(name).items():
        assert locked[package] == version
        assert package in COMMANDS or MODULES.get(package, package) in used, package


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-run.lock"])
def test_a_lock_has_a_hash_for_each_package_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = re.split(r"^(?=[a-z])", text, flags=re.M)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


RAISED = {"InvalidStripeObject"}
SAYS = RAISED | {
    "BadRequest", "PeriodClosed", "ReportFailed", "ReportRefused",
    "QueryFailed", "UnprocessableEntity", "fail", "warn", "warning",
}  # fmt: skip


def texts(node: ast.AST) -> list[str]:
    """Return the texts in a piece of code, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return ["".join(map(str, parts))]
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    return [text for inner in ast.iter_child_nodes(node) for text in texts(inner)]


def messages() -> set[str]:
    """Return what the service says where it fails, refuses or warns."""
    said = set()
    for path in [
        ROOT / "app.py",
        ROOT / "usage.py",
        *ROOT.glob("audit/*.py"),
        *ROOT.glob("billing/*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                said |= set(texts(node.value))
            elif isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                # What goes on after a `reason` is known by that.
                given = texts(node) if called in SAYS else []
                said |= {text for text in given if not text.startswith("…") or called in RAISED}
    kinds = metrics.LABELS["warnings"]  # held in docs/operating.md
    return {text for text in said if re.search("[a-z]{3} [a-z]", text) and text not in kinds}


def test_troubleshooting_names_each_warning_and_error_and_no_other() -> None:
    part = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = " ".join(re.findall(r"^\| (.*?) \|", part, re.M))
    symptoms = [re.split(" ?… ?", name) for name in re.findall("`([^`]+)`", cells)]
    said = messages()
    assert len(said) > 30
    for message in said:
        known = any(all(piece in message for piece in symptom) for symptom in symptoms)
        assert known, message
    sources = [ROOT / "app.py", ROOT / "usage.py", ROOT / "service" / "settings.py"]
    telling = "shared_file.py", "shared_redis.py", "transport.py", "watching.py"
    sources += [ROOT / "service" / name for name in telling]
    sources += [*ROOT.glob("audit/*.py"), *ROOT.glob("billing/*.py")]
    every = "\n".join(text for path in sources for text in texts(ast.parse(path.read_text())))
    by_stripe = {"No signatures found matching", "Timestamp outside the tolerance zone"}
    for symptom in symptoms:
        for piece in symptom:
            assert piece in every or piece in by_stripe, piece
