"""The leader's side of membership changes (thesis, chapter 4): takes one at a time, and brings it to its end.

A joint configuration is left as soon as it is committed, also by a leader that did not enter it. A leader that is no
voter any more manages the group without counting itself until that is committed (section 4.2.2), then steps down.
"""

from __future__ import annotations

from cluster.raft import appends, read_index
from cluster.raft.configuration import Configuration, problem_with_change
from cluster.raft.messages import ConfigurationRefused, Entry, Message
from cluster.raft.state import NEVER, TIMEOUT_NOW, State, become_follower, send_as_leader, take_effect
from cluster.types import EntryKind


def propose(state: State, configuration: Configuration) -> int:
    reason = _problem(state, configuration)
    if reason:
        raise ConfigurationRefused(reason)
    return _append(state, configuration)


def _problem(state: State, configuration: Configuration) -> str:
    """Two leaders may each hold an uncommitted change, with majorities that do not meet, unless the later one commits an
    entry of its own term first (Ongaro's correction of the thesis, raft-dev 2015)."""
    if state.commit_index < state.term_start:
        return "nothing of this leader's term is committed yet"
    if state.configuration_index > state.commit_index:
        return f"the change at {state.configuration_index} is not committed yet"
    if state.transferring:
        return f"leadership is being handed to {state.transferring}"
    return problem_with_change(state.configuration, configuration)


def _append(state: State, configuration: Configuration) -> int:
    log = state.log
    index = log.last_index + 1
    entries = [Entry(index, state.term, EntryKind.CONFIG, configuration.encode())]
    log.append(entries)
    state.configurations.appended(entries)
    take_effect(state)
    state.idle_elapsed = 0
    state.replicate_due = bool(state.peers)
    read_index.confirm(state)  # fewer may have to answer now
    return index


def go_on(state: State) -> None:
    """`settle_index` is committed. Who was removed is told, and so knows to be quiet."""
    appends.tell_commit(state, state.departed)
    state.departed = []
    configuration = state.configuration
    if configuration.joint:
        if not state.transferring:  # the new leader does it
            _append(state, configuration.left())
    elif configuration.votes(state.replica):
        state.settle_index = NEVER
    else:
        _resign(state)


def _resign(state: State) -> None:
    """The others learn the commit as far as messages arrive, and the most advanced voter need not wait for a timeout."""
    appends.tell_commit(state, [(peer, state.progress[peer]) for peer in state.peers])
    successor = max(state.configuration.voters, key=lambda voter: state.progress[voter].match)
    send_as_leader(state, Message(TIMEOUT_NOW, state.replica, successor, state.term))
    become_follower(state, state.term, 0)
