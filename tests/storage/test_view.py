"""A shard's slice: the overlay, the header, snapshots and their install, on the twin that forgets and on RocksDB."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import State, StorageFailed
from node.storage.identity import Identity
from node.storage.layout import after, data_prefix, header_key
from node.storage.memory import ForgettingState, MemoryState
from node.storage.rocks_state import RocksState
from node.storage.snapshot import PAIR, REST, REST_S_MAX, SLICE_PAIRS, read_pairs
from node.storage.view import NodeState, ShardState, SnapshotSink, SnapshotSource, StateBatch
from tests.client import virtual_time
from tests.storage.storage_world import VOTERS, drive

SMALL = Limits(snapshot_chunk_bytes=256)
KEYS = st.binary(max_size=3)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "delete", "write", "scan", "reverse"]), KEYS, KEYS), max_size=40
)


@given(STEPS)
def test_a_view_is_an_ordered_map_over_overlay_and_engine(steps: list[tuple[str, bytes, bytes]]) -> None:
    engine, batch = MemoryState(), StateBatch()
    node = NodeState(engine)
    views = {
        name: ShardState(engine, shard, batch, 11).view(name) for shard, name in ((1, "kv"), (1, "kva"), (2, "lock"))
    }
    models: dict[str, dict[bytes, bytes]] = {name: {} for name in views}
    for number, (what, key, other) in enumerate(steps):
        name = sorted(views)[(len(key) + number) % 3]
        view, model = views[name], models[name]
        if what == "put":
            view.put(key, other)
            model[key] = other
        elif what == "delete":
            view.delete(key)
            model.pop(key, None)
        elif what == "write":
            assert node.write_batch(batch) and not batch
        else:
            found = list(view.scan(key, other, reverse=what == "reverse"))
            expected = sorted((k, v) for k, v in model.items() if key <= k and (k < other or not other))
            assert found == (expected[::-1] if what == "reverse" else expected)
    for name, view in views.items():
        assert dict(view.scan(b"", b"")) == models[name]
        for key in models[name]:
            assert view.get(key) == models[name][key]
        assert view.get(b"no such key") is None


def test_a_scan_while_writing_shows_the_state_as_of_its_start() -> None:
    batch = StateBatch()
    view = ShardState(MemoryState(), 1, batch, 11).view("kv")
    for n in range(10):
        view.put(b"%d" % n, b"old")
    for key, value in view.scan(b"", b""):
        assert value == b"old"
        view.put(key, b"new")
        view.put(key + b"x", b"new")
    assert len(list(view.scan(b"", b""))) == 20


def test_the_header_is_one_with_what_it_counts() -> None:
    medium = ForgettingState()
    engine, batch = medium.attach(), StateBatch()
    node, shard = NodeState(engine), ShardState(engine, 7, batch, 11)
    view = shard.view("kv")
    for index in range(1, 9):
        view.put(b"k%d" % index, b"v")
        shard.set_applied(index, 3, index * 10)
        if index % 2 == 0:
            assert node.write_batch(batch)
    with pytest.raises(AssertionError, match="applies 8 after 8"):
        shard.set_applied(8, 3, 0)
    for seed in range(10):
        copy = ForgettingState()
        copy.pairs, copy.undo = medium.pairs.copy(), [dict(each) for each in medium.undo]
        copy.crash(random.Random(seed))
        found = ShardState(copy.attach(), 7, StateBatch(), 11)
        assert len(list(found.view("kv").scan(b"", b""))) == found.applied_index
        assert found.time_ms == found.applied_index * 10 and found.applied_index % 2 == 0
    engine.write({header_key(7): b"short"})
    with pytest.raises(StorageFailed, match="shard 7"):
        ShardState(engine, 7, StateBatch(), 11)


def test_durable_applied_is_what_was_in_the_engine_when_the_flush_began() -> None:
    engine, batch = MemoryState(), StateBatch()
    node, shard = NodeState(engine), ShardState(engine, 1, batch, 11)
    shard.set_applied(5, 1, 0)
    assert drive(node.flush()) == {} == node.durable_applied
    node.write_batch(batch)
    shard.set_applied(6, 1, 0)
    assert drive(node.flush()) == {1: (11, 5)} == node.durable_applied
    assert NodeState(engine).durable_applied == {1: (11, 5)}


async def test_a_write_during_a_flush_does_not_count_for_it() -> None:
    engine, batch = MemoryState(), StateBatch()
    node, shard = NodeState(engine), ShardState(engine, 1, batch, 11)
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow_flush() -> None:
        begun.set()
        await go.wait()

    engine.flush = slow_flush  # type: ignore[method-assign]
    shard.set_applied(1, 1, 0)
    node.write_batch(batch)
    async with asyncio.timeout(10):
        first = asyncio.create_task(node.flush())
        await begun.wait()
        shard.set_applied(2, 1, 0)
        node.write_batch(batch)
        second = asyncio.create_task(node.flush())
        go.set()
        assert (await first, await second) == ({1: (11, 1)}, {1: (11, 2)})


def test_a_stalled_engine_leaves_the_overlay() -> None:
    medium = ForgettingState()
    engine, batch = medium.attach(), StateBatch()
    node, view = NodeState(engine), ShardState(engine, 1, batch, 11).view("kv")
    view.put(b"a", b"1")
    medium.stalled = True
    assert not node.write_batch(batch) and view.get(b"a") == b"1" and len(batch) == 1
    medium.stalled = False
    assert node.write_batch(batch) and view.get(b"a") == b"1" and not batch


# -- snapshots ---------------------------------------------------------------------------------------------------------


def filled(engine: State, shard: int = 1, seed: int = 0) -> ShardState:
    choose, batch = random.Random(seed), StateBatch()
    state = ShardState(engine, shard, batch, 11, SMALL)
    for index in range(1, 40):
        view = state.view(choose.choice(("kv", "lock", "meta")))
        view.put(choose.randbytes(choose.randint(0, 20)), choose.randbytes(choose.choice((0, 10, 100, 700))))
        state.set_applied(index, 2, index)
    assert NodeState(engine).write_batch(batch)
    return state


def content(state: ShardState) -> dict[str, dict[bytes, bytes]]:
    return {name: dict(state.view(name).scan(b"", b"")) for name in ("kv", "lock", "meta")}


@pytest.fixture(params=["memory", "rocks"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    opened: State = MemoryState() if request.param == "memory" else RocksState(tmp_path / "s", Identity(b"c", "n1"))
    yield opened
    opened.close()


async def every(source: SnapshotSource) -> list[bytes]:
    """The chunks that are left."""
    chunks = []
    while (chunk := await source.read()) is not None:
        chunks.append(chunk)
    return chunks


async def install(sink: SnapshotSink, chunks: list[bytes]) -> None:
    for chunk in chunks:
        await sink.add(chunk)


async def test_a_snapshot_is_installed_elsewhere_with_the_same_digest(engine: State) -> None:
    source, target = filled(engine, 1, 1), filled(engine, 65535, 2)
    frozen = source.snapshot()
    digest, before = source.digest(), content(source)
    engine.write({data_prefix(1, 0) + b"kv/later": b"x"})
    chunks = await every(frozen)
    assert (frozen.applied_index, frozen.applied_term, frozen.time_ms) == (39, 2, 39)
    frozen.close()
    assert source.digest() != digest != target.digest()
    assert len(chunks) > 5
    view, sink = target.view("kv"), target.begin_install()
    await install(sink, chunks)
    assert content(target) != before
    sink.commit(100, 7, 555, VOTERS)
    await engine.flush()
    sink.finish()
    assert content(target) == before and target.digest() == digest
    assert dict(view.scan(b"", b"")) == before["kv"], "a view that was handed out follows"
    found = ShardState(engine, 65535, StateBatch(), 11)
    assert (found.applied_index, found.applied_term, found.time_ms, found.generation) == (100, 7, 555, 1)
    assert len(list(engine.scan(b"d\xff\xff", b"d\xff\xff\xff\xff\xff\xff\xff"))) == sum(map(len, before.values()))


def test_chunks_are_bounded_unless_one_pair_is_longer() -> None:
    engine = MemoryState()
    engine.write({data_prefix(1, 0) + b"kv/%03d" % n: bytes(60) for n in range(100)})
    engine.write({data_prefix(1, 0) + b"kv/big": bytes(5000)})
    sizes = [len(chunk) for chunk in asyncio.run(every(ShardState(engine, 1, StateBatch(), 11, SMALL).snapshot()))]
    assert sorted(sizes)[-1] > 5000 and max(sorted(sizes)[:-1]) <= 256 and len(sizes) < 40


async def test_a_source_goes_on_from_any_chunk_that_is_not_settled(engine: State) -> None:
    frozen = filled(engine, 1, 1).snapshot()
    engine.write({data_prefix(1, 0) + b"kv/": b"later"})
    chunks = await every(frozen)
    digest, count = frozen.digest, frozen.number
    assert digest == xxhash.xxh3_64_intdigest(b"".join(chunks)) and count == len(chunks) > 9
    for number in (0, 3, count - 1, count, 5):
        frozen.seek(number)
        assert await every(frozen) == chunks[number:]
        assert (frozen.digest, frozen.number) == (digest, count)
        assert await frozen.read() is None
    for number, known in ((0, True), (5, False), (6, True), (count, True), (count + 1, False)):
        frozen.settle(6)
        try:
            frozen.seek(number)
            assert known and await every(frozen) == chunks[number:] and frozen.digest == digest
        except TenfoldError as refusal:
            assert not known and refusal.code is Code.INVALID_ARGUMENT
    frozen.close()


async def test_a_chunk_that_was_broken_off_is_read_again_as_a_whole() -> None:
    engine = MemoryState()
    engine.write({data_prefix(1, 0) + b"kv/%04d" % n: b"x" for n in range(3 * SLICE_PAIRS)})
    frozen = ShardState(engine, 1, StateBatch(), 11, Limits()).snapshot()
    reading = asyncio.ensure_future(frozen.read())
    await asyncio.sleep(0)
    assert not reading.done(), "the first slice is over, and the loop may go on"
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    frozen.seek(0)
    whole = await every(frozen)
    assert [len(list(read_pairs(chunk))) for chunk in whole] == [3 * SLICE_PAIRS]
    assert frozen.digest == ShardState(engine, 1, StateBatch(), 11).digest()


@pytest.mark.parametrize(("pair_s", "rest_s"), [(1e-6, REST * SLICE_PAIRS * 1e-6), (1e-3, REST_S_MAX)])
def test_a_source_rests_after_each_slice_as_long_as_it_was_hard(pair_s: float, rest_s: float) -> None:
    engine, slices = MemoryState(), 20
    engine.write({data_prefix(1, 0) + b"kv/%06d" % n: b"x" for n in range(slices * SLICE_PAIRS)})

    async def elapsed_s() -> float:
        loop: Any = asyncio.get_running_loop()
        frozen = engine.snapshot()
        scan = frozen.scan

        def slow_scan(start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
            for pair in scan(start, end):
                loop._jump.now += pair_s
                yield pair

        frozen.scan = slow_scan  # type: ignore[method-assign]
        begun = loop.time()
        await every(SnapshotSource(frozen, 1, 1024 * 1024))
        return float(loop.time() - begun)

    work_s = slices * SLICE_PAIRS * pair_s
    assert virtual_time.run(elapsed_s()) == pytest.approx(work_s + slices * rest_s, rel=0.05)


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_a_closed_source_lets_the_engine_go(tmp_path: Path, read: int) -> None:
    """An iterator that is still alive would keep the lock of the engine's directory."""
    engine = RocksState(tmp_path / "s", Identity(b"c", "n1"))
    frozen = filled(engine).snapshot()
    for _ in range(read):
        await frozen.read()
    if read == 3:
        frozen.seek(1)
    frozen.close()
    frozen.close()
    engine.close()
    RocksState(tmp_path / "s", Identity(b"c", "n1")).close()


async def test_the_overlay_of_the_past_does_not_come_back(engine: State) -> None:
    """What was applied before the switch and not yet written must overwrite nothing after it."""
    batch, node = StateBatch(), NodeState(engine)
    target, other = ShardState(engine, 2, batch, 11, SMALL), ShardState(engine, 3, batch, 11, SMALL)
    frozen = filled(engine, 1).snapshot()
    chunks = await every(frozen)
    frozen.close()
    other.view("kv").put(b"other", b"1")
    target.view("kv").put(b"past", b"1")
    target.set_applied(5, 1, 0)
    assert len(list(target.view("kv").scan(b"", b""))) == 1
    sink = target.begin_install()
    await install(sink, chunks)
    sink.commit(50, 2, 0, VOTERS)
    other.view("kv").put(b"other", b"2")
    assert node.write_batch(batch) and ShardState(engine, 2, StateBatch(), 11).applied_index == 50
    other.view("kv").put(b"other", b"1")
    target.view("kv").put(b"future", b"2")
    target.set_applied(51, 2, 0)
    assert node.write_batch(batch)
    sink.finish()
    again = ShardState(engine, 2, StateBatch(), 11)
    assert again.applied_index == 51 and again.view("kv").get(b"past") is None
    assert again.view("kv").get(b"future") == b"2" and other.view("kv").get(b"other") == b"1"
    assert list(engine.scan(data_prefix(2, 0), after(data_prefix(2, 0)))) == []


async def test_an_aborted_install_leaves_nothing_and_another_may_follow(engine: State) -> None:
    frozen = filled(engine, 1).snapshot()
    chunks = await every(frozen)
    frozen.close()
    target = ShardState(engine, 2, StateBatch(), 11, SMALL)
    sink = target.begin_install()
    await install(sink, chunks[:3])
    sink.abort()
    assert list(engine.scan(b"d\0\2", b"d\0\3")) == []
    abandoned = target.begin_install()
    await install(abandoned, chunks[2:])
    sink = target.begin_install()
    await install(sink, chunks)
    sink.commit(9, 1, 1, VOTERS)
    sink.finish()
    assert target.digest() == ShardState(engine, 1, StateBatch(), 11).digest()


async def test_a_sink_that_is_given_up_while_it_writes_writes_no_more() -> None:
    engine = MemoryState()
    target = ShardState(engine, 2, StateBatch(), 11, SMALL)
    sink = target.begin_install()
    pairs = {b"kv/%04d" % n: b"x" for n in range(3 * SLICE_PAIRS)}
    writing = asyncio.ensure_future(
        sink.add(b"".join(PAIR.pack(len(key), len(value)) + key + value for key, value in pairs.items()))
    )
    await asyncio.sleep(0)
    written = len(list(engine.scan(b"d\0\2", b"d\0\3")))
    assert 0 < written <= SLICE_PAIRS, "in slices, between which the loop goes on"
    sink.abort()
    with pytest.raises(TenfoldError, match="given up"):
        await writing
    assert list(engine.scan(b"d\0\2", b"d\0\3")) == []


@pytest.mark.parametrize("cut", [1, 7, 9, 12])
async def test_a_malformed_chunk_is_refused(cut: int) -> None:
    frozen = filled(MemoryState()).snapshot()
    chunk = await frozen.read()
    assert chunk is not None
    sink = ShardState(MemoryState(), 2, StateBatch(), 11, SMALL).begin_install()
    with pytest.raises(TenfoldError) as refusal:
        await sink.add(chunk[:-cut] if cut < 9 else chunk + bytes(cut % 8) + b"\xff")
    assert refusal.value.code is Code.INVALID_ARGUMENT


def test_a_commit_into_a_stalled_engine_changes_nothing() -> None:
    medium = ForgettingState()
    target = filled(medium.attach())
    before = content(target)
    sink = target.begin_install()
    medium.stalled = True
    with pytest.raises(TenfoldError) as refusal:
        sink.commit(99, 9, 9, VOTERS)
    assert refusal.value.code is Code.OVERLOADED
    medium.stalled = False
    assert content(target) == before and target.applied_index == 39
    sink.commit(99, 9, 9, VOTERS)
    assert target.applied_index == 99, "and may be tried again"


POINTS = ("nothing", "some chunks", "chunks", "switched", "flushed", "finished")


@pytest.mark.parametrize("until", POINTS)
def test_a_crash_during_an_install_leaves_one_side_or_the_other(until: str) -> None:
    source = filled(MemoryState(), 1, 5)
    chunks, new = asyncio.run(every(source.snapshot())), content(source)
    sides = set()
    for seed in range(30):
        medium = ForgettingState()
        engine = medium.attach()
        target = filled(engine, 1, 6)
        drive(engine.flush())
        old = content(target)
        reach = POINTS.index(until)
        sink = target.begin_install()
        if reach >= 1:
            asyncio.run(install(sink, chunks[:3] if reach == 1 else chunks))
        if reach >= 3:
            sink.commit(100, 7, 5, VOTERS)
        if reach >= 4:
            drive(engine.flush())
        if reach >= 5:
            sink.finish()
        medium.crash(random.Random(seed))
        sink.abort()
        found = ShardState(medium.attach(), 1, StateBatch(), 11, SMALL)
        found.clean()
        switched = found.applied_index == 100
        assert content(found) == (new if switched else old)
        assert found.applied_index == (100 if switched else 39)
        data = list(medium.attach().scan(b"d", b"e"))
        assert len(data) == sum(map(len, (new if switched else old).values())), "the other generation is gone"
        sides.add(switched)
    assert sides == {"nothing": {False}, "some chunks": {False}, "chunks": {False}, "switched": {False, True}}.get(
        until, {True}
    )
