"""Take the README's picture: `.venv/bin/python -m tests.browser.picture`."""

from fakes import play
from fakes.processes import ROOT, Processes
from tests.browser.chromium import chromium
from tests.browser.test_play import RECORDS, Walk

PICTURE = ROOT / "docs" / "subscription.png"
WIDTH, HEIGHT = 1000, 1022


def main() -> None:
    """Walk to an invoice over a dollar, and take a picture of the subscription's page."""
    with Processes() as processes, chromium() as browser:
        walk = Walk(browser, processes, play.start(processes))
        walk.subscribe(RECORDS)
        walk.use(10)
        walk.update("plan=a")
        walk.reset()
        browser.open(browser.chrome.current_url.split("?")[0])
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        browser.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.chrome.save_screenshot(str(PICTURE))


if __name__ == "__main__":
    main()
