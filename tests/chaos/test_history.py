"""The history's format: what is written is read back, and what is malformed is named by its line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from chaos.history import HistoryError, Recorder, header, parse, read

HEADER = b'{"history":"tenfold","format":1,"seed":7,"options":{},"cluster":{}}'


def line(index: int, process: object, type: str, f: str = "put", **fields: object) -> bytes:
    return json.dumps({"index": index, "time": index * 10, "process": process, "type": type, "f": f, **fields}).encode()


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    clock = itertools.count(1_000, 50)
    with Recorder(path, header(7, {"nodes": 5}, {"shards": 12}), clock=lambda: next(clock)) as recorder:
        recorder.record(1, "invoke", "put", key="k", value="é", shard=3)
        recorder.record(2, "invoke", "get", key="k", final=True)
        recorder.fault("invoke", "kill", node="n1")
        recorder.record(1, "ok", "put", key="k", version=9)
        recorder.record(2, "info", "get", key="k", error="DEADLINE_EXCEEDED")
        recorder.record(3, "invoke", "cas", key="k", value="b", expected=9)
    history = read(path)
    assert (history.header.seed, history.header.options, history.header.cluster) == (7, {"nodes": 5}, {"shards": 12})
    put, get, cas = history.operations
    assert (put.type, put.value, put.version, put.shard, put.invoked, put.completed) == ("ok", "é", 9, 3, 0, 3)
    assert (get.type, get.error, get.final) == ("info", "DEADLINE_EXCEEDED", True)
    assert (cas.type, cas.expected, cas.completed) == ("info", 9, None), "never answered: unknown"
    assert [(event.f, event.node) for event in history.faults] == [("kill", "n1")]
    assert put.invoked_ns == 50 and put.completed_ns == 200


def test_a_fault_is_on_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with Recorder(path, header(1, {}, {})) as recorder:
        recorder.record(1, "invoke", "put", key="k", value="a")
        recorder.fault("invoke", "kill", node="n1")
        assert len(path.read_bytes().splitlines()) == 3


def test_a_history_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    Recorder(path, header(1, {}, {})).close()
    with pytest.raises(FileExistsError):
        Recorder(path, header(1, {}, {}))


@pytest.mark.parametrize(
    ("lines", "number", "problem"),
    [
        ([], 1, "header is missing"),
        ([b"{}"], 1, "header"),
        ([b"not json"], 1, "header"),
        ([HEADER.replace(b"tenfold", b"jepsen")], 1, "jepsen"),
        ([HEADER.replace(b'"format":1', b'"format":2')], 1, "format 2"),
        ([HEADER, b'{"index":0,"ti'], 2, "not an event"),
        ([HEADER, b"", line(0, 1, "invoke", key="k")], 2, "empty line"),
        ([HEADER, line(1, 1, "invoke", key="k")], 2, "index 1 where 0"),
        ([HEADER, line(0, 1, "invoke")], 2, "without a key"),
        ([HEADER, line(0, "client", "invoke", key="k")], 2, "neither a number"),
        ([HEADER, line(0, 1, "begin", key="k")], 2, "not an event"),
        ([HEADER, line(0, 1, "ok", key="k")], 2, "never invoked"),
        ([HEADER, line(0, 1, "invoke", key="k"), line(1, 1, "invoke", key="k")], 3, "line 2 is open"),
        ([HEADER, line(0, 1, "invoke", key="k"), line(1, 1, "ok", key="j")], 3, "not put of 'j'"),
        ([HEADER, line(0, 1, "invoke", key="k"), line(1, 1, "ok", "get", key="k")], 3, "not get"),
        (
            [HEADER, line(0, 1, "invoke", key="k"), line(1, 1, "info", key="k"), line(2, 1, "invoke", key="k")],
            4,
            "goes on after an unknown outcome",
        ),
        ([HEADER, line(0, 1, "invoke", key="k"), line(1, 2, "invoke", key="k").replace(b"10", b"-1")], 3, "backwards"),
    ],
)
def test_a_malformed_history_is_named_by_its_line(lines: list[bytes], number: int, problem: str) -> None:
    with pytest.raises(HistoryError, match=problem) as caught:
        parse(lines)
    assert caught.value.line == number


def test_only_the_last_line_feed_may_end_the_file() -> None:
    assert parse([HEADER, line(0, 1, "invoke", key="k"), b""]).operations
    with pytest.raises(HistoryError):
        parse([HEADER, b"", b""])
