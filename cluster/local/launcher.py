"""Starts and ends the processes of the nodes of one directory.

The laws: a node is started only under the directory's lock and only if it does not run; a signal goes only to a process
recognised as that node; a start that is interrupted leaves none of the processes it made, one that fails leaves those that
listen; whoever started a process reaps it; a node that may have voted is recorded as born, so that it is never taken for
a new one when its folder is gone.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

import psutil

from cluster.errors import Code, TenfoldError, invalid
from cluster.local import process as processes
from cluster.local.cluster_file import ClusterFile
from cluster.local.free_ports import free_ports, is_free
from cluster.local.layout import Layout
from cluster.local.lock import directory_lock

POLL_S = 0.02
LISTEN_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
KILL_GRACE_S = 10.0
PORT_ATTEMPTS = 3
LOST = "its data is gone; it has voted, so it starts quarantined"


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
        self.lost: list[str] = []
        """Nodes of the last `start` whose data was gone: they run, but quarantined."""
        self.variables: dict[str, dict[str, str]] = {}
        """By node: what is added to the environment of its next process."""
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

    def running_addresses(self) -> list[str]:
        """Where those listen that run."""
        conditions = self.conditions(self.cluster.names)
        return [self.address(node) for node, (each, _) in conditions.items() if each is Condition.RUNNING]

    def trouble(self, node: str) -> str:
        """Why a node that is down did not come up, or will not as it was; "" if it only is down."""
        cluster = self.cluster
        if reason := self.layout.refusal(cluster, node):
            return reason
        if cluster.entry(node).born and not self.layout.has_lived(node):
            return LOST
        return "" if self.layout.read_run(node) else self.layout.last_error(node)

    async def start(self, nodes: Sequence[str], *, base_port: int | None = None) -> list[str]:
        """Starts those that do not run and waits until they listen; their names. TenfoldError Unavailable names those that
        do not come up, each with its reason; the others run. A port that was taken meanwhile is replaced, unless
        `base_port` fixes it."""
        async with directory_lock(self.layout.lock_path):
            running = self.processes(nodes)
            down = [node for node in nodes if node not in running]
            self._record_born([node for node in self.cluster.names if self.layout.has_lived(node)])
            cluster = self.cluster
            self.lost = [node for node in down if cluster.entry(node).born and not self.layout.has_lived(node)]
            keep = self._refused(cluster)
            failed = {node: _Failure(f"{node}: {keep[node]}") for node in down if node in keep}
            waiting = [node for node in down if node not in keep]
            for attempt in range(1, PORT_ATTEMPTS + 1):
                if not waiting and failed:
                    break
                self._assign_ports(waiting, base_port, keep)
                failed |= await self._spawn(waiting)
                waiting = [node for node in waiting if node in failed and failed[node].port_taken]
                if not waiting or base_port is not None or attempt == PORT_ATTEMPTS:
                    break
                for node in waiting:
                    del failed[node]
            self.lost = [node for node in self.lost if node not in failed]
            if failed:
                raise self._not_up(failed)
        return down

    def _refused(self, cluster: ClusterFile) -> dict[str, str]:
        """The nodes whose folders are not ours to write to, each with its reason."""
        return {node: reason for node in cluster.names if (reason := self.layout.refusal(cluster, node))}

    async def enlist(self, count: int, zones: Sequence[str]) -> list[str]:
        """Names, ports and folders for so many further nodes, which `start` then starts. TenfoldError InvalidArgument."""
        if count < 1:
            raise invalid("count", f"{count}, must be at least 1")
        async with directory_lock(self.layout.lock_path):
            cluster = self.cluster
            joined = [entry.node for entry in cluster.join(free_ports(count, cluster.ports), zones)]
            for node in joined:
                if self.layout.has_content(node):
                    raise invalid("dir", f"{self.layout.node_directory(node)} holds something; take it away")
            self.layout.write(cluster, self._refused(cluster))
        return joined

    async def dismiss(self, node: str) -> None:
        """Of a node that the cluster has let go: stops it, takes it out of cluster.json and removes its folder. May be done
        again after an interruption."""
        async with directory_lock(self.layout.lock_path):
            cluster = self.cluster
            if node in cluster.names:
                await self.stop([node])
                cluster.remove(node)
                self.layout.write(cluster, self._refused(cluster))
            self.layout.remove_folder(node)

    def _not_up(self, failed: dict[str, _Failure]) -> TenfoldError:
        others = sorted(set(self.cluster.names) - failed.keys())
        run = bool(others) and set(self.processes(others)) == set(others) and not self.die_with_parent
        reasons = "; ".join(failure.reason for failure in failed.values())
        return TenfoldError(Code.UNAVAILABLE, f"{reasons}{'; the others run' if run else ''}")

    def _record_born(self, nodes: Sequence[str]) -> None:
        cluster = self.cluster
        for node in nodes:
            cluster.entry(node).born = True
        self.layout.write_cluster(cluster)

    def _assign_ports(self, down: Sequence[str], base_port: int | None, keep: Collection[str]) -> None:
        cluster = self.cluster
        if base_port is not None:
            for entry in cluster.nodes:
                if entry.node in down:
                    entry.port = base_port + entry.number - 1
                elif entry.port != base_port + entry.number - 1 and entry.node not in keep:
                    raise invalid("base_port", f"{entry.node} runs on port {entry.port} already")
        taken = [cluster.entry(node) for node in down if not is_free(cluster.entry(node).port)]
        if taken and base_port is not None:
            raise TenfoldError(Code.UNAVAILABLE, f"base_port: port {taken[0].port} of {taken[0].node} is taken")
        for entry, port in zip(taken, free_ports(len(taken), cluster.ports), strict=True):
            entry.port = port
        self.layout.write(cluster, keep)

    async def _spawn(self, nodes: Sequence[str]) -> dict[str, _Failure]:
        """Returns when each listens or has failed; those that failed, which do not run."""
        failed: dict[str, _Failure] = {}
        waiting = set(nodes)

        def settled() -> bool:
            listening = [node for node in sorted(waiting) if self._listens(node, failed)]
            if listening:
                self._record_born(listening)
            waiting.difference_update(listening, failed)
            return not waiting

        try:
            for node in nodes:
                try:
                    self.layout.forget_run(node)
                    self._children[node] = processes.spawn(
                        self.layout.node_directory(node),
                        self.layout.log_path(node),
                        die_with_parent=self.die_with_parent,
                        variables=self.variables.get(node, {}),
                    )
                except OSError as error:
                    failed[node] = _Failure(f"{node}: {error.filename}: {error.strerror}")
            waiting.difference_update(failed)
            try:
                await until(settled, LISTEN_TIMEOUT_S, "")
            except TenfoldError:
                self._discard(waiting)
                late = f"did not listen within {LISTEN_TIMEOUT_S:.0f} s"
                failed |= {node: _Failure(f"{node} {late}") for node in sorted(waiting)}
        except BaseException:  # an interrupt, too: what was started here must not stay behind
            self._discard(nodes)
            raise
        return failed

    def _discard(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            if (child := self._children.pop(node, None)) is not None:
                child.kill()
                child.wait()

    def _listens(self, node: str, failed: dict[str, _Failure]) -> bool:
        """Whether the child listens; one that has ended is noted in `failed`."""
        child = self._children[node]
        if (code := child.poll()) is not None:
            del self._children[node]
            port = self.cluster.entry(node).port
            last = self.layout.last_lines(node, 1)
            reason = f"{node} ended with exit code {code} while starting: {last[0] if last else 'no log'}"
            taken = not is_free(port)
            failed[node] = _Failure(f"port {port} of {node} is taken" if taken else reason, taken)
            return False
        run = self.layout.read_run(node)
        return run is not None and run.pid == child.pid

    async def kill(self, nodes: Sequence[str]) -> None:
        """SIGKILL to all at once; returns when they are gone. TenfoldError Unavailable, before any signal, if one does
        not run."""
        await self._end(self.running(nodes), signal.SIGKILL, KILL_GRACE_S)

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
        for process in self.running(nodes).values():
            processes.send(process, signal.SIGSTOP)

    def resume(self, nodes: Sequence[str]) -> list[str]:
        """SIGCONT; nothing happens to a node that is not paused, and its name is returned. TenfoldError Unavailable if one
        does not run."""
        found = self.running(nodes)
        ran = [node for node, process in found.items() if not processes.is_paused(process)]
        for process in found.values():
            processes.send(process, signal.SIGCONT)
        return ran

    def running(self, nodes: Sequence[str]) -> dict[str, psutil.Process]:
        """The processes of `nodes`. TenfoldError Unavailable if one does not run."""
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


class _Failure(NamedTuple):
    """Of a start. `port_taken`: the node could not listen because someone else does."""

    reason: str
    port_taken: bool = False


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
