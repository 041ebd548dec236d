"""Faults that wait for their moment: they look at what the cluster does and strike when it is at its weakest.

A trap (`at-…`) is armed when its fault is due and springs at the next event of its kind: a fresh leader, a vote, a commit,
a flush of the state, a new or released log segment, a snapshot on its way in. A hunt springs at every election for as long as
it lasts. What is done, to whom and how soon after the event is drawn from the fault's own draws, so that leaving one fault
out changes no other. The other attacks cut a leader off in ways that a random cut seldom hits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from chaos.sim.cluster import SimCluster
from chaos.sim.schedule import Fault

LOOK_S = 0.0003
ARMED_S = 8.0
"""A trap that nothing springs is forgotten after so long."""
SOON_S = (0.0001, 0.05)
DRIFT = 0.045
"""Two clocks drift apart by less than the declared 10%."""

Event = Callable[[], str | None]
"""Looks once; the host that it happened on, or None."""

ACTIONS = ("kill", "kill", "power", "power", "mute", "mute", "isolate", "strand", "pause", "power-all")


class Means(Protocol):
    """What the nemesis lends: each tells what was done, "" if nothing was, and is taken back by itself."""

    def down(self, name: str | None, how: str, for_s: float) -> str: ...

    def block(self, pairs: list[tuple[str, str]], for_s: float) -> None: ...

    def paused(self, name: str | None, for_s: float) -> str: ...

    def rate(self, name: str, rate: float, for_s: float) -> None: ...

    def tell(self, kind: str, told: str) -> None: ...

    @property
    def over(self) -> bool: ...


class Attacks:
    def __init__(self, cluster: SimCluster, means: Means) -> None:
        self._cluster = cluster
        self._means = means

    # -- traps ---------------------------------------------------------------------------------------------------------

    def at_election(self, fault: Fault) -> str:
        return self._arm(fault, self._election)

    def at_vote(self, fault: Fault) -> str:
        return self._arm(fault, self._vote)

    def at_commit(self, fault: Fault) -> str:
        return self._arm(fault, self._commit)

    def at_flush(self, fault: Fault) -> str:
        return self._arm(fault, self._flush)

    def at_roll(self, fault: Fault) -> str:
        return self._arm(fault, self._roll)

    def at_snapshot(self, fault: Fault) -> str:
        return self._arm(fault, self._snapshot)

    def hunt(self, fault: Fault) -> str:
        """Every fresh leader of one shard, for as long as it lasts."""
        chance, loop = _chance(fault), self._cluster.loop
        until = loop.now + fault.for_s

        def again() -> None:
            if loop.now < until:
                self._watch(fault, self._election(fault), chance, until, again)

        again()
        return f"a hunt for leaders of shard {self._shard(fault)} for {fault.for_s}"

    def _arm(self, fault: Fault, event: Callable[[Fault], Event]) -> str:
        self._watch(fault, event(fault), _chance(fault), self._cluster.loop.now + ARMED_S, lambda: None)
        return "a trap"

    def _watch(self, fault: Fault, event: Event, chance: random.Random, until: float, then: Callable[[], None]) -> None:
        loop = self._cluster.loop
        if self._means.over or loop.now >= until:
            return
        victim = event()
        if victim is None:
            loop.at(loop.now + LOOK_S, self._watch, fault, event, chance, until, then)
            return
        low, high = SOON_S
        soon = 0.0 if chance.random() < 0.2 else low * (high / low) ** chance.random()
        loop.at(loop.now + soon, self._spring, fault, victim, chance, then)

    def _spring(self, fault: Fault, victim: str, chance: random.Random, then: Callable[[], None]) -> None:
        if self._means.over:
            return
        # A hunter lets go soon, so that who was hit can stand again while the others have moved on.
        for_s = 0.03 * 50 ** chance.random() if fault.kind == "hunt" else fault.for_s
        told = self._strike(chance.choice(ACTIONS), victim, for_s, chance)
        if told:
            self._means.tell(fault.kind, told)
        then()

    def _strike(self, action: str, victim: str, for_s: float, chance: random.Random) -> str:
        if victim not in self._cluster.up():
            return ""
        if action in ("kill", "power"):
            return self._means.down(victim, action, for_s)
        if action == "power-all":
            names = self._cluster.up()
            return ", ".join(self._means.down(each, "power", for_s * chance.uniform(0.3, 1.5)) for each in names)
        if action == "pause":
            return self._means.paused(victim, for_s)
        others = [each for each in self._cluster.hosts if each != victim]
        if action == "mute":
            self._means.block([(victim, other) for other in others], for_s)
            return f"{victim} is heard by nobody for {for_s}"
        return self._alone(victim, others[1:] if action == "strand" else others, for_s)

    def _alone(self, victim: str, others: Sequence[str], for_s: float) -> str:
        self._means.block([pair for each in others for pair in ((victim, each), (each, victim))], for_s)
        return f"{victim} is cut off from {others} for {for_s}"

    # -- events --------------------------------------------------------------------------------------------------------

    def _shard(self, fault: Fault) -> int:
        return int(fault.draws[1] * (self._cluster.shards + 1))

    def _host(self, fault: Fault) -> str:
        names = list(self._cluster.hosts)
        return names[int(fault.draws[1] * len(names))]

    def _election(self, fault: Fault) -> Event:
        cluster, shard = self._cluster, self._shard(fault)
        before = max((each.core.term for each in cluster.replicas(shard).values()), default=0)

        def look() -> str | None:
            leader = cluster.leader(shard)
            return leader if leader is not None and cluster.replicas(shard)[leader].core.term > before else None

        return look

    def _vote(self, fault: Fault) -> Event:
        cluster, shard = self._cluster, self._shard(fault)
        before = max((each.core.term for each in cluster.replicas(shard).values()), default=0)

        def look() -> str | None:
            for name, replica in cluster.replicas(shard).items():
                core = replica.core
                if core.term > before and core.vote not in (0, core.replica):
                    return name
            return None

        return look

    def _commit(self, fault: Fault) -> Event:
        cluster, shard = self._cluster, self._shard(fault)
        before: dict[str, int] = {}

        def look() -> str | None:
            leader = cluster.leader(shard)
            if leader is None:
                return None
            index = cluster.replicas(shard)[leader].core.commit_index
            return leader if index > before.setdefault(leader, index) else None

        return look

    def _flush(self, fault: Fault) -> Event:
        host = self._host(fault)
        undo = self._cluster.hosts[host].medium.state.undo
        most = len(undo)

        def look() -> str | None:
            nonlocal most
            most = max(most, len(undo))
            return host if len(undo) < most else None

        return look

    def _roll(self, fault: Fault) -> Event:
        host = self._host(fault)
        disk = self._cluster.hosts[host].medium.disk
        before = set(disk.names)
        return lambda: host if disk.names.keys() != before else None

    def _snapshot(self, fault: Fault) -> Event:
        cluster = self._cluster

        def look() -> str | None:
            for shard in range(cluster.shards + 1):
                for name, replica in cluster.replicas(shard).items():
                    if replica.installing:
                        return name
            return None

        return look

    # -- leaders cut off -----------------------------------------------------------------------------------------------

    def strand(self, fault: Fault) -> str:
        """A leader keeps one follower only."""
        victim = self._cluster.leader(self._shard(fault))
        if victim is None:
            return ""
        others = [each for each in self._cluster.hosts if each != victim]
        kept = others[int(fault.draws[2] * len(others))]
        return self._alone(victim, [each for each in others if each != kept], fault.for_s)

    def old_leader(self, fault: Fault) -> str:
        """A leader is cut off from the nodes and still reached by clients, while its clock runs slow and theirs fast."""
        victim = self._cluster.leader(self._shard(fault))
        if victim is None:
            return ""
        others = [each for each in self._cluster.hosts if each != victim]
        if fault.draws[0] < 0.7:
            self._means.rate(victim, 1 - DRIFT, fault.for_s + ARMED_S)
            for each in others:
                self._means.rate(each, 1 + DRIFT, fault.for_s + ARMED_S)
        if fault.draws[2] < 0.3:  # it may be heard, and hears nobody
            self._means.block([(each, victim) for each in others], fault.for_s)
            return f"{victim} hears nobody for {fault.for_s}, and its clock is slow"
        return self._alone(victim, others, fault.for_s)

    def slow_answers(self, fault: Fault) -> str:
        """What followers answer comes late, one after the other, in order."""
        victim = self._cluster.leader(self._shard(fault))
        if victim is None:
            return ""
        others = [each for each in self._cluster.hosts if each != victim]
        step = fault.for_s / 4
        for at, each in enumerate(others):
            self._means.block([(each, victim)], step * (1 + at))
        return f"answers to {victim} are held up for {step} to {step * len(others)}"


def _chance(fault: Fault) -> random.Random:
    return random.Random(repr(fault.draws))
