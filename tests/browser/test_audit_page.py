"""The audit's HTML file, opened in a browser: what a reader sees, in the dark and on paper too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.chromium import Browser
from tests.conftest import DAY
from tests.stories.test_audit import audit, lacking
from tests.stories.test_life import FINAL, Story, T, Tell

Opened = Callable[[Story], None]
EVIL = "<img src=http://127.0.0.1:9/ onerror=alert(1)>"


@pytest.fixture
def opened(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Write a story's audit as a page, and open it."""

    def written(story: Story) -> None:
        file = tmp_path / "audit.html"
        result = audit(story, "--html", str(file))
        assert result.exit_code == 3, result.output
        monkeypatch.undo()  # else the machine's clock stands still for the browser's client, too
        browser.emulate()
        browser.requests()
        browser.open(file.as_uri())

    return written


def two_months(tell: Tell) -> Story:
    """Tell of an invoice that lacks 2 units, one that lacks none, and a subject nobody bills."""
    story = lacking(tell)
    story.use(20, T, subject=EVIL)
    story.used(70, T + DAY)
    end = story.shown()["items"]["data"][0]["current_period_end"]
    story.to(end + 60)
    story.deliver()
    story.to(end + FINAL)
    return story


def test_a_reader_sees_first_what_is_missing(tell: Tell, browser: Browser, opened: Opened) -> None:
    opened(two_months(tell))
    sentence = "2 invoices, 1 agree, 1 differ: 2 units, 0.20 USD not billed"
    assert browser.text(".sentence").startswith(sentence)
    assert browser.texts("h2") == ["What differs", "USD by month", "What agrees"]
    first, second = browser.texts("h2 + .scroll tbody tr")[:2]
    assert "12 10 2 0.20" in first
    assert EVIL in second
    places = [found.location["y"] for found in browser.all(".sentence, h2, svg")]
    assert places == sorted(places)
    assert browser.one(".lacks").text == "2"


def test_the_sums_are_those_of_the_bars(tell: Tell, browser: Browser, opened: Opened) -> None:
    opened(two_months(tell))
    months = browser.texts("svg + .scroll tbody tr")
    assert months == ["2023-06 1.20 1.00 0.20 0.00", "2023-07 7.00 7.00 0.00 0.00"]
    heights = {}
    for kind in ("metered", "billed", "missing"):
        heights[kind] = [bar.rect["height"] for bar in browser.all(f"rect.{kind}")]
    june, july = zip(*heights.values(), strict=True)
    assert june[0] == pytest.approx(june[1] + june[2], abs=1)
    assert july[0] == pytest.approx(july[1], abs=1)
    assert july[0] / june[0] == pytest.approx(7 / 1.2, rel=0.05)
    assert june[2] / june[1] == pytest.approx(0.2, rel=0.2)
    titles = [found.get_attribute("textContent") for found in browser.all("rect.missing title")]
    assert titles == ["2023-06: missing 0.20 USD", "2023-07: missing 0.00 USD"]


def test_what_agrees_is_unfolded_by_a_click(tell: Tell, browser: Browser, opened: Opened) -> None:
    opened(two_months(tell))
    assert not browser.one("details table").is_displayed()
    browser.one("details summary").click()
    assert browser.one("details table").is_displayed()
    assert "70 70 0 0.00" in browser.text("details tbody tr")


def test_nothing_is_fetched(tell: Tell, browser: Browser, opened: Opened, tmp_path: Path) -> None:
    opened(two_months(tell))
    assert browser.requests() == [(tmp_path / "audit.html").as_uri()]
    assert browser.all("script, img, link") == []


def test_a_dark_system_has_a_dark_page(tell: Tell, browser: Browser, opened: Opened) -> None:
    opened(two_months(tell))
    seen = {}
    for scheme in ("light", "dark"):
        browser.emulate(prefers_color_scheme=scheme)
        body, bar = browser.one("body"), browser.one("rect.billed")
        seen[scheme] = [body.value_of_css_property(name) for name in ("color", "background-color")]
        seen[scheme].append(bar.value_of_css_property("fill"))
    white, dark = "rgba(255, 255, 255, 1)", "rgba(20, 24, 33, 1)"
    assert (seen["light"][1], seen["dark"][1]) == (white, dark)
    assert all(one != other for one, other in zip(*seen.values(), strict=True))


def test_on_paper_the_page_is_as_wide_as_it(tell: Tell, browser: Browser, opened: Opened) -> None:
    opened(two_months(tell))
    browser.emulate("print")
    body = browser.one("body")
    assert [body.value_of_css_property(name) for name in ("padding", "max-width")] == [
        "0px",
        "none",
    ]
    link = browser.one("td a")
    assert link.value_of_css_property("color") == body.value_of_css_property("color")
    assert browser.chrome.print_page().startswith("JVBERi")  # a PDF, in base64
