"""Outages: from the last ok before a kill to the first ok of a later call."""

from __future__ import annotations

from chaos.checkers.availability import outages, percentile
from chaos.history import Event, Operation

MS = 1_000_000


def ok(shard: int, invoked: int, completed: int, type: str = "ok") -> Operation:
    return Operation(1, "put", "k", type, invoked, completed, invoked * MS, completed * MS, shard=shard)  # type: ignore[arg-type]


def kill(at: int, type: str = "ok") -> Event:
    return Event(0, at * MS, "nemesis", type, "kill", node="n1")  # type: ignore[arg-type]


def lengths(operations: list[Operation], faults: list[Event], end: int = 10_000) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for outage in outages(operations, faults, end * MS):
        found.setdefault(outage.shard, []).append(outage.milliseconds)
    return found


def test_each_shard_is_measured_for_each_kill() -> None:
    operations = [ok(1, 0, 90), ok(1, 95, 1500), ok(1, 1500, 1600), ok(2, 80, 98), ok(2, 101, 103), ok(2, 5000, 5001)]
    assert lengths(operations, [kill(100), kill(4000)]) == {1: [1510, 8400], 2: [5, 4898]}


def test_an_answer_on_its_way_does_not_end_the_outage() -> None:
    operations = [ok(1, 0, 90), ok(1, 99, 101), ok(1, 102, 1800), ok(1, 103, 1700)]
    assert lengths(operations, [kill(100)]) == {1: [1610]}


def test_only_ok_is_service() -> None:
    operations = [ok(1, 0, 90), ok(1, 110, 120, "fail"), ok(1, 111, 130, "info"), ok(1, 112, 900)]
    assert lengths(operations, [kill(100)]) == {1: [810]}


def test_a_shard_that_never_came_back_counts_to_the_end() -> None:
    assert lengths([ok(1, 0, 90)], [kill(100)], end=700) == {1: [610]}


def test_a_kill_that_was_not_carried_out_does_not_count() -> None:
    assert lengths([ok(1, 0, 90)], [kill(100, "invoke"), kill(100, "fail")]) == {}


def test_the_percentile_is_a_value_that_was_seen() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 11), 0.99) == 10
