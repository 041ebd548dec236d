"""What leaves the core: the Ready, and what the driver reports back of it."""

from __future__ import annotations

from cluster.raft import appends, heartbeat, replication
from cluster.raft.messages import HardState, Ready
from cluster.raft.progress import ProgressState
from cluster.raft.state import State
from cluster.types import Role


def has_ready(state: State) -> bool:
    log = state.log
    return (
        bool(state.messages_after)
        or bool(state.messages_now)
        or log.handed_index < log.last_index
        or state.applying_index < min(state.commit_index, log.persisted_index)
        or state.replicate_due
        or state.handed_term != state.term
        or state.handed_vote != state.vote
        or bool(state.read_states)
        or state.snapshot is not None
        or state.round_due
    )


def ready(state: State) -> Ready:
    """Takes everything out. What is handed to the driver counts as durable only after `persisted`."""
    if state.role is Role.LEADER:
        if state.replicate_due:
            appends.replicate(state)
        if state.round_due:
            heartbeat.send_round(state)
    result = Ready()
    log = state.log
    if log.handed_index < log.last_index:
        result.entries = log.slice(log.handed_index + 1, log.last_index + 1, 1 << 62, 1 << 62)
        log.handed_index = log.last_index
        result.must_sync = True
    result.snapshot, state.snapshot = state.snapshot, None
    if result.snapshot is not None:
        result.must_sync = True
    _hand_hard_state(state, result)
    result.messages_now, state.messages_now = state.messages_now, []
    result.messages_after, state.messages_after = state.messages_after, []
    result.read_states, state.read_states = state.read_states, []
    if state.stamp_used:
        # What leaves with this Ready left before any read that arrives from here on.
        state.stamp += 1
        state.stamp_used = False
    _hand_committed(state, result)
    return result


def _hand_hard_state(state: State, result: Ready) -> None:
    """A commit index alone is not worth a sync: it goes along with what is, and never ahead of the durable log."""
    changed = state.handed_term != state.term or state.handed_vote != state.vote
    commit = min(state.commit_index, state.log.persisted_index)
    if changed or (result.must_sync and commit != state.handed_commit):
        result.hard_state = HardState(state.term, state.vote, commit)
        result.must_sync = True
        state.handed_term, state.handed_vote, state.handed_commit = state.term, state.vote, commit


def _hand_committed(state: State, result: Ready) -> None:
    """Never an entry that is not fsynced here; bounded, so that applying can be sliced."""
    log = state.log
    until = min(state.commit_index, log.persisted_index)
    if state.applying_index < until:
        settings = state.settings
        result.committed = log.slice(
            state.applying_index + 1, until + 1, 2 * settings.append_bytes_max, 2 * settings.append_entries_max
        )
        state.applying_index = result.committed[-1].index


def persisted(state: State, index: int, term: int) -> None:
    """A suffix replaced since it was handed out does not count: `handed_index` went back with it."""
    log = state.log
    index = min(index, log.handed_index)
    state.durable_term = state.handed_term
    if index <= log.persisted_index:
        return
    log.persisted_index = index
    if state.role is Role.LEADER:
        own = state.progress.get(state.replica)
        if own is not None and own.accepted(index):
            replication.maybe_commit(state)


def applied(state: State, index: int) -> None:
    """Below the applied index: a snapshot came in between."""
    if index <= state.applied_index:
        return
    assert index <= state.applying_index, f"applied {index}, but only {state.applying_index} was handed out"
    state.kept_bytes += state.log.size_of(state.applied_index + 1, index + 1)
    state.applied_index = index
    if len(state.configurations.stack) > 1:
        state.configurations.forget(index)


def compact(state: State, index: int) -> None:
    assert index <= state.applied_index, f"compacting to {index} beyond the applied {state.applied_index}"
    log = state.log
    if index > log.base_index:
        state.kept_bytes -= log.size_of(log.base_index + 1, index + 1)
        log.compact_to(index)


def compaction_point(state: State) -> int:
    """Once a limit is passed, so far that a quarter of it is free again: shortening the log costs its length. But what
    a follower will need after its snapshot stays, within a limit of its own, or under load it would need another one."""
    log = state.log
    settings = state.settings
    count = state.applied_index - log.base_index
    size = state.kept_bytes
    if count <= settings.log_entries_kept_max and size <= settings.log_bytes_kept_max:
        return log.base_index
    index, until = log.base_index, _held_from(state)
    count_max = settings.log_entries_kept_max * 3 // 4
    bytes_max = settings.log_bytes_kept_max * 3 // 4
    while index < until and (count > count_max or size > bytes_max):
        index += 1
        count -= 1
        size -= log.size_of(index, index + 1)
    return index


def _held_from(state: State) -> int:
    """What follows this index is kept for followers that catch up by a snapshot; the applied index where there is none."""
    index = state.applied_index
    if state.role is not Role.LEADER or state.kept_bytes > state.settings.log_bytes_held_max:
        return index
    for progress in state.progress.values():
        waits = progress.state is ProgressState.SNAPSHOT or heartbeat.answered_lately(state, progress)
        if waits and progress.held and state.log.base_index <= progress.held < index:
            index = progress.held
    return index
