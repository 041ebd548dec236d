"""A real node whose state engine rots: the process sets it aside and goes on, from its log where that is whole, else quarantined."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import msgspec

from tests.storage.one_node import SHARDS, OneNode, one_node

PAIRS = {b"key-%d" % n: random.Random(n).randbytes(200) for n in range(300)}


def tables(node: OneNode) -> list[Path]:
    return sorted((node.directory / "state").glob("*.sst"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def same_process(node: OneNode) -> bool:
    assert node.process is not None
    return bool(msgspec.json.decode((node.directory / "run.json").read_bytes())["pid"] == node.process.pid)


def open_files(node: OneNode) -> list[str]:
    assert node.process is not None
    return [os.readlink(each) for each in Path(f"/proc/{node.process.pid}/fd").iterdir()]


async def test_a_state_that_cannot_be_opened_is_made_again_from_the_log(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.start()
        await node.put(PAIRS)
        assert node.stop() == 0 and tables(node)
        flip(tables(node)[-1], -3)  # the magic number at its end
        await node.start(lives=1)  # the first life ends before it counts as one
        assert same_process(node) and (node.directory / "state.damaged").is_dir()
        assert await node.get(list(PAIRS)) == PAIRS
        assert not any(each.quarantine for each in (await node.status()).replicas)
        assert not [name for name in open_files(node) if "damaged" in name], "nothing of the first life is left"
        assert node.stop() == 0
        await node.start()
        assert await node.get(list(PAIRS)) == PAIRS


async def test_damage_under_a_running_node_quarantines_what_the_log_has_not_from_its_start(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.start()
        await node.put(PAIRS)
        assert node.stop() == 0
        table = max(tables(node), key=lambda path: path.stat().st_size)
        flip(table, table.stat().st_size // 3)  # data that no start reads
        await node.start(lives=2)  # the log is released, the scrub finds it, and the process begins anew
        assert same_process(node) and (node.directory / "state.damaged").is_dir()
        for _ in range(2):
            rows = {each.shard: each for each in (await node.status()).replicas}
            assert set(rows) == set(range(SHARDS + 1))
            for shard in range(1, SHARDS + 1):
                assert rows[shard].role == "quarantined" and "behind the log's base" in rows[shard].quarantine
            node.stop(signal.SIGKILL)
            await node.start()
