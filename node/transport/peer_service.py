"""The accepting side of peer streams: the handlers of the service "Peer"."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cluster.errors import Code, TenfoldError, invalid
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
        self._snapshots: dict[tuple[str, int], Context] = {}

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
    ) -> AsyncIterator[peer_pb2.SnapshotReply]:
        """One stream per peer and shard is in force, as above. What breaks it off here is UNAVAILABLE to the sender."""
        chunks = self._peers.arriving(requests)
        replies = stream = None
        try:
            header = await chunks.header()
            self._peers.check(header.hello)
            node, shard = header.hello.node, header.message.shard
            stream = (node, shard)
            replaced = self._snapshots.get(stream)
            self._snapshots[stream] = context
            if replaced is not None:
                replaced.cancel()
            replies = self._peers.handler.on_snapshot(node, header, chunks)
            async for reply in replies:
                yield reply
        except ChannelBroken as error:
            self._peers.log.warning("snapshot broken off", stream=stream, problem=str(error))
            raise TenfoldError(Code.UNAVAILABLE, str(error)) from None
        finally:
            if replies is not None:
                await replies.aclose()
            if stream is not None and self._snapshots.get(stream) is context:
                del self._snapshots[stream]
