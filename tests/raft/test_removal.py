"""Who was removed: a leader goes last (thesis, section 4.2.2), and nobody disturbs those who stay (section 4.2.3)."""

from __future__ import annotations

import pytest

from cluster.raft.configuration import Configuration
from cluster.raft.messages import MessageKind
from cluster.raft.progress import ProgressState
from cluster.types import Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, config, entries, of

JOINT = Configuration((2, 3, 4), (), (1, 2, 3), 2)


def leaving(**settings: int) -> Solo:
    """Replica 1 leads and has left the joint configuration, at index 3, for one without itself."""
    solo = Solo(1, configuration=Configuration((1, 2, 3), (4,), (), 1), commit=1, applied=1, **settings)
    solo.become_leader()
    for peer in (2, 3, 4):
        solo.acknowledge(peer)
    solo.core.propose_configuration(JOINT)
    solo.sync()
    for peer in (2, 3):
        solo.acknowledge(peer, index=3)
    assert solo.core.configuration == JOINT.left() and solo.core.configuration_index == 4
    return solo


def test_a_leader_that_leaves_does_not_count_itself() -> None:
    """Thesis 4.2.2: it manages a cluster that does not include itself; it replicates, but does not count itself in
    majorities."""
    solo = leaving()
    core = solo.core
    assert core.role is Role.LEADER and 1 not in core.progress and core.peers == (2, 3, 4)
    assert core.log.persisted_index == 4
    solo.acknowledge(2)
    assert core.commit_index == 3 and core.role is Role.LEADER, "two of 1, 2, 3 and 4, but one of 2, 3 and 4"
    core.read_index(3)
    solo.sync()
    solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=core.progress[2].sent)
    assert len(core.reads) == 1


def test_a_leader_steps_down_when_the_configuration_without_it_is_committed() -> None:
    """Thesis 4.2.2, and it lets the others know first; the most advanced of them need not wait for a timeout (3.10)."""
    solo = leaving()
    solo.core.read_index(8)
    solo.core.propose([entry(b"not committed")])
    solo.acknowledge(2, index=4)
    solo.core.propose([entry(b"not even sent")])
    solo.core.step(solo.message(MessageKind.APPEND_REPLY, 4, index=4, context=solo.core.progress[4].sent))
    core = solo.core
    assert core.role is Role.FOLLOWER and core.commit_index == 4 and core.leader == 0
    ready = solo.ready()
    assert [(read.context, read.index) for read in ready.read_states] == [(8, -1)]
    sent = ready.messages_now
    assert {each.receiver for each in of(sent, MessageKind.APPEND) if each.commit == 4} >= {2, 4}
    (now,) = of(sent, MessageKind.TIMEOUT_NOW)
    assert now.receiver in (2, 4) and sent[-1] is now
    solo.persist()
    assert not core.has_ready()
    core.check_invariants()


def test_a_leader_that_stepped_down_has_nothing_more_to_send() -> None:
    """Also when more waits than it could tell the others at last."""
    solo = leaving(append_entries_max=1, inflight_messages_max=1)
    solo.core.propose([entry(b"one"), entry(b"two")])
    for peer in (2, 4):
        solo.core.step(solo.message(MessageKind.APPEND_REPLY, peer, index=4, context=solo.core.progress[peer].sent))
    assert solo.core.role is Role.FOLLOWER
    solo.sync()
    solo.core.check_invariants()
    assert not solo.core.has_ready()


def test_a_leader_that_is_deposed_first_forgets_whom_it_removed() -> None:
    solo = Solo(1, configuration=Configuration((1, 2, 3), (4,), (), 1), commit=1, applied=1)
    solo.become_leader()
    solo.acknowledge(2)
    solo.core.propose_configuration(Configuration((1, 2, 3), (), (), 2))
    assert [member for member, _ in solo.core.departed] == [4]
    solo.step(MessageKind.HEARTBEAT, 2, term=9)
    solo.core.check_invariants()


def test_who_is_removed_follows_and_is_quiet() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.run(2)
    cluster.become(1, 2)
    cluster.run(2)
    core = cluster[3]
    assert core.configuration == leader.core.configuration and core.commit_index == core.configuration_index == 3
    cluster.run(200)
    assert core.role is Role.FOLLOWER and core.leader == 0
    assert leader.core.role is Role.LEADER and leader.core.term == 1


def test_a_removed_leader_is_replaced_at_once() -> None:
    """No tick passes: it hands over."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.grow()
    cluster.run(3)
    rounds = cluster.rounds
    cluster.become(2, 3, 4)
    assert cluster.rounds == rounds
    assert cluster[1].role is Role.FOLLOWER and cluster.leader().replica in (2, 3, 4)
    cluster.run(100)
    assert cluster[1].role is Role.FOLLOWER and cluster[1].term == 1 and cluster.leader().core.term == 2
    assert cluster[1].commit_index == cluster[1].configuration_index


def removed_in_absence() -> Cluster:
    """Replica 3 was cut off while it was removed, and knows nothing of that."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.grow()
    cluster.run(3)
    cluster.isolate(3)
    cluster.become(1, 2, 4)
    cluster.run(60)
    assert cluster[3].configuration.votes(3) and 3 not in cluster[1].progress
    return cluster


def test_who_was_removed_in_its_absence_disturbs_nobody() -> None:
    """Thesis 4.2.3: it times out again and again, and its pre-votes are refused by all who hear a leader."""
    cluster = removed_in_absence()
    cluster.heal()
    asked = []
    cluster.lose = lambda message: asked.append(message) if message.kind == MessageKind.PRE_VOTE else False
    for _ in range(200):
        cluster.run(1)
        assert cluster.leader().propose(b"x") and cluster[1].role is Role.LEADER and cluster[1].term == 1
    assert len(asked) > 20 and {each.sender for each in asked} == {3} and cluster[3].term == 1
    cluster.retire(3)
    cluster.run(30)
    assert all(each.core.silent for each in cluster.up())


def test_a_removed_candidate_of_a_later_term_disturbs_nobody() -> None:
    """Thesis 4.2.3: not even its term is taken."""
    cluster = removed_in_absence()
    cluster[3].campaign(force=True)
    cluster.settle()
    cluster.heal()
    for _ in range(100):
        cluster[3].campaign(force=True)
        cluster.run(1)
    assert cluster[3].term > 1 and cluster[1].role is Role.LEADER
    assert {cluster[each].term for each in (1, 2, 4)} == {1}


def test_who_was_removed_may_wake_a_silent_shard_but_not_its_election() -> None:
    """It asks those it knows, and the leader is a newcomer: the others, awake together, would elect one of themselves if they
    did not ask for a word from their leader."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.grow()
    cluster.run(3)
    cluster.isolate(4)
    cluster.become(1, 2, 3, 5)
    cluster[1].transfer_leadership(5)
    cluster.settle()
    assert cluster.leader().replica == 5
    cluster.run(60)
    cluster.heal()
    cluster.isolate(4)
    term = cluster[5].term
    assert all(cluster[each].silent for each in (1, 2, 3, 5))
    cluster.heal()
    woken = 0
    for _ in range(600):
        cluster.run(1)
        woken += not cluster[1].silent and not cluster[2].silent
        assert cluster[5].role is Role.LEADER and cluster[5].term == term
    assert woken > 20


def test_a_leader_whose_removal_only_it_knows_still_campaigns() -> None:
    """Thesis 4.2.2: a server that is not in its latest configuration may have to lead until that is committed. Here 3 is down
    and 2 needs the vote of 1, which it does not get, since the log of 1 is ahead by the entry that removes it."""
    cluster = Cluster(3)
    cluster.elect(1)
    (four,) = cluster.grow()
    cluster.run(3)
    cluster.replicas[3].crash()
    cluster.lose = lambda message: any(each.index == 4 for each in message.entries)
    cluster.become(2, four)
    assert cluster[1].configuration == Configuration((2, four), (), (), 2) and cluster[2].configuration.joint
    cluster.run(1)
    cluster.replicas[1].crash()
    cluster.heal()
    cluster.replicas[1].start()
    assert not cluster[1].configuration.votes(1)
    cluster.run(100)
    leader = cluster.leader()
    assert leader.replica in (2, four) and leader.core.configuration == Configuration((2, four), (), (), 2)
    assert cluster.laws.newest[1] == leader.core.configuration
    term = leader.core.term
    cluster.run(200)
    assert cluster[1].role is Role.FOLLOWER and cluster.leader() is leader and leader.core.term == term


@pytest.mark.parametrize(("commit", "campaigns"), [(2, True), (3, False)])
def test_a_removal_known_to_be_committed_ends_campaigns(commit: int, campaigns: bool) -> None:
    solo = Solo(configuration=JOINT, log=[*entries(1, 1), config(3, 1, JOINT.left())], commit=commit)
    for _ in range(3 * solo.core.settings.election_ticks_max):
        solo.core.tick()
    sent = solo.sync()
    assert bool(of(sent, MessageKind.PRE_VOTE)) is campaigns
    if campaigns:
        for voter in (2, 3):
            assert solo.core.role is Role.PRE_CANDIDATE, "it does not count itself"
            solo.step(MessageKind.PRE_VOTE_REPLY, voter, term=2)
        assert solo.core.role is Role.CANDIDATE


def test_a_late_call_to_take_over_finds_one_that_was_removed() -> None:
    solo = Solo(configuration=Configuration((2, 3)), log=entries(1))
    solo.step(MessageKind.HEARTBEAT, 2)
    assert not solo.step(MessageKind.TIMEOUT_NOW, 2)
    assert solo.core.role is Role.FOLLOWER and solo.core.term == 1


def test_a_learner_that_is_removed_is_told() -> None:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    (learner,) = cluster.grow()
    cluster.run(3)
    cluster.change(Configuration((1, 2, 3), (), (), 2))
    assert cluster[learner].configuration == leader.core.configuration
    assert cluster[learner].commit_index == leader.core.commit_index == 3
    assert not leader.core.departed


@pytest.mark.parametrize("probing", [True, False])
def test_who_left_gets_no_more_than_the_change_that_removed_it(probing: bool) -> None:
    """What it would need is a probe, or a snapshot: it may be gone."""
    cluster = Cluster(3, inflight_messages_max=1)
    leader = cluster.elect(1)
    (learner,) = cluster.grow()
    cluster.run(3)
    cluster.isolate(learner)
    for number in range(9):
        assert leader.propose(bytes([number]))
        cluster.settle()
    if probing:
        leader.core.peer_reconnected(learner)
    assert (leader.core.progress[learner].state is ProgressState.PROBE) is probing
    leader.compact(leader.core.applied_index)
    cluster.heal()
    sent = []
    cluster.lose = lambda message: bool(message.receiver == learner and sent.append(message))
    cluster.change(Configuration((1, 2, 3), (), (), 2))
    cluster.run(30)
    assert not sent and leader.core.silent
