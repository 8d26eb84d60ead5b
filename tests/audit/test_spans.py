"""The time that spans cover: gaps and overlaps, as tables and as properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.spans import OPEN_END, Counted, Coverage, Life, Span, gaps, overlaps
from usage import OpenMeterCustomer

ONE = Span(0, 0, "", "cus_1", "sub_1", "si_1", "price_A", "in_1")
WHOLE = [Life(0, OPEN_END)]


def spans(*times: tuple[int, int]) -> list[Span]:
    """Return spans, each on an invoice of its own."""
    return [
        replace(ONE, start=start, end=end, invoice=f"in_{n}")
        for n, (start, end) in enumerate(times)
    ]


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([], [(10, 90)]),
        ([(0, 100)], []),
        ([(10, 90)], []),
        ([(0, 50), (50, 100)], []),
        ([(50, 100), (0, 50)], []),
        ([(0, 40), (50, 100)], [(40, 50)]),
        ([(20, 30), (50, 60)], [(10, 20), (30, 50), (60, 90)]),
        ([(0, 60), (20, 30), (70, OPEN_END)], [(60, 70)]),
        ([(0, 5), (95, 99)], [(10, 90)]),
        # One of no length covers nothing.
        ([(0, 50), (60, 60), (70, 90)], [(50, 70)]),
    ],
)
def test_gaps_are_what_no_span_covers(
    times: list[tuple[int, int]], found: list[tuple[int, int]]
) -> None:
    assert [(gap.start, gap.end) for gap in gaps(spans(*times), WHOLE, [], 10, 90)] == found


def test_a_gap_is_cut_where_a_life_ends_and_where_a_price_changed() -> None:
    found = gaps(spans((0, 20)), [Life(0, 60)], [40], 10, 90)
    shown = [(gap.start, gap.end, gap.is_inside, gap.knows_price) for gap in found]
    assert shown == [(20, 40, True, True), (40, 60, True, False), (60, 90, False, False)]
    assert all(gap.before == spans((0, 20))[0] for gap in found)


def test_the_price_of_then_is_that_of_the_last_span_with_one() -> None:
    mark = replace(ONE, start=20, end=20, price="price_B")
    trial = replace(ONE, start=20, end=30, price="", bills=False)
    (gap,) = gaps([*spans((0, 20)), mark, trial, *spans((50, 90))], WHOLE, [50], 0, 90)
    assert (gap.start, gap.end, gap.knows_price) == (30, 50, True)
    assert gap.before in (mark, spans((0, 20))[0])


def test_what_came_before_all_spans_has_no_price() -> None:
    (gap,) = gaps(spans((30, OPEN_END)), [Life(30, OPEN_END)], [], 10, 90)
    assert (gap.before, gap.is_inside, gap.knows_price) == (None, False, False)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([], []),
        ([(0, 50), (50, 100)], []),
        ([(0, 50), (40, 100)], [(40, 50)]),
        ([(0, OPEN_END), (20, OPEN_END)], [(20, 90)]),
        ([(0, 100), (20, 30), (25, 60)], [(20, 30), (25, 60), (25, 30)]),
        ([(0, 10), (5, 10)], []),
        ([(0, 50), (20, 20)], []),
    ],
)
def test_overlaps_are_what_two_spans_bill(
    times: list[tuple[int, int]], found: list[tuple[int, int]]
) -> None:
    assert [(over.start, over.end) for over in overlaps(spans(*times), 10, 90)] == found


def test_what_costs_nothing_overlaps_nothing() -> None:
    free = replace(ONE, start=0, end=90, bills=False)
    assert overlaps([free, *spans((0, 90))], 0, 90) == []


times = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple)


@given(st.lists(times, max_size=8), st.lists(st.integers(0, 30), max_size=3))
def test_each_second_is_covered_or_in_one_gap(
    covered: list[tuple[int, int]], changes: list[int]
) -> None:
    found = gaps(spans(*covered), WHOLE, changes, 5, 25)
    for second in range(5, 25):
        is_covered = any(start <= second < end for start, end in covered)
        holding = [gap for gap in found if gap.start <= second < gap.end]
        assert len(holding) == (0 if is_covered else 1)


@given(st.lists(times, max_size=6))
def test_each_pair_of_spans_overlaps_once_or_not_at_all(covered: list[tuple[int, int]]) -> None:
    found = overlaps(spans(*covered), 5, 25)
    for second in range(5, 25):
        billing = sum(start <= second < end for start, end in covered)
        pairs = sum(over.start <= second < over.end for over in found)
        assert pairs == billing * (billing - 1) // 2


def test_coverage_takes_over_what_another_has_and_a_trial_once() -> None:
    counted = Counted("m1", "c")
    trial = replace(ONE, start=0, end=9, price="", bills=False)
    mine, other = Coverage(), Coverage()
    mine.spans[counted] = [trial]
    other.spans[counted] = [trial, *spans((9, 20))]
    other.lives[counted] = [Life(0, 20)]
    other.changes[Counted("m2", "c")] = [3]
    mine.add(other)
    assert mine.spans[counted] == [trial, *spans((9, 20))]
    mine.add(Coverage(lives=other.lives))
    assert mine.lives[counted] == [Life(0, 20)]
    assert mine.meters == ["m1"]


OWNER = Counted("m1", OpenMeterCustomer("01G65Z755AFWAKHE12NY0CQ9FH"))
SUBJECT = Counted("m1", "a")


def owning(theirs: list[Span], own: list[Span], *lives: Life) -> Coverage:
    """Return what is known of a customer with lives and spans, and of one of its subjects."""
    coverage = Coverage()
    coverage.spans |= {OWNER: theirs, SUBJECT: own}
    coverage.lives |= {OWNER: list(lives), SUBJECT: [Life(0, 20)]}
    coverage.owners[SUBJECT] = OWNER
    return coverage


@pytest.mark.parametrize(
    ("theirs", "own", "gaps_of_owner", "gaps_of_subject"),
    [
        ([(20, 100)], [(0, 20)], [], []),
        ([(20, 100)], [(0, 10)], [], [(10, 20)]),
        ([(20, 50), (60, 100)], [(0, 20)], [(50, 60)], []),
        ([], [], [(20, 90)], [(10, 20)]),
        ([(20, OPEN_END)], [(0, OPEN_END)], [], []),
    ],
)
def test_what_counts_a_customer_counts_its_subject_and_what_it_leaves_is_one_gap(
    theirs: list[tuple[int, int]],
    own: list[tuple[int, int]],
    gaps_of_owner: list[tuple[int, int]],
    gaps_of_subject: list[tuple[int, int]],
) -> None:
    coverage = owning(spans(*theirs), spans(*own), Life(20, OPEN_END))
    for counted, expected in ((OWNER, gaps_of_owner), (SUBJECT, gaps_of_subject)):
        found = coverage.gaps(counted, 10, 90)
        assert [(gap.start, gap.end) for gap in found] == expected
        assert all(gap.is_inside for gap in found)


def test_a_subject_that_nothing_but_its_customer_counts_is_one_that_is_counted() -> None:
    coverage = Coverage()
    coverage.owners[SUBJECT] = OWNER
    assert coverage.counted == {SUBJECT}
    assert coverage.meters == ["m1"]


def test_a_subject_is_billed_twice_beside_its_customer_and_its_customer_by_two_items() -> None:
    first, second = spans((0, 50), (40, 100))
    own = replace(ONE, start=45, end=60, item="si_2")
    coverage = owning([first, second], [own])
    found = [(one.start, one.end, one.first, one.second) for one in coverage.overlaps(OWNER, 0, 90)]
    assert found == [(40, 50, first, second)]
    found = [
        (one.start, one.end, one.first, one.second) for one in coverage.overlaps(SUBJECT, 0, 90)
    ]
    assert found == [(45, 50, first, own), (45, 60, second, own)]
