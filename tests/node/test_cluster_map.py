"""The map as a node knows it: what was heard against what meta says, and two newer maps at once."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.ring.shard_map import first_map
from node.cluster_map import PATH, ClusterMap
from node.storage.identity import Identity, Sealed
from node.storage.memory import ForgettingDisk
from proto.gen import meta_pb2

CLUSTER_ID = bytes(16)
IDENTITY = Identity(CLUSTER_ID, "n1", "boot")
MEMBERS = [("n1", "h1:1", ""), ("n2", "h2:1", ""), ("n3", "h3:1", "")]


class SlowFile:
    """A file whose sync lets others run."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    async def sync(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await self._file.sync()


class SlowDisk:
    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def create(self, path: str) -> SlowFile:
        return SlowFile(self._disk.create(path))


def map_of(epoch: int, **moved: str) -> meta_pb2.ShardMap:
    found = first_map(CLUSTER_ID, MEMBERS, 2, 3)
    found.epoch = epoch
    for member in found.members:
        member.address = moved.get(member.node, member.address)
    return found


def opened(disk: Any) -> ClusterMap:
    return ClusterMap(first_map(CLUSTER_ID, MEMBERS, 2, 3), Sealed(disk, PATH), IDENTITY)


async def test_two_newer_maps_at_once_leave_the_newest_on_disk() -> None:
    medium = ForgettingDisk()
    known = opened(SlowDisk(medium.attach()))
    await asyncio.gather(known.update(map_of(2, n2="h2:2")), known.update(map_of(3, n2="h2:3")))
    assert known.epoch == 3
    assert opened(medium.attach()).epoch == 3


async def test_an_old_hello_does_not_hide_where_a_newer_map_says_a_member_is() -> None:
    known = opened(ForgettingDisk().attach())
    known.heard("n2", "h2:1")
    await known.update(map_of(2, n2="h2:2"))
    assert known.with_addresses().members[1].address == "h2:2"


async def test_a_hello_newer_than_the_map_before_wins() -> None:
    known = opened(ForgettingDisk().attach())
    known.heard("n2", "h2:3")
    await known.update(map_of(2, n2="h2:2"))
    assert known.addresses()["n2"] == "h2:3"


async def test_a_full_disk_keeps_the_map_in_memory_until_there_is_room() -> None:
    medium = ForgettingDisk()
    known = opened(medium.attach())
    medium.capacity = 10
    await known.update(map_of(2, n2="h2:2"))
    assert (known.epoch, known.kept_epoch) == (2, 1) and opened(medium.attach()).epoch == 1
    medium.capacity = None
    kept = known.changed()
    await known.keep()
    assert kept.done() and known.kept_epoch == 2, "whoever waits for it to be on disk is told"
    assert opened(medium.attach()).epoch == 2


async def test_a_damaged_map_is_as_good_as_none_and_is_replaced() -> None:
    medium = ForgettingDisk()
    disk = medium.attach()
    await opened(disk).update(map_of(5, n2="h2:2"))
    for name in [name for name in disk.list("") if name.startswith(PATH)]:
        disk.remove(name)
        disk.create(name).append([b"damaged" * 100])
    known = opened(disk)
    assert known.damaged and known.epoch == known.kept_epoch == 1
    await known.update(map_of(6))
    assert not opened(disk).damaged and opened(disk).epoch == 6


async def test_a_node_that_joins_begins_with_no_map() -> None:
    medium = ForgettingDisk()
    nothing = meta_pb2.ShardMap(cluster_id=CLUSTER_ID)
    known = ClusterMap(nothing, Sealed(medium.attach(), PATH), IDENTITY)
    assert known.epoch == 0 and known.addresses() == {} and known.shard(0) is None
    await known.update(map_of(3))
    again = ClusterMap(nothing, Sealed(medium.attach(), PATH), IDENTITY)
    assert again.epoch == again.kept_epoch == 3 and not again.damaged
