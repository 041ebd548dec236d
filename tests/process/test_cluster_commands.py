"""The commands that start, show, break and end a cluster, with real nodes: from birth to purge, and nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.cli.output import run_app
from cluster.local.cluster_file import HOST
from cluster.local.free_ports import free_ports, is_free
from cluster.local.layout import Layout
from cluster.local.lock import directory_lock
from tenfold import compose

LIMIT_S = 60.0
TENFOLD = [sys.executable, "-m", "tenfold"]


def tenfold(*arguments: str, expect: int = 0) -> tuple[str, str]:
    """Runs the command as a user does; what it wrote to stdout and to stderr."""
    ended = subprocess.run([*TENFOLD, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return _judged(arguments, ended.returncode, ended.stdout, ended.stderr, expect)


def tenfold_here(*arguments: str, expect: int = 0) -> tuple[str, str]:
    """The same in this process, for commands that neither start nodes nor ask them: a new one takes half a second."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run_app(compose(arguments), arguments, "tenfold")
    return _judged(arguments, code, out.getvalue(), error.getvalue(), expect)


def _judged(arguments: Sequence[str], code: int, out: str, error: str, expect: int) -> tuple[str, str]:
    assert code == expect, f"{arguments}: {code}\n{out}\n{error}"
    assert "Traceback" not in error
    return out, error


def asked(*arguments: str) -> Any:
    """The one JSON document that a command answers with."""
    return json.loads(tenfold(*arguments, "--json")[0])


def asked_here(*arguments: str) -> Any:
    return json.loads(tenfold_here(*arguments, "--json")[0])


def refused(*arguments: str, expect: int) -> str:
    """The last line of stderr of a command that fails; it has no result."""
    out, error = tenfold_here(*arguments, expect=expect)
    assert out == ""
    return error.splitlines()[-1]


def wait_until(condition: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.02)


def node_pids(directory: Path) -> list[int]:
    """Of every living process that works in this directory, found without the launcher's help."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(str(directory) in each for each in process.cmdline()):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return sorted(found)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of three nodes made by `up`. Tests leave all its nodes running."""
    home = tmp_path_factory.mktemp("launcher") / "c"
    document = asked("up", "--nodes", "3", "--shards", "4", "--zones", "a,b,c", "--dir", str(home))
    assert sorted(document["started"]) == ["n1", "n2", "n3"]
    assert set(document["leaders"]) == {"0", "1", "2", "3", "4"}
    yield home
    tenfold_here("down", "--purge", "--dir", str(home))
    assert node_pids(home) == []
    assert not home.exists()


def states(directory: Path) -> dict[str, dict[str, Any]]:
    return {node["node"]: node for node in asked("status", "--dir", str(directory))["nodes"]}


def test_nodes_live_on_after_up_in_sessions_of_their_own_without_our_descriptors(directory: Path) -> None:
    told = states(directory)
    assert sorted(node["pid"] for node in told.values()) == node_pids(directory)
    for name, node in told.items():
        assert os.getsid(node["pid"]) == node["pid"]
        links = [os.readlink(f"/proc/{node['pid']}/fd/{number}") for number in (0, 1, 2)]
        log = str(Layout(directory).log_path(name))
        assert links == [os.devnull, log, log]
        opened = [os.readlink(path) for path in Path(f"/proc/{node['pid']}/fd").iterdir() if path.exists()]
        assert str(Layout(directory).lock_path) not in opened


def test_status_and_ring_tell_what_is(directory: Path) -> None:
    wait_until(lambda: asked("status", "--dir", str(directory))["ready"], "a shard stays without a leader")
    whole = asked("status", "--dir", str(directory))
    assert whole["replication_factor"] == 3 and whole["shards"] == 4
    assert {(node["node"], node["zone"], node["state"]) for node in whole["nodes"]} == {
        ("n1", "a", "running"),
        ("n2", "b", "running"),
        ("n3", "c", "running"),
    }
    assert all(node["replicas"] == [0, 1, 2, 3, 4] for node in whole["nodes"])
    assert whole["led"] == len({shard for node in whole["nodes"] for shard in node["leads"]})
    ring = asked("ring", "--dir", str(directory))["shards"]
    assert [shard["shard"] for shard in ring] == [0, 1, 2, 3, 4]
    assert [shard["arc"] for shard in ring][:2] == [None, ["0" * 16, "3" + "f" * 15]]
    for shard in ring:
        assert shard["leader"] in ("n1", "n2", "n3", None)  # a busy host may hold an election meanwhile
        assert sorted(replica["node"] for replica in shard["replicas"]) == ["n1", "n2", "n3"]
        assert shard["leader"] is None or shard["applied_index"] >= 1
        assert (shard["lag"] is None) == (shard["leader"] is None)
        assert all(replica["role"] for replica in shard["replicas"])
    table = tenfold("ring", "--dir", str(directory))[0].splitlines()
    assert [line.split()[0] for line in table[2:]] == ["meta", "1", "2", "3", "4"]


def test_up_again_changes_nothing_and_refuses_other_settings(directory: Path) -> None:
    before = node_pids(directory)
    home = str(directory)
    assert asked("up", "--nodes", "3", "--zones", "a,b,c", "--dir", home)["started"] == []
    problem = refused("up", "--nodes", "4", "--dir", home, expect=64)
    assert problem.startswith("error: InvalidArgument: nodes:") and "--nodes 3" in problem
    assert "--shards 4" in refused("up", "--nodes", "3", "--shards", "5", "--dir", home, expect=64)
    assert "--zones a,b,c" in refused("up", "--zones", "b,a", "--dir", home, expect=64)
    assert node_pids(directory) == before


def test_a_killed_node_is_down_until_it_is_restarted(directory: Path) -> None:
    home = str(directory)
    before = states(directory)["n1"]
    assert asked_here("kill", "n1", "--dir", home) == {"action": "killed", "nodes": ["n1"]}
    assert before["pid"] not in node_pids(directory)
    assert states(directory)["n1"]["state"] == "down"
    for command in ("kill", "stop", "pause", "resume"):
        assert "n1 is not running" in refused(command, "n1", "--dir", home, expect=1)
    ring = asked("ring", "--dir", home)["shards"]
    assert all(r["role"] is None for shard in ring for r in shard["replicas"] if r["node"] == "n1")
    tenfold("restart", "n1", "--dir", home)
    after = states(directory)["n1"]
    assert after["state"] == "running" and after["pid"] != before["pid"]
    assert after["incarnation"] == before["incarnation"] + 1
    assert after["address"] == before["address"]


def test_a_paused_node_keeps_its_process_and_goes_on_when_resumed(directory: Path) -> None:
    home = str(directory)
    pid = states(directory)["n2"]["pid"]
    tenfold_here("pause", "n2", "--dir", home)
    paused = states(directory)["n2"]
    assert (paused["state"], paused["pid"]) == ("paused", pid) and "leads" not in paused
    out, error = tenfold_here("resume", "n2", "n1", "--dir", home)
    assert out == "resumed n2\n" and error == "n1 was not paused, it was running\n"
    document = asked_here("resume", "n2", "--dir", home)
    assert document == {"action": "resumed", "nodes": ["n2"], "running": ["n2"]}
    resumed = states(directory)["n2"]
    assert (resumed["state"], resumed["pid"]) == ("running", pid) and len(resumed["replicas"]) == 5


def test_a_stopped_node_says_goodbye_and_a_paused_one_can_be_stopped(directory: Path) -> None:
    home = str(directory)
    tenfold_here("pause", "n3", "--dir", home)
    assert asked_here("stop", "n3", "--dir", home) == {"action": "stopped", "nodes": ["n3"], "killed": []}
    assert states(directory)["n3"]["state"] == "down"
    assert asked("up", "--dir", home)["started"] == ["n3"]


def test_wrong_words_are_answered_and_harm_nobody(directory: Path) -> None:
    before = node_pids(directory)
    home = str(directory)
    for command in ("kill", "stop", "pause", "resume", "restart"):
        assert "its nodes are n1, n2, n3" in refused(command, "n2", "n9", "--dir", home, expect=64)
        assert "NODE" in refused(command, "--dir", home, expect=64)
        assert "NODE" in refused(command, "n1", "--all", "--dir", home, expect=64)
    assert "its nodes are" in refused("logs", "n9", "--dir", home, expect=64)
    assert "holds no cluster" in refused("status", "--dir", str(directory / "none"), expect=64)
    assert "holds no cluster" in refused("down", "--purge", "--dir", str(directory.parent), expect=64)
    assert node_pids(directory) == before


def test_folders_of_nodes_without_their_cluster_are_told_alike_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "n2" / "log").mkdir(parents=True)
    commands = ["up", "down", "status", "ring", "logs", "kill n1", "restart --all", "kv get k", "chaos nemesis kill"]
    told = {
        refused(*command.split(), "--dir", str(tmp_path), expect=64).replace("--dir: ", "dir: ") for command in commands
    }
    assert len(told) == 1 and "n2 holds log, but" in told.pop()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["log", "n2"]


def test_logs_are_json_lines(directory: Path) -> None:
    lines = asked_here("logs", "n1", "-n", "3", "--dir", str(directory))["n1"]
    assert 1 <= len(lines) <= 3 and all(json.loads(line)["event"] for line in lines)
    assert tenfold_here("logs", "n1", "-n", "1", "--dir", str(directory))[0].count("\n") == 1


def test_two_ups_at_once_start_each_node_once(directory: Path) -> None:
    tenfold_here("kill", "--all", "--dir", str(directory))
    both = [
        subprocess.Popen([*TENFOLD, "up", "--dir", str(directory), "--json"], stdout=-1, text=True) for _ in range(2)
    ]
    documents = [json.loads(each.communicate(timeout=LIMIT_S)[0]) for each in both]
    assert sorted(documents[0]["started"] + documents[1]["started"]) == ["n1", "n2", "n3"]
    assert len(node_pids(directory)) == 3


def test_down_leaves_the_data_and_nothing_else_and_a_taken_port_is_replaced(directory: Path) -> None:
    home = str(directory)
    before = asked("status", "--dir", home)
    document = asked_here("down", "--dir", home)
    assert document["stopped"] == ["n1", "n2", "n3"] and document["killed"] == []
    assert node_pids(directory) == []
    assert "0 nodes stopped" in tenfold_here("down", "--dir", home)[0]
    ports = [int(node["address"].rpartition(":")[2]) for node in before["nodes"]]
    assert all(map(is_free, ports))
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((HOST, ports[0]))
        squatter.listen()
        again = asked("up", "--dir", home)
        assert again["cluster_id"] == before["cluster_id"]
        assert sorted(again["started"]) == ["n1", "n2", "n3"] and len(again["leaders"]) == 5
        assert again["nodes"]["n1"] != before["nodes"][0]["address"]
        assert again["nodes"]["n2"] == before["nodes"][1]["address"]
        assert "runs on port" in refused("up", "--base-port", str(ports[1]), "--dir", home, expect=64)


def test_a_fixed_port_that_is_taken_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    home = tmp_path / "c"
    base = next(port for port in free_ports(50) if is_free(port + 1))
    arguments = ("up", "--nodes", "2", "--replicas", "1", "--base-port", str(base), "--dir", str(home))
    with socket.socket() as squatter:
        squatter.bind((HOST, base + 1))
        squatter.listen()
        assert f"port {base + 1} of n2 is taken" in refused(*arguments, expect=1)
        assert not home.exists(), "nothing is made"
    assert "error: InvalidArgument: replicas: 3 replicas need as many nodes, and there are 2" in refused(
        "up", "--nodes", "2", "--dir", str(tmp_path / "d"), expect=64
    )
    assert not (tmp_path / "d").exists()


def test_nodes_in_the_foreground_stop_at_an_interrupt(tmp_path: Path) -> None:
    with _foreground(tmp_path / "c") as launcher:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(LIMIT_S) == 0
    assert node_pids(tmp_path) == []


async def test_nodes_in_the_foreground_die_with_a_launcher_killed_at_once_and_its_lock_is_free(tmp_path: Path) -> None:
    with _foreground(tmp_path / "c") as launcher:
        nodes = [pid for pid in node_pids(tmp_path) if pid != launcher.pid]
        assert len(nodes) == 2
        launcher.kill()
        launcher.wait(LIMIT_S)
        wait_until(lambda: node_pids(tmp_path) == [], "the nodes outlived their launcher")
    async with directory_lock(tmp_path / "c" / "lock", wait_s=0.0):
        pass


def _foreground(home: Path) -> subprocess.Popen[str]:
    """A cluster of two nodes whose launcher stays; returns once it is up."""
    arguments = ["up", "--nodes", "2", "--replicas", "1", "--shards", "2", "--foreground", "--json", "--dir", str(home)]
    launcher = subprocess.Popen([*TENFOLD, *arguments], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert json.loads(launcher.stdout.readline())["started"] == ["n1", "n2"]
    return launcher
