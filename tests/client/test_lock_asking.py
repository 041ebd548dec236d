"""What an acquire makes of answers that come late, twice, or not at all, of streams that are refused, and of periods and owners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from client.client import Client
from client.lock_arguments import How
from client.lock_calls import Answered, LockCalls
from client.lock_held import Held
from client.lock_lease import Lease
from client.lock_waits import Waits
from client.results import Put
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from proto.gen import node_pb2
from proto.gen.lock_pb2 import LockEvent, LockResult
from tests.client.fake_cluster import Fault, FaultRule
from tests.client.lock_cluster import LockCluster, in_time, living
from tests.client.test_lock_doubt import commands_of, meets
from tests.client.test_outcomes import code_of
from tests.client.virtual_time import passes


def first(rule: FaultRule) -> FaultRule:
    """Once."""
    met = False

    def once(node: str, request: node_pb2.CallRequest) -> Fault:
        nonlocal met
        fault = rule(node, request) if not met else Fault.NONE
        met = met or fault is not Fault.NONE
        return fault

    return once


@pytest.mark.parametrize("freed", [True, False])
def test_what_is_granted_to_who_asks_again_is_held_though_the_wait_before_had_ended(freed: bool) -> None:
    """The first answer is lost, the stream tells that the wait is over, and the same attempt is asked again."""

    async def scenario() -> None:
        async with living() as cluster, cluster.client(deadline_s=2.0) as client, cluster.client() as other:
            session = client.lock.session(9000)
            await session.acquire(cluster.name_in(1))
            await passes(4.0)  # kept alive once: there is a stream
            wanted = cluster.name_in(1, 1)
            before = await other.lock.acquire(wanted, 60_000)
            cluster.faults = first(meets(Fault.HANG_AFTER, "acquire", lambda asked: asked.name == wanted))
            asking = asyncio.ensure_future(session.acquire(wanted, wait_ms=1000))
            await passes(1.2)
            assert not cluster.state(wanted).waiters, "its wait has ended"
            if freed:
                await before.release()
                held = await asking
                assert cluster.tokens(wanted) == [held.token] and held.token > before.token
            else:
                assert await code_of(asking) in (Code.DEADLINE_PASSED, Code.DEADLINE_EXCEEDED)
                await before.release()
            await passes(60)
            assert bool(cluster.tokens(wanted)) == freed

    in_time(scenario)


def test_what_was_heard_before_an_answer_is_nothing_any_more() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            calls = LockCalls(client.lock._around)
            waits = Waits(calls, Lease(calls, 1000))
            told: list[str] = []
            expected = waits.expect("jobs", 1, 1, "me")
            expected.on_lost = told.append
            await waits.tell(1, None, LockEvent(kind=LockEvent.TIMED_OUT, name="jobs", attempt=1, index=5))  # type: ignore[arg-type]
            expected.answer(7, 7)
            assert expected.ended.result().token == 7, "an answer is later than what was told of an earlier wait"
            checks = [Answered(LockResult(), 6), Answered(LockResult(granted=True, token=7), 9)]

            async def check(*asked: Any) -> Answered:
                return checks.pop(0)

            calls.check = check  # type: ignore[method-assign]
            for _ in range(2):
                await waits._ask(1, None, None)  # type: ignore[arg-type]
            assert not told, "asked before it was granted, and after"
            await waits.tell(1, None, LockEvent(kind=LockEvent.LOST, name="jobs", attempt=1, index=8))  # type: ignore[arg-type]
            assert told == ["'jobs': the lease expired"]

    in_time(scenario)


def test_a_waiter_hears_of_its_grant_though_no_node_has_room_for_its_stream() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as other:
            watch = cluster.watch

            async def full(node: str, request: node_pb2.WatchRequest) -> AsyncIterator[node_pb2.WatchReply]:
                if request.capability == "lock":
                    yield node_pb2.WatchReply(code=int(Code.OVERLOADED), message="no more watches on this node")
                    return
                async for reply in watch(node, request):
                    yield reply

            cluster.watch = full  # type: ignore[method-assign]
            before = await other.lock.acquire("jobs", 10_000)
            waiting = asyncio.ensure_future(client.lock.acquire("jobs", 10_000, None))
            await passes(30.0)
            await before.release()
            held = await asyncio.wait_for(waiting, 10.0)
            assert cluster.tokens("jobs") == [held.token]
            await passes(20.0)
            assert await other.lock.force_release("jobs")
            await asyncio.wait_for(held.lost.wait(), 10.0)

    in_time(scenario)


def test_a_lease_too_short_for_its_network_is_refused_after_some_renewals() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            cluster.delay_s[1] = 0.08
            assert await asyncio.wait_for(code_of(client.lock.acquire("jobs", 100)), 5.0) is Code.DEADLINE_EXCEEDED
            await passes(2.0)
            renewals = len(cluster.lock_commands("renew"))
            await passes(10.0)
            assert len(cluster.lock_commands("renew")) == renewals and not cluster.tokens("jobs")

    in_time(scenario)


def test_a_late_end_of_a_session_in_a_shard_loses_nothing_that_came_after_it() -> None:
    """A release gone on in the background ends the lease in its shard, between two acquires."""

    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            session = client.lock.session(60_000)
            a, b, c = [cluster.name_in(1, number) for number in range(3)]
            held = await session.acquire(a)
            refused = {"acquire": b, "release": a}
            unheard = False

            def refuse(node: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply | None:
                nonlocal unheard
                named = [(which, asked.name) for which, asked in commands_of([sub]) if which in refused]
                if not any(refused[which] == name for which, name in named):
                    return None
                if unheard and named[0][0] == "acquire":
                    unheard = False
                    assert cluster._command(sub).code == Code.UNKNOWN_LEASE
                return node_pb2.SubReply(code=Code.UNAVAILABLE)

            cluster.refuse = refuse
            asking = asyncio.ensure_future(session.acquire(b))
            await passes(0.05)
            releasing = asyncio.ensure_future(held.release())
            await passes(0.05)
            releasing.cancel()
            await asyncio.gather(releasing, return_exceptions=True)
            del refused["release"]
            await cluster.until(lambda: not cluster.tokens(a), "it is given back, and the lease ends here")
            unheard = True
            await cluster.until(lambda: not unheard, "it is refused, since the lease is unknown, and nobody hears")
            last = await session.acquire(c)
            del refused["acquire"]
            got = await asking
            await passes(100)
            assert not session.lost and not last.lost.is_set() and not got.lost.is_set()
            assert cluster.tokens(b) == [got.token] and cluster.tokens(c) == [last.token]

    in_time(scenario)


def test_clients_of_a_process_that_forked_draw_other_leases_and_owners() -> None:
    client = Client(["127.0.0.1:1"])
    drawn = set()
    for _ in range(2):
        came, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(told, f"{client.lock.session(1000)._lease.id} {client.lock.owners.new().name}".encode())
            finally:
                os._exit(0)
        os.close(told)
        os.waitpid(child, 0)
        drawn |= set(os.read(came, 1000).split())
        os.close(came)
    assert len(drawn) == 4, drawn


# -- periods -------------------------------------------------------------------------------------------------------------


async def turns(
    cluster: LockCluster, clients: list[Client], every_s: float, work_s: float, passing_s: float
) -> list[float]:
    """When they began; fails if an offer has ended."""
    began: list[float] = []

    async def work(held: Held) -> None:
        began.append(asyncio.get_running_loop().time())
        await passes(work_s)

    offers = [asyncio.ensure_future(each.lock.run_once_every("report", every_s, work)) for each in clients]
    await passes(passing_s)
    ended = [each.exception() for each in offers if each.done()]
    for each in offers:
        each.cancel()
    await asyncio.gather(*offers, return_exceptions=True)
    assert not ended, ended
    return began


@pytest.mark.parametrize("work_s", [0.0, 9.6])
def test_work_runs_once_in_a_period_for_as_long_as_anybody_offers_to_do_it(work_s: float) -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as one, cluster.client() as other:
            began = await turns(cluster, [one, other], 10.0, work_s, 205.0)
            gaps = [after - before for before, after in pairwise(began)]
            assert 18 <= len(began) <= 21 and min(gaps) >= 9.99, began

    in_time(scenario)


def test_an_offer_outlasts_the_longest_wait_that_a_shard_allows() -> None:
    async def scenario() -> None:
        limits = replace(DEFAULT, lock_wait_ms_max=3000)
        async with living(limits=limits) as cluster, cluster.client() as one, cluster.client() as other:
            assert 9 <= len(await turns(cluster, [one, other], 10.0, 0.0, 105.0)) <= 11

    in_time(scenario)


# -- what else is asked --------------------------------------------------------------------------------------------------


def test_a_deadlock_is_found_among_more_edges_than_one_answer_holds() -> None:
    async def scenario() -> None:
        limits = replace(DEFAULT, lock_list_max=4)
        async with living(shards=2, limits=limits) as cluster, cluster.client() as client:
            a, b = cluster.name_in(1), cluster.name_in(2)
            c, d = cluster.name_in(2, 1), cluster.name_in(2, 2)
            for name, who in [(a, "a1"), (a, "a2"), (a, "y"), (c, "a2"), (c, "y"), (d, "y"), (d, "y"), (b, "x")]:
                await client.lock.acquire(name, 60_000, how=How("shared", owner=who))
            asked = [(c, "a1"), (d, "a2"), (b, "y"), (a, "x")]  # of y's edge there is no room behind four others
            waiting = []
            for name, who in asked:
                waiting.append(asyncio.ensure_future(client.lock.acquire(name, 60_000, None, how=How(owner=who))))
                await passes(0.1)
            await cluster.until(lambda: any(each.done() for each in waiting), "it is found")
            ended = [each.exception() for each in waiting if each.done()]
            assert [error.code for error in ended if isinstance(error, TenfoldError)] == [Code.DEADLOCK]
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    in_time(scenario)


def test_one_of_more_holders_than_an_answer_lists_is_given_up_by_its_token() -> None:
    async def scenario() -> None:
        limits = replace(DEFAULT, lock_list_max=2)
        async with living(limits=limits) as cluster, cluster.client() as client:
            readers = [await client.lock.acquire("jobs", 60_000, mode="shared") for _ in range(4)]
            assert await client.lock.release_token("jobs", readers[-1].token)
            assert await code_of(client.lock.release_token("jobs", readers[-1].token)) is Code.NOT_HOLDER
            assert await code_of(client.lock.force_release("jobs", readers[0].token)) is Code.OK

    in_time(scenario)


@pytest.mark.parametrize("name", ["x\x9b31m", "\u202ereversed", "a\u2028b", "a\u2029b", "\x85", "a\u200bb"])
def test_a_name_or_an_owner_that_does_not_look_like_what_it_is_is_refused(name: str) -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            for given in ({"names": name}, {"names": "jobs", "how": How(owner=name)}):
                asked: Any = {"ttl_ms": 1000, **given}
                with pytest.raises(
                    TenfoldError, match=f"U\\+{ord(next(each for each in name if not each.isalnum())):04X}"
                ):
                    await client.lock.acquire(**asked)
            assert not cluster.commands()
            assert await code_of(client.lock.acquire("größe/日本-1", 1000)) is Code.OK

    in_time(scenario)


def test_a_key_in_another_shard_than_the_lock_is_named() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire("seat:{x}", 1000)
            elsewhere = cluster.key_in(1 + cluster.shard_of(b"seat:{x}") % 3).decode()
            with pytest.raises(TenfoldError, match=elsewhere) as caught:
                await held.confirm([Put("sold:{x}", b"1"), Put(elsewhere, b"2")])
            assert caught.value.code is Code.CROSS_SHARD

    in_time(scenario)
