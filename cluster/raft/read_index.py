"""Linearizable reads without writing (thesis, section 6.4), and the leader lease (section 6.4.1).

A read takes the commit index at its arrival and is confirmed by a quorum's answers to messages that left after it. All
reads that arrive before the next Ready share one round. Nothing is answered before the first commit of the term.
"""

from __future__ import annotations

from cluster.raft import heartbeat
from cluster.raft.messages import ReadState
from cluster.raft.state import STAMP_SHIFT, State
from cluster.types import Role


def queue(state: State, context: int) -> None:
    if state.commit_index < state.term_start:
        state.early_reads.append(context)
    else:
        _start(state, context)


def _start(state: State, context: int) -> None:
    read = ReadState(context, state.commit_index)
    if not state.alone:
        # Whatever carries this stamp has not left yet: the stamp moves on whenever messages leave.
        state.reads.append((state.stamp, read))
        state.round_due = True
    else:
        state.read_states.append(read)


def term_committed(state: State) -> None:
    """The first commit of the term: what waited for it starts now."""
    for context in state.early_reads:
        _start(state, context)
    state.early_reads.clear()


def confirm(state: State) -> None:
    stamp = heartbeat.quorum_stamp(state)
    reads = state.reads
    while reads and reads[0][0] <= stamp:
        state.read_states.append(reads.popleft()[1])


def lease_read_index(state: State) -> int | None:
    """The commit index while the leader lease holds. It never holds again in a term in which TIMEOUT_NOW was sent: that
    election may still happen, and its voters ignore their promises."""
    if state.role is not Role.LEADER or state.commit_index < state.term_start:
        return None
    if state.silent or state.transferring or state.transfer_sent:
        return None
    if not state.alone:
        stamp = heartbeat.quorum_stamp(state)
        # The current tick has begun, so it counts in full.
        age = state.clock - (stamp >> STAMP_SHIFT) + 1
        if stamp < state.lease_floor or age > state.settings.lease_ticks:
            return None
    return state.commit_index
