"""The workload of locks on locks that keep every law and on such that break one, in virtual time: recorded and judged."""

from __future__ import annotations

import asyncio
import io
from collections import Counter

import pytest

from chaos.checkers import lock
from chaos.checkers.lock import LockFinding
from chaos.history import History, Recorder, header, parse
from chaos.sim.loop import SimLoop
from chaos.sim.loop import run as run_loop
from chaos.workloads.lock import LockOptions, LockWorkload
from cluster.ring.ring import shard_of
from tests.chaos.true_locks import TrueLocks

SHARDS = 2
FENCED = LockOptions()


def run(
    bug: str = "", seed: int = 3, seconds: float = 20.0, options: LockOptions = FENCED
) -> tuple[bytes, History, LockFinding]:
    loop = SimLoop(seed)
    file = io.BytesIO()

    async def work() -> None:
        with Recorder(_Kept(file), header(seed, {}, {}), lambda: int(loop.now * 1e9)) as recorder:
            store = TrueLocks(recorder, seed, bug)
            workload = LockWorkload(recorder, [store], SHARDS, seed, options)
            load = asyncio.ensure_future(workload.run())
            await workload.stopped_within(seconds)
            workload.stop()
            await load
            assert await workload.read_back() == 0

    run_loop(loop, work())
    history = parse(file.getvalue().split(b"\n"))
    return file.getvalue(), history, lock.check(history)


class _Kept(io.BytesIO):
    """Writes into another one, which survives."""

    def __init__(self, kept: io.BytesIO) -> None:
        super().__init__()
        self._kept = kept

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._kept.write(data)


def test_true_locks_are_judged_ok() -> None:
    _, _, finding = run()
    assert finding.problems == [] and finding.overlaps == finding.stale_tokens_accepted == 0
    assert finding.acquisitions > 200 and finding.waiters > 100 and finding.watched
    assert finding.expiry is not None and 0 <= finding.expiry.p50 <= finding.expiry.max < 50


def test_everything_that_was_promised_happens() -> None:
    _, history, _ = run()
    calls = Counter((each.f, each.type) for each in history.operations)
    assert all(calls[each] for each in (("acquire", "ok"), ("acquire", "fail"), ("renew", "ok"), ("renew", "fail")))
    assert calls["put", "fail"] > 0, "zombies write, and are refused"
    assert calls["release", "ok"] > 0 and calls["end", "ok"] > 0 and calls["acquire", "info"] > 0
    assert calls["force", "ok"] > 0, "operators take locks away"
    confirms = [each for each in history.operations if each.f == "put" and each.asked and each.asked.mode == "confirm"]
    assert any(each.type == "ok" for each in confirms)
    acquired = [each for each in history.operations if each.f == "acquire" and each.asked is not None]
    assert {each.asked.mode for each in acquired if each.asked} == {"exclusive", "shared", "semaphore"}
    assert {each.shard for each in acquired} == {1, 2}
    assert all(shard_of(each.key.encode(), SHARDS) == each.shard for each in acquired)
    assert any(each.asked and each.asked.attempt > 1 for each in acquired), "groups"
    assert any(each.asked and each.asked.delay_ms for each in acquired)
    assert any(each.asked and each.asked.reentrant and each.type == "ok" for each in acquired)
    values = [each.value for each in history.operations if each.f == "put"]
    assert len(values) == len(set(values))
    assert len(history.operations) / 20 > 50, "operations a second"


def test_the_same_seed_is_the_same_history() -> None:
    assert run(seconds=5.0)[0] == run(seconds=5.0)[0] != run(seconds=5.0, seed=4)[0]


def test_without_fences_double_writes_show() -> None:
    _, _, finding = run(options=LockOptions(fencing=False))
    assert finding.stale_tokens_accepted > 0
    assert {each.law for each in finding.problems} == {"fence"}


@pytest.mark.parametrize(
    ("bug", "law"),
    [
        ("early", "early"),
        ("token", "token"),
        ("releases another's", "log"),
        ("lost waiter", "queue"),
        ("unfair", "queue"),
        ("fence", "fence"),
        ("revived", "revived"),
        ("delay", "delay"),
        ("confirm", "log"),
        ("reentrant", "overlap"),
    ],
)
def test_a_broken_law_is_found(bug: str, law: str) -> None:
    _, _, finding = run(bug)
    assert law in {each.law for each in finding.problems}, finding.problems[:5]
