"""Faults that wait for their moment: they look at what the cluster does and strike when it is at its weakest.

A trap (`at-…`) is armed when its fault is due and springs at the next event of its kind: a fresh leader, a vote, a commit,
a flush of the state, a new or released log segment, a snapshot on its way in. A hunt springs at every election for as long as
it lasts. What is done, to whom and how soon after the event is drawn from the fault's own draws, so that leaving one fault
out changes no other. The other attacks cut a leader off in ways that a random cut seldom hits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from chaos.sim.cluster import SimCluster
from chaos.sim.disk import LOG
from chaos.sim.schedule import Fault
from cluster.types import Role
from node.replica import Replica

LOOK_S = 0.001
ARMED_S = 8.0
"""A trap that nothing springs is forgotten after so long."""
FLICKERS_MAX = 5
SOON_S = (0.0001, 0.05)
DRIFT = 0.045
"""Two clocks drift apart by less than the declared 10%."""

Event = Callable[[], str | None]
"""Looks once; the host that it happened on, or None."""

ACTIONS: Sequence[str] = ("kill", "kill", "power", "power", "mute", "mute", "isolate", "strand", "pause", "power-all")


class Means(Protocol):
    """What the nemesis lends: each tells what was done, "" if nothing was, and is taken back by itself."""

    def down(self, name: str | None, how: str, for_s: float) -> str: ...

    def block(self, pairs: list[tuple[str, str]], for_s: float) -> Callable[[], None]: ...

    def paused(self, name: str | None, for_s: float) -> str: ...

    def stalled(self, name: str, for_s: float) -> str: ...

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
        return self._arm(fault, self._election) or self._provoke(fault)

    def at_vote(self, fault: Fault) -> str:
        return self._arm(fault, self._vote) or self._provoke(fault)

    def at_commit(self, fault: Fault) -> str:
        return self._arm(fault, self._commit)

    def at_flush(self, fault: Fault) -> str:
        return self._arm(fault, self._flush)

    def at_sync(self, fault: Fault) -> str:
        """Power is cut while a round is written and not yet durable. Often it flickers, and goes again and again."""
        chance, until = _chance(fault), self._cluster.loop.now + ARMED_S
        left = 1 + chance.randrange(FLICKERS_MAX)

        def again() -> None:
            nonlocal left
            if left:
                left -= 1
                self._watch(fault, self._sync(fault), chance, until, again)

        again()
        return ""

    def at_roll(self, fault: Fault) -> str:
        return self._arm(fault, self._roll)

    def at_snapshot(self, fault: Fault) -> str:
        return self._arm(fault, self._snapshot)

    def hunt(self, fault: Fault) -> str:
        """Every fresh leader of one shard, for as long as it lasts."""
        chance, loop = _chance(fault), self._cluster.loop
        until = loop.now + fault.for_s
        provoked = self._provoke(fault)

        def again() -> None:
            if loop.now < until:
                self._watch(fault, self._election(fault), chance, until, again)

        again()
        return provoked

    def seesaw(self, fault: Fault) -> str:
        """Each fresh leader of a shard is silenced, early or late, and the one before it set free: two logs grow apart and
        overtake each other (Raft paper, figure 8)."""
        chance, loop = _chance(fault), self._cluster.loop
        until = loop.now + fault.for_s
        names = list(self._cluster.hosts)
        free: Callable[[], None] | None = None

        def again(event: Event) -> None:
            victim = event() if loop.now < until and not self._means.over else ""
            if victim is None:
                loop.at(loop.now + LOOK_S, again, event)
            elif victim:
                soon = 0.0 if chance.random() < 0.5 else SOON_S[1] * chance.random() ** 2
                loop.at(loop.now + soon, silence, victim)

        def silence(victim: str) -> None:
            nonlocal free
            if self._means.over:
                return
            before, free = free, self._means.block([(victim, each) for each in names if each != victim], fault.for_s)
            if before is not None:
                before()
            self._means.tell(fault.kind, f"{victim} is heard by nobody, and who was silenced before it is")
            again(self._election(fault))

        leader = self._cluster.leader(self._shard(fault))
        if leader is None:
            again(self._election(fault))
        else:
            silence(leader)
        return ""

    def _provoke(self, fault: Fault) -> str:
        """Elections that do not come by themselves are brought about."""
        leader = self._cluster.leader(self._shard(fault))
        if leader is None or fault.draws[2] < 0.3:
            return ""
        return self._means.down(leader, "kill", max(0.2, fault.for_s / 2))

    def _arm(self, fault: Fault, event: Callable[[Fault], Event]) -> str:
        self._watch(fault, event(fault), _chance(fault), self._cluster.loop.now + ARMED_S, lambda: None)
        return ""  # it counts when it springs

    def _watch(self, fault: Fault, event: Event, chance: random.Random, until: float, then: Callable[[], None]) -> None:
        loop = self._cluster.loop
        if self._means.over or loop.now >= until:
            return
        victim = event()
        if victim is None:
            loop.at(loop.now + LOOK_S, self._watch, fault, event, chance, until, then)
            return
        low, high = SOON_S
        soon = 0.0 if chance.random() < 0.4 or fault.kind == "at-sync" else low * (high / low) ** chance.random()
        loop.at(loop.now + soon, self._spring, fault, victim, chance, then)

    def _spring(self, fault: Fault, victim: str, chance: random.Random, then: Callable[[], None]) -> None:
        if self._means.over:
            return
        actions, for_s = ACTIONS, fault.for_s
        if fault.kind == "at-sync":
            actions = ("power",)
        elif fault.kind == "hunt":
            # It has habits, and lets go soon, so that who was hit can stand again while the others have moved on.
            actions = ("mute", "mute", ACTIONS[int(fault.draws[0] * len(ACTIONS))], "spare")
            for_s = 0.1 * 20 ** chance.random()
        told = self._strike(chance.choice(actions), victim, for_s, chance)
        if told:
            self._means.tell(fault.kind, told)
        then()

    def _strike(self, action: str, victim: str, for_s: float, chance: random.Random) -> str:
        if action == "spare" or victim not in self._cluster.up():
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
        """Seldom meta, where little happens."""
        draw = fault.draws[1] * 8 % 1.0
        return 0 if draw < 0.05 else 1 + int((draw - 0.05) / 0.95 * self._cluster.shards)

    def _host(self, fault: Fault) -> str:
        names = list(self._cluster.hosts)
        return names[int(fault.draws[1] * len(names))]

    def _replicas(self, shard: int) -> Iterator[tuple[str, Replica]]:
        for name, host in self._cluster.hosts.items():
            if host.node is not None and (replica := host.node.shards.replicas.get(shard)) is not None:
                yield name, replica

    def _term(self, shard: int) -> int:
        return max((replica.core.term for _, replica in self._replicas(shard)), default=0)

    def _election(self, fault: Fault) -> Event:
        shard = self._shard(fault)
        before = self._term(shard)

        def look() -> str | None:
            for name, replica in self._replicas(shard):
                core = replica.core
                if core.term > before and core.role is Role.LEADER:
                    return name
            return None

        return look

    def _vote(self, fault: Fault) -> Event:
        shard = self._shard(fault)
        before = self._term(shard)

        def look() -> str | None:
            for name, replica in self._replicas(shard):
                core = replica.core
                if core.term > before and core.vote not in (0, core.replica):
                    return name
            return None

        return look

    def _commit(self, fault: Fault) -> Event:
        shard = self._shard(fault)
        before: dict[str, int] = {}

        def look() -> str | None:
            for name, replica in self._replicas(shard):
                core = replica.core
                if core.role is Role.LEADER and core.commit_index > before.setdefault(name, core.commit_index):
                    return name
            return None

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

    def _sync(self, fault: Fault) -> Event:
        host = self._host(fault)
        machine = self._cluster.hosts[host]
        disk, early = machine.medium.disk, fault.draws[0] < 0.2  # early: before the node serves, too

        def look() -> str | None:
            if machine.node is None and not early:
                return None
            return host if any(inode.unsynced for path, inode in disk.names.items() if path.startswith(LOG)) else None

        return look

    def _roll(self, fault: Fault) -> Event:
        host = self._host(fault)
        disk = self._cluster.hosts[host].medium.disk
        before = set(disk.names)
        return lambda: host if disk.names.keys() != before else None

    def _snapshot(self, fault: Fault) -> Event:
        hosts = self._cluster.hosts

        def look() -> str | None:
            for name, host in hosts.items():
                if host.node is not None and any(each.installing for each in host.node.shards.replicas.values()):
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
