"""Joint consensus (paper, section 6; thesis, section 4.3), and when a configuration is in force (thesis, 4.1)."""

from __future__ import annotations

import pytest

from cluster.raft.configuration import Configuration
from cluster.raft.core import ConfigurationRefused, NotLeader
from cluster.raft.messages import Entry, MessageKind
from cluster.types import EntryKind, Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, config, entries, of

OLD = Configuration((1, 2, 3), (4, 5), (), 1)
JOINT = Configuration((1, 4, 5), (), (1, 2, 3), 2)


def leading(configuration: Configuration = OLD, **settings: int) -> Solo:
    """Its first entry is committed."""
    solo = Solo(1, configuration=configuration, commit=1, applied=1, **settings)
    solo.become_leader()
    for peer in solo.core.peers:
        solo.acknowledge(peer)
    assert solo.core.commit_index == 2
    return solo


def entering() -> Solo:
    """It has proposed the joint configuration, at index 3."""
    solo = leading()
    assert solo.core.propose_configuration(JOINT) == 3
    solo.sync()
    return solo


def test_a_configuration_is_in_force_when_it_is_appended() -> None:
    """Thesis 4.1: on the leader and on followers, committed or not."""
    solo = entering()
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT, 3) and solo.core.commit_index == 2
    follower = Solo(1, configuration=OLD)
    follower.step(MessageKind.APPEND, 2, index=1, log_term=1, entries=[config(2, 1, JOINT)])
    assert (follower.core.configuration, follower.core.configuration_index) == (JOINT, 2)
    assert follower.core.peers == (4, 5, 2, 3) and follower.core.commit_index == 0


@pytest.mark.parametrize("first", [(2, 3), (4, 5)])
def test_a_joint_commit_needs_both_majorities(first: tuple[int, int]) -> None:
    """Paper 6: agreement requires separate majorities from both the old and new configurations."""
    solo = entering()
    for peer in first:
        solo.acknowledge(peer)
        assert solo.core.commit_index == 2
    solo.acknowledge(next(each for each in (2, 4) if each not in first))
    assert solo.core.commit_index == 3


@pytest.mark.parametrize("first", [(2, 3), (4, 5)])
def test_a_joint_election_needs_both_majorities(first: tuple[int, int]) -> None:
    solo = Solo(1, configuration=JOINT)
    solo.time_out()
    last = next(each for each in (2, 4) if each not in first)
    for kind, role in ((MessageKind.PRE_VOTE_REPLY, Role.PRE_CANDIDATE), (MessageKind.VOTE_REPLY, Role.CANDIDATE)):
        for voter in first:
            solo.step(kind, voter, term=2)
            assert solo.core.role is role
        solo.step(kind, last, term=2)
    assert solo.core.role is Role.LEADER


@pytest.mark.parametrize("refusing", [(2, 3), (4, 5)])
def test_a_joint_election_is_lost_with_either_majority(refusing: tuple[int, int]) -> None:
    solo = Solo(1, configuration=JOINT)
    solo.time_out()
    for voter in (2, 3, 4, 5):
        if voter not in refusing:
            core = solo.core
            core.votes[voter] = True
    for voter in refusing:
        assert solo.core.role is Role.PRE_CANDIDATE
        solo.step(MessageKind.PRE_VOTE_REPLY, voter, term=1, reject=True)
    assert solo.core.role is Role.FOLLOWER


@pytest.mark.parametrize("answering", [(2, 3), (4, 5), (2, 4)])
def test_a_joint_leader_needs_both_majorities_to_stay_and_to_read(answering: tuple[int, int]) -> None:
    """Check-quorum (thesis 6.2), ReadIndex (6.4) and the lease (6.4.1) rest on the same majorities as elections."""
    solo = entering()
    core = solo.core
    both = answering == (2, 4)
    core.tick(core.settings.lease_ticks)
    core.tick()
    core.read_index(9)
    ready = solo.ready()
    for peer in answering:
        core.step(solo.message(MessageKind.HEARTBEAT_REPLY, peer, context=core.progress[peer].sent))
    answered = [read.context for read in core.read_states] + [read.context for read in ready.read_states]
    assert (answered == [9]) is both and (core.lease_read_index() is not None) is both
    for _ in range(core.settings.election_ticks_min):
        core.tick()
        if core.role is Role.LEADER:
            solo.sync()
            for peer in answering:
                solo.step(MessageKind.HEARTBEAT_REPLY, peer, context=core.progress[peer].sent)
    assert (core.role is Role.LEADER) is both


def test_the_leader_leaves_a_joint_configuration_once_it_is_committed() -> None:
    """Paper 6: once C-old,new has been committed, the leader creates the entry C-new."""
    solo = entering()
    solo.acknowledge(2)
    sent = solo.acknowledge(4)
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT.left(), 4)
    appends = of(sent, MessageKind.APPEND, 5)
    assert [each.entries for each in appends] == [[config(4, 2, JOINT.left())]]
    solo.step(MessageKind.APPEND_REPLY, 2, index=4)
    solo.step(MessageKind.APPEND_REPLY, 3, index=4)
    assert solo.core.commit_index == 3, "they are no members any more"
    solo.acknowledge(4)
    assert solo.core.commit_index == 4


def test_a_new_leader_leaves_the_joint_configuration_that_it_finds() -> None:
    """Not before an entry of its own term is committed: only then is the joint one committed as well (paper, 5.4.2)."""
    solo = Solo(1, configuration=OLD, log=[*entries(1), config(2, 1, JOINT)])
    solo.become_leader()
    assert solo.core.configuration == JOINT and solo.core.settle_index == 3
    solo.acknowledge(4, index=2)
    solo.acknowledge(2, index=2)
    assert (solo.core.commit_index, solo.core.configuration) == (0, JOINT)
    solo.acknowledge(4, index=3)
    solo.acknowledge(2, index=3)
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT.left(), 4)
    assert solo.core.commit_index == 3


def test_a_leader_that_hands_over_does_not_leave_the_joint_configuration() -> None:
    """Its successor does; if none comes, it does so itself afterwards."""
    solo = entering()
    core = solo.core
    core.transfer_leadership(4)
    solo.acknowledge(2)
    solo.acknowledge(4)
    assert core.commit_index == 3 and core.configuration == JOINT and core.transferring == 4
    for _ in range(core.settings.election_ticks_min):
        core.tick()
        solo.sync()
        for peer in core.peers:
            solo.step(MessageKind.HEARTBEAT_REPLY, peer, context=core.progress[peer].sent)
    assert core.transferring == 0 and core.configuration == JOINT.left() and core.role is Role.LEADER


def refused(solo: Solo, configuration: Configuration) -> str:
    core = solo.core
    before = (core.log.last_index, core.configuration)
    with pytest.raises(ConfigurationRefused) as reason:
        core.propose_configuration(configuration)
    assert (core.log.last_index, core.configuration) == before
    return str(reason.value)


def test_no_change_before_the_first_commit_of_the_term() -> None:
    """Ongaro's correction (raft-dev, 2015): a change of an earlier term may still come back, and its majorities need
    not meet those of a change made now."""
    solo = Solo(1, configuration=OLD, commit=1)
    solo.become_leader()
    assert "term" in refused(solo, JOINT)
    solo.acknowledge(2)
    solo.core.propose_configuration(JOINT)


def test_one_change_at_a_time() -> None:
    """Thesis 4.1: the next one waits until the one before it is committed."""
    solo = leading()
    solo.core.propose_configuration(Configuration((1, 2, 3), (4,), (), 2))
    assert "3 is not committed" in refused(solo, Configuration((1, 2, 3), (), (), 2))
    solo.sync()
    solo.acknowledge(2)
    solo.core.propose_configuration(Configuration((1, 2, 3), (), (), 2))


def test_no_change_while_leadership_is_handed_over() -> None:
    solo = leading()
    solo.core.propose([entry()])
    solo.core.transfer_leadership(3)
    assert "handed to 3" in refused(solo, JOINT)


def test_no_change_that_is_not_lawful() -> None:
    assert "joint" in refused(leading(), Configuration((1, 2, 3, 4), (5,), (), 2))
    assert "goes back" in refused(leading(), Configuration((1, 2, 3), (), (), 0))


def test_only_a_leader_changes_the_configuration_and_only_so() -> None:
    with pytest.raises(NotLeader):
        Solo(1).core.propose_configuration(Configuration((1, 2, 3), (4,)))
    with pytest.raises(AssertionError):
        leading().core.propose([Entry(0, 0, EntryKind.CONFIG, OLD.encode())])


def test_a_change_wakes_a_silent_shard() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.run(20)
    assert all(each.core.silent for each in cluster.up())
    (learner,) = cluster.grow()
    assert cluster[learner].log.last_index == cluster[1].log.last_index == cluster[1].commit_index == 2


@pytest.mark.parametrize("replaced_by", [entries(3, first=3), [config(3, 3, Configuration((1, 2, 3), (6,), (), 1))]])
def test_a_configuration_goes_with_its_entry(replaced_by: list[Entry]) -> None:
    """Thesis 4.1: a server must be prepared to fall back to the previous configuration in its log."""
    solo = Solo(configuration=OLD, log=[*entries(1), config(2, 1, OLD), config(3, 2, JOINT), *entries(2, first=4)])
    core = solo.core
    assert (core.configuration, core.configuration_index) == (JOINT, 3)
    solo.step(MessageKind.APPEND, 2, term=3, index=2, log_term=1, entries=replaced_by)
    if replaced_by[0].kind == EntryKind.CONFIG:
        assert (core.configuration, core.configuration_index) == (Configuration((1, 2, 3), (6,), (), 1), 3)
    else:
        assert (core.configuration, core.configuration_index) == (OLD, 2)
    assert set(core.peers) == set(core.configuration.members) - {1}


def test_a_restart_looks_for_configurations_in_the_log() -> None:
    """What was given is that of the applied index; what the log holds above it is in force, committed or not."""
    log = [config(1, 1, Configuration((1, 2, 3), (4,), (), 1)), config(2, 1, OLD), config(3, 1, JOINT)]
    solo = Solo(configuration=OLD, log=log, commit=2, applied=2)
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT, 3)
    assert solo.core.snapshot_point().configuration == OLD
    solo = Solo(configuration=JOINT, log=log, commit=3, applied=3)
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT, 0)


def test_a_snapshot_stands_at_the_applied_index_with_its_configuration() -> None:
    """Not with the one in force, which may never be committed (thesis 5.1)."""
    solo = Solo(1, configuration=OLD, commit=1, applied=1)
    solo.become_leader()
    solo.acknowledge(2)
    solo.sync()
    core = solo.core
    core.propose_configuration(JOINT)
    assert core.snapshot_point().configuration == OLD
    core.compact(2)
    core.check_invariants()
    sent = solo.step(MessageKind.APPEND_REPLY, 3, index=1, context=core.progress[3].sent, reject=True)
    (snapshot,) = of(sent, MessageKind.SNAPSHOT, 3)
    assert (snapshot.index, snapshot.configuration) == (2, OLD)
    for peer in (2, 4, 5):
        solo.acknowledge(peer, index=3)
    solo.sync()
    assert core.applied_index == 3 and core.snapshot_point().configuration == JOINT and not core.configuration.joint
    core.compact(3)
    core.check_invariants()


def test_a_snapshot_brings_its_configuration() -> None:
    """Thesis 5.1: the configuration as of the last entry it covers takes the place of all the log said."""
    solo = Solo(configuration=OLD, log=[*entries(1), config(2, 1, Configuration((1, 2), (), (1, 2, 3), 9))])
    message = solo.message(MessageKind.SNAPSHOT, 9, term=3, index=7, log_term=2, configuration=JOINT)
    assert solo.core.wants_snapshot(message), "its leader may be unknown here"
    solo.core.step(message)
    ready = solo.ready()
    assert ready.snapshot is not None and ready.snapshot.configuration == JOINT
    assert (solo.core.configuration, solo.core.configuration_index) == (JOINT, 0)
    assert solo.core.peers == (4, 5, 2, 3) and solo.core.snapshot_point().configuration == JOINT


def test_a_snapshot_of_a_joint_configuration_makes_a_follower_that_can_finish_it() -> None:
    """The state is all that is left of the change: whoever leads next leaves it."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    (learner,) = cluster.grow()
    cluster.run(3)
    cluster.isolate(3)
    cluster.lose = lambda message: any(each.index == 4 for each in message.entries)  # what leaves the joint one
    cluster.become(1, 2, 3, learner)
    assert leader.core.configuration_index == 4 and leader.core.commit_index == 3
    cluster.run(2)
    leader.compact(leader.core.applied_index)
    cluster.cut.clear()
    cluster.run(4)
    follower = cluster[3]
    assert follower.log.base_index == 3 and follower.configuration.joint and follower.configuration_index == 0
    leader.crash()
    cluster.heal()
    cluster.run(60)
    assert cluster.leader().core.configuration == Configuration((1, 2, 3, learner), (), (), 2)
    assert cluster.laws.newest[1] == cluster.leader().core.configuration


@pytest.mark.parametrize("on", [(1,), (1, 2), (1, 4), (1, 2, 4), (1, 2, 3, 4, 5)])
def test_a_crash_in_the_middle_of_a_joint_change(on: tuple[int, ...]) -> None:
    """Whoever holds the joint entry when the leader dies: somebody leads, and the change is either over or undone."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.grow(2)
    cluster.run(3)
    assert leader.reconfigure(Configuration((3, 4, 5), (), (1, 2, 3), 2))
    cluster.lose = lambda message: bool(message.entries) and message.receiver not in on
    cluster.settle()
    held = [each.replica for each in cluster.up() if each.core.configuration.joint]
    if cluster.laws.commit < 3:
        assert held == list(on)
    leader.crash(kept=9)
    cluster.lose = lambda message: False
    cluster.run(60)
    found = cluster.leader().core.configuration
    assert found in (Configuration((3, 4, 5), (), (), 2), Configuration((1, 2, 3), (4, 5), (), 1))
    assert cluster.leader().propose(b"x")
    cluster.run(5)
    assert cluster.laws.commit == cluster.leader().core.log.last_index


def test_all_voters_are_replaced_at_once() -> None:
    """Paper 6: from any configuration to any other; here no voter of the old one is in the new one."""
    cluster = Cluster(3)
    cluster.elect(1)
    new = cluster.grow(3)
    cluster.run(5)
    assert all(cluster[1].caught_up(each) for each in new)
    cluster.become(*new)
    cluster.run(60)
    leader = cluster.leader()
    assert leader.replica in new and leader.core.configuration.voters == tuple(new)
    for old in (1, 2, 3):
        cluster.retire(old)
    assert leader.propose(b"x")
    cluster.run(5)
    assert cluster.laws.commit == leader.core.log.last_index


def test_from_three_to_five_and_back() -> None:
    """Architecture, section 3: meta grows to five members and shrinks again."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    new = cluster.grow(2)
    cluster.run(3)
    cluster.become(1, 2, 3, *new)
    cluster.isolate(3)
    cluster.isolate(5)
    assert leader.propose(b"three of five")
    cluster.run(5)
    assert cluster.laws.commit == leader.core.log.last_index
    cluster.isolate(2)
    assert leader.propose(b"two of five")
    cluster.run(5)
    assert cluster.laws.commit == leader.core.log.last_index - 1
    cluster.heal()
    cluster.run(60)
    cluster.become(1, 2, 3)
    cluster.run(60)
    assert cluster.leader().core.configuration.voters == (1, 2, 3)
    assert all(each.core.configuration == cluster.leader().core.configuration for each in cluster.up())


def test_a_read_is_answered_when_nobody_is_left_to_confirm_it() -> None:
    """It waited for replica 2, whose answer to an earlier message makes the leader the only voter."""
    solo = leading(Configuration((1, 2)))
    core = solo.core
    core.propose_configuration(Configuration((1,), (), (1, 2)))
    solo.sync()
    context = core.progress[2].sent
    core.read_index(4)
    solo.sync()
    core.step(solo.message(MessageKind.APPEND_REPLY, 2, index=3, context=context))
    assert core.alone and [(read.context, read.index) for read in solo.ready().read_states] == [(4, 2)]


def test_a_leader_that_will_be_the_only_voter_still_asks_the_others() -> None:
    """Until the joint configuration is left a majority of the old one counts as well."""
    solo = leading(Configuration((1, 2, 3)))
    core = solo.core
    core.propose_configuration(Configuration((1,), (), (1, 2, 3)))
    solo.sync()
    core.tick(core.settings.lease_ticks)
    core.tick()
    core.read_index(4)
    assert not core.alone and not solo.ready().read_states and core.lease_read_index() is None


def test_a_leader_that_was_alone_steps_down_without_its_new_voter() -> None:
    """Check-quorum (thesis 6.2) begins to count for it like for any other leader."""
    cluster = Cluster(1)
    leader = cluster.elect(1)
    cluster.run(50)
    cluster.grow()
    cluster.isolate(2)
    assert leader.propose(b"keeps it awake")
    cluster.run(20)
    cluster.become(1, 2)
    assert leader.core.role is Role.LEADER
    cluster.run(cluster.settings.election_ticks_min + 1)
    assert leader.core.role is not Role.LEADER


def test_a_single_voter_becomes_two_and_one_again() -> None:
    cluster = Cluster(1)
    leader = cluster.elect(1)
    cluster.grow()
    cluster.run(3)
    cluster.become(1, 2)
    assert leader.core.configuration == Configuration((1, 2), (), (), 2) and not leader.core.alone
    cluster.become(1)
    assert leader.core.alone
    assert leader.propose(b"x")
    cluster.settle()
    assert cluster.laws.commit == leader.core.log.last_index


def test_the_bug_of_changes_without_an_own_commit() -> None:
    """Ongaro's schedule (raft-dev, 2015), with joint changes. Replica 1 leads term 1 and appends a change that nobody hears
    of; 2 leads term 2 and would make another one at once, which 1 could later overwrite, since a majority of its own
    configuration need not have heard of it. The own commit comes first, and then 1 finds no majority."""
    cluster = Cluster(4)
    first = cluster.elect(1)
    (five,) = cluster.grow()
    cluster.run(3)
    cluster.isolate(1)
    cluster.cut -= {(1, five), (five, 1)}
    assert first.reconfigure(Configuration((1, 2, 3, 4, five), (), (1, 2, 3, 4), 2))
    cluster.settle()
    assert cluster[five].configuration.joint
    cluster.expire_promises()
    cluster.lose = lambda message: message.kind == MessageKind.APPEND
    cluster[2].campaign(force=True)
    cluster.settle()
    second = cluster.replicas[2]
    assert second.core.role is Role.LEADER
    change = Configuration((2, 3), (five,), (1, 2, 3, 4), 2)
    assert not second.reconfigure(change), "nothing of its own term is committed"
    cluster.lose = lambda message: False
    cluster.run(3)
    assert second.reconfigure(change)
    cluster.run(3)
    assert second.core.configuration == Configuration((2, 3), (five,), (), 2) and second.core.commit_index == 5
    second.crash()
    cluster.heal()
    cluster.expire_promises()
    cluster[1].campaign(force=True)
    cluster.run(3)
    assert cluster[1].role is not Role.LEADER
    second.start()
    cluster.run(80)
    assert cluster.leader().core.configuration.voters == (2, 3)


def test_two_changes_in_flight_do_not_meet() -> None:
    """A deposed leader's change is undone by the new leader's log, which holds another one at the same index."""
    cluster = Cluster(3)
    first = cluster.elect(1)
    cluster.grow(2)
    cluster.run(3)
    cluster.isolate(1)
    assert first.reconfigure(Configuration((1, 4, 5), (), (1, 2, 3), 2))
    cluster.settle()
    cluster.run(40)
    second = cluster.leader()
    assert second.replica in (2, 3)
    assert second.reconfigure(Configuration((1, 2, 3, 4), (5,), (1, 2, 3), 2))
    cluster.run(5)
    assert cluster[1].configuration == Configuration((1, 4, 5), (), (1, 2, 3), 2)
    cluster.heal()
    cluster.run(60)
    assert second.core.configuration == cluster[1].configuration == Configuration((1, 2, 3, 4), (5,), (), 2)
    assert cluster[1].log.term_at(3) == second.core.term > 1
