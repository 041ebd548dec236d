"""Starts and ends the processes of the nodes of one directory.

The laws: a node is started only under the directory's lock and only if it does not run; a signal goes only to a process
recognised as that node; a start that fails leaves none of the processes it made; whoever started a process reaps it.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum

import psutil

from cluster.errors import Code, TenfoldError, invalid
from cluster.local import process as processes
from cluster.local.free_ports import free_ports, is_free
from cluster.local.layout import ClusterFile, Layout
from cluster.local.lock import directory_lock

POLL_S = 0.02
LISTEN_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
KILL_GRACE_S = 10.0
PORT_ATTEMPTS = 3


class Condition(StrEnum):
    RUNNING = "running"  # it listens
    STARTING = "starting"
    PAUSED = "paused"
    DOWN = "down"


class Launcher:
    """Acts on the nodes of `layout`, whoever started them. With `die_with_parent` the nodes it starts die with it."""

    def __init__(self, layout: Layout, *, die_with_parent: bool = False) -> None:
        self.layout = layout
        self.die_with_parent = die_with_parent
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def cluster(self) -> ClusterFile:
        """cluster.json as it is now, since another command may have changed a port. TenfoldError InvalidArgument."""
        return self.layout.read()

    def processes(self, nodes: Sequence[str]) -> dict[str, psutil.Process]:
        """The living processes of those of `nodes` that have one. Reaps our children that have ended."""
        for node in [node for node, child in self._children.items() if child.poll() is not None]:
            del self._children[node]
        runs = {node: self.layout.read_run(node) for node in nodes}
        hints = {self.layout.node_directory(node): run.pid if run else None for node, run in runs.items()}
        found = processes.find(hints)
        return {node: found[path] for node in nodes if (path := self.layout.node_directory(node)) in found}

    def conditions(self, nodes: Sequence[str]) -> dict[str, tuple[Condition, psutil.Process | None]]:
        """What each of `nodes` is up to, with its process if it has one."""
        found = self.processes(nodes)
        return {node: (self._condition(node, found.get(node)), found.get(node)) for node in nodes}

    def _condition(self, node: str, process: psutil.Process | None) -> Condition:
        if process is None:
            return Condition.DOWN
        if processes.is_paused(process):
            return Condition.PAUSED
        run = self.layout.read_run(node)
        return Condition.RUNNING if run and run.pid == process.pid else Condition.STARTING

    def address(self, node: str) -> str:
        """Where the node listens, or last did; where it will, if it never ran."""
        run = self.layout.read_run(node)
        return run.address if run else self.cluster.entry(node).address

    async def start(self, nodes: Sequence[str], *, base_port: int | None = None) -> list[str]:
        """Starts those that do not run and waits until they listen; their names. TenfoldError if one does not come up:
        then none of them runs. A port that was taken meanwhile is replaced, unless `base_port` fixes it."""
        async with directory_lock(self.layout.lock_path):
            running = self.processes(nodes)
            down = [node for node in nodes if node not in running]
            for attempt in range(1, PORT_ATTEMPTS + 1):
                self._assign_ports(down, base_port)
                try:
                    await self._spawn(down)
                    break
                except _PortTaken as error:
                    if base_port is not None or attempt == PORT_ATTEMPTS:
                        raise TenfoldError(Code.UNAVAILABLE, str(error)) from None
        return down

    def _assign_ports(self, down: Sequence[str], base_port: int | None) -> None:
        cluster = self.cluster
        if base_port is not None:
            for position, entry in enumerate(cluster.nodes):
                if entry.node in down:
                    entry.port = base_port + position
                elif entry.port != base_port + position:
                    raise invalid("base_port", f"{entry.node} runs on port {entry.port} already")
        taken = [cluster.entry(node) for node in down if not is_free(cluster.entry(node).port)]
        if taken and base_port is not None:
            raise TenfoldError(Code.UNAVAILABLE, f"base_port: port {taken[0].port} of {taken[0].node} is taken")
        for entry, port in zip(taken, free_ports(len(taken), [each.port for each in cluster.nodes]), strict=True):
            entry.port = port
        self.layout.write(cluster)

    async def _spawn(self, nodes: Sequence[str]) -> None:
        try:
            for node in nodes:
                self.layout.forget_run(node)
                self._children[node] = processes.spawn(
                    self.layout.node_directory(node), self.layout.log_path(node), die_with_parent=self.die_with_parent
                )
            await self._until(lambda: self._all_listen(nodes), LISTEN_TIMEOUT_S, "did not listen")
        except BaseException:  # an interrupt, too: what was started here must not stay behind
            for node in nodes:
                if (child := self._children.pop(node, None)) is not None:
                    child.kill()
                    child.wait()
            raise

    def _all_listen(self, nodes: Sequence[str]) -> bool:
        return all(list(map(self._listens, nodes)))  # each is asked, since each may have ended

    def _listens(self, node: str) -> bool:
        """Whether the child listens; raises if it has ended."""
        child = self._children[node]
        if (code := child.poll()) is not None:
            port = self.cluster.entry(node).port
            if not is_free(port):
                raise _PortTaken(f"port {port} of {node} is taken")
            last = self.layout.last_lines(node, 1)
            raise TenfoldError(
                Code.UNAVAILABLE, f"{node} ended with exit code {code} while starting: {last[0] if last else 'no log'}"
            )
        run = self.layout.read_run(node)
        return run is not None and run.pid == child.pid

    async def kill(self, nodes: Sequence[str]) -> None:
        """SIGKILL to all at once; returns when they are gone. TenfoldError Unavailable, before any signal, if one does
        not run."""
        await self._end(self._running(nodes), signal.SIGKILL, KILL_GRACE_S)

    async def stop(self, nodes: Sequence[str], grace_s: float = STOP_GRACE_S) -> list[str]:
        """Ends those that run: SIGTERM, on which a node hands over its leaderships and drains, and SIGKILL to those that are
        not gone after `grace_s` seconds; the names of the latter."""
        found = self.processes(nodes)
        for process in found.values():
            processes.send(process, signal.SIGTERM)
            processes.send(process, signal.SIGCONT)  # a paused one could not act on it
        try:
            await self._until_gone(found, grace_s)
        except TenfoldError:
            left = [node for node, process in found.items() if processes.is_alive(process)]
            await self._end({node: found[node] for node in left}, signal.SIGKILL, KILL_GRACE_S)
            return left
        return []

    def pause(self, nodes: Sequence[str]) -> None:
        """SIGSTOP: the process stands still and keeps its connections. TenfoldError Unavailable if one does not run."""
        for process in self._running(nodes).values():
            processes.send(process, signal.SIGSTOP)

    def resume(self, nodes: Sequence[str]) -> None:
        """SIGCONT; nothing happens to a node that is not paused. TenfoldError Unavailable if one does not run."""
        for process in self._running(nodes).values():
            processes.send(process, signal.SIGCONT)

    def _running(self, nodes: Sequence[str]) -> dict[str, psutil.Process]:
        found = self.processes(nodes)
        if down := [node for node in nodes if node not in found]:
            raise TenfoldError(Code.UNAVAILABLE, f"{', '.join(down)} {'is' if len(down) == 1 else 'are'} not running")
        return found

    async def _end(self, found: dict[str, psutil.Process], number: signal.Signals, grace_s: float) -> None:
        for process in found.values():
            processes.send(process, number)
        await self._until_gone(found, grace_s)

    async def _until_gone(self, found: dict[str, psutil.Process], grace_s: float) -> None:
        await self._until(
            lambda: not any(self._lives(node, each) for node, each in found.items()), grace_s, "did not end"
        )

    def _lives(self, node: str, process: psutil.Process) -> bool:
        child = self._children.get(node)
        if child is not None and child.pid == process.pid:
            if child.poll() is None:
                return True
            del self._children[node]
            return False
        return processes.is_alive(process)

    async def _until(self, condition: Callable[[], bool], timeout_s: float, problem: str) -> None:
        await until(condition, timeout_s, f"{self.layout.root}: a node {problem} within {timeout_s:.0f} s")


class _PortTaken(Exception):
    """A node could not listen because someone else does."""


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float, problem: str, poll_s: float = POLL_S
) -> None:
    """Returns once `condition` holds; TenfoldError DeadlineExceeded with `problem` if it does not in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise TenfoldError(Code.DEADLINE_EXCEEDED, problem)
        await asyncio.sleep(poll_s)


def names(cluster: ClusterFile, chosen: Iterable[str]) -> list[str]:
    """`chosen` without repetition, each checked to be a node of the cluster. TenfoldError InvalidArgument."""
    return [cluster.entry(node).node for node in dict.fromkeys(chosen)]
