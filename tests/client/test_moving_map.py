"""A map that moves under a client: nothing fails, and what it costs is counted in calls and milliseconds of virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from client.client import Client
from client.placement import Placement
from cluster.errors import Code
from cluster.ports import ChannelBroken
from proto.gen import meta_pb2, node_pb2
from tests.client.fake_cluster import FakeCluster, Fault
from tests.client.virtual_time import passes, run

VOTER, LEARNER, LEAVING = meta_pb2.Replica.VOTER, meta_pb2.Replica.LEARNER, meta_pb2.Replica.LEAVING
Rows = list[tuple[str, meta_pb2.Replica.Stage.ValueType]]


def place(shard_map: meta_pb2.ShardMap, shard: int, rows: Rows) -> None:
    """The shard has these replicas from now on; those of a node that is there already keep their id."""
    row = shard_map.shards[shard]
    ids = {replica.node: replica.id for replica in row.replicas}
    del row.replicas[:]
    for node, stage in rows:
        if node not in ids:
            ids[node] = row.next_replica_id
            row.next_replica_id += 1
        row.replicas.add(id=ids[node], node=node, stage=stage, epoch=shard_map.epoch)
    row.version += 1


def voters(*nodes: str) -> Rows:
    return [(node, VOTER) for node in nodes]


def four_nodes(shards: int = 1) -> FakeCluster:
    """Four members; every shard is on the first three, and n1 leads it."""
    cluster = FakeCluster(shards=shards, nodes=4)
    for shard in range(1, shards + 1):
        place(cluster.map, shard, voters("n1", "n2", "n3"))
        cluster.leaders[shard] = "n1"
    return cluster


async def cost(cluster: FakeCluster, client: Client, key: str = "k") -> tuple[int, float]:
    """Calls and milliseconds that one put takes."""
    calls, start = len(cluster.calls), asyncio.get_running_loop().time()
    await client.kv.put(key, b"v")
    return len(cluster.calls) - calls, 1000 * (asyncio.get_running_loop().time() - start)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await passes(0.005)


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ([("n4", LEARNER), *voters("n2", "n1"), ("n3", LEAVING)], ["n2", "n1", "n3"]),
        ([("n3", LEAVING), *voters("n2"), ("n3", LEARNER)], ["n2", "n3"]),
        ([("n1", LEAVING), ("n4", LEARNER)], ["n1"]),
        ([("n4", LEARNER)], ["n4"]),
    ],
)
def test_voters_are_asked_first_and_those_that_leave_last_and_learners_never(rows: Rows, asked: list[str]) -> None:
    shard_map = four_nodes().map
    place(shard_map, 1, rows)
    assert Placement(shard_map).asked[1] == asked


def test_stale_reads_go_to_voters_and_to_one_that_leaves_when_no_voter_answers() -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        place(cluster.map, 1, [("n4", LEARNER), ("n3", LEAVING), *voters("n1", "n2")])
        seen: set[str] = set()
        for seed in range(12):
            async with cluster.client(random=random.Random(seed)) as client:
                cluster.calls.clear()
                await client.kv.get("k", consistency="stale")
                seen.update(node for node, _ in cluster.calls)
        assert seen == {"n1", "n2"}
        async with cluster.client() as client:
            cluster.faults = lambda node, request: Fault.NOT_SENT if node in ("n1", "n2") else Fault.NONE
            found = await asyncio.gather(*[client.kv.get(f"k{i}", consistency="stale") for i in range(3)])
            assert len(found) == 3 and cluster.calls[-1][0] == "n3"

    run(scenario())


def test_a_hint_to_a_member_that_the_map_does_not_list_is_followed_at_once() -> None:
    """The Raft group is ahead of every map: its new leader is not settled yet."""

    async def scenario() -> None:
        cluster = four_nodes()
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster._misplaced = lambda node, shard, version: None  # type: ignore[method-assign]
            cluster.move(1, "n4")
            calls, milliseconds = await cost(cluster, client)
            assert calls == 2 and milliseconds < 3
            assert cluster.map_requests[-1][0] == "n1", "and the map is asked for where the hint came from"
            assert await cost(cluster, client) == (1, pytest.approx(1))

    run(scenario())


def test_a_hint_to_a_node_that_joined_since_costs_one_map() -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            newer = cluster.next_map()
            newer.members.add(node="n5", address="host5:1")
            place(newer, 1, [*voters("n2", "n3"), ("n5", VOTER), ("n1", LEAVING)])
            cluster.install(newer, behind=["n2", "n3", "n4"])
            cluster.move(1, "n5")
            calls, milliseconds = await cost(cluster, client)
            assert calls <= 4 and milliseconds < 15
            assert cluster.calls[-1][0] == "n5"

    run(scenario())


@pytest.mark.parametrize("tells_epoch", [True, False])
def test_a_shard_that_moved_away_costs_one_map_and_no_long_pause(tells_epoch: bool) -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        cluster.tells_epoch = tells_epoch
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            for target in ("n4", "n1") * 10:
                newer = cluster.next_map()
                place(newer, 1, voters(target, "n2", "n3"))
                cluster.install(newer, behind=["n2", "n3"])
                cluster.leaders[1] = target
                calls, milliseconds = await cost(cluster, client)
                assert calls <= 3 and milliseconds < 5
                assert client._router.epoch == newer.epoch
                cluster.catch_up("n1", "n2", "n3", "n4")
            assert client._batcher._queues[1, False].failures == 0

    run(scenario())


def test_a_node_that_is_behind_the_map_is_left_for_another_replica() -> None:
    """n4 leads by the newest map, which it does not know; the group knows better."""

    async def scenario() -> None:
        cluster = four_nodes()
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            newer = cluster.next_map()
            place(newer, 1, voters("n4", "n1", "n2"))
            cluster.install(newer, behind=["n4"])
            await until(lambda: client._router.epoch == newer.epoch)
            client._router._leaders.clear()
            calls, milliseconds = await cost(cluster, client)
            assert calls == 2 and milliseconds < 20
            assert [node for node, _ in cluster.calls[-2:]] == ["n4", "n1"]

    run(scenario())


def test_a_burst_of_moves_starves_nobody_and_asks_for_few_maps() -> None:
    """Every 5 ms a shard moves to the node that does not have it; nodes learn it one after the other."""

    async def scenario() -> None:
        cluster = four_nodes(shards=4)
        nodes = ["n1", "n2", "n3", "n4"]
        loop = asyncio.get_running_loop()
        taken: list[float] = []

        async def load(client: Client, shard: int) -> None:
            key = cluster.key_in(shard)
            while loop.time() < ends:
                start = loop.time()
                await client.kv.increment(key)
                taken.append(loop.time() - start)

        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            ends, moves = loop.time() + 2.0, 0
            load_tasks = [asyncio.ensure_future(load(client, shard)) for shard in range(1, 5)]
            while loop.time() < ends:
                shard = 1 + moves % 4
                holders = [replica.node for replica in cluster.map.shards[shard].replicas]
                newcomer = next(node for node in nodes if node not in holders)
                newer = cluster.next_map()
                place(newer, shard, voters(newcomer, *holders[:2]))
                cluster.install(newer, behind=[node for node in nodes if node not in (holders[0], holders[2])])
                cluster.move(shard, newcomer)
                moves += 1
                await passes(0.005)
                cluster.catch_up(*nodes)
            await asyncio.gather(*load_tasks)
            assert moves > 300
            totals = [int(cluster.value(cluster.key_in(shard)) or b"0") for shard in range(1, 5)]
            assert sum(totals) == len(taken), "each increment was applied once"
            assert max(taken) < 0.1 and sorted(taken)[int(0.99 * len(taken))] < 0.025
            assert cluster.map_streams < 2 * moves

    run(scenario())


class HangingWatch(FakeCluster):
    """`hung` tells its map when asked, and no change of it."""

    hung = ""

    async def watch_map(self, node: str, request: node_pb2.MapRequest) -> AsyncIterator[meta_pb2.ShardMap]:
        first = True
        async for shard_map in super().watch_map(node, request):
            if node == self.hung and not first:
                await asyncio.Event().wait()
            yield shard_map
            first = False


def test_a_watch_of_the_map_that_hangs_is_left_once_others_know_more() -> None:
    async def scenario() -> None:
        cluster = HangingWatch(shards=1, nodes=4)
        async with cluster.client() as client:
            cluster.hung = cluster.map_requests[0][0]
            for _ in range(40):
                cluster.install(cluster.next_map())
                await client.kv.put("k", b"v")
                await passes(0.1)
            cluster.install(cluster.next_map())  # and no call any more that could tell of it
            await until(lambda: client._router.epoch == cluster.map.epoch)

    run(scenario())


def test_what_has_left_is_closed_and_no_longer_asked() -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            assert await client.kv.get("k", consistency="stale") is not None
            client._batcher._queues[1, True].stale_node = "n1"
            newer = cluster.next_map()
            del newer.members[0]
            for shard in newer.shards:
                place(newer, shard.id, voters("n2", "n3", "n4"))
            writing = asyncio.ensure_future(client.kv.put("k", b"w"))  # on its way to n1 while n1 leaves
            cluster.install(newer)
            cluster.down = {"n1"}
            cluster.move(1, "n4")
            await writing
            await until(lambda: client._router.epoch == newer.epoch)
            cluster.calls.clear()
            for _ in range(20):
                await client.kv.get("k", consistency="stale")
                await client.kv.put("k", b"x")
            assert "n1" not in {node for node, _ in cluster.calls}
            assert cluster.closed == ["host1:1"]
            with pytest.raises(ChannelBroken, match="n1 has left", check=lambda broken: not broken.sent):
                client._router.channel("n1")

    run(scenario())


def test_a_stale_read_leaves_a_replica_that_is_quarantined() -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            await client.kv.get("k", consistency="stale")
            queue = client._batcher._queues[1, True]
            for _ in range(20):
                bad = queue.stale_node
                cluster.refuse = lambda node, sub, bad=bad: (  # type: ignore[misc]
                    node_pb2.SubReply(code=Code.QUARANTINED) if node == bad else None
                )
                cluster.calls.clear()
                assert await client.kv.get("k", consistency="stale") is not None
                assert len(cluster.calls) == 2

    run(scenario())


def test_a_watch_tells_every_change_once_while_its_shard_moves_from_node_to_node() -> None:
    async def scenario() -> None:
        cluster = four_nodes()
        nodes = ["n1", "n2", "n3", "n4"]
        async with cluster.client() as client, client.kv.watch("k") as watch:
            told: list[int] = []

            async def listen() -> None:
                while len(told) < 60:
                    told.append(int((await anext(watch)).value))

            listening = asyncio.ensure_future(listen())
            for number in range(60):
                await client.kv.put("k", str(number))
                holders = [replica.node for replica in cluster.map.shards[1].replicas]
                newcomer = next(node for node in nodes if node not in holders)
                newer = cluster.next_map()
                place(newer, 1, voters(newcomer, *holders[:2]))
                cluster.install(newer, behind=[node for node in nodes if node != holders[0]] if number % 2 else [])
                cluster.move(1, newcomer)
                await passes(0.02)
                cluster.catch_up(*nodes)
            async with asyncio.timeout(5):
                await listening
            assert told == list(range(60))

    run(scenario())


def test_a_scan_goes_on_where_the_shards_have_gone() -> None:
    async def scenario() -> None:
        cluster = four_nodes(shards=3)
        async with cluster.client() as client:
            await asyncio.gather(*[client.kv.put(f"s/{number:04}", b"v") for number in range(600)])
            found = []
            async for item in client.kv.scan(prefix="s/"):
                found.append(item.key)
                if len(found) % 50 == 0:
                    shard = 1 + len(found) // 50 % 3
                    newer = cluster.next_map()
                    holders = [replica.node for replica in newer.shards[shard].replicas]
                    newcomer = next(node for node in ("n1", "n2", "n3", "n4") if node not in holders)
                    place(newer, shard, voters(newcomer, *holders[:2]))
                    cluster.install(newer, behind=["n1", "n2", "n3", "n4"])
                    cluster.move(shard, newcomer)
                    cluster.catch_up("n1", "n2", "n3", "n4")
            assert found == [b"s/%04d" % number for number in range(600)]

    run(scenario())
