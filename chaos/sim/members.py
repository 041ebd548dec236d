"""Members that come and go while faults fall: an operator who asks whichever node answers, again until it is done.

`join` adds a host and moves a share to it, `drain` empties a member and takes its machine away, `bury` takes a machine away
without asking; its replicas are rebuilt elsewhere. Within the budget: never fewer members than replicas, and a machine is
taken away unasked only where a majority of every list of voters stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from chaos.sim.channel import SimChannel
from chaos.sim.clock import HostClock
from chaos.sim.cluster import SimCluster
from chaos.sim.loop import Process
from chaos.sim.schedule import Fault
from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from cluster.ring.shard_map import shards_on
from proto.gen import node_pb2

HOSTS_MAX = 7
AT_ONCE_MAX = 2
ASK_S = 1.0
PAUSE_S = 0.3


class Members:
    """`affordable` says whether more nodes may be lost, by name. `busy` are the changes that are not through yet."""

    def __init__(self, cluster: SimCluster, affordable: Callable[[set[str]], bool]) -> None:
        self.busy: dict[str, str] = {}
        self._cluster = cluster
        self._affordable = affordable
        self._operator = Process("operator", HostClock(lambda: cluster.loop.now))

    def join(self, fault: Fault) -> str:
        cluster = self._cluster
        if len(cluster.hosts) >= HOSTS_MAX or len(self.busy) >= AT_ONCE_MAX or not cluster.up():
            return ""
        name = cluster.add_host()
        cluster.boot(name)
        self._begin(name, "join", self._joined(name))
        return f"{name} joins"

    def drain(self, fault: Fault) -> str:
        name = self._leaver(fault)
        if name is None:
            return ""
        self._begin(name, "drain", self._drained(name))
        return f"{name} is drained, to be taken away"

    def bury(self, fault: Fault) -> str:
        """The machine is gone for good, and with it its disk."""
        cluster = self._cluster
        name = self._leaver(fault)
        if name is None or not self._affordable({name}) or not cluster.hosts[name].lived:
            return ""
        cluster.retire(name)
        cluster.missing[name] = None
        self._begin(name, "bury", self._removed(name))
        return f"{name} is gone for good"

    def _leaver(self, fault: Fault) -> str | None:
        cluster = self._cluster
        staying = [name for name in cluster.hosts if name not in self.busy]
        if len(staying) <= cluster.replication_factor or len(self.busy) >= AT_ONCE_MAX:
            return None
        return staying[int(fault.draws[0] * len(staying))]

    def _begin(self, name: str, what: str, work: Any) -> None:
        self.busy[name] = what
        self._cluster.loop.start(self._operator, self._through(name, work), f"{what} {name}")

    async def _through(self, name: str, work: Any) -> None:
        await work
        self._cluster.transcript.note("operator", f"{self.busy.pop(name)} {name}: done")

    # -- what takes its time -------------------------------------------------------------------------------------------

    async def _joined(self, name: str) -> None:
        while not any(each.node == name for each in self._cluster.map().members):
            await asyncio.sleep(PAUSE_S)
        await self._ask("Rebalance", node_pb2.RebalanceRequest())

    async def _drained(self, name: str) -> None:
        await self._ask("Drain", node_pb2.DrainRequest(node=name))
        while shards_on(self._cluster.map(), name):
            await asyncio.sleep(PAUSE_S)
        await self._removed(name)
        self._cluster.retire(name)

    async def _removed(self, name: str) -> None:
        """Asked until nothing of it is left; meanwhile its replicas are rebuilt."""
        while any(each.node == name for each in self._cluster.map().members):
            await self._ask("Remove", node_pb2.RemoveRequest(node=name))
            await asyncio.sleep(PAUSE_S)
        self._cluster.missing.pop(name, None)

    async def _ask(self, method: str, request: Any) -> None:
        """Of each node in turn, until one has done it or has a reason of its own not to."""
        while True:
            for host in list(self._cluster.hosts.values()):
                channel = SimChannel(self._cluster.network, host.address)
                try:
                    await channel.call("Node", method, request, timeout_s=ASK_S)
                    return
                except TenfoldError as error:
                    if error.code in (Code.MEMBER_BUSY, Code.INVALID_ARGUMENT):
                        self._cluster.transcript.note("operator", f"{method}: {error.message}")
                        return
                except (ChannelBroken, TimeoutError):
                    pass
                finally:
                    await channel.close()
            await asyncio.sleep(PAUSE_S)
