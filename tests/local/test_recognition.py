"""A process is one of our nodes only if its command line says so; a pid in a file proves nothing."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from cluster.errors import TenfoldError
from cluster.local import process as processes
from cluster.local.ask import leaders
from cluster.local.cluster_file import new_cluster
from cluster.local.launcher import LOST, Condition, Launcher
from cluster.local.layout import Layout
from cluster.local.local_cluster import LocalCluster
from proto.gen import node_pb2


def launcher(directory: Path) -> Launcher:
    layout = Layout(directory)
    layout.create(new_cluster(2, 1, 1, [], [7001, 7002]))
    return Launcher(layout)


def test_the_command_line_names_module_and_directory() -> None:
    home = Path("/c/n1")
    assert processes.is_node(processes.command(home, die_with_parent=False), home)
    assert processes.is_node(processes.command(home, die_with_parent=True), home)
    assert not processes.is_node(processes.command(Path("/c/n11"), die_with_parent=False), home)
    assert not processes.is_node(["strace", "python3", "-m", "node", "--dir", "/c/n1"], home)
    assert not processes.is_node(["python3", "-m", "node"], home)
    assert not processes.is_node(["python3", "-m", "other", "node", "--dir", "/c/n1"], home)
    assert not processes.is_node([], home)


def test_a_stale_run_file_points_at_nobody(tmp_path: Path) -> None:
    """Its pid belongs to another process by now: this one, which must survive."""
    subject = launcher(tmp_path)
    subject.layout.run_path("n1").write_text(f'{{"pid": {os.getpid()}, "address": "127.0.0.1:1", "incarnation": 1}}')
    subject.layout.run_path("n2").write_text('{"pid": 4194304999, "address": "127.0.0.1:1", "incarnation": 1}')
    assert subject.processes(["n1", "n2"]) == {}
    assert {node: each for node, (each, _) in subject.conditions(["n1", "n2"]).items()} == dict.fromkeys(
        ["n1", "n2"], Condition.DOWN
    )
    with pytest.raises(TenfoldError, match="n1, n2 are not running"):
        subject.pause(["n1", "n2"])


async def test_nobody_is_signalled_if_one_of_the_named_does_not_run(tmp_path: Path) -> None:
    subject = launcher(tmp_path)
    with pytest.raises(TenfoldError, match="n2 is not running"):
        await subject.kill(["n2"])
    assert await subject.stop(["n1", "n2"]) == []


def test_a_process_is_found_without_a_run_file_and_by_no_other_directory(tmp_path: Path) -> None:
    """A stand-in with a node's command line, from a `node` package of its own that only waits."""
    package = tmp_path / "node"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('here', flush=True)\nimport sys; sys.stdin.read()\n")
    home = tmp_path / "n1"
    with subprocess.Popen(
        [sys.executable, "-m", "node", "--dir", str(home)],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(tmp_path)},
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"here\n"
        try:
            found = processes.find({home: None, tmp_path / "n2": child.pid})
            assert {path: process.pid for path, process in found.items()} == {home: child.pid}
            assert processes.is_alive(found[home])
        finally:
            child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.is_alive(found[home]), "a zombie"
        assert processes.find({home: child.pid}) == {}
    assert not processes.is_alive(found[home])
    assert processes.find({home: child.pid}) == {}


async def test_a_node_that_has_lived_is_born_even_if_no_launcher_saw_it_listen(tmp_path: Path) -> None:
    """Its launcher died between the node's first vote and its record. Nothing is started here."""
    subject = launcher(tmp_path)
    (subject.layout.node_directory("n1") / "incarnation").touch()
    assert await subject.start([]) == []
    assert [entry.born for entry in subject.cluster.nodes] == [True, False]
    assert [subject.trouble(node) for node in ("n1", "n2")] == ["", ""]
    shutil.rmtree(subject.layout.node_directory("n1"))
    assert subject.trouble("n1") == LOST


def test_the_leader_is_the_one_in_the_highest_term() -> None:
    def says(node: str, *replicas: tuple[int, str, int]) -> node_pb2.StatusReply:
        told = [node_pb2.ReplicaStatus(shard=shard, role=role, term=term) for shard, role, term in replicas]
        return node_pb2.StatusReply(node=node, replicas=told)

    replies = [
        says("n1", (0, "leader", 3), (1, "leader", 5), (2, "follower", 9)),
        says("n2", (0, "leader", 4), (1, "leader", 2), (2, "candidate", 9)),
        says("n3", (0, "follower", 7), (3, "quarantined", 1)),
    ]
    assert leaders(replies) == {0: "n2", 1: "n1"}
    assert leaders(reversed(replies)) == {0: "n2", 1: "n1"}


def test_a_cluster_that_nobody_holds_is_freed_at_once(tmp_path: Path) -> None:
    """Its children that end later are reaped by the next start in this process, and by nobody while something refers to them."""
    held = LocalCluster(dir=tmp_path / "c")
    launcher = weakref.ref(held.launcher)
    gc.disable()
    try:
        del held
        assert launcher() is None
    finally:
        gc.enable()
