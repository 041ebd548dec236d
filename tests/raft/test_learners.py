"""Learners (thesis, section 4.2.1, "non-voting servers"): they receive everything and count for nothing."""

from __future__ import annotations

import pytest

from cluster.raft.configuration import Configuration
from cluster.raft.messages import MessageKind
from cluster.raft.progress import ProgressState
from cluster.raft.state import STAMP_SHIFT
from cluster.types import Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, config, of

WITH_LEARNER = Configuration((1, 2, 3), (4,), (), 1)


def leading(configuration: Configuration = WITH_LEARNER, **settings: int) -> Solo:
    solo = Solo(1, configuration=configuration, commit=1, applied=1, **settings)
    solo.become_leader()
    return solo


def test_a_learner_gets_what_a_voter_gets() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    (learner,) = cluster.grow()
    assert leader.propose(b"a", b"b")
    cluster.settle()
    cluster.run(4)
    assert cluster.replicas[learner].machine.chain == leader.machine.chain
    assert cluster[learner].configuration == cluster[1].configuration


def test_what_only_learners_hold_is_not_committed() -> None:
    """Thesis 4.2.1: they are not counted for majorities of commits."""
    solo = leading(Configuration((1, 2, 3), (4, 5, 6)))
    for learner in (4, 5, 6):
        solo.acknowledge(learner)
    assert solo.core.commit_index == 1
    solo.acknowledge(2)
    assert solo.core.commit_index == 2


def test_learners_do_not_keep_a_leader_in_office() -> None:
    """Check-quorum (thesis 6.2) asks voters."""
    solo = leading()
    for _ in range(solo.core.settings.election_ticks_min + 1):
        solo.core.tick()
        if solo.core.role is Role.LEADER:
            solo.step(MessageKind.HEARTBEAT_REPLY, 4, context=solo.core.progress[4].sent)
    assert solo.core.role is Role.FOLLOWER


def test_learners_confirm_no_read_and_give_no_lease() -> None:
    """Thesis 6.4: a majority of voters has to answer."""
    solo = leading()
    solo.acknowledge(2)
    core = solo.core
    core.tick(core.settings.lease_ticks)
    core.tick()
    core.read_index(7)
    solo.sync()
    solo.step(MessageKind.HEARTBEAT_REPLY, 4, context=core.progress[4].sent)
    assert len(core.reads) == 1 and core.lease_read_index() is None
    core.step(solo.message(MessageKind.HEARTBEAT_REPLY, 3, context=core.progress[3].sent))
    assert not core.reads and core.lease_read_index() == 2
    assert [(read.context, read.index) for read in solo.ready().read_states] == [(7, 2)]


def test_learners_are_not_asked_for_votes() -> None:
    sent = Solo(1, configuration=Configuration((1, 2), (4,), (1, 3))).time_out()
    assert [each.receiver for each in sent] == [2, 3]


def test_a_learners_vote_is_not_counted() -> None:
    """It may give one, as a candidate may know of a promotion that it has not heard of; that candidate counts it."""
    solo = Solo(1, configuration=Configuration((1, 2, 3, 5), (4,)))
    solo.time_out()
    for voter in (4, 9):
        solo.step(MessageKind.PRE_VOTE_REPLY, voter, term=2)
    assert solo.core.role is Role.PRE_CANDIDATE
    solo.step(MessageKind.PRE_VOTE_REPLY, 2, term=2)
    assert solo.core.role is Role.PRE_CANDIDATE
    solo.step(MessageKind.PRE_VOTE_REPLY, 3, term=2)
    assert solo.core.role is Role.CANDIDATE
    solo.step(MessageKind.VOTE_REPLY, 4, term=2)
    solo.step(MessageKind.VOTE_REPLY, 2, term=2)
    assert solo.core.role is Role.CANDIDATE
    solo.step(MessageKind.VOTE_REPLY, 5, term=2)
    assert solo.core.role is Role.LEADER


@pytest.mark.parametrize("configuration", [Configuration((2, 3, 4), (1,)), Configuration((2, 3)), Configuration(())])
def test_who_does_not_vote_never_campaigns(configuration: Configuration) -> None:
    solo = Solo(1, configuration=configuration)
    core = solo.core
    core.step(solo.message(MessageKind.HEARTBEAT, 2))
    solo.sync()
    core.peer_disconnected(2)
    core.tick(core.settings.election_ticks_max)
    for _ in range(5 * core.settings.election_ticks_max):
        core.tick()
        assert core.role is Role.FOLLOWER and not of(solo.sync(), MessageKind.PRE_VOTE)
    for force in (False, True):
        core.campaign(force=force)
    core.step(solo.message(MessageKind.TIMEOUT_NOW, 2))
    assert core.role is Role.FOLLOWER and core.term == 1 and not core.has_ready()


def test_who_does_not_vote_forgets_a_leader_that_is_silent() -> None:
    """Or it would send clients to it for ever."""
    solo = Solo(1, configuration=Configuration((2, 3), (1,)))
    solo.step(MessageKind.HEARTBEAT, 2)
    assert solo.core.leader == 2
    for _ in range(solo.core.settings.election_ticks_max):
        solo.core.tick()
    assert solo.core.leader == 0


def test_who_has_heard_of_nobody_follows_whoever_leads() -> None:
    """Thesis 4.1: a server takes requests of servers that are not in its configuration, as it may be behind."""
    solo = Solo(configuration=Configuration(()))
    (reply,) = solo.step(
        MessageKind.APPEND, 7, term=3, entries=[config(1, 3, Configuration((7,), (1,), (), 1))], commit=1
    )
    assert (reply.kind, reply.receiver, reply.index, reply.reject) == (MessageKind.APPEND_REPLY, 7, 1, False)
    assert solo.core.configuration == Configuration((7,), (1,), (), 1) and solo.core.configuration_index == 1
    assert solo.core.peers == (7,)


@pytest.mark.parametrize("configuration", [Configuration((2, 3), (1,)), Configuration(())])
@pytest.mark.parametrize("kind", [MessageKind.VOTE, MessageKind.PRE_VOTE])
def test_who_does_not_vote_yet_is_asked_for_a_vote(configuration: Configuration, kind: MessageKind) -> None:
    """Thesis 4.1: also by a candidate that is not in its configuration. The usual rules decide (paper, 5.4.1)."""
    fresh = Solo(configuration=configuration)
    assert not fresh.step(kind, 9, term=2, index=1, log_term=1)[0].reject
    behind = Solo(2, 2, configuration=configuration)
    behind.core.heard_elapsed = 99
    assert behind.step(kind, 9, term=3, index=9, log_term=1)[0].reject
    hears = Solo(configuration=configuration)
    hears.step(MessageKind.HEARTBEAT, 2, term=1)
    assert all(reply.reject for reply in hears.step(kind, 9, term=2, index=1, log_term=1))
    assert hears.core.term == 1


def test_a_new_learner_is_asked_where_its_log_ends() -> None:
    """It starts at the leader's end and goes back as any follower whose log is short (paper, 5.3)."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    assert leader.propose(*(bytes([number]) for number in range(20)))
    cluster.settle()
    learner = cluster.join()
    assert leader.reconfigure(Configuration((1, 2, 3), (learner,)))
    progress = leader.core.progress[learner]
    assert (progress.state, progress.next, progress.match) == (ProgressState.PROBE, leader.core.log.last_index + 1, 0)
    cluster.settle()
    cluster.run(3)
    assert cluster[learner].log.last_index == leader.core.log.last_index and progress.state is ProgressState.REPLICATE


def test_a_new_learner_gets_a_snapshot_with_the_configuration() -> None:
    """Thesis 4.2.1 and 5.1: the log begins after the snapshot, and the snapshot says who the members are."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    (first,) = cluster.grow()
    cluster.run(3)
    leader.compact(leader.core.applied_index)
    (second,) = cluster.grow()
    cluster.run(6)
    core = cluster[second]
    assert core.log.base_index == 2 and core.configuration == leader.core.configuration
    assert cluster.replicas[second].durable.base.configuration == Configuration((1, 2, 3), (first,), (), 1)
    assert cluster.replicas[second].machine.chain == leader.machine.chain


def test_when_a_follower_has_caught_up() -> None:
    """Thesis 4.2.1: a server that lags would hold up commits as a voter. One append behind is no lag."""
    solo = leading(append_entries_max=4)
    core = solo.core
    assert core.caught_up(1) and not core.caught_up(4) and not core.caught_up(9)
    solo.acknowledge(2)
    solo.acknowledge(4)
    assert core.caught_up(4)
    core.propose([entry() for _ in range(4)])
    assert core.caught_up(4)
    core.propose([entry()])
    assert not core.caught_up(4)
    solo.sync()
    solo.acknowledge(4, index=3)
    assert core.caught_up(4)
    core.peer_reconnected(4)
    assert not core.caught_up(4), "what was on its way may be lost"
    assert not Solo(1, configuration=WITH_LEARNER).core.caught_up(2), "who does not lead does not know"


def test_who_answered_lately() -> None:
    solo = leading()
    core = solo.core
    assert core.answered_lately(1) and not core.answered_lately(4) and not core.answered_lately(9)
    for voter in (2, 4):
        solo.acknowledge(voter)
    for _ in range(core.settings.election_ticks_min - 1):
        core.tick()
        solo.sync()
        solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=core.progress[2].sent)
    assert core.answered_lately(4)
    core.tick(2)
    assert core.answered_lately(2) and not core.answered_lately(4)


def test_a_leader_does_not_fall_silent_before_its_learners_hold_everything() -> None:
    """Heartbeats are how a learner that comes back is noticed."""
    cluster = Cluster(3)
    cluster.elect(1)
    (learner,) = cluster.grow()
    cluster.isolate(learner)
    assert cluster.leader().propose(b"x")
    cluster.run(30)
    assert not cluster[1].silent
    cluster.heal()
    cluster.run(30)
    assert all(each.core.silent for each in cluster.up())


def test_one_voter_with_learners_needs_nobody() -> None:
    """The majority of one voter is that voter: nothing is asked of learners, not even that they are there."""
    solo = leading(Configuration((1,), (2, 3)))
    core = solo.core
    assert core.commit_index == 2
    core.read_index(5)
    assert [(read.context, read.index) for read in solo.ready().read_states] == [(5, 2)]
    core.tick(100)
    assert core.role is Role.LEADER and core.lease_read_index() == 2


def test_leadership_is_handed_to_no_learner() -> None:
    with pytest.raises(AssertionError, match="no voter"):
        leading().core.transfer_leadership(4)


def test_a_late_answer_of_one_who_left_means_nothing() -> None:
    """Nothing is known of it any more; nor does its term matter, or it could depose the leader."""
    solo = leading(Configuration((1, 2, 3)))
    for kind in (MessageKind.APPEND_REPLY, MessageKind.HEARTBEAT_REPLY, MessageKind.VOTE_REPLY):
        for term in (solo.core.term, solo.core.term + 5):
            assert not solo.step(kind, 4, term=term, index=2, context=1 << STAMP_SHIFT)
    solo.core.snapshot_finished(4, 2, True)
    solo.core.peer_reconnected(4)
    assert solo.core.role is Role.LEADER and solo.core.term == 2
