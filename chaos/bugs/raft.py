"""Bugs of the log, the votes and the reads."""

from __future__ import annotations

from typing import Any

from chaos.bugs.patch import Bug, Patch
from cluster.raft import core, election, follower, heartbeat, output, read_index, reconfigure, replication
from cluster.raft.messages import Message, ReadState
from cluster.raft.state import HEARTBEAT_REPLY, VOTE_REPLY, State, draw_timeout, send
from cluster.types import Role


def _everything_now(state: State) -> Any:
    ready = ORIGINAL_READY(state)
    ready.messages_now += ready.messages_after
    ready.messages_after = []
    return ready


ORIGINAL_READY = output.ready


def _commit_any_term(state: State) -> None:
    index = replication.quorum_match(state)
    if index <= state.commit_index:
        return
    first = state.commit_index < state.term_start <= index
    state.commit_index = index
    if first:
        read_index.term_committed(state)
    if index >= state.settle_index:
        reconfigure.go_on(state)


def _vote_for_anyone(state: State, message: Message) -> None:
    free = state.vote in (0, message.sender) and state.leader == 0
    if free:
        state.vote = message.sender
        draw_timeout(state)
    send(state, Message(VOTE_REPLY, state.replica, message.sender, state.term, reject=not free))


def _vote_twice(state: State, message: Message) -> None:
    granted = state.leader == 0 and election.up_to_date(state, message) and state.role is not Role.LEADER
    if granted and state.role is not Role.CANDIDATE:
        draw_timeout(state)
    send(state, Message(VOTE_REPLY, state.replica, message.sender, state.term, reject=not granted))


def _read_at_once(state: State, context: int) -> None:
    state.read_states.append(ReadState(context, state.commit_index))


def _read_before_first_commit(state: State, context: int) -> None:
    read_index._start(state, context)


def _lease_for_ever(state: State) -> int | None:
    return state.commit_index if state.role is Role.LEADER and state.commit_index >= state.term_start else None


def _never_promised(state: State, candidate: int) -> bool:
    return False


def _always_merge(state: State, message: Message) -> None:
    """Takes a late or short append for the end of the log."""
    entries = [each for each in message.entries if each.index > state.commit_index]
    if entries:
        follower.replace(state, entries)


def _heartbeat_commits_all(state: State, message: Message) -> None:
    """Believes that the leader's commit index holds for whatever lies here."""
    follower.heard(state, message)
    state.commit_index = max(state.commit_index, state.log.last_index)
    send(state, Message(HEARTBEAT_REPLY, state.replica, message.sender, state.term, context=message.context))


def _always_quorum(state: State, ticks: int) -> bool:
    return True


def _match_without_term(state: State, message: Message) -> None:
    """Takes an append wherever its place is, without looking at what precedes it."""
    follower.heard(state, message)
    log = state.log
    if message.index > log.last_index:
        follower._refuse(state, message)
        return
    if message.index < state.commit_index:
        follower._accept(state, message, state.commit_index)
        return
    follower._merge(state, message)
    last_new = message.index + len(message.entries)
    state.commit_index = max(state.commit_index, min(message.commit, last_new))
    follower._accept(state, message, last_new)


def _handlers(**changed: Any) -> dict[int, Any]:
    by_name = {function.__name__: kind for kind, function in core.HANDLERS.items()}
    return core.HANDLERS | {by_name[name]: function for name, function in changed.items()}


RAFT_BUGS = (
    Bug(
        "said-before-synced",
        "votes and acknowledgements leave before their fsync",
        (Patch(output, "ready", _everything_now),),
    ),
    Bug(
        "commits-an-earlier-term",
        "counts replicas for entries of earlier terms (paper, figure 8)",
        (Patch(replication, "maybe_commit", _commit_any_term),),
    ),
    Bug(
        "votes-for-an-older-log",
        "grants votes without comparing logs",
        (Patch(core, "HANDLERS", _handlers(on_vote=_vote_for_anyone)), Patch(election, "up_to_date", lambda *_: True)),
    ),
    Bug(
        "votes-twice",
        "does not remember whom it voted for",
        (Patch(core, "HANDLERS", _handlers(on_vote=_vote_twice)),),
    ),
    Bug(
        "reads-without-asking",
        "a leader answers reads from its own commit index",
        (Patch(read_index, "queue", _read_at_once),),
    ),
    Bug(
        "reads-before-the-first-commit",
        "a new leader reads before anything of its term is committed",
        (Patch(read_index, "queue", _read_before_first_commit),),
    ),
    Bug("lease-for-ever", "the leader's lease never ends", (Patch(read_index, "lease_read_index", _lease_for_ever),)),
    Bug(
        "breaks-its-promise",
        "a voter helps another candidate while it owes its leader silence",
        (Patch(election, "promised", _never_promised),),
    ),
    Bug(
        "truncates-without-conflict",
        "a late append cuts off what came after it",
        (Patch(follower, "_merge", _always_merge),),
    ),
    Bug(
        "heartbeat-commits-all",
        "a follower commits its own tail on a heartbeat",
        (Patch(core, "HANDLERS", _handlers(on_heartbeat=_heartbeat_commits_all)),),
    ),
    Bug(
        "appends-anywhere",
        "an append is taken without comparing the entry before it",
        (Patch(core, "HANDLERS", _handlers(on_append=_match_without_term)),),
    ),
    Bug(
        "never-steps-down",
        "a leader without a quorum goes on",
        (Patch(heartbeat, "check_quorum", _always_quorum), Patch(read_index, "queue", _read_at_once)),
    ),
)
