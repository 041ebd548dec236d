"""Carries a fault schedule out: picks the victims when a fault is due, and takes every fault back in time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from chaos.history import Recorder
from chaos.sim.attacks import Attacks
from chaos.sim.cluster import SimCluster
from chaos.sim.damage import Damage
from chaos.sim.members import Members
from chaos.sim.rivals import Rivals
from chaos.sim.schedule import Fault

SLOW_FACTOR = 100.0
JAM_S = (0.01, 30.0)  # the shortest, and how many times longer the longest
JAM_PAUSE_S = 0.2
RATE_SPREAD = 0.045
"""Two clocks drift apart by less than the declared 10%."""
FAILED_LOOK_S = 0.02
JUMP_MS = 10 * 365 * 86_400_000


class Nemesis:
    def __init__(self, cluster: SimCluster, recorder: Recorder) -> None:
        self.injected = 0
        self._cluster = cluster
        self._recorder = recorder
        self._healed = False
        self._undo: dict[int, Callable[[], None]] = {}
        self._number = 0
        self._attacks = Attacks(cluster, self)
        self._rivals = Rivals(cluster, self)
        self.damage = Damage(cluster, self)
        self.members = Members(cluster, lambda more: self.damage.affordable(more | set(self.damage.damaged())))

    @property
    def over(self) -> bool:
        return self._healed

    def run(self, faults: Sequence[Fault]) -> None:
        """Books them all on the loop; times count from now."""
        loop = self._cluster.loop
        for fault in faults:
            loop.at(loop.now + fault.at_s, self._inject, fault)

    def heal(self) -> None:
        """Takes back what is in force, and starts nothing that is down."""
        self._healed = True
        for undo in list(self._undo.values()):
            undo()
        self._undo.clear()
        cluster = self._cluster
        cluster.network.heal()
        for host in cluster.hosts.values():
            if host.medium.disk.fail_sync_in is not None:
                host.excused = False  # it has not failed, and will not
            host.medium.heal()
            host.clock.set_rate(1.0)
            if host.process is not None:
                cluster.loop.resume(host.process)

    def _inject(self, fault: Fault) -> None:
        if self._healed:
            return
        name = fault.kind.replace("-", "_")
        places = (self.damage, self.members, self._attacks, self._rivals)
        action = getattr(self, "_" + name, None) or next(getattr(each, name) for each in places if hasattr(each, name))
        self._cluster.transcript.note("nemesis", f"{fault.kind} {fault.for_s}")
        told = action(fault)
        if told:
            self.tell(fault.kind, told)

    def tell(self, kind: str, told: str) -> None:
        """A fault was carried out."""
        self.injected += 1
        self._cluster.transcript.note("nemesis", f"  {told}")
        self._recorder.record("nemesis", "info", kind, note=told)

    def _later(self, seconds: float, undo: Callable[[], None]) -> Callable[[], None]:
        self._number += 1
        number = self._number
        self._undo[number] = undo
        loop = self._cluster.loop
        loop.at(loop.now + seconds, self._take_back, number)
        return lambda: self._take_back(number)

    def _take_back(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()

    def _pick(self, names: Sequence[str], draw: float) -> str | None:
        return names[int(draw * len(names))] if names else None

    def _node(self, fault: Fault) -> str | None:
        return self._pick(self._cluster.up(), fault.draws[0])

    def _leader(self, fault: Fault) -> str | None:
        shard = int(fault.draws[1] * (self._cluster.shards + 1))
        return self._cluster.leader(shard) or self._node(fault)

    # -- processes and machines ----------------------------------------------------------------------------------------

    def down(self, name: str | None, how: str, for_s: float) -> str:
        if name is None:
            return ""
        self._cluster.end(name, how)
        life = self._cluster.hosts[name].lives
        self._later(for_s, lambda: self._boot(name, life))
        return f"{how} {name} for {for_s}"

    def _boot(self, name: str, life: int) -> None:
        host = self._cluster.hosts.get(name)
        if host is not None and not self._healed and host.process is None and host.lives == life:
            self._cluster.boot(name)

    def _kill(self, fault: Fault) -> str:
        return self.down(self._node(fault), "kill", fault.for_s)

    def _kill_leader(self, fault: Fault) -> str:
        return self.down(self._leader(fault), "kill", fault.for_s)

    def _power(self, fault: Fault) -> str:
        return self.down(self._node(fault), "power", fault.for_s)

    def _power_all(self, fault: Fault) -> str:
        return ", ".join(self.down(name, "power", fault.for_s * (1 + at)) for at, name in enumerate(self._cluster.up()))

    def _move(self, fault: Fault) -> str:
        """The node comes back at another address. Only one that has on disk where the others are: who moves finds them,
        and two who have lost each other can be found by nobody."""
        name = self._node(fault)
        if name is None or not self._cluster.knows_all(name):
            return ""
        told = self.down(name, "kill", fault.for_s)
        self._cluster.move(name)
        return f"{told}, back at another address"

    def _stop(self, fault: Fault) -> str:
        """Asked to stop: it hands over what it leads, drains and exits; its supervisor starts it again."""
        name = self._leader(fault)
        host = self._cluster.hosts[name] if name is not None else None
        if host is None or host.node is None or host.process is None:
            return ""
        self._cluster.loop.hand(host.process, host.node.begin_stop)
        return f"stop {name}"

    def _pause(self, fault: Fault) -> str:
        return self.paused(self._node(fault), fault.for_s)

    def _pause_leader(self, fault: Fault) -> str:
        return self.paused(self._leader(fault), fault.for_s)

    def paused(self, name: str | None, for_s: float) -> str:
        process = self._cluster.hosts[name].process if name in self._cluster.hosts else None
        if process is None or process.paused:
            return ""
        loop = self._cluster.loop
        loop.pause(process)
        self._later(for_s, lambda: loop.resume(process))
        return f"pause {name} for {for_s}"

    # -- the network ---------------------------------------------------------------------------------------------------

    def _everybody(self) -> list[str]:
        return [*self._cluster.hosts, *(process.host for process in self._cluster.client_processes)]

    def block(self, pairs: list[tuple[str, str]], for_s: float) -> Callable[[], None]:
        """Call what is returned to take it back earlier."""
        network = self._cluster.network
        fresh = [pair for pair in pairs if not network.link(*pair).blocked]
        for pair in fresh:
            network.block(*pair)

        def undo() -> None:
            for pair in fresh:
                network.unblock(*pair)

        return self._later(for_s, undo)

    def _severed(self, pairs: list[tuple[str, str]], for_s: float, told: str) -> str:
        """Nothing is told where all was cut before."""
        network = self._cluster.network
        whole = any(not network.link(*pair).blocked for pair in pairs)
        self.block(pairs, for_s)
        return told if whole else ""

    def _cut(self, fault: Fault) -> str:
        """One direction between two nodes."""
        names = list(self._cluster.hosts)
        source = self._pick(names, fault.draws[0])
        target = self._pick([name for name in names if name != source], fault.draws[1])
        if source is None or target is None:
            return ""
        pairs = [(source, target)] if fault.draws[2] < 0.6 else [(source, target), (target, source)]
        return self._severed(pairs, fault.for_s, f"cut {pairs} for {fault.for_s}")

    def _isolate(self, fault: Fault) -> str:
        """A node from all others, or from everybody."""
        name = self._leader(fault)
        others = list(self._cluster.hosts) if fault.draws[2] < 0.5 else self._everybody()
        if name is None:
            return ""
        pairs = [pair for other in others if other != name for pair in ((name, other), (other, name))]
        return self._severed(pairs, fault.for_s, f"isolate {name} from {len(others) - 1} for {fault.for_s}")

    def _deafen(self, fault: Fault) -> str:
        """A node hears nobody, or nobody hears it."""
        name = self._leader(fault)
        if name is None:
            return ""
        others = [other for other in self._cluster.hosts if other != name]
        deaf = fault.draws[2] < 0.5
        pairs = [(other, name) if deaf else (name, other) for other in others]
        told = f"{name} {'hears nobody' if deaf else 'is heard by nobody'} for {fault.for_s}"
        return self._severed(pairs, fault.for_s, told)

    def _split(self, fault: Fault) -> str:
        names = list(self._cluster.hosts)
        first = int(fault.draws[0] * len(names))
        order = names[first:] + names[:first]
        side = set(order[: 1 + int(fault.draws[1] * (len(names) - 1))])
        pairs = [(a, b) for a in names for b in names if (a in side) != (b in side)]
        return self._severed(pairs, fault.for_s, f"split {sorted(side)} off for {fault.for_s}")

    def _client_cut(self, fault: Fault) -> str:
        client = self._pick([process.host for process in self._cluster.client_processes], fault.draws[0])
        name = self._pick(list(self._cluster.hosts), fault.draws[1])
        if client is None or name is None:
            return ""
        pairs = [(client, name), (name, client)][: 1 + int(fault.draws[2] * 2)]
        return self._severed(pairs, fault.for_s, f"cut {client} and {name} for {fault.for_s}")

    def _reset(self, fault: Fault) -> str:
        one = self._pick(list(self._cluster.hosts), fault.draws[0])
        other = self._pick([name for name in self._everybody() if name != one], fault.draws[1])
        if one is None or other is None:
            return ""
        self._cluster.network.reset(one, other)
        return f"reset {one} and {other}"

    def _linger(self, fault: Fault) -> str:
        """Who dialled takes the connection for broken and dials anew; what it had sent comes late, after what it says then."""
        one = self._pick(list(self._cluster.hosts), fault.draws[0])
        other = self._pick([name for name in self._everybody() if name != one], fault.draws[1])
        if one is None or other is None:
            return ""
        self._cluster.network.linger(one, other, fault.for_s)
        return f"connections of {one} and {other} linger for {fault.for_s}"

    def _clog(self, fault: Fault) -> str:
        """The lines of one host jam again and again, each for a moment; nothing is lost."""
        name = self._pick(self._everybody(), fault.draws[0])
        if name is None:
            return ""
        others = [each for each in self._everybody() if each != name]
        pairs = [pair for each in others for pair in ((name, each), (each, name))]
        loop, chance = self._cluster.loop, random.Random(repr(fault.draws))
        until = loop.now + fault.for_s

        def jam() -> None:
            if loop.now < until and not self._healed:
                self.block(
                    chance.sample(pairs, 1 + chance.randrange(len(pairs))), JAM_S[0] * JAM_S[1] ** chance.random()
                )
                loop.at(loop.now + chance.expovariate(1 / JAM_PAUSE_S), jam)

        jam()
        return f"lines of {name} clog for {fault.for_s}"

    def _slow_link(self, fault: Fault) -> str:
        name = self._pick(self._everybody(), fault.draws[0])
        network = self._cluster.network
        factor = SLOW_FACTOR ** fault.draws[1]
        links = [
            network.link(*pair)
            for other in self._everybody()
            if other != name and name
            for pair in ((name, other), (other, name))
        ]
        for link in links:
            link.slow = factor

        def undo() -> None:
            for link in links:
                link.slow = 1.0

        self._later(fault.for_s, undo)
        return f"links of {name} {factor:.1f} times slower for {fault.for_s}"

    # -- disks and clocks ----------------------------------------------------------------------------------------------

    def _slow_disk(self, fault: Fault) -> str:
        name = self._leader(fault)
        if name is None:
            return ""
        medium = self._cluster.hosts[name].medium
        medium.slow = SLOW_FACTOR ** fault.draws[2]
        self._later(fault.for_s, lambda: setattr(medium, "slow", 1.0))
        return f"disk of {name} {medium.slow:.1f} times slower for {fault.for_s}"

    def _stall_disk(self, fault: Fault) -> str:
        name = self._leader(fault)
        if name is None:
            return ""
        medium = self._cluster.hosts[name].medium
        medium.stalled_until = self._cluster.loop.now + fault.for_s
        return f"disk of {name} stalls for {fault.for_s}"

    def _stall_state(self, fault: Fault) -> str:
        name = self._leader(fault)
        return "" if name is None else self.stalled(name, fault.for_s)

    def stalled(self, name: str, for_s: float) -> str:
        state = self._cluster.hosts[name].medium.state
        state.stalled = True
        self._later(for_s, lambda: setattr(state, "stalled", False))
        return f"state of {name} stalls for {for_s}"

    def _full_disk(self, fault: Fault) -> str:
        name = self._leader(fault)
        if name is None:
            return ""
        disk = self._cluster.hosts[name].medium.disk
        disk.capacity = disk.used_bytes() + int(fault.draws[2] * 2000)
        self._later(fault.for_s, lambda: setattr(disk, "capacity", None))
        return f"disk of {name} is full for {fault.for_s}"

    def _failed_sync(self, fault: Fault) -> str:
        name = self._leader(fault)
        if name is None:
            return ""
        host, loop = self._cluster.hosts[name], self._cluster.loop
        disk = host.medium.disk
        disk.fail_sync_in = 1 + int(fault.draws[2] * 20)
        host.excused = True

        def look() -> None:
            if self._healed:
                return
            if host.medium.disk is not disk:  # it was replaced before it failed
                host.excused = host.medium.disk.fail_sync_in is not None
            elif disk.fail_sync_in is None:
                self.tell(fault.kind, f"a sync of {name} failed")
            else:
                loop.at(loop.now + FAILED_LOOK_S, look)

        look()
        return ""  # it counts when it fails

    def _unreadable(self, fault: Fault) -> str:
        """Reads fail for a while, which a node notices when it starts."""
        name = self._node(fault)
        if name is None:
            return ""
        self._cluster.hosts[name].medium.unreadable_until = self._cluster.loop.now + fault.for_s
        how = self.down(name, "kill", fault.for_s / 2) if fault.draws[1] < 0.8 else ""
        return f"the disk of {name} cannot be read for {fault.for_s}; {how}"

    def _clock_jump(self, fault: Fault) -> str:
        name = self._node(fault)
        if name is None:
            return ""
        self._cluster.hosts[name].clock.wall_offset_ms = int((fault.draws[1] - 0.5) * JUMP_MS)
        return f"wall clock of {name} jumps"

    def _clock_rate(self, fault: Fault) -> str:
        name = self._node(fault)
        if name is None:
            return ""
        rate = 1.0 + RATE_SPREAD * (2 * fault.draws[1] - 1)
        self._cluster.hosts[name].clock.set_rate(rate)
        return f"clock of {name} runs at {rate:.3f}"

    def rate(self, name: str, rate: float, for_s: float) -> None:
        """A clock runs at that rate for a while."""
        clock = self._cluster.hosts[name].clock
        clock.set_rate(rate)
        self._later(for_s, lambda: clock.set_rate(1.0))
