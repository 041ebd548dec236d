"""One bit is flipped in each kind of place of a node's real files: it is noticed or mended, and nothing wrong is ever served.

The directory is what a node leaves: segments of the log, the state engine with several table files, a sealed file. A start reads
it as the node does, and then the scrub reads the rest.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.ports import StateDamaged
from cluster.raft.messages import Entry, HardState
from node.storage.disk import RealDisk
from node.storage.identity import Identity, Sealed
from node.storage.log import RecoveredShard, ShardRound
from node.storage.manifest import manifest_path
from node.storage.record import FRAME_BYTES, RECORD_BYTES, FrameKind, RecordKind
from node.storage.rocks_state import RocksState
from node.storage.segment import HEAD_BYTES
from node.storage.view import NodeState, ShardState, StateBatch
from tests.storage.storage_world import CLUSTER, VOTERS, Model, ShardModel, difference, open_log, places_of

MINE = Identity(CLUSTER, "n1", "boot-1")
FACTS = b"the last map"
SHARDS = (1, 2, 3)
APPLIED = 30
TRIES = 5

Content = dict[int, dict[bytes, bytes]]
Where = list[tuple[str, int, int]]
"""(path, first byte, length) of places of one kind."""


@dataclass
class Start:
    """What a start finds. `damage` is the state engine's."""

    facts: bytes | None = None
    damage: str = ""
    found: dict[int, RecoveredShard] = field(default_factory=dict)
    content: Content = field(default_factory=dict)
    suspect: str = ""

    @property
    def quarantined(self) -> set[int]:
        return {shard for shard, each in self.found.items() if each.quarantine}


async def write(root: Path) -> tuple[Model, Content]:
    """A node's life: 40 rounds, of which 30 are applied and flushed in three parts; what must be found after it."""
    disk = RealDisk(root)
    await Sealed(disk, "facts").write(MINE, FACTS)
    log, _ = await open_log(disk)
    state, batch = RocksState(root / "state", MINE), StateBatch()
    node = NodeState(state)
    model = {shard: ShardModel(11) for shard in SHARDS}
    slices = {shard: ShardState(state, shard, batch, 11) for shard in SHARDS}
    for shard in SHARDS:
        log.begin(shard, 11, VOTERS, fresh=True)
    for index in range(1, 41):
        rounds = []
        for shard in SHARDS:
            payload = random.Random(index * shard).randbytes(60)
            hard = HardState(1 + index // 20, 11, index - 1)
            rounds.append(ShardRound(shard, 11, [Entry(index, hard.term, 0, payload)], hard, None))
            model[shard].take(rounds[-1])
            if index <= APPLIED:
                for part in range(8):
                    slices[shard].view("kv").put(b"%03d/%d" % (index, part), payload)
                slices[shard].set_configuration(VOTERS)
                slices[shard].set_applied(index, hard.term, index)
        log.append(rounds)
        await log.sync()
        if index % 10 == 0 and index <= APPLIED:
            assert node.write_batch(batch)
            await node.flush()
    content = {shard: dict(slices[shard].view("kv").scan(b"", b"")) for shard in SHARDS}
    await log.close()
    state.close()
    disk.close()
    return model, content


async def start(root: Path) -> Start:
    found, disk = Start(), RealDisk(root)
    try:
        found.facts = Sealed(disk, "facts").read(MINE)
        try:
            found.content = await read_state(root)
        except StateDamaged as error:
            found.damage = str(error)
        log, found.found = await open_log(disk)
        found.suspect = log.suspect
        await log.close()
    finally:
        disk.close()
    return found


async def read_state(root: Path) -> Content:
    state = RocksState(root / "state", MINE)
    try:
        NodeState(state)
        slices = {shard: ShardState(state, shard, StateBatch(), 11) for shard in SHARDS}
        assert all(each.applied_index == APPLIED and each.configuration == VOTERS for each in slices.values())
        content = {shard: dict(each.view("kv").scan(b"", b"")) for shard, each in slices.items()}
        await state.scrub(1 << 40)
        return content
    finally:
        state.close()


# -- where things lie --------------------------------------------------------------------------------------------------


def log_places(root: Path) -> dict[str, Where]:
    """The last round is left out: after a restart of the machine damage there is a torn write, which test_damage shows."""
    disk = RealDisk(root)
    paths = [f"log/{name}" for name in disk.list("log")]
    places = [place for path in paths for place in places_of(disk, path)]
    disk.close()
    last = max(place.number for place in places)
    found: dict[str, Where] = {"segment head": [(path, 0, HEAD_BYTES) for path in paths]}
    for place in places:
        checkpoint = place.kind == FrameKind.CHECKPOINT
        payload = (place.path, place.offset + RECORD_BYTES, place.length - RECORD_BYTES)
        if place.number == last or (checkpoint and place.number == 0):
            continue
        if not place.shard:
            name = "header of a checkpoint" if checkpoint else "header of a round"
            found.setdefault(name, []).append((place.path, place.offset, FRAME_BYTES))
            continue
        kinds = {
            RecordKind.HARD_STATE: "hard state",
            RecordKind.BEGIN: "configuration",
            RecordKind.CHECKPOINT: "line of a checkpoint",
        }
        name = kinds.get(place.record, "entry")
        found.setdefault("header of a record", []).append((place.path, place.offset, RECORD_BYTES))
        found.setdefault(name, []).append(payload)
    return found


def state_places(root: Path) -> dict[str, Where]:
    directory = root / "state"
    sizes = {f"state/{path.name}": path.stat().st_size for path in directory.glob("*.sst")}
    manifest = manifest_path(directory)
    return {
        "data of a table": [(path, 0, size // 2) for path, size in sizes.items() if size > 4000],
        "index and properties of a table": [(path, size - 900, 700) for path, size in sizes.items()],
        "footer of a table": [(path, size - 53, 53) for path, size in sizes.items()],
        "MANIFEST": [(f"state/{manifest.name}", 0, manifest.stat().st_size)],
        "CURRENT": [("state/CURRENT", 0, 16)],
    }


LOG_KINDS = (
    "segment head",
    "header of a round",
    "header of a checkpoint",
    "header of a record",
    "entry",
    "hard state",
    "configuration",
    "line of a checkpoint",
)
STATE_KINDS = (
    "data of a table",
    "index and properties of a table",
    "footer of a table",
    "MANIFEST",
    "CURRENT",
)


@dataclass
class Original:
    root: Path
    model: Model
    content: Content

    def flipped(self, to: Path, places: Where, seed: int) -> Path:
        """A copy in which one bit of one of these places is another."""
        choose = random.Random(seed)
        path, first, length = choose.choice(places)
        shutil.copytree(self.root, to)
        data = bytearray((to / path).read_bytes())
        data[first + choose.randrange(length)] ^= 1 << choose.randrange(8)
        (to / path).write_bytes(data)
        return to

    def check(self, found: Start) -> None:
        """Whatever is not barred is what was written."""
        healthy = {shard: each for shard, each in found.found.items() if not each.quarantine}
        assert difference({shard: self.model[shard] for shard in healthy}, healthy) == ""
        assert found.damage or found.content == self.content
        assert found.facts == FACTS


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    root = tmp_path_factory.mktemp("node") / "n1"
    return Original(root, *asyncio.run(write(root)))


async def test_an_untouched_directory_is_whole(original: Original, tmp_path: Path) -> None:
    shutil.copytree(original.root, tmp_path / "n1")
    for _ in range(2):
        found = await start(tmp_path / "n1")
        original.check(found)
        assert not found.quarantined and not found.damage and set(found.found) == set(SHARDS)


@pytest.mark.parametrize("kind", LOG_KINDS)
async def test_a_bit_of_the_log(original: Original, tmp_path: Path, kind: str) -> None:
    places = log_places(original.root)
    assert set(places) == set(LOG_KINDS)
    for seed in range(TRIES):
        root = original.flipped(tmp_path / str(seed), places[kind], seed)
        found = await start(root)
        original.check(found)
        one = kind in ("entry", "hard state", "configuration", "line of a checkpoint")
        assert not found.damage and (len(found.quarantined) == 1 if one else found.quarantined == set(SHARDS)), seed
        assert bool(found.suspect) != one
        again = await start(root)
        assert again.quarantined == found.quarantined, "and it stays noticed"


@pytest.mark.parametrize("kind", STATE_KINDS)
async def test_a_bit_of_the_state(original: Original, tmp_path: Path, kind: str) -> None:
    places = state_places(original.root)
    for seed in range(TRIES):
        found = await start(original.flipped(tmp_path / str(seed), places[kind], seed))
        original.check(found)
        assert found.damage and not found.quarantined, seed


async def test_a_bit_anywhere_in_the_state_is_noticed_or_harms_nothing(original: Original, tmp_path: Path) -> None:
    """A filter's is forgiven: the engine then looks into the table instead. So are those of its own log and names."""
    harmless = 0
    every = [f"state/{path.name}" for path in sorted((original.root / "state").iterdir()) if path.stat().st_size]
    for seed, path in enumerate(each for each in every for _ in range(3)):
        size = (original.root / path).stat().st_size
        found = await start(original.flipped(tmp_path / str(seed), [(path, 0, size)], seed))
        original.check(found)
        harmless += not found.damage
    assert harmless > 0


@pytest.mark.parametrize("path", ["facts", "facts.twin"])
async def test_a_bit_of_a_sealed_file(original: Original, tmp_path: Path, path: str) -> None:
    size = (original.root / path).stat().st_size
    for seed in range(TRIES):
        root = original.flipped(tmp_path / str(seed), [(path, 0, size)], seed)
        original.check(await start(root))
        assert (root / path).read_bytes() == (original.root / path).read_bytes(), "mended"
