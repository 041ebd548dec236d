"""Watches tell each change once, in order, from any token, over broken streams and new leaders."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.results import Delete, Put
from client.watch import Change, Watch, WatchEvent, parse_event
from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from node.machines.kv import event_message
from proto.gen import node_pb2
from tests.client.fake_cluster import FakeCluster
from tests.client.test_batcher import limits
from tests.client.virtual_time import run

Seen = tuple[str, bytes, bytes, int]


class BrokenStreams(FakeCluster):
    """Streams that break after any reply, and leaders that move; the replies are as small as can be."""

    def __init__(self, seed: int, rate: float, batch_bytes: int) -> None:
        super().__init__(shards=3, nodes=3, limits=limits(watch_batch_bytes_max=batch_bytes, client_watch_events_max=2))
        self.chance, self.rate = random.Random(seed), rate

    async def watch(self, node: str, request: node_pb2.WatchRequest) -> AsyncIterator[node_pb2.WatchReply]:
        async for reply in super().watch(node, request):
            for part in self._parts(reply):
                yield part
                if self.chance.random() < self.rate:
                    if self.chance.random() < 0.5:
                        self.move(request.shard, self.chance.choice(["n1", "n2", "n3"]))
                    raise ChannelBroken("connection reset")

    def _parts(self, reply: node_pb2.WatchReply) -> list[node_pb2.WatchReply]:
        """A reply cut anywhere, also between changes of one log index; only the last part tells the whole index."""
        events = list(reply.events)
        if len(events) < 2 or reply.code:
            return [reply]
        cut = self.chance.randrange(1, len(events))
        first = node_pb2.WatchReply(index=parse_event(events[0])[0] - 1, events=events[:cut])
        return [first, node_pb2.WatchReply(index=reply.index, events=events[cut:])]


def seen(event: WatchEvent) -> Seen:
    return (str(event.change), event.key, event.value, event.version)


async def take(watch: Watch, count: int) -> list[WatchEvent]:
    events: list[WatchEvent] = []
    async with asyncio.timeout(600):
        while len(events) < count:
            events.append(await anext(watch))
    return events


def history(cluster: FakeCluster, prefix: bytes) -> dict[int, list[Seen]]:
    """What every shard's feed says, read at its source."""
    found: dict[int, list[Seen]] = {}
    for shard, world in cluster.worlds.items():
        after, told = 0, -1
        changes: list[Seen] = []
        while after != told:
            told = after
            events, after = world.applier.feed.read(told, prefix, b"", 10**9)
            messages = [event_message(index, key, event) for index, _, key, event in events]
            changes += [
                (("put", "delete", "expire")[each.kind], each.key, each.value, each.version) for each in messages
            ]
        found[shard] = [each for each in changes if each[1].startswith(prefix)]
    return found


def by_shard(cluster: FakeCluster, events: list[WatchEvent]) -> dict[int, list[Seen]]:
    found: dict[int, list[Seen]] = {shard: [] for shard in cluster.worlds}
    for event in events:
        found[cluster.shard_of(event.key)].append(seen(event))
    return found


async def write_some(cluster: FakeCluster, client: object, rounds: int) -> None:
    for number in range(rounds):
        await client.kv.batch(  # type: ignore[attr-defined]
            [Put(f"w{i}", f"{number}") for i in range(6)] + [Delete("w9"), Put("other", b"unseen")]
        )
        await client.kv.put("w9", f"{number}")  # type: ignore[attr-defined]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from([1, 60, 10_000]), st.integers(0, 10**6))
def test_every_change_is_told_once_and_any_token_goes_on_behind_its_event(
    seed: int, rate: float, batch_bytes: int, choice: int
) -> None:
    async def scenario() -> None:
        cluster = BrokenStreams(seed, rate, batch_bytes)
        async with cluster.client() as client:
            async with client.kv.watch(prefix="w") as watch:
                writing = asyncio.ensure_future(write_some(cluster, client, 6))
                total = 6 * 7 + 5  # a delete of what is not there is no change
                events = await take(watch, total)
                await writing
            wanted = history(cluster, b"w")
            assert sum(map(len, wanted.values())) == total
            assert by_shard(cluster, events) == wanted
            stop = choice % total
            async with client.kv.watch(prefix="w", token=events[stop].token) as watch:
                rest = await take(watch, total - stop - 1)
                assert by_shard(cluster, events[: stop + 1] + rest) == wanted
                await client.kv.put("w-last", b"")
                assert (await take(watch, 1))[0].key == b"w-last", "and nothing twice at the end"

    run(scenario())


def test_a_put_after_the_start_is_surely_seen_and_one_before_is_not() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3)
        async with cluster.client() as client:
            await client.kv.put("k", b"before")
            async with client.kv.watch("k") as watch:
                await client.kv.put("k", b"after")
                await client.kv.put("k2", b"another key")
                await client.kv.delete("k")
                events = await take(watch, 2)
            assert [(event.change, event.value) for event in events] == [(Change.PUT, b"after"), (Change.DELETE, b"")]
            assert len(cluster.watches) == 1, "one key, one shard"

    run(scenario())


def test_start_waits_until_every_shard_has_confirmed() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=3, nodes=3)
        async with cluster.client(deadline_s=1.0) as client:
            leader = cluster.leaders[2]
            cluster.down = {leader}
            with pytest.raises(TenfoldError, match=r"^shard 2: no leader confirmed the watch within 1 s") as caught:
                await client.kv.watch(prefix="").start()
            assert caught.value.code is Code.NOT_LEADER and caught.value.definite
            cluster.down = set()
            async with client.kv.watch(prefix="") as watch:
                assert watch.token

    run(scenario())


def test_history_that_is_gone_is_told_with_the_oldest_token() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=1, limits=limits(feed_records_max=4))
        async with cluster.client() as client:
            async with client.kv.watch(prefix="") as watch:
                await client.kv.put("k", b"0")
                (first,) = await take(watch, 1)
            for number in range(1, 9):
                await client.kv.put("k", str(number))
            with pytest.raises(TenfoldError) as caught:
                await client.kv.watch(prefix="", token=first.token).start()
            assert caught.value.code is Code.COMPACTED
            oldest = str(caught.value.details["oldest_token"])
            async with client.kv.watch(prefix="", token=oldest) as watch:
                assert [event.value for event in await take(watch, 4)] == [b"5", b"6", b"7", b"8"]

    run(scenario())


def test_a_watch_that_falls_behind_for_good_ends_with_compacted() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1, nodes=2, limits=limits(feed_records_max=3, client_watch_events_max=1))
        async with cluster.client() as client, client.kv.watch(prefix="") as watch:
            await client.kv.put("k", b"0")
            assert (await take(watch, 1))[0].value == b"0"
            cluster.move(1, "n2" if cluster.leaders[1] == "n1" else "n1")
            leader, cluster.leaders[1] = cluster.leaders[1], "nobody"
            await asyncio.sleep(0)
            cluster.leaders[1] = leader
            for number in range(1, 20):
                await client.kv.put("k", str(number))
            with pytest.raises(TenfoldError) as caught:
                await take(watch, 100)
            assert caught.value.code is Code.COMPACTED and caught.value.details["oldest_token"]
            with pytest.raises(TenfoldError):
                await anext(watch)

    run(scenario())


def test_a_foreign_token_is_refused() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=2)
        async with cluster.client() as client:
            async with client.kv.watch(prefix="a") as watch:
                token = watch.token
            for other in ({"prefix": "b"}, {"key": "a"}):
                with pytest.raises(TenfoldError) as caught:
                    client.kv.watch(token=token, **other)
                assert caught.value.code is Code.INVALID_CURSOR
            for neither in ({}, {"key": "a", "prefix": "a"}):
                with pytest.raises(TenfoldError) as caught:
                    client.kv.watch(**neither)
                assert caught.value.code is Code.INVALID_ARGUMENT

    run(scenario())
