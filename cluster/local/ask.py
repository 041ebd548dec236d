"""Asks the nodes of a cluster how they are, over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.errors import TenfoldError
from cluster.ports import Channel, ChannelBroken, Dial
from cluster.wire.channel import dial as dial_grpc
from proto.gen import meta_pb2, node_pb2

TIMEOUT_S = 1.0


class Asker:
    """Keeps one channel an address, made in the running loop; close it before the loop ends."""

    def __init__(self, dial: Dial = dial_grpc) -> None:
        self._dial = dial
        self._channels: dict[str, Channel] = {}

    def _channel(self, address: str) -> Channel:
        if address not in self._channels:
            self._channels[address] = self._dial(address)
        return self._channels[address]

    async def call(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """A method of the node's service; ChannelBroken, TimeoutError, TenfoldError as `ports.Channel` says."""
        return await self._channel(address).call("Node", method, request, timeout_s=timeout_s)

    async def status(self, address: str, timeout_s: float = TIMEOUT_S) -> node_pb2.StatusReply | None:
        """What the node at `address` says of itself; None if it does not answer in time."""
        try:
            reply: node_pb2.StatusReply = await self.call(address, "Status", node_pb2.StatusRequest(), timeout_s)
        except (ChannelBroken, TimeoutError, TenfoldError):
            return None
        return reply

    async def statuses(
        self, addresses: Mapping[str, str], timeout_s: float = TIMEOUT_S
    ) -> dict[str, node_pb2.StatusReply]:
        """All at once; only those that answer, and under their own name, for a port may be another's by now."""
        replies = await asyncio.gather(*(self.status(address, timeout_s) for address in addresses.values()))
        return {
            node: reply
            for node, reply in zip(addresses, replies, strict=True)
            if reply is not None and reply.node == node
        }

    async def shard_map(self, address: str, timeout_s: float = TIMEOUT_S) -> meta_pb2.ShardMap | None:
        """The newest shard map the node knows; None if it does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                async for shard_map in self._channel(address).replies("Node", "WatchMap", node_pb2.MapRequest()):
                    found: meta_pb2.ShardMap = shard_map
                    return found
        except (ChannelBroken, TimeoutError, TenfoldError):
            pass
        return None

    async def shard_maps(self, addresses: Sequence[str], timeout_s: float = TIMEOUT_S) -> list[meta_pb2.ShardMap]:
        """Those of the nodes that answer, all asked at once."""
        told = await asyncio.gather(*(self.shard_map(address, timeout_s) for address in addresses))
        return [shard_map for shard_map in told if shard_map is not None]

    async def close(self) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels))


def leaders(replies: Iterable[node_pb2.StatusReply]) -> dict[int, str]:
    """Shard to leader: of the nodes that say they lead it, the one in the highest term, for an older leader may not
    know yet that it was deposed."""
    best: dict[int, tuple[int, str]] = {}
    for reply in replies:
        for replica in reply.replicas:
            if replica.role == "leader" and replica.term > best.get(replica.shard, (0, ""))[0]:
                best[replica.shard] = (replica.term, reply.node)
    return {shard: node for shard, (_, node) in best.items()}
