"""The texts: how long the README is, where links lead, which options and rooms there are."""

import re
import sys
from pathlib import Path

import pytest

from billing.periodic import report_command
from fakes.processes import ROOT

TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "fakes/*.md", "bench/*.md")
    for path in sorted(ROOT.glob(pattern))
]
MOST_LINES = 180
MOST_BYTES = 150_000


def outside_code(text: str) -> str:
    """Return a text without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a text's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", outside_code(path.read_text()), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def broken(path: Path) -> list[str]:
    """Return the relative links of a text that lead to no file, or to no heading of it."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", outside_code(path.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        is_inside = target.is_relative_to(ROOT) and target.is_file()
        if not is_inside or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_the_readmes_first_screen_has_both_commands_and_a_picture() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:15])
    assert re.findall(r"^make \w+", first, re.M) == ["make demo", "make play"]
    (picture,) = re.findall(r'<img src="([^"]+)"', first)
    assert 0 < (ROOT / picture).stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_its_heading(path: Path) -> None:
    assert broken(path) == []


def test_a_link_that_leads_nowhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    text = tmp_path / "a.md"
    text.write_text(
        "# One `two`, three\n[a](a.md#one-two-three) [b](b.md) [c](#none) [d](../d) [e](https://e.example)\n"
        "```\n# code\n[f](f.md)\n```\n"
    )
    assert broken(text) == ["b.md", "#none", "../d"]


def test_each_text_is_reached_from_the_readme() -> None:
    readme = ROOT / "README.md"
    linked = re.findall(r"\]\(([^)\s#]+)", outside_code(readme.read_text()))
    reached = {(ROOT / name).resolve() for name in linked if "://" not in name}
    assert set(TEXTS) - {readme} <= reached


def test_operating_names_the_options_of_flask_report() -> None:
    options = {name for parameter in report_command.params for name in parameter.opts}
    part = (ROOT / "docs" / "operating.md").read_text().split("\n## ")[1]
    assert set(re.findall(r"^\| `(--[a-z-]+)", part, re.M)) == options


def rooms() -> set[str]:
    """Return the modules that docs/development.md has a line for."""
    tree = (ROOT / "docs" / "development.md").read_text().split("```")[1]
    found, room = set(), ""
    for indent, name in re.findall(r"^( *)(\S+) ", tree, re.M):
        room = room if indent else name
        if name.endswith(".py"):
            found.add(f"{room}{name}" if indent else name)
    return found


def test_development_has_a_line_for_each_module() -> None:
    modules = [
        path
        for folder in ("", "audit/", "billing/", "doctor/", "probe/", "service/")
        for path in ROOT.glob(f"{folder}*.py")
    ]
    named = {str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py"}
    assert rooms() == named
