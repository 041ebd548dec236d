"""The map and the leaders: whom a client asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cluster.errors import Code, TenfoldError
from proto.gen import meta_pb2, node_pb2
from tests.client.fake_cluster import FakeChannel, FakeCluster, Fault
from tests.client.virtual_time import run


class SilentChannel(FakeChannel):
    """A node that accepts the connection and says nothing."""

    def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        return self._silence()

    async def _silence(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_first_map_comes_from_whoever_answers() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(nodes=3)
        for alive in ("n1", "n2", "n3"):
            cluster.down = {"n1", "n2", "n3"} - {alive}
            started = asyncio.get_running_loop().time()
            async with cluster.client() as client:
                assert client.cluster_id == cluster.map.cluster_id
                assert asyncio.get_running_loop().time() - started < 0.1

    run(scenario())


@pytest.mark.parametrize("alive", ["host1:1", "host2:1", "host3:1"])
def test_a_node_that_hangs_does_not_keep_the_client_from_the_next(alive: str) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(nodes=3)

        def dial(address: str) -> FakeChannel:
            return cluster.dial(address) if address == alive else SilentChannel(cluster, "n1")

        async with cluster.client(dial=dial) as client:
            assert client.cluster_id == cluster.map.cluster_id

    run(scenario())


class OldMaps(FakeCluster):
    """After its first map, nodes tell an older one."""

    async def watch_map(self, node: str, request: node_pb2.MapRequest) -> AsyncIterator[meta_pb2.ShardMap]:
        self.map_streams += 1
        yield self.map
        old = meta_pb2.ShardMap()
        old.CopyFrom(self.map)
        old.epoch -= 1
        old.shards[1].version -= 1
        yield old
        await asyncio.Event().wait()


def test_an_older_map_changes_nothing() -> None:
    async def scenario() -> None:
        cluster = OldMaps(shards=1, nodes=1)
        cluster.map.epoch = 5
        cluster.map.shards[1].version = 5
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            assert client._router.epoch == 5
            assert {sub.shard_version for sub in cluster.subs()} == {5}

    run(scenario())


def test_a_map_with_another_address_is_followed() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            moved = meta_pb2.ShardMap()
            moved.CopyFrom(cluster.map)
            moved.epoch += 1
            moved.members[0].address = "elsewhere:2"
            dialled: list[str] = []
            dial = cluster.dial

            def noted(address: str) -> FakeChannel:
                dialled.append(address)
                return dial(address)

            client._router._dial = noted
            cluster.map = moved
            cluster.break_streams("n1")
            await client.kv.put("k", b"w")
            await until(lambda: client._router.epoch == moved.epoch)
            await client.kv.put("k", b"x")
            assert "elsewhere:2" in dialled

    run(scenario())


def test_a_higher_epoch_in_a_reply_makes_the_client_look_for_the_newer_map() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            newer = meta_pb2.ShardMap()
            newer.CopyFrom(cluster.map)
            newer.epoch += 1
            cluster.map = newer
            await client.kv.put("k", b"w")
            await until(lambda: client._router.epoch == newer.epoch)

    run(scenario())


def test_a_map_of_another_cluster_is_never_taken() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=2)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            theirs = meta_pb2.ShardMap()
            theirs.CopyFrom(cluster.map)
            theirs.epoch, theirs.cluster_id = 99, b"x" * 16
            ours, cluster.map = cluster.map, theirs
            streams = cluster.map_streams
            for node in ("n1", "n2"):
                cluster.break_streams(node)
            await until(lambda: cluster.map_streams >= streams + 2)
            cluster.map = ours
            await client.kv.put("k", b"w")
            assert client.cluster_id == ours.cluster_id and client._router.epoch == ours.epoch

    run(scenario())


def test_a_call_refused_for_its_cluster_is_not_tried_again() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            client._router.cluster_id = b"y" * 16
            with pytest.raises(TenfoldError) as caught:
                await client.kv.put("k", b"w")
            assert caught.value.code is Code.WRONG_CLUSTER and caught.value.definite

    run(scenario())


def test_a_dead_leader_is_left_for_the_new_one_within_the_backoff() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            old = cluster.leaders[1]
            others = [node for node in ("n1", "n2", "n3") if node != old]
            cluster.down = {old}  # the others still name it, as before an election
            put = asyncio.ensure_future(client.kv.put("k", b"w"))
            loop = asyncio.get_running_loop()
            elected = loop.create_future()
            loop.call_later(1.5, elected.set_result, None)
            await elected
            assert not put.done()
            cluster.move(1, others[1])
            started = loop.time()
            await put
            assert loop.time() - started <= 0.5
            assert len(cluster.calls) < 60, "and it was not asked without a pause"

    run(scenario())


def test_a_paused_leader_is_not_gone_back_to_on_the_word_of_its_followers() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            old = cluster.leaders[1]
            cluster.faults = lambda node, request: Fault.HANG if node == old else Fault.NONE
            with pytest.raises(TenfoldError):
                await client.kv.put("k", b"w", deadline_s=3.0)
            hung = [node for node, _ in cluster.calls].count(old)
            assert hung <= 3, "the first, the one that hung, and one a second later"

    run(scenario())


def test_addresses_are_needed() -> None:
    cluster = FakeCluster()
    with pytest.raises(TenfoldError, match="addresses"):
        type(cluster.client())([])


def test_the_principal_goes_with_every_call() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client(principal="ann") as client:
            await client.kv.put("k", b"v")
            await client.kv.get("k")
            assert {call.principal for _, call in cluster.calls} == {"ann"}
            assert {sub.mode for sub in cluster.subs()} == set(node_pb2.Mode.values())
        with pytest.raises(TenfoldError, match="principal"):
            cluster.client(principal="x" * 999)

    run(scenario())
