"""Leader election: Raft paper, sections 5.1, 5.2 and 5.4.1; thesis, sections 3.10, 4.2.3, 6.2 and 9.6."""

from __future__ import annotations

import itertools

import pytest

from cluster.raft import quorum
from cluster.raft.messages import MessageKind
from cluster.types import EntryKind, Role
from tests.raft.network import Cluster
from tests.raft.solo import Solo, entries, of


def test_a_replica_starts_as_follower_and_waits() -> None:
    """Paper 5.2: servers start as followers and remain so while they hear a leader."""
    solo = Solo(term=3)
    assert solo.core.role is Role.FOLLOWER and solo.core.leader == 0
    for _ in range(50):
        solo.core.tick()
        solo.step(MessageKind.HEARTBEAT)
    assert solo.core.role is Role.FOLLOWER and solo.core.leader == 2


def test_a_timeout_asks_before_it_takes_a_new_term() -> None:
    """Thesis 9.6: a pre-candidate names the next term, but changes neither its term nor its vote."""
    solo = Solo(1, 1, 2)
    sent = solo.time_out()
    assert [(m.kind, m.receiver, m.term, m.index, m.log_term) for m in sent] == [
        (MessageKind.PRE_VOTE, peer, 3, 3, 2) for peer in (2, 3)
    ]
    assert (solo.core.role, solo.core.term, solo.core.vote) == (Role.PRE_CANDIDATE, 2, 0)


def test_a_won_pre_vote_starts_the_election() -> None:
    """Paper 5.2: increments the term, votes for itself, asks all others."""
    solo = Solo(1)
    solo.time_out()
    sent = solo.step(MessageKind.PRE_VOTE_REPLY, 3, term=2)
    assert [(m.kind, m.receiver, m.term) for m in sent] == [(MessageKind.VOTE, peer, 2) for peer in (2, 3)]
    assert (solo.core.role, solo.core.term, solo.core.vote) == (Role.CANDIDATE, 2, 1)


def test_a_majority_of_votes_makes_the_leader() -> None:
    """Paper 5.2: and it announces itself at once, by the empty entry of its term (section 8)."""
    solo = Solo(1, voters=5)
    sent = solo.become_leader()
    appends = of(sent, MessageKind.APPEND)
    assert len(appends) == 4 and appends[0].index == 1
    assert [(e.index, e.term, e.kind) for e in appends[0].entries] == [(2, 2, EntryKind.EMPTY)]


@pytest.mark.parametrize(("voters", "votes"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_a_quorum_is_more_than_half(voters: int, votes: int) -> None:
    """Paper 5.2: any two majorities share a voter."""
    assert quorum.majority(voters) == votes
    assert quorum.agreed([1] * votes + [0] * (voters - votes)) == 1
    assert quorum.agreed([1] * (votes - 1) + [0] * (voters - votes + 1)) == 0
    assert quorum.lost(dict.fromkeys(range(voters - votes + 1), False), range(voters))
    assert not quorum.lost(dict.fromkeys(range(voters - votes), False), range(voters))
    assert quorum.won(dict.fromkeys(range(votes), True), range(voters))
    assert not quorum.won(dict.fromkeys(range(votes - 1), True) | {99: True}, range(voters)), "a stranger's vote"


def test_a_vote_is_given_once_a_term() -> None:
    """Paper 5.2: first come, first served; the same candidate may ask again."""
    solo = Solo()
    assert not solo.step(MessageKind.VOTE, 2, term=1)[0].reject
    assert solo.step(MessageKind.VOTE, 3, term=1)[0].reject
    assert not solo.step(MessageKind.VOTE, 2, term=1)[0].reject
    assert not solo.step(MessageKind.VOTE, 3, term=2)[0].reject


def test_a_vote_survives_a_restart() -> None:
    """Paper 5.1, figure 2: votedFor is persistent."""
    solo = Solo(term=4, vote=2)
    assert solo.step(MessageKind.VOTE, 3, term=4)[0].reject
    assert not solo.step(MessageKind.VOTE, 2, term=4)[0].reject


@pytest.mark.parametrize("kind", [MessageKind.VOTE, MessageKind.PRE_VOTE])
@pytest.mark.parametrize(
    ("index", "log_term", "granted"),
    [(3, 2, True), (4, 2, True), (1, 3, True), (2, 2, False), (9, 1, False), (0, 0, False)],
)
def test_votes_go_to_logs_that_are_up_to_date(kind: MessageKind, index: int, log_term: int, granted: bool) -> None:
    """Paper 5.4.1: the later last term wins, then the longer log."""
    solo = Solo(1, 2, 2)
    solo.core.tick(1)
    solo.core.heard_elapsed = 99
    (reply,) = solo.step(kind, term=5, index=index, log_term=log_term)
    assert reply.reject is not granted
    assert solo.core.term == (5 if kind == MessageKind.VOTE else 2)


def test_a_candidate_yields_to_the_leader_of_its_term() -> None:
    """Paper 5.2: AppendEntries of a current leader turns a candidate back."""
    solo = Solo()
    solo.time_out()
    solo.step(MessageKind.PRE_VOTE_REPLY, 3, term=1)
    assert solo.core.role is Role.CANDIDATE
    solo.step(MessageKind.APPEND, 2, term=1, entries=entries(1))
    assert (solo.core.role, solo.core.leader, solo.core.vote) == (Role.FOLLOWER, 2, 1)


def test_a_split_vote_ends_in_a_new_election() -> None:
    """Paper 5.2: nobody wins, each waits a random time and tries again."""
    cluster = Cluster(4)
    for replica in (1, 2):
        cluster[replica].campaign(force=True)
        cluster.replicas[replica].begin()
        cluster.replicas[replica].finish()
    cluster.mail.sort(key=lambda each: (each[0].sender, each[0].receiver) not in ((1, 3), (2, 4)))
    cluster.settle()
    assert [cluster[replica].vote for replica in (1, 2, 3, 4)] == [1, 2, 1, 2] and not cluster.leaders()
    cluster.run(60)
    assert len(cluster.leaders()) == 1


@pytest.mark.parametrize(
    "kind", [MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT, MessageKind.TIMEOUT_NOW]
)
def test_a_leader_of_an_earlier_term_is_told(kind: MessageKind) -> None:
    """Paper 5.1: stale requests are refused with the current term, which is what makes their sender step down."""
    solo = Solo(1, 2)
    (reply,) = solo.step(kind, term=1, index=1, log_term=1)
    assert (reply.kind, reply.term, reply.reject) == (MessageKind.APPEND_REPLY, 2, True)
    assert solo.core.leader == 0 and solo.terms() == [1, 2]


@pytest.mark.parametrize("kind", [MessageKind.VOTE, MessageKind.PRE_VOTE])
def test_a_candidate_of_an_earlier_term_is_told(kind: MessageKind) -> None:
    """Paper 5.1. A pre-candidate one term behind names our own term."""
    solo = Solo(1, 2)
    solo.core.heard_elapsed = 99
    (reply,) = solo.step(kind, term=1 if kind == MessageKind.VOTE else 2, index=9, log_term=1)
    assert (reply.term, reply.reject) == (2, True)


def test_a_refused_pre_candidate_learns_the_term() -> None:
    """Thesis 9.6: or it would ask for a term that is long over for ever."""
    solo = Solo(1)
    solo.time_out()
    solo.step(MessageKind.PRE_VOTE_REPLY, 2, term=7, reject=True)
    assert (solo.core.role, solo.core.term) == (Role.FOLLOWER, 7)


@pytest.mark.parametrize("kind", [MessageKind.APPEND_REPLY, MessageKind.HEARTBEAT_REPLY, MessageKind.VOTE_REPLY])
def test_a_later_term_ends_leadership(kind: MessageKind) -> None:
    """Paper 5.1: a leader that sees a later term becomes a follower at once."""
    solo = Solo(1)
    solo.become_leader()
    solo.step(kind, term=9, reject=True)
    assert (solo.core.role, solo.core.term, solo.core.leader) == (Role.FOLLOWER, 9, 0)


@pytest.mark.parametrize("kind", [MessageKind.VOTE, MessageKind.PRE_VOTE])
def test_who_hears_a_leader_helps_no_one_else(kind: MessageKind) -> None:
    """Thesis 4.2.3 and 6.4.1: within the minimum election timeout votes are refused, and move no term."""
    solo = Solo(1)
    solo.step(MessageKind.HEARTBEAT, 2)
    for _ in range(9):
        replies = solo.step(kind, 3, term=5, index=9, log_term=1)
        assert all(each.reject for each in replies)
        assert (solo.core.term, solo.core.leader) == (1, 2)
        solo.core.tick()
    solo.core.tick()
    (reply,) = solo.step(kind, 3, term=5, index=9, log_term=1)
    assert not reply.reject


def test_the_leader_itself_is_released_from_the_promise() -> None:
    """Who asks for votes leads no longer: nobody needs protection from it."""
    solo = Solo(1)
    solo.step(MessageKind.HEARTBEAT, 2)
    assert not solo.step(MessageKind.PRE_VOTE, 2, term=2, index=1, log_term=1)[0].reject


def test_a_restarted_replica_keeps_a_promise_it_no_longer_remembers() -> None:
    """Thesis 6.4.1: it may have acknowledged a leader just before, so its vote could break a lease. A new one cannot."""
    assert Solo(1).step(MessageKind.VOTE, 3, term=2, index=9, log_term=1) == []
    assert not Solo().step(MessageKind.VOTE, 3, term=2, index=9, log_term=1)[0].reject


def test_a_leader_ignores_votes_while_it_leads() -> None:
    """Thesis 4.2.3, for the leader: only check-quorum and later terms of answers depose it."""
    solo = Solo(1)
    solo.become_leader()
    assert solo.step(MessageKind.VOTE, 3, term=9, index=9, log_term=8) == []
    assert solo.step(MessageKind.PRE_VOTE, 3, term=9, index=9, log_term=8)[0].reject
    assert solo.core.role is Role.LEADER and solo.core.term == 2


def test_a_rejoining_replica_does_not_disturb() -> None:
    """Thesis 9.6: cut off for long, it has campaigned in vain; its term has not grown and the leader stays."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.run(200)
    assert cluster[3].role in (Role.PRE_CANDIDATE, Role.FOLLOWER) and cluster[3].term == 1
    cluster.heal()
    cluster.run(40)
    assert cluster[1].role is Role.LEADER and cluster[1].term == 1
    assert cluster[3].leader == 1


def test_a_leader_without_a_quorum_steps_down() -> None:
    """Thesis 6.2: a client must not wait for a leader that cannot commit."""
    cluster = Cluster(5)
    cluster.elect(1)
    for other in (3, 4, 5):
        cluster.cut |= {(1, other), (other, 1)}
    cluster.run(cluster.settings.election_ticks_min + 2)
    assert cluster[1].role is not Role.LEADER and cluster[1].leader != 1


def test_a_replica_whose_term_ran_ahead_is_not_lost() -> None:
    """Thesis 4.2.3: votes are ignored while a leader is heard; so a leader of a lower term must learn the higher one from
    answers, or that replica could never follow again."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.run(40)
    cluster[3].campaign(force=True)
    assert cluster[3].term == 2
    cluster.settle()
    cluster.heal()
    cluster.run(60)
    assert len({cluster[replica].leader for replica in (1, 2, 3)}) == 1 and cluster[3].leader != 0
    assert cluster[3].term >= 2


@pytest.mark.parametrize("cut", list(itertools.permutations((1, 2, 3), 2)))
def test_one_way_loss_leaves_a_leader(cut: tuple[int, int]) -> None:
    """Pre-vote and check-quorum together must not lock each other out when a link works in one direction only."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.cut.add(cut)
    cluster.run(150)
    leaders = [each for each in cluster.leaders() if each.propose(b"x")]
    cluster.run(30)
    assert leaders and cluster.laws.commit >= cluster.leader().core.log.last_index


def test_timeouts_are_random_and_drawn_anew() -> None:
    """Paper 5.2: drawn from the range each time, or votes split for ever."""
    solo = Solo(term=1)
    seen = set()
    for _ in range(200):
        solo.step(MessageKind.HEARTBEAT)
        seen.add(solo.core.election_timeout)
    settings = solo.core.settings
    assert seen == set(range(settings.election_ticks_min, settings.election_ticks_max))


def test_a_broken_connection_shortens_the_wait_to_the_promise() -> None:
    """A hint may be wrong: the leader may hold a lease. So the wait ends right after the promise, not before."""
    solo = Solo(1)
    for heard in (0, 5):
        solo.step(MessageKind.HEARTBEAT)
        for _ in range(heard):
            solo.core.tick()
        solo.core.peer_disconnected(3)
        assert solo.core.election_elapsed == heard
        solo.core.peer_disconnected(2)
        wait = solo.core.election_timeout - solo.core.election_elapsed
        assert 10 - heard < wait <= 10 - heard + solo.core.settings.heartbeat_ticks


def test_campaign_respects_the_promise() -> None:
    """Its own vote would break a lease as much as any other's."""
    solo = Solo(1)
    for force in (False, True):
        solo.core.campaign(force=force)
        assert solo.core.role is Role.FOLLOWER
    fresh = Solo()
    fresh.core.campaign()
    assert fresh.core.role is Role.PRE_CANDIDATE


def test_a_stall_of_the_process_is_not_the_silence_of_the_leader() -> None:
    """Many ticks at once mean that this process slept; the heartbeats may wait in its inbox."""
    solo = Solo(1)
    solo.step(MessageKind.HEARTBEAT)
    solo.core.tick(1000)
    assert solo.core.role is Role.FOLLOWER
    leader = Solo(1)
    leader.become_leader()
    leader.acknowledge()
    leader.core.tick(1000)
    assert leader.core.role is Role.LEADER
    assert leader.core.lease_read_index() is None, "for the lease the time has passed"


def test_wrong_addresses_are_dropped() -> None:
    """Architecture, section 3: messages to another replica id are dropped; and nobody writes to itself."""
    solo = Solo(1)
    for sender, receiver in ((2, 7), (1, 1)):
        message = solo.message(MessageKind.HEARTBEAT, sender, term=8)
        message.receiver = receiver
        solo.core.step(message)
    assert solo.core.term == 1 and not solo.core.has_ready()


def test_one_voter_leads_at_once() -> None:
    """A quorum of one is itself; what it commits is fsynced first all the same."""
    solo = Solo(voters=1)
    solo.core.campaign()
    assert solo.core.role is Role.LEADER and solo.core.commit_index == 0
    ready = solo.ready()
    assert ready.must_sync and ready.hard_state is not None and not ready.committed
    solo.persist()
    assert solo.core.commit_index == 1
