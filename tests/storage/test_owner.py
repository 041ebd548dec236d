"""A shard's slice belongs to one replica: what another one left counts as nothing, and a dropped shard leaves nothing behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.limits import DEFAULT
from cluster.ports import State, StateDamaged
from cluster.raft.configuration import Configuration
from node.storage.identity import Identity
from node.storage.layout import configuration_key, data_prefix, header_key
from node.storage.memory import ForgettingState, MemoryState
from node.storage.rocks_state import RocksState
from node.storage.view import NodeState, ShardState, StateBatch
from tests.storage.storage_world import VOTERS, drive

JOINT = Configuration((1, 2, 4), (5,), (1, 2, 3), 8)


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    opened: State = MemoryState() if request.param == "memory" else RocksState(tmp_path / "s", Identity(b"c", "n1"))
    yield opened
    opened.close()


def everything(engine: State) -> list[bytes]:
    return [key for key, _ in engine.scan(b"a", b"z")]


def applied(engine: State, shard: int, replica: int, count: int = 5) -> ShardState:
    batch = StateBatch()
    state = ShardState(engine, shard, batch, replica)
    for index in range(state.applied_index + 1, state.applied_index + 1 + count):
        state.view("kv").put(b"%d" % index, b"of %d" % replica)
        if index == 2:
            state.set_configuration(JOINT)
        state.set_applied(index, 1, index)
    assert NodeState(engine).write_batch(batch)
    return state


def content(state: ShardState) -> dict[bytes, bytes]:
    return dict(state.view("kv").scan(b"", b""))


def test_the_configuration_is_one_with_the_applied_index() -> None:
    medium, batch = ForgettingState(), StateBatch()
    state = ShardState(medium.attach(), 1, batch, 11)
    assert state.configuration is None
    node = NodeState(medium.attach())
    state.set_applied(1, 1, 0)
    assert node.write_batch(batch)
    state.set_configuration(JOINT)
    assert ShardState(medium.attach(), 1, batch, 11).configuration == JOINT, "the overlay counts"
    state.set_applied(2, 1, 0)
    assert node.write_batch(batch)
    for seed in range(8):
        copy = ForgettingState()
        copy.pairs, copy.undo = medium.pairs.copy(), [dict(each) for each in medium.undo]
        copy.crash(random.Random(seed))
        found = ShardState(copy.attach(), 1, StateBatch(), 11)
        assert found.configuration == (JOINT if found.applied_index == 2 else None)


async def test_an_install_brings_its_configuration_with_it(engine: State) -> None:
    state = applied(engine, 1, 11)
    assert ShardState(engine, 1, StateBatch(), 11).configuration == JOINT
    sink = state.begin_install()
    sink.commit(50, 2, 0, VOTERS)
    assert state.configuration == VOTERS
    found = ShardState(engine, 1, StateBatch(), 11)
    assert (found.configuration, found.applied_index, found.replica) == (VOTERS, 50, 11)
    sink.finish()


@pytest.mark.parametrize("shard", [0, 1, 65535])
def test_what_another_replica_left_is_nothing_and_goes(engine: State, shard: int) -> None:
    beside = [applied(engine, other, 11) for other in (shard - 1, shard + 1) if 0 <= other < 2**16]
    applied(engine, shard, 11)
    engine.write({data_prefix(shard, 7) + b"kv/leftover": b"x"})
    found = ShardState(engine, shard, StateBatch(), 12)
    assert (found.applied_index, found.generation, found.configuration) == (0, 0, None)
    assert content(found) == {} and NodeState(engine).shards() == [state.shard for state in beside]
    for state in beside:
        again = ShardState(engine, state.shard, StateBatch(), 11)
        assert again.applied_index == 5 and len(content(again)) == 5 and again.configuration == JOINT
    applied(engine, shard, 12, 2)
    assert content(ShardState(engine, shard, StateBatch(), 12)) == {b"1": b"of 12", b"2": b"of 12"}
    assert NodeState(engine).durable_applied[shard] == (12, 2)


def test_what_waits_for_a_stalled_engine_does_not_come_back_under_another_id() -> None:
    medium, batch = ForgettingState(), StateBatch()
    engine = medium.attach()
    node, old, other = NodeState(engine), ShardState(engine, 1, batch, 11), ShardState(engine, 2, batch, 11)
    for state in (old, other):
        state.view("kv").put(b"k", b"old")
        state.set_configuration(JOINT)
        state.set_applied(1, 1, 0)
    medium.stalled = True
    assert not node.write_batch(batch)
    medium.stalled = False
    node.drop(1)
    assert node.write_batch(batch) and node.shards() == [2], "dropped for good"
    for state in (old, other):
        state.view("kv").put(b"k", b"old")
        state.set_applied(2, 1, 0)
    new = ShardState(engine, 1, batch, 12)  # without a drop before it
    assert node.write_batch(batch)
    assert content(new) == {} and content(other) == {b"k": b"old"} and node.shards() == [2]


async def test_a_dropped_shard_leaves_nothing(engine: State) -> None:
    node = NodeState(engine)
    applied(engine, 3, 11)
    applied(engine, 4, 11)
    engine.write({data_prefix(9, 1) + b"kv/of an install that never ended": b"x", data_prefix(9, 2): b"y"})
    assert node.shards() == [3, 4, 9]
    for shard in (3, 9, 9, 17):
        node.drop(shard)
    assert node.shards() == [4] and len(everything(engine)) == 7
    assert await node.flush() == {4: (11, 5)}


def test_a_drop_that_was_cut_short_is_seen_and_done_again() -> None:
    ends = set()
    for seed in range(40):
        medium = ForgettingState()
        engine = medium.attach()
        applied(engine, 1, 11)
        drive(engine.flush())
        NodeState(engine).drop(1)
        medium.crash(random.Random(seed))
        engine = medium.attach()
        ends.add(tuple(everything(engine)))
        found = ShardState(engine, 1, StateBatch(), 12)
        assert found.applied_index == 0 and content(found) == {} and everything(engine) == []
    assert len(ends) > 2


def test_a_header_or_a_configuration_that_makes_no_sense_is_damage() -> None:
    engine = MemoryState()
    applied(engine, 7, 11)
    for key, value in ((configuration_key(7), b"\xff"), (header_key(7), b"short"), (header_key(7), b"\1" + bytes(36))):
        engine.write({key: value})
        with pytest.raises(StateDamaged, match="shard 7"):
            ShardState(engine, 7, StateBatch(), 11, DEFAULT)
    with pytest.raises(StateDamaged):
        NodeState(engine)
