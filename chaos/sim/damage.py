"""Faults that destroy what a disk holds, within the budget: of every shard a minority of the replicas may lose anything at any time.

A node whose disk was damaged counts as damaged until it has started since, and has a good replica of every shard the map
gives it, the one that votes under the id that is counted. Silent damage counts from the moment it is done. Where a log is damaged matters: the rounds that a power cut may
tear cannot be told from damaged ones afterwards (node/storage/README.md), so these two are never the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from chaos.sim.cluster import Host, SimCluster
from chaos.sim.schedule import Fault

LOG = "log/"
BLOCK_BYTES = (64, 512, 4096)


class Means(Protocol):
    """What the nemesis lends."""

    def down(self, name: str | None, how: str, for_s: float) -> str: ...


class Damage:
    def __init__(self, cluster: SimCluster, means: Means) -> None:
        self._cluster = cluster
        self._means = means

    # -- the budget ----------------------------------------------------------------------------------------------------

    def damaged(self) -> list[str]:
        """The nodes that count as damaged now, those that are gone for good included."""
        for name, host in self._cluster.hosts.items():
            if host.damaged_life is not None and self._mended(name, host):
                host.damaged_life = None
                del self._cluster.oracles.damaged_hosts[name]
                self._cluster.transcript.note(name, "is whole again")
        damaged = [name for name, host in self._cluster.hosts.items() if host.damaged_life is not None]
        return [*damaged, *self._cluster.missing]

    def _mended(self, name: str, host: Host) -> bool:
        node, cluster = host.node, self._cluster
        if node is None or host.damaged_life is None or host.lives <= host.damaged_life or node.shards.quarantined:
            return False
        for shard in range(cluster.shards + 1):
            given = {row.id for row in cluster.placed(shard).replicas if row.node == name}
            counted = {each for side in cluster.voters_in_force(shard) for each, node in side.items() if node == name}
            replica = node.shards.replicas.get(shard)
            here = {replica.core.replica} if replica is not None else set()
            if not given | counted <= here or any(
                not replica.core.configuration.votes(each) for each in given if replica
            ):
                return False
        return True

    def _victim(self, fault: Fault) -> str | None:
        already = set(self.damaged())
        names = [name for name in self._cluster.hosts if self.affordable(already | {name})]
        return names[int(fault.draws[0] * len(names))] if names else None

    def affordable(self, damaged: set[str]) -> bool:
        """Whether a majority stays good, before and after what is being moved."""
        good = set(self._cluster.hosts) - damaged
        shards = range(self._cluster.shards + 1)
        return all(side.carried_by(good) for shard in shards for side in self._cluster.sides(shard))

    # -- the faults ----------------------------------------------------------------------------------------------------

    def flip(self, fault: Fault) -> str:
        """A bit of the log; half of the nodes find out at once, the others when they next start."""
        return self._spoil(fault, self._flip)

    def stale_block(self, fault: Fault) -> str:
        """A block of the log reads as it did before its last write."""
        return self._spoil(fault, self._age)

    def flip_sealed(self, fault: Fault) -> str:
        """A bit of one of the small files."""
        return self._spoil(fault, self._flip_sealed)

    def wipe(self, fault: Fault) -> str:
        """The node comes back with an empty disk, and is told that it has lived."""
        name = self._victim(fault)
        host = self._cluster.hosts[name] if name is not None else None
        if name is None or host is None or not host.lived:
            return ""
        how = self._means.down(name, "power", fault.for_s) if host.process is not None else "while it is down"
        self._count(host)
        host.medium.wipe()
        return f"the disk of {name} is wiped; {how}"

    def _spoil(self, fault: Fault, do: Callable[[Host, random.Random], str]) -> str:
        name = self._victim(fault)
        if name is None:
            return ""
        host, chance = self._cluster.hosts[name], random.Random(repr(fault.draws))
        done = do(host, chance)
        if not done:
            return ""
        self._count(host)
        if host.process is not None and fault.draws[1] < 0.6:
            how = self._means.down(name, "power" if fault.draws[2] < 0.5 else "kill", fault.for_s)
            return f"{name}: {done}; {how}"
        return f"{name}: {done}"

    def _count(self, host: Host) -> None:
        host.damaged_life = host.lives
        self._cluster.oracles.damaged_hosts[host.name] = None

    def _flip(self, host: Host, chance: random.Random) -> str:
        found = self._place(host, chance, 1)
        if found is None:
            return ""
        path, at = found
        bit = 8 * at + chance.randrange(8)
        host.medium.disk.flip(path, bit)
        return f"bit {bit} of {path} is flipped"

    def _age(self, host: Host, chance: random.Random) -> str:
        size = chance.choice(BLOCK_BYTES)
        found = self._place(host, chance, size)
        if found is None:
            return ""
        path, at = found
        block = at - at % size
        kept = block + chance.randrange(size)
        if block + size > host.medium.old_bytes(path) or not host.medium.blank(path, kept, block + size):
            return ""
        return f"bytes {kept} to {block + size} of {path} were never written"

    def _place(self, host: Host, chance: random.Random, size: int) -> tuple[str, int] | None:
        """A byte of the log that may be damaged."""
        medium = host.medium
        paths = [path for path in sorted(medium.disk.names) if path.startswith(LOG) and medium.old_bytes(path) >= size]
        if not paths:
            return None
        path = chance.choice(paths)
        return path, chance.randrange(medium.old_bytes(path) - size + 1)

    def _flip_sealed(self, host: Host, chance: random.Random) -> str:
        disk = host.medium.disk
        paths = [path for path in sorted(disk.names) if "/" not in path and disk.names[path].data]
        if not paths or not host.lived:
            return ""
        path = chance.choice(paths)
        bit = chance.randrange(8 * len(disk.names[path].data))
        disk.flip(path, bit)
        return f"bit {bit} of {path} is flipped"
