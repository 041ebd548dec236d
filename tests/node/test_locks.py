"""Locks through a whole node: requests joined into entries, fences filled in, leases that end by themselves, failover."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import Code
from cluster.ring.ring import shard_of
from node.app import Node
from proto.gen import kv_pb2, lock_pb2, node_pb2
from proto.gen.entry_pb2 import Fence
from tests.node.cluster_world import FAST, ClusterWorld, Context


def lock_request(world: ClusterWorld, name: str, **command: Any) -> node_pb2.SubRequest:
    body = lock_pb2.LockCommand(**command).SerializeToString()
    shard = shard_of(name.encode(), world.shards)
    return node_pb2.SubRequest(shard=shard, shard_version=1, capability="lock", body=body)


def acquire(world: ClusterWorld, name: str, lease: int, **fields: Any) -> node_pb2.SubRequest:
    defaults: dict[str, Any] = {"attempt": 1, "owner": f"w{lease}", "ttl_ms": 60_000, "new_lease": True}
    asked = lock_pb2.LockAcquire(name=name, lease=lease, **{**defaults, **fields})
    return lock_request(world, name, acquire=asked)


def release(world: ClusterWorld, name: str, lease: int) -> node_pb2.SubRequest:
    return lock_request(world, name, release=lock_pb2.LockRelease(name=name, lease=lease, attempt=1))


def result(reply: node_pb2.SubReply) -> lock_pb2.LockResult:
    assert reply.code == Code.OK, reply
    return lock_pb2.LockResult.FromString(reply.body)


async def together(world: ClusterWorld, *subs: node_pb2.SubRequest) -> list[node_pb2.SubReply]:
    """One call with all of them, at the leader of shard 1."""
    leader = world.leader(1)
    assert leader is not None
    reply = await leader.service.call(node_pb2.CallRequest(requests=subs), Context())
    return list(reply.replies)


async def state(world: ClusterWorld, name: str) -> lock_pb2.LockState:
    sub = lock_request(world, name)
    sub.mode, sub.body = node_pb2.QUERY, lock_pb2.LockQuery(get=name).SerializeToString()
    reply = await world.call(sub)
    return lock_pb2.LockAnswer.FromString(reply.body).locks[0]


async def test_requests_of_one_lock_or_one_lease_do_not_share_an_entry() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=1, shards=1, limits=FAST) as world:
        await world.call(acquire(world, "first", 9))
        end = lock_request(world, "", end_lease=lock_pb2.LockEndLease(lease=1))
        renew = lock_request(world, "", renew=lock_pb2.LockRenew(lease=2, ttl_ms=1000))
        replies = await together(
            world,
            acquire(world, "a", 1),
            acquire(world, "b", 2),
            renew,
            acquire(world, "a", 3, wait_ms=5000),
            end,
            acquire(world, "c", 3, attempt=2),
            acquire(world, "d", 2, attempt=2),
        )
        assert [reply.code for reply in replies] == [Code.OK] * 7
        first = replies[0].index
        assert [reply.index - first for reply in replies] == [0, 0, 0, 1, 2, 3, 3]
        assert (await state(world, "a")).holders[0].token == first + 2, "the end of the lease let the next one in"


async def test_fences_are_filled_in_by_the_node_and_kept_through_a_failover() -> None:
    async with asyncio.timeout(60), ClusterWorld(shards=2, limits=FAST) as world:
        near, key = "{seat}lock", b"{seat}state"
        home = shard_of(key, 2)
        far = next(f"f{n}" for n in range(99) if shard_of(f"f{n}".encode(), 2) != home)

        def write(*fences: Fence) -> node_pb2.SubRequest:
            body = kv_pb2.KvCommand(ops=[kv_pb2.KvOp(key=key, value=b"sold")]).SerializeToString()
            sub = world.command(key, body)
            sub.fences.extend(fences)
            return sub

        token = result(await world.call(acquire(world, near, 1))).token
        assert (await world.call(write(Fence(name=near, token=token + 1)))).code == Code.STALE_TOKEN, "not the holder's"
        assert (await world.call(write(Fence(name=far, token=7)))).code == Code.OK, "it lies elsewhere"
        assert (await world.call(write(Fence(name=far, token=7, release=True)))).code == Code.CROSS_SHARD
        query = world.get_request(key)
        query.fences.add(name=far, token=7)
        assert (await world.call(query)).code == Code.INVALID_ARGUMENT

        leader = world.leader(home)
        assert leader is not None
        await world.crash([leader.config.node])
        assert (await world.call(write(Fence(name=far, token=6)))).code == Code.STALE_TOKEN
        confirmed = await world.call(write(Fence(name=near, token=token, release=True)))
        assert confirmed.code == Code.OK
        assert not (await state(world, near)).holders
        second = result(await world.call(acquire(world, near, 2)))
        assert second.granted and second.token > token


async def test_a_lease_is_its_principal_s_and_what_all_are_told_does_not_name_it() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=1, shards=1, limits=FAST) as world:
        await world.call(acquire(world, "first", 9))
        leader = world.leader(1)
        assert leader is not None

        async def ask(principal: str, sub: node_pb2.SubRequest) -> node_pb2.SubReply:
            request = node_pb2.CallRequest(requests=[sub], principal=principal)
            return (await leader.service.call(request, Context())).replies[0]

        assert result(await ask("anna", acquire(world, "a", 77))).granted
        found = await state(world, "a")
        assert [(each.owner, each.lease, each.attempt) for each in found.holders] == [("w77", 0, 0)]
        for principal, code in (("otto", Code.NOT_HOLDER), ("", Code.NOT_HOLDER), ("anna", Code.OK)):
            assert (await ask(principal, release(world, "a", 77))).code == code
        assert result(await ask("anna", acquire(world, "b", 77, attempt=2))).granted
        held = result(await ask("otto", acquire(world, "b", 78))).holder
        assert (held.owner, held.lease, held.attempt) == ("w77", 0, 0)


async def test_a_lease_that_nobody_renews_ends_and_the_next_one_is_told() -> None:
    async with asyncio.timeout(30), ClusterWorld(nodes=1, shards=1, limits=FAST) as world:
        assert result(await world.call(acquire(world, "a", 1, ttl_ms=200))).granted
        waits = await world.call(acquire(world, "a", 2, wait_ms=20_000))
        assert result(waits).waiting
        leader = world.leader(1)
        assert leader is not None
        event = await first_event(leader, 2, waits.index)
        assert (event.kind, event.name, event.attempt) == (lock_pb2.LockEvent.GRANTED, "a", 1)
        assert event.token == event.index > waits.index
        assert result(await world.call(release(world, "a", 2))).released


async def first_event(leader: Node, lease: int, after_index: int) -> lock_pb2.LockEvent:
    start, end = (b"a" + number.to_bytes(8, "big") for number in (lease, lease + 1))
    request = node_pb2.WatchRequest(
        shard=1, shard_version=1, capability="lock", start=start, end=end, after_index=after_index
    )
    async for reply in leader.service.watch(request, Context()):
        assert not reply.code, reply
        for event in reply.events:
            return lock_pb2.LockEvent.FromString(event)
    raise AssertionError("the watch ended")
