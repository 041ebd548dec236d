"""How a node arrives in its cluster: one that joins asks to be let in, one that lost its disk says so, until they are answered.

Law: a replica never votes twice with different memories. A node whose log is intact knows every replica that was ever on it, so
any other is new. One whose log is lost does not: it keeps the epoch up to which its replicas are lost, and opens nothing new until
the meta leader has told it that epoch. One that joins is taken for the same: a member of its name may have been there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken, Dial, DiskFull, StorageFailed
from node.cluster_map import ClusterMap
from node.config import NodeConfig
from node.storage.identity import Identity, Sealed
from proto.gen import meta_pb2, node_pb2

PATH = "lost"
NOTHING_LOST = -1
ASK_S = 2.0
PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between attempts; the last repeats."""

log = structlog.get_logger("arrival")


class Loss:
    """Up to which epoch of the map the replicas placed here are lost; None: not known yet. Kept in a sealed file."""

    def __init__(self, kept: Sealed, identity: Identity) -> None:
        self._kept = kept
        self._identity = identity
        self.epoch: int | None = NOTHING_LOST
        try:
            body = kept.read(identity)
        except StorageFailed as error:
            log.error("what was lost is not known any more", error=str(error))
            body = b""
        if body is not None:
            self.epoch = int(body) if body else None

    async def note(self) -> None:
        """The log is gone, and how much with it is to be asked. Durable before anything new is written there."""
        self.epoch = None
        await self._kept.write(self._identity, b"")

    async def know(self, epoch: int) -> None:
        """DiskFull: it stays unknown."""
        await self._kept.write(self._identity, str(epoch).encode())
        self.epoch = epoch

    def suspect(self, kept_epoch: int) -> None:
        """The log was damaged where it could not be told which replica it concerns: none up to the map on disk is trusted."""
        if self.epoch is not None:
            self.epoch = max(self.epoch, kept_epoch)

    def is_new(self, placed: meta_pb2.Replica) -> bool:
        """Whether a replica that the log does not know has surely never been here."""
        return self.epoch is not None and placed.epoch > self.epoch


class Arrival:
    """Asks for what the node lacks: a map, or the epoch of its loss, from which on its incarnations are counted again."""

    def __init__(
        self,
        config: NodeConfig,
        map: ClusterMap,
        loss: Loss,
        dial: Dial,
        address: Callable[[], str],
        count_from: Callable[[int], Awaitable[None]],
    ) -> None:
        self._config = config
        self._map = map
        self._loss = loss
        self._dial = dial
        self._address = address
        self._count_from = count_from

    @property
    def wanted(self) -> bool:
        return self._map.epoch == 0 or self._loss.epoch is None

    async def run(self) -> None:
        """Returns when nothing is left to ask. TenfoldError when this node will never be let in."""
        hint, failures = "", 0
        while self.wanted:
            seeds = self._seeds()
            address = hint or (seeds[failures % len(seeds)] if seeds else "")
            followed, hint = bool(hint), ""
            if address:
                hint = await self._attempt(address)
            if self.wanted and (followed or not hint):
                await asyncio.sleep(PAUSES_S[min(failures, len(PAUSES_S) - 1)])
                failures += 1

    async def _attempt(self, address: str) -> str:
        """Where else to ask at once, if the one asked knows."""
        try:
            await self._take(await self._ask(address))
        except TenfoldError as error:
            if error.code == Code.INVALID_ARGUMENT:
                raise
            log.info("not let in", address=address, code=error.code.name, reason=error.message)
            return str(error.details.get("leader", "")) if error.code == Code.NOT_LEADER else ""
        except (ChannelBroken, TimeoutError, DiskFull) as error:
            log.info("not let in", address=address, reason=str(error))
        return ""

    async def _ask(self, address: str) -> node_pb2.JoinReply:
        config = self._config
        member = meta_pb2.Member(node=config.node, address=self._address(), zone=config.zone)
        request = node_pb2.JoinRequest(cluster_id=config.cluster, member=member, lost=self._loss.epoch is None)
        channel = self._dial(address)
        try:
            reply = await channel.call("Node", "Join", request, timeout_s=ASK_S)
        finally:
            await channel.close()
        assert isinstance(reply, node_pb2.JoinReply)
        return reply

    async def _take(self, reply: node_pb2.JoinReply) -> None:
        """The map first: what is known of a loss tells which of its replicas may begin here."""
        if reply.map.cluster_id != self._config.cluster or not reply.map.epoch or not reply.epoch:
            raise TenfoldError(Code.WRONG_CLUSTER, f"the map is of cluster {reply.map.cluster_id.hex()!r}")
        log.info("let in", epoch=reply.map.epoch, lost=self._loss.epoch is None)
        await self._map.update(reply.map)
        if self._loss.epoch is None:
            await self._count_from(reply.epoch)
            await self._loss.know(reply.epoch)

    def _seeds(self) -> list[str]:
        config = self._config
        born_with = [member.address for member in config.members if member.node != config.node]
        known = [address for node, address in self._map.addresses().items() if node != config.node]
        own = self._address()
        return [address for address in dict.fromkeys([*known, *config.join, *born_with]) if address != own]
