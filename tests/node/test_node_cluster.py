"""Three real nodes in one process: what is acknowledged survives a power cut of all of them, and the like."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from cluster.errors import Code
from cluster.limits import DEFAULT
from cluster.ports import StorageFailed
from cluster.types import Role
from node.storage.memory import ForgettingDisk, ForgettingState
from proto.gen import kv_pb2, node_pb2
from tests.node.cluster_world import ClusterWorld, Context


async def test_put_and_get() -> None:
    async with asyncio.timeout(30), ClusterWorld() as world:
        reply = await world.put(b"a", b"1")
        assert reply.code == 0 and reply.index > 0
        found = await world.get(b"a")
        assert (found.value, found.version) == (b"1", reply.index)


async def test_acknowledged_is_fsynced_on_a_majority() -> None:
    """A power cut of all nodes at the very moment of the acknowledgement, after which the leader stays away: whatever
    majority is left has what was acknowledged, though the followers' syncs took far longer than the leader's."""
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"first", b"0")
        for attempt in range(3):
            leader = world.leader(1)
            assert leader is not None
            others = [name for name in world.names if name != leader.config.node]
            world.sync_s = dict.fromkeys(others, 0.2)
            reply = await world.put(b"key-%d" % attempt, b"value")
            assert reply.code == 0
            await world.crash(list(world.names))
            world.sync_s = {}
            for name in others:
                await world.start(name)
            found = await world.get(b"key-%d" % attempt)
            assert found.version == reply.index, f"acknowledged at {reply.index} and lost"
            await world.start(leader.config.node)


async def test_a_retry_is_applied_once_even_after_all_restarted() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        opened = await world.call(
            node_pb2.SubRequest(shard=1, shard_version=1, capability="kv", mode=node_pb2.OPEN_SESSION)
        )
        assert opened.session > 0
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(kind=kv_pb2.KvOp.INCREMENT, key=b"n", delta=1)]).SerializeToString()
        sub = world.command(b"n", body, session=opened.session, sequence=1)
        first = await world.call(sub)
        assert kv_pb2.KvResult.FromString(first.body).ops[0].number == 1
        for node in world.nodes.values():  # or replaying the log would build the table anew
            await world.until(lambda node=node: node.shards.replicas[1].core.applied_index >= first.index, "applied")
            await node.upkeep.flush_now()
        await world.crash(list(world.names))
        for name in world.names:
            await world.start(name)
        again = await world.call(sub)
        assert again.code == 0, again
        assert kv_pb2.KvResult.FromString(again.body).ops[0].number == 1
        assert (await world.get(b"n")).value == b"1"


async def test_a_request_is_refused_where_it_does_not_belong() -> None:
    async with asyncio.timeout(30), ClusterWorld() as world:
        await world.put(b"a", b"1")
        sub = world.get_request(b"a")
        leader = world.leader(sub.shard)
        assert leader is not None
        follower = next(node for node in world.nodes.values() if node is not leader)
        reply = await world.call(sub, node=follower)
        assert reply.code == Code.NOT_LEADER and reply.leader == leader.config.node
        sub.shard_version, sub.shard = 1, 99
        assert (await world.call(sub, node=leader)).code == Code.WRONG_SHARD


async def test_a_deposed_leader_answers_no_read() -> None:
    """Cut off from its followers, the old leader does not know of its successor's write; it must not answer from what it
    has, linearizably or by its lease, and a stale answer must admit its age."""
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"old")
        old = world.leader(1)
        assert old is not None
        world.cut_off = {old.config.node}
        await world.until(lambda: world.leader(1, but=old.config.node), "the others elect a leader")
        new = world.leader(1, but=old.config.node)
        assert new is not None
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"new")]).SerializeToString()
        assert (await world.call(world.command(b"k", body), node=new)).code == 0
        for consistency in (node_pb2.LINEARIZABLE, node_pb2.LEASE):
            reply = await world.call(world.get_request(b"k", consistency), node=old)
            assert reply.code != 0, "a deposed leader answered"
        world.cut_off = set()
        await world.until(
            lambda: world.leader(1) is new or not old.shards.replicas[1].leading, "the old leader follows"
        )
        assert (await world.get(b"k")).value == b"new"


async def test_a_leader_without_quorum_steps_down_and_what_it_took_is_unknown() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"1")
        old = world.leader(1)
        assert old is not None
        world.cut_off = {old.config.node}
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        reply = await world.call(world.command(b"k", body), node=old)
        assert reply.code == Code.UNKNOWN_OUTCOME
        assert not old.shards.replicas[1].leading
        assert (await world.call(world.command(b"k", body), node=old)).code == Code.NOT_LEADER


async def test_a_replica_far_behind_gets_a_snapshot_with_its_sessions() -> None:
    """The others' logs no longer reach back to where it stopped; afterwards it must be able to lead, and to know a
    retried request."""
    limits = replace(DEFAULT, log_entries_kept_max=8, log_bytes_kept_max=4096)
    async with asyncio.timeout(60), ClusterWorld(shards=1, limits=limits) as world:
        opened = await world.call(
            node_pb2.SubRequest(shard=1, shard_version=1, capability="kv", mode=node_pb2.OPEN_SESSION)
        )
        leader = world.leader(1)
        assert leader is not None
        late = next(name for name in world.names if name != leader.config.node)
        await world.crash([late], keep=True)
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(kind=kv_pb2.KvOp.INCREMENT, key=b"n", delta=1)]).SerializeToString()
        counted = world.command(b"n", body, session=opened.session, sequence=1)
        assert (await world.call(counted)).code == 0
        for i in range(50):
            assert (await world.put(b"key-%d" % i, b"x" * 100)).code == 0
        node = await world.start(late)
        replica = node.shards.replicas[1]
        await world.until(
            lambda: replica.core.applied_index >= leader.shards.replicas[1].core.commit_index, "caught up"
        )
        await world.until(lambda: node.snapshots.installed == 1, "a snapshot was installed")
        assert replica.state.digest() == leader.shards.replicas[1].state.digest()
        replica.applier.check_invariants()
        other = next(name for name in world.names if name not in (late, leader.config.node))
        await world.crash([other])  # so that only the late one can take over
        leader.shards.replicas[1].core.transfer_leadership(replica.core.replica)
        leader.shards.replicas[1].touch()
        await world.until(lambda: replica.leading, "the late replica leads")
        again = await world.call(counted)
        assert kv_pb2.KvResult.FromString(again.body).ops[0].number == 1


async def test_a_node_whose_log_is_gone_is_quarantined() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"1")
        leader = world.leader(1)
        assert leader is not None
        victim = next(name for name in world.names if name != leader.config.node)
        await world.crash([victim])
        disk = world.disks[victim].attach()
        for name in disk.list("log"):
            disk.remove(f"log/{name}")
        disk.sync_directory("log")
        node = await world.start(victim)
        row = next(row for row in node.status().replicas if row.shard == 1)
        assert row.role == "quarantined" and row.quarantine == "its log is gone"
        reply = await world.call(world.get_request(b"k", node_pb2.STALE), node=node)
        assert reply.code == Code.QUARANTINED
        assert (await world.put(b"k", b"2")).code == 0


async def test_a_node_that_lived_and_lost_everything_does_not_vote() -> None:
    """Its vote would elect a leader that lacks what it once acknowledged."""
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"old")
        leader = world.leader(1)
        assert leader is not None
        late, lost = (name for name in world.names if name != leader.config.node)
        await world.crash([late], keep=True)
        acknowledged = await world.put(b"k", b"new")
        assert acknowledged.code == 0
        await world.crash([leader.config.node, lost], keep=True)
        world.disks[lost], world.states[lost] = ForgettingDisk(), ForgettingState()
        nodes = [await world.start(late), await world.start(lost, born=True)]
        assert set(nodes[1].shards.quarantined) == {0, 1}
        replica = nodes[0].shards.replicas[1]
        await world.until(lambda: replica.core.role is Role.PRE_CANDIDATE, "the late one asks for votes")
        assert world.leader(1) is None
        await world.start(leader.config.node)
        assert (await world.get(b"k")).version == acknowledged.index


async def test_a_failed_sync_stops_the_node_and_acknowledges_nothing() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"1")
        leader = world.leader(1)
        assert leader is not None
        world.disks[leader.config.node].fail_sync_in = 1
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        call = asyncio.ensure_future(world.call(world.command(b"k", body), node=leader))
        assert isinstance(await leader.stopped, StorageFailed)
        await leader.abandon()
        world.nodes.pop(leader.config.node)
        call.cancel()
        assert (await world.put(b"k", b"3")).code == 0


async def test_watch_tells_every_change_once_over_a_leader_change() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"w0", b"")
        told: list[tuple[int, bytes]] = []
        after = 0
        for turn in range(3):
            leader = world.leader(1)
            assert leader is not None
            writes = [await world.put(b"w%d-%d" % (turn, i), b"v") for i in range(5)]
            request = node_pb2.WatchRequest(shard=1, shard_version=1, after_index=after)
            async for reply in leader.service.watch(request, Context()):
                assert reply.code == 0, reply
                events = map(kv_pb2.KvEvent.FromString, reply.events)
                told += [(event.version, event.key) for event in events]
                after = reply.index
                if after >= writes[-1].index:
                    break
            await world.crash([leader.config.node], keep=True)
            await world.until(lambda: world.leader(1), "a new leader")
            await world.start(leader.config.node)
        expected = [b"w0"] + [b"w%d-%d" % (turn, i) for turn in range(3) for i in range(5)]
        assert [key for _, key in told] == expected
        assert [version for version, _ in told] == sorted({version for version, _ in told})


async def test_a_full_disk_refuses_loses_nothing_and_goes_on_when_there_is_room() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        assert (await world.put(b"k", b"1")).code == 0
        for disk in world.disks.values():
            disk.capacity = disk.used_bytes()
        leader = world.leader(1)
        assert leader is not None
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        first = asyncio.ensure_future(world.call(world.command(b"k", body), node=leader))
        await world.until(lambda: leader.pump.disk_full, "the leader notices")
        reply = await world.call(world.command(b"k", body), node=leader)
        assert reply.code == Code.DISK_FULL
        assert not leader.stopped.done(), "a full disk is no failed write"
        for disk in world.disks.values():
            disk.capacity = None
        assert (await first).code in (0, Code.UNKNOWN_OUTCOME)
        assert (await world.put(b"k", b"3")).code == 0
        assert (await world.get(b"k")).value == b"3"


async def test_others_take_over_from_a_leader_whose_disk_is_full() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=1) as world:
        await world.put(b"k", b"1")
        full = world.leader(1)
        assert full is not None
        await world.until(
            lambda: full.shards.replicas[1].core.silent, "the shard is silent: only heartbeats speak for it"
        )
        world.disks[full.config.node].capacity = 0
        body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=b"k", value=b"2")]).SerializeToString()
        attempt = asyncio.ensure_future(world.call(world.command(b"k", body), node=full))
        await world.until(lambda: world.leader(1, but=full.config.node), "another node leads")
        assert (await world.put(b"other", b"3")).code == 0
        world.disks[full.config.node].capacity = None
        await attempt
