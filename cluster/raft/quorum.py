"""Majorities of the voters (Raft paper, section 5.2 and 5.3). In a joint configuration both lists are asked (section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def majority(voters: int) -> int:
    """How many of so many voters are a quorum."""
    return voters // 2 + 1


def agreed(values: Iterable[int]) -> int:
    """The highest value that a quorum has reached; one value for each voter."""
    ordered = sorted(values, reverse=True)
    return ordered[len(ordered) // 2]


def won(votes: Mapping[int, bool], voters: Sequence[int]) -> bool:
    """Votes of others do not count."""
    return sum(votes.get(voter, False) for voter in voters) >= majority(len(voters))


def lost(votes: Mapping[int, bool], voters: Sequence[int]) -> bool:
    """So many refused that the rest cannot make a quorum."""
    return sum(votes.get(voter, True) for voter in voters) < majority(len(voters))
