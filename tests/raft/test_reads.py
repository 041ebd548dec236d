"""Linearizable reads and the leader lease: thesis, sections 6.4 and 6.4.1."""

from __future__ import annotations

import pytest

from cluster.raft.messages import MessageKind, NotLeader, ReadState
from cluster.types import Role
from tests.raft.network import Cluster, entry
from tests.raft.solo import Solo, of


def led(*terms: int, voters: int = 3, **settings: int) -> Solo:
    """A leader whose term is committed."""
    solo = Solo(*terms, voters=voters, **settings)
    solo.become_leader()
    for peer in solo.core.peers[: voters // 2]:
        solo.acknowledge(peer)
    assert solo.core.commit_index == solo.core.term_start
    return solo


def test_a_read_waits_for_a_round_sent_after_it() -> None:
    """Thesis 6.4, step 3: the answers to new heartbeats show that no later leader existed when the read came."""
    solo = led()
    solo.core.read_index(7)
    ready = solo.ready()
    beats = of(ready.messages_now, MessageKind.HEARTBEAT)
    assert [m.receiver for m in beats] == [2, 3] and not ready.read_states
    solo.core.step(solo.message(MessageKind.HEARTBEAT_REPLY, 3, context=beats[0].context))
    assert solo.ready().read_states == [ReadState(7, 1)]


def test_confirmations_of_earlier_rounds_do_not_count() -> None:
    """Thesis 6.4: an answer to a message that left before the read arrived proves nothing for it."""
    solo = led()
    for _ in range(solo.core.settings.heartbeat_ticks):
        solo.core.tick()
    (early, _) = of(solo.ready().messages_now, MessageKind.HEARTBEAT)
    solo.core.read_index(7)
    for peer in (2, 3):
        solo.core.step(solo.message(MessageKind.HEARTBEAT_REPLY, peer, context=early.context))
    ready = solo.ready()
    assert not ready.read_states
    assert [m.receiver for m in ready.messages_now] == [3, 2], "a probe and a heartbeat: both leave now"


def test_many_reads_share_a_round() -> None:
    """All that arrive before the Ready is taken, and it needs no heartbeat where an append goes anyway."""
    solo = led()
    for context in (1, 2, 3):
        solo.core.read_index(context)
    solo.core.propose([entry()])
    ready = solo.ready()
    assert [(m.kind, m.receiver) for m in ready.messages_now] == [
        (MessageKind.APPEND, 2),
        (MessageKind.HEARTBEAT, 3),
    ], "replica 3 is still being probed"
    solo.persist()
    assert not solo.core.has_ready()
    solo.acknowledge(2)
    solo.core.step(solo.message(MessageKind.HEARTBEAT_REPLY, 2, context=ready.messages_now[0].context))


def test_an_append_confirms_as_well() -> None:
    """Its answer comes from the same follower in the same term."""
    solo = led()
    solo.core.read_index(1)
    solo.core.propose([entry()])
    (append,) = of(solo.ready().messages_now, MessageKind.APPEND, 2)
    solo.persist()
    solo.core.step(solo.message(MessageKind.APPEND_REPLY, 2, index=2, context=append.context))
    assert solo.ready().read_states == [ReadState(1, 1)]


def test_a_refusal_confirms_as_well() -> None:
    """A follower that lacks entries still follows: a read does not depend on its log."""
    solo = led(1, 1)
    solo.core.peer_reconnected(3)
    solo.core.read_index(1)
    (append,) = of(solo.ready().messages_now, MessageKind.APPEND, 3)
    solo.core.step(
        solo.message(
            MessageKind.APPEND_REPLY,
            3,
            reject=True,
            index=append.index,
            hint_index=1,
            hint_term=1,
            context=append.context,
        )
    )
    assert [read.context for read in solo.ready().read_states] == [1]


def test_a_new_leader_answers_after_its_first_commit() -> None:
    """Thesis 6.4, step 1: until then it does not know what its predecessors committed."""
    solo = Solo(1, 1, 1, commit=1, applied=1)
    solo.become_leader()
    solo.core.read_index(5)
    assert solo.sync() == []
    for _ in range(solo.core.settings.heartbeat_ticks):
        solo.core.tick()
    stamp = of(solo.sync(), MessageKind.HEARTBEAT)[0].context
    for peer in (2, 3):
        solo.core.step(solo.message(MessageKind.HEARTBEAT_REPLY, peer, context=stamp))
    assert solo.core.early_reads == [5] and solo.core.lease_read_index() is None
    solo.step(MessageKind.APPEND_REPLY, 2, index=4, context=stamp)
    (state,) = [solo.core.reads[0][1]] if solo.core.reads else [None]
    assert state == ReadState(5, 4)


def test_a_deposed_leader_refuses_its_reads() -> None:
    """Etcd #20418 and the like: what waits when leadership ends is answered with -1, never with the old index."""
    solo = led()
    solo.core.read_index(5)
    solo.sync()
    solo.core.read_index(6)
    solo.core.step(solo.message(MessageKind.APPEND, 3, term=9))
    assert solo.ready().read_states == [ReadState(5, -1), ReadState(6, -1)]
    with pytest.raises(NotLeader):
        solo.core.read_index(7)


def test_a_cut_off_leader_answers_nothing() -> None:
    """Thesis 6.4: others may have elected and written; its reads stay open until it notices."""
    cluster = Cluster(3)
    old = cluster.elect(1)
    cluster.run(3)
    cluster.isolate(1)
    cluster.expire_promises()
    cluster.elect(2)
    assert cluster.replicas[2].propose(b"new")
    cluster.settle()
    assert cluster[1].role is Role.LEADER
    context = old.read()
    cluster.settle()
    assert context in old.reads
    cluster.run(cluster.settings.election_ticks_min + 1)
    assert context is not None and old.answers[context] == -1


def test_the_stamp_of_a_lost_round_is_made_up_for() -> None:
    """The next heartbeat confirms too."""
    cluster = Cluster(3)
    leader = cluster.elect(1)
    context = leader.read()
    cluster.lose = lambda message: message.kind == MessageKind.HEARTBEAT
    cluster.settle()
    cluster.heal()
    assert context in leader.reads
    cluster.run(cluster.settings.heartbeat_ticks)
    assert context is not None and leader.answers[context] == 1


def test_one_voter_reads_at_once() -> None:
    solo = Solo(voters=1)
    solo.core.campaign()
    solo.core.read_index(1)
    assert solo.ready().read_states == []
    solo.persist()
    solo.core.read_index(2)
    assert solo.ready().read_states == [ReadState(1, 1), ReadState(2, 1)]
    assert solo.core.lease_read_index() == 1


def test_a_lease_counts_from_sending() -> None:
    """Thesis 6.4.1: from when the heartbeat left, not from when the answer came; less than the voters' promise."""
    solo = led()
    settings = solo.core.settings
    for _ in range(settings.heartbeat_ticks):
        solo.core.tick()
    (beat, _) = of(solo.sync(), MessageKind.HEARTBEAT)
    for _ in range(settings.lease_ticks - 1):
        solo.core.tick()
    solo.core.step(solo.message(MessageKind.HEARTBEAT_REPLY, 2, context=beat.context))
    assert solo.core.lease_read_index() == 1
    solo.core.tick()
    assert solo.core.lease_read_index() is None
    assert settings.lease_ticks < settings.election_ticks_min - 1


def test_a_lease_needs_a_quorum() -> None:
    """One follower of four is not enough."""
    solo = led(voters=5)
    for _ in range(8):
        solo.core.tick()
        stamp = max([m.context for m in of(solo.sync(), MessageKind.HEARTBEAT)], default=0)
        solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=stamp)
    assert solo.core.lease_read_index() is None
    solo.step(MessageKind.HEARTBEAT_REPLY, 3, context=solo.core.progress[2].acked)
    assert solo.core.lease_read_index() == 1


def test_no_lease_while_handing_over_nor_after_it_failed() -> None:
    """Thesis 6.4.1: the target's voters ignore their promises, and TIMEOUT_NOW may take effect long after we gave up."""
    solo = led()
    assert solo.core.lease_read_index() == 1
    solo.core.transfer_leadership(3)
    assert solo.core.lease_read_index() is None
    solo.sync()
    solo.acknowledge(3)
    for _ in range(solo.core.settings.election_ticks_min):
        solo.core.tick()
        stamp = max([m.context for m in of(solo.sync(), MessageKind.HEARTBEAT)], default=0)
        solo.step(MessageKind.HEARTBEAT_REPLY, 2, context=stamp)
    assert solo.core.role is Role.LEADER and not solo.core.transferring
    assert solo.core.lease_read_index() is None


def test_no_lease_from_before_silence() -> None:
    """The clock stands still in silence; only answers to what was sent after it count."""
    cluster = Cluster(3)
    leader = cluster.elect(1).core
    cluster.run(20)
    assert leader.silent and leader.lease_read_index() is None
    leader.wake()
    assert leader.lease_read_index() is None
    cluster.settle()
    assert leader.lease_read_index() == 1


def test_a_late_flagged_vote_frees_no_one_from_a_new_promise() -> None:
    """A copy of the transfer's vote request arrives when its sender already leads: the promise to it stands."""
    solo = Solo(1)
    vote = solo.message(MessageKind.VOTE, 2, term=2, index=1, log_term=1, flag=True)
    solo.core.step(vote)
    assert not solo.sync()[0].reject
    solo.step(MessageKind.HEARTBEAT, 2, term=2)
    solo.core.step(vote)
    solo.sync()
    assert solo.step(MessageKind.VOTE, 3, term=3, index=9, log_term=2) == []
    assert solo.core.term == 2
