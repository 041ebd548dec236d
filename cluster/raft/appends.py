"""What a leader sends its followers (paper, section 5.3): appends inside each one's window, or a snapshot (section 7).

Appends are made when the driver takes the Ready, so that everything proposed since the last one travels together.
"""

from __future__ import annotations

from collections.abc import Iterable

from cluster.raft import heartbeat
from cluster.raft.messages import Message
from cluster.raft.progress import Progress, ProgressState
from cluster.raft.state import APPEND, SNAPSHOT, State, send_as_leader


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


def tell_commit(state: State, followers: Iterable[tuple[int, Progress]]) -> None:
    """With what they miss, once and at once, as this leader gets to send them nothing more. Not to those who need a probe or
    a snapshot."""
    for peer, progress in followers:
        if progress.state is ProgressState.REPLICATE and progress.next > state.log.base_index:
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
    if not heartbeat.answered_lately(state, progress):
        progress.become_probe(progress.next)
        progress.paused = True
        progress.appended = state.stamp
        return
    index = state.applied_index
    term = state.log.term_at(index)
    assert term is not None, "the base never passes the applied index"
    progress.become_snapshot(index)
    configuration = state.configurations.applied
    send_as_leader(state, Message(SNAPSHOT, state.replica, peer, state.term, index, term, configuration=configuration))
