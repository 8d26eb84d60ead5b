"""Debian's Chromium, which opens pages and clicks as a person does."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from fakes.processes import wait_for

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IS_CI = os.environ.get("CI") == "true"
# CI installs them; elsewhere the tests do without.
IS_MISSING = not (BROWSER and DRIVER) and not IS_CI
REASON = "there is no chromium, or no chromedriver (Debian's chromium and chromium-driver)"
WAIT_SECONDS = 20
# Headless, and as root without its sandbox; it calls nobody of its own accord.
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1000,900",
)


class Browser:
    """A browser's window, by what a person sees in it."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def open(self, url: str) -> None:
        """Open an address."""
        self.chrome.get(url)

    def all(self, selector: str) -> list[WebElement]:
        """Return what a CSS selector finds."""
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first that a CSS selector finds."""
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str = "body") -> str:
        """Return the text that is seen in the first that a selector finds, on one line."""
        return " ".join(self.one(selector).text.split())

    def texts(self, selector: str) -> list[str]:
        """Return the text that is seen in each that a selector finds."""
        return [" ".join(found.text.split()) for found in self.all(selector)]

    def follow(self, text: str) -> None:
        """Click the link that has a text in it."""
        self.leave(self.chrome.find_element(By.PARTIAL_LINK_TEXT, text))

    def press(self, text: str, within: str = "body") -> None:
        """Press the first button with a text."""
        self.leave(next(b for b in self.all(f"{within} button") if b.text == text))

    def leave(self, element: WebElement) -> None:
        """Click what leads to another page, and wait until this one is gone."""
        page = self.one("html")
        element.click()

        def is_gone() -> bool:
            try:
                page.is_enabled()
            except WebDriverException:  # stale, or the browser is just about to leave it
                return True
            return False

        wait_for(is_gone, "another page", WAIT_SECONDS)

    def fill(self, name: str, text: str) -> None:
        """Fill a field."""
        field = self.one(f"[name={name}]")
        field.clear()
        field.send_keys(text)

    def choose(self, name: str, part: str) -> None:
        """Choose the last option of a list that has a text in it."""
        select = Select(self.one(f"[name={name}]"))
        select.select_by_visible_text([o.text for o in select.options if part in o.text][-1])

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last time."""
        entries = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [
            entry["params"]["request"]["url"]
            for entry in entries
            if entry["method"] == "Network.requestWillBeSent"
        ]

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what the browser logged since the last time."""
        entries: list[dict[str, Any]] = self.chrome.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def emulate(self, media: str = "", **features: str) -> None:
        """Show pages as on a medium, or to a reader who prefers something."""
        wanted = [{"name": name.replace("_", "-"), "value": one} for name, one in features.items()]
        asked = {"media": media, "features": wanted}
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", asked)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser that notes what it asks for."""
    options = ChromeOptions()
    options.binary_location = BROWSER or "chromium"
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for argument in ARGUMENTS:
        options.add_argument(argument)
    chrome = Chrome(options, ChromeService(DRIVER or "chromedriver"))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
