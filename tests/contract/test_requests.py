"""stripe-mock, which is Stripe's own, accepts each request that goes to Stripe.

It judges paths and parameters by Stripe's OpenAPI document, whatever `Stripe-Version` a request
has; what it answers is canned. `make stripe-mock` builds it.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fakes.processes import DIRECT, ROOT, Process, wait_for
from probe.endings import RESET_VERSION
from tests.conftest import ACACIA, ENDIVE
from tests.contract.conftest import Sent
from tests.contract.source import ROOMS, written

# The release that judges requests of an API version. None that has usage records knows 2025: the
# older one's document is of 2022-11-15.
RELEASES = dict(re.findall(r"^STRIPE_MOCK_(\w+) = (\S+)", (ROOT / "Makefile").read_text(), re.M))
JUDGES = {
    ENDIVE: RELEASES["NEWEST"],
    RESET_VERSION: RELEASES["NEWEST"],
    ACACIA: RELEASES["USAGE_RECORDS"],
}
# What stripe-mock has no paths of: Stripe's second API.
NOT_SERVED = "/v2/core/events/"
LISTENS = re.compile(r"HTTP at address: (127\.0\.0\.1:\d+)")


@contextmanager
def stripe_mock(release: str) -> Iterator[str]:
    """Run a release of stripe-mock, and yield its address."""
    binary = ROOT / ".stripe-mock" / release / "stripe-mock"
    if not binary.exists():
        said = f"there is no stripe-mock {release}: make stripe-mock"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    free = "127.0.0.1:0"
    command = [str(binary), "-http-addr", free, "-https-addr", free]
    process = Process("stripe-mock", command, {})
    try:
        yield wait_for(lambda: LISTENS.search(process.printed()), "stripe-mock", 30)[1]
    finally:
        process.stop()


def refusal(address: str, sent: Sent, more: str = "") -> str:
    """Return why stripe-mock refuses a request with `more` parameters; empty if it does not."""
    path, form = sent.path, sent.form
    if sent.method == "GET" and more:
        path += ("&" if "?" in path else "?") + more
    elif more:
        form += f"&{more}"
    url = f"http://{address}{path}"
    request = urllib.request.Request(url, form.encode() or None, sent.headers, method=sent.method)
    try:
        with DIRECT.open(request, timeout=10) as answer:
            assert answer.status == 200
    except urllib.error.HTTPError as error:
        message = json.loads(error.read())["error"]["message"]
        return f"{sent.method} {path} {form}: {error.code} {message}"
    return ""


@pytest.mark.parametrize("version", JUDGES)
def test_stripe_mock_accepts_each_request(life: list[Sent], version: str) -> None:
    served = [s for s in life if s.version == version and NOT_SERVED not in s.path]
    with stripe_mock(JUDGES[version]) as address:
        assert [said for each in served if (said := refusal(address, each))] == []


@pytest.mark.parametrize("version", JUDGES)
def test_stripe_mock_refuses_a_parameter_that_is_not_stripes(
    life: list[Sent], version: str
) -> None:
    served = [s for s in life if s.version == version and NOT_SERVED not in s.path]
    with stripe_mock(JUDGES[version]) as address:
        for each in served:
            assert "400" in refusal(address, each, "unknown=1"), each


def test_stripe_mock_does_not_serve_thin_events(life: list[Sent]) -> None:
    with stripe_mock(JUDGES[ENDIVE]) as address:
        (thin,) = [each for each in life if NOT_SERVED in each.path]
        assert "Unrecognized request URL" in refusal(address, thin)


def test_no_call_of_the_source_is_left_out(life: list[Sent]) -> None:
    calls = list(written())
    assert [each for each in calls if not any(map(each.is_made_by, life))] == []
    # Nothing goes by another way than these.
    every = [ROOT / "app.py", *(p for name in ROOMS for p in ROOT.glob(f"{name}/*.py"))]
    assert sum(path.read_text().count(".raw_request(") for path in every) == 1
    script = (ROOT / "setup_stripe.py").read_text()
    assert script.count(".v1.") == sum(each.where == "setup_stripe.py" for each in calls)
