"""Leadership transfer: thesis, section 3.10."""

from __future__ import annotations

import pytest

from cluster.raft.messages import MessageKind, NotLeader
from cluster.types import Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, of


def test_leadership_moves_without_a_timeout() -> None:
    """The target campaigns at once, without pre-vote, and the promises to the old leader do not stop it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[1].transfer_leadership(3)
    cluster.settle()
    assert [cluster[replica].role for replica in (1, 2, 3)] == [Role.FOLLOWER, Role.FOLLOWER, Role.LEADER]
    assert cluster[3].term == 2 and cluster.rounds == 0


def test_the_target_is_brought_up_to_date_first() -> None:
    """Step 2: TIMEOUT_NOW leaves when its log matches; until then no proposal is taken (step 1)."""
    solo = Solo()
    solo.become_leader()
    solo.acknowledge(2)
    solo.core.propose([entry()])
    solo.core.transfer_leadership(3)
    with pytest.raises(NotLeader) as refused:
        solo.core.propose([entry()])
    assert refused.value.leader == 3
    assert not of(solo.sync(), MessageKind.TIMEOUT_NOW)
    assert not of(solo.acknowledge(3, index=1), MessageKind.TIMEOUT_NOW)
    (now,) = of(solo.acknowledge(3, index=2), MessageKind.TIMEOUT_NOW)
    assert now.receiver == 3


def test_a_transfer_that_fails_is_given_up() -> None:
    """After an election timeout the leader takes proposals again."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.core.transfer_leadership(3)
    cluster.run(cluster.settings.election_ticks_min - 1)
    assert leader.core.transferring == 3 and not leader.propose(b"x")
    cluster.run(1)
    assert leader.core.transferring == 0 and leader.propose(b"x")
    cluster.settle()
    assert cluster.laws.commit == 2


def test_a_stale_timeout_now_changes_nothing() -> None:
    """A late copy of an earlier term is refused like every message of one."""
    solo = Solo(1, term=5)
    (reply,) = solo.step(MessageKind.TIMEOUT_NOW, term=4)
    assert reply.reject and solo.core.role is Role.FOLLOWER and solo.core.term == 5


def test_only_voters_that_lead_hand_over() -> None:
    solo = Solo(1)
    with pytest.raises(NotLeader):
        solo.core.transfer_leadership(2)
    solo.become_leader()
    solo.core.transfer_leadership(1)
    assert solo.core.transferring == 0
    with pytest.raises(AssertionError):
        solo.core.transfer_leadership(9)


def test_the_target_need_not_win() -> None:
    """Its election is one like any other: a log that fell behind gets no votes."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    cluster.lose = lambda message: message.receiver == 3 and message.kind == MessageKind.APPEND
    assert leader.propose(b"x")
    cluster.settle()
    message = Solo().message(MessageKind.TIMEOUT_NOW, 1, term=1)
    message.receiver = 3
    cluster[3].step(message)
    cluster.settle()
    assert cluster[3].role is not Role.LEADER and cluster[3].term == 2
    cluster.heal()
    cluster.run(60)
    assert cluster.leader().core.log.term_at(2) == 1
