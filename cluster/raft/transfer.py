"""Handing leadership over (thesis, section 3.10): stop proposing, bring the target up to date, tell it to campaign."""

from __future__ import annotations

from cluster.raft import reconfigure
from cluster.raft.messages import Message
from cluster.raft.state import TIMEOUT_NOW, State, send_as_leader


def begin(state: State, target: int) -> None:
    """To this replica itself: nothing happens. A second call moves a transfer to another target."""
    assert target in state.configuration.voters, f"{target} is no voter"
    if target == state.replica or target == state.transferring:
        return
    state.transferring = target
    state.transfer_elapsed = 0
    hand_over(state)


def hand_over(state: State) -> None:
    """Once the target holds the whole log."""
    target = state.transferring
    if state.progress[target].match == state.log.last_index:
        state.transfer_sent = True
        send_as_leader(state, Message(TIMEOUT_NOW, state.replica, target, state.term))
    else:
        state.replicate_due = True


def tick(state: State, ticks: int) -> None:
    """Gives up after an election timeout, so that proposals are taken again, and a joint configuration is left."""
    if state.transferring:
        state.transfer_elapsed += ticks
        if state.transfer_elapsed >= state.settings.election_ticks_min:
            state.transferring = 0
            if state.commit_index >= state.settle_index:
                reconfigure.go_on(state)
