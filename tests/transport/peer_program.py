"""A node's transport alone in a process of its own, for tests that kill it: `peer_program.py NAME INCARNATION PORT OTHER ADDRESS`.

Prints the port it serves at. Sends back every Raft message it gets.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import uvloop

from cluster.limits import DEFAULT
from cluster.raft.messages import Message
from cluster.wire.channel import dial
from node.transport.peer_service import PeerService
from node.transport.peers import Peers
from node.transport.server import Server
from node.transport.snapshot_stream import Arriving
from proto.gen import peer_pb2


class Clock:
    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return int(time.time() * 1000)


class Echo:
    peers: Peers

    def on_messages(self, node: str, messages: list[tuple[int, Message]]) -> None:
        for shard, message in messages:
            self.peers.send(node, shard, [message])
        self.peers.flush()

    def on_peer_up(self, node: str, incarnation: int, address: str) -> None: ...

    def on_peer_down(self, node: str) -> None: ...

    def on_newer_map(self, address: str) -> None: ...

    def on_heartbeat(self, node: str, beat: peer_pb2.NodeHeartbeat) -> None: ...

    async def on_snapshot(
        self, node: str, header: peer_pb2.SnapshotHeader, chunks: Arriving
    ) -> AsyncGenerator[peer_pb2.SnapshotReply, None]:
        yield peer_pb2.SnapshotReply()
        size = 0
        while not (chunk := await chunks.next()).last:
            size += len(chunk.pairs)
            yield peer_pb2.SnapshotReply(next=chunk.number + 1)
        yield peer_pb2.SnapshotReply(done=True, accepted=True, reason=str(size))


async def main(name: str, incarnation: int, port: int, other: str, address: str) -> None:
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None], name: str) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    echo = Echo()
    echo.peers = Peers(name, b"c" * 16, incarnation, "", dial, spawn, Clock(), DEFAULT, echo)
    server = Server([("Peer", PeerService(echo.peers))], address=f"127.0.0.1:{port}")
    bound = await server.start()
    echo.peers.identity.address = f"127.0.0.1:{bound}"
    echo.peers.set_address(other, address)
    print(bound, flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]))
