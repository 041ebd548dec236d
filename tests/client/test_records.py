"""Records of files: bytes in, the same bytes out; what is no record names its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.cli.load import Source, key_prefix
from client.cli.records import BadLine, Record, reader, shown
from cluster.errors import TenfoldError
from cluster.limits import DEFAULT
from tests.machines.shard_world import tiny

SMALL = tiny(value_bytes_max=64, key_bytes_max=16)


def read(path: Path, form: str, key: str | None = None, prefix: bytes = b"p/") -> tuple[list[Record], BadLine | None]:
    """The records, and what ended them too early."""
    found: list[Record] = []
    try:
        for record in reader(form, key)(path, prefix, SMALL):
            found.append(record)
    except BadLine as bad:
        return found, bad
    return found, None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(b"ab \t\r\0\xff"), max_size=6).map(bytes)), st.booleans())
def test_a_line_file_comes_back_as_it_was(tmp_path: Path, lines: list[bytes], ended: bool) -> None:
    """Duplicates, empty lines, carriage returns and a missing final line feed."""
    path = tmp_path / "file"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ended and lines else b""))
    expected = lines if ended or not lines or lines[-1] else lines[:-1]
    found, bad = read(path, "lines")
    assert bad is None
    assert [record.value for record in found] == expected
    assert [record.key for record in found] == [b"p/%012d" % n for n in range(1, len(expected) + 1)]
    assert [record.key for record in found] == sorted(record.key for record in found)
    if found:
        assert found[-1].end == path.stat().st_size


def test_a_line_over_the_bound_ends_the_file_without_being_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a\n" + b"x" * 64 + b"\n" + b"y" * 65 + b"\nb\n")
    found, bad = read(path, "lines")
    assert [len(record.value) for record in found] == [1, 64]
    assert bad is not None and bad.line == 3 and "64 bytes" in bad.problem


@pytest.mark.parametrize(
    ("text", "key", "line", "told"),
    [
        (b'{"id": 1}\nnonsense\n', "id", 2, "not JSON"),
        (b'{"id": 1}\n[1]\n', "id", 2, "not a JSON object"),
        (b'{"id": 1}\n\n{"no": 1}\n', "id", 3, "'id' must be there"),
        (b'{"id": true}\n', "id", 1, "'id' must be there"),
        (b'{"id": "\\ud800"}\n', "id", 1, "not valid text"),
        (b'{"id": ""}\n', "id", 0, ""),
        (b'{"key": "k"}\n', None, 1, "'value' must be there"),
        (b'{"key": "k", "value_base64": "?"}\n', None, 1, "not base64"),
        (b'{"id": "%s"}\n' % (b"x" * 20), "id", 1, "key: 22 bytes, must be 1 to 16"),
        (b"\xff\n", "id", 1, "not JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, text: bytes, key: str | None, line: int, told: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    _, bad = read(path, "jsonl", key)
    if not line:
        assert bad is None
    else:
        assert bad is not None and bad.line == line and told in bad.problem


def test_a_number_of_any_length_is_what_is_written(tmp_path: Path) -> None:
    """Python itself turns no more than 4300 digits into a number."""
    path = tmp_path / "file"
    path.write_bytes(b'{"id": 7, "n": %s}\n' % (b"9" * 5000))
    (record,) = reader("jsonl", "id")(path, b"", DEFAULT)
    assert (record.key, record.value) == (b"7", path.read_bytes()[:-1])
    path.write_bytes(b'{"id": %s}\n' % (b"9" * 5000))
    with pytest.raises(BadLine, match=r"^line 1: key: 5000 bytes, must be 1 to 4096$"):
        list(reader("jsonl", "id")(path, b"", DEFAULT))
    path.write_bytes(b'{"key": "k", "value_base64": 1234}\n')
    with pytest.raises(BadLine, match="value_base64 is not base64"):
        list(reader("jsonl", None)(path, b"", DEFAULT))


def test_a_csv_field_may_be_as_long_as_a_value(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("id,text\n1," + "x" * 500_000 + "\n")
    (record,) = reader("csv", "id")(path, b"", DEFAULT)
    assert json.loads(record.value)["text"] == "x" * 500_000


def test_json_lines_keep_the_line_or_take_key_and_value(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'{"id": 7, "x":  "y"}\r\n')
    assert [(each.key, each.value) for each in read(path, "jsonl", "id")[0]] == [(b"p/7", b'{"id": 7, "x":  "y"}')]
    raw = {**shown("key", b"k"), **shown("value", b"\xff\0")}
    path.write_text(json.dumps(raw) + "\n")
    assert [(each.key, each.value) for each in read(path, "jsonl")[0]] == [(b"p/k", b"\xff\0")]


def test_csv_rows_become_objects(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes('\ufeffid,name\r\n1,"two\nlines"\n2,"é, ""x"""\n\n'.encode())
    found, bad = read(path, "csv", "id")
    assert bad is None
    rows = [(each.line, each.key, json.loads(each.value)) for each in found]
    assert rows == [
        (3, b"p/1", {"id": "1", "name": "two\nlines"}),
        (4, b"p/2", {"id": "2", "name": 'é, "x"'}),
    ]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (b"", 1, "header is missing"),
        (b"a,b\n", 1, "no column 'id'"),
        (b"id,id\n", 1, "twice"),
        (b"id,n\n1,2\n3\n", 3, "1 fields"),
        (b"id,n\n1,\xff\n", 2, "not UTF-8"),
        (b'id,n\n1,"open\n', 2, "unexpected end"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path: Path, text: bytes, line: int, told: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    _, bad = read(path, "csv", "id")
    assert bad is not None and bad.line == line and told in bad.problem


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for source in (
        Source(tmp_path / "f", "p", "lines", "id"),
        Source(tmp_path / "f", "p", "csv", None),
        Source(tmp_path / "f", "p", "xml", None),
        Source(tmp_path / "none", "p", "lines", None),
        Source(tmp_path, "p", "lines", None),
    ):
        with pytest.raises(TenfoldError):
            source.records()
    assert (key_prefix("p"), key_prefix("")) == (b"p/", b"")
    assert DEFAULT.key_bytes_max >= len(key_prefix("p")) + 12
