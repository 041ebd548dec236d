"""An experiment from its options to its verdict, and the directory that keeps what it did.

OUT/options.json    what was asked, the seed drawn included
OUT/history.jsonl   every operation and every fault
OUT/report.md       the verdict, for people
OUT/logs/           the nodes' logs
OUT/cluster/        the nodes' directories; removed after the verdict ok
"""

from __future__ import annotations

import secrets
import shutil
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from chaos import lock_judge, report
from chaos.checkers.linearizability import Verdict
from chaos.history import History, Recorder, header, read
from chaos.judge import Judgement, judge
from chaos.lock_judge import WORKLOAD, LockJudgement, is_of_locks, judge_locks
from chaos.lock_run import run_locks
from chaos.nemesis.kill import KillNemesis
from chaos.nemesis.members import MembersNemesis
from chaos.nemesis.rolling import RollingNemesis
from chaos.nemesis.schedule import plan
from chaos.nemesis.steps import NeverHealed
from chaos.runner import Tell, kill_under_load, open_stores, under_load
from chaos.workloads.kv import KvWorkload
from cluster.local.layout import Layout
from cluster.local.local_cluster import LocalCluster

RUNS = Path("build/chaos")
"""Where runs go that name no directory."""

HISTORY = "history.jsonl"
REPORT = "report.md"


Kind = Literal["kill", "members", "rolling", "lock"]

REPAIR_AFTER_S = 3.0
"""In runs where a node dies for good: so long it may be away before its replicas are rebuilt elsewhere."""


class Options(msgspec.Struct, frozen=True):
    """Of `chaos run`. `seed` gives the same load and the same plan of faults; how they meet is up to the machine."""

    nodes: int = 5
    replicas: int = 3
    shards: int = 12
    duration_s: float = 60.0
    seed: int = 0
    rounds: int = 0
    """Of runs that have rounds: so many; 0: as many as begin within the duration."""
    fencing: bool = True
    """Of runs with locks: whether the store enforces their tokens."""


class Outcome(NamedTuple):
    judgement: Judgement | LockJudgement
    directory: Path
    never_healed: str
    """Why the cluster did not come back; "" if it did."""


class Injected(NamedTuple):
    """Of a nemesis that ran alone."""

    kills: int
    history: Path


def draw_seed() -> int:
    return secrets.randbelow(1_000_000)


def run_directory(out: Path | None, name: str) -> Path:
    """Makes the directory for a run. One that holds something is left alone: its name gets the next free number."""
    wanted = out if out is not None else RUNS / name
    chosen, number = wanted, 1
    while chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
        number += 1
        chosen = wanted.with_name(f"{wanted.name}-{number}")
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


async def run(kind: Kind, options: Options, directory: Path, tell: Tell) -> Outcome:
    """Starts a cluster, does to it what `kind` says under load, heals it, judges. TenfoldError where the cluster cannot be
    started."""
    (directory / "options.json").write_bytes(msgspec.json.format(msgspec.json.encode(options)) + b"\n")
    cluster_directory = directory / "cluster"
    tell(f"starting {options.nodes} nodes, {options.shards} shards, {options.replicas} replicas; seed {options.seed}")
    never_healed = ""
    repair_after_s = REPAIR_AFTER_S if kind == "members" else None
    try:
        async with LocalCluster(
            options.nodes, options.replicas, options.shards, cluster_directory, repair_after_s=repair_after_s
        ) as cluster:
            try:
                await _run_on(kind, cluster, options, directory, tell)
            except NeverHealed as error:
                never_healed = str(error)
            tell("stopping the nodes")
    finally:
        keep_logs(cluster_directory, directory / "logs")
    outcome = Outcome(judged(directory, tell), directory, never_healed)
    if outcome.judgement.result.verdict is Verdict.OK and not never_healed:
        shutil.rmtree(cluster_directory)
    return outcome


async def _run_on(kind: Kind, cluster: LocalCluster, options: Options, directory: Path, tell: Tell) -> None:
    seed, duration_s = options.seed, options.duration_s
    head = header(seed, msgspec.to_builtins(options), await describe_cluster(cluster))
    if kind == "lock":
        head.options["workload"] = WORKLOAD
        tell(_intention(kind, options))
        into, fencing = directory / HISTORY, options.fencing
        await run_locks(cluster, head, options.shards, duration_s, fencing=fencing, into=into, tell=tell)
        return
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(Recorder(directory / HISTORY, head))
        stores = await open_stores(stack, list(cluster.addresses.values()))
        tell(_intention(kind, options))
        if kind == "kill":
            await kill_under_load(cluster, stores, recorder, options.shards, seed, duration_s, tell)
            return
        workload = KvWorkload(recorder, stores, options.shards, seed)
        nemesis: MembersNemesis | RollingNemesis
        if kind == "members":
            keep = partial(keep_log, cluster.layout, into=directory / "logs")
            nemesis = MembersNemesis(cluster, recorder, seed, tell, keep)
        else:
            nemesis = RollingNemesis(cluster, recorder, tell)
        await under_load(cluster, workload, recorder, nemesis, nemesis.run(duration_s, options.rounds), tell)


def _intention(kind: Kind, options: Options) -> str:
    if kind == "kill":
        return f"load and kills for {options.duration_s:g} s"
    if kind == "lock":
        return f"locks, kills and pauses for {options.duration_s:g} s{'' if options.fencing else ', without fencing'}"
    return f"load; {options.rounds} rounds" if options.rounds else f"load; rounds begin for {options.duration_s:g} s"


async def describe_cluster(cluster: LocalCluster) -> dict[str, object]:
    """For the header of a history."""
    shard_map = await cluster.shard_map()
    replicas = {str(shard.id): [replica.node for replica in shard.replicas] for shard in shard_map.shards}
    return {"nodes": cluster.nodes, "shards": len(shard_map.shards) - 1, "replicas": replicas}


def judged(directory: Path, tell: Tell) -> Judgement | LockJudgement:
    """Judges the run in `directory` from its history alone, and writes its report."""
    path = directory / HISTORY
    tell("judging the history")
    history = read(path)
    judgement = judge_any(history, path)
    if isinstance(judgement, LockJudgement):
        lock_judge.write(directory / REPORT, history, judgement)
    else:
        report.write(directory / REPORT, history, judgement)
    return judgement


def judge_any(history: History, path: Path) -> Judgement | LockJudgement:
    """By the laws of what its header says was done. HistoryError."""
    return judge_locks(history, path) if is_of_locks(history) else judge(history, path)


def summary(judgement: Judgement | LockJudgement, page: Path | None = None) -> str:
    """The verdict and its figures, in a few lines."""
    if isinstance(judgement, LockJudgement):
        return lock_judge.summary(judgement, page)
    return report.summary(judgement, page)


def keep_logs(cluster_directory: Path, into: Path) -> None:
    """Copies the nodes' logs out of the cluster's directory, if there is one."""
    layout = Layout(cluster_directory)
    if not layout.exists():
        return
    for node in layout.read().names:
        keep_log(layout, node, into)


def keep_log(layout: Layout, node: str, into: Path) -> None:
    """Copies the log of one node, if it has any."""
    into.mkdir(exist_ok=True)
    if layout.log_path(node).exists():
        shutil.copyfile(layout.log_path(node), into / f"{node}.log")


async def inject_kills(cluster: LocalCluster, duration_s: float, seed: int, directory: Path, tell: Tell) -> Injected:
    """Kills nodes of a cluster that runs already, for `duration_s` seconds, and starts each of them again. NeverHealed."""
    path = directory / HISTORY
    options: dict[str, object] = {"duration_s": duration_s, "only": "nemesis"}
    with Recorder(path, header(seed, options, await describe_cluster(cluster))) as recorder:
        nemesis = KillNemesis(cluster, recorder, told=tell)
        await nemesis.start()
        try:
            await nemesis.run(plan(seed, duration_s), duration_s)
            await nemesis.settle()
        finally:
            await nemesis.heal()
        recorder.fault("ok", "healed")
    return Injected(nemesis.kills, path)


def document(judgement: Judgement | LockJudgement) -> dict[str, object]:
    """The result as JSON knows it."""
    return msgspec.to_builtins(judgement.result)  # type: ignore[no-any-return]


def exit_code(judgement: Judgement | LockJudgement) -> int:
    """0 ok, 1 violation, 2 unknown."""
    return {Verdict.OK: 0, Verdict.VIOLATION: 1, Verdict.UNKNOWN: 2}[judgement.result.verdict]
