"""Nodes that come and go on real processes: the experiment under load with its verdict, and the commands a person uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from chaos.history import read
from cluster.local.layout import Layout
from tests.process.kv_cluster import REPOSITORY, tenfold

LIMIT_S = 120.0


def asked(home: Path, *arguments: object) -> Any:
    """The document a command answers with."""
    ended = tenfold(*arguments, "--json", "--dir", home)
    assert ended.returncode == 0, (arguments, ended.stderr.decode())
    return json.loads(ended.stdout)


def refused(home: Path, *arguments: object, code: int = 1) -> str:
    ended = tenfold(*arguments, "--json", "--dir", home)
    assert (ended.returncode, ended.stdout) == (code, b"") and b"Traceback" not in ended.stderr, (arguments, ended)
    return ended.stderr.decode().splitlines()[-1]


def test_nodes_join_die_for_good_and_leave_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    """Three nodes, five, one killed for good and repaired without a hand, one drained, three."""
    out = tmp_path / "run"
    command = ["chaos", "run", "members", "--nodes", "3", "--shards", "4", "--duration", "1s", "--seed", "5"]
    ended = subprocess.run(
        [sys.executable, "-m", "tenfold", *command, "--out", str(out), "--json"],
        capture_output=True, text=True, timeout=LIMIT_S, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert (result["verdict"], result["acknowledged_lost"], result["linearizable"]) == ("ok", 0, True)
    assert result["faults"] == 1 and result["operations"] > 500 and not result["weak"]
    steps = [each.f for each in read(out / "history.jsonl").faults if each.type == "ok"]
    assert steps == ["add", "rebalance", "kill", "repair", "remove", "drain", "remove", "healed"]
    assert sorted(each.name for each in (out / "logs").iterdir()) == [f"n{i}.log" for i in range(1, 6)]


def test_a_person_grows_a_cluster_and_shrinks_it_again(tmp_path: Path) -> None:
    home = tmp_path / "c"
    assert tenfold("up", "--nodes", 3, "--shards", 4, "--dir", home).returncode == 0
    try:
        asked(home, "kv", "put", "k", "v")
        assert "without 'n1' 2 members stay, must be at least 3" in refused(home, "node", "drain", "n1", code=64)
        added = asked(home, "node", "add", "--no-rebalance", "--zone", "z")
        assert [(each["node"], each["zone"]) for each in added["added"]] == [("n4", "z")] and added["moved"] is None
        planned = asked(home, "rebalance", "--dry-run")
        assert planned["replicas"] == 15 and 0 < planned["share"] <= 1 / 3
        assert {(each["to"], each["why"]) for each in planned["moves"]} == {("n4", "rebalance")}
        told = tenfold("rebalance", "--dry-run", "--dir", home).stdout.decode()
        assert told.splitlines()[0].split() == ["shard", "from", "to", "why"] and "would move" in told
        assert "MemberBusy: n1 is up and holds " in refused(home, "node", "remove", "n1")
        assert asked(home, "rebalance")["moved"] == len(planned["moves"])
        assert asked(home, "rebalance", "--dry-run")["moves"] == []
        status = asked(home, "status")
        assert {each["node"]: each["member"] for each in status["nodes"]} == dict.fromkeys(
            ("n1", "n2", "n3", "n4"), "up"
        )
        assert (status["moving"], status["waiting"], status["stuck"]) == ([], [], "")
        assert len(next(each for each in status["nodes"] if each["node"] == "n4")["replicas"]) == len(planned["moves"])
        removed = asked(home, "node", "remove", "n1", "--drain")
        assert removed["removed"] == "n1" and removed["moved"] > 0 and not (home / "n1").exists()
        assert Layout(home).read().names == ["n2", "n3", "n4"]
        assert "'n1' is not in this cluster any more" in refused(home, "restart", "n1", code=64)
        members = asked(home, "node", "list")
        assert [each["node"] for each in members["members"]] == ["n2", "n3", "n4"] and members["removed"] == ["n1"]
        stages = {replica["stage"] for shard in asked(home, "ring")["shards"] for replica in shard["replicas"]}
        assert stages == {"voter"}
        assert tenfold("kv", "get", "k", "--dir", home).stdout == b"v\n"
    finally:
        assert tenfold("down", "--purge", "--dir", home).returncode == 0
    assert not home.exists()
