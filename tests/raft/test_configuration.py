"""Configurations alone: which step may follow which, what is written, and what a log's truncation takes back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.raft import quorum
from cluster.raft.configuration import Configuration, problem_with_change
from cluster.raft.configurations import Configurations
from tests.raft.solo import config, entries

U64 = (1 << 64) - 1
ids = st.lists(st.integers(1, U64), unique=True, max_size=7).map(tuple)
few = st.lists(st.integers(1, 5), unique=True, max_size=5).map(tuple)


@given(ids, ids, ids, st.integers(0, U64))
def test_what_is_written_is_read(
    voters: tuple[int, ...], learners: tuple[int, ...], outgoing: tuple[int, ...], version: int
) -> None:
    configuration = Configuration(voters, learners, outgoing, version)
    assert Configuration.decode(configuration.encode()) == configuration


@given(st.data())
def test_what_is_none_is_not_read(data: st.DataObject) -> None:
    good = Configuration((1, 2, 3), (4,), (1, 2), 9).encode()
    cut = good[: data.draw(st.integers(0, len(good) - 1))]
    for bad in (cut, good + b"\0", b"\2" + good[1:]):
        with pytest.raises(ValueError, match="configuration"):
            Configuration.decode(bad)


OLD = Configuration((1, 2, 3), (4, 5), (), 7)
JOINT = Configuration((1, 2, 4), (5,), (1, 2, 3), 8)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (OLD, Configuration((1, 2, 3), (4, 5, 6), (), 8), ""),
        (OLD, Configuration((3, 2, 1), (), (), 7), ""),
        (OLD, JOINT, ""),
        (OLD, Configuration((6, 7), (), (1, 2, 3), 8), ""),
        (JOINT, JOINT.left(), ""),
        (OLD, Configuration((1, 2, 3, 4), (5,), (), 8), "without a joint"),
        (OLD, Configuration((1, 2), (4, 5), (), 8), "without a joint"),
        (OLD, Configuration((1, 2, 4), (5,), (1, 2), 8), "does not come from"),
        (OLD, Configuration((1, 2, 4), (5,), (1, 2, 3, 4), 8), "does not come from"),
        (JOINT, Configuration((1, 2, 3), (4, 5), (), 8), "left first"),
        (JOINT, Configuration((1, 2, 5), (), (1, 2, 4), 9), "left first"),
        (JOINT, OLD, "goes back"),
        (OLD, Configuration((1, 2, 3), (), (), 6), "goes back"),
        (OLD, Configuration((), (4,), (1, 2, 3), 8), "no voter"),
        (OLD, Configuration((1, 2, 2), (), (1, 2, 3), 8), "twice"),
        (OLD, Configuration((1, 2, 4), (4,), (1, 2, 3), 8), "twice"),
        (OLD, Configuration((0, 2, 4), (), (1, 2, 3), 8), "twice"),
        (OLD, Configuration((1, 2), (3,), (1, 2, 3), 8), "before the change is over"),
    ],
)
def test_which_change_may_follow(old: Configuration, new: Configuration, why: str) -> None:
    problem = problem_with_change(old, new)
    assert why in problem and bool(why) == bool(problem), problem


def majorities(configuration: Configuration) -> list[set[int]]:
    """All sets of members that can elect or commit."""
    lists = [each for each in (configuration.voters, configuration.outgoing) if each]
    return [
        set(some)
        for count in range(len(configuration.members) + 1)
        for some in itertools.combinations(configuration.members, count)
        if all(quorum.won(dict.fromkeys(some, True), voters) for voters in lists)
    ]


@given(few, few, few, few, few)
def test_majorities_of_configurations_that_follow_one_another_meet(
    voters: tuple[int, ...],
    outgoing: tuple[int, ...],
    new_voters: tuple[int, ...],
    learners: tuple[int, ...],
    new_outgoing: tuple[int, ...],
) -> None:
    """Paper, section 6: or two leaders could be elected in one term, each by a majority of its own configuration."""
    old = Configuration(voters, (), outgoing)
    assume(voters)
    candidates = [Configuration(new_voters, learners, each) for each in ((), old.voters, new_outgoing)]
    lawful = [new for new in candidates if not problem_with_change(old, new)]
    if old.joint:
        lawful.append(old.left())
    assume(lawful)
    for new in lawful:
        assert all(one & other for one in majorities(old) for other in majorities(new)), f"{old} and {new}"


def test_it_is_printed_for_people() -> None:
    assert str(JOINT) == "(1 2 4)&&(1 2 3) learners=(5) version=8" and str(Configuration(())) == "()"
    assert repr(config(7, 2, JOINT)) == f"7/2 CONFIG {JOINT}"


def test_a_log_brings_configurations_and_takes_them_back() -> None:
    """Thesis 4.1: the last of the log is in force; when its entry goes, the one before it is again."""
    stack = Configurations(OLD)
    assert stack.last == (0, OLD) and stack.before_last is None
    assert not stack.appended(entries(1, 1))
    assert stack.appended([*entries(1), config(4, 1, JOINT), config(5, 1, JOINT.left())])
    assert stack.last == (5, JOINT.left()) and stack.before_last == JOINT and stack.applied == OLD
    assert stack.replaced(5) and stack.last == (4, JOINT)
    assert not stack.replaced(5)
    stack.appended([config(5, 2, JOINT.left())])
    stack.forget(4)
    assert stack.applied == JOINT and stack.last == (5, JOINT.left())
    stack.forget(9)
    assert stack.applied == JOINT.left() and stack.last == (5, JOINT.left()) and stack.before_last is None
