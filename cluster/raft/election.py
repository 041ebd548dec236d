"""Elections: pre-vote (thesis, section 9.6), vote (paper, section 5.2 and 5.4.1), and the promise of a voter.

The promise: who heard a leader less than the minimum election timeout ago helps no one else to lead (thesis, section
4.2.3), nor itself. Leader leases rest on it (section 6.4.1). Only a vote asked for by the leader itself is exempt.
"""

from __future__ import annotations

from cluster.raft import quorum
from cluster.raft.messages import Message
from cluster.raft.state import (
    NEVER,
    PRE_VOTE,
    PRE_VOTE_REPLY,
    TIMEOUT_NOW,
    VOTE,
    VOTE_REPLY,
    State,
    become_candidate,
    become_follower,
    become_leader,
    become_pre_candidate,
    draw_timeout,
    send,
)
from cluster.types import Role


def promised(state: State, candidate: int) -> bool:
    """Whether `candidate` must not be helped yet. A leader that asks for votes has given its lease up."""
    if state.role is Role.LEADER:
        return True
    return state.heard_elapsed < state.settings.election_ticks_min and candidate != state.leader


def may_campaign(state: State) -> bool:
    """A voter, or one whose removal is not known to be committed: others may need its vote still, and cannot get it while
    their logs lack that very entry (thesis, section 4.2.2). It does not count itself then."""
    if state.configuration.votes(state.replica):
        return True
    before = state.configurations.before_last
    return before is not None and state.configuration_index > state.commit_index and before.votes(state.replica)


def campaign(state: State, *, force: bool) -> None:
    """Starts a pre-election, or with `force` an election, unless this replica leads, has promised not to or may not."""
    if state.role is Role.LEADER or promised(state, state.replica) or not may_campaign(state):
        return
    if force:
        _elect(state, transfer=False)
    else:
        _pre_elect(state)


def tick_election(state: State, ticks: int) -> None:
    # A stall of this process says nothing about the leader, whose heartbeats may be waiting in the inbox.
    ticks = min(ticks, state.settings.heartbeat_ticks)
    state.heard_elapsed = min(state.heard_elapsed + ticks, NEVER)
    state.election_elapsed += ticks
    if state.election_elapsed >= state.election_timeout:
        assert state.heard_elapsed >= state.settings.election_ticks_min
        if may_campaign(state):
            _pre_elect(state)
        else:
            become_follower(state, state.term, 0)


def leader_unreachable(state: State) -> None:
    """Stop waiting as soon as the promise allows it; never wait longer than before."""
    settings = state.settings
    promise = max(0, settings.election_ticks_min - state.heard_elapsed)
    wait = promise + state.random.randrange(1, settings.heartbeat_ticks + 1)
    state.election_timeout = min(state.election_timeout, state.election_elapsed + wait)


def _pre_elect(state: State) -> None:
    become_pre_candidate(state)
    _ask(state, PRE_VOTE, state.term + 1, transfer=False)


def _elect(state: State, *, transfer: bool) -> None:
    become_candidate(state)
    _ask(state, VOTE, state.term, transfer=transfer)


def _ask(state: State, kind: int, term: int, *, transfer: bool) -> None:
    log = state.log
    for peer in state.peers:
        if not state.configuration.votes(peer):
            continue
        send(state, Message(kind, state.replica, peer, term, log.last_index, log.last_term, flag=transfer))
    _count(state, state.replica, True)


def _count(state: State, voter: int, granted: bool) -> None:
    """The own vote counts at once: a real vote is durable before any request for another one leaves."""
    votes = state.votes
    votes.setdefault(voter, granted)
    majorities = [each for each in (state.configuration.voters, state.configuration.outgoing) if each]
    if all(quorum.won(votes, voters) for voters in majorities):
        if state.role is Role.PRE_CANDIDATE:
            _elect(state, transfer=False)
        else:
            become_leader(state)
    elif any(quorum.lost(votes, voters) for voters in majorities):
        become_follower(state, state.term, 0)


def up_to_date(state: State, message: Message) -> bool:
    """Whether the candidate's log ends no earlier than ours (paper, section 5.4.1)."""
    log = state.log
    return (message.log_term, message.index) >= (log.last_term, log.last_index)


def on_pre_vote(state: State, message: Message) -> None:
    granted = message.term > state.term and not promised(state, message.sender) and up_to_date(state, message)
    # A grant names the term it is for; a refusal the voter's own, so that the one who fell behind learns it.
    term = message.term if granted else state.term
    send(state, Message(PRE_VOTE_REPLY, state.replica, message.sender, term, reject=not granted))


def on_vote(state: State, message: Message) -> None:
    candidate = message.sender
    free = state.vote == candidate or (state.vote == 0 and state.leader == 0)
    granted = free and up_to_date(state, message)
    if granted:
        assert state.role is Role.FOLLOWER or state.role is Role.PRE_CANDIDATE, "a candidate voted for itself"
        state.vote = candidate
        draw_timeout(state)
    send(state, Message(VOTE_REPLY, state.replica, candidate, state.term, reject=not granted))


def on_pre_vote_reply(state: State, message: Message) -> None:
    wanted = state.term if message.reject else state.term + 1
    if state.role is Role.PRE_CANDIDATE and message.term == wanted:
        _count(state, message.sender, not message.reject)


def on_vote_reply(state: State, message: Message) -> None:
    if state.role is Role.CANDIDATE:
        _count(state, message.sender, not message.reject)


def on_timeout_now(state: State, message: Message) -> None:
    """The leader hands over (thesis, section 3.10): no pre-vote, and no promise stands in the way. A late copy may find
    one that was removed since."""
    assert message.kind == TIMEOUT_NOW and state.role is not Role.LEADER
    if not may_campaign(state):
        return
    state.heard_elapsed = NEVER
    _elect(state, transfer=True)
