"""From a history of locks to what `chaos check` says; parts of one run merged; nodes that are paused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from chaos.cli import app
from chaos.history import FEED, HistoryError, LockFacts, Recorder, header, merge, read
from chaos.nemesis import kill, pauses
from chaos.nemesis.pauses import PauseNemesis
from chaos.nemesis.schedule import PlannedKill
from client.cli.output import run_app
from cluster.errors import Code, TenfoldError
from tests.chaos.shadow_cluster import ShadowCluster

RESULT = [
    "verdict", "operations", "acquisitions", "stale_tokens_accepted", "overlaps", "expiry_ms", "acknowledged", "unknown", "failed",
    "acknowledged_lost", "linearizable", "keys_checked", "names_checked", "waiters_checked", "violations", "faults",
    "max_unavailable_ms", "unavailable_p99_ms", "seed", "history", "weak",
]  # fmt: skip
LOCKS = {"workload": "lock"}


def write(path: Path, tokens: tuple[int, int], *, watched: bool = True) -> None:
    """One holder after the other, each with a write under its token, in the order of `tokens`."""
    with Recorder(path, header(9, LOCKS, {})) as recorder:
        for lease, token in enumerate((5, 9), 1):
            asked = LockFacts(lease=lease, attempt=1, mode="exclusive", ttl_ms=1000)
            recorder.record(lease, "invoke", "acquire", key="l", shard=1, lock=asked)
            recorder.record(
                lease, "ok", "acquire", key="l", shard=1, lock=LockFacts(token=token, index=token, until_ns=1)
            )
            if watched:
                told = LockFacts(lease=lease, attempt=1, token=token, index=token)
                recorder.record(FEED, "ok", "holder", key="l", shard=1, lock=told)
            recorder.record(lease, "invoke", "release", key="l", shard=1, lock=LockFacts(lease=lease, attempt=1))
            released = LockFacts(index=token + 1)
            recorder.record(lease, "ok", "release", key="l", shard=1, found=True, lock=released)
            if watched:
                recorder.record(FEED, "ok", "free", key="l", shard=1, lock=LockFacts(index=token + 1))
        for version, token in enumerate(tokens, 20):
            recorder.record(
                3, "invoke", "put", key="r", value=f"v{token}", shard=2, lock=LockFacts(name="l", token=token)
            )
            recorder.record(3, "ok", "put", key="r", version=version, shard=2)
        recorder.fault("invoke", "pause-holder", node="holder-1")
        recorder.record(3, "invoke", "get", key="r", shard=2, final=True)
        recorder.record(3, "ok", "get", key="r", value=f"v{tokens[1]}", version=21, shard=2, final=True)


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = run_app(app, ["check", str(path), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_kept_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "h.jsonl", (5, 9))
    code, result = check(tmp_path / "h.jsonl", capsys)
    assert code == 0 and list(result) == RESULT and result["verdict"] == "ok"
    assert (result["acquisitions"], result["acknowledged"], result["faults"], result["weak"]) == (2, 2, 1, True)
    assert result["expiry_ms"] is None and result["linearizable"] is True


def test_a_stale_write_is_a_violation_and_people_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "h.jsonl", (9, 5))
    code, result = check(tmp_path / "h.jsonl", capsys)
    assert (code, result["verdict"], result["stale_tokens_accepted"]) == (1, "violation", 1)
    assert run_app(app, ["check", str(tmp_path / "h.jsonl")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("verdict: violation") and "fence: l: r took 'v5' with token 5 after 'v9' with 9" in out


def test_without_a_feed_the_log_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "h.jsonl", (5, 9), watched=False)
    code, result = check(tmp_path / "h.jsonl", capsys)
    assert (code, result["verdict"]) == (2, "unknown")


def test_nothing_passes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recorder(tmp_path / "h.jsonl", header(1, LOCKS, {})).close()
    assert check(tmp_path / "h.jsonl", capsys)[0] == 2


# -- parts -------------------------------------------------------------------------------------------------------------


def test_parts_become_one_history_in_the_order_of_time(tmp_path: Path) -> None:
    now = 0
    recorders = [
        Recorder(tmp_path / f"{name}.jsonl", header(1, {}, {}), lambda: now, start=0, buffered=False) for name in "ab"
    ]
    for now in range(1, 7):
        recorders[now % 2].record(now, "invoke", "get", key="k")
    torn = tmp_path / "b.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"index":3,"time":9,"proc')
    head = header(1, {"of": "both"}, {})
    merge(head, [tmp_path / "a.jsonl", torn], tmp_path / "whole.jsonl")
    history = read(tmp_path / "whole.jsonl")
    assert [each.process for each in history.operations] == [1, 2, 3, 4, 5, 6]
    assert [each.invoked for each in history.operations] == [0, 1, 2, 3, 4, 5] and history.header == head
    with pytest.raises(HistoryError):
        read(torn)


# -- pauses ------------------------------------------------------------------------------------------------------------


class Pausable(ShadowCluster):
    def __init__(self) -> None:
        super().__init__()
        self.paused: list[str] = []

    async def pause(self, *nodes: str) -> None:
        await self.kill(*nodes)  # as far as others can see
        self.paused += nodes

    async def resume(self, *nodes: str) -> list[str]:
        if not set(nodes) <= set(self.paused):
            raise TenfoldError(Code.UNAVAILABLE, "nobody paused it")
        await self.restart(*nodes)
        return []


PLANS = [PlannedKill(0.01 * i, "node", (0.37 * i) % 1, 0.005) for i in range(6)]


async def test_every_other_fault_is_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "POLL_S", 0.002)
    monkeypatch.setattr(pauses, "PAUSE_S", 0.01)
    cluster = Pausable()
    with Recorder(tmp_path / "h.jsonl", header(1, {}, {})) as recorder:
        nemesis = PauseNemesis(cluster, recorder)
        async with asyncio.timeout(10):
            await nemesis.start()
            await nemesis.run(PLANS, 0.4)
            await nemesis.settle()
        await nemesis.heal()
    assert (nemesis.kills, nemesis.pauses) == (3, 3) and cluster.up == set(cluster.nodes)
    told = [(each.f, each.type) for each in read(tmp_path / "h.jsonl").faults]
    assert told.count(("pause", "invoke")) == told.count(("resume", "ok")) == 3


async def test_whatever_happens_nobody_stays_paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill, "POLL_S", 0.002)
    cluster = Pausable()
    with Recorder(tmp_path / "h.jsonl", header(1, {}, {})) as recorder:
        nemesis = PauseNemesis(cluster, recorder)
        async with asyncio.timeout(10):
            await nemesis.start()
            await nemesis.run(PLANS[:3], 0.2)
            assert len(cluster.up) < 5
            await nemesis.heal()
    assert cluster.up == set(cluster.nodes)
