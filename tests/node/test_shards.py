"""Where a request is served and where it is sent: whoever holds the shard serves, elsewhere the versions tell whose map is old."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import Code, TenfoldError
from tests.node.cluster_world import ClusterWorld


async def test_a_replica_serves_whatever_placement_the_caller_knows() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=4, shards=1) as world:
        await world.put(b"k", b"1")
        leader = world.leader(1)
        assert leader is not None
        sub = world.get_request(b"k")
        for version in (0, 1, 7):
            sub.shard_version = version
            assert (await world.call(sub, node=leader)).code == 0


async def test_where_the_shard_is_not_the_versions_tell_whose_map_is_old() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=4, shards=1) as world:
        await world.put(b"k", b"1")
        node = next(node for node in world.nodes.values() if 1 not in node.shards.replicas)
        sub = world.get_request(b"k")
        for version, code in ((0, Code.STALE_MAP), (1, Code.WRONG_SHARD), (2, Code.MAP_BEHIND)):
            sub.shard_version = version
            assert (await world.call(sub, node=node)).code == code
        for version in (0, 1, 2):
            with pytest.raises(TenfoldError) as caught:
                node.shards.lookup(99, version)
            assert caught.value.code is Code.WRONG_SHARD, "no map makes more shards"
