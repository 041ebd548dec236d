"""The leader's side of replication (paper, section 5.3): appends inside each follower's window, and the commit.

Appends are made when the driver takes the Ready, so that everything proposed since the last one travels together.
"""

from __future__ import annotations

from cluster.raft import heartbeat, quorum, read_index, transfer
from cluster.raft.messages import Message
from cluster.raft.progress import Progress, ProgressState
from cluster.raft.state import APPEND, SNAPSHOT, STAMP_SHIFT, State, send_as_leader
from cluster.types import Role


def replicate(state: State) -> None:
    """Sends each follower what its window allows."""
    state.replicate_due = False
    last = state.log.last_index
    for peer in state.peers:
        progress = state.progress[peer]
        if progress.state is ProgressState.REPLICATE:
            while progress.next <= last and _window_open(state, progress):
                if not _send_append(state, peer, progress):
                    break
        elif progress.state is ProgressState.PROBE and not progress.paused and progress.match < last:
            progress.paused = True
            _send_append(state, peer, progress)


def _window_open(state: State, progress: Progress) -> bool:
    settings = state.settings
    return (
        len(progress.inflight) < settings.inflight_messages_max
        and progress.inflight_bytes < settings.inflight_bytes_max
    )


def _send_append(state: State, peer: int, progress: Progress) -> bool:
    """One append, or a snapshot when the log no longer reaches back far enough. False when no more may follow."""
    log = state.log
    settings = state.settings
    previous = progress.next - 1
    term = log.term_at(previous)
    if term is None:
        _send_snapshot(state, peer, progress)
        return False
    entries = []
    if progress.next <= log.last_index:
        entries = log.slice(progress.next, log.last_index + 1, settings.append_bytes_max, settings.append_entries_max)
    message = Message(
        APPEND,
        state.replica,
        peer,
        state.term,
        previous,
        term,
        state.commit_index,
        entries,
        hint_index=heartbeat.owed_index(state),
        context=state.stamp,
    )
    send_as_leader(state, message)
    progress.sent = progress.appended = state.stamp
    state.stamp_used = True
    if entries and progress.state is ProgressState.REPLICATE:
        size = 0
        for entry in entries:
            size += len(entry.payload)
        progress.sent_append(entries[-1].index, size)
    return True


def _send_snapshot(state: State, peer: int, progress: Progress) -> None:
    """Asks the driver to stream the state, if the follower answered lately."""
    if (progress.acked >> STAMP_SHIFT) + state.settings.election_ticks_min < state.clock or not progress.acked:
        progress.become_probe(progress.next)
        progress.paused = True
        progress.appended = state.stamp
        return
    index = state.applied_index
    term = state.log.term_at(index)
    assert term is not None, "the base never passes the applied index"
    progress.become_snapshot(index)
    send_as_leader(state, Message(SNAPSHOT, state.replica, peer, state.term, index, term))


def acknowledged(state: State, progress: Progress, stamp: int) -> None:
    """A follower of this term answered a message sent at `stamp`: that confirms reads and extends the lease."""
    assert stamp <= state.stamp, f"stamp {stamp} was never given out"
    if stamp > progress.acked:
        progress.acked = stamp
        if state.reads:
            read_index.confirm(state)


def on_append_reply(state: State, message: Message) -> None:
    if state.role is not Role.LEADER:
        return
    progress = state.progress[message.sender]
    acknowledged(state, progress, message.context)
    if message.reject:
        _on_refusal(state, progress, message)
        return
    index = message.index
    assert index <= state.log.last_index, f"{message!r} acknowledges what {state.log!r} never sent"
    news = progress.accepted(index)
    if progress.state is ProgressState.PROBE:
        if index == progress.match:
            progress.become_replicate()
    elif progress.state is ProgressState.SNAPSHOT and progress.match >= state.log.base_index:
        progress.become_replicate()
    if news:
        maybe_commit(state)
        if state.transferring == message.sender:
            transfer.hand_over(state)
    if progress.next <= state.log.last_index:
        state.replicate_due = True


def _on_refusal(state: State, progress: Progress, message: Message) -> None:
    """Goes back a whole term at a time (paper, end of section 5.3): nothing above the highest entry of ours whose term
    is not above the follower's can match."""
    go_on = message.hint_index
    if message.hint_term:
        go_on = state.log.last_at_or_below(message.hint_index, message.hint_term)
    if progress.refused(message.index, go_on):
        state.replicate_due = True


def on_heartbeat_reply(state: State, message: Message) -> None:
    if state.role is not Role.LEADER:
        return
    progress = state.progress[message.sender]
    acknowledged(state, progress, message.context)
    if progress.match >= state.log.last_index or message.context <= progress.appended:
        return
    # A heartbeat sent after the last append was answered before it: the append or its answer was lost.
    if progress.state is ProgressState.REPLICATE and progress.inflight:
        progress.become_probe()
    progress.paused = False
    if progress.state is not ProgressState.SNAPSHOT:
        state.replicate_due = True


def maybe_commit(state: State) -> None:
    """Counts replicas for entries of the own term only (paper, section 5.4.2, figure 8)."""
    index = quorum.agreed(each.match for each in state.progress.values())
    if index <= state.commit_index or index < state.term_start:
        return
    assert state.log.term_at(index) == state.term
    first = state.commit_index < state.term_start
    state.commit_index = index
    if first:
        read_index.term_committed(state)


def lost_in_flight(state: State, replica: int) -> None:
    """The connection to a follower broke: what was pipelined may be lost."""
    progress = state.progress[replica]
    if progress.state is ProgressState.REPLICATE:
        progress.become_probe()
    if progress.state is ProgressState.PROBE:
        progress.paused = progress.match >= state.log.last_index
        state.replicate_due = not progress.paused or state.replicate_due


def snapshot_finished(state: State, replica: int, index: int, ok: bool) -> None:
    """Whatever the driver reports, the follower's next answer decides: it is probed after its next heartbeat reply."""
    progress = state.progress[replica]
    if progress.state is not ProgressState.SNAPSHOT:
        return
    progress.become_probe(index + 1 if ok else 0)
    progress.paused = True
    progress.appended = state.stamp
