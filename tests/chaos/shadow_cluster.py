"""A cluster without processes, for the nemesis's own laws: nodes that live, die, start and catch up when told to."""

from __future__ import annotations

from cluster.errors import Code, TenfoldError
from cluster.local.launcher import Condition
from cluster.local.local_cluster import NodeStatus
from cluster.ring.shard_map import first_map
from proto.gen import meta_pb2, node_pb2


class ShadowCluster:
    """Five nodes. A started node lags until it was looked at `lag_looks` times; `refuse` names nodes that do not start."""

    def __init__(self, replicas: int = 3, shards: int = 6, lag_looks: int = 2) -> None:
        self.nodes = [f"n{i}" for i in range(1, 6)]
        self.map = first_map(b"0" * 16, [(n, f"{n}:1", "") for n in self.nodes], shards, replicas)
        self.up = set(self.nodes)
        self.refuse: set[str] = set()
        self.lag_looks = lag_looks
        self.most_down: list[set[str]] = []
        self._lag: dict[str, int] = {}

    async def kill(self, *nodes: str) -> None:
        for node in nodes:
            if node not in self.up:
                raise TenfoldError(Code.UNAVAILABLE, f"{node} does not run")
            self.up.discard(node)
            self.most_down.append({each for each in self.nodes if each not in self.up or self._lag.get(each, 0)})

    async def restart(self, *nodes: str) -> None:
        for node in nodes:
            if node in self.refuse:
                raise TenfoldError(Code.UNAVAILABLE, f"{node} ended while starting")
            self.up.add(node)
            self._lag[node] = self.lag_looks

    async def shard_map(self) -> meta_pb2.ShardMap:
        return self.map

    async def status(self) -> list[NodeStatus]:
        for node, looks in self._lag.items():
            self._lag[node] = max(0, looks - 1)
        return [
            NodeStatus(n, "", f"{n}:1", Condition.RUNNING, 1, self._reply(n))
            if n in self.up
            else NodeStatus(n, "", f"{n}:1", Condition.DOWN, None, None)
            for n in self.nodes
        ]

    def _reply(self, node: str) -> node_pb2.StatusReply:
        reply = node_pb2.StatusReply(node=node)
        for shard in self.map.shards:
            holders = [replica.node for replica in shard.replicas]
            if node in holders:
                leader = next((each for each in holders if each in self.up and not self._lag.get(each)), None)
                behind = bool(self._lag.get(node))
                role = "leader" if node == leader else "follower"
                reply.replicas.add(
                    shard=shard.id, role=role, term=3, commit_index=100, applied_index=50 if behind else 100
                )
        return reply
