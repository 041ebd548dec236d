"""Compaction and snapshots: Raft paper, section 7; thesis, chapter 5."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.raft.messages import MessageKind
from cluster.raft.progress import ProgressState
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, entries, of


def lagging(**settings: int) -> Cluster:
    """Replica 3 misses entries that the leader, replica 1, has compacted."""
    cluster = Cluster(3, **settings)
    leader = cluster.elect(1)
    cluster.isolate(3)
    for number in range(5):
        assert leader.propose(bytes([number]))
        cluster.settle()
    leader.compact(leader.core.applied_index)
    assert cluster[1].log.base_index == 6 and cluster[3].log.last_index == 1
    return cluster


def test_who_lags_behind_the_log_gets_the_state() -> None:
    """Paper 7: InstallSnapshot when the next entry is discarded already; replication goes on after it."""
    cluster = lagging()
    cluster.heal()
    cluster.run(5)
    assert cluster[3].log.base_index == 6 and cluster.replicas[3].durable.base.index == 6
    assert cluster[1].progress[3].state is ProgressState.REPLICATE
    assert cluster.replicas[1].propose(b"after")
    cluster.run(5)
    assert cluster.replicas[3].machine.chain == cluster.replicas[1].machine.chain


def test_one_snapshot_at_a_time_and_none_to_the_dead() -> None:
    """Streaming a state costs: it starts when the follower answers, and nothing else is sent until it ended."""
    solo = Solo(*[1] * 6, commit=6, applied=6)
    solo.core.compact(4)
    solo.become_leader()
    solo.step(MessageKind.APPEND_REPLY, 2, index=7, context=solo.core.progress[2].sent)
    core = solo.core
    core.applied(7)
    core.compact(7)
    for _ in range(9):
        core.tick()
        assert not of(solo.sync(), MessageKind.SNAPSHOT), "replica 3 never answered"
        solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=core.progress[2].sent)
    sent = solo.step(MessageKind.HEARTBEAT_REPLY, 3, context=core.progress[3].sent)
    (snapshot,) = of(sent, MessageKind.SNAPSHOT, 3)
    assert (snapshot.index, snapshot.log_term) == (7, 2)
    core.propose([entry()])
    for _ in range(6):
        core.tick()
        assert not of(solo.sync(), MessageKind.APPEND, 3) and not of(solo.sync(), MessageKind.SNAPSHOT)
        for peer in (2, 3):
            solo.step(MessageKind.HEARTBEAT_REPLY, peer, context=core.progress[peer].sent)


def test_a_failed_snapshot_is_tried_again_later() -> None:
    """At a later heartbeat: a full disk over there must not make this a loop."""
    cluster = lagging()
    sent: list[int] = []

    def fail(message: object) -> bool:
        failed = getattr(message, "kind", 0) == MessageKind.SNAPSHOT
        if failed:
            sent.append(cluster.rounds)
        return failed

    cluster.heal()
    cluster.lose = fail
    cluster.run(12)
    assert 2 <= len(sent) == len(set(sent)) <= 7, sent
    cluster.heal()
    cluster.run(5)
    assert cluster[3].commit_index == 6


def test_accepting_a_snapshot() -> None:
    """Paper 7: log and state are replaced; the answer leaves after the Ready that installs it."""
    solo = Solo(1, 1, commit=1, applied=1)
    message = solo.message(MessageKind.SNAPSHOT, term=3, index=9, log_term=2)
    assert solo.core.wants_snapshot(message) and solo.core.term == 1
    solo.core.step(message)
    ready = solo.ready()
    assert ready.snapshot is not None and (ready.snapshot.index, ready.snapshot.term) == (9, 2)
    assert (
        ready.must_sync and ready.hard_state is not None and (ready.hard_state.term, ready.hard_state.commit) == (3, 9)
    )
    assert not ready.messages_now and [(m.kind, m.index) for m in ready.messages_after] == [
        (MessageKind.APPEND_REPLY, 9)
    ]
    log = solo.core.log
    assert (log.base_index, log.base_term, log.last_index, log.bytes) == (9, 2, 9, 0)
    assert solo.core.commit_index == solo.core.applied_index == 9
    solo.core.applied(1)
    assert solo.core.applied_index == 9, "a report from before it changes nothing"


@pytest.mark.parametrize(
    ("term", "index", "log_term", "wanted"),
    [
        (1, 9, 1, False),
        (2, 3, 1, False),
        (2, 2, 1, False),
        (2, 4, 2, False),
        (2, 4, 1, True),
        (2, 9, 2, True),
        (7, 9, 2, True),
    ],
)
def test_which_snapshots_are_wanted(term: int, index: int, log_term: int, wanted: bool) -> None:
    """Not a stale leader's, nothing below the commit, nothing the log holds already (paper 7: a prefix of the log)."""
    solo = Solo(1, 1, 1, 2, 2, commit=3)
    message = solo.message(MessageKind.SNAPSHOT, term=term, index=index, log_term=log_term)
    assert solo.core.wants_snapshot(message) is wanted
    solo.core.step(message)
    assert (solo.ready().snapshot is not None) is wanted
    assert (solo.core.log.last_index == index) is wanted


def test_an_old_snapshot_does_not_come_back() -> None:
    """A late copy, below the base: its entries are unknown here, but they are committed and applied."""
    solo = Solo(1, 1, 1, 1, commit=4, applied=4)
    solo.core.compact(3)
    message = solo.message(MessageKind.SNAPSHOT, index=2, log_term=1)
    assert not solo.core.wants_snapshot(message)
    (reply,) = solo.step(MessageKind.SNAPSHOT, index=2, log_term=1)
    assert reply.index == 4 and solo.core.log.base_index == 3 and solo.core.applied_index == 4


def test_a_snapshot_of_what_the_log_holds_only_commits() -> None:
    """Paper 7: what follows its last entry is kept."""
    solo = Solo(1, 1, 1, 1, commit=1)
    (reply,) = solo.step(MessageKind.SNAPSHOT, index=3, log_term=1)
    assert (reply.kind, reply.index) == (MessageKind.APPEND_REPLY, 3)
    assert solo.core.commit_index == 3 and solo.terms() == [1, 1, 1, 1]


def test_a_sync_under_way_does_not_count_for_the_log_after_a_snapshot() -> None:
    """The entries being written are gone; the log's marks stand at the snapshot."""
    solo = Solo(1)
    solo.core.step(solo.message(MessageKind.APPEND, index=1, log_term=1, entries=entries(1, 1, first=2)))
    solo.ready()
    solo.core.step(solo.message(MessageKind.SNAPSHOT, term=2, index=2, log_term=2))
    solo.core.step(solo.message(MessageKind.APPEND, term=2, index=2, log_term=2, entries=entries(2, first=3)))
    solo.core.persisted(3, 1)
    assert solo.core.log.persisted_index == 2
    assert [e.index for e in solo.ready().entries] == [3]


def test_compaction_keeps_what_the_limits_allow() -> None:
    """Applied entries stay for followers that lag, bounded in number and bytes; what is not applied always stays."""
    solo = Solo(*[1] * 20, commit=12, log_entries_kept_max=8)
    core = solo.core
    assert core.compaction_point() == 0
    core.applying_index = 12
    core.applied(8)
    assert core.compaction_point() == 0
    core.applied(12)
    assert core.compaction_point() == 6, "a quarter of the limit is free again"
    core.compact(6)
    core.check_invariants()
    assert core.log.base_index == 6 and core.compaction_point() == 6 and core.log.last_index == 20
    core.settings.log_bytes_kept_max = 4 * 36
    assert core.compaction_point() == 9
    with pytest.raises(AssertionError):
        core.compact(13)


def test_a_leader_compacts_what_nobody_needs() -> None:
    solo = Solo(*[1] * 9, commit=9, applied=9, log_entries_kept_max=4)
    solo.become_leader()
    solo.step(MessageKind.APPEND_REPLY, 2, index=10, context=solo.core.progress[2].sent)
    assert solo.core.applied_index == 10 and solo.core.compaction_point() == 7


def led(**settings: int) -> tuple[Solo, Callable[[int], int]]:
    """A leader whose follower 3 takes a snapshot at index 7; the function appends, commits and applies so many entries, and
    compacts."""
    solo = Solo(*[1] * 6, commit=6, applied=6, log_entries_kept_max=4, append_entries_max=2, **settings)
    solo.become_leader()
    solo.step(MessageKind.APPEND_REPLY, 2, index=7, context=solo.core.progress[2].sent)
    core = solo.core
    core.compact(7)
    solo.step(MessageKind.APPEND_REPLY, 3, index=6, reject=True, context=core.progress[3].sent)

    def load(count: int) -> int:
        for _ in range(count):
            core.propose([entry(b"x" * 100)])
            solo.sync()
            solo.step(MessageKind.APPEND_REPLY, 2, index=core.log.last_index, context=core.progress[2].sent)
        core.compact(core.compaction_point())
        return core.log.base_index

    return solo, load


def test_what_follows_a_snapshot_is_kept_until_its_follower_has_caught_up() -> None:
    """Else a leader under load drops it while the snapshot is on its way, and another is needed, again and again."""
    solo, load = led()
    core = solo.core
    assert core.progress[3].state is ProgressState.SNAPSHOT
    assert load(20) == 7
    core.snapshot_finished(3, 7, True)
    assert load(20) == 7
    appends = solo.step(MessageKind.APPEND_REPLY, 3, index=7, context=core.progress[3].sent)
    assert of(appends, MessageKind.APPEND, 3) and not of(appends, MessageKind.SNAPSHOT)
    while core.progress[3].match < core.log.last_index - 2:
        solo.step(MessageKind.APPEND_REPLY, 3, index=core.progress[3].match + 2, context=core.progress[3].sent)
        assert load(1) <= core.progress[3].match
    assert load(4) > core.log.last_index - 6


def test_what_is_kept_for_a_snapshot_is_bounded() -> None:
    solo, load = led(log_bytes_held_max=20 * 136)
    assert load(15) == 7
    assert load(10) > 20
    assert solo.core.kept_bytes <= 4 * 136


@pytest.mark.parametrize("ok", [False, True])
def test_nothing_is_kept_for_whom_a_snapshot_did_not_reach_or_who_went_silent_after_it(ok: bool) -> None:
    solo, load = led()
    solo.core.snapshot_finished(3, 7, ok)
    if ok:
        for _ in range(solo.core.settings.election_ticks_min + 1):
            solo.core.tick()
            solo.sync()
            solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=solo.core.progress[2].sent)
    assert load(20) > 20


def test_a_restart_from_a_compacted_log() -> None:
    """The base stands where the snapshot was; what is committed and not applied is handed out again."""
    cluster = lagging()
    cluster.replicas[1].crash()
    cluster.replicas[1].start()
    core = cluster[1]
    assert (core.log.base_index, core.applied_index, core.commit_index) == (6, 6, 6)
    assert core.snapshot_point().index == 6 and core.snapshot_point().term == 1
