"""One shard on this node: its Raft core, its applier and those who wait for either. No IO and no awaits here.

The pump calls `step` (inbox and proposals into the core), carries out what the core hands back, and calls `apply` with
what is committed. Everything that waits is a ticket; a ticket is resolved once. On loss of leadership what was proposed is
unknown and what was not is definite.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.raft.configuration import Configuration
from cluster.raft.core import RaftCore
from cluster.raft.messages import Entry, Message, MessageKind, Ready
from cluster.ring.shard_map import voters
from cluster.types import EntryKind, Role
from node.machines.applier import Applier, Outcome, ParsedEntry
from node.shard_clock import ShardClock
from node.storage.view import ShardState
from node.tickets import Proposal, Read
from proto.gen import entry_pb2, meta_pb2

FROM_LEADER = frozenset((MessageKind.APPEND, MessageKind.HEARTBEAT))


class Replica:
    """One replica of one shard. `node_of` maps replica ids to node names, as the map has them."""

    def __init__(
        self,
        shard: int,
        core: RaftCore,
        state: ShardState,
        applier: Applier,
        limits: Limits,
        mark_dirty: Callable[[Replica], None],
    ) -> None:
        self.shard = shard
        self.core = core
        self.state = state
        self.applier = applier
        self.node_of: dict[int, str] = {}
        self.limits = limits
        self.preferred = False  # the first voter of the shard's preference list
        self.closed = False  # no longer on this node, or the node stops
        self.installing = False  # a snapshot is arriving
        self.clock = ShardClock(limits.tick_ms * limits.election_ticks_min)
        self.to_apply: deque[Entry] = deque()
        self.dirty = False
        self.leading = False
        self._led_term = 0
        self._mark_dirty = mark_dirty
        self._inbox: list[Message] = []
        self._waiting: deque[Proposal] = deque()
        self._proposed: dict[int, list[Proposal]] = {}
        self._pending_bytes = 0
        self._pending_requests = 0
        self._reads: list[Read] = []  # not yet handed to the core
        self._confirming: dict[int, list[Read]] = {}  # by read context
        self._confirmed: deque[tuple[int, list[Read]]] = deque()  # wait until the index is applied
        self._pending_reads = 0
        self._context = 0
        self._watchers: dict[asyncio.Future[None], None] = {}
        self._pulse_due = False
        self._pulse_proposed = False
        self._fresh_at = 0.0  # the state holds all that was acknowledged when its leader spoke at this time
        # Term, index and time: applying the index makes the state fresh as of the time.
        self._owed: tuple[int, int, float] | None = None
        self._told: tuple[int, int, float] | None = None  # the newest such word
        self.dropped_messages = 0

    def follow(self, row: meta_pb2.Shard) -> None:
        """Brings it up to the map's row."""
        self.node_of = {each.id: each.node for each in row.replicas}
        self.preferred = next((each.id for each in voters(row)), 0) == self.core.replica

    # -- inputs, called from the transport and the services ------------------------------------------------------------

    def receive(self, message: Message) -> None:
        limits = self.limits
        if len(self._inbox) >= limits.inbox_messages_max or (
            message.kind == MessageKind.APPEND
            # The state engine stalls and applying with it: the leader will send it again.
            and self.core.log.bytes > limits.log_bytes_kept_max + 2 * limits.proposal_bytes_pending_max
        ):
            self.dropped_messages += 1
            return
        self._inbox.append(message)
        self.touch()

    def touch(self) -> None:
        if not self.dirty and not self.closed:
            self.dirty = True
            self._mark_dirty(self)

    def propose(self, proposal: Proposal) -> None:
        """Queues a command; its ticket is resolved when it was applied, or with an error of the table."""
        core = self.core
        if core.role is not Role.LEADER or core.transferring or self.closed:
            proposal.fail(Code.NOT_LEADER)
            return
        if (
            self._pending_requests >= self.limits.proposals_pending_max
            or self._pending_bytes + proposal.size > self.limits.proposal_bytes_pending_max
        ):
            proposal.fail(Code.OVERLOADED, f"shard {self.shard}: too many proposals wait")
            return
        self._pending_requests += 1
        self._pending_bytes += proposal.size
        self._waiting.append(proposal)
        self.touch()

    def read(self, read: Read) -> None:
        """Queues a linearizable read: answered when the commit index of now, confirmed by a later round, is applied."""
        if self.core.role is not Role.LEADER or self.closed:
            read.fail(Code.NOT_LEADER)
        elif self._pending_reads >= self.limits.reads_pending_max:
            read.fail(Code.OVERLOADED, f"shard {self.shard}: too many reads wait")
        else:
            self._pending_reads += 1
            self._reads.append(read)
            self.touch()

    def lease_read(self, read: Read) -> None:
        """Answers at once while the leader lease holds (the caller has advanced the ticks to now); else as `read`."""
        index = self.core.lease_read_index()
        if index is not None and index <= self.core.applied_index and not self.closed:
            self.answer(read)
        else:
            self.read(read)

    def stale_read(self, read: Read, now: float) -> None:
        """Answers at once from what is applied here. A leader without its lease asks around instead, being the one
        replica whose age nobody else bounds; one that is still being filled answers nothing."""
        if self.core.role is Role.LEADER:
            self.lease_read(read)
        elif not self._fresh_at and not self.core.configuration.votes(self.core.replica):
            read.fail(Code.NOT_LEADER)
        else:
            read.stale_ms = self.stale_ms(now)
            self.answer(read)

    def stale_ms(self, now: float) -> int:
        """How old a follower's state may be, at most: since its leader last spoke, and as long again as a deposed leader
        may take to notice (check-quorum: an election timeout; in silence one more until it wakes)."""
        unaware = self.limits.tick_ms * self.limits.election_ticks_min * (2 if self.core.silent else 1)
        return int((now - self._fresh_at) * 1000) + unaware

    def heard_leader(self, at: float) -> None:
        """The leader's node spoke at `at` and, this shard being silent, has nothing newer."""
        if self.core.silent and self.core.applied_index >= self.core.commit_index:
            self._fresh_at = max(self._fresh_at, at)

    def hurry_birth(self) -> None:
        """A preferred leader does not wait out a timeout before the first election of its shard: nobody holds a promise. Who
        votes in term 0 is of the shard's birth."""
        if self.preferred and self.core.term == 0 and self.core.configuration.votes(self.core.replica):
            self.core.campaign()
            self.touch()

    # -- the pump's side -----------------------------------------------------------------------------------------------

    def step(self, now: float, wall_ms: int) -> Ready | None:
        """Moves the inbox, the proposals and the reads into the core; what the core wants done, or None."""
        core = self.core
        inbox, self._inbox = self._inbox, []
        for message in inbox:
            core.step(message)
            if message.kind in FROM_LEADER and message.sender == core.leader and message.term == core.term:
                self._told = (message.term, message.hint_index, now)
        self._freshen()
        self._follow_role()
        if self.leading:
            self.clock.wall_ms = wall_ms
            if self._waiting:
                self._join(now)
            if self._pulse_due:
                self._pulse()
            if self._reads:
                self._confirm()
        if not core.has_ready():
            return None
        ready = core.ready()
        if ready.read_states:
            self._reads_confirmed(ready)
        if ready.committed:
            self.to_apply.extend(ready.committed)
        return ready

    def tick(self, ticks: int, now: float) -> None:
        """Time passes for an awake core; the shard clock of a leader runs on in silence."""
        core = self.core
        if not core.silent:
            core.tick(ticks)
            if core.has_ready():
                self.touch()
        if self.leading:
            self.clock.advance(now)
            if not self._pulse_proposed and self.clock.running and self.applier.pulse_due(self.clock.time_ms):
                self._pulse_due = True
                self.touch()

    def apply(self, entry: Entry, now: float) -> None:
        """Applies one committed entry into the overlay and answers whoever proposed it."""
        core = self.core
        waiters = self._proposed.pop(entry.index, None)
        outcomes = self.applier.apply(entry, want_results=waiters is not None)
        if entry.kind == EntryKind.CONFIG:
            self.state.set_configuration(Configuration.decode(entry.payload))
        self.state.set_applied(entry.index, entry.term, self.applier.time_ms)
        core.applied(entry.index)
        if entry.kind == EntryKind.PULSE:
            self._pulse_proposed = False
        elif self.leading and not self.clock.running and entry.term == core.term:
            self.clock.start(self.applier.time_ms, now)
        if waiters is not None:
            assert outcomes is not None and len(outcomes) == len(waiters), "one outcome per joined request"
            for proposal, outcome in zip(waiters, outcomes, strict=True):
                self._settle(proposal)
                proposal.resolve(outcome)

    def applied_some(self) -> None:
        """After a slice of applies: reads whose index is reached, watchers, compaction."""
        core = self.core
        applied = core.applied_index
        self._freshen()
        while self._confirmed and self._confirmed[0][0] <= applied:
            self._answer_all(self._confirmed.popleft()[1])
        self.wake_watchers()
        point = core.compaction_point()
        if point > core.log.base_index:
            core.compact(point)

    def leader_node(self) -> str:
        """Where the leader is thought to be; empty when unknown."""
        return self.node_of.get(self.core.leader, "")

    def leader_hint(self) -> str:
        """Where a caller should go instead: to who is about to lead, if leadership is on its way."""
        return self.node_of.get(self.core.transferring, "") or self.leader_node()

    def answer(self, read: Read) -> None:
        """Runs a query against the state as applied."""
        if read.outcome is not None:
            return
        if not read.capability:  # only the confirmed index was asked for
            read.resolve(Outcome(0, "", b"", self.core.applied_index, 0))
            return
        try:
            answer = self.applier.query(read.capability, read.query)
        except TenfoldError as error:
            read.fail(error.code, error.message)
            return
        read.resolve(Outcome(0, "", answer.SerializeToString(), self.core.applied_index, 0))

    def changed(self) -> asyncio.Future[None]:
        """Resolved when something was applied or leadership changed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers[future] = None
        future.add_done_callback(self._forget_watcher)
        return future

    def _forget_watcher(self, future: asyncio.Future[None]) -> None:
        self._watchers.pop(future, None)

    def wake_watchers(self) -> None:
        if not self._watchers:
            return
        watchers, self._watchers = self._watchers, {}
        for future in watchers:
            if not future.done():
                future.remove_done_callback(self._forget_watcher)  # it is forgotten already
                future.set_result(None)

    def refuse_waiting(self, code: Code) -> None:
        """Whoever is not in the log yet is told so, definitely."""
        waiting, self._waiting = self._waiting, deque()
        for proposal in waiting:
            self._settle(proposal)
            proposal.fail(code)
        reads, self._reads = self._reads, []
        self._pending_reads -= len(reads)
        for read in reads:
            read.fail(code)

    def close(self, code: Code) -> None:
        """Nothing happens here any more: the node stops, or the replica is taken from it. Whoever waits is told; what was
        proposed is unknown."""
        self.closed = True
        self.leading = False
        for read in self._take_reads():
            read.fail(code)
        for proposal in self._take_proposals():
            proposal.fail(Code.UNKNOWN_OUTCOME if proposal.index else code)
        self.wake_watchers()

    def _freshen(self) -> None:
        """A follower that lags is not fresh because its leader speaks: it has to apply what was committed by then."""
        told = self._told
        if self._owed is None or (told is not None and told[0] != self._owed[0]):
            self._owed = told
        while self._owed is not None and self.core.applied_index >= self._owed[1]:
            self._fresh_at = max(self._fresh_at, self._owed[2])
            self._owed = told if told is not self._owed else None
            if self._owed is None:
                self._told = None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _follow_role(self) -> None:
        led_term = self.core.term if self.core.role is Role.LEADER else 0
        if led_term == self._led_term:
            return
        was_leading = self.leading
        self._led_term, self.leading = led_term, led_term > 0
        self.clock.stop()
        self._pulse_due = self._pulse_proposed = False
        if was_leading:
            for read in self._take_reads():
                read.fail(Code.NOT_LEADER)
            for proposal in self._take_proposals():
                proposal.fail(Code.UNKNOWN_OUTCOME if proposal.index else Code.NOT_LEADER)
        self.wake_watchers()

    def _join(self, now: float) -> None:
        """Joins what waits into entries, bounded in bytes and count. No two requests of an entry write one key, since a
        key's version is the entry's index and must name one write; one that cannot say what it writes is alone."""
        if self.core.transferring:
            return
        self.clock.advance(now)
        waiting, limits = self._waiting, self.limits
        entries: list[Entry] = []
        groups: list[list[Proposal]] = []
        while waiting:
            group: list[Proposal] = []
            written: set[bytes] = set()
            size = 0
            while waiting and len(group) < limits.entry_requests_max:
                proposal = waiting[0]
                if proposal.outcome is not None:  # its deadline passed while it waited
                    self._settle(waiting.popleft())
                    continue
                writes = proposal.writes
                if group and (
                    size + proposal.size > limits.entry_bytes_max or writes is None or not written.isdisjoint(writes)
                ):
                    break
                group.append(waiting.popleft())
                if writes is None:
                    break
                written.update(writes)
                size += proposal.size
            if group:
                entries.append(self._entry(group))
                groups.append(group)
        if not entries:
            return
        first = self.core.propose(entries)
        for offset, group in enumerate(groups):
            self._proposed[first + offset] = group
            for proposal in group:
                proposal.index = first + offset

    def _entry(self, group: list[Proposal]) -> Entry:
        payload = entry_pb2.EntryPayload(time_ms=self.clock.time_ms, wall_ms=self.clock.wall_ms)
        payload.requests.extend([proposal.request for proposal in group])
        parsed = ParsedEntry(payload, [proposal.command for proposal in group])
        return Entry(0, 0, EntryKind.NORMAL, payload.SerializeToString(), parsed)

    def _pulse(self) -> None:
        if not self.core.transferring:
            payload = entry_pb2.EntryPayload(time_ms=self.clock.time_ms, wall_ms=self.clock.wall_ms)
            self.core.propose([Entry(0, 0, EntryKind.PULSE, payload.SerializeToString())])
            self._pulse_due, self._pulse_proposed = False, True

    def _confirm(self) -> None:
        reads, self._reads = self._reads, []
        self._context += 1
        self._confirming[self._context] = reads
        self.core.read_index(self._context)

    def _reads_confirmed(self, ready: Ready) -> None:
        for state in ready.read_states:
            reads = self._confirming.pop(state.context, [])
            if state.index < 0:
                self._pending_reads -= len(reads)
                for read in reads:
                    read.fail(Code.NOT_LEADER)
            elif state.index <= self.core.applied_index:
                self._answer_all(reads)
            else:
                self._confirmed.append((state.index, reads))

    def _answer_all(self, reads: list[Read]) -> None:
        self._pending_reads -= len(reads)
        for read in reads:
            self.answer(read)

    def _settle(self, proposal: Proposal) -> None:
        self._pending_requests -= 1
        self._pending_bytes -= proposal.size

    def _take_reads(self) -> list[Read]:
        taken = self._reads
        for reads in self._confirming.values():
            taken.extend(reads)
        for _, reads in self._confirmed:
            taken.extend(reads)
        self._reads, self._confirming = [], {}
        self._confirmed.clear()
        self._pending_reads = 0
        return taken

    def _take_proposals(self) -> list[Proposal]:
        taken = [proposal for group in self._proposed.values() for proposal in group]
        taken.extend(self._waiting)
        self._proposed = {}
        self._waiting.clear()
        self._pending_bytes = self._pending_requests = 0
        return taken
