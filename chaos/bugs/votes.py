"""Bugs of the votes: who may lead, and what a voter remembers."""

from __future__ import annotations

from typing import Any

from chaos.bugs.patch import Bug, Patch, handlers
from cluster.raft import core, election, heartbeat, output, read_index
from cluster.raft.core import RaftCore
from cluster.raft.messages import Message, ReadState
from cluster.raft.state import NEVER, VOTE_REPLY, State, draw_timeout, send
from cluster.types import Role

HAND_HARD_STATE = output._hand_hard_state
INIT = RaftCore.__init__


def _vote_twice(state: State, message: Message) -> None:
    granted = state.leader == 0 and election.up_to_date(state, message) and state.role is not Role.LEADER
    if granted and state.role is not Role.CANDIDATE:
        draw_timeout(state)
    send(state, Message(VOTE_REPLY, state.replica, message.sender, state.term, reject=not granted))


def _write_no_vote(state: State, result: Any) -> None:
    HAND_HARD_STATE(state, result)
    if result.hard_state is not None:
        result.hard_state.vote = 0


def _forget_promise(state: RaftCore, **given: Any) -> None:
    INIT(state, **given)
    state.heard_elapsed = NEVER


def _read_at_once(state: State, context: int) -> None:
    state.read_states.append(ReadState(context, state.commit_index))


VOTE_BUGS = (
    Bug(
        "votes-for-an-older-log",
        "grants votes without comparing logs",
        (Patch(election, "up_to_date", lambda *_: True),),
    ),
    Bug(
        "votes-twice",
        "does not remember whom it voted for",
        (Patch(core, "HANDLERS", handlers(on_vote=_vote_twice)),),
        taste="fresh leaders",
    ),
    Bug(
        "forgets-its-vote",
        "the term is written to disk, and the vote is not",
        (Patch(output, "_hand_hard_state", _write_no_vote),),
    ),
    Bug(
        "breaks-its-promise",
        "a voter helps another candidate while its leader's lease may last",
        (Patch(election, "promised", lambda *_: False),),
        taste="rivals",
    ),
    Bug(
        "forgets-its-promise",
        "after a restart a voter helps a candidate while its leader's lease may last",
        (Patch(RaftCore, "__init__", _forget_promise),),
        taste="rivals",
    ),
    Bug(
        "never-steps-down",
        "a leader without a quorum goes on and answers",
        (Patch(heartbeat, "check_quorum", lambda *_: True), Patch(read_index, "queue", _read_at_once)),
    ),
)
