"""Random schedules in which members come and go besides: learners, joint changes, leaders that leave, changes that are torn
apart. A removed replica goes on and disturbs until its node deletes it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.raft.network import Cluster
from tests.raft.schedule import MOVING, Action, converge, perform
from tests.raft.test_schedules import NUMBERS, TINY, drawn_limits, long_schedule, relaxed

CHANGES = st.lists(st.tuples(st.sampled_from(MOVING), NUMBERS, NUMBERS), min_size=20, max_size=120)


@settings(relaxed, max_examples=40)
@given(voters=st.sampled_from([1, 2, 3, 3, 4]), tiny=TINY, seed=st.integers(0, 99), schedule=CHANGES)
def test_laws_hold_while_members_change(voters: int, tiny: dict[str, int], seed: int, schedule: list[Action]) -> None:
    cluster = Cluster(voters, seed, **tiny)
    for action in schedule:
        perform(cluster, action)
    converge(cluster)


# In a joint configuration 9 finds elections that ask the new voters alone, 38 and 41 find such leases.
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 9, 38, 41])
def test_laws_hold_on_long_schedules(seed: int) -> None:
    chance = random.Random(f"changes {seed}")
    cluster = Cluster(chance.choice([1, 2, 3, 3, 4, 5]), seed, **drawn_limits(chance))
    long_schedule(chance, seed, cluster, MOVING)
    assert cluster.laws.newest[1].version > 1, "hardly anything changed"
