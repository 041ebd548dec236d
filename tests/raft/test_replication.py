"""Log replication: Raft paper, sections 5.3, 5.4.2 and 5.5; thesis, section 10.2.1 for what may run before the sync."""

from __future__ import annotations

import pytest

from cluster.raft.messages import MessageKind, NotLeader
from cluster.raft.progress import ProgressState
from cluster.types import Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, entries, of


def test_propose_appends_and_sends_together() -> None:
    """Paper 5.3; what is proposed between two Readies travels in one append."""
    solo = Solo()
    solo.become_leader()
    solo.acknowledge()
    assert solo.core.propose([entry(b"a")]) == 2
    assert solo.core.propose([entry(b"b"), entry(b"c")]) == 3
    ready = solo.ready()
    (append,) = of(ready.messages_now, MessageKind.APPEND, 2)
    assert (append.index, append.log_term, append.commit) == (1, 1, 1)
    assert [(e.index, e.term, e.payload) for e in append.entries] == [(2, 1, b"a"), (3, 1, b"b"), (4, 1, b"c")]
    assert ready.entries == append.entries


def test_only_a_leader_takes_proposals() -> None:
    """Paper 8: others name the leader."""
    solo = Solo(1)
    solo.step(MessageKind.HEARTBEAT, 3)
    with pytest.raises(NotLeader) as refused:
        solo.core.propose([entry()])
    assert refused.value.leader == 3 and solo.terms() == [1]


def test_appends_before_the_sync_acknowledgements_after_it() -> None:
    """Thesis 10.2.1: the leader writes in parallel with its followers, and counts itself only once it is durable."""
    solo = Solo()
    solo.become_leader()
    solo.acknowledge()
    solo.core.propose([entry()])
    ready = solo.ready()
    assert of(ready.messages_now, MessageKind.APPEND) and not ready.messages_after
    solo.core.step(solo.message(MessageKind.APPEND_REPLY, 2, index=2))
    assert solo.core.commit_index == 1, "one follower is no quorum of three while the leader has not synced"
    solo.core.persisted(2, 1)
    assert solo.core.commit_index == 2


def test_nothing_leaves_early_in_a_term_that_is_not_durable() -> None:
    """Thesis 10.2.1 assumes that the leader's term and vote are: after a crash it could vote for another in that term."""
    solo = Solo()
    solo.time_out()
    solo.core.step(solo.message(MessageKind.PRE_VOTE_REPLY, 2, term=1))
    solo.ready()  # votes for itself in term 1; the sync is under way
    solo.core.step(solo.message(MessageKind.VOTE_REPLY, 2, term=1))
    assert solo.core.role is Role.LEADER
    ready = solo.ready()
    assert not ready.messages_now and len(of(ready.messages_after, MessageKind.APPEND)) == 2
    solo.persist()
    solo.acknowledge(2)
    solo.core.propose([entry()])
    assert of(solo.ready().messages_now, MessageKind.APPEND)


def test_an_acknowledgement_does_not_outlive_its_term() -> None:
    """The entries it speaks of may be replaced before they are ever written."""
    solo = Solo()
    solo.core.step(solo.message(MessageKind.APPEND, 2, term=1, entries=entries(1, 1)))
    solo.core.step(solo.message(MessageKind.APPEND, 3, term=2, entries=entries(2)))
    ready = solo.ready()
    assert [(m.receiver, m.term, m.index) for m in ready.messages_after] == [(3, 2, 1)]
    assert ready.entries == entries(2)


def test_two_followers_commit_without_the_leader() -> None:
    """Thesis 10.2.1: the leader may even commit before its own write completed; it may not apply before."""
    solo = Solo()
    solo.become_leader()
    solo.core.propose([entry()])
    solo.ready()
    for peer in (2, 3):
        solo.core.step(solo.message(MessageKind.APPEND_REPLY, peer, index=2))
    assert solo.core.commit_index == 2
    assert [e.index for e in solo.ready().committed] == [1]
    solo.core.persisted(2, 1)
    assert [e.index for e in solo.ready().committed] == [2]


def test_a_follower_answers_after_its_sync() -> None:
    """Paper 5.3, figure 2: entries are durable before the RPC is answered."""
    solo = Solo()
    solo.core.step(solo.message(MessageKind.APPEND, term=1, commit=1, entries=entries(1, 1)))
    ready = solo.ready()
    assert not ready.messages_now and ready.must_sync and len(ready.entries) == 2 and not ready.committed
    (reply,) = ready.messages_after
    assert (reply.kind, reply.index, reply.reject) == (MessageKind.APPEND_REPLY, 2, False)
    assert ready.hard_state is not None and ready.hard_state.term == 1


@pytest.mark.parametrize(
    ("index", "log_term", "accepted"),
    [(0, 0, True), (1, 1, True), (3, 2, True), (3, 3, False), (2, 1, False), (4, 2, False)],
)
def test_the_consistency_check(index: int, log_term: int, accepted: bool) -> None:
    """Paper 5.3: an append is taken only where the preceding entry matches."""
    solo = Solo(1, 2, 2, term=3)
    (reply,) = solo.step(MessageKind.APPEND, index=index, log_term=log_term)
    assert reply.reject is not accepted
    assert reply.index == index and solo.terms() == [1, 2, 2]


def test_a_conflict_replaces_the_suffix() -> None:
    """Paper 5.3, figure 7: the follower's uncommitted extra entries give way."""
    solo = Solo(1, 1, 2, 2, 2, commit=2)
    (reply,) = solo.step(MessageKind.APPEND, term=3, index=2, log_term=1, entries=entries(3, 3, first=3))
    assert reply.index == 4 and solo.terms() == [1, 1, 3, 3]
    assert solo.core.log.persisted_index == 4


def test_late_and_short_appends_remove_nothing() -> None:
    """Paper 5.3: only a conflict deletes. Here entries 3 and 4 may be acknowledged already."""
    solo = Solo(1, 1, 1, 1)
    for count in (0, 1, 2):
        (reply,) = solo.step(MessageKind.APPEND, index=1, log_term=1, entries=entries(1, 1, first=2)[:count])
        assert reply.index == 1 + count, "it says only what this append proves"
        assert solo.terms() == [1, 1, 1, 1]
        assert solo.core.log.handed_index == 4, "and nothing is written again"


def test_commit_is_bounded_by_what_the_append_proves() -> None:
    """Paper, figure 2: min(leaderCommit, index of last new entry). What follows may be another leader's."""
    solo = Solo(1, 1, 1, 1)
    solo.step(MessageKind.APPEND, term=2, index=1, log_term=1, commit=4, entries=entries(1, first=2))
    assert solo.core.commit_index == 2


def test_committed_entries_are_never_replaced() -> None:
    """Paper, figure 3, state machine safety: a message that would do that shows a bug, and the replica stops."""
    solo = Solo(1, 1, 1, 1, commit=2)
    message = solo.message(MessageKind.APPEND, term=9, index=2, log_term=1, entries=entries(9, first=2))
    with pytest.raises(AssertionError, match="committed"):
        solo.core.step(message)


@pytest.mark.parametrize(
    ("leader", "follower", "probes"),
    [
        # Figure 7 of the paper: terms of the leader's log, of the follower's, and the indexes probed until they meet.
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6], [10, 9]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4], [10, 4]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], [10]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], [10]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 4, 4, 4, 4], [10, 5]),
        ([1, 1, 1, 4, 4, 5, 5, 6, 6, 6], [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], [10, 3]),
    ],
)
def test_backtracking_skips_whole_terms(leader: list[int], follower: list[int], probes: list[int]) -> None:
    """Paper 5.3, last paragraphs and figure 7: one refusal goes back a term, not an entry."""
    ahead, behind = Solo(*leader, term=7), Solo(*follower, term=7)
    sent = of(ahead.become_leader(), MessageKind.APPEND, 2)
    probed = []
    while sent:
        message = sent[0]
        probed.append(message.index)
        message.sender, message.receiver = 2, 1
        behind.core.step(message)
        (reply,) = behind.sync()
        reply.sender, reply.receiver = 2, 1
        ahead.core.step(reply)
        sent = of(ahead.sync(), MessageKind.APPEND, 2)
    assert probed == probes
    assert behind.terms() == [*leader, 8] == ahead.terms()


def figure_8() -> Cluster:
    """Up to (c): S1 leads term 3; 2/1 lies on S1, S2 and S3, and 3/3 of its own term on S1 and S2. S5 holds 2/2."""
    cluster = Cluster(5, append_entries_max=1)
    cluster.elect(1)
    cluster.lose = lambda message: message.kind == MessageKind.APPEND and message.receiver != 2
    assert cluster.replicas[1].propose(b"of term 1")
    cluster.settle()
    cluster.replicas[1].crash()
    cluster.expire_promises()
    cluster.lose = lambda message: message.kind == MessageKind.APPEND
    cluster.elect(5)
    assert cluster[5].log.term_at(2) == 2
    cluster.replicas[5].crash()
    cluster.replicas[1].start()
    cluster.expire_promises()
    cluster.lose = lambda message: (
        message.kind == MessageKind.APPEND
        and (message.receiver == 4 or (message.receiver == 3 and cluster[3].log.last_index == 2))
    )
    cluster[1].campaign(force=True)  # it starts from term 1: term 2 is taken
    cluster.settle()
    cluster.expire_promises()
    cluster.elect(1)
    terms = [[cluster[replica].log.term_at(index) for index in (2, 3)] for replica in (1, 2, 3, 4)]
    assert terms == [[1, 3], [1, 3], [1, None], [None, None]] and cluster[1].term == 3
    return cluster


def test_figure_8_entries_of_earlier_terms_may_still_be_replaced() -> None:
    """Paper 5.4.2, figure 8, (c) and (d): 2/1 is on a majority and not committed; S5 may win and replace it."""
    cluster = figure_8()
    assert sorted(each.match for each in cluster[1].progress.values()) == [0, 0, 2, 3, 3]
    assert cluster[1].commit_index == 1
    cluster.replicas[1].crash()
    cluster.replicas[5].start()
    cluster.heal()
    cluster.expire_promises()
    cluster.isolate(2)
    cluster[5].campaign(force=True)
    cluster.settle()
    cluster.expire_promises()
    cluster.elect(5)
    assert [cluster[replica].log.term_at(2) for replica in (3, 4, 5)] == [2, 2, 2]
    assert cluster.laws.commit == 3


def test_figure_8_an_entry_of_the_own_term_commits_the_earlier_ones() -> None:
    """Paper 5.4.2, figure 8, (e): once 3/3 is on a majority, 2/1 is committed with it and S5 cannot win."""
    cluster = figure_8()
    cluster.heal()
    cluster.run(5)
    assert cluster[1].commit_index == 3
    cluster.replicas[1].crash()
    cluster.replicas[5].start()
    cluster.expire_promises()
    cluster[5].campaign(force=True)
    cluster.settle()
    assert cluster[5].role is not Role.LEADER


def test_prior_terms_are_not_committed_by_counting() -> None:
    """Paper 5.4.2, the rule by itself: index 2 of term 2 lies on every voter, yet is not committed in term 4."""
    solo = Solo(1, 2, term=3)
    solo.become_leader()
    for peer in (2, 3):
        solo.acknowledge(peer, index=2)
        assert solo.core.commit_index == 0
    solo.acknowledge(2, index=3)
    assert solo.core.commit_index == 3


def test_a_window_bounds_what_is_in_flight() -> None:
    """Pipelining is bounded in messages and bytes; an answer opens the window."""
    solo = Solo(append_entries_max=2, inflight_messages_max=3)
    solo.become_leader()
    solo.acknowledge()
    solo.core.propose([entry(b"x") for _ in range(20)])
    sent = of(solo.sync(), MessageKind.APPEND, 2)
    assert [(m.index, len(m.entries)) for m in sent] == [(1, 2), (3, 2), (5, 2)]
    assert solo.sync() == []
    assert [m.index for m in solo.acknowledge(2, index=3)] == [7]
    assert [m.index for m in solo.acknowledge(2, index=7)] == [9, 11]


def test_bytes_bound_messages_and_window() -> None:
    """At least one entry always goes, or a large one would never."""
    solo = Solo(append_bytes_max=300, inflight_bytes_max=500)
    solo.become_leader()
    solo.acknowledge()
    solo.core.propose([entry(b"x" * size) for size in (100, 100, 100, 4000, 100)])
    assert [len(m.entries) for m in of(solo.sync(), MessageKind.APPEND, 2)] == [2, 1, 1]
    assert [len(m.entries) for m in solo.acknowledge(2, index=5)] == [1]


def test_a_lost_append_is_sent_again() -> None:
    """etcd #1366, hashicorp/raft #612: heartbeats go through, and yet the log must not stand still."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    for _ in range(3):
        assert leader.propose(b"lost")
        cluster.lose = lambda message: message.kind == MessageKind.APPEND
        cluster.settle()
    cluster.heal()
    cluster.run(2 * cluster.settings.heartbeat_ticks)
    assert {cluster[replica].log.last_index for replica in (1, 2, 3)} == {4}
    assert cluster.laws.commit == 4


def test_lost_acknowledgements_free_the_window() -> None:
    """The follower has everything, but its answers are gone and the window is full."""
    cluster = Cluster(3, inflight_messages_max=1)
    leader = cluster.elect(1)
    assert leader.propose(b"a")
    cluster.lose = lambda message: message.kind == MessageKind.APPEND_REPLY
    cluster.settle()
    cluster.heal()
    assert leader.propose(b"b")
    cluster.settle()
    assert cluster.laws.commit == 1
    cluster.run(2 * cluster.settings.heartbeat_ticks)
    assert cluster.laws.commit == 3


def test_an_unreachable_follower_gets_one_probe() -> None:
    """Nothing is piled up for who does not answer; a reconnection asks where the logs meet."""
    solo = Solo()
    solo.become_leader()
    solo.acknowledge(2)
    for _ in range(5):
        solo.core.propose([entry()])
        assert not of(solo.sync(), MessageKind.APPEND, 3)
    solo.core.peer_reconnected(3)
    assert len(of(solo.sync(), MessageKind.APPEND, 3)) == 1
    assert solo.core.progress[3].state is ProgressState.PROBE


def test_acknowledgements_never_go_back() -> None:
    """Reordered answers: match only grows (paper, figure 2)."""
    solo = Solo()
    solo.become_leader()
    solo.core.propose([entry(), entry()])
    solo.sync()
    solo.acknowledge(2, index=3)
    solo.acknowledge(2, index=1)
    assert solo.core.progress[2].match == 3
    solo.step(MessageKind.APPEND_REPLY, 2, reject=True, index=2, hint_index=1, hint_term=1)
    progress = solo.core.progress[2]
    assert (progress.match, progress.next, progress.state) == (3, 4, ProgressState.REPLICATE)


def test_heartbeats_commit_no_more_than_is_known_to_match() -> None:
    """A heartbeat has no consistency check, so it must not reach beyond the match."""
    solo = Solo()
    solo.become_leader()
    solo.acknowledge(2)
    solo.core.propose([entry()])
    solo.sync()
    solo.acknowledge(2)
    assert solo.core.commit_index == 2
    for _ in range(solo.core.settings.heartbeat_ticks):
        solo.core.tick()
    beats = of(solo.sync(), MessageKind.HEARTBEAT)
    assert {m.receiver: m.commit for m in beats} == {2: 2, 3: 0}


def test_a_deposed_leader_takes_no_answers() -> None:
    """Paper 5.1: what belongs to an earlier term has no effect."""
    solo = Solo()
    solo.become_leader()
    solo.core.propose([entry()])
    late = solo.message(MessageKind.APPEND_REPLY, 2, index=2)
    solo.step(MessageKind.HEARTBEAT, 3, term=5)
    solo.core.step(late)
    assert solo.core.role is Role.FOLLOWER and solo.core.commit_index == 0


def test_committed_is_handed_out_in_slices() -> None:
    """So that applying can be bounded in time."""
    solo = Solo(*[1] * 20, commit=20, append_entries_max=3)
    sizes = []
    while solo.core.has_ready():
        sizes.append([e.index for e in solo.ready().committed])
    assert sizes == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 18], [19, 20]]
