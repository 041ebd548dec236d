"""One bit flipped in real files of a follower: noticed and told, never answered from, and rebuilt without a hand.

The damaged node comes back while another is away, so that nothing can be rebuilt before it was looked at.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from client.client import Client
from client.kv import Consistency
from cluster.errors import TenfoldError
from cluster.limits import DEFAULT
from cluster.local.health import moving
from cluster.local.launcher import until
from cluster.local.local_cluster import LocalCluster
from cluster.ports import ChannelBroken
from cluster.ring.shard_map import replica_on
from cluster.wire.channel import dial
from proto.gen import node_pb2
from tests.process.damage import Place, entry_of, flip, hard_state_of, in_log, in_state

LIMIT_S = 90.0
SHARDS = 2
LARGE = DEFAULT.value_bytes_max
MANY = 2 + DEFAULT.log_bytes_kept_max // LARGE
"""So many large values of a shard, and a replica that begins anew gets a snapshot: its leader no longer holds the first entries."""


class Subject:
    """Three nodes; n1 stays whole, n2 goes away for a while, n3 is damaged."""

    def __init__(self, cluster: LocalCluster, client: Client) -> None:
        self.cluster, self.client = cluster, client
        self.values: dict[str, bytes] = {}

    async def fill(self) -> None:
        chance = random.Random(7)
        for shard in range(1, SHARDS + 1):
            for number in range(MANY):
                self.values[self.key(shard, number)] = chance.randbytes(LARGE - 1024)
        for key, value in self.values.items():
            await self.client.kv.put(key, value)
        await self.cluster.rolling_restart("n3")  # its log is shortened: a lost state cannot be made again from it

    def key(self, shard: int, number: int) -> str:
        names = (f"d/{number}/{i}" for i in range(1000))
        return next(name for name in names if self.client._router.shard_of(name.encode()) == shard)

    async def replies(self) -> dict[str, node_pb2.StatusReply]:
        return {each.node: each.reply for each in await self.cluster.status() if each.reply is not None}

    async def quarantined(self) -> dict[int, str]:
        """Of n3: shard to reason."""
        reply = (await self.replies()).get("n3")
        return {each.shard: each.quarantine for each in reply.replicas if each.quarantine} if reply is not None else {}

    async def damage(self, places: Callable[[], list[Place]], *, clean: bool) -> dict[int, str]:
        """Stops n3, flips the bits, starts it while n2 is away; what n3 then says of its replicas."""
        await (self.cluster.stop("n3") if clean else self.cluster.kill("n3"))
        for place in places():
            flip(place)
        await self.cluster.kill("n2")
        await self.cluster.restart("n3")
        found: dict[int, str] = {}

        async def noticed() -> bool:
            await self.look_through("n3")
            found.update(await self.quarantined())
            return bool(found)

        await until(noticed, 30.0, "nothing was noticed")
        return found

    async def look_through(self, node: str) -> node_pb2.StatusReply | None:
        """Lets the node read all of its state."""
        channel = dial(self.cluster.addresses[node])
        try:
            reply = await channel.call("Node", "Status", node_pb2.StatusRequest(digests=True), timeout_s=10.0)
            assert isinstance(reply, node_pb2.StatusReply)
            return reply
        except (ChannelBroken, TimeoutError, TenfoldError):
            return None
        finally:
            await channel.close()

    async def no_wrong_answer(self) -> None:
        """Without a majority there may be none, and a replica that was read before may answer a stale read."""

        async def read(key: str, consistency: Consistency) -> None:
            try:
                got = await self.client.kv.get(key, consistency=consistency, deadline_s=0.5)
            except TenfoldError:
                return
            assert got is not None and got.value == self.values[key], (key, consistency)

        both: tuple[Consistency, ...] = ("linearizable", "stale")
        await asyncio.gather(*(read(key, consistency) for key in self.values for consistency in both))

    async def rebuilt(self, shards: set[int], before: dict[int, int | None]) -> None:
        """n2 comes back: then n3 has new replicas of `shards`, equal to those of the others."""
        await self.cluster.restart("n2")

        async def whole() -> bool:
            shard_map = await self.cluster.shard_map()
            ids = {shard: replica_on(shard_map, shard, "n3") for shard in shards}
            return not moving(shard_map) and all(ids[shard] not in (None, before[shard]) for shard in shards)

        await until(whole, 40.0, "not rebuilt", 0.1)
        assert await self.quarantined() == {}

        async def equal() -> bool:
            told = [await self.look_through(node) for node in ("n1", "n2", "n3")]
            digests = [
                {(r.shard, r.applied_index): r.digest for r in each.replicas} for each in told if each is not None
            ]
            return len(digests) == 3 and digests[0] == digests[1] == digests[2] and len(digests[0]) == 1 + SHARDS

        await until(equal, 20.0, "the replicas differ", 0.1)
        for key, value in self.values.items():
            found = await self.client.kv.get(key)
            assert found is not None and found.value == value


@asynccontextmanager
async def subject(home: Path) -> AsyncIterator[Subject]:
    async with (
        asyncio.timeout(LIMIT_S),
        LocalCluster(3, 3, SHARDS, home) as cluster,
        Client(list(cluster.addresses.values()), deadline_s=20) as client,
    ):
        yield Subject(cluster, client)


async def test_a_flipped_bit_is_noticed_and_never_an_answer_and_what_it_hit_is_rebuilt(tmp_path: Path) -> None:
    async with subject(tmp_path / "c") as it:
        await it.fill()
        layout, every = it.cluster.layout, set(range(SHARDS + 1))

        async def ids() -> dict[int, int | None]:
            shard_map = await it.cluster.shard_map()
            return {shard: replica_on(shard_map, shard, "n3") for shard in every}

        before = await ids()
        victim = it.values[it.key(1, 0)]
        found = await it.damage(lambda: [in_state(layout, "n3", victim)], clean=True)
        assert found.keys() == every and all("state" in reason for reason in found.values()), found
        await it.no_wrong_answer()
        await it.rebuilt(every, before)
        reply = (await it.replies())["n3"]
        assert reply.counters["snapshots_installed"] >= SHARDS

        before = await ids()
        found = await it.damage(lambda: [in_state(layout, "n3", victim)], clean=True)
        assert 1 in found, "what the snapshot brought is checked like the rest"
        await it.no_wrong_answer()
        await it.rebuilt(set(found), before)

        before = await ids()
        await it.client.kv.put(it.key(1, 0), victim)
        await it.client.kv.put(it.key(2, 0), it.values[it.key(2, 0)])
        places = [entry_of(1), hard_state_of(2)]
        found = await it.damage(lambda: [in_log(layout, "n3", wanted) for wanted in places], clean=False)
        assert found.keys() == {1, 2} and all("record" in reason for reason in found.values()), found
        await it.no_wrong_answer()
        await it.rebuilt({1, 2}, before)
