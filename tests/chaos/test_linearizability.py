"""The search itself, on objects of the tests' own."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from chaos.checkers.linearizability import Interval, Verdict, search


def counter(answers: list[int | None]):  # type: ignore[no-untyped-def]
    """A counter: operation i adds one and answers the new value (None: unknown)."""

    def step(state: Hashable, i: int) -> int | None:
        assert isinstance(state, int)
        return state + 1 if answers[i] in (None, state + 1) else None

    return step


def test_overlapping_operations_may_take_any_order() -> None:
    outcome = search([Interval(0, 10), Interval(1, 9), Interval(2, 8)], counter([3, 1, 2]), 0)
    assert outcome.verdict is Verdict.OK


def test_real_time_order_is_kept() -> None:
    outcome = search([Interval(0, 1), Interval(2, 3)], counter([2, 1]), 0)
    assert outcome.verdict is Verdict.VIOLATION
    assert outcome.blocked == 0, "the first return already has no explanation"


def test_an_unknown_operation_may_take_effect_later_or_never() -> None:
    assert search([Interval(0, None), Interval(5, 6), Interval(7, 8)], counter([None, 1, 3]), 0).verdict is Verdict.OK
    assert search([Interval(0, None), Interval(5, 6), Interval(7, 8)], counter([None, 1, 2]), 0).verdict is Verdict.OK
    assert search([Interval(5, None), Interval(1, 2)], counter([None, 2]), 0).verdict is Verdict.VIOLATION


def test_nothing_is_linearizable() -> None:
    assert search([], counter([]), 0).verdict is Verdict.OK
    assert search([Interval(0, None)], counter([None]), 0).steps == 0


@pytest.mark.parametrize("steps_max", [1, 10, 1000])
def test_beyond_its_bound_the_search_says_unknown(steps_max: int) -> None:
    """Eleven concurrent operations, each wanting to be the last: there are 11! orders."""
    intervals = [Interval(i, 100 + i) for i in range(11)]
    outcome = search(intervals, counter([11] * 11), 0, steps_max)
    assert outcome.verdict is (Verdict.UNKNOWN if steps_max < 1000 else Verdict.VIOLATION)
    assert outcome.steps <= steps_max + 1


def test_the_cache_keeps_a_hopeless_search_short() -> None:
    """Ten concurrent operations of one effect each: 10! orders, but only 2**10 sets of them."""

    def step(state: Hashable, i: int) -> Hashable:
        assert isinstance(state, frozenset)
        return state | {i} if i < 10 else None

    outcome = search([Interval(i, 100) for i in range(10)] + [Interval(50, 101)], step, frozenset())
    assert outcome.verdict is Verdict.VIOLATION
    assert outcome.steps < 20_000


def test_a_long_history_needs_no_recursion() -> None:
    operations = 30_000
    intervals = [Interval(2 * i, 2 * i + 1) for i in range(operations)]
    outcome = search(intervals, counter(list(range(1, operations + 1))), 0)
    assert outcome.verdict is Verdict.OK and outcome.steps == operations
