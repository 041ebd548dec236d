"""Locks whose end is in doubt, or told late: nobody goes on believing, and nothing is kept alive that nobody relies on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from client.lock_arguments import How
from client.lock_held import Held
from client.results import Put
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from proto.gen import node_pb2
from proto.gen.lock_pb2 import LockCommand
from tests.client.fake_cluster import Fault, FaultRule
from tests.client.lock_cluster import LockCluster, in_time, living
from tests.client.test_outcomes import code_of
from tests.client.virtual_time import passes


def commands_of(requests: Iterable[node_pb2.SubRequest]) -> list[tuple[str, Any]]:
    """The lock commands among them: which, and what it asks."""
    subs = [sub for sub in requests if sub.capability == "lock" and sub.mode == node_pb2.COMMAND]
    parsed = [LockCommand.FromString(sub.body) for sub in subs]
    return [(str(each.WhichOneof("command")), getattr(each, str(each.WhichOneof("command")))) for each in parsed]


def meets(fault: Fault, which: str, true: Callable[[Any], bool] = lambda asked: True) -> FaultRule:
    """A fault for the calls with such a command."""

    def rule(node: str, request: node_pb2.CallRequest) -> Fault:
        found = any(kind == which and true(asked) for kind, asked in commands_of(request.requests))
        return fault if found else Fault.NONE

    return rule


def well(node: str, request: node_pb2.CallRequest) -> Fault:
    return Fault.NONE


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_after_a_confirm_of_unknown_outcome_nobody_believes_and_nothing_is_kept_alive(
    applied: bool, shared: bool
) -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as other:
            session = client.lock.session(6000)
            more = await session.acquire("more{x}")  # of the same shard
            held = await (session.acquire("seat:{x}") if shared else client.lock.acquire("seat:{x}", 6000))
            await passes(5.0)
            fault = Fault.HANG_AFTER if applied else Fault.HANG
            cluster.faults = lambda node, request: fault if any(sub.fences for sub in request.requests) else Fault.NONE
            assert await code_of(held.confirm([Put("sold:{x}", b"a")], deadline_s=1.5)) is Code.DEADLINE_EXCEEDED
            assert held.lost.is_set() and held.remaining_s == 0 and "confirm" in held.lost_reason
            cluster.faults = well
            taken = await other.lock.acquire("seat:{x}", 6000, 60_000)
            await passes(60)
            assert cluster.tokens("seat:{x}") == [taken.token] and not taken.lost.is_set()
            assert not more.lost.is_set() and not session.lost, "the rest of the session lives"
            assert await code_of(held.confirm([Put("sold:{x}", b"b")])) is Code.STALE_TOKEN
            assert not await held.release() and cluster.tokens("seat:{x}") == [taken.token]

    in_time(scenario)


def test_a_session_outlives_a_confirm_that_ended_its_lease_in_one_shard_before_anybody_heard_of_it() -> None:
    """The last lock of a lease in a shard takes the lease along: a renewal under way meanwhile finds none, which is no loss."""

    async def scenario() -> None:
        async with living() as cluster, cluster.client(deadline_s=1.0) as client:
            session = client.lock.session(3000)
            held = await session.acquire("seat:{x}")
            other = await session.acquire(cluster.name_in(1 + cluster.shard_of(b"seat:{x}") % 3))

            def unheard(node: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply | None:
                if not sub.fences:
                    return None
                cluster._command(sub)
                return node_pb2.SubReply(code=Code.UNAVAILABLE)

            cluster.refuse = unheard
            confirming = asyncio.ensure_future(held.confirm([Put("sold:{x}", b"a")], deadline_s=1.9))
            await cluster.until(lambda: not cluster.tokens("seat:{x}"), "it is confirmed")
            shard, renewed = cluster.shard_of(b"seat:{x}"), len(cluster.lock_commands("renew"))
            await cluster.until(
                lambda: shard in [shard for shard, _ in cluster.lock_commands("renew")[renewed:]], "it is renewed there"
            )
            await passes(0.1)
            assert not confirming.done() and not session.lost and not held.lost.is_set()
            await asyncio.gather(confirming, return_exceptions=True)
            await passes(20.0)
            assert held.lost.is_set() and not session.lost and cluster.tokens(other.name) == [other.token]

    in_time(scenario)


def test_a_confirm_of_unknown_outcome_may_be_confirmed_again() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire("seat:{x}", 6000)
            cluster.faults = lambda node, request: (
                Fault.HANG if any(sub.fences for sub in request.requests) else Fault.NONE
            )
            assert await code_of(held.confirm([Put("sold:{x}", b"a")], deadline_s=1.5)) is Code.DEADLINE_EXCEEDED
            cluster.faults = well
            assert (await held.confirm([Put("sold:{x}", b"a")])).succeeded
            assert cluster.value(b"sold:{x}") == b"a" and not cluster.tokens("seat:{x}")

    in_time(scenario)


def test_a_lock_given_up_by_its_token_is_told_to_its_holder() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as other:
            session = client.lock.session(6000)
            first, second = [await session.acquire(cluster.name_in(1, number)) for number in range(2)]
            await passes(5.0)
            assert await other.lock.release_token(second.name, second.token)
            await asyncio.wait_for(second.lost.wait(), 1.0)
            await other.lock.acquire(second.name, 6000)
            await passes(60)
            assert second.remaining_s == 0 and not session.lost
            assert not first.lost.is_set() and cluster.tokens(first.name) == [first.token]

    in_time(scenario)


def test_a_session_is_not_renewed_where_its_last_lock_was_taken_away() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as operator:
            session = client.lock.session(6000)
            held = await session.acquire("jobs")
            other = await session.acquire(cluster.name_in(1 + cluster.shard_of(b"jobs") % 3))
            await passes(5.0)
            cluster.faults = meets(Fault.LOSE_REQUEST, "renew")
            assert await operator.lock.force_release("jobs")
            await asyncio.wait_for(held.lost.wait(), 1.0)
            await passes(2.5)  # the first renewal to see whether the lease lives fails
            cluster.faults = well
            await passes(5.0)
            sent = len(cluster.lock_commands("renew"))
            await passes(20.0)
            shards = {shard for shard, _ in cluster.lock_commands("renew")[sent:]}
            assert shards == {cluster.shard_of(other.name.encode())} and not session.lost

    in_time(scenario)


def test_a_lease_lost_in_one_shard_ends_elsewhere_as_if_it_had_expired() -> None:
    """So that the delay of its locks runs: whoever held it may not have heard."""

    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client, cluster.client() as other:
            name = cluster.name_in(1)
            held = await client.lock.acquire(name, 10_000, how=How(delay_ms=30_000))
            cut = meets(Fault.LOSE_REQUEST, "renew", lambda asked: asked.lease == held.lease)
            cluster.faults = cut
            await asyncio.wait_for(held.lost.wait(), 10)
            lost = asyncio.get_running_loop().time()
            await (await other.lock.acquire(name, 10_000, 60_000)).release()
            assert {asked.unclean for _, asked in cluster.lock_commands("end_lease")} == {True}
            assert asyncio.get_running_loop().time() >= lost + 30
            session = other.lock.session(10_000)
            await session.acquire(name, how=How(delay_ms=30_000))
            await session.end()
            assert not cluster.lock_commands("end_lease")[-1][1].unclean
            assert await code_of(other.lock.acquire(name, 1000)) is Code.OK, "who ends it has stopped"

    in_time(scenario)


def test_a_group_whose_release_is_cancelled_is_released_in_the_background() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            names = [cluster.name_in(shard) for shard in (1, 2)]
            session = client.lock.session(6000)
            held = await session.acquire(names)
            cluster.delay_s[2] = 0.3
            releasing = asyncio.ensure_future(held.release())
            await passes(0.1)
            releasing.cancel()
            await asyncio.gather(releasing, return_exceptions=True)
            await passes(2.0)
            assert not any(cluster.tokens(name) for name in names), "long before the lease ends"

    in_time(scenario)


def test_one_who_goes_away_while_a_turn_begins_leaves_nothing_that_is_kept_alive() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:

            async def work(held: Held) -> None:
                raise AssertionError("its turn has not begun")

            cluster.delay_s[1] = 0.05
            turn = asyncio.ensure_future(client.lock.run_once_every("report", 6.0, work))
            await cluster.until(lambda: cluster.lock_commands("renew"), "the first renewal")
            turn.cancel()
            assert isinstance((await asyncio.gather(turn, return_exceptions=True))[0], asyncio.CancelledError)
            await passes(1.0)
            assert not cluster.tokens("report")

    in_time(scenario)


def test_a_callback_that_raises_silences_nobody() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            heard: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))
            session = client.lock.session(6000)
            first, second = [await session.acquire(cluster.name_in(shard)) for shard in (1, 2)]
            told: list[str] = []

            def bad(held: Held) -> None:
                raise ValueError("the user's")

            first.when_lost(bad)
            first.when_lost(lambda held: told.append(held.name))
            cluster.faults = lambda node, request: Fault.LOSE_REQUEST
            await asyncio.wait_for(second.lost.wait(), 30)
            assert first.lost.is_set() and told == [first.name] and session.lost
            assert [str(each["exception"]) for each in heard] == ["the user's"]

    in_time(scenario)


def test_a_body_whose_own_call_finds_the_loss_is_not_cancelled_besides() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as operator:
            with pytest.raises(TenfoldError) as caught:
                async with client.lock.hold("seat:{x}", ttl=10, cancel_on_lost=True) as held:
                    await operator.lock.force_release("seat:{x}")
                    await held.confirm([Put("sold:{x}", b"a")])
            assert caught.value.code is Code.STALE_TOKEN
            await passes(1.0)
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0

    in_time(scenario)


def test_a_name_of_a_group_that_is_taken_away_before_the_group_is_whole() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as other:
            names = [cluster.name_in(shard) for shard in (1, 2)]
            last = await other.lock.acquire(names[1], 6000)
            waiting = asyncio.ensure_future(client.lock.acquire(names, 6000, None))
            await cluster.until(lambda: cluster.state(names[1]).waiters, "it waits for the last")
            await passes(5.0)
            assert await other.lock.force_release(names[0])
            await passes(1.0)
            await last.release()
            assert await code_of(waiting) is Code.LEASE_LOST
            await passes(1.0)
            assert not any(cluster.tokens(name) for name in names)

    in_time(scenario)


# -- who asks again ------------------------------------------------------------------------------------------------------


async def left_behind(cluster: LockCluster, held: Held, how: str) -> None:
    """The hold is over for its task, and its shard does not know yet."""
    if how == "lost":
        renewed, ended = [
            meets(Fault.LOSE_REQUEST, which, lambda asked: asked.lease == held.lease)
            for which in ("renew", "end_lease")
        ]
        cluster.faults = lambda node, request: (
            Fault.LOSE_REQUEST if Fault.LOSE_REQUEST in (renewed(node, request), ended(node, request)) else Fault.NONE
        )
        await asyncio.wait_for(held.lost.wait(), 60)
    else:
        cluster.faults = meets(Fault.LOSE_REQUEST, "release", lambda asked: asked.lease == held.lease)
        assert await code_of(held.release()) is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("how", ["released in doubt", "lost"])
def test_who_asks_again_for_what_may_be_left_of_it_waits_for_nobody_but_the_others(how: str) -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client(deadline_s=2.0) as client, cluster.client() as other:
            held = await client.lock.acquire("jobs", 30_000)
            second = asyncio.ensure_future(other.lock.acquire("jobs", 30_000, None))
            await cluster.until(lambda: cluster.state("jobs").waiters, "the other waits")
            await left_behind(cluster, held, how)

            async def others_go_on() -> None:
                await passes(3.0)
                cluster.faults = well
                await (await second).release()

            going = asyncio.ensure_future(others_go_on())
            again = await client.lock.acquire(
                "jobs", 30_000, None
            )  # the same task: it is the owner of what is left, too
            assert again.token > (await second).token
            await going
            await again.release()

    in_time(scenario)


def test_a_wait_without_an_end_outlasts_the_longest_that_a_shard_allows() -> None:
    async def scenario() -> None:
        limits = replace(DEFAULT, lock_wait_ms_max=20_000)
        async with living(limits=limits) as cluster, cluster.client() as client, cluster.client() as other:
            first = await other.lock.acquire("jobs", 6000)
            waiting = asyncio.ensure_future(client.lock.acquire("jobs", 6000, None))
            await passes(90.0)
            assert not waiting.done()
            await first.release()
            assert (await waiting).token > first.token
            assert len(cluster.lock_commands("acquire")) >= 5

    in_time(scenario)
