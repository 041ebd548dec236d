"""Silence: a shard with nothing to do stops ticking, and heartbeats between nodes speak for it (architecture, pump).

A leader falls silent when every member holds, and by the last heartbeat knows committed, all it has, and answered one of
the last two heartbeats: whom it cannot reach it keeps asking, so that check-quorum works. That may fail: the heartbeat
may be lost, or an old one put a follower to sleep that misses newer entries. Both are safe, since silence only
stops a timer, and any other message wakes.
"""

from __future__ import annotations

from cluster.raft import heartbeat
from cluster.raft.messages import Message
from cluster.raft.state import HEARTBEAT_REPLY, STAMP_SHIFT, State, draw_timeout, send
from cluster.types import Role


def idle(state: State) -> bool:
    last = state.log.last_index
    if not state.commit_index == state.applied_index == last or state.transferring or state.reads or state.early_reads:
        return False
    recent = max(0, state.clock - 2 * state.settings.heartbeat_ticks) << STAMP_SHIFT
    return all(each.match == last and each.acked >= recent for each in state.progress.values())


def tick(state: State, ticks: int) -> None:
    """Counts idle ticks of a leader; falls silent with a last round of heartbeats."""
    if not idle(state):
        state.idle_elapsed = 0
        return
    state.idle_elapsed += ticks
    if state.idle_elapsed >= state.settings.idle_ticks:
        for peer in state.peers:
            heartbeat.send_heartbeat(state, peer, silence=True)
        state.silent = True


def ask_leader(state: State) -> None:
    """Who does not belong here woke this follower, and perhaps others, but not the leader: without a word from it they would
    elect another. An answer to nothing does not count there and makes it ask around."""
    if state.leader and state.role is not Role.LEADER:
        send(state, Message(HEARTBEAT_REPLY, state.replica, state.leader, state.term))


def wake(state: State) -> None:
    """A leader asks around at once, a follower waits a full timeout: until now the nodes' heartbeats spoke."""
    if not state.silent:
        return
    state.silent = False
    state.idle_elapsed = 0
    if state.role is Role.LEADER:
        # It stopped its clock, so answers to what was sent before say nothing about a lease.
        state.stamp += 1
        state.lease_floor = state.stamp
        state.quorum_floor = state.clock
        state.heartbeat_elapsed = 0
        state.round_due = True
    else:
        draw_timeout(state)
