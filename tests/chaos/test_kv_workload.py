"""The workload on stores that keep and that break the promise: recorded, read back, judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from chaos.checkers.linearizability import Verdict
from chaos.history import History, Recorder, header, read
from chaos.judge import Judgement, judge
from chaos.workloads.kv import DOUBTS_MAX, KvOptions, KvWorkload, keys_in
from cluster.errors import Code, TenfoldError
from cluster.ring.ring import shard_of
from tests.chaos.true_store import AcknowledgesTooEarly, DeposedLeader, DoubtfulWrites, ForgetsSessions, Held, TrueStore

SHARDS = 3
FAST = KvOptions(rate_per_s=1_000_000, operations_per_key=100)


async def run(
    store: TrueStore, path: Path, operations: int = 3_000, options: KvOptions = FAST, seed: int = 5
) -> tuple[History, Judgement]:
    with Recorder(path, header(seed, {}, {})) as recorder:
        workload = KvWorkload(recorder, [store, store], SHARDS, seed, options)
        load = asyncio.create_task(workload.run())
        async with asyncio.timeout(30):
            while workload.operations < operations:
                await asyncio.sleep(0)
            workload.stop()
            await load
        recorder.fault("ok", "kill", node="n1")
        if isinstance(store, AcknowledgesTooEarly):
            store.crash(2)
        assert await workload.read_back() == 0
    history = read(path)
    return history, judge(history, path)


async def test_a_true_store_is_judged_ok(tmp_path: Path) -> None:
    history, judgement = await run(TrueStore(1), tmp_path / "h.jsonl")
    result = judgement.result
    assert result.verdict is Verdict.OK and result.linearizable is True and not judgement.weak_because
    assert result.acknowledged_lost == 0 and result.unknown > 0 and result.faults == 1 and result.seed == 5
    assert result.keys_checked == len({each.key for each in history.operations}) >= 3_000 // 100
    assert result.operations == len(history.operations)


async def test_a_key_with_many_unknown_outcomes_is_left(tmp_path: Path) -> None:
    """Else the checker would give up on it."""
    options = KvOptions(rate_per_s=1_000_000, operations_per_key=100_000)
    history, _ = await run(DoubtfulWrites(1, unknown=0.3), tmp_path / "h.jsonl", options=options)
    doubts = Counter(each.key for each in history.operations if each.type == "info" and each.f != "get")
    assert len(doubts) > 3 * SHARDS and DOUBTS_MAX <= max(doubts.values()) < DOUBTS_MAX + options.clients_per_key


async def test_the_mix_is_what_was_promised(tmp_path: Path) -> None:
    history, _ = await run(TrueStore(2, unknown=0), tmp_path / "h.jsonl")
    load = [each for each in history.operations if not each.final]
    share = {f: count / len(load) for f, count in Counter(each.f for each in load).items()}
    assert 0.25 < share["cas"] < 0.35 and 0.25 < share["get"] < 0.45 and 0.25 < share["put"] < 0.45
    answers = Counter((each.f, each.type) for each in load)
    assert answers["cas", "ok"] > 50 and answers["cas", "fail"] > 50, "compare-and-sets win and lose"
    per_key = Counter(each.key for each in load)
    finished = [key for key in per_key if per_key[key] == FAST.operations_per_key]
    assert len(finished) >= len(per_key) - SHARDS and max(per_key.values()) == FAST.operations_per_key
    assert all(len({each.process for each in load if each.key == key}) >= 8 for key in finished)
    assert all(shard_of(each.key.encode(), SHARDS) == each.shard for each in load)
    assert {each.shard for each in load} == {1, 2, 3}
    finals = Counter(each.key for each in history.operations if each.final)
    assert finals == Counter(dict.fromkeys(per_key, 1)), "every key is read back once"


async def test_clients_of_a_key_do_overlap(tmp_path: Path) -> None:
    history, _ = await run(TrueStore(3), tmp_path / "h.jsonl", operations=1_000)
    overlapping = most = 0
    moments = sorted(
        (moment, change)
        for each in history.operations
        if each.shard == 1 and each.completed is not None
        for moment, change in ((each.invoked, 1), (each.completed, -1))
    )
    for _, change in moments:
        overlapping += change
        most = max(most, overlapping)
    assert most >= 4


@pytest.mark.parametrize("broken", [DeposedLeader, ForgetsSessions])
async def test_a_broken_promise_is_a_violation(tmp_path: Path, broken: type[TrueStore]) -> None:
    _, judgement = await run(broken(4), tmp_path / "h.jsonl")
    assert judgement.result.verdict is Verdict.VIOLATION and judgement.result.linearizable is False
    assert judgement.violations and all(len(each.operations) < 20 for each in judgement.violations[:3])


async def test_lost_acknowledged_writes_are_counted(tmp_path: Path) -> None:
    _, judgement = await run(AcknowledgesTooEarly(5, unknown=0), tmp_path / "h.jsonl")
    assert judgement.result.verdict is Verdict.VIOLATION
    assert judgement.result.acknowledged_lost == 2
    assert len({each.write.key for each in judgement.durability.lost}) == 2


class Unreachable(TrueStore):
    """Reads stop being answered."""

    async def get(self, key: str, *, deadline_s: float) -> Held | None:
        raise TenfoldError(Code.DEADLINE_EXCEEDED)


async def test_what_was_not_read_back_is_unknown(tmp_path: Path) -> None:
    store = Unreachable(6)
    path = tmp_path / "h.jsonl"
    with Recorder(path, header(1, {}, {})) as recorder:
        workload = KvWorkload(recorder, [store], SHARDS, 1, KvOptions(rate_per_s=1_000_000, get_percent=0))
        load = asyncio.create_task(workload.run())
        async with asyncio.timeout(30):
            while workload.operations < 700:
                await asyncio.sleep(0)
            workload.stop()
            await load
        assert await workload.read_back() == len(workload.keys)
    judgement = judge(read(path), path)
    assert judgement.result.verdict is Verdict.UNKNOWN and len(judgement.durability.unread) == len(workload.keys)


async def test_after_an_unknown_outcome_the_client_is_another_process(tmp_path: Path) -> None:
    history, _ = await run(TrueStore(7, unknown=0.05), tmp_path / "h.jsonl", operations=1_000)
    ended = {each.process for each in history.operations if each.type == "info"}
    last = {each.process: each.type for each in history.operations}
    assert ended and all(last[process] == "info" for process in ended)


async def test_the_rate_is_bounded(tmp_path: Path) -> None:
    clock = asyncio.get_running_loop().time
    with Recorder(tmp_path / "h.jsonl", header(1, {}, {})) as recorder:
        workload = KvWorkload(recorder, [TrueStore(8)], SHARDS, 1, KvOptions(rate_per_s=500))
        start = clock()
        load = asyncio.create_task(workload.run())
        async with asyncio.timeout(30):
            while workload.operations < 200:
                await asyncio.sleep(0)
        assert clock() - start > 200 / 500 / 2, "it may begin faster, since the first pauses are drawn from zero"
        workload.stop()
        await load


async def test_an_unexpected_exception_ends_the_run(tmp_path: Path) -> None:
    class Buggy(TrueStore):
        async def put(self, key: str, value: str, *, deadline_s: float) -> int:
            raise ZeroDivisionError

    with Recorder(tmp_path / "h.jsonl", header(1, {}, {})) as recorder:
        workload = KvWorkload(recorder, [Buggy(1)], SHARDS, 1, FAST)
        async with asyncio.timeout(10):
            with pytest.raises(ZeroDivisionError):
                await workload.run()


def test_keys_lie_in_their_shard_and_are_distinct() -> None:
    seen = [key for shard in (1, 2, 3) for key in islice(keys_in(shard, 3, "chaos/1"), 20)]
    assert len(set(seen)) == 60
