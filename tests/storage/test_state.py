"""The `State` port: RocksDB and its in-memory twin keep the same contract; RocksDB also stalls, dies and refuses."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.limits import Limits
from cluster.ports import State, StorageFailed
from node.storage.failpoints import VARIABLE
from node.storage.identity import ForeignFile, Identity
from node.storage.layout import after, data_prefix
from node.storage.memory import ForgettingState, MemoryState
from node.storage.rocks_state import RocksState
from node.storage.view import ShardState, StateBatch
from tests.storage.storage_world import VOTERS

MINE = Identity(bytes(range(16)), "n1")
LIMITS = Limits(snapshot_chunk_bytes=256)


@pytest.fixture(params=["memory", "rocks"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    engine: State = MemoryState() if request.param == "memory" else RocksState(tmp_path / "state", MINE)
    yield engine
    engine.close()


def pairs(
    state: State, start: bytes = b"a", end: bytes = b"zzz", *, reverse: bool = False
) -> list[tuple[bytes, bytes]]:
    return list(state.scan(start, end, reverse=reverse))


KEYS = st.binary(min_size=1, max_size=3).map(lambda key: b"k" + key)
BATCHES = st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=5), max_size=12), max_size=8)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BATCHES, KEYS, KEYS, st.booleans())
def test_it_is_an_ordered_map(
    state: State, batches: list[dict[bytes, bytes | None]], start: bytes, end: bytes, flush: bool
) -> None:
    state.delete_range(b"a", b"z")
    model: dict[bytes, bytes] = {}
    for batch in batches:
        assert state.write(batch)
        for key, value in batch.items():
            model.pop(key, None)
            if value is not None:
                model[key] = value
    if flush:
        asyncio.run(state.flush())
    expected = sorted((key, value) for key, value in model.items() if start <= key < end)
    assert pairs(state, start, end) == expected
    assert pairs(state, start, end, reverse=True) == expected[::-1]
    for key in [start, end, *model]:
        assert state.get(key) == model.get(key)
    frozen = state.snapshot()
    state.delete_range(start, end)
    state.write({b"k": b"new", b"k~~~~": b"new"})
    assert list(frozen.scan(start, end)) == expected
    assert pairs(state, start, end) == [(b"k", b"new")] * (start <= b"k" < end) + [(b"k~~~~", b"new")] * (
        start <= b"k~~~~" < end
    )
    frozen.close()


async def test_a_scan_shows_the_state_as_of_its_start(state: State) -> None:
    state.write({b"k%02d" % n: b"old" for n in range(50)})
    scan = state.scan(b"a", b"z")
    first = next(scan)
    state.write({b"k%02d" % n: None for n in range(50)})
    await state.flush()
    assert [first, *scan] == [(b"k%02d" % n, b"old") for n in range(50)]
    assert pairs(state) == []


async def test_many_scans_of_neighbouring_ranges_keep_to_their_bounds(state: State) -> None:
    choose = random.Random(1)
    for _ in range(20):
        state.write(
            {bytes([97 + choose.randrange(4)]) + choose.randbytes(6): choose.randbytes(100) for _ in range(500)}
        )
    await state.flush()
    whole = pairs(state)
    assert len(whole) == 10_000
    scans = [state.scan(bytes([97 + n]), bytes([98 + n])) for n in range(4)]
    assert [pair for scan in scans for pair in scan] == whole
    back = [state.scan(bytes([97 + n]), bytes([98 + n]), reverse=True) for n in range(4)]
    assert [pair for scan in reversed(back) for pair in scan] == whole[::-1]


def test_a_crash_of_the_twin_keeps_a_prefix_of_the_batches() -> None:
    for seed in range(60):
        medium, choose = ForgettingState(), random.Random(seed)
        state = medium.attach()
        histories: list[dict[bytes, bytes]] = [{}]
        flushed = 0
        model: dict[bytes, bytes] = {}
        for number in range(12):
            if choose.random() < 0.2:
                state.delete_range(b"k3", b"k6")
                model = {key: value for key, value in model.items() if not b"k3" <= key < b"k6"}
            else:
                batch = {b"k%d" % choose.randrange(10): choose.choice((None, b"%d" % number)) for _ in range(3)}
                state.write(batch)
                model = {k: v for k, v in {**model, **batch}.items() if v is not None}
            histories.append(model)
            if choose.random() < 0.2:
                asyncio.run(state.flush())
                flushed = len(histories) - 1
        medium.crash(choose)
        state.write({b"k0": b"from the dead"})
        assert state.write({}) and dict(medium.attach().scan(b"", b"z")) in histories[flushed:]
        medium.crash(choose, keep=False)


def opened(path: Path) -> RocksState:
    return RocksState(path / "state", MINE)


def test_a_stall_is_answered_and_nothing_is_written(tmp_path: Path) -> None:
    state = opened(tmp_path)
    limits = {"level0_slowdown_writes_trigger": "2", "level0_stop_writes_trigger": "2"}
    state._engine.set_options({"level0_file_num_compaction_trigger": "100", **limits})
    assert state.write({b"k%d" % number: b"x" for number in range(3)})
    state._engine.flush(True)  # the second file of level 0, after the identity's
    assert not state.write({b"new": b"x"}) and state.get(b"new") is None
    state.delete_range(b"k0", b"k2")
    assert state.get(b"k1") == b"x", "put off"
    state._engine.set_options(dict.fromkeys(limits, "30"))
    assert state.write({b"k1": b"after"})
    assert pairs(state) == [(b"k1", b"after"), (b"k2", b"x")], "the delete went first"
    state.close()


def test_the_state_of_another_cluster_or_node_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for other in (Identity(b"other", "n1"), Identity(MINE.cluster_id, "n2")):
        with pytest.raises(ForeignFile, match=str(tmp_path)):
            RocksState(tmp_path / "state", other)
    opened(tmp_path).close()


def test_one_process_opens_it_and_a_closed_one_answers_nothing(tmp_path: Path) -> None:
    state = opened(tmp_path)
    with pytest.raises(StorageFailed, match=str(tmp_path)):
        opened(tmp_path)
    state.close()
    for call in (lambda: state.get(b"a"), lambda: state.write({}), lambda: state.delete_range(b"a", b"b")):
        with pytest.raises(StorageFailed, match="closed"):
            call()


# A process of its own and no fork: the engine's threads do not survive one.
WRITER = """
import asyncio, sys
from pathlib import Path
from tests.storage.test_state import write_batches
asyncio.run(write_batches(Path(sys.argv[1])))
"""


def content(number: int) -> dict[bytes, bytes]:
    """Each batch names its number and writes a few keys."""
    return {b"number": b"%d" % number} | {b"k%d" % (number * n % 37): b"%d" % number * 50 for n in (1, 2, 3)}


async def write_batches(directory: Path) -> None:
    state = opened(directory)
    for number in range(1, 100):
        state.write(content(number))
        if number % 7 == 0:
            await state.flush()
            print(number, flush=True)


@pytest.mark.parametrize("name", ["state.write:20", "state.written:41", "flush.before:3", "flush.after:2"])
def test_a_kill_keeps_a_prefix_of_the_batches_and_all_that_was_flushed(tmp_path: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        env={**os.environ, VARIABLE: name},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    flushed = max(map(int, run.stdout.split()), default=0)
    state = opened(tmp_path)
    number = int(state.get(b"number") or b"0")
    assert number >= flushed > 0
    expected: dict[bytes, bytes] = {}
    for batch in range(1, number + 1):
        expected.update(content(batch))
    assert dict(pairs(state)) == expected
    state.close()


INSTALLER = """
import asyncio, sys
from pathlib import Path
from tests.storage.test_state import install_snapshots
asyncio.run(install_snapshots(Path(sys.argv[1])))
"""


def side(number: int) -> dict[bytes, bytes]:
    """What the shard holds after so many installs."""
    return {b"%03d" % key: b"%d" % number * 40 for key in range(number, number + 30)}


async def install_snapshots(directory: Path) -> None:
    """Shard 1 takes one snapshot after the other and tells each that is durable."""
    state = opened(directory)
    source, target = ShardState(state, 2, StateBatch(), 11, LIMITS), ShardState(state, 1, StateBatch(), 11, LIMITS)
    for number in range(1, 9):
        state.delete_range(data_prefix(2, 0), after(data_prefix(2, 0)))
        state.write({data_prefix(2, 0) + b"kv/" + key: value for key, value in side(number).items()})
        frozen = source.snapshot()
        sink = target.begin_install()
        while (chunk := await frozen.read()) is not None:
            await sink.add(chunk)
        frozen.close()
        sink.commit(number, 1, 0, VOTERS)
        await state.flush()
        print(number, flush=True)
        sink.finish()


@pytest.mark.parametrize("name", ["install.chunk:17", "install.before:3", "install.switched:3", "install.cleaned:3"])
def test_a_kill_during_an_install_leaves_one_side_or_the_other(tmp_path: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", INSTALLER, str(tmp_path)],
        env={**os.environ, VARIABLE: name},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    durable = max(map(int, run.stdout.split()), default=0)
    state = opened(tmp_path)
    shard = ShardState(state, 1, StateBatch(), 11)
    shard.clean()
    assert durable <= shard.applied_index <= durable + 1 and durable > 0
    assert dict(shard.view("kv").scan(b"", b"")) == side(shard.applied_index)
    assert len(pairs(state, b"d\0\1", b"d\0\2")) == 30
    state.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_that_meets_damage_does_not_just_end(tmp_path: Path, reverse: bool) -> None:
    """The engine's cursor looks as if it were at the end; only its status tells. Shown on each data block of a file."""
    state = opened(tmp_path)
    state.write({b"k%05d" % n: random.Random(n).randbytes(40) for n in range(1000)})
    state._engine.flush(True)
    whole = pairs(state, reverse=reverse)
    (table,) = [each["name"] for each in state._engine.live_files() if each["start_key"].startswith(b"k")]
    state.close()
    path = tmp_path / "state" / table.lstrip("/")
    original = path.read_bytes()
    for at in range(0, len(original) // 2, 4000):
        path.write_bytes(original[:at] + bytes([original[at] ^ 4]) + original[at + 1 :])
        with pytest.raises(StorageFailed, match="Corruption"):
            read_all(tmp_path, reverse)
    path.write_bytes(original)
    assert read_all(tmp_path, reverse) == whole and len(whole) == 1000


def read_all(path: Path, reverse: bool) -> list[tuple[bytes, bytes]]:
    state = opened(path)
    try:
        return pairs(state, reverse=reverse)
    finally:
        state.close()
