"""The newcomer's two minutes: a cluster, a load, a leader killed, a second node killed, the verdict. `make demo` runs it.

It ends with 0 only if both kills happened and the verdict is ok. Plain lines, so that it works without a terminal.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import typer

from chaos import report
from chaos.checkers.availability import outages
from chaos.checkers.linearizability import Verdict
from chaos.experiment import HISTORY, REPORT, Options, describe_cluster, draw_seed, judged, keep_logs, run_directory
from chaos.history import Recorder, header, read
from chaos.judge import Judgement
from chaos.nemesis.convergence import converged
from chaos.nemesis.kill import KillNemesis
from chaos.nemesis.schedule import busiest
from chaos.nemesis.steps import NeverHealed
from chaos.runner import HEAL_TIMEOUT_S, open_stores
from chaos.workloads.kv import KvWorkload
from client.cli.output import Exit, note, render_table, run_command
from cluster.local.local_cluster import LocalCluster
from cluster.ring.shard_map import data_shards

KILLS = 2
QUIET_S, AFTER_S, DOWN_S = 5, 3, 1.0
NOTICED_MS = 200.0
"""A shard without an answer for less than this did not notice."""


def main() -> int:
    """The exit code."""
    try:
        return run_command(demo(run_directory(None, "demo")))
    except typer.Exit as ended:  # what went wrong has been told
        return ended.exit_code


async def demo(directory: Path) -> int:
    """Runs the demonstration; what it leaves is in `directory`."""
    loop = asyncio.get_running_loop()
    options = Options(seed=draw_seed())
    say("Tenfold: a replicated, sharded cluster that you can break and trust.")
    heading(f"Starting {options.nodes} nodes, {options.shards} shards, {options.replicas} replicas of each")
    start = loop.time()
    try:
        async with LocalCluster(options.nodes, options.replicas, options.shards, directory / "cluster") as cluster:
            say(f"  Every shard has elected a leader after {loop.time() - start:.1f} s.")
            healed = await _break(cluster, options, directory)
            heading("Stopping the nodes")
        say("  They handed over what they led, drained, and are gone.")
    finally:
        keep_logs(directory / "cluster", directory / "logs")
    judgement = judged(directory, lambda line: None)
    assert isinstance(judgement, Judgement), "the load was keys and values"
    return _conclude(judgement, directory, healed)


async def _break(cluster: LocalCluster, options: Options, directory: Path) -> bool:
    """Everything between start and stop; whether the cluster came back from it."""
    await _show_ring(cluster)
    head = header(options.seed, msgspec.to_builtins(options), await describe_cluster(cluster))
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(Recorder(directory / HISTORY, head))
        stores = await open_stores(stack, list(cluster.addresses.values()))
        workload = KvWorkload(recorder, stores, options.shards, options.seed)
        nemesis = KillNemesis(cluster, recorder)
        await nemesis.start()
        load = asyncio.create_task(workload.run())
        try:
            heading(f"Load: {8 * options.shards} clients write, read and compare-and-set, on every shard at once")
            await _watch(workload, QUIET_S)
            for number in range(KILLS):
                await _kill_one(cluster, nemesis, workload, recorder, directory / HISTORY, number)
            workload.stop()
            await load
            await _read_back(cluster, workload, recorder)
        except NeverHealed as error:
            note(f"error: never healed: {error}")
            return False
        finally:
            workload.stop()
            try:
                await nemesis.heal()
            finally:
                await load
    return True


async def _show_ring(cluster: LocalCluster) -> None:
    heading("The ring")
    shard_map, leaders = await cluster.shard_map(), await cluster.leaders()
    rows = [
        ["meta" if shard.id == 0 else shard.id, leaders.get(shard.id, "-"), " ".join(r.node for r in shard.replicas)]
        for shard in shard_map.shards
    ]
    for line in render_table(["shard", "leader", "replicas"], rows).splitlines():
        say(f"  {line}")
    say(
        f"  A key's hash says in which of the {data_shards(shard_map)} shards it lies; each shard is a Raft group of its own."
    )
    say("  A write is acknowledged when a majority of its shard's replicas has it on disk.")


async def _watch(workload: KvWorkload, seconds: int) -> None:
    for _ in range(seconds):
        before = workload.answers["ok"]
        await asyncio.sleep(1)
        told = f"{workload.operations:7} operations  {workload.answers['ok'] - before:5} ok in the last second"
        refused, unknown = workload.answers["fail"], workload.answers["info"]
        say(f"  {told}  {refused:5} compare-and-sets that came too late  {unknown} unknown")


async def _kill_one(
    cluster: LocalCluster, nemesis: KillNemesis, workload: KvWorkload, recorder: Recorder, path: Path, number: int
) -> None:
    """Kills the node that leads most, brings it back, and tells what the clients noticed."""
    leaders = await cluster.leaders()
    node = busiest(leaders)
    led = sorted(shard for shard, leader in leaders.items() if leader == node)
    heading(
        f"{'Killing' if not number else 'And a second node: killing'} {node} (SIGKILL), the leader of {_shards(led)}"
    )
    await nemesis.strike(node)
    recovery = nemesis.recover(node, DOWN_S)
    await _watch(workload, AFTER_S)
    await recovery
    recorder.flush()
    history = read(path)
    mine = [each for each in outages(history.operations, history.faults[-5:], history.end_ns) if each.node == node]
    noticed = sorted((each for each in mine if each.milliseconds >= NOTICED_MS), key=lambda each: -each.milliseconds)
    if noticed:
        worst, shards = noticed[0], sorted(each.shard for each in noticed)
        say(f"  {_shards(shards)} elected new leaders; without service for at most {worst.milliseconds / 1000:.1f} s.")
    say(f"  {len(mine) - len(noticed)} of {len(mine)} shards noticed nothing.")
    say(f"  {node} was started again, has caught up and counts once more.")


async def _read_back(cluster: LocalCluster, workload: KvWorkload, recorder: Recorder) -> None:
    heading("Reading back")
    await converged(cluster, HEAL_TIMEOUT_S)
    recorder.fault("ok", "healed")
    unread = await workload.read_back()
    say(
        f"  All replicas are equal again. {len(workload.keys) - unread} of {len(workload.keys)} keys were read once more."
    )


def _conclude(judgement: Judgement, directory: Path, healed: bool) -> int:
    heading("The verdict")
    say("  The history of every operation was judged: is there, for each key, one order that explains every answer,")
    say("  and is every acknowledged write still there?")
    say("")
    for line in report.summary(judgement, directory / REPORT).splitlines():
        say(f"  {line}")
    say("")
    if not healed and judgement.result.verdict is not Verdict.VIOLATION:
        return Exit.NEVER_HEALED
    if judgement.result.verdict is not Verdict.OK or judgement.result.faults < KILLS:
        note(f"error: verdict {judgement.result.verdict}, {judgement.result.faults} of {KILLS} kills")
        return Exit.FAILED
    shutil.rmtree(directory / "cluster")
    say("  Next: `tenfold up`, `tenfold kv put hello world`, `tenfold chaos run kill`.")
    return Exit.OK


def _shards(shards: list[int]) -> str:
    named = ["meta" if shard == 0 else str(shard) for shard in shards]
    return f"shard{'s' if len(named) > 1 else ''} {', '.join(named)}" if named else "no shard"


def heading(text: str) -> None:
    say("")
    say(text)
    say("-" * len(text))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
