"""Sequences and the low-water mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.session import Session


@given(st.lists(st.integers(0, 9)))
def test_the_mark_is_the_highest_sequence_up_to_which_all_are_closed(choices: list[int]) -> None:
    """Sequences are issued and closed in any order."""
    session = Session(7)
    issued = 0
    open_: list[int] = []
    for choice in choices:
        if choice < 5 or not open_:
            issued += 1
            assert session.issue() == issued
            open_.append(issued)
        else:
            session.close(open_.pop(choice % len(open_)))
        assert session.low_water == (min(open_) - 1 if open_ else issued)
        assert session.room(8) == session.low_water + 8 - issued


def test_a_sequence_is_closed_once_and_only_if_issued() -> None:
    session = Session(7)
    with pytest.raises(AssertionError):
        session.close(1)
    session.issue()
    session.close(1)
    with pytest.raises(AssertionError):
        session.close(1)
