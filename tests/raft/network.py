"""A cluster of cores over a network and disks that misbehave when told to: the driver's contract at its smallest.

A Ready is handled in two steps, so that everything may happen while a sync is under way: `begin` writes and sends what
may leave now, `finish` is the sync and all that follows it. A crash in between loses what was written, or a suffix of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from cluster.limits import DEFAULT
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore, RaftSettings
from cluster.raft.log import RaftLog
from cluster.raft.messages import ConfigurationRefused, Entry, HardState, Message, MessageKind, NotLeader, Ready
from cluster.types import EntryKind, Role
from tests.raft.durable import Durable, Machine
from tests.raft.laws import Laws

SUSPICION_ROUNDS = 5  # after so many ticks without a word from the leader's node the driver wakes a silent follower


def small_settings(**changes: int) -> RaftSettings:
    """The defaults with short timers."""
    settings = RaftSettings.from_limits(DEFAULT)
    settings.election_ticks_min, settings.election_ticks_max = 10, 20
    settings.heartbeat_ticks, settings.idle_ticks = 2, 5
    for name, value in changes.items():
        assert hasattr(settings, name)
        setattr(settings, name, value)
    return settings


def entry(payload: bytes = b"") -> Entry:
    return Entry(0, 0, EntryKind.NORMAL, payload)


def copied(message: Message) -> Message:
    """What the codec would make of it: nothing is shared between replicas, and `parsed` does not travel."""
    fields = {name: getattr(message, name) for name in Message.__slots__}
    fields["entries"] = [Entry(e.index, e.term, e.kind, e.payload) for e in message.entries]
    return Message(**fields)


class Replica:
    """One core with its disk: what node/replica.py and node/pump.py do, without the waiting."""

    def __init__(self, cluster: Cluster, replica: int, configuration: Configuration) -> None:
        self.cluster = cluster
        self.replica = replica
        self.durable = Durable(configuration)
        self.starts = 0
        self.start()

    def start(self) -> None:
        durable = self.durable
        self.starts += 1
        self.up = True
        self.machine = durable.machine.copy()
        hard = durable.hard_state
        self.core = RaftCore(
            replica=self.replica,
            configuration=durable.machine.configuration,
            hard_state=HardState(hard.term, hard.vote, hard.commit),
            log=RaftLog(durable.base.index, durable.base.term, durable.entries),
            applied_index=durable.machine.index,
            settings=self.cluster.settings,
            random=random.Random(f"{self.cluster.seed} {self.replica} {self.starts}"),
        )
        self.pending: tuple[Ready, int, int] | None = None
        self.incoming: dict[int, Machine] = {}  # states of the snapshots that the core accepted, by index
        self.reads: dict[int, int] = {}  # context -> what the read must see
        self.answers: dict[int, int] = {}
        self.suspicion = 0

    def crash(self, kept: int = 0) -> None:
        """Of the round being written the first `kept` records survive."""
        if self.pending is not None and kept:
            ready = self.pending[0]
            if ready.snapshot is None:
                self._write(ready, kept)
        self.up = False
        self.pending = None

    def begin(self) -> bool:
        """Takes a Ready, unless one is under way or there is none."""
        if self.pending is not None or not self.core.has_ready():
            return False
        ready = self.core.ready()
        log = self.core.log
        self.pending = (ready, log.last_index, log.last_term)
        assert ready.must_sync == bool(ready.entries or ready.hard_state or ready.snapshot)
        self.cluster.say(f"{self.replica} writes {_written(ready)}")
        for message in ready.messages_now:
            assert message.kind in LEADER_KINDS and message.term == self.durable.hard_state.term, (
                f"{message!r} too early"
            )
            self.cluster.send(self, message)
        return True

    def finish(self) -> bool:
        """The sync returned."""
        if self.pending is None:
            return False
        (ready, last_index, last_term), self.pending = self.pending, None
        if ready.must_sync:
            if ready.snapshot is not None:
                self.machine = self.incoming.pop(ready.snapshot.index)
                self.durable.install(ready.snapshot, self.machine)
            self._write(ready, 1 + len(ready.entries))
            self.core.persisted(last_index, last_term)
        for message in ready.messages_after:
            self.cluster.send(self, message)
        for each in ready.committed:
            self.cluster.say(f"{self.replica} applies {each!r}")
            self.cluster.laws.applied(each)
            self.machine.apply(each)
            assert each.index <= self.durable.last_index, "applied before it was durable here"
        if ready.committed:
            self.core.applied(ready.committed[-1].index)
        for read in ready.read_states:
            expected = self.reads.pop(read.context)
            assert read.index == -1 or read.index >= expected, f"a read of {read.index} misses commit {expected}"
            self.answers[read.context] = read.index
            self.cluster.say(f"{self.replica} answers read {read.context} at {read.index}")
        return True

    def _write(self, ready: Ready, records: int) -> None:
        if ready.hard_state is not None and records:
            self.durable.hard_state = ready.hard_state
        for each in ready.entries[: records - 1]:
            self.durable.write(each)

    def propose(self, *payloads: bytes) -> bool:
        try:
            self.core.propose([entry(payload) for payload in payloads])
        except NotLeader:
            return False
        return True

    def reconfigure(self, configuration: Configuration) -> bool:
        try:
            self.core.propose_configuration(configuration)
        except (NotLeader, ConfigurationRefused) as reason:
            self.cluster.say(f"refused: {reason}")
            return False
        self.cluster.say(f"{self.replica} appends {configuration}")
        self.cluster.check()
        return True

    def read(self) -> int | None:
        """Starts a linearizable read; its context, or None on a replica that does not lead."""
        context = self.cluster.next_context()
        try:
            self.core.read_index(context)
        except NotLeader:
            return None
        self.reads[context] = self.cluster.laws.commit
        return context

    def compact(self, index: int) -> None:
        """State is flushed; the log is cut in memory and on disk."""
        self.durable.machine = self.machine.copy()
        self.core.compact(min(index, self.core.applied_index))
        self.durable.drop_to(min(index, self.machine.index))

    def receive(self, message: Message, state: Machine | None) -> None:
        if message.kind == MessageKind.SNAPSHOT and self.core.wants_snapshot(message):
            assert state is not None and state.index == message.index
            self.incoming[state.index] = state
            self.core.step(message)
            assert self.core.snapshot is not None and self.core.snapshot.index == state.index
        else:
            snapshot = self.core.snapshot
            self.core.step(message)
            assert self.core.snapshot is snapshot, "installed a snapshot it did not want"


def _written(ready: Ready) -> str:
    hard = ready.hard_state
    parts = [f"snapshot {ready.snapshot.index}/{ready.snapshot.term}"] if ready.snapshot else []
    parts += [f"term={hard.term} vote={hard.vote} commit={hard.commit}"] if hard else []
    parts += [repr(each) for each in ready.entries]
    return ", ".join(parts) or "nothing"


LEADER_KINDS = (MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT, MessageKind.TIMEOUT_NOW)


class Cluster:
    """`voters` cores. Messages wait in `mail` until they are delivered, dropped or doubled; cut links lose them."""

    def __init__(self, voters: int = 3, seed: Any = 0, **settings: int) -> None:
        self.seed = seed
        self.settings = small_settings(**settings)
        self.configuration = Configuration(tuple(range(1, voters + 1)))
        self.mail: list[tuple[Message, Machine | None]] = []
        self.cut: set[tuple[int, int]] = set()
        self.lose: Callable[[Message], bool] = lambda message: False  # asked about every message sent
        self.in_step = True  # clocks keep step but for the slow ones, so leases hold
        self.slow: set[int] = set()  # these clocks lose one tick in ten
        self.trace: list[str] | None = None  # what happened, one line each, for the transcripts
        self.rounds = 0
        self.contexts = 0
        self.laws = Laws(self.configuration)
        self.replicas = {each: Replica(self, each, self.configuration) for each in self.configuration.voters}
        self.joined = 0  # replicas that were there from the start are not counted
        self.check()

    def __getitem__(self, replica: int) -> RaftCore:
        return self.replicas[replica].core

    def join(self) -> int:
        """A new replica under a new id, which has heard of nobody."""
        self.joined += 1
        replica = len(self.configuration.voters) + self.joined
        self.replicas[replica] = Replica(self, replica, Configuration(()))
        return replica

    def change(self, configuration: Configuration) -> None:
        """The leader takes it, and it is committed as far as messages arrive."""
        assert self.leader().reconfigure(configuration)
        self.settle()

    def grow(self, count: int = 1) -> list[int]:
        """So many learners more, which have caught up."""
        old = self.leader().core.configuration
        new = [self.join() for _ in range(count)]
        self.change(Configuration(old.voters, (*old.learners, *new), (), old.version + 1))
        return new

    def become(self, *voters: int) -> None:
        """Changes the voters; who was a learner and is none of them stays one."""
        old = self.leader().core.configuration
        learners = tuple(each for each in old.learners if each not in voters)
        self.change(Configuration(voters, learners, old.voters, old.version + 1))

    def retire(self, replica: int) -> None:
        """Gone for good, with its disk."""
        del self.replicas[replica]

    def say(self, line: str) -> None:
        if self.trace is not None:
            self.trace.append(line)

    def next_context(self) -> int:
        self.contexts += 1
        return self.contexts

    def up(self) -> list[Replica]:
        return [each for each in self.replicas.values() if each.up]

    def leaders(self) -> list[Replica]:
        return [each for each in self.up() if each.core.role is Role.LEADER]

    def leader(self) -> Replica:
        """The one with the highest term."""
        return max(self.leaders(), key=lambda each: each.core.term)

    # The network.

    def send(self, sender: Replica, message: Message) -> None:
        state = None
        if message.kind == MessageKind.SNAPSHOT:
            # The driver streams the state as it is now, which may be newer than the core asked for.
            state = sender.machine.copy()
            point = sender.core.snapshot_point()
            message.index, message.log_term, message.configuration = point.index, point.term, point.configuration
            assert (state.index, state.configuration) == (point.index, point.configuration)
        lost = (sender.replica, message.receiver) in self.cut or self.lose(message)
        self.say(f"  {message!r}" + (" (lost)" if lost else ""))
        if lost:
            self._snapshot_finished(message, False)
        else:
            self.mail.append((copied(message), state))

    def deliver(self, position: int = 0, *, keep: bool = False) -> None:
        """One message; with `keep` it stays in the mail and will come again."""
        message, state = self.mail[position] if keep else self.mail.pop(position)
        target = self.replicas.get(message.receiver)
        if target is None or not target.up or (message.sender, message.receiver) in self.cut:
            self._snapshot_finished(message, False)
            return
        target.receive(copied(message), state.copy() if state else None)
        self._snapshot_finished(message, True)
        self.check()

    def drop(self, position: int) -> None:
        message, _ = self.mail.pop(position)
        self._snapshot_finished(message, False)

    def _snapshot_finished(self, message: Message, ok: bool) -> None:
        sender = self.replicas.get(message.sender)
        if message.kind == MessageKind.SNAPSHOT and sender is not None and sender.up:
            sender.core.snapshot_finished(message.receiver, message.index, ok)

    def isolate(self, replica: int) -> None:
        for other in self.replicas:
            if other != replica:
                self.cut |= {(replica, other), (other, replica)}

    def heal(self) -> None:
        self.cut.clear()
        self.lose = lambda message: False

    def expire_promises(self) -> None:
        """As if no one had heard a leader for a minimum election timeout; leases rest on these promises."""
        self.in_step = False
        for each in self.up():
            each.core.heard_elapsed = self.settings.election_ticks_min

    # Time and work.

    def tick(self, ticks: int = 1, only: Iterable[int] = ()) -> None:
        """All clocks together, so that leases hold."""
        for _ in range(ticks):
            self.rounds += 1
            for each in self.up():
                if only and each.replica not in only:
                    continue
                if each.replica in self.slow and self.rounds % 10 == 0:
                    continue
                each.core.tick()
                self._node_heartbeats(each)
            self.check()

    def _node_heartbeats(self, each: Replica) -> None:
        """Wakes a silent follower whose leader's node is gone, or leads it no longer."""
        core = each.core
        leader = self.replicas.get(core.leader)
        if not core.silent or core.role is Role.LEADER or leader is None:
            each.suspicion = 0
            return
        leads = leader.up and leader.core.role is Role.LEADER and leader.core.term == core.term
        if leads and (leader.replica, each.replica) not in self.cut:
            each.suspicion = 0
            return
        each.suspicion += 1
        if each.suspicion >= SUSPICION_ROUNDS:
            core.wake()

    def work(self) -> bool:
        """One round of every replica, and everything they sent delivered in order."""
        busy = False
        for each in self.up():
            busy |= each.begin() | each.finish()
            self.check()
        count = len(self.mail)
        for _ in range(count):
            self.deliver()
        return busy or count > 0

    def settle(self, rounds: int = 1000) -> None:
        """Until nothing is left to do without a tick."""
        for _ in range(rounds):
            if not self.work():
                return
        raise AssertionError("the cores talk to each other without end")

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()
            self.settle()

    def elect(self, replica: int) -> Replica:
        """Makes `replica` the leader of a cluster that has none."""
        self[replica].campaign()
        self.settle()
        assert self[replica].role is Role.LEADER, f"{replica} is {self[replica].role}"
        return self.replicas[replica]

    def check(self) -> None:
        self.laws.check(self.replicas.values())
        if self.in_step:
            self.laws.check_leases(self.replicas.values())
