"""Three etcd nodes on this host and a Python grpc.aio client of theirs, as a yardstick.

Only the two messages of etcd's KV service that the comparison needs are built, at run time, from its published field
numbers (etcdserverpb: PutRequest, RequestOp, TxnRequest, TxnResponse). Replies are not read beyond `succeeded`, which
spares this client work and so favours etcd.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from cluster.local.free_ports import free_ports
from cluster.wire.foreign import ForeignChannel, Unary

NODES = 3
READY_SECONDS_MAX = 30.0
TXN_PATH = "/etcdserverpb.KV/Txn"


def installed() -> bool:
    return shutil.which("etcd") is not None


def txn_messages() -> tuple[Any, Any]:
    """The classes TxnRequest and TxnResponse."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bench/etcd.proto", package="etcdserverpb", syntax="proto3")
    put = file.message_type.add(name="PutRequest")
    put.field.add(name="key", number=1, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    put.field.add(name="value", number=2, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    operation = file.message_type.add(name="RequestOp")
    operation.oneof_decl.add(name="request")
    operation.field.add(
        name="request_put",
        number=2,
        type=kinds.TYPE_MESSAGE,
        type_name=".etcdserverpb.PutRequest",
        label=kinds.LABEL_OPTIONAL,
        oneof_index=0,
    )
    request = file.message_type.add(name="TxnRequest")
    request.field.add(
        name="success",
        number=2,
        type=kinds.TYPE_MESSAGE,
        type_name=".etcdserverpb.RequestOp",
        label=kinds.LABEL_REPEATED,
    )
    reply = file.message_type.add(name="TxnResponse")
    reply.field.add(name="succeeded", number=2, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = [pool.FindMessageTypeByName(f"etcdserverpb.{name}") for name in ("TxnRequest", "TxnResponse")]
    return message_factory.GetMessageClass(made[0]), message_factory.GetMessageClass(made[1])


class EtcdCluster:
    """Three nodes with their data below `directory`, killed when the block ends. RuntimeError if they never answer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[asyncio.subprocess.Process] = []
        self.addresses: list[str] = []

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self._processes]

    async def __aenter__(self) -> EtcdCluster:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        ports = free_ports(2 * NODES)
        peers = [f"http://127.0.0.1:{port}" for port in ports[:NODES]]
        clients = [f"http://127.0.0.1:{port}" for port in ports[NODES:]]
        everyone = ",".join(f"e{number}={peer}" for number, peer in enumerate(peers))
        # a launcher that dies must not leave them behind
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        for number, (peer, client) in enumerate(zip(peers, clients, strict=True)):
            options = {
                "name": f"e{number}",
                "data-dir": str(self._directory / f"e{number}"),
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "initial-cluster": everyone,
                "initial-cluster-state": "new",
                "log-level": "error",
            }
            arguments = [f"--{name}={value}" for name, value in options.items()]
            nowhere = asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *guard, "etcd", *arguments, stdin=nowhere, stdout=nowhere, stderr=nowhere
            )
            self._processes.append(process)
        self.addresses = [client.removeprefix("http://") for client in clients]
        await self._wait_ready()

    async def _wait_ready(self) -> None:
        async with EtcdClient(self.addresses) as client:
            try:
                async with asyncio.timeout(READY_SECONDS_MAX):
                    await client.ready()
                    while not await client.answers():
                        await asyncio.sleep(0.1)
            except TimeoutError:
                raise RuntimeError("etcd: no answer") from None

    async def _stop(self) -> None:
        for each in self._processes:
            if each.returncode is None:
                each.kill()
        for each in self._processes:
            await each.wait()
        self._processes.clear()


class EtcdClient:
    """One connection per node; requests go to them in turn, as etcd's own client spreads them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self._channels: list[ForeignChannel] = []
        self._calls: list[Unary] = []
        self._turn = 0
        self._request_type, self._reply_type = txn_messages()

    async def __aenter__(self) -> EtcdClient:
        self._channels = [ForeignChannel(address) for address in self._addresses]
        self._calls = [each.unary(TXN_PATH, self._reply_type) for each in self._channels]
        return self

    async def __aexit__(self, *error: object) -> None:
        for each in self._channels:
            await each.close()

    async def ready(self) -> None:
        for each in self._channels:
            await each.ready()

    async def answers(self) -> bool:
        """Does every node take a transaction?"""
        try:
            for call in self._calls:
                await call(self._request_type())
        except Exception:  # grpc's errors of a cluster that has no leader yet
            return False
        return True

    async def put_all(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """One transaction that puts every pair."""
        request = self._request_type()
        add = request.success.add
        for key, value in pairs:
            put = add().request_put
            put.key = key
            put.value = value
        self._turn = (self._turn + 1) % len(self._calls)
        reply = await self._calls[self._turn](request)
        assert reply.succeeded, "a transaction without compares succeeds"
