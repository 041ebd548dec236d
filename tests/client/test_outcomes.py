"""How operations end: ok, definitely failed or unknown, and never a failure that happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from client.client import Client
from client.results import Compare, Condition, Increment, Put
from cluster.errors import Code, TenfoldError
from cluster.wire.channel import dial
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster, Fault, FaultRule, ops_of
from tests.client.virtual_time import run


def in_turn(*faults: Fault) -> FaultRule:
    """The faults of the next calls that carry a command; then none."""
    left: Iterator[Fault] = iter(faults)

    def rule(node: str, request: node_pb2.CallRequest) -> Fault:
        commands = any(sub.mode == node_pb2.COMMAND for sub in request.requests)
        return next(left, Fault.NONE) if commands else Fault.NONE

    return rule


async def code_of(work: Any) -> Code:
    try:
        await work
    except TenfoldError as error:
        return error.code
    return Code.OK


@pytest.mark.parametrize("fault", [each for each in Fault if each is not Fault.NONE])
def test_an_increment_whose_call_fails_is_sent_again_and_applies_once(fault: Fault) -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("other", b"v")
            cluster.faults = in_turn(fault)
            assert await client.kv.increment("n") == 1
            await cluster.close()  # what the network repeats has come
            assert cluster.value(b"n") == b"1"
            assert await client.kv.increment("n") == 2

    run(scenario())


def test_a_retry_carries_the_same_operations_under_the_same_sequence() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("other", b"v")
            cluster.faults = in_turn(Fault.LOSE_REPLY, Fault.LOSE_REQUEST)
            first = [asyncio.ensure_future(client.kv.increment(f"a{i}")) for i in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            later = [asyncio.ensure_future(client.kv.increment(f"b{i}")) for i in range(5)]
            assert await asyncio.gather(*first, *later) == [1] * 10
            sent = [(sub.sequence, sub.body) for sub in cluster.commands()]
            assert [sequence for sequence, _ in sent].count(2) >= 3
            assert len({body for sequence, body in sent if sequence == 2}) == 1

    run(scenario())


def test_a_hint_is_followed_at_once() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            old = cluster.leaders[1]
            new = next(node for node in ("n1", "n2", "n3") if node != old)
            cluster.move(1, new)
            loop = asyncio.get_running_loop()
            started = loop.time()
            await client.kv.put("k", b"w")
            assert loop.time() - started == pytest.approx(0.002)
            assert [node for node, _ in cluster.calls[-2:]] == [old, new]
            await client.kv.put("k", b"x")
            assert cluster.calls[-1][0] == new

    run(scenario())


def test_two_replicas_that_name_each_other_are_not_asked_without_a_pause() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=2)
        other = {"n1": "n2", "n2": "n1"}
        cluster.refuse = lambda node, sub: node_pb2.SubReply(code=Code.NOT_LEADER, leader=other[node])
        async with cluster.client(deadline_s=2.0) as client:
            assert await code_of(client.kv.put("k", b"v")) is Code.NOT_LEADER
            assert len(cluster.calls) < 100

    run(scenario())


def test_no_leader_within_the_deadline_is_a_definite_failure() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.refuse = lambda node, sub: node_pb2.SubReply(code=Code.NOT_LEADER)
            for value in (b"w", b"w again"):  # the second tells of its own time only
                told = r"^shard 1: no leader found for (0\.9|1\.0) s; is a majority of its replicas up\?"
                with pytest.raises(TenfoldError, match=told) as caught:
                    await client.kv.put("k", value, deadline_s=1.0)
                assert caught.value.code is Code.NOT_LEADER and caught.value.definite
            assert {node for node, _ in cluster.calls} == {"n1", "n2", "n3"}
            cluster.refuse = lambda node, sub: None
            sent = len(cluster.commands())
            assert await client.kv.put("k", b"x") > 0
            assert await client.kv.put("other", b"y") > 0
            later = [op.value for sub in cluster.commands()[sent:] for op in ops_of(sub)]
            assert set(later) == {b"x", b"y"}, "the failed one is never sent again"

    run(scenario())


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("gone", ["killed", "paused"])
def test_without_a_majority_every_operation_ends_alike(gone: str, session: bool) -> None:
    """Two of three nodes are gone and the third knows of no leader: what surely was not applied is told so."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client(deadline_s=4.0) as client:
            if session:
                await client.kv.put("k", b"v")
            if gone == "killed":
                cluster.down = {"n1", "n2"}
            else:
                cluster.faults = lambda node, request: Fault.NONE if node == "n3" else Fault.HANG
            cluster.refuse = lambda node, sub: node_pb2.SubReply(code=Code.NOT_LEADER)
            kv = client.kv
            reads = [kv.get("k"), kv.get("k", consistency="lease"), kv.count(), kv.scan().page()]
            ended = await asyncio.gather(kv.put("k", b"w"), *reads, return_exceptions=True)
            ended += await asyncio.gather(kv.put("k", b"x"), return_exceptions=True)
            for each in ended:
                assert isinstance(each, TenfoldError)
                assert "no leader found for " in each.message and "is a majority" in each.message
                doubtful = each in (ended[0], ended[-1]) and session and gone == "paused"
                assert each.code is (Code.DEADLINE_EXCEEDED if doubtful else Code.NOT_LEADER), each
                assert ("it may have been applied or not" in each.message) == doubtful

    run(scenario())


def test_a_read_that_is_out_at_the_deadline_is_no_doubt() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.faults = lambda node, request: Fault.HANG
            with pytest.raises(TenfoldError, match=r"nothing was applied$") as caught:
                await client.kv.get("k", deadline_s=1.0)
            assert caught.value.code is Code.DEADLINE_PASSED
            assert await code_of(client.kv.put("k", b"w", deadline_s=1.0)) is Code.DEADLINE_EXCEEDED

    run(scenario())


def test_a_doubt_is_not_taken_back_by_a_later_definite_error() -> None:
    """The first attempt was applied and its reply lost; then nobody leads until the deadline."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.faults = in_turn(Fault.LOSE_REPLY)
            put = asyncio.ensure_future(client.kv.put("k", b"w", deadline_s=1.0))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cluster.refuse = lambda node, sub: (
                node_pb2.SubReply(code=Code.NOT_LEADER) if len(cluster.calls) > 3 else None
            )
            assert await code_of(put) is Code.DEADLINE_EXCEEDED
            assert cluster.value(b"k") == b"w"

    run(scenario())


def test_a_refusal_that_ends_a_doubtful_operation_is_unknown() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.faults = in_turn(Fault.LOSE_REPLY)
            cluster.refuse = lambda node, sub: (
                node_pb2.SubReply(code=Code.UNKNOWN_CAPABILITY) if len(cluster.calls) > 3 else None
            )
            assert await code_of(client.kv.put("k", b"w")) is Code.UNKNOWN_OUTCOME

    run(scenario())


def test_the_machines_own_answer_settles_the_doubt() -> None:
    """A transaction was refused by the machine, and that reply was lost: the retry gets the same refusal, which is definite."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("{t}word", b"x")
            cluster.faults = in_turn(Fault.LOSE_REPLY)
            work = client.kv.transaction([], [Increment("{t}word"), Put("{t}other", b"y")])
            assert await code_of(work) is Code.NOT_A_NUMBER
            assert cluster.value(b"{t}other") is None

    run(scenario())


def test_a_deadline_already_passed_sends_nothing() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            for deadline_s in (0.0, -1.0):
                assert await code_of(client.kv.put("k", b"v", deadline_s=deadline_s)) is Code.DEADLINE_PASSED
            assert await code_of(client.kv.get("k", deadline_s=float("nan"))) is Code.INVALID_ARGUMENT
            assert await code_of(client.kv.get("k", deadline_s=601)) is Code.INVALID_ARGUMENT
            assert not cluster.calls

    run(scenario())


def test_no_connection_until_the_deadline_is_definite() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            cluster.down = {"n1", "n2", "n3"}
            for work in (client.kv.put("k", b"w", deadline_s=1.0), client.kv.get("k", deadline_s=1.0)):
                with pytest.raises(TenfoldError, match=r"^shard 1: none of its replicas could be reached") as caught:
                    await work
                assert caught.value.code is Code.UNREACHABLE and caught.value.definite

    run(scenario())


def test_a_hung_node_costs_an_attempt_and_not_the_operation() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            old = cluster.leaders[1]
            cluster.faults = lambda node, request: Fault.HANG if node == old else Fault.NONE
            cluster.move(1, "n3" if old != "n3" else "n2")
            loop = asyncio.get_running_loop()
            started = loop.time()
            await client.kv.put("k", b"w")
            assert loop.time() - started < cluster.limits.client_attempt_ms / 1000 + 0.5

    run(scenario())


@pytest.mark.parametrize("code", [Code.DEADLINE_EXCEEDED, Code.DEADLINE_PASSED, Code.UNKNOWN_OUTCOME, Code.OVERLOADED])
def test_the_end_of_an_attempt_is_not_that_of_the_operation(code: Code) -> None:
    """A node that has no answer when the attempt's own time is over says so; there is time for another."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.increment("n")
            refusals = iter([code])
            cluster.refuse = lambda node, sub: (
                node_pb2.SubReply(code=refused) if (refused := next(refusals, None)) else None
            )
            assert await client.kv.increment("n") == 2

    run(scenario())


def test_operations_of_one_sub_request_end_by_their_own_deadlines() -> None:
    """The short one leaves as unknown, since the sub-request lives on for the other and is applied in the end."""

    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            await client.kv.put("k", b"v")
            refused = {"on": True}
            cluster.refuse = lambda node, sub: node_pb2.SubReply(code=Code.OVERLOADED) if refused["on"] else None
            short = asyncio.ensure_future(client.kv.put("short", b"v", deadline_s=0.3))
            long = asyncio.ensure_future(client.kv.put("long", b"v", deadline_s=5.0))
            assert await code_of(short) is Code.DEADLINE_EXCEEDED
            assert not long.done()
            refused["on"] = False
            await long
            assert cluster.value(b"short") == b"v"

    run(scenario())


def test_an_expired_session_is_replaced_when_nothing_was_sent_under_it() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            assert await client.kv.increment("n") == 1
            cluster.forget_sessions(1)
            assert sorted(await asyncio.gather(*[client.kv.increment(key) for key in ("n", "n", "m")])) == [1, 2, 3]
            assert len({sub.session for sub in cluster.commands()}) == 2

    run(scenario())


def test_an_expired_session_leaves_a_doubtful_operation_unknown() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            assert await client.kv.increment("n") == 1
            cluster.faults = in_turn(Fault.LOSE_REPLY)
            doubtful = asyncio.ensure_future(client.kv.increment("n"))
            while cluster.value(b"n") != b"2":
                await asyncio.sleep(0.0001)
            cluster.forget_sessions(1)
            assert await code_of(doubtful) is Code.SESSION_EXPIRED
            assert cluster.value(b"n") == b"2", "and it is not applied again"
            assert await client.kv.increment("n") == 3

    run(scenario())


def test_definite_answers_are_told_with_their_details() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3)
        async with cluster.client() as client:
            version = await client.kv.compare_and_set("k", b"v", version=0)
            with pytest.raises(TenfoldError) as caught:
                await client.kv.compare_and_set("k", b"w", version=version + 1)
            assert caught.value.code is Code.VERSION_MISMATCH
            assert caught.value.details == {"expected": version + 1, "found": version}
            assert await code_of(client.kv.compare_and_delete("k", version=version + 1)) is Code.VERSION_MISMATCH
            assert await client.kv.compare_and_delete("k", version=version)
            assert not await client.kv.delete("k")
            far = next(f"x{i}" for i in range(99) if cluster.shard_of(b"x%d" % i) != cluster.shard_of(b"k"))
            calls = len(cluster.calls)
            crossed = client.kv.transaction([Compare("k", Condition.VERSION_EQUAL, 0)], [Put(far, b"v")])
            assert await code_of(crossed) is Code.CROSS_SHARD
            assert len(cluster.calls) == calls

    run(scenario())


def test_what_makes_no_sense_is_refused_before_it_is_sent() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            kv = client.kv
            bad: list[tuple[Any, str]] = [
                (kv.put("", b"v"), "key: 0 bytes, must be 1 to 4096"),
                (kv.get(b"k" * 4097), "key: 4097 bytes, must be 1 to 4096"),
                (kv.put("k", b"v" * (2**20 + 1)), "value: 1048577 bytes, must be 0 to 1048576"),
                (kv.put("k", b"v", ttl_ms=0), "ttl_ms: 0"),
                (kv.increment("k", 2**63), "delta"),
                (kv.compare_and_set("k", b"v", version=-1), "version: -1"),
                (kv.get("k", consistency="eventual"), "consistency: 'eventual'"),  # type: ignore[arg-type]
                (kv.transaction([], []), "transaction"),
                (kv.transaction([], [Put("a", b""), Put("a", b"")]), "written twice"),
                (kv.transaction([Compare("a", Condition.VALUE_EQUAL, 3)], [Put("a", b"")]), "takes a value"),
                (kv.batch([Put(f"k{i}", b"") for i in range(4097)]), "4097 in one shard"),
            ]
            for work, told in bad:
                with pytest.raises(TenfoldError, match=told) as caught:
                    await work
                assert caught.value.code is Code.INVALID_ARGUMENT
            assert not cluster.calls

    run(scenario())


async def test_nobody_listens() -> None:
    """Over the real wire: a clear error within the deadline, no traceback of grpc."""
    told = r"^no node could be reached at 127\.0\.0\.1:1 \(connection refused\); is the cluster up"
    with pytest.raises(TenfoldError, match=told) as caught:
        async with Client(["127.0.0.1:1"], deadline_s=0.3, dial=dial):
            pass
    assert caught.value.code is Code.UNREACHABLE and caught.value.definite


def test_a_deadline_too_short_to_ask_is_not_told_as_a_cluster_that_is_down() -> None:
    async def scenario() -> None:
        with pytest.raises(TenfoldError, match=r"^no node gave the shard map within 0\.0001 s") as caught:
            async with FakeCluster().client(deadline_s=0.0001, dial=SlowMap):
                pass
        assert caught.value.code is Code.DEADLINE_PASSED

    run(scenario())


class SlowMap:
    """A channel to a node whose map takes a second."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def replies(self, service: str, method: str, request: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(1.0)
        yield None

    async def close(self) -> None:
        pass
