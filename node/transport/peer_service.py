"""The accepting side of peer streams: the handlers of the service "Peer"."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from cluster.errors import invalid
from cluster.ports import ChannelBroken
from node.transport.context import Context
from node.transport.peers import Peers
from proto.gen import peer_pb2


class PeerService:
    """Serves `Peers`. One stream per peer is in force: a later one of the same node replaces it, since its dialler has
    given up the earlier."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._in_force: dict[str, Context] = {}

    async def frames(self, requests: AsyncIterator[peer_pb2.Frame], context: Context) -> AsyncIterator[peer_pb2.Frame]:
        node = ""
        try:
            async for frame in requests:
                if node:
                    self._peers.receive(node, frame)
                    continue
                if not frame.HasField("hello"):
                    raise invalid("hello", "missing in the first frame")
                self._peers.admit(frame.hello)
                node = frame.hello.node
                replaced = self._in_force.get(node)
                self._in_force[node] = context
                if replaced is not None:
                    replaced.cancel()
                yield peer_pb2.Frame(hello=self._peers.identity.hello())
        finally:
            if node and self._in_force.get(node) is context:
                del self._in_force[node]
                self._peers.stream_from_broke(node)

    async def snapshot(
        self, requests: AsyncIterator[peer_pb2.SnapshotChunk], context: Context
    ) -> peer_pb2.SnapshotReply:
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            raise invalid("header", "missing in the first chunk")
        self._peers.check(first.header.hello)
        node = first.header.hello.node
        try:
            return await self._peers.handler.on_snapshot(node, first.header, _whole(first, requests))
        except ChannelBroken as error:
            self._peers.log.warning(
                "snapshot broken off", peer=node, shard=first.header.message.shard, problem=str(error)
            )
            return peer_pb2.SnapshotReply(accepted=False, reason=str(error))


async def _whole(first: peer_pb2.SnapshotChunk, rest: AsyncIterator[peer_pb2.SnapshotChunk]) -> AsyncIterator[bytes]:
    """The chunks' bytes; ends only after the one marked last. ChannelBroken for damage or a stream cut short."""
    chunk: peer_pb2.SnapshotChunk | None = first
    while chunk is not None:
        if zlib.crc32(chunk.pairs) != chunk.crc:
            raise ChannelBroken("a chunk came damaged: its CRC does not match")
        if chunk.pairs:
            yield chunk.pairs
        if chunk.last:
            return
        chunk = await anext(rest, None)
    raise ChannelBroken("the snapshot was cut short")
