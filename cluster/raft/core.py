"""The Raft core of one replica of a shard: no IO, no clock, no chance of its own (thesis, Ongaro 2014).

The driver feeds messages, ticks and proposals in and takes a Ready out; README.md is its contract. This class only
dispatches: elections, replication, reads, transfer and silence are functions over the shared `State`.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.raft import (
    election,
    follower,
    heartbeat,
    output,
    read_index,
    reconfigure,
    replication,
    silence,
    transfer,
)
from cluster.raft.configuration import Configuration
from cluster.raft.configurations import CONFIG
from cluster.raft.messages import ConfigurationRefused, Entry, Message, NotLeader, Ready, SnapshotPoint
from cluster.raft.progress import ProgressState
from cluster.raft.settings import RaftSettings
from cluster.raft.state import (
    APPEND,
    APPEND_REPLY,
    FROM_LEADER,
    HEARTBEAT,
    HEARTBEAT_REPLY,
    NEVER,
    PRE_VOTE,
    PRE_VOTE_REPLY,
    REPLIES,
    SNAPSHOT,
    STAMP_SHIFT,
    TIMEOUT_NOW,
    VOTE,
    VOTE_REPLY,
    State,
    become_follower,
    send,
)
from cluster.types import Role

__all__ = ["ConfigurationRefused", "NotLeader", "RaftCore", "RaftSettings"]

HANDLERS: dict[int, Callable[[State, Message], None]] = {
    PRE_VOTE: election.on_pre_vote,
    PRE_VOTE_REPLY: election.on_pre_vote_reply,
    VOTE: election.on_vote,
    VOTE_REPLY: election.on_vote_reply,
    APPEND: follower.on_append,
    APPEND_REPLY: replication.on_append_reply,
    HEARTBEAT: follower.on_heartbeat,
    HEARTBEAT_REPLY: replication.on_heartbeat_reply,
    SNAPSHOT: follower.on_snapshot,
    TIMEOUT_NOW: election.on_timeout_now,
}


class RaftCore(State):
    __slots__ = ()

    # Inputs.

    def tick(self, ticks: int = 1) -> None:
        """Time passed. Due ticks come before the messages received after them, and before `lease_read_index`: leases
        rest on that. A silent core ignores ticks."""
        if self.silent:
            return
        assert ticks > 0
        self.clock += ticks
        if self.role is not Role.LEADER:
            election.tick_election(self, ticks)
            return
        self.stamp = max(self.stamp, self.clock << STAMP_SHIFT)
        if not heartbeat.check_quorum(self, ticks):
            return
        transfer.tick(self, ticks)
        self.heartbeat_elapsed += ticks
        silence.tick(self, ticks)
        if not self.silent and self.heartbeat_elapsed >= self.settings.heartbeat_ticks:
            heartbeat.broadcast_heartbeat(self)

    def step(self, message: Message) -> None:
        """One message of a peer. Those to another replica are dropped, and replies of one that is no member. What others
        ask is heard from anyone, since this configuration may be behind (thesis, section 4.1). AssertionError when it breaks
        a law of Raft: the replica must stop."""
        kind = message.kind
        if message.receiver != self.replica:
            return
        stranger = message.sender not in self.peers
        if stranger and (kind in REPLIES or message.sender == self.replica):
            return
        if message.term < self.term:
            self._step_stale(message)
            return
        if message.term > self.term and not self._adopt_term(message):
            return
        if self.silent and not (kind == HEARTBEAT and message.flag):
            silence.wake(self)
            if stranger and message.sender != self.leader:
                silence.ask_leader(self)
        HANDLERS[kind](self, message)

    def _adopt_term(self, message: Message) -> bool:
        """Whether a message of a later term is to be handled. A pre-vote moves no term; a vote that a promise stands
        against is ignored altogether, or a replica that was cut off would disturb the leader (thesis, 4.2.3)."""
        kind = message.kind
        if kind == PRE_VOTE or (kind == PRE_VOTE_REPLY and not message.reject):
            return True
        if kind == VOTE and not message.flag and election.promised(self, message.sender):
            return False
        become_follower(self, message.term, message.sender if kind in FROM_LEADER else 0)
        if kind == VOTE and message.flag:
            self.heard_elapsed = NEVER  # the leader asked for this election and holds no lease any more
        return True

    def _step_stale(self, message: Message) -> None:
        """A leader or candidate of an earlier term learns the current one and steps down (paper, section 5.1). Without
        that, a replica whose term ran ahead could never be reached by its leader again."""
        kind = message.kind
        if kind in FROM_LEADER:
            kind = APPEND_REPLY
        elif kind == VOTE:
            kind = VOTE_REPLY
        elif kind == PRE_VOTE:
            kind = PRE_VOTE_REPLY
        else:
            return
        send(self, Message(kind, self.replica, message.sender, self.term, reject=True))

    def propose(self, entries: list[Entry]) -> int:
        """Gives the entries index and term, appends them and returns the first index. NotLeader, definitely without
        effect, when this replica does not lead or hands leadership over."""
        if self.role is not Role.LEADER or self.transferring:
            raise NotLeader(self.transferring or self.leader)
        assert entries
        silence.wake(self)
        first = index = self.log.last_index + 1
        for entry in entries:
            assert entry.kind != CONFIG, "a configuration is proposed by propose_configuration"
            entry.index = index
            entry.term = self.term
            index += 1
        self.log.append(entries)
        self.idle_elapsed = 0
        self.replicate_due = bool(self.peers)
        return first

    def propose_configuration(self, configuration: Configuration) -> int:
        """Appends it and returns its index; it is in force from now on, here and where it arrives. The leader leaves a joint
        one by itself once it is committed. NotLeader or ConfigurationRefused, definitely without effect."""
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        silence.wake(self)
        return reconfigure.propose(self, configuration)

    def caught_up(self, replica: int) -> bool:
        """Whether this leader's follower lags no more than one append behind, so that it may become a voter without
        holding up commits (thesis, section 4.2.1)."""
        progress = self.progress.get(replica)
        if progress is None or replica == self.replica:
            return progress is not None
        behind = self.log.last_index - progress.match
        return progress.state is ProgressState.REPLICATE and behind <= self.settings.append_entries_max

    def answered_lately(self, replica: int) -> bool:
        """Whether this leader's follower answered something sent less than an election timeout ago; a leader always."""
        progress = self.progress.get(replica)
        return progress is not None and heartbeat.answered_lately(self, progress)

    def read_index(self, context: int) -> None:
        """Answered by a ReadState of that context in a later Ready. NotLeader."""
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        silence.wake(self)
        read_index.queue(self, context)

    def lease_read_index(self) -> int | None:
        """The commit index if the leader lease holds now, else None. A silent leader holds none: wake it."""
        return read_index.lease_read_index(self)

    def campaign(self, *, force: bool = False) -> None:
        """Starts a pre-election at once, or with `force` the election itself. Nothing happens while this replica leads,
        or heard a leader less than the minimum election timeout ago: leader leases rest on that."""
        silence.wake(self)
        election.campaign(self, force=force)

    def transfer_leadership(self, target: int) -> None:
        """Hands leadership to another voter; given up after an election timeout. NotLeader."""
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        silence.wake(self)
        transfer.begin(self, target)

    def peer_disconnected(self, replica: int) -> None:
        """A hint. A follower cut off from its leader stops waiting as soon as its promise allows it."""
        if replica == self.leader and self.role is not Role.LEADER:
            silence.wake(self)
            election.leader_unreachable(self)

    def peer_reconnected(self, replica: int) -> None:
        """A hint. A leader asks the follower again where the logs meet, as what was on its way may be lost."""
        if self.role is Role.LEADER and replica in self.progress and replica != self.replica:
            silence.wake(self)
            replication.lost_in_flight(self, replica)

    def wake(self) -> None:
        """Leaves silence: a leader sends heartbeats, a follower waits a full election timeout."""
        silence.wake(self)

    def persisted(self, index: int, term: int) -> None:
        """The Ready handed out last is fsynced, and so the log up to `index`, whose term was `term` in that Ready."""
        output.persisted(self, index, term)

    def applied(self, index: int) -> None:
        """The state machine has applied everything up to `index`."""
        output.applied(self, index)

    def compact(self, index: int) -> None:
        """Forgets log entries up to `index`, which is applied. Followers that still need them get a snapshot."""
        output.compact(self, index)

    def compaction_point(self) -> int:
        """Up to where the limits want the applied log dropped; the base index if nothing is."""
        return output.compaction_point(self)

    def snapshot_point(self) -> SnapshotPoint:
        """Where a snapshot taken now stands: at the applied index."""
        term = self.log.term_at(self.applied_index)
        assert term is not None, "the base never passes the applied index"
        return SnapshotPoint(self.applied_index, term, self.configurations.applied)

    def wants_snapshot(self, message: Message) -> bool:
        """Whether `step` would install this snapshot now; nothing is changed."""
        return follower.wants_snapshot(self, message)

    def snapshot_finished(self, replica: int, index: int, ok: bool) -> None:
        """Streaming a snapshot at `index` to that follower ended."""
        if self.role is Role.LEADER:
            replication.snapshot_finished(self, replica, index, ok)

    # Outputs.

    def has_ready(self) -> bool:
        return output.has_ready(self)

    def ready(self) -> Ready:
        """Hands out what is due and clears it. Not again before `persisted`, when there was something to sync."""
        return output.ready(self)

    def check_invariants(self) -> None:
        """AssertionError names the law that is broken. Costs the length of the log."""
        log = self.log
        log.check_invariants()
        assert log.base_index <= self.applied_index <= self.applying_index <= self.commit_index <= log.last_index
        assert self.applying_index <= log.persisted_index, "applied before it was fsynced"
        assert log.last_term <= self.term and self.durable_term <= self.handed_term <= self.term
        assert (self.leader == self.replica) == (self.role is Role.LEADER)
        assert self.kept_bytes == log.size_of(log.base_index + 1, self.applied_index + 1)
        assert bool(self.progress) == (self.role is Role.LEADER)
        assert self.progress or not (self.reads or self.early_reads or self.transferring)
        above = map(log.entry_at, range(self.applied_index + 1, log.last_index + 1))
        self.configurations.check_invariants(above, self.applied_index)
        assert (self.configuration_index, self.configuration) == self.configurations.last
        assert self.peers == tuple(each for each in self.configuration.members if each != self.replica)
        if self.role is Role.LEADER:
            self._check_progress()
        else:
            assert not (self.voter_progress or self.outgoing_progress or self.departed), (
                "who does not lead tracks nobody"
            )
            assert self.settle_index == NEVER and not self.replicate_due and not self.round_due

    def _check_progress(self) -> None:
        log = self.log
        assert tuple(self.progress) == self.configuration.members
        waits = self.configuration.joint and self.transferring
        assert self.commit_index < self.settle_index or waits, "what is committed is moved on"
        for member, progress in self.progress.items():
            assert progress.match <= log.last_index, f"{member}: {progress!r}"
            if member == self.replica:
                assert progress.match == log.persisted_index, "a leader acknowledges what it fsynced"
            else:
                assert progress.match < progress.next <= log.last_index + 1, f"{member}: {progress!r}"
                assert progress.acked <= self.stamp, f"{member}: {progress!r}"
