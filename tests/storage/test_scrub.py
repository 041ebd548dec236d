"""The scrub finds what rotted on disk, whether the engine still has it in its cache or has not looked at it yet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.limits import Limits
from cluster.ports import StateDamaged
from node.storage import view
from node.storage.identity import Identity
from node.storage.manifest import manifest_path
from node.storage.rocks_state import RocksState
from node.storage.scrub import CHUNK_BYTES, Scrub
from node.storage.view import NodeState

AT_ONCE = 1 << 40
MINE = Identity(b"cluster", "n1")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[RocksState]:
    engine = filled(tmp_path / "state")
    yield engine
    engine.close()


def filled(path: Path) -> RocksState:
    engine = RocksState(path, MINE)
    for part in range(3):
        choose = random.Random(part)
        engine.write({b"d%05d" % choose.randrange(90_000): choose.randbytes(100) for _ in range(600)})
        engine._engine.flush(True)
    return engine


def tables(state: RocksState) -> list[Path]:
    return [state._path / each["name"].lstrip("/") for each in state._engine.live_files()]


def flip(path: Path, at: int) -> None:
    """One bit, in the file that the engine has open."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


async def test_a_whole_engine_passes_again_and_again_while_it_is_written(state: RocksState) -> None:
    size = sum(path.stat().st_size for path in [*tables(state), manifest_path(state._path)])
    first = await state.scrub(AT_ONCE)
    assert first > size, "the files, and once what is in them"
    assert await state.scrub(AT_ONCE) == size
    for part in range(12):  # new files come, old ones are compacted away
        state.write({b"e%05d" % n: bytes([part]) * 60 for n in range(300)})
        await asyncio.gather(state.flush(), state.scrub(AT_ONCE))
    state._engine.compact_range(None, None)
    assert await state.scrub(AT_ONCE) > 0 and len(state._scrub._seen) == len(tables(state)) + 1


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.95, 0.9999])
async def test_a_bit_that_flips_under_a_running_engine_is_found(state: RocksState, place: float) -> None:
    """Whether in data, index, filter, properties or footer."""
    await state.scrub(AT_ONCE)
    whole = list(state.scan(b"", b"\xff"))  # all of it is in the cache now
    table = tables(state)[1]
    flip(table, int(table.stat().st_size * place))
    assert list(state.scan(b"", b"\xff")) == whole
    with pytest.raises(StateDamaged, match=table.name):
        await state.scrub(AT_ONCE)
    for call in (lambda: state.get(b"d"), lambda: state.write({b"d": b"x"}), lambda: next(state.scan(b"d", b"e"))):
        with pytest.raises(StateDamaged):
            call()
    with pytest.raises(StateDamaged):
        await state.flush()


@pytest.mark.parametrize(
    "name, at", [("MANIFEST", 5), ("MANIFEST", 200), ("CURRENT", 2), ("CURRENT", 13), ("CURRENT", 15)]
)
async def test_a_bit_that_flips_in_what_names_the_tables_is_found(state: RocksState, name: str, at: int) -> None:
    await state.scrub(AT_ONCE)
    state.write({b"d": b"x"})
    await state.flush()
    assert await state.scrub(AT_ONCE) > 0, "it has grown, and is what it was"
    flip(manifest_path(state._path) if name == "MANIFEST" else state._path / name, at)
    with pytest.raises(StateDamaged):
        await state.scrub(AT_ONCE)


async def test_a_file_that_is_gone_or_cut_is_found(state: RocksState) -> None:
    await state.scrub(AT_ONCE)
    table = tables(state)[0]
    table.rename(table.with_suffix(".elsewhere"))
    with pytest.raises(StateDamaged, match="No such file"):
        await Scrub(state._path, state._engine, state._in_thread).run(AT_ONCE)
    table.write_bytes(table.with_suffix(".elsewhere").read_bytes()[:-1])
    with pytest.raises(StateDamaged, match="bytes"):
        await Scrub(state._path, state._engine, state._in_thread).run(AT_ONCE)


async def test_what_rotted_while_the_node_was_down_is_found_by_the_first_pass(tmp_path: Path) -> None:
    state = filled(tmp_path / "state")
    table = tables(state)[0]
    state.close()
    flip(table, table.stat().st_size // 2)
    again = RocksState(tmp_path / "state", MINE)
    with pytest.raises(StateDamaged, match="Corruption"):
        await again.scrub(AT_ONCE)
    again.close()


async def test_it_reads_no_faster_than_it_may_and_in_slices(state: RocksState, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    pause = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await pause(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    state.write({b"f%02d" % n: bytes(CHUNK_BYTES // 3) for n in range(20)})
    await state.flush()
    total = await state.scrub(1000)
    assert total / 1000 * 0.8 < sum(slept) <= total / 1000
    assert max(slept) <= (CHUNK_BYTES + CHUNK_BYTES // 3 + 100) / 1000


async def test_the_node_learns_of_damage_that_a_pass_or_a_mere_reader_met(
    state: RocksState, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(scrub_bytes_per_s=AT_ONCE, scrub_every_ms=1)
    monkeypatch.setattr(view, "LOOK_MS", 10)
    table = tables(state)[1]
    for found_by in ("scrub", "reader"):
        watch = asyncio.create_task(NodeState(state).watch_over(limits if found_by == "scrub" else Limits()))
        while not state._scrub._read_through:
            await asyncio.sleep(0.01)
        assert not watch.done()
        if found_by == "reader":
            state._failed("read", StateDamaged("met"))
        else:
            flip(table, 100)
        async with asyncio.timeout(20):
            with pytest.raises(StateDamaged):
                await watch
        flip(table, 100)
        state._failure, state._scrub._read_through = "", False
