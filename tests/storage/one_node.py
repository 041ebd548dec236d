"""One real node in a process of its own, for tests that damage its files: a cluster of one, with real disk and engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cluster.errors import Code
from cluster.local.free_ports import free_ports
from cluster.local.process import spawn
from cluster.ports import ChannelBroken
from cluster.ring.ring import shard_of
from cluster.wire.channel import dial
from node.config import MemberConfig, NodeConfig
from proto.gen import kv_pb2, node_pb2

CLUSTER = bytes(range(16))
SHARDS = 2
START_S = 30.0


class OneNode:
    def __init__(self, directory: Path) -> None:
        self.directory = directory / "n1"
        self.directory.mkdir()
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        config = NodeConfig(
            format=1,
            cluster_id=CLUSTER.hex(),
            node="n1",
            address=self.address,
            shards=SHARDS,
            replication_factor=1,
            members=[MemberConfig("n1", self.address)],
        )
        (self.directory / "node.json").write_bytes(msgspec.json.encode(config))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def incarnation(self) -> int:
        """As the node has told it; 0 before."""
        with contextlib.suppress(FileNotFoundError):
            return int(msgspec.json.decode((self.directory / "run.json").read_bytes())["incarnation"])
        return 0

    async def start(self, *, lives: int = 1) -> None:
        """Until the node has started `lives` times more, by itself but for the first."""
        wanted = self.incarnation + lives
        self.process = spawn(self.directory, self.directory / "node.log", die_with_parent=True, variables={})
        await self.reach(wanted)

    async def reach(self, incarnation: int) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while self.incarnation < incarnation:
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < deadline, self.told()
            await asyncio.sleep(0.02)

    def told(self) -> str:
        return (self.directory / "node.log").read_text()[-3000:]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    async def status(self) -> node_pb2.StatusReply:
        channel = dial(self.address)
        try:
            reply = await channel.call("Node", "Status", node_pb2.StatusRequest(), timeout_s=5)
            assert isinstance(reply, node_pb2.StatusReply)
            return reply
        finally:
            await channel.close()

    async def put(self, pairs: dict[bytes, bytes]) -> None:
        for shard in range(1, SHARDS + 1):
            ops = [kv_pb2.KvOp(key=key, value=value) for key, value in pairs.items() if shard_of(key, SHARDS) == shard]
            await self.call(shard, kv_pb2.KvCommand(ops=ops).SerializeToString(), node_pb2.COMMAND)

    async def get(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for shard in range(1, SHARDS + 1):
            mine = [key for key in keys if shard_of(key, SHARDS) == shard]
            body = kv_pb2.KvQuery(get=kv_pb2.KvGet(keys=mine)).SerializeToString()
            answer = kv_pb2.KvAnswer.FromString(await self.call(shard, body, node_pb2.QUERY))
            found.update({each.key: each.value for each in answer.items if each.version})
        return found

    async def call(self, shard: int, body: bytes, mode: node_pb2.Mode) -> bytes:
        """Until the shard has a leader; AssertionError for any other refusal."""
        sub = node_pb2.SubRequest(shard=shard, shard_version=1, capability="kv", mode=mode, body=body)
        channel = dial(self.address)
        try:
            async with asyncio.timeout(START_S):
                while True:
                    with contextlib.suppress(ChannelBroken):
                        request = node_pb2.CallRequest(cluster_id=CLUSTER, requests=[sub])
                        reply = (await channel.call("Node", "Call", request, timeout_s=10)).replies[0]
                        if Code(reply.code) not in (Code.NOT_LEADER, Code.UNAVAILABLE):
                            assert not reply.code, reply
                            return bytes(reply.body)
                    await asyncio.sleep(0.05)
        finally:
            await channel.close()


@contextlib.asynccontextmanager
async def one_node(directory: Path) -> AsyncIterator[OneNode]:
    node = OneNode(directory)
    try:
        yield node
    finally:
        if node.process is not None:
            node.stop(signal.SIGKILL)
