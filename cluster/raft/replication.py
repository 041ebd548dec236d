"""The leader's side of replication (paper, section 5.3): what the followers' answers say, and the commit."""

from __future__ import annotations

from cluster.raft import quorum, read_index, reconfigure, transfer
from cluster.raft.messages import Message
from cluster.raft.progress import Progress, ProgressState
from cluster.raft.state import State
from cluster.types import Role


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
    if progress.held and state.log.last_index - progress.match <= state.settings.append_entries_max:
        progress.held = 0  # it has caught up
    if news:
        maybe_commit(state)
        if state.role is not Role.LEADER:
            return  # that committed the configuration without it
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


def quorum_match(state: State) -> int:
    """The highest index that a quorum holds, in a joint configuration one of each list (paper, section 6)."""
    index = quorum.agreed([each.match for each in state.voter_progress])
    if state.outgoing_progress:
        return min(index, quorum.agreed([each.match for each in state.outgoing_progress]))
    return index


def maybe_commit(state: State) -> None:
    """Counts replicas for entries of the own term only (paper, section 5.4.2, figure 8)."""
    index = quorum_match(state)
    if index <= state.commit_index or index < state.term_start:
        return
    assert state.log.term_at(index) == state.term
    first = state.commit_index < state.term_start
    state.commit_index = index
    if first:
        read_index.term_committed(state)
    if index >= state.settle_index:
        reconfigure.go_on(state)


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
    progress = state.progress.get(replica)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if not ok:
        progress.held = 0
    progress.become_probe(index + 1 if ok else 0)
    progress.paused = True
    progress.appended = state.stamp
