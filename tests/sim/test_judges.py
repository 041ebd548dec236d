"""Judges of the load, told by hand what the cluster would tell them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from chaos.history import Operation
from chaos.sim.expiries import KEYS_AT_ONCE_MAX, Expiries
from chaos.sim.knobs import FLOORS
from chaos.sim.staleness import Seen, StaleReader
from chaos.sim.watching import Watcher
from client.watch import Change, WatchEvent
from cluster.errors import Code, TenfoldError


class Place:
    """Of a watch: where it would go on."""

    token = "there"


def told(version: int) -> WatchEvent:
    position: Any = None
    return WatchEvent(Change.PUT, b"k", b"v%d" % version, version, position)


def test_a_watcher_is_owed_what_it_did_not_miss_for_want_of_history() -> None:
    """It was told up to 10 and history is gone up to 20: 15 may be missing, 5 may not, and 25 may not."""
    watcher, watch = Watcher(1), Place()
    watcher._take(told(10))
    gone = TenfoldError(Code.COMPACTED, "gone", shard=1, floor=20, oldest_token="later")
    assert watcher._after(gone, watch, "there") == "later"  # type: ignore[arg-type]
    assert watcher.behind({"k": 15}) == ""
    assert "version 5" in watcher.behind({"k": 5}) and "version 25" in watcher.behind({"k": 25})
    watcher._take(told(30))
    again = TenfoldError(Code.COMPACTED, "gone", shard=1, floor=40, oldest_token="later")
    watcher._after(again, watch, "there")  # type: ignore[arg-type]
    assert "version 25" in watcher.behind({"k": 25}) and watcher.behind({"k": 40}) == ""


class Keys:
    """What is left; `most` is how many were asked for at once."""

    def __init__(self, left: set[str]) -> None:
        self.left, self.most = left, 0

    async def get_many(self, keys: Sequence[str]) -> list[object | None]:
        self.most = max(self.most, len(keys))
        return [key if key in self.left else None for key in keys]


def test_many_keys_that_expire_are_read_within_the_bound_of_the_smallest_client() -> None:
    assert FLOORS["client_queue_ops_max"] > KEYS_AT_ONCE_MAX
    expiries = Expiries(1, 1, lambda: 0.0, random.Random(1))
    expiries._mortal.update((f"m{number}", 0.1) for number in range(1000))
    expiries._immortal.update((f"i{number}", None) for number in range(1000))
    keys: Any = Keys({f"i{number}" for number in range(999)})
    asyncio.run(expiries.end(keys))
    assert keys.most == KEYS_AT_ONCE_MAX
    assert expiries.breaches == ["i999 was written without a TTL and is gone"]


def test_a_stale_read_that_is_older_than_it_says_is_found() -> None:
    reader = StaleReader(lambda: 0.0, random.Random(1))
    write = Operation(1, "put", "k", "ok", 0, 1, invoked_ns=0, completed_ns=1_000_000_000, value="v", version=7)
    reader.seen = [Seen(2.0, "k", 6, 950), Seen(2.0, "k", 7, 0)]
    assert reader.check([write]) == []
    reader.seen.append(Seen(2.0, "k", 6, 500))
    assert len(reader.check([write])) == 1
