"""What is passed by mistake is refused by its name, and never made into something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client.client import Client
from client.results import Compare, Put
from client.sync import SyncClient
from cluster.errors import Code, TenfoldError
from tests.client.fake_cluster import FakeCluster
from tests.client.virtual_time import run


def wrong(value: Any) -> Any:
    """What a type checker would refuse."""
    return value


def test_arguments_of_another_type_are_refused_before_anything_is_sent() -> None:
    async def scenario() -> None:
        cluster = FakeCluster(shards=1)
        async with cluster.client() as client:
            kv: Any = client.kv
            bad: list[tuple[Any, str]] = [
                (kv.put("k", 5), "^value: int 5, must be text or bytes"),
                (kv.put("k", None), "^value: NoneType None"),
                (kv.put("k", "\ud800"), "^value: the text holds half of a surrogate pair"),
                (kv.put("k", "v", ttl_ms=1.5), r"^ttl_ms: float 1\.5, must be a whole number"),
                (kv.put("k", "v", deadline_s="3"), "^deadline_s: str '3', must be a number of seconds"),
                (kv.get(5), "^key: int 5, must be text or bytes"),
                (kv.get_many("abc"), "^keys: str 'abc', must be a list"),
                (kv.get_many(["a", 7]), r"^keys\[1\]: int 7"),
                (kv.delete([1, 2]), r"^key: list \[1, 2\]"),
                (kv.increment("k", 1.0), r"^delta: float 1\.0, must be a whole number"),
                (kv.increment("k", True), "^delta: bool True"),
                (kv.compare_and_set("k", b"v", version="1"), "^version: str '1'"),
                (kv.batch([Put(b"a", wrong(5))]), "^value: int 5"),
                (kv.batch([Put(wrong(5), b"a")]), "^key: int 5"),
                (kv.batch("ab"), "^entry: str is no operation"),
                (kv.count(5), "^prefix: int 5"),
                (
                    kv.transaction([Compare("a", wrong("bigger"), 3)], [Put("a", b"")]),
                    "^condition: 'bigger', must be one of",
                ),
            ]
            for work, told in bad:
                with pytest.raises(TenfoldError, match=told) as caught:
                    await work
                assert caught.value.code is Code.INVALID_ARGUMENT
            direct: list[tuple[Callable[[], Any], str]] = [
                (lambda: kv.scan(prefix=5), "^prefix: int 5"),
                (lambda: kv.scan(start=5), "^start: int 5"),
                (lambda: kv.scan(limit="3"), "^limit: str '3'"),
                (lambda: kv.scan(cursor=b"x"), "^cursor: bytes b'x', must be text"),
                (lambda: kv.watch(prefix=0), "^prefix: int 0"),
                (lambda: kv.watch(5), "^key: int 5"),
            ]
            for call, told in direct:
                with pytest.raises(TenfoldError, match=told) as caught:
                    call()
                assert caught.value.code is Code.INVALID_ARGUMENT
            assert not cluster.calls
            assert await kv.put(bytearray(b"k"), memoryview(b"v")) and cluster.value(b"k") == b"v"

    run(scenario())


@pytest.mark.parametrize(
    ("addresses", "deadline_s", "told"),
    [
        ("127.0.0.1:99", 1, "^addresses: str '127.0.0.1:99', must be a list"),
        (5, 1, "^addresses: int 5, must be a list"),
        ([], 1, "^addresses: at least one"),
        (["127.0.0.1"], 1, r"^addresses\[0\]: '127.0.0.1', must be host:port"),
        (["a:1", "a:65536"], 1, r"^addresses\[1\]: 'a:65536', must be host:port"),
        ([7400], 1, r"^addresses\[0\]: int 7400"),
        (["a:1"], "1", "^deadline_s: str '1'"),
        (["a:1"], float("nan"), "^deadline_s: nan"),
        (["a:1"], -1, "^deadline_s: -1, must not be negative"),
        (["a:1"], float("inf"), "^deadline_s: inf, must be at most 600"),
    ],
)
def test_a_client_checks_its_seeds_and_its_deadline(addresses: Any, deadline_s: Any, told: str) -> None:
    for make in (lambda: Client(addresses, deadline_s=deadline_s), lambda: _entered(addresses, deadline_s)):
        with pytest.raises(TenfoldError, match=told) as caught:
            make()
        assert caught.value.code is Code.INVALID_ARGUMENT


def _entered(addresses: Any, deadline_s: Any) -> None:
    with SyncClient(addresses, deadline_s=deadline_s):
        pass
