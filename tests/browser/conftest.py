"""One browser for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.browser.chromium import IS_MISSING, REASON, Browser, chromium
from tests.stories.test_life import tell

__all__ = ["tell"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if IS_MISSING:
        pytest.skip(REASON)
    with chromium() as running:
        yield running
