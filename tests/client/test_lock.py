"""Locks through the real client: who gets them, in which order, for how long it is believed, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client.lock_arguments import How
from client.lock_held import Held
from client.results import Put
from cluster.errors import Code, TenfoldError
from proto.gen import node_pb2
from tests.client.fake_cluster import Fault
from tests.client.lock_cluster import TICK_S, in_time, living
from tests.client.test_outcomes import code_of, in_turn
from tests.client.virtual_time import passes


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_lock_is_granted_with_a_token_and_the_next_one_has_a_higher() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            tokens = []
            for _ in range(3):
                async with client.lock.hold("jobs", ttl=10) as held:
                    tokens.append(held.token)
                    assert cluster.tokens("jobs") == [held.token] and held.name == "jobs"
                    assert 8.9 < held.remaining_s <= 9.0, "the ttl, less what clocks may drift"
                assert cluster.tokens("jobs") == [] and held.remaining_s == 0
            assert tokens == sorted(set(tokens))

    in_time(scenario)


def test_who_does_not_wait_is_told_who_holds_it() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire("jobs", 10_000, how=How(owner="first"))
            with pytest.raises(TenfoldError) as caught:
                await client.lock.acquire("jobs", 10_000)
            assert caught.value.code is Code.LOCK_HELD and caught.value.definite
            assert caught.value.details["holder"] == "first" and caught.value.details["waiters"] == 0
            assert 0 < int(str(caught.value.details["remaining_ms"])) <= 10_000
            info = await client.lock.check("jobs")
            assert [holder.token for holder in info.holders] == [held.token] and not info.waiters
            assert [info.name for info in await client.lock.list()] == ["jobs"]
            assert await held.release() and not await held.release(), "idempotent"
            assert await client.lock.list() == []

    in_time(scenario)


def test_waiters_get_it_in_the_order_in_which_they_came() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as one, cluster.client() as other:
            first = await one.lock.acquire("jobs", 2000)
            got: list[int] = []

            async def waiter(number: int) -> None:
                async with (one if number % 2 else other).lock.hold("jobs", ttl=2):
                    got.append(number)
                    await passes(3.0)  # longer than the ttl: the keep-alive holds it

            waiting = []
            for number in range(5):
                waiting.append(asyncio.ensure_future(waiter(number)))
                await cluster.until(lambda: len(cluster.state("jobs").waiters) == number + 1, "it waits")  # noqa: B023
            await passes(5.0)
            assert cluster.tokens("jobs") == [first.token] and not got
            await first.release()
            await asyncio.gather(*waiting)
            assert got == [0, 1, 2, 3, 4]

    in_time(scenario)


def test_a_wait_ends_in_its_time_and_leaves_nothing() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            await client.lock.acquire("jobs", 10_000)
            began = now()
            with pytest.raises(TenfoldError) as caught:
                await client.lock.acquire("jobs", 10_000, 3000)
            assert caught.value.code is Code.DEADLINE_PASSED
            assert 3.0 <= now() - began < 3.0 + 3 * TICK_S
            assert len(cluster.state("jobs").holders) == 1 and not cluster.state("jobs").waiters

    in_time(scenario)


def test_one_who_goes_away_while_it_waits_leaves_the_queue_and_one_that_was_granted_meanwhile_gives_it_back() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            first = await client.lock.acquire("jobs", 10_000)
            for release_first in (False, True):
                waiting = asyncio.ensure_future(client.lock.acquire("jobs", 10_000, None))
                await cluster.until(lambda: cluster.state("jobs").waiters, "it waits")
                if release_first:
                    wake = cluster._wake

                    def granted_unheard(shard: int) -> None:
                        waiting.cancel()  # noqa: B023
                        wake(shard)  # noqa: B023

                    cluster._wake = granted_unheard  # type: ignore[method-assign]
                    await first.release()
                    cluster._wake = wake  # type: ignore[method-assign]
                waiting.cancel()
                assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
                await passes(0.2)
                assert not cluster.state("jobs").waiters
            assert not cluster.tokens("jobs"), "long before a lease ends"

    in_time(scenario)


def test_the_belief_of_a_holder_that_nobody_answers_ends_before_the_lease_does() -> None:
    """The holder's own view never outlives the lease."""

    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            told: list[tuple[float, Held]] = []
            held = await client.lock.acquire("jobs", 3000)
            held.when_lost(lambda lost: told.append((now(), lost)))
            await passes(2.5)
            assert not held.lost.is_set() and held.remaining_s > 1.5, "it was renewed"
            cluster.faults = lambda node, request: Fault.LOSE_REQUEST
            cut = now()
            await asyncio.wait_for(held.lost.wait(), 10)
            lost_at = now()
            assert told == [(lost_at, held)] and held.remaining_s == 0
            assert cut + 3.0 * 0.9 - 1.1 < lost_at <= cut + 3.0 * 0.9
            assert cluster.tokens("jobs") == [held.token], "the shard still holds it for it"
            await cluster.until(lambda: not cluster.tokens("jobs"), "the lease ends")
            assert now() > lost_at + 0.2, "later than the holder has believed"
            assert not await held.release(), "what is lost is not given up"

    in_time(scenario)


def test_a_renewal_is_believed_from_when_it_was_sent_not_from_when_it_was_answered() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            await client.kv.put("warm", b"")
            cluster.delay_s = {1: 0.8}
            held = await client.lock.acquire("jobs", 3000)
            assert held.remaining_s == pytest.approx(3.0 * 0.9 - 0.8, abs=0.01)
            left_s = held.remaining_s
            for _ in range(200):
                if held.remaining_s > left_s:
                    break  # a renewal was answered
                left_s = held.remaining_s
                await passes(0.01)
            assert held.remaining_s == pytest.approx(3.0 * 0.9 - 0.8, abs=0.05)

    in_time(scenario)


def test_a_body_is_cancelled_when_its_lock_is_lost() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            with pytest.raises(TenfoldError) as caught:
                async with client.lock.hold("jobs", ttl=1, cancel_on_lost=True):
                    cluster.faults = lambda node, request: Fault.LOSE_REQUEST
                    await passes(3600)
            assert caught.value.code is Code.LEASE_LOST
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0 and now() < 2

    in_time(scenario)


def test_a_cancel_from_outside_stays_a_cancel() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:

            async def body() -> None:
                async with client.lock.hold("jobs", cancel_on_lost=True):
                    await passes(3600)

            task = asyncio.ensure_future(body())
            await cluster.until(lambda: cluster.tokens("jobs"), "held")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not cluster.tokens("jobs"), "and the lock is given up on the way out"

    in_time(scenario)


def test_an_acquire_of_unknown_outcome_gets_the_token_it_was_given() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client(deadline_s=1.0) as client:
            await client.kv.put("warm", b"")
            cluster.faults = in_turn(Fault.HANG_AFTER)  # done, and nobody hears: the command ends as unknown
            held = await client.lock.acquire("jobs", 10_000, how=How(owner="me"))
            assert cluster.tokens("jobs") == [held.token]
            asked = [each for _, each in cluster.lock_commands("acquire")]
            assert len(asked) >= 2 and len({(each.lease, each.attempt) for each in asked}) == 1

    in_time(scenario)


def test_an_acquire_whose_caller_has_gone_is_released_behind_it() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client() as client:
            await client.kv.put("warm", b"")
            cluster.delay_s = {1: 0.5}
            asking = asyncio.ensure_future(client.lock.acquire("jobs", 10_000))
            await passes(0.2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await cluster.until(lambda: cluster.tokens("jobs"), "it is granted all the same")
            cluster.delay_s = {}
            await passes(1.5)
            assert not cluster.tokens("jobs")

    in_time(scenario)


def test_a_release_of_unknown_outcome_goes_on_in_the_background() -> None:
    async def scenario() -> None:
        async with living(shards=1) as cluster, cluster.client(deadline_s=0.5) as client:
            held = await client.lock.acquire("jobs", 60_000)
            cluster.faults = lambda node, request: Fault.LOSE_REQUEST
            assert await code_of(held.release()) is Code.DEADLINE_EXCEEDED
            await passes(2.0)
            cluster.faults = lambda node, request: Fault.NONE
            await cluster.until(lambda: not cluster.tokens("jobs"), "it is given up")
            assert now() < 10

    in_time(scenario)


def test_a_lock_taken_away_by_an_operator_is_told_to_its_holder() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as operator:
            held = await client.lock.acquire("jobs", 3000)
            await passes(2.0)
            assert not await operator.lock.force_release("jobs", token=held.token + 1)
            assert await operator.lock.force_release("jobs", token=held.token)
            await asyncio.wait_for(held.lost.wait(), 1.0)
            assert "operator" in held.lost_reason
            assert await code_of(held.renew()) is Code.LEASE_LOST

    in_time(scenario)


def test_of_somebody_elses_lock_nothing_is_given_up() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire("jobs", 10_000)
            assert await code_of(client.lock.release_token("jobs", held.token + 5)) is Code.NOT_HOLDER
            assert cluster.tokens("jobs") == [held.token]
            assert await client.lock.release_token("jobs", held.token)
            assert not await client.lock.release_token("jobs", held.token)

    in_time(scenario)


def test_confirm_writes_and_releases_in_one_commit_or_not_at_all() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            held = await client.lock.acquire("seat:{12}", 600_000)
            sent = len(cluster.commands())
            elsewhere = cluster.key_in(1 + cluster.shard_of(b"seat:{12}") % 3)
            assert await code_of(held.confirm([Put(elsewhere, b"x")])) is Code.CROSS_SHARD
            assert len(cluster.commands()) == sent, "nothing was sent"
            done = await held.confirm([Put("sold:{12}", b"ada")])
            assert done.succeeded and cluster.value(b"sold:{12}") == b"ada" and not cluster.tokens("seat:{12}")
            renewals = len(cluster.lock_commands("renew"))
            await passes(1200)
            assert len(cluster.lock_commands("renew")) == renewals, "nothing is kept alive any more"
            assert not await held.release()

    in_time(scenario)


def test_what_is_not_held_any_more_cannot_be_confirmed() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client, cluster.client() as operator:
            held = await client.lock.acquire("seat:{12}", 600_000)
            await operator.lock.force_release("seat:{12}")
            assert await code_of(held.confirm([Put("sold:{12}", b"ada")])) is Code.STALE_TOKEN
            assert cluster.value(b"sold:{12}") is None and held.lost.is_set()

    in_time(scenario)


def test_a_write_under_a_token_that_was_passed_by_is_refused() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            slow = await client.lock.acquire("jobs", 1000)
            other = cluster.key_in(1 + cluster.shard_of(b"jobs") % 3)
            await client.kv.put(other, b"1", if_fence=slow)
            await client.lock.force_release("jobs")
            quick = await client.lock.acquire("jobs", 1000)
            await client.kv.put(other, b"2", if_fence=quick)
            assert await code_of(client.kv.put(other, b"3", if_fence=("jobs", slow.token))) is Code.STALE_TOKEN
            assert cluster.value(other) == b"2"

    in_time(scenario)


def test_shared_locks_semaphores_and_reentrance() -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            lock = client.lock
            readers = [await lock.acquire("r", 10_000, mode="shared") for _ in range(3)]
            assert await code_of(lock.acquire("r", 10_000)) is Code.LOCK_HELD
            for each in readers:
                await each.release()
            count = How("semaphore", capacity=3, permits=2)
            two = await lock.acquire("s", 10_000, how=count)
            assert await code_of(lock.acquire("s", 10_000, how=count)) is Code.LOCK_HELD
            await lock.acquire("s", 10_000, how=count._replace(permits=1))
            assert await code_of(lock.acquire("s", 10_000, how=count._replace(capacity=9))) is Code.LOCK_MODE_DIFFERS
            await two.release()
            again = How(reentrant=True, owner="me")
            outer, inner = [await lock.acquire("e", 10_000, how=again) for _ in range(2)]
            assert outer.token == inner.token
            await outer.release()
            assert set(cluster.tokens("e")) == {inner.token}
            await inner.release()
            assert not cluster.tokens("e")

    in_time(scenario)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"names": ""}, "name"),
        ({"names": "a\0b"}, "name"),
        ({"names": ["a", "a"]}, "names"),
        ({"names": []}, "names"),
        ({"names": [f"n{i}" for i in range(65)]}, "names"),
        ({"ttl_ms": 99}, "ttl_ms"),
        ({"ttl_ms": 86_400_001}, "ttl_ms"),
        ({"wait_ms": -1}, "wait_ms"),
        ({"mode": "other"}, "mode"),
        ({"how": How("semaphore")}, "capacity"),
        ({"how": How(capacity=2)}, "capacity"),
        ({"how": How(owner="")}, "owner"),
        ({"how": How(delay_ms=60_001)}, "delay_ms"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(arguments: dict[str, Any], field: str) -> None:
    async def scenario() -> None:
        async with living() as cluster, cluster.client() as client:
            with pytest.raises(TenfoldError, match=f"^{field}") as caught:
                await client.lock.acquire(**{"names": "a", "ttl_ms": 1000, **arguments})
            assert caught.value.code is Code.INVALID_ARGUMENT
            assert not [sub for sub in cluster.subs() if sub.mode == node_pb2.COMMAND]

    in_time(scenario)
