"""What is noted in Stripe's metadata, and read again; no network."""

import pytest

from billing.notes import (
    COUNTED_FROM,
    MOST_CHARACTERS,
    MOST_REMOVED,
    MOST_SECONDS,
    NO_METER,
    REMOVED,
    RemovedItem,
    noted_seconds,
    removed_items,
    with_removed,
    with_second,
)
from billing.stripe_api import Json


def holding(key: str, value: object) -> Json:
    return {"id": "si_1", "metadata": {"plan": "pro", key: value}}


def test_a_second_is_added_to_those_that_are_noted() -> None:
    assert with_second(holding(COUNTED_FROM, "5,70"), 9, 5) == holding(COUNTED_FROM, "5,9,70")
    assert noted_seconds(holding(COUNTED_FROM, "5,9,70")) == [5, 9, 70]
    newest = ",".join(str(second) for second in range(3, 3 + MOST_SECONDS))
    assert with_second({}, *range(3 + MOST_SECONDS))["metadata"] == {COUNTED_FROM: newest}


@pytest.mark.parametrize("value", [None, "", 5, ["5"]])
def test_what_is_no_text_notes_nothing(value: object) -> None:
    assert noted_seconds(holding(COUNTED_FROM, value)) == []
    assert removed_items(holding(REMOVED, value)) == {}


def test_a_removed_item_comes_back_as_it_counted() -> None:
    item = RemovedItem("si_1", 5, 100, "m1", "DAY")
    kept = {"om_window_size": "DAY", "om_meter_id": "m1", COUNTED_FROM: "5"}
    assert item.as_entry() == {"id": "si_1", "metadata": kept}
    bare = RemovedItem("si_2", 0, 200, NO_METER, "HOUR")
    assert bare.as_entry() == {"id": "si_2", "metadata": {"om_window_size": "HOUR"}}
    noted = holding(REMOVED, with_removed(holding(REMOVED, "spoiled"), [item]))
    assert with_removed(noted, [bare]) == "si_1 5 100 m1 DAY,si_2 0 200 - HOUR"
    both = holding(REMOVED, with_removed(noted, [bare]))
    assert removed_items(both) == {"si_1": item, "si_2": bare}


@pytest.mark.parametrize(("length", "kept"), [(6, MOST_REMOVED), (200, 2)])
def test_of_too_many_removed_items_the_newest_are_kept(length: int, kept: int) -> None:
    items = [RemovedItem(f"{'x' * length}{n}", 0, 1_000 - n, "m1", "HOUR") for n in range(8)]
    text = with_removed({}, items)
    assert len(text) <= MOST_CHARACTERS
    assert [*removed_items(holding(REMOVED, text)).values()] == items[:kept][::-1]
