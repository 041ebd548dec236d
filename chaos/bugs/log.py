"""Bugs of the replicated log: what is appended, acknowledged and committed."""

from __future__ import annotations

from typing import Any

from chaos.bugs.patch import Bug, Patch, handlers
from cluster.raft import core, follower, output, read_index, reconfigure, replication
from cluster.raft.messages import Message
from cluster.raft.state import APPEND_REPLY, HEARTBEAT_REPLY, State, send

READY = output.ready
ON_APPEND = follower.on_append
ACCEPT = follower._accept


def _everything_now(state: State) -> Any:
    ready = READY(state)
    ready.messages_now += ready.messages_after
    ready.messages_after = []
    return ready


def _committed(state: State, index: int) -> None:
    """As `replication.maybe_commit` goes on."""
    first = state.commit_index < state.term_start <= index
    state.commit_index = index
    if first:
        read_index.term_committed(state)
    if index >= max(state.term_start, state.settle_index):
        reconfigure.go_on(state)


def _commit_any_term(state: State) -> None:
    index = replication.quorum_match(state)
    if index > state.commit_index:
        _committed(state, index)


def _commit_alone(state: State) -> None:
    """One too few: half of the voters are taken for a majority."""
    matches = sorted((each.match for each in state.voter_progress), reverse=True)
    index = matches[(len(matches) - 1) // 2 - (len(matches) > 2)]
    if index > state.commit_index and index >= state.term_start:
        _committed(state, index)


def _always_merge(state: State, message: Message) -> None:
    entries = [each for each in message.entries if each.index > state.commit_index]
    if entries:
        follower.replace(state, entries)


def _match_without_term(state: State, message: Message) -> None:
    log = state.log
    known = log.term_at(message.index)
    if known is not None:
        message.log_term = known
    ON_APPEND(state, message)


def _commit_own_tail(state: State, message: Message) -> None:
    ON_APPEND(state, message)
    state.commit_index = max(state.commit_index, min(message.commit, state.log.last_index))


def _acknowledge_own_tail(state: State, message: Message, index: int) -> None:
    ACCEPT(state, message, max(index, state.log.last_index))


def _refuse_below_commit(state: State, message: Message) -> None:
    """Asks to go on from below what is committed here, which alone is right and only slower. As it is, the leader's first append
    that matches begins where the logs part, so that no tail ever outlives it."""
    log = state.log
    hint = max(log.base_index, state.commit_index - 1)
    reply = Message(APPEND_REPLY, state.replica, message.sender, state.term, message.index, context=message.context)
    reply.reject, reply.hint_index, reply.hint_term = True, hint, log.term_at(hint) or 0
    send(state, reply)


def _heartbeat_commits_all(state: State, message: Message) -> None:
    follower.heard(state, message)
    state.commit_index = max(state.commit_index, state.log.last_index)
    send(state, Message(HEARTBEAT_REPLY, state.replica, message.sender, state.term, context=message.context))


def _apply_unsynced(state: State, result: Any) -> None:
    """Hands out what is committed, whether or not it is on disk here."""
    until = state.commit_index
    if state.applying_index < until:
        result.committed = state.log.slice(state.applying_index + 1, until + 1, 1 << 62, 1 << 62)
        state.applying_index = until


LOG_BUGS = (
    Bug(
        "said-before-synced",
        "votes and acknowledgements leave before their fsync",
        (Patch(output, "ready", _everything_now),),
    ),
    Bug(
        "commits-an-earlier-term",
        "counts replicas for entries of earlier terms (paper, figure 8)",
        (Patch(replication, "maybe_commit", _commit_any_term),),
        taste="fresh leaders",
    ),
    Bug("commits-without-majority", "a quorum is one too small", (Patch(replication, "maybe_commit", _commit_alone),)),
    Bug(
        "truncates-without-conflict",
        "a late append cuts off what came after it",
        (Patch(follower, "_merge", _always_merge),),
        taste="bad lines",
    ),
    Bug(
        "appends-anywhere",
        "an append is taken without comparing the entry before it",
        (Patch(core, "HANDLERS", handlers(on_append=_match_without_term)),),
        taste="old leaders",
    ),
    Bug(
        "commits-its-own-tail",
        "a follower commits up to the leader's commit index, beyond what it knows to match",
        (Patch(core, "HANDLERS", handlers(on_append=_commit_own_tail)),),
        taste="old leaders",
    ),
    Bug(
        "acknowledges-its-own-tail",
        "a follower acknowledges its whole log, not what was found to match",
        (Patch(follower, "_accept", _acknowledge_own_tail), Patch(follower, "_refuse", _refuse_below_commit)),
        taste="bad lines",
    ),
    Bug(
        "heartbeat-commits-all",
        "a follower commits its own tail on a heartbeat",
        (Patch(core, "HANDLERS", handlers(on_heartbeat=_heartbeat_commits_all)),),
    ),
    Bug(
        "applies-before-synced",
        "a committed entry is applied before it is on the own disk",
        (Patch(output, "_hand_committed", _apply_unsynced),),
    ),
)
