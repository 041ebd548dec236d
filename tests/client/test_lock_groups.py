"""Many locks together: groups over shards, sessions, deadlocks, elections, periods, and streams that break."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from client.client import Client
from client.lock_arguments import How
from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from proto.gen.entry_pb2 import Request
from proto.gen.lock_pb2 import LockCommand, LockRelease
from tests.client.fake_cluster import Fault
from tests.client.lock_cluster import LockCluster, in_time, living
from tests.client.test_outcomes import code_of
from tests.client.virtual_time import passes


def spread(cluster: LockCluster, number: int = 0) -> list[str]:
    """A name in each shard."""
    return [cluster.name_in(shard, number) for shard in cluster.worlds]


def test_a_group_is_held_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            names = spread(cluster)
            last = await client.lock.acquire(names[-1], 10_000)
            assert await code_of(client.lock.acquire(reversed(names), 10_000)) is Code.LOCK_HELD
            await passes(0.1)
            assert not any(cluster.tokens(name) for name in names[:-1]), "what was got is given back"
            waiting = asyncio.ensure_future(client.lock.acquire(names, 10_000, None))
            await cluster.until(lambda: cluster.state(names[-1]).waiters, "it waits for the last")
            assert all(cluster.tokens(name) for name in names), "parts are visible meanwhile"
            await last.release()
            held = await waiting
            assert held.tokens == {name: cluster.tokens(name)[0] for name in names}
            assert await held.release() and not any(cluster.tokens(name) for name in names)

    in_time(scenario)


def test_groups_that_overlap_never_lock_each_other_out() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as one, cluster.client() as other:
            a, b, c = spread(cluster)
            done = 0

            async def work(client: Client, names: list[str]) -> None:
                nonlocal done
                for _ in range(10):
                    async with client.lock.hold(names, ttl=5):
                        await passes(0.01)
                    done += 1

            groups = [(one, [a, b, c]), (other, [c, b, a]), (one, [b, a]), (other, [c, a]), (one, [c, b])]
            await asyncio.gather(*[work(client, names) for client, names in groups])
            assert done == 50

    in_time(scenario)


def test_a_keep_alive_goes_to_each_shard_and_what_is_lost_in_one_is_lost_in_all() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            told: list[str] = []
            async with client.lock.session(3000, on_lost=told.append) as session:
                held = [await session.acquire(name) for name in spread(cluster)]
                await passes(10.0)
                assert {shard for shard, _ in cluster.lock_commands("renew")} == set(cluster.worlds)
                assert 1.5 < session.remaining_s <= 2.7 and not told
                world = cluster.worlds[2]
                cluster.still = {2}  # a leader that sees time run ahead of its client's
                world.time_ms += 60_000
                world.pulse()
                cluster._wake(2)
                await asyncio.wait_for(held[0].lost.wait(), 2.0)
                assert all(each.lost.is_set() for each in held) and len(told) == 1 and session.lost == told[0]
                await passes(0.2)
                assert not any(cluster.tokens(name) for name in spread(cluster)), "elsewhere it is ended at once"
                assert await code_of(session.acquire("more")) is Code.LEASE_LOST

    in_time(scenario)


def test_the_shard_that_answers_least_decides_what_is_believed() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire(spread(cluster), 3000)
            await passes(4.0)

            def cut(node: str, request: Any) -> Fault:
                return Fault.LOSE_REQUEST if any(sub.shard == 2 for sub in request.requests) else Fault.NONE

            cluster.faults = cut
            await asyncio.wait_for(held.lost.wait(), 2.7)
            assert cluster.tokens(cluster.name_in(2)), "before the shard that did not answer lets it go"

    in_time(scenario)


@pytest.mark.parametrize("in_one_shard", [True, False])
def test_a_deadlock_is_broken_at_the_youngest_and_named_once(in_one_shard: bool) -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as one, cluster.client() as other, cluster.client() as third:
            a, b, c = [cluster.name_in(1, number) for number in range(3)] if in_one_shard else spread(cluster)
            clients = {"x": one, "y": other, "z": third}
            has = {"x": a, "y": b, "z": c}
            wants = {"x": b, "y": c, "z": a}
            held = {
                who: await client.lock.acquire(has[who], 20_000, how=How(owner=who)) for who, client in clients.items()
            }
            waiting = {}
            for who, client in clients.items():
                how = How(owner=who)
                waiting[who] = asyncio.ensure_future(client.lock.acquire(wants[who], 20_000, None, how=how))
                await passes(0.1)
            await cluster.until(lambda: any(each.done() for each in waiting.values()), "it is found")
            await passes(20.0)
            ended = {who: each.exception() for who, each in waiting.items() if each.done()}
            assert list(ended) == ["z"], "one gives up, the youngest, and the others wait on"
            error = ended["z"]
            assert isinstance(error, TenfoldError) and error.code is Code.DEADLOCK
            for step in (f"{b}: x -> y", f"{c}: y -> z", f"{a}: z -> x"):
                assert step in error.message
            await held["z"].release()
            await (await waiting["y"]).release()
            await held["y"].release()
            await waiting["x"]

    in_time(scenario)


def test_a_long_queue_without_a_cycle_is_no_deadlock() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            a, b, _ = spread(cluster)
            x = await client.lock.acquire(a, 20_000, how=How(owner="x"))
            y = await client.lock.acquire(b, 20_000, how=How(owner="y"))
            waits = [(b, "x"), (a, "u"), (b, "v")]
            waiting = [
                asyncio.ensure_future(client.lock.acquire(name, 20_000, None, how=How(owner=who)))
                for name, who in waits
            ]
            await passes(60.0)
            assert not any(each.done() for each in waiting)
            await y.release()
            await (await waiting[0]).release()
            await x.release()
            for each in waiting[1:]:
                await each

    in_time(scenario)


def test_a_wait_survives_new_leaders_and_history_that_is_gone() -> None:
    async def scenario() -> None:
        limits = replace(DEFAULT, feed_records_max=4)
        async with living(shards=1, limits=limits) as cluster, cluster.client() as client:
            first = await client.lock.acquire("jobs", 60_000)
            waiting = asyncio.ensure_future(client.lock.acquire("jobs", 60_000, None))
            await cluster.until(lambda: cluster.state("jobs").waiters, "it waits")
            await passes(1.0)
            leader = cluster.leaders[1]
            cluster.move(1, "nobody")  # the stream ends, and nobody leads
            await passes(0.5)
            world = cluster.worlds[1]
            release = LockCommand(release=LockRelease(name="jobs", lease=first.lease, attempt=first.attempts["jobs"]))
            world.entry(Request(capability="lock", body=release.SerializeToString()))
            for number in range(20):
                world.put(b"k%d" % number)
            cluster.move(1, leader)
            held = await asyncio.wait_for(waiting, 5.0)
            assert cluster.tokens("jobs") == [held.token] and held.token > first.token

    in_time(scenario)


def test_leaders_are_elected_observed_and_resign() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as one, cluster.client() as other, cluster.client() as third:
            seen: list[bytes | None] = []

            async def look() -> None:
                async for leader in third.lock.observe("leader"):
                    seen.append(leader.metadata if leader is not None else None)

            looking = asyncio.ensure_future(look())
            await passes(0.1)
            first = await one.lock.campaign("leader", "one", ttl=2)
            second = asyncio.ensure_future(other.lock.campaign("leader", "two", ttl=2))
            await passes(5.0)
            assert not second.done()
            assert await one.lock.resign(first)
            await (await second).release()
            await passes(0.5)
            assert seen == [None, b"one", b"two", None]
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    in_time(scenario)
