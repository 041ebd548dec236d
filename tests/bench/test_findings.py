"""Ratios against their bounds, and what a report says of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from client.bench import move, peers, replication
from client.bench.etcd import txn_messages
from client.bench.load import Measurement
from client.bench.peers import Finding
from client.bench.report import machine, plot, write
from cluster.errors import Code, TenfoldError
from cluster.ring.shard_map import first_map


@pytest.mark.parametrize(
    ("figure", "at_least", "met"),
    [
        (1.5, True, True),
        (1.49, True, False),
        (1.49, False, True),
        (1.5, False, False),
        (None, True, None),
        (None, False, None),
    ],
)
def test_a_bound_is_met_or_not_and_nothing_measured_is_neither(
    figure: float | None, at_least: bool, met: bool | None
) -> None:
    finding = Finding("x", "times", 1.5, at_least=at_least, figure=figure, skipped="" if figure else "no etcd")
    assert finding.met is met
    assert finding.document()["met"] is met


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    rounds = [{"a": 10.0, "b": 1.0}, {"a": 4.0, "b": 2.0}, {"a": 9.0, "b": 3.0}]
    assert peers.ratio("x", 1.0, "a", "b", rounds).figure == 3.0


def test_the_table_shouts_a_missed_bound_and_shows_what_was_skipped() -> None:
    findings = [
        Finding("fast", "times", 3.0, at_least=True, figure=3.5),
        Finding("slow", "times", 3.0, at_least=True, figure=2.5),
        Finding("absent", "times", 3.0, at_least=True, skipped="etcd is not installed"),
    ]
    assert [row[-1] for row in peers.table_rows(findings)] == ["met", "NOT MET", "skipped: etcd is not installed"]


def test_etcd_transactions_have_the_bytes_that_etcd_expects() -> None:
    request_type, reply_type = txn_messages()
    request = request_type()
    for key, value in ((b"k", b"v"), (b"l", b"")):
        put = request.success.add().request_put
        put.key, put.value = key, value
    # field 2 (success), holding field 2 (request_put), holding fields 1 (key) and 2 (value)
    assert request.SerializeToString() == b"\x12\x08\x12\x06\n\x01k\x12\x01v" + b"\x12\x05\x12\x03\n\x01l"
    assert reply_type.FromString(b"\n\x02\x08\x01\x10\x01").succeeded


def sample() -> list[dict[str, object]]:
    found = Measurement(
        operations=300,
        requests=3,
        seconds=0.5,
        p50_ms=1.5,
        p99_ms=2.5,
        nodes_cpu_us=20.0,
        client_cpu_us=4.0,
        failures={"UNAVAILABLE": 2},
    )
    works = replication.FULL.works()
    return [
        replication.row(factor, work, callers, found) for factor in (1, 3) for work in works for callers in (1, 64, 256)
    ]


def test_the_report_is_json_a_table_and_a_plot_with_a_panel_for_each_work(tmp_path: Path) -> None:
    rows = sample()
    document = {"machine": machine(), "cells": rows}
    written = write(tmp_path / "deep" / "er", "replication", document, "the table")
    assert json.loads(written[0].read_text())["cells"][0]["operations_per_s"] == 600.0
    assert written[1].read_text() == "the table\n"
    plot(tmp_path / "replication.svg", rows)
    drawn = ElementTree.parse(tmp_path / "replication.svg").getroot()
    panels = [each for each in drawn.iter() if str(each.get("id", "")).startswith("axes_")]
    assert len(panels) == 2 * len(replication.FULL.works())


def test_the_table_of_the_grid_has_its_columns_and_counts_failures() -> None:
    drawn = replication.table_rows(sample())
    assert all(len(row) == len(replication.COLUMNS) for row in drawn)
    assert drawn[0] == [1, "put", 1, 600, "1.50", "2.50", "20.0", "4.0", 2]


def test_the_whole_grid_fits_its_ten_minutes() -> None:
    plan = replication.FULL
    cells = sum(1 for _ in plan.cells()) * len(plan.factors)
    start_of_a_cluster_s = 30
    assert cells == 45
    assert cells * (plan.seconds + plan.warmup_s) + len(plan.factors) * start_of_a_cluster_s < 600


def test_growth_is_judged_by_the_p99_of_its_phases_and_by_what_moved() -> None:
    phases = [
        {"phase": "quiet", "p99_ms": 10.0},
        {"phase": "joining", "p99_ms": 90.0},
        {"phase": "moving", "p99_ms": 29.0},
    ]
    assert [each.met for each in move.findings(phases, 10 / 39)] == [True, True]
    phases[2]["p99_ms"] = 30.1
    assert [each.met for each in move.findings(phases, 14 / 39)] == [False, False]
    phases[0]["p99_ms"] = 0.0
    assert move.findings(phases, 0.25)[0].met is None, "nothing was measured"


def test_moved_is_what_is_where_its_shard_was_not() -> None:
    before = first_map(bytes(16), [(f"n{i}", f"h:{i}", "") for i in (1, 2, 3)], 2, 3)
    after = first_map(bytes(16), [(f"n{i}", f"h:{i}", "") for i in (1, 2, 3)], 2, 3)
    assert move.moved_replicas(before, after) == (0, 9)
    after.shards[1].replicas[0].node = "n4"
    after.shards[2].replicas[1].node = "n4"
    assert move.moved_replicas(before, after) == (2, 9)


async def test_a_paced_load_counts_from_when_a_request_was_due_and_tells_phases_apart() -> None:
    blocked, asked = asyncio.Event(), 0

    async def operation() -> None:
        nonlocal asked
        asked += 1
        if asked == 20:
            raise TenfoldError(Code.UNAVAILABLE)
        if load.phases[-1].name == "slow":
            await blocked.wait()

    load = move.PacedLoad(operation, callers=4, rate_per_s=2000)
    async with asyncio.timeout(10):
        load.begin("fast")
        while asked < 60:
            await asyncio.sleep(0.001)
        load.begin("slow")
        while asked < 64 or not any(load.phases[1].latencies):
            await asyncio.sleep(0.001)
            if asked >= 64:
                blocked.set()
        await load.stop()
    fast, slow = (phase.document() for phase in load.phases)
    assert fast["failures"] == 1 and slow["failures"] == 0 and fast["operations"] >= 50
    assert slow["max_ms"] >= 1, "the pause counts"
    assert all(phase.seconds > 0 for phase in load.phases)
