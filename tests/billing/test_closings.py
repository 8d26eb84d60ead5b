"""What an update can have changed."""

from typing import Any

import pytest

from billing.closings import Update
from billing.subscriptions import Subscription

KNOWN = Subscription({"id": "sub_1"}, [{"id": "si_1"}], 7)
LATER = Subscription({"id": "sub_1"}, [{"id": "si_1"}], 8)


@pytest.mark.parametrize(
    ("previous", "current", "expected"),
    [
        ({}, KNOWN, False),
        ({"metadata": {"plan": None}, "cancel_at": 9}, KNOWN, False),
        ({"metadata": None}, KNOWN, False),
        ({"metadata": {"plan": None, "om_subject": "a"}}, KNOWN, True),
        ({"items": {"data": []}}, KNOWN, True),
        ({}, LATER, True),
    ],
)
def test_what_counts_can_change_by_items_our_metadata_or_since(
    previous: dict[str, Any], current: Subscription, expected: bool
) -> None:
    assert Update(KNOWN, 7, previous).can_change_what_counts(current) is expected
