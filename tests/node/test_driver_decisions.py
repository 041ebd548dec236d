"""The driver's decisions: what begins and what does not; and from random maps and random failures a cluster always gets where it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cluster.limits import DEFAULT, Limits
from cluster.membership.state import MAY_HOLD, MemberState, state_of
from cluster.ring.placement import Planner, under_way
from cluster.ring.shard_map import replicas_of, shards_on
from node.decisions import Answers, Decision, decide
from proto.gen.meta_pb2 import MetaCommand, SetRebalancing, SettleShard
from proto.gen.node_pb2 import ReplicaStatus, StatusReply
from tests.node.driver_model import ModelCluster

LIMITS = replace(DEFAULT, nodes_max=9)
ON = MetaCommand(set_rebalancing=SetRebalancing(on=True))


def cluster(nodes: int = 3, shards: int = 6, replicas: int = 3, limits: Limits = LIMITS) -> ModelCluster:
    return ModelCluster(nodes, shards, replicas, limits)


def look(model: ModelCluster, *silent: str) -> Decision:
    return model.decision(model.up - set(silent), Planner())


def carry_out(model: ModelCluster, decision: Decision) -> None:
    for command in decision.commands:
        model.command(command)
    model.follow()


def work(model: ModelCluster) -> None:
    """The groups do all they can for the map as it is."""
    for _ in range(6):
        for shard in range(len(model.groups)):
            model.reconcile(shard)
            model.catch_up(shard)


def until_settled(model: ModelCluster, rounds: int = 200) -> int:
    for number in range(rounds):
        decision = look(model)
        if decision.settled:
            return number
        carry_out(model, decision)
        work(model)
        assert model.sound()
    raise AssertionError(f"not settled after {rounds} looks: {decision}")


def kinds(decision: Decision) -> list[str | None]:
    return [command.WhichOneof("command") for command in decision.commands]


def test_a_quiet_cluster_is_left_alone() -> None:
    model = cluster()
    decision = look(model)
    assert decision.settled and not decision.stuck


def test_a_rebalance_begins_ends_and_says_so() -> None:
    model = cluster()
    model.join("n4")
    model.detect("n4")
    assert look(model).settled, "not before it is asked for"
    model.command(ON)
    first = look(model)
    assert kinds(first) == ["add_replica"] * LIMITS.moves_per_node_max, "no more learners at a time on the new node"
    assert len(first.waiting) == 4
    until_settled(model)
    model.check_reached()
    assert not model.map.rebalancing and len(shards_on(model.map, "n4")) == 4
    leads = [replicas_of(model.map, shard)[0].node for shard in range(1, 7)]
    assert max(leads.count(node) for node in model.names) <= 2


def test_no_more_shards_change_at_a_time_than_the_bound() -> None:
    model = cluster(nodes=6, shards=20, limits=replace(LIMITS, moves_max=3, moves_per_node_max=9))
    model.join("n7")
    model.detect("n7")
    model.command(ON)
    carry_out(model, look(model))
    assert len(under_way(model.map)) == 3
    assert kinds(look(model)) == []


def test_no_move_goes_to_a_node_that_does_not_answer() -> None:
    model = cluster()
    model.join("n4")
    model.detect("n4")
    model.command(ON)
    decision = look(model, "n4")
    assert not decision.commands and len(decision.waiting) == 4
    assert decision.stuck == "n4 does not answer"


def test_nothing_begins_without_a_leader_or_without_a_majority_that_is_well() -> None:
    model = cluster(nodes=4, shards=1)
    node = replicas_of(model.map, 1)[0].node
    model.state(node, MemberState.LEAVING)
    others = [each.node for each in replicas_of(model.map, 1)][1:]
    decision = look(model, *others)
    data = [command for command in decision.commands if command.add_replica.shard == 1]
    assert not data and "shard 1" in decision.stuck
    answers = [model.answer(each) for each in model.names]
    for answer in answers:
        for row in answer.replicas:
            if row.shard == 1 and row.role != "leader":
                row.role = "quarantined"
    found = Answers(model.map, answers)
    decision = decide(model.map, Planner().plan(model.map, found.quarantined), found, LIMITS)
    assert not [command for command in decision.commands if command.add_replica.shard == 1]
    assert "shard 1: only 1 of 3 voters are well" in decision.stuck


def test_only_the_word_of_the_latest_term_counts() -> None:
    model = cluster(nodes=4, shards=1)
    answers = [model.answer(node) for node in model.names]
    found = Answers(model.map, answers)
    assert found.leader(1) is not None
    follower = next(row for answer in answers for row in answer.replicas if row.shard == 1 and row.role == "follower")
    follower.term = 2
    assert Answers(model.map, answers).leader(1) is None, "the leader of term 1 may have been deposed"
    follower.role = "leader"
    for order in (answers, answers[::-1]):
        leader = Answers(model.map, order).leader(1)
        assert leader is not None and leader.replica == follower.replica


def changing_row() -> tuple[ModelCluster, int, ReplicaStatus]:
    """A cluster with one move under way in shard 1, and the row of its leader, to be altered."""
    model = cluster(nodes=4, shards=1)
    source = replicas_of(model.map, 1)[2].node
    model.state(source, MemberState.LEAVING)
    carry_out(model, look(model))
    learner = max(each.id for each in replicas_of(model.map, 1))
    leader = ReplicaStatus(shard=1, replica=1, role="leader", term=3, voters=[1, 2, 3], learners=[learner])
    leader.configuration_version = model.map.shards[1].version
    leader.configuration_applied = True
    return model, learner, leader


def decided(model: ModelCluster, leader: ReplicaStatus, *quarantined: int) -> list[MetaCommand]:
    rows = [ReplicaStatus(shard=1, replica=number, role="quarantined") for number in quarantined]
    answers = Answers(model.map, [StatusReply(node="n1", replicas=[leader, *rows])])
    plan = Planner().plan(model.map, answers.quarantined)
    return [
        each
        for each in decide(model.map, plan, answers, LIMITS).commands
        if each.WhichOneof("command") != "add_replica"
    ]


def test_what_the_group_has_committed_is_settled_and_nothing_before() -> None:
    model, learner, leader = changing_row()
    version = model.map.shards[1].version
    assert decided(model, leader) == [], "the learner catches up"
    del leader.voters[:], leader.learners[:]
    leader.voters.extend([1, 2, learner])
    settle = MetaCommand(settle=SettleShard(shard=1, version=version, voters=[1, 2, learner]))
    assert decided(model, leader) == [settle]
    for field, value in (("configuration_applied", False), ("configuration_version", version - 1)):
        unfinished = ReplicaStatus()
        unfinished.CopyFrom(leader)
        setattr(unfinished, field, value)
        assert decided(model, unfinished) == [], field
    leader.outgoing.extend([1, 2, 3])
    assert decided(model, leader) == [], "it is joint"


@pytest.mark.parametrize("why", ["down", "leaving", "quarantined"])
def test_a_learner_without_a_future_is_given_up(why: str) -> None:
    model, learner, leader = changing_row()
    node = model.node_of[1, learner]
    if why == "leaving":
        model.join("n5")
        model.detect("n5")
        assert model.state(node, MemberState.LEAVING).name == "OK"
    elif why == "down":
        model.state(node, MemberState.SUSPECT)
        assert decided(model, leader) == [], "not for being suspect"
        model.state(node, MemberState.DOWN)
    commands = decided(model, leader, *([learner] if why == "quarantined" else []))
    assert [each.retire_replica.replica for each in commands] == [learner]
    leader.voters.append(learner)
    leader.outgoing.extend([1, 2, 3])
    assert decided(model, leader, *([learner] if why == "quarantined" else [])) == [], "it votes already"


def test_a_retirement_that_the_others_cannot_carry_is_undone() -> None:
    model = cluster(nodes=5, shards=1)
    gone = [each.node for each in replicas_of(model.map, 0)][-1]
    model.state(gone, MemberState.LEAVING)
    carry_out(model, look(model))
    assert [move.to for move in under_way(model.map) if move.shard == 0] == [""]
    staying = [each for each in replicas_of(model.map, 0) if each.node != gone]
    for each in staying[:2]:
        assert model.rot(0, each.id)
    carry_out(model, look(model))
    assert [move for move in under_way(model.map) if move.shard == 0] == []
    until_settled(model)
    model.check_reached()


def test_no_voter_is_retired_while_another_is_not_well() -> None:
    model = cluster(nodes=5, shards=1)
    model.state("n5", MemberState.LEAVING)
    assert [each.retire_replica.replica for each in look(model).commands if each.HasField("retire_replica")] == [5]
    decision = look(model, "n2")
    assert not [each for each in decision.commands if each.HasField("retire_replica")]
    assert "shard 0: only 4 of 5 voters are well, and one is to go without a successor" in decision.stuck


def test_a_member_that_is_dead_is_repaired_and_one_that_is_drained_is_empty() -> None:
    model = cluster(nodes=5, shards=12)
    assert model.kill("n2")
    model.detect("n2")
    assert look(model).settled, "it is only suspect"
    model.detect("n2")
    until_settled(model)
    model.check_reached()
    model.state("n1", MemberState.LEAVING)
    until_settled(model)
    model.check_reached()
    assert shards_on(model.map, "n1") == shards_on(model.map, "n2") == []


def test_a_rotten_replica_is_rebuilt_where_it_is() -> None:
    model = cluster(nodes=3, shards=3)
    assert model.rot(2, 3) and model.rot(0, 1)
    places = [[each.node for each in row.replicas] for row in model.map.shards]
    until_settled(model)
    model.check_reached()
    assert [[each.node for each in row.replicas] for row in model.map.shards] == places
    assert 3 not in {each.id for each in replicas_of(model.map, 2)}


@settings(derandomize=True, deadline=None, max_examples=40, phases=[Phase.generate])
@given(st.data())
def test_whatever_fails_and_whoever_drives_the_cluster_gets_where_it_should(data: st.DataObject) -> None:
    """Decisions are made from what some nodes said a while ago, carried out in part, and made anew by a driver that knows nothing; between any
    two steps a node stops or dies, a replica rots, a person drains a node. A quorum of every group stays whole, and in the end all is
    where it should be."""
    limits = replace(LIMITS, moves_max=data.draw(st.integers(1, 4)), moves_per_node_max=data.draw(st.integers(1, 2)))
    nodes = data.draw(st.integers(3, 6))
    model = cluster(nodes, data.draw(st.integers(1, 6)), data.draw(st.sampled_from([1, 2, 3, 3])), limits)
    pending: list[MetaCommand] = []
    for _ in range(data.draw(st.integers(10, 80))):
        disturb(model, data)
        action = data.draw(st.sampled_from(["decide", "decide", "command", "die", "group", "group", "learn", "detect"]))
        shard = data.draw(st.integers(0, len(model.groups) - 1))
        if action == "decide":
            answering = [node for node in sorted(model.up) if data.draw(st.integers(0, 9))]
            pending = list(model.decision(answering, Planner()).commands)
        elif action == "command" and pending:
            model.command(pending.pop(0))
            if data.draw(st.booleans()):
                model.follow()
        elif action == "die":
            pending = []
        elif action == "group":
            model.reconcile(shard)
        elif action == "learn":
            model.follow()
            model.catch_up(shard)
        elif action == "detect":
            model.detect(data.draw(st.sampled_from(model.names)))
        assert model.sound()
        assert len(under_way(model.map)) <= limits.moves_max
    heal(model)


def disturb(model: ModelCluster, data: st.DataObject) -> None:
    fault = data.draw(
        st.sampled_from(["", "", "", "", "stop", "start", "start", "kill", "rot", "drain", "join", "rebalance"])
    )
    node = data.draw(st.sampled_from(model.names)) if fault else ""
    able = sum(state_of(each) in MAY_HOLD and each.node not in model.dead for each in model.map.members)
    if fault == "stop":
        model.up.discard(node)
    elif fault == "start" and node not in model.dead:
        model.up.add(node)
    elif fault == "kill" and able > model.map.replication_factor:
        model.kill(node)
    elif fault == "rot":
        holders = [each for each in model.node_of if each in model.whole]
        model.rot(*data.draw(st.sampled_from(sorted(holders))))
    elif fault == "drain" and able > model.map.replication_factor:
        model.state(node, MemberState.LEAVING)
    elif fault == "join" and len(model.names) < 9:
        model.join(f"n{len(model.names) + 1}")
    elif fault == "rebalance":
        model.command(ON)


def heal(model: ModelCluster) -> None:
    model.up |= set(model.names) - model.dead
    model.follow()
    for _ in range(3):
        for node in model.names:
            model.detect(node)
    able = [each for each in model.map.members if state_of(each) in MAY_HOLD]
    if len(able) < model.map.replication_factor:
        return
    until_settled(model)
    for each in list(model.map.members):  # a person says that these never come back: meta need not wait for them
        if state_of(each) is MemberState.DOWN:
            model.command(MetaCommand(remove_member=each.node))
    until_settled(model)
    model.check_reached()
    assert not model.map.rebalancing
