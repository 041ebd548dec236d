"""Bugs of the reads and of the leader's lease, and of watches and stale reads."""

from __future__ import annotations

from typing import Any

from chaos.bugs.patch import Bug, Patch
from cluster.raft import heartbeat, read_index, replication
from cluster.raft.messages import ReadState
from cluster.raft.progress import Progress
from cluster.raft.settings import RaftSettings
from cluster.raft.state import State
from cluster.types import Role
from node.replica import Replica
from node.services.front import NodeService
from proto.gen import node_pb2

ACKNOWLEDGED = replication.acknowledged
LEASE_READ_INDEX = read_index.lease_read_index
START = read_index._start
READS_CONFIRMED = Replica._reads_confirmed
WATCH = NodeService.watch


def _read_at_once(state: State, context: int) -> None:
    state.read_states.append(ReadState(context, state.commit_index))


def _confirmed_before(state: State, context: int) -> None:
    """An answer that comes after it confirms it, even one to what had left already."""
    START(state, context)
    if state.reads:
        stamp, read = state.reads.pop()
        state.reads.append((min(stamp, heartbeat.quorum_stamp(state) + 1), read))


def _answered_before_applied(replica: Replica, ready: Any) -> None:
    for each in ready.read_states:
        each.index = min(each.index, replica.core.applied_index)
    READS_CONFIRMED(replica, ready)


def _lease_for_ever(state: State) -> int | None:
    return state.commit_index if state.role is Role.LEADER and state.commit_index >= state.term_start else None


def _lease_from_the_answer(state: State, progress: Progress, stamp: int) -> None:
    ACKNOWLEDGED(state, progress, state.stamp)


def _lease_through_silence(state: State) -> int | None:
    """What was answered before the clock stood still counts as if it had not."""
    silent, state.silent = state.silent, False
    try:
        return LEASE_READ_INDEX(state)
    finally:
        state.silent = silent


def _lease_with_old_time(service: NodeService, replica: Replica, read: Any, consistency: int) -> Any:
    if consistency == node_pb2.LINEARIZABLE:
        replica.read(read)
    elif consistency == node_pb2.STALE:
        replica.stale_read(read, service._clock.monotonic())
    else:
        replica.lease_read(read)
    return read


def _long_lease(settings: RaftSettings) -> int:
    return 2 * settings.election_ticks_min


def _fresh_since_heard(replica: Replica) -> None:
    """What the leader said last is taken for what is applied here."""
    if replica._told is not None:
        replica._fresh_at = max(replica._fresh_at, replica._told[2])


async def _watch_from_now(service: NodeService, request: node_pb2.WatchRequest, context: Any) -> Any:
    """A watch that goes on at another leader goes on with what comes next."""
    request.from_now = True
    async for reply in WATCH(service, request, context):
        yield reply


READ_BUGS = (
    Bug(
        "reads-without-asking",
        "a leader answers reads from its own commit index",
        (Patch(read_index, "queue", _read_at_once),),
    ),
    Bug(
        "reads-before-the-first-commit",
        "a new leader reads before anything of its term is committed",
        (Patch(read_index, "queue", START),),
        taste="fresh leaders",
    ),
    Bug(
        "reads-confirmed-before",
        "a read is confirmed by answers to what had left before it came",
        (Patch(read_index, "_start", _confirmed_before),),
        taste="old leaders",
    ),
    Bug(
        "reads-before-applied",
        "a confirmed read does not wait until its index is applied",
        (Patch(Replica, "_reads_confirmed", _answered_before_applied),),
        taste="left behind",
    ),
    Bug("lease-for-ever", "the leader's lease never ends", (Patch(read_index, "lease_read_index", _lease_for_ever),)),
    Bug(
        "lease-from-the-answer",
        "the lease counts from when an answer came, not from when it was asked for",
        (Patch(replication, "acknowledged", _lease_from_the_answer),),
        taste="old leaders",
    ),
    Bug(
        "lease-too-long",
        "the lease lasts longer than a voter's promise",
        (Patch(RaftSettings, "lease_ticks", property(_long_lease)),),
        taste="old leaders",
    ),
    Bug(
        "lease-through-a-pause",
        "after a pause the lease is taken to be as young as it was before",
        (Patch(NodeService, "_query", _lease_with_old_time),),
        taste="old leaders",
    ),
    Bug(
        "stale-and-calls-it-fresh",
        "a follower that lags is fresh because its leader speaks",
        (Patch(Replica, "_freshen", _fresh_since_heard),),
        faults="stall-state,kill,power",
    ),
    Bug(
        "watch-skips",
        "a watch that goes on at another leader skips what was written meanwhile",
        (Patch(NodeService, "watch", _watch_from_now),),
    ),
)
