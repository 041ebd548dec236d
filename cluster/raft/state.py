"""The state that the parts of the core share, and the few things all of them do: send, wake, change the role.

The parts are functions over this state, one file for each concern; `core.py` dispatches to them.
"""

from __future__ import annotations

from collections import deque

from cluster.ports import Random
from cluster.raft.configuration import Configuration
from cluster.raft.configurations import Configurations
from cluster.raft.log import RaftLog
from cluster.raft.messages import (
    Entry,
    HardState,
    Message,
    MessageKind,
    ReadState,
    SnapshotPoint,
)
from cluster.raft.progress import Progress
from cluster.raft.settings import RaftSettings
from cluster.types import EntryKind, Role

# Plain ints: comparing them is several times faster than comparing members of the enum.
PRE_VOTE = int(MessageKind.PRE_VOTE)
PRE_VOTE_REPLY = int(MessageKind.PRE_VOTE_REPLY)
VOTE = int(MessageKind.VOTE)
VOTE_REPLY = int(MessageKind.VOTE_REPLY)
APPEND = int(MessageKind.APPEND)
APPEND_REPLY = int(MessageKind.APPEND_REPLY)
HEARTBEAT = int(MessageKind.HEARTBEAT)
HEARTBEAT_REPLY = int(MessageKind.HEARTBEAT_REPLY)
SNAPSHOT = int(MessageKind.SNAPSHOT)
TIMEOUT_NOW = int(MessageKind.TIMEOUT_NOW)
FROM_LEADER = frozenset((APPEND, HEARTBEAT, SNAPSHOT, TIMEOUT_NOW))
REPLIES = frozenset((PRE_VOTE_REPLY, VOTE_REPLY, APPEND_REPLY, HEARTBEAT_REPLY))

STAMP_SHIFT = 20  # a stamp is the leader's tick, then a number that grows whenever stamped messages leave
NEVER = 1 << 62


class State:
    __slots__ = (
        "alone",
        "applied_index",
        "applying_index",
        "clock",
        "commit_index",
        "configuration",
        "configuration_index",
        "configurations",
        "departed",
        "durable_term",
        "early_reads",
        "election_elapsed",
        "election_timeout",
        "handed_commit",
        "handed_term",
        "handed_vote",
        "heard_elapsed",
        "heartbeat_elapsed",
        "idle_elapsed",
        "kept_bytes",
        "leader",
        "lease_floor",
        "log",
        "messages_after",
        "messages_now",
        "outgoing_progress",
        "peers",
        "progress",
        "quorum_floor",
        "random",
        "read_states",
        "reads",
        "replica",
        "replicate_due",
        "role",
        "round_due",
        "settings",
        "settle_index",
        "silent",
        "snapshot",
        "stamp",
        "stamp_used",
        "term",
        "term_start",
        "transfer_elapsed",
        "transfer_sent",
        "transferring",
        "vote",
        "voter_progress",
        "votes",
    )

    def __init__(
        self,
        *,
        replica: int,
        configuration: Configuration,
        hard_state: HardState,
        log: RaftLog,
        applied_index: int,
        settings: RaftSettings,
        random: Random,
    ) -> None:
        assert replica != 0
        assert log.base_index <= applied_index <= log.last_index, f"applied {applied_index} lies outside of {log!r}"
        assert hard_state.commit <= log.last_index, f"committed {hard_state.commit} was lost from {log!r}"
        assert log.last_term <= hard_state.term, f"term {hard_state.term} is behind {log!r}"
        self.replica = replica
        self.settings = settings
        self.random = random
        # Durable state (paper, figure 2), and what of it was handed to the driver.
        self.term = hard_state.term
        self.vote = hard_state.vote
        self.log = log
        self.handed_term = self.durable_term = hard_state.term
        self.handed_vote = hard_state.vote
        self.handed_commit = hard_state.commit
        # Volatile state.
        self.role = Role.FOLLOWER
        self.leader = 0
        self.commit_index = max(hard_state.commit, applied_index)
        self.applied_index = self.applying_index = applied_index
        self.kept_bytes = log.size_of(log.base_index + 1, applied_index + 1)  # of the applied entries above the base
        self.votes: dict[int, bool] = {}
        self.silent = False
        # Ticks. A replica that ran before may have acknowledged a leader just before it stopped, and keeps the promise.
        self.election_elapsed = 0
        self.heard_elapsed = 0 if hard_state.term else NEVER
        self.election_timeout = 0
        # Leader.
        self.progress: dict[int, Progress] = {}  # of every member, also of itself
        self.voter_progress: list[Progress] = []  # those that count, and those of outgoing voters
        self.outgoing_progress: list[Progress] = []
        self.departed: list[tuple[int, Progress]] = []  # are told when the change that removed them is committed
        self.settle_index = NEVER  # once this index is committed the leader moves the configuration on
        self.clock = 0
        self.stamp = 0
        self.stamp_used = False
        self.term_start = NEVER  # index of the entry that this leader opened its term with
        self.heartbeat_elapsed = 0
        self.idle_elapsed = 0
        self.lease_floor = 0
        self.quorum_floor = 0
        self.replicate_due = False
        self.round_due = False  # every follower gets something in the next Ready, a heartbeat if nothing else
        self.transferring = 0
        self.transfer_elapsed = 0
        self.transfer_sent = False
        self.early_reads: list[int] = []  # before the first commit of the term
        self.reads: deque[tuple[int, ReadState]] = deque()  # (stamp that a quorum must answer, read)
        # Output.
        self.messages_now: list[Message] = []
        self.messages_after: list[Message] = []
        self.read_states: list[ReadState] = []
        self.snapshot: SnapshotPoint | None = None
        # Who votes and who follows.
        self.configuration = configuration
        self.configuration_index = 0  # of its entry
        self.peers: tuple[int, ...] = ()  # the other members
        self.alone = False
        self.configurations = Configurations(configuration)
        self.configurations.appended(map(log.entry_at, range(applied_index + 1, log.last_index + 1)))
        take_effect(self)
        draw_timeout(self)


def take_effect(state: State) -> None:
    """The last configuration of the log is in force, committed or not (thesis, section 4.1)."""
    state.configuration_index, configuration = state.configurations.last
    state.configuration = configuration
    replica = state.replica
    state.peers = tuple(member for member in configuration.members if member != replica)
    # Every majority consists of this replica, so there is nobody to ask.
    state.alone = configuration.voters == (replica,) and configuration.outgoing in ((), (replica,))
    if state.role is Role.LEADER:
        follow_members(state)


def follow_members(state: State) -> None:
    """Who stays keeps its progress; who comes is asked where its log ends."""
    configuration = state.configuration
    known = state.progress
    next_index = state.log.last_index + 1
    state.progress = {member: known.get(member) or Progress(next_index) for member in configuration.members}
    state.voter_progress = [state.progress[voter] for voter in configuration.voters]
    state.outgoing_progress = [state.progress[voter] for voter in configuration.outgoing]
    stays = (*configuration.members, state.replica)
    state.departed += [(member, progress) for member, progress in known.items() if member not in stays]
    if configuration.joint or state.departed or not configuration.votes(state.replica):
        state.settle_index = max(state.configuration_index, state.term_start)
    else:
        state.settle_index = NEVER


def draw_timeout(state: State) -> None:
    """Opens a period of waiting for a leader (paper, section 5.2: randomized so that votes rarely split)."""
    settings = state.settings
    state.election_elapsed = 0
    state.election_timeout = state.random.randrange(settings.election_ticks_min, settings.election_ticks_max)


def send(state: State, message: Message) -> None:
    """After the sync: what the message says may rest on state that is not durable yet."""
    assert message.receiver != state.replica
    state.messages_after.append(message)


def send_as_leader(state: State, message: Message) -> None:
    """During the sync (thesis, section 10.2.1), unless the term itself is not durable yet."""
    assert state.role is Role.LEADER and message.term == state.term and message.receiver != state.replica
    (state.messages_now if state.durable_term == state.term else state.messages_after).append(message)


def become_follower(state: State, term: int, leader: int) -> None:
    assert term >= state.term, f"term {term} after {state.term}"
    if term > state.term:
        state.term = term
        state.vote = 0
        drop_messages(state)
    if state.role is Role.LEADER:
        leave_leadership(state)
    state.role = Role.FOLLOWER
    state.leader = leader
    state.votes.clear()
    state.silent = False
    draw_timeout(state)


def become_pre_candidate(state: State) -> None:
    """Changes neither term nor vote (thesis, section 9.6)."""
    assert state.role is not Role.LEADER
    state.role = Role.PRE_CANDIDATE
    state.leader = 0
    state.votes.clear()
    state.silent = False
    draw_timeout(state)


def become_candidate(state: State) -> None:
    assert state.role is not Role.LEADER
    state.role = Role.CANDIDATE
    state.term += 1
    state.vote = state.replica
    state.leader = 0
    drop_messages(state)
    state.votes.clear()
    state.silent = False
    draw_timeout(state)


def become_leader(state: State) -> None:
    """Opens the term with an empty entry, since only an entry of the own term commits (paper, section 5.4.2; 8)."""
    assert state.role is Role.CANDIDATE and state.vote == state.replica
    log = state.log
    state.role = Role.LEADER
    state.leader = state.replica
    state.votes.clear()
    state.term_start = log.last_index + 1
    follow_members(state)
    if own := state.progress.get(state.replica):
        own.match = log.persisted_index
        own.acked = NEVER  # whatever it sends, it has answered
    state.lease_floor = state.stamp = max(state.stamp + 1, state.clock << STAMP_SHIFT)
    state.quorum_floor = state.clock
    state.heartbeat_elapsed = state.idle_elapsed = 0
    assert not state.reads and not state.early_reads and not state.transferring
    log.append([Entry(state.term_start, state.term, EntryKind.EMPTY, b"")])
    state.replicate_due = True


def leave_leadership(state: State) -> None:
    state.progress = {}
    state.voter_progress = []
    state.outgoing_progress = []
    state.departed = []
    state.settle_index = NEVER
    state.term_start = NEVER
    state.replicate_due = state.round_due = False
    state.transferring = 0
    state.transfer_sent = False
    # It promised itself nothing as a leader, and its lease ends here.
    state.heard_elapsed = NEVER
    state.read_states += [ReadState(context, -1) for context in state.early_reads]
    for _, read in state.reads:
        read.index = -1
        state.read_states.append(read)
    state.early_reads.clear()
    state.reads.clear()


def drop_messages(state: State) -> None:
    """What an earlier term still had to say: the state behind it may never become durable."""
    state.messages_now.clear()
    state.messages_after.clear()
    state.stamp_used = False
