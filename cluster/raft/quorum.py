"""Majorities of the voters (Raft paper, section 5.2 and 5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def majority(voters: int) -> int:
    """How many of so many voters are a quorum."""
    return voters // 2 + 1


def agreed(values: Iterable[int]) -> int:
    """The highest value that a quorum has reached; one value for each voter."""
    ordered = sorted(values, reverse=True)
    return ordered[len(ordered) // 2]


def won(votes: Mapping[int, bool], voters: int) -> bool:
    return sum(votes.values()) >= majority(voters)


def lost(votes: Mapping[int, bool], voters: int) -> bool:
    """So many refused that the rest cannot make a quorum."""
    return voters - (len(votes) - sum(votes.values())) < majority(voters)
