"""Heartbeats of a leader, and what their answers prove: that a quorum still follows (thesis, sections 6.2 and 6.4)."""

from __future__ import annotations

from cluster.raft import quorum
from cluster.raft.messages import Message
from cluster.raft.progress import Progress
from cluster.raft.state import HEARTBEAT, STAMP_SHIFT, State, become_follower, send_as_leader


def send_heartbeat(state: State, peer: int, *, silence: bool = False) -> None:
    """`commit` never goes beyond what the follower is known to hold."""
    progress = state.progress[peer]
    commit = min(progress.match, state.commit_index)
    message = Message(
        HEARTBEAT,
        state.replica,
        peer,
        state.term,
        commit=commit,
        hint_index=owed_index(state),
        context=state.stamp,
        flag=silence,
    )
    send_as_leader(state, message)
    progress.sent = state.stamp
    state.stamp_used = True


def owed_index(state: State) -> int:
    """Who has applied this holds everything acknowledged so far: the commit index, or before the first commit of the term
    the entry that opened it, since what earlier leaders acknowledged lies below that."""
    return max(state.commit_index, state.term_start)


def broadcast_heartbeat(state: State) -> None:
    state.heartbeat_elapsed = 0
    for peer in state.peers:
        send_heartbeat(state, peer)


def send_round(state: State) -> None:
    """A heartbeat to each follower for which nothing with the current stamp is on its way."""
    state.round_due = False
    for peer in state.peers:
        if state.progress[peer].sent < state.stamp:
            send_heartbeat(state, peer)


def quorum_stamp(state: State) -> int:
    """Messages sent at this stamp or later were answered by a quorum, in a joint configuration one of each list. The leader
    answers itself if it votes."""
    stamp = min(state.stamp, quorum.agreed([each.acked for each in state.voter_progress]))
    if state.outgoing_progress:
        return min(stamp, quorum.agreed([each.acked for each in state.outgoing_progress]))
    return stamp


def answered_lately(state: State, progress: Progress) -> bool:
    """Within an election timeout."""
    return progress.acked > 0 and (progress.acked >> STAMP_SHIFT) + state.settings.election_ticks_min >= state.clock


def check_quorum(state: State, ticks: int) -> bool:
    """A leader that no quorum answers steps down (thesis, section 6.2). False when it did."""
    settings = state.settings
    # A stall of this process is no silence of the followers, whose answers may be waiting in the inbox.
    stall = max(0, ticks - settings.heartbeat_ticks)
    state.quorum_floor = max(quorum_stamp(state) >> STAMP_SHIFT, state.quorum_floor) + stall
    if state.clock - state.quorum_floor < settings.election_ticks_min:
        return True
    become_follower(state, state.term, 0)
    return False
