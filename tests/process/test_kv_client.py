"""The client and `tenfold kv` against real nodes, also while they are killed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.client import Client
from client.results import Compare, Condition, Delete, Get, Increment, Put
from client.sync import SyncClient
from cluster.errors import Code, TenfoldError
from cluster.local.local_cluster import LocalCluster
from tests.process.kv_cluster import REPOSITORY, cluster_of_three, tenfold

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster_of_three(tmp_path_factory.mktemp("kv") / "cluster") as made:
        yield made


class KillsInTurn:
    """Kills the leader of the first shard that has one, starts it again when the others have taken over."""

    def __init__(self, directory: Path) -> None:
        self._cluster = LocalCluster.at(directory)
        self.kills = 0

    async def run(self, kills: int) -> None:
        try:
            for _ in range(kills):
                leaders = await self._cluster.wait_ready()
                victim = leaders[1 + self.kills]
                await self._cluster.kill(victim)
                self.kills += 1
                await self._cluster.restart(victim)
            await self._cluster.wait_ready()
        finally:
            await self._cluster.close()


async def test_the_whole_facade(directory: Path) -> None:
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client:
        kv = client.kv
        version = await kv.put("f/a", "1")
        found = await kv.get("f/a")
        assert found is not None and (found.value, found.version, found.stale_ms) == (b"1", version, 0)
        assert await kv.increment("f/a", 41) == 42
        lease = await kv.get("f/a", consistency="lease")
        assert lease is not None and lease.value == b"42"
        with pytest.raises(TenfoldError) as caught:
            await kv.compare_and_set("f/a", "x", version=version)
        assert caught.value.code is Code.VERSION_MISMATCH
        results = await kv.batch([Put(f"f/b{i}", str(i)) for i in range(50)] + [Delete("f/none"), Increment("f/n", 5)])  # fmt: skip
        assert all(each.error is None for each in results)
        bought = await kv.transaction(
            [Compare("f/{t}x", Condition.VERSION_EQUAL, 0)], [Put("f/{t}x", "1"), Get("f/{t}y")], [Get("f/{t}x")]
        )
        assert bought.succeeded and bought.version > 0 and not bought.results[1].found
        keys = [item.key for item in (await kv.scan(prefix="f/").page()).items]
        assert keys == sorted(keys) and len(keys) == 53 == await kv.count("f/")
        assert [item.key async for item in kv.scan(prefix="f/", reverse=True)] == keys[::-1]
        assert await kv.delete("f/a") and await kv.get("f/a") is None


async def test_a_key_expires_by_itself_and_the_watch_tells(directory: Path) -> None:
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client, client.kv.watch("t/k") as watch:
        await client.kv.put("t/k", "v", ttl_ms=300)
        changes = [str((await anext(watch)).change) for _ in range(2)]
        assert changes == ["put", "expire"]
        assert await client.kv.get("t/k") is None


async def test_large_values_are_read_together(directory: Path) -> None:
    """Together they are several times what one message may carry."""
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory, deadline_s=30) as client:
        values = {f"big/{i}": bytes([i]) * 1_000_000 for i in range(40)}
        await asyncio.gather(*[client.kv.put(key, value) for key, value in values.items()])
        singles = await asyncio.gather(*[client.kv.get(key) for key in values])
        assert [each.value for each in singles if each is not None] == list(values.values())
        many = await client.kv.get_many(list(values))
        assert [each.value for each in many if each is not None] == list(values.values())
        scanned = {item.key.decode(): item.value async for item in client.kv.scan(prefix="big/")}
        assert scanned == values


async def test_nothing_is_lost_doubled_or_untold_while_leaders_are_killed(directory: Path) -> None:
    """Every increment counts once though its reply may be lost; a watch tells every change once over the leader changes."""
    tasks, each = 12, 40
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory, deadline_s=30) as client:
        watch = client.kv.watch(prefix="n/")
        async with watch:
            kills = KillsInTurn(directory)

            async def count(name: int) -> None:
                for number in range(each):
                    assert await client.kv.increment(f"n/{name}") == number + 1
                    await client.kv.increment("n/all")

            killing = asyncio.ensure_future(kills.run(2))
            rounds = 0
            while not killing.done() or not rounds:
                await asyncio.gather(*[client.kv.delete(f"n/{name}") for name in range(tasks)])
                await asyncio.gather(*[count(name) for name in range(tasks)])
                rounds += 1
            await killing
            assert kills.kills == 2
            total = await client.kv.get("n/all")
            assert total is not None and int(total.value) == rounds * tasks * each
            told: list[int] = []
            while len(told) < int(total.value):
                event = await anext(watch)
                if event.key == b"n/all":
                    told.append(int(event.value))
            assert told == list(range(1, int(total.value) + 1))


async def test_a_paused_leader_is_left(directory: Path) -> None:
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory, deadline_s=20) as client:
        cluster = LocalCluster.at(directory)
        try:
            leaders = await cluster.wait_ready()
            await client.kv.increment("p/n")
            victim = leaders[client._router.shard_of(b"p/n")]
            await cluster.pause(victim)
            try:
                assert await client.kv.increment("p/n") == 2
            finally:
                await cluster.resume(victim)
            assert await client.kv.increment("p/n") == 3
            await cluster.wait_ready()
        finally:
            await cluster.close()


async def test_load_and_dump_give_back_the_same_bytes_while_a_node_is_killed(directory: Path, tmp_path: Path) -> None:
    lines = [b"line %d \r" % number if number % 3 else b"" for number in range(30_000)] + [bytes(range(11, 256)), b"x"]
    file = tmp_path / "some.log"
    file.write_bytes(b"\n".join(lines))
    async with asyncio.timeout(LIMIT_S):
        loading = asyncio.get_running_loop().run_in_executor(
            None, lambda: tenfold("kv", "load", file, "--dir", directory, "--json")
        )
        kills = KillsInTurn(directory)
        await kills.run(1)
        loaded = await loading
    assert loaded.returncode == 0, loaded.stderr.decode()
    told = json.loads(loaded.stdout)
    assert (told["acknowledged"], told["failed"], told["unknown"]) == (30_002, 0, 0)
    dumped = tenfold("kv", "dump", "--prefix", "some.log", "--dir", directory)
    assert dumped.returncode == 0 and dumped.stdout == file.read_bytes() + b"\n"
    document = json.loads(tenfold("kv", "dump", "--prefix", "some.log", "--dir", directory, "--json").stdout)
    assert document["items"][1]["key"] == "some.log/000000000002" and document["items"][1]["version"] > 0
    assert "value_base64" in document["items"][-2]


def test_the_commands_speak_as_they_should(directory: Path, tmp_path: Path) -> None:
    """(arguments, exit code, standard output, end of standard error)"""
    here = ("--dir", directory)
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "1"}\n{"id": "2"}\noops\n{"id": "4"}\n')
    expected: list[tuple[tuple[Any, ...], int, bytes | None, bytes]] = [
        (("kv", "put", "c/1", "one", *here), 0, None, b""),
        (("kv", "put", "c/2", "-", *here), 0, None, b""),
        (("kv", "get", "c/1", *here), 0, b"one\n", b""),
        (("kv", "get", "c/2", *here), 0, b"\xff\x00\n", b""),
        (("kv", "get", "c/3", *here, "--json"), 1, b"", b"error: no such key: c/3\n"),
        (("kv", "put", "c/1", "x", "--if-version", "0", *here), 1, b"", b"expected\n"),
        (("kv", "scan", "--prefix", "c/", *here), 0, b"c/1\tone\nc/2\t\xff\x00\n", b""),
        (("kv", "scan", "--prefix", "c/", "--keys-only", "--reverse", "--limit", "1", *here), 0, b"c/2\n", None or b""),
        (("kv", "count", "--prefix", "c/", "--json", *here), 0, b'{"count": 2}\n', b""),
        (("kv", "delete", "c/2", *here), 0, b"deleted\n", b""),
        (("kv", "delete", "c/2", *here, "--json"), 0, b'{"found": false}\n', b""),
        (("kv", "load", bad, "--format", "jsonl", "--key", "id", *here), 1, None, b"line 3: not JSON: "),
        (("kv", "count", "--prefix", "bad.jsonl/", *here), 0, b"2\n", b""),
        (("kv", "load", tmp_path / "none", *here), 64, b"", b"is no file\n"),
        (("kv", "put", "", "x", *here), 64, b"", b"key: 0 bytes, must be 1 to 4096\n"),
        (("kv", "scan", "--cursor", "junk", *here), 64, b"", b" --cursor: malformed\n"),
        (("kv", "scan", "--limit", "0", *here), 64, b"", b" --limit: 0, must be at least 1\n"),
        (("kv", "put", "c/1", "x", "--ttl-ms", "0", *here), 64, b"", b" --ttl-ms: 0, must be 1 to"),
        (("kv", "load", bad, "--key", "id", *here), 64, b"", b" --key: a line file has no columns"),
        (("kv", "watch", *here), 64, b"", b"give a KEY or --prefix"),
        (("kv", "get", "c/1", *here, "--deadline", "nan"), 64, b"", b"InvalidArgument: --deadline: nan"),
        (("kv", "get", "c/1", *here, "--deadline", "-1"), 64, b"", b"InvalidArgument: --deadline: -1"),
        (("kv", "get", "c/1", *here, "--deadline", "0.0001"), 1, b"", b"no node gave the shard map within 0.0001 s"),
        (("kv", "get", "c/1", *here, "--deadline", "0"), 1, b"", b"had passed before the operation was tried\n"),
        (("kv", "get", "c/1", "--dir", tmp_path), 64, b"", b"makes one\n"),
    ]
    for arguments, code, output, error in expected:
        told = tenfold(*arguments, stdin=b"\xff\x00")
        assert told.returncode == code, (arguments, told)
        assert output is None or told.stdout == output, (arguments, told)
        last_line = told.stderr.splitlines(keepends=True)[-1:] or [b""]
        assert error in last_line[0] and b"Traceback" not in told.stderr, (arguments, told)


async def test_the_watch_command_tells_events_with_tokens(directory: Path) -> None:
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client:
        async with client.kv.watch(prefix="wc/") as watch:
            token = watch.token
        await client.kv.put("wc/1", "a")
        await client.kv.delete("wc/1")
    told = tenfold("kv", "watch", "--prefix", "wc/", "--token", token, "--events", 2, "--json", "--dir", directory)
    assert told.returncode == 0, told
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(event["change"], event["key"], event["value"]) for event in events] == [
        ("put", "wc/1", "a"),
        ("delete", "wc/1", ""),
    ]
    rest = tenfold("kv", "watch", "--prefix", "wc/", "--token", events[0]["token"], "--events", 1, "--dir", directory)
    assert rest.stdout.split(b"\t")[1:3] == [b"delete", b"wc/1"]


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tenfold", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)


async def test_an_interrupted_watch_ends_well_and_tells_its_token(directory: Path) -> None:
    watching = started("kv", "watch", "--prefix", "wi/", "--json", "--dir", directory)
    assert watching.stdout is not None and watching.stderr is not None
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client:
        while b"watching" not in await asyncio.to_thread(watching.stderr.readline):
            assert watching.poll() is None
        await client.kv.put("wi/1", "a")
        event = json.loads(await asyncio.to_thread(watching.stdout.readline))
        watching.send_signal(signal.SIGINT)
        rest, complaints = await asyncio.to_thread(watching.communicate)
        assert (watching.returncode, complaints) == (0, b"")
        await client.kv.put("wi/2", "b")
    last = json.loads(rest)
    assert event["key"] == "wi/1" and list(last) == ["token"]
    more = tenfold("kv", "watch", "--prefix", "wi/", "--token", last["token"], "--events", 1, "--dir", directory)
    assert more.stdout.split(b"\t")[2] == b"wi/2" and b"token: " in more.stderr


async def test_an_interrupted_load_tells_what_stayed(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"x" * 99 + b"\n" + (b"y" * 99 + b"\n") * 999_999)
    loading = started("kv", "load", file, "--json", "--dir", directory)
    async with asyncio.timeout(LIMIT_S), Client.from_directory(directory) as client:
        while await client.kv.get("long/000000000001") is None:
            assert loading.poll() is None
            await asyncio.sleep(0.02)
        loading.send_signal(signal.SIGINT)
        written, complaints = await asyncio.to_thread(loading.communicate)
        assert loading.returncode == 1 and complaints.splitlines()[-1] == b"error: interrupted"
        told = json.loads(written)
        assert told["interrupted"] is True and (told["failed"], told["malformed"]) == (0, 0)
        stayed = await client.kv.count("long/")
    assert 0 < told["acknowledged"] <= stayed <= told["acknowledged"] + told["unknown"] < 1_000_000


async def test_a_cluster_without_majority_and_one_that_is_down(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"one\n")
    cluster = LocalCluster.at(directory)
    here = ("--dir", directory, "--deadline", 2)
    try:
        async with asyncio.timeout(LIMIT_S):
            await cluster.kill("n1", "n2")
            while await cluster.leaders():
                await asyncio.sleep(0.1)
            work = [("put", "q", "1"), ("put", "q", "1"), ("get", "q"), ("get", "q", "--consistency", "lease"), ("count",)]  # fmt: skip
            for told in await asyncio.gather(*[asyncio.to_thread(tenfold, "kv", *each, *here) for each in work]):
                error = told.stderr.splitlines()[-1]
                assert (told.returncode, told.stdout) == (1, b""), told
                assert error.startswith(b"error: NotLeader: shard ") and b"no leader found for " in error, told
            await cluster.kill("n3")
            begun = time.monotonic()
            told = await asyncio.to_thread(tenfold, "kv", "get", "q", "--dir", directory)
            assert time.monotonic() - begun < 8, "it does not wait for the deadline of ten seconds"
            assert told.returncode == 1 and b" is down; `tenfold up --dir " in told.stderr, told
            told = await asyncio.to_thread(tenfold, "kv", "load", tmp_path / "f", "--json", "--dir", directory)
            assert told.returncode == 1 and b" is down; `tenfold up --dir " in told.stderr, told
            assert json.loads(told.stdout)["acknowledged"] == 0
    finally:
        await cluster.start()
        await cluster.wait_ready()
        await cluster.close()


def test_the_synchronous_client_from_many_threads(directory: Path) -> None:
    with SyncClient.from_directory(directory) as client:
        kv = client.kv
        with kv.watch(prefix="s/") as watch:
            counting = [threading.Thread(target=lambda: [kv.increment("s/n") for _ in range(25)]) for _ in range(4)]
            for thread in counting:
                thread.start()
            for thread in counting:
                thread.join()
            events = iter(watch)
            assert [int(next(events).value) for _ in range(100)] == list(range(1, 101))
        assert kv.put("s/a", "x") and kv.delete("s/a") and kv.get("s/a") is None
        assert all(each.error is None for each in kv.batch([Put(f"s/b{i}", "v") for i in range(30)]))
        assert [each is not None for each in kv.get_many(["s/b0", "s/none"])] == [True, False]
        version = kv.compare_and_set("s/c", "x", version=0)
        assert kv.compare_and_delete("s/c", version=version)
        assert kv.transaction([], [Put("s/{t}", "v")]).succeeded
        keys = [item.key for item in kv.scan(prefix="s/b")]
        assert keys == sorted(keys) and len(keys) == 30 == kv.count("s/b")
        assert len(kv.scan(prefix="s/b").page(7).items) == 7
        with pytest.raises(TenfoldError):
            kv.put("", "x")
    client.close()
