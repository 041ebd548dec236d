"""Node processes whose links are cut: the cluster goes on without who is alone, and takes it back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chaos.nemesis.links import Links
from client.client import Client
from cluster.local.local_cluster import LocalCluster
from cluster.types import Role


async def leader(cluster: LocalCluster, shard: int, *, but: str = "") -> str:
    """Once a node other than `but` leads."""
    while True:
        for status in await cluster.status():
            for replica in status.reply.replicas if status.reply is not None else ():
                if replica.shard == shard and replica.role == Role.LEADER.name.lower() and status.node != but:
                    return status.node
        await asyncio.sleep(0.05)


async def test_a_leader_that_is_cut_off_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async with asyncio.timeout(60):
        cluster = LocalCluster(nodes=3, shards=1, dir=tmp_path / "c")
        await cluster.create()
        async with Links(cluster.addresses) as links:
            for node in cluster.nodes:
                cluster.layout.write_routes(node, links.routes(node))
            async with cluster, Client(list(cluster.addresses.values())) as client:
                await client.kv.put("k", "before")
                old = await leader(cluster, 1)
                others = [node for node in cluster.nodes if node != old]
                assert all(links.link(old, node).passed_bytes for node in others), "peers speak through their links"
                links.isolate([old])
                new = await leader(cluster, 1, but=old)
                await client.kv.put("k", "meanwhile")
                links.heal()
                for node in cluster.nodes:
                    if node != new:
                        links.cut(new, node)  # one way: it hears them, they do not hear it
                assert await leader(cluster, 1, but=new) != new
                await client.kv.put("k", "after")
                links.heal()
                got = await client.kv.get("k")
                assert got is not None and got.value == b"after"
                await cluster.wait_ready()
