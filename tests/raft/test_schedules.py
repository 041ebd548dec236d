"""Random schedules with loss, doubling, reordering, cuts, crashes, compaction, transfers and reads, with tiny limits.

After every action the laws are checked (tests/raft/laws.py); at the end the faults stop and the cluster must recover.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.raft.network import Cluster
from tests.raft.schedule import WEIGHTED, Action, converge, perform, perform_out_of_step

TINY = st.fixed_dictionaries(
    {
        "election_ticks_min": st.sampled_from([6, 7]),
        "election_ticks_max": st.integers(10, 14),
        "heartbeat_ticks": st.integers(1, 2),
        "idle_ticks": st.integers(2, 6),
        "append_entries_max": st.integers(1, 4),
        "append_bytes_max": st.sampled_from([1, 100, 4096]),
        "inflight_messages_max": st.integers(1, 4),
        "inflight_bytes_max": st.sampled_from([1, 60, 4096]),
        "log_entries_kept_max": st.integers(1, 6),
        "log_bytes_kept_max": st.sampled_from([1, 200, 4096]),
        "log_bytes_held_max": st.sampled_from([1, 400, 9999]),
    }
)
NUMBERS = st.integers(0, 255)
SCHEDULES = st.lists(st.tuples(st.sampled_from(WEIGHTED), NUMBERS, NUMBERS), min_size=20, max_size=120)
relaxed = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@relaxed
@given(voters=st.sampled_from([1, 3, 3, 4, 5]), tiny=TINY, seed=st.integers(0, 99), schedule=SCHEDULES)
def test_laws_hold_on_drawn_schedules(voters: int, tiny: dict[str, int], seed: int, schedule: list[Action]) -> None:
    cluster = Cluster(voters, seed, **tiny)
    for action in schedule:
        perform(cluster, action)
    converge(cluster)


def drawn_limits(chance: random.Random) -> dict[str, int]:
    return {
        "election_ticks_min": chance.choice([6, 7]),
        "election_ticks_max": chance.randrange(10, 15),
        "heartbeat_ticks": chance.randrange(1, 3),
        "idle_ticks": chance.randrange(2, 7),
        "append_entries_max": chance.randrange(1, 5),
        "append_bytes_max": chance.choice([1, 100, 4096]),
        "inflight_messages_max": chance.randrange(1, 5),
        "inflight_bytes_max": chance.choice([1, 60, 4096]),
        "log_entries_kept_max": chance.randrange(1, 7),
        "log_bytes_kept_max": chance.choice([1, 200, 4096]),
        "log_bytes_held_max": chance.choice([1, 400, 9999]),
    }


def long_schedule(chance: random.Random, seed: int, cluster: Cluster, names: list[str]) -> None:
    """Longer than Hypothesis draws, in calm and wild phases; every other run with slow clocks among the good ones, every
    fourth with clocks that keep no step at all."""
    if seed % 2 == 0:
        cluster.slow = {chance.choice(cluster.configuration.voters), chance.choice(cluster.configuration.voters)}
    act = perform_out_of_step if seed % 4 == 3 else perform
    for _ in range(3):
        for _ in range(250):
            act(cluster, (chance.choice(names), chance.randrange(256), chance.randrange(256)))
        converge(cluster)
    assert cluster.laws.commit > 5, "the schedule hardly did anything"


@pytest.mark.parametrize("seed", range(40))
def test_laws_hold_on_long_schedules(seed: int) -> None:
    chance = random.Random(seed)
    cluster = Cluster(chance.choice([3, 3, 5]), seed, **drawn_limits(chance))
    long_schedule(chance, seed, cluster, WEIGHTED)
