"""Attacks on what followers owe their leader: the promise to help nobody else, and what they have acknowledged.

A random cut seldom hits these. A follower that hears its leader no more asks for votes, but its log is behind at once as long
as clients write; and answers seldom get lost while much is on its way.
"""

from __future__ import annotations

import random
from typing import Any

from chaos.sim.attacks import LOOK_S, Means
from chaos.sim.cluster import SimCluster
from chaos.sim.schedule import Fault
from cluster.types import Role

SETTLE_S = (0.02, 0.3)
"""How long what clients had asked before may take to be everywhere."""
NAP_S = (0.005, 0.03)
HOLD_S = (0.02, 0.4)
BETWEEN_S = (0.1, 0.6)
SOON_S = (0.005, 0.1)
PAUSE = (0.9, 2.5)
"""In promises of a voter."""
LATE_S = (0.0005, 0.5)
STALLS_ITSELF, STALLS = 0.2, 0.45
ARRIVES_S = 4.0
ARRIVING_LOOK_S = 0.0003
AWAY = (1.02, 1.4)
"""In lives of a session."""
AWAY_S_MAX = 6.0


class Rivals:
    def __init__(self, cluster: SimCluster, means: Means) -> None:
        self._cluster = cluster
        self._means = means

    def _shard(self, fault: Fault) -> int:
        return 1 + int(fault.draws[1] * self._cluster.shards)

    def _followers(self, shard: int, leader: str) -> list[str]:
        return [name for name in self._cluster.replicas(shard) if name != leader]

    def rival(self, fault: Fault) -> str:
        """No client reaches a leader any more, and one follower is cut off from it, while the others are not: with a log as good
        as theirs it asks for their votes. In most cases another follower has just been killed then, is back at once, and does not
        hear the leader either."""
        shard, chance, loop = self._shard(fault), random.Random(repr(fault.draws)), self._cluster.loop
        leader = self._cluster.leader(shard)
        followers = self._followers(shard, leader) if leader is not None else []
        if leader is None or len(followers) < 2:
            return ""
        rival, voter = chance.sample(followers, 2)
        self._means.block([(process.host, leader) for process in self._cluster.client_processes], fault.for_s)
        until = loop.now + fault.for_s
        before_s = 0.0 if chance.random() < 0.4 else chance.uniform(0.05, 0.6)
        nap_s = chance.uniform(*NAP_S)

        def deafen() -> None:
            if not self._means.over and loop.now < until:
                # Both ways: a leader that hears of a later term gives its lease up.
                self._means.block([(leader, rival), (rival, leader)], until - loop.now)
                if before_s:
                    wait()

        def wait() -> None:
            if self._means.over or loop.now >= until:
                return
            if self._patience_s(shard, rival) > before_s:
                loop.at(loop.now + LOOK_S, wait)
                return
            told = self._means.down(voter, "kill", nap_s) if voter in self._cluster.up() else ""
            if told:
                self._means.block([(leader, voter)], until - loop.now)
                self._means.tell(fault.kind, f"{told}, and hears {leader} no more")

        loop.at(loop.now + chance.uniform(*SETTLE_S), deafen)
        return f"{leader} is asked nothing, and {rival} is cut off from it, for {fault.for_s}"

    def client_away(self, fault: Fault) -> str:
        """What a client has asked is done and it never hears so, and when it can ask again its sessions may have expired."""
        chance, loop, network = random.Random(repr(fault.draws)), self._cluster.loop, self._cluster.network
        client = chance.choice(self._cluster.client_processes).host
        nodes = list(self._cluster.hosts)
        away_s = min(AWAY_S_MAX, self._cluster.limits.session_expiry_ms / 1000 * chance.uniform(*AWAY))
        back = self._means.block([(each, client) for each in nodes], away_s)

        def leave() -> None:
            if not self._means.over:
                self._means.block([(client, each) for each in nodes], away_s)
                loop.at(loop.now + away_s * 0.99, lose)

        def lose() -> None:
            if not self._means.over:
                for each in nodes:
                    network.reset(client, each)
                back()

        loop.at(loop.now + chance.uniform(*SOON_S), leave)
        return f"{client} hears nobody for {away_s}, and soon cannot ask either"

    def laggard(self, fault: Fault) -> str:
        """A follower misses so much that it needs a snapshot. When it comes back the leader's state stalls, or its own, so that it
        hears its leader and lags behind; or nobody hears the leader while a snapshot is on its way: others go on without it, and
        the rest of the snapshot comes late."""
        shard, chance, loop = self._shard(fault), random.Random(repr(fault.draws)), self._cluster.loop
        leader = self._cluster.leader(shard)
        followers = self._followers(shard, leader) if leader is not None else []
        if leader is None or not followers:
            return ""
        behind = chance.choice(followers)
        others = [each for each in self._cluster.hosts if each != behind]
        self._means.block([pair for each in others for pair in ((each, behind), (behind, each))], fault.for_s)
        what = chance.random()

        def stall() -> None:
            source, stall_s = self._cluster.leader(shard) or "", chance.uniform(0.1, 0.8)
            if what < STALLS_ITSELF:
                source, stall_s = behind, chance.uniform(0.3, 3.0)
            if not self._means.over and source in self._cluster.hosts:  # it may be no member any more
                self._means.tell(fault.kind, self._means.stalled(source, stall_s))

        if what < STALLS:
            loop.at(loop.now + max(0.0, fault.for_s - chance.uniform(0.0, 0.1)), stall)
        else:
            self._overtake(fault, shard, behind, chance)
        return f"{behind} is cut off for {fault.for_s}"

    def _overtake(self, fault: Fault, shard: int, behind: str, chance: random.Random) -> None:
        """Nobody hears a leader from when a snapshot for `behind` begins to arrive until there may be another leader."""
        loop, limits = self._cluster.loop, self._cluster.limits
        until = loop.now + fault.for_s + ARRIVES_S
        silent_s = limits.tick_ms * limits.election_ticks_max / 1000 * chance.uniform(*PAUSE)
        silent_s = min(silent_s, 0.95 * self._cluster.network.keepalive_s)

        def silence(leader: str) -> None:
            if not self._means.over:
                self._means.block([(leader, each) for each in self._cluster.hosts if each != leader], silent_s)
                self._means.tell(fault.kind, f"{leader} is heard by nobody for {silent_s}, in the middle of a snapshot")

        def look() -> None:
            if self._means.over or loop.now >= until:
                return
            leader = self._cluster.leader(shard)
            if leader is not None and leader != behind and self._receives(shard, behind):
                silence(leader)  # the header has come, and what follows has not
            else:
                loop.at(loop.now + ARRIVING_LOOK_S, look)

        loop.at(loop.now + fault.for_s, look)

    def _receives(self, shard: int, name: str) -> bool:
        """Whether a snapshot of that shard has begun to arrive there."""
        host = self._cluster.hosts.get(name)
        node = host.node if host is not None else None
        return node is not None and shard in node.snapshots.installs._halves

    def old_word(self, fault: Fault) -> str:
        """What followers answered a leader is held up. Then it is paused until they may have another one, and what they had said
        reaches it only when it goes on: from each at another moment."""
        shard, chance = self._shard(fault), random.Random(repr(fault.draws))
        leader, loop, limits = self._cluster.leader(shard), self._cluster.loop, self._cluster.limits
        if leader is None:
            return ""
        promise_s = limits.tick_ms * limits.election_ticks_min / 1000
        soon_s, pause_s = chance.uniform(*SOON_S), promise_s * chance.uniform(*PAUSE)
        followers = self._followers(shard, leader)
        for each in followers:
            late_s = LATE_S[0] * (LATE_S[1] / LATE_S[0]) ** chance.random()
            self._means.block([(each, leader)], soon_s + pause_s + late_s)

        def pause() -> None:
            if not self._means.over and (told := self._means.paused(leader, pause_s)):
                self._means.block([(leader, each) for each in followers], pause_s + LATE_S[1])
                self._means.tell(fault.kind, told)

        loop.at(loop.now + soon_s, pause)
        return f"answers to {leader} are held up until it was paused for {pause_s}"

    def _patience_s(self, shard: int, name: str) -> float:
        """How long that follower will wait for its leader still."""
        host = self._cluster.hosts.get(name)
        node = host.node if host is not None else None
        replica = node.shards.replicas.get(shard) if node is not None else None
        if replica is None or replica.core.role is not Role.FOLLOWER:
            return float("inf")
        core = replica.core
        return (core.election_timeout - core.election_elapsed) * self._cluster.limits.tick_ms / 1000

    def lost_answers(self, fault: Fault) -> str:
        """What followers answer is held up for a moment and lost with its connection, again and again: the leader has to ask
        anew where their logs end. Often it is those of one follower only, and commits go on."""
        few = fault.draws[2] < 0.4
        shard, chance, loop = self._shard(fault), random.Random(repr(fault.draws)), self._cluster.loop
        until = loop.now + fault.for_s

        def hold() -> None:
            leader = self._cluster.leader(shard)
            if self._means.over or loop.now >= until:
                return
            if leader is None:
                loop.at(loop.now + BETWEEN_S[0], hold)
                return
            followers = self._followers(shard, leader)
            if few and followers:
                followers = [chance.choice(followers)]
            pairs = [(each, leader) for each in followers]
            hold_s = HOLD_S[0] * (HOLD_S[1] / HOLD_S[0]) ** chance.random()
            take_back = self._means.block(pairs, hold_s)
            loop.at(loop.now + hold_s * 0.999, lose, pairs, take_back)

        def lose(pairs: list[tuple[str, str]], take_back: Any) -> None:
            if self._means.over:
                return
            for pair in pairs:
                self._cluster.network.reset(*pair)
            take_back()
            loop.at(loop.now + chance.uniform(*BETWEEN_S), hold)

        hold()
        return f"answers to the leader of shard {shard} are lost now and then for {fault.for_s}"
