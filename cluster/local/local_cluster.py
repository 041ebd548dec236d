"""A cluster of real processes on this host, for a program to hold: tests, chaos and benchmarks, and the command line.

async with LocalCluster(nodes=3) as cluster:
    client = Client(list(cluster.addresses.values()))
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.errors import Code, TenfoldError
from cluster.local.ask import Asker, leaders
from cluster.local.cluster_file import ClusterFile, new_cluster
from cluster.local.free_ports import free_ports, is_free
from cluster.local.launcher import Condition, Launcher, names, until
from cluster.local.layout import Layout
from cluster.local.lock import directory_lock
from cluster.local.members import Members, Progress
from cluster.local.rolling import Restarted, RollingRestart
from cluster.types import META_SHARD
from proto.gen import meta_pb2, node_pb2

READY_TIMEOUT_S = 60.0
READY_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """`reply` is None if the node did not answer; `pid` is None if it does not run; `trouble` is why it did not start."""

    node: str
    zone: str
    address: str
    condition: Condition
    pid: int | None
    reply: node_pb2.StatusReply | None
    trouble: str = ""


class LocalCluster:
    """N node processes in one directory; a temporary one, removed at the exit, if `dir` is None.

    Entering starts the cluster, making it if the directory holds none, and returns when every shard has a leader; leaving
    stops it. On a directory that holds a cluster its own settings count. With `die_with_parent` the nodes die with the
    thread that started them, even by SIGKILL. Node names are n1, n2, ...; `zones` are dealt out to them in turn.
    Methods raise TenfoldError: InvalidArgument for an unknown node, Unavailable for one that does not run or come up,
    DeadlineExceeded when a wait is over.
    """

    def __init__(
        self,
        nodes: int = 3,
        replicas: int = 3,
        shards: int = 12,
        dir: str | Path | None = None,
        *,
        zones: Sequence[str] = (),
        die_with_parent: bool = True,
        base_port: int | None = None,
        repair_after_s: float | None = None,
    ) -> None:
        self._settings = (nodes, replicas, shards, tuple(zones))
        self._repair_after_s = repair_after_s
        self._base_port = base_port
        self._temporary = dir is None
        self.layout = Layout(Path(tempfile.gettempdir()) / f"tenfold-{secrets.token_hex(6)}" if dir is None else dir)
        self.launcher = Launcher(self.layout, die_with_parent=die_with_parent)
        self._asker = Asker()
        self._members = Members(self.launcher, self._asker)

    @classmethod
    def at(cls, dir: str | Path, *, die_with_parent: bool = False) -> LocalCluster:
        """The cluster that lives in `dir`, running or not; nothing is started. TenfoldError InvalidArgument if there is none."""
        found = cls(dir=dir, die_with_parent=die_with_parent)
        found.layout.read()
        return found

    async def __aenter__(self) -> Self:
        try:
            await self.up()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        try:
            if self.layout.exists():
                await self.down()
        finally:
            await self.close()
            if self._temporary:
                shutil.rmtree(self.layout.root, ignore_errors=True)

    async def close(self) -> None:
        """Closes the connections to the nodes, which live on."""
        await self._asker.close()

    @property
    def cluster(self) -> ClusterFile:
        return self.layout.read()

    @property
    def nodes(self) -> list[str]:
        return self.cluster.names

    @property
    def addresses(self) -> dict[str, str]:
        """Node to host:port, of those that are down as well."""
        return {node: self.launcher.address(node) for node in self.nodes}

    async def up(self, timeout_s: float = READY_TIMEOUT_S) -> list[str]:
        """Makes the cluster if there is none, starts the nodes that do not run, waits until it is ready; the names of
        the started ones. If one does not come up, it ends with that error, and the others run."""
        started = await self.start()
        await self.wait_ready(timeout_s)
        return started

    async def start(self) -> list[str]:
        """`up` without the wait for leaders."""
        await self.create()
        return await self.launcher.start(self.nodes, base_port=self._base_port)

    async def create(self) -> None:
        """Makes the cluster's directory, unless it holds one; nothing is started."""
        nodes, replicas, shards, zones = self._settings
        if self.layout.exists():
            return
        base = self._base_port
        self.layout.check_vacant()
        ports = free_ports(nodes) if base is None else [base + position for position in range(nodes)]
        born = new_cluster(nodes, replicas, shards, zones, ports, self._repair_after_s)
        for entry in born.nodes:  # before anything is made, so that a refusal leaves nothing behind
            if base is not None and not is_free(entry.port):
                raise TenfoldError(Code.UNAVAILABLE, f"base_port: port {entry.port} of {entry.node} is taken")
        try:
            self.layout.root.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TenfoldError(Code.INVALID_ARGUMENT, f"dir: {self.layout.root}: {error.strerror}") from None
        async with directory_lock(self.layout.lock_path):
            if not self.layout.exists():
                self.layout.create(born)

    async def down(self) -> list[str]:
        """Stops all nodes; the data stays. The names of those that had to be killed."""
        async with directory_lock(self.layout.lock_path):
            return await self.launcher.stop(self.nodes)

    async def purge(self) -> list[str]:
        """Stops all nodes and removes the cluster; the names of other files in the directory, which stay."""
        async with directory_lock(self.layout.lock_path):
            await self.launcher.stop(self.nodes)
            return self.layout.purge()

    async def kill(self, *nodes: str) -> None:
        """SIGKILL; returns when they are gone and reaped."""
        await self.launcher.kill(names(self.cluster, nodes))

    async def destroy(self, node: str) -> None:
        """SIGKILL, and its folder is gone with it: a machine that never comes back."""
        await self.kill(node)
        async with directory_lock(self.layout.lock_path):
            self.layout.remove_folder(node)

    async def stop(self, *nodes: str) -> list[str]:
        """Clean: the nodes hand over their leaderships and drain. The names of those that had to be killed."""
        chosen = names(self.cluster, nodes)
        self.launcher.running(chosen)
        return await self.launcher.stop(chosen)

    async def pause(self, *nodes: str) -> None:
        self.launcher.pause(names(self.cluster, nodes))

    async def resume(self, *nodes: str) -> list[str]:
        """The names of those that were not paused."""
        return self.launcher.resume(names(self.cluster, nodes))

    async def restart(self, *nodes: str) -> list[str]:
        """Stops those that run, starts all; returns when they listen, which is before they have caught up. The names of
        those that had to be killed."""
        chosen = names(self.cluster, nodes)
        killed = await self.launcher.stop(chosen)
        await self.launcher.start(chosen)
        return killed

    # -- members and moves ---------------------------------------------------------------------------------------------

    async def add(self, count: int = 1, zones: Sequence[str] = ()) -> list[str]:
        """Starts so many new nodes, zones dealt out in turn; their names, once they are members. They hold nothing until a
        rebalance."""
        return await self._members.add(count, zones)

    async def drain(self, node: str, progress: Progress | None = None) -> int:
        """Moves every replica away from `node`, which may be down; how many. Returns when it holds none."""
        return await self._members.drain(node, progress)

    async def remove(self, node: str) -> None:
        """Takes a node that holds nothing out of the cluster, with its folder. MemberBusy if it holds replicas."""
        await self._members.remove(node)

    async def planned(self) -> node_pb2.RebalanceReply:
        """What `rebalance` would do now."""
        return await self._members.planned()

    async def rebalance(self, progress: Progress | None = None) -> node_pb2.RebalanceReply:
        """Moves replicas until they are where they should be; the moves it set out to make."""
        return await self._members.rebalance(progress)

    async def driver_status(self, timeout_s: float = 30.0) -> node_pb2.DriverStatusReply:
        """What moves now. DeadlineExceeded if no meta leader answers."""
        return await self._members.driver_status(timeout_s)

    async def rolling_restart(self, *nodes: str, tell: Callable[[str], None] = lambda line: None) -> Restarted:
        """Stops and starts the nodes, all if none is named, each only when the cluster is whole. Unavailable if it does not
        become so."""
        restart = RollingRestart(self.launcher, self._replies, self.shard_map, tell)
        return await restart.run(names(self.cluster, nodes) or self.nodes)

    async def _replies(self) -> dict[str, node_pb2.StatusReply]:
        return {each.node: each.reply for each in await self.status() if each.reply is not None}

    # -- what is -------------------------------------------------------------------------------------------------------

    async def status(self) -> list[NodeStatus]:
        """Every node, in order; those that can answer are asked."""
        conditions = self.launcher.conditions(self.nodes)
        asked = {
            node: self.launcher.address(node) for node, (each, _) in conditions.items() if each is Condition.RUNNING
        }
        replies = await self._asker.statuses(asked)
        return [
            NodeStatus(
                node=entry.node,
                zone=entry.zone,
                address=self.launcher.address(entry.node),
                condition=conditions[entry.node][0],
                pid=process.pid if (process := conditions[entry.node][1]) else None,
                reply=replies.get(entry.node),
                trouble=self.launcher.trouble(entry.node) if conditions[entry.node][0] is Condition.DOWN else "",
            )
            for entry in self.cluster.nodes
        ]

    async def leaders(self) -> dict[int, str]:
        """Shard (0 is meta) to leader, of the shards that have one."""
        return leaders(each.reply for each in await self.status() if each.reply is not None)

    async def wait_ready(
        self, timeout_s: float = READY_TIMEOUT_S, progress: Callable[[int, int], None] | None = None
    ) -> dict[int, str]:
        """Returns every shard's leader, meta's too, once all have one. TenfoldError DeadlineExceeded names those without.
        `progress` is told how many of how many have one."""
        wanted = range(META_SHARD, self.cluster.shards + 1)
        found: dict[int, str] = {}

        async def ready() -> bool:
            found.clear()
            found.update(await self.leaders())
            if progress is not None:
                progress(len(found), len(wanted))
            return all(shard in found for shard in wanted)

        try:
            await until(ready, timeout_s, "", READY_POLL_S)
        except TenfoldError:
            lacking = ", ".join("meta" if shard == META_SHARD else str(shard) for shard in wanted if shard not in found)
            away = [f"{each.node} is {each.condition}" for each in await self.status() if each.reply is None]
            told = f" ({', '.join(away)})" if away else ""
            raise TenfoldError(
                Code.DEADLINE_EXCEEDED, f"after {timeout_s:g} s these shards have no leader: {lacking}{told}"
            ) from None
        return dict(found)

    async def shard_map(self) -> meta_pb2.ShardMap:
        """The newest map a running node knows; the one the cluster was born with if none answers."""
        return await self._members.shard_map()
