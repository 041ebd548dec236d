"""What happens around a replica that goes or comes: callers are told, a crash between map and disk is made good at the start."""

from __future__ import annotations

import asyncio

from cluster.errors import Code
from cluster.raft.messages import Entry
from cluster.types import EntryKind
from node.cluster_map import PATH as MAP_PATH
from node.replica import Replica
from node.storage.identity import Identity, Sealed
from node.storage.view import NodeState
from node.tickets import Latch, Read
from proto.gen import kv_pb2, meta_pb2, node_pb2
from tests.node.cluster_world import CLUSTER_ID, FAST, ClusterWorld, Context, holds_nothing


def without(shard_map: meta_pb2.ShardMap, node: str, shard: int = 1) -> meta_pb2.ShardMap:
    """A newer map, by which the node has no replica of the shard."""
    newer = meta_pb2.ShardMap.FromString(shard_map.SerializeToString())
    newer.epoch += 1
    row = newer.shards[shard]
    row.version += 1
    kept = [each for each in row.replicas if each.node != node]
    del row.replicas[:]
    row.replicas.extend(kept)
    return newer


async def test_whoever_waits_for_a_replica_that_goes_is_told() -> None:
    """A leader that is cut off takes what it cannot commit; then a map takes the shard from it."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.put(b"k", b"1")
        node = world.leader(1)
        assert node is not None
        replica = node.shards.replicas[1]
        watch = node.service.watch(node_pb2.WatchRequest(shard=1, shard_version=1, from_now=True), Context())
        assert (await anext(watch)).code == 0
        watching = asyncio.ensure_future(anext(watch))  # type: ignore[arg-type]
        world.cut_off = {node.config.node}
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        last = replica.core.log.last_index
        write = asyncio.ensure_future(world.call(world.command(b"k", body), node=node))
        await world.until(lambda: replica.core.log.last_index > last, "it is in the leader's log")
        read = asyncio.ensure_future(world.call(world.get_request(b"k"), node=node))
        await world.until(lambda: replica._pending_reads > 0, "the read waits")
        closed: list[Replica] = []
        node.shards.on_closed.append(closed.append)
        await node.shards.follow(without(node.map.current, node.config.node))
        assert closed == [replica] and holds_nothing(node)
        assert (await write).code == Code.UNKNOWN_OUTCOME
        assert (await read).code == Code.NOT_LEADER
        assert (await watching).code == Code.NOT_LEADER
        for late in (replica.read, lambda read: replica.lease_read(read)):
            ticket = Read(Latch(), "kv", None)
            late(ticket)
            assert ticket.outcome is not None and ticket.outcome.code == Code.NOT_LEADER
        replica.core.propose([Entry(0, 0, EntryKind.EMPTY, b"")])
        replica.touch()
        await node.pump.exclusively(nothing)
        await node.pump.exclusively(nothing)
        assert not node.stopped.done(), "a round of what is not here any more would break a law of the log"
        assert (await world.call(world.get_request(b"k"), node=node)).code == Code.WRONG_SHARD


async def nothing() -> None:
    return None


async def test_what_a_map_on_disk_took_away_is_dropped_at_the_start() -> None:
    """A crash came between the map's write and the drop."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        leader = world.leader(1)
        assert leader is not None
        victim = next(name for name in world.names if name != leader.config.node)
        node = world.nodes[victim]
        newer = without(node.map.current, victim)
        await node.upkeep.flush_now()
        await world.crash([victim])
        kept = Sealed(world.disks[victim].attach(), MAP_PATH)
        await kept.write(Identity(CLUSTER_ID, victim), newer.SerializeToString())
        node = await world.start(victim)
        assert holds_nothing(node) and node.shards.replica_of(0)
        for _ in range(2):  # it is gone for good, and the node does not mind
            await world.crash([victim])
            node = await world.start(victim)
            assert holds_nothing(node)


async def test_a_state_that_outlives_its_log_is_deleted_at_the_start() -> None:
    """The log's record of the drop was durable, the state's deletion was not."""
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=FAST) as world:
        await world.fill()
        leader = world.leader(1)
        assert leader is not None
        victim = next(name for name in world.names if name != leader.config.node)
        node = world.nodes[victim]
        await node.upkeep.flush_now()
        newer = without(node.map.current, victim)
        await node.map.update(newer)
        await world.until(lambda: holds_nothing(node), "dropped")
        await world.crash([victim])
        assert 1 in NodeState(world.states[victim].attach()).shards(), "the crash brought it back"
        assert holds_nothing(await world.start(victim))


async def test_a_damaged_map_takes_nothing_away() -> None:
    """The birth map knows nothing of a replica that came later; it stays, and the newer map is learnt from the others."""
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        target = world.spare()
        added = await world.add(1, target, world.row(1).replicas[-1].id)
        await world.settle(1)
        epoch = world.map().epoch
        await world.crash([target])
        disk = world.disks[target]
        for path in [path for path in disk.names if path.startswith(MAP_PATH)]:
            disk.flip(path, 8 * (len(disk.names[path].data) - 1))
        node = await world.start(target)
        assert node.map.damaged and node.shards.replica_of(1) == added
        await world.until(lambda: node.map.epoch >= epoch, "the map is learnt again")
        await world.until(lambda: node.shards.replicas[1].node_of.get(added) == target, "it is followed")
        assert node.shards.replica_of(1) == added and not node.shards.quarantined
        await world.check()


async def test_a_replica_that_comes_is_told_of() -> None:
    async with asyncio.timeout(60), ClusterWorld(nodes=4, shards=1, limits=FAST) as world:
        await world.fill()
        target = world.spare()
        opened: list[int] = []
        world.nodes[target].shards.on_opened.append(lambda replica: opened.append(replica.core.applied_index))
        await world.add(1, target, world.row(1).replicas[-1].id)
        await world.settle(1)
        assert opened == [0], "before it has applied anything"
