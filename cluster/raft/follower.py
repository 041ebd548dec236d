"""The follower's side of replication: appends (paper, section 5.3), heartbeats, snapshots (section 7)."""

from __future__ import annotations

from cluster.raft.configurations import CONFIG, Configurations
from cluster.raft.messages import Entry, Message, SnapshotPoint
from cluster.raft.state import (
    APPEND_REPLY,
    HEARTBEAT_REPLY,
    State,
    become_follower,
    draw_timeout,
    send,
    take_effect,
)
from cluster.types import Role


def heard(state: State, message: Message) -> None:
    """A message of the term's only leader (paper, section 5.2): follow it, and promise it a minimum timeout."""
    sender = message.sender
    assert state.role is not Role.LEADER, f"two leaders in term {state.term}: {state.replica} and {sender}"
    assert state.leader == 0 or state.leader == sender, f"two leaders in term {state.term}: {state.leader} and {sender}"
    if state.role is not Role.FOLLOWER:
        become_follower(state, state.term, sender)
    else:
        state.leader = sender
        draw_timeout(state)
    state.heard_elapsed = 0


def on_append(state: State, message: Message) -> None:
    heard(state, message)
    log = state.log
    previous = message.index
    if previous < state.commit_index:
        # Out of date: what is committed here matches anyway, and may be compacted.
        _accept(state, message, state.commit_index)
        return
    if log.term_at(previous) != message.log_term:
        _refuse(state, message)
        return
    entries = message.entries
    last_new = previous + len(entries)
    if previous == log.last_index:
        log.append(entries)
        for entry in entries:
            if entry.kind == CONFIG:
                state.configurations.appended(entries)
                take_effect(state)
                break
    else:
        _merge(state, message)
    commit = min(message.commit, last_new)
    if commit > state.commit_index:
        state.commit_index = commit
    _accept(state, message, last_new)


def _merge(state: State, message: Message) -> None:
    """Only a conflict removes entries: a late or shorter append says nothing about what follows it."""
    log = state.log
    entries = message.entries
    for position, entry in enumerate(entries):
        if log.term_at(entry.index) != entry.term:
            assert entry.index > state.commit_index, f"{message!r} would replace committed entries of {log!r}"
            replace(state, entries[position:])
            return


def replace(state: State, entries: list[Entry]) -> None:
    """Whatever stands from the first entry's index on goes, a configuration too (thesis, section 4.1)."""
    state.log.replace(entries)
    went = state.configurations.replaced(entries[0].index)
    if state.configurations.appended(entries) or went:
        take_effect(state)


def _accept(state: State, message: Message, index: int) -> None:
    send(
        state,
        Message(APPEND_REPLY, state.replica, message.sender, state.term, index, context=message.context),
    )


def _refuse(state: State, message: Message) -> None:
    """With the highest index of ours where the logs may meet, and its term."""
    log = state.log
    hint = log.last_at_or_below(min(message.index, log.last_index), message.log_term)
    reply = Message(
        APPEND_REPLY,
        state.replica,
        message.sender,
        state.term,
        message.index,
        reject=True,
        hint_index=hint,
        hint_term=log.term_at(hint) or 0,
        context=message.context,
    )
    send(state, reply)


def on_heartbeat(state: State, message: Message) -> None:
    heard(state, message)
    commit = message.commit
    last = state.log.last_index
    assert commit <= last, f"{message!r} commits what {state.log!r} has lost"
    if commit > state.commit_index:
        state.commit_index = commit
    if message.flag and commit == state.commit_index == last:
        state.silent = True  # no answer, which would wake the leader
        return
    send(state, Message(HEARTBEAT_REPLY, state.replica, message.sender, state.term, context=message.context))


def wants_snapshot(state: State, message: Message) -> bool:
    """Whether the snapshot would be installed: it is of a current leader and holds what the log does not."""
    if message.receiver != state.replica or message.sender == state.replica or message.term < state.term:
        return False
    return message.index > state.commit_index and state.log.term_at(message.index) != message.log_term


def on_snapshot(state: State, message: Message) -> None:
    """Takes the place of log and state, or only moves the commit index when the log holds its last entry (paper,
    section 7: what follows that entry is kept)."""
    heard(state, message)
    index = message.index
    if wants_snapshot(state, message):
        state.log.reset(index, message.log_term)
        state.commit_index = state.applied_index = state.applying_index = index
        state.kept_bytes = 0
        assert message.configuration is not None, f"{message!r} does not say who votes"
        state.configurations = Configurations(message.configuration)
        take_effect(state)
        state.snapshot = SnapshotPoint(index, message.log_term, message.configuration)
    elif index > state.commit_index:
        state.commit_index = index
    _accept(state, message, state.commit_index)
