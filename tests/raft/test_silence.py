"""Silence: a shard with nothing to do stops ticking (README of cluster/raft); not from the paper."""

from __future__ import annotations

import pytest

from cluster.raft.messages import MessageKind
from cluster.types import Role
from tests.raft.network import Cluster, copied
from tests.raft.solo import Solo, entries


def silent(cluster: Cluster) -> list[bool]:
    return [each.core.silent for each in cluster.replicas.values()]


def quiet() -> Cluster:
    cluster = Cluster(3)
    leader = cluster.elect(1)
    assert leader.propose(b"a")
    cluster.run(15)
    assert silent(cluster) == [True] * 3
    return cluster


def test_an_idle_cluster_falls_silent_and_sends_nothing() -> None:
    """And every follower knows the last commit by then."""
    cluster = quiet()
    assert {each.core.commit_index for each in cluster.up()} == {2}
    for _ in range(100):
        cluster.tick()
        assert not any(each.core.has_ready() for each in cluster.up()) and not cluster.mail
    assert cluster[1].role is Role.LEADER


@pytest.mark.parametrize("cause", ["propose", "read", "wake", "transfer", "reconnected"])
def test_the_leader_wakes_and_asks_around(cause: str) -> None:
    cluster = quiet()
    leader = cluster.replicas[1]
    if cause == "propose":
        assert leader.propose(b"b")
    elif cause == "read":
        assert leader.read() is not None
    elif cause == "wake":
        leader.core.wake()
    elif cause == "reconnected":
        leader.core.peer_reconnected(2)
    else:
        leader.core.transfer_leadership(2)
    assert not leader.core.silent
    leader.begin()
    assert sorted(m.receiver for m, _ in cluster.mail if m.kind in (MessageKind.HEARTBEAT, MessageKind.APPEND)) == [
        2,
        3,
    ]
    cluster.settle()
    assert not any(silent(cluster))
    cluster.run(15)
    assert all(silent(cluster)), "and falls silent again"


def test_no_silence_while_one_lags() -> None:
    """Who is cut off must be able to come back without anyone waking the leader."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    assert leader.propose(b"a")
    cluster.run(50)
    assert silent(cluster) == [False] * 3
    cluster.heal()
    cluster.run(20)
    assert silent(cluster) == [True] * 3


def test_no_silence_while_one_does_not_answer() -> None:
    """Even if it holds everything: check-quorum must go on."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.run(1)
    cluster.cut |= {(1, 3), (3, 1)}
    cluster.run(8)
    assert not cluster[1].silent


def test_followers_ignore_requests_meant_for_a_leader() -> None:
    """A client that asks the wrong replica must not start its election timer."""
    cluster = quiet()
    follower = cluster.replicas[2]
    assert not follower.propose(b"x") and follower.read() is None
    assert follower.core.silent


def test_a_woken_follower_waits_a_full_timeout() -> None:
    """Until now the node's heartbeats spoke for the leader."""
    cluster = quiet()
    cluster.replicas[1].crash()
    core = cluster[2]
    core.wake()
    for _ in range(cluster.settings.election_ticks_min - 1):
        core.tick()
    assert core.role is Role.FOLLOWER


def test_a_crash_of_a_silent_leader_is_survived() -> None:
    """The driver's suspicion wakes the followers, they elect."""
    cluster = quiet()
    cluster.replicas[1].crash()
    cluster.run(80)
    assert len(cluster.leaders()) == 1 and cluster.leader().propose(b"b")
    cluster.settle()
    assert cluster.laws.commit == 4


def test_a_restarted_follower_wakes_the_leader() -> None:
    """It hears nothing and asks for votes; the leader answers with heartbeats and stays."""
    cluster = quiet()
    cluster.replicas[3].crash()
    cluster.replicas[3].start()
    cluster.run(40)
    assert cluster[1].role is Role.LEADER and cluster[1].term == 1
    assert silent(cluster) == [True] * 3


def test_a_follower_that_cannot_be_silent_says_so() -> None:
    """The leader's last heartbeat names a commit it holds, but its own log goes on."""
    solo = Solo(1, 1, 1, commit=1)
    (reply,) = solo.step(MessageKind.HEARTBEAT, commit=2, flag=True, context=5)
    assert (reply.kind, reply.context) == (MessageKind.HEARTBEAT_REPLY, 5)
    assert not solo.core.silent
    assert solo.step(MessageKind.HEARTBEAT, commit=3, flag=True) == []
    assert solo.core.silent


@pytest.mark.parametrize("kind", [MessageKind.HEARTBEAT, MessageKind.APPEND, MessageKind.PRE_VOTE])
def test_other_messages_wake_a_follower(kind: MessageKind) -> None:
    solo = Solo(1, commit=1)
    solo.step(MessageKind.HEARTBEAT, commit=1, flag=True)
    assert solo.core.silent
    fields = (
        {"term": 2}
        if kind == MessageKind.PRE_VOTE
        else {"index": 1, "log_term": 1}
        if kind == MessageKind.APPEND
        else {}
    )
    solo.step(kind, **fields)
    assert not solo.core.silent and solo.core.election_elapsed == 0


def test_an_old_farewell_delays_but_does_not_stop() -> None:
    """A heartbeat from before a silence comes late, at a follower that misses newer entries: it stops ticking, but the
    next message wakes it, and nothing is lost."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    farewells = []
    for _ in range(15):
        cluster.tick()
        for each in cluster.up():
            each.begin()
            each.finish()
        farewells += [copied(m) for m, _ in cluster.mail if m.flag and m.receiver == 3]
        cluster.settle()
    cluster.cut = {(1, 3)}
    assert leader.propose(b"b")
    cluster.settle()
    cluster[3].wake()
    cluster[3].step(farewells[-1])
    assert cluster[3].silent and cluster[3].log.last_index < cluster[1].log.last_index
    cluster.heal()
    cluster.run(25)
    assert cluster[3].commit_index == cluster[1].commit_index == 2
    assert silent(cluster) == [True] * 3


def test_a_leader_that_lost_its_farewells_stays() -> None:
    """The followers stay awake, time out and ask; the leader wakes, and nobody is deposed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.lose = lambda message: message.flag
    cluster.run(12)
    assert silent(cluster) == [True, False, False]
    cluster.heal()
    cluster.run(60)
    assert cluster[1].role is Role.LEADER and cluster[1].term == 1
    assert silent(cluster) == [True] * 3


def test_a_silent_core_ignores_ticks() -> None:
    solo = Solo(1, commit=1)
    solo.step(MessageKind.HEARTBEAT, commit=1, flag=True)
    solo.core.tick(1000)
    assert solo.core.silent and not solo.core.has_ready()
    solo.step(MessageKind.APPEND, index=1, log_term=1, entries=entries(1, first=2))
    assert solo.core.log.last_index == 2
