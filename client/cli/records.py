"""Reads the records of a file, one at a time, so that a file of any size takes bounded memory.

A record of a line file is the bytes between line feeds, a carriage return kept; what follows the last line feed is a record too,
unless it is empty. Line numbers count from 1.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from cluster.errors import invalid
from cluster.limits import Limits

LINE_DIGITS = 12
LINES_MAX = 10**LINE_DIGITS - 1


class Record(NamedTuple):
    line: int
    key: bytes
    value: bytes
    end: int  # how far the file was read, in bytes


class BadLine(Exception):
    """Line `line` is no record; `problem` says why."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


def reader(form: str, key_field: str | None) -> Callable[[Path, bytes, Limits], Iterator[Record]]:
    """For a format's name: lines, jsonl or csv. InvalidArgument when the options do not fit together."""
    if form == "lines":
        if key_field is not None:
            raise invalid("key", "a line file has no columns; its keys are line numbers")
        return lines
    if form == "jsonl":
        return lambda path, prefix, limits: json_lines(path, prefix, limits, key_field)
    if form == "csv":
        if key_field is None:
            raise invalid("key", "name the column that holds the key")
        return lambda path, prefix, limits: csv_rows(path, prefix, limits, key_field)
    raise invalid("format", f"{form!r}, must be lines, jsonl or csv")


def lines(path: Path, prefix: bytes, limits: Limits) -> Iterator[Record]:
    """The key is the prefix and the line's number in twelve digits."""
    with path.open("rb") as file:
        for number, line, end in _lines(file, limits):
            yield _record(number, prefix + b"%0*d" % (LINE_DIGITS, number), line, end, limits)


def json_lines(path: Path, prefix: bytes, limits: Limits, key_field: str | None) -> Iterator[Record]:
    """Each line is a JSON object. With `key_field` that field is the key and the line the value; without, the object has
    `key` and `value` (or `key_base64`, `value_base64`), as `dump --json` writes them. Empty lines are passed over."""
    with path.open("rb") as file:
        for number, line, end in _lines(file, limits):
            if not line.strip():
                continue
            record = _object(number, line)
            if key_field is None:
                key, value = _bytes(number, record, "key"), _bytes(number, record, "value")
            else:
                key, value = _text(number, record, key_field).encode(), line.rstrip(b"\r")
            yield _record(number, prefix + key, value, end, limits)


def csv_rows(path: Path, prefix: bytes, limits: Limits, key_field: str) -> Iterator[Record]:
    """UTF-8 with a header. The value is the row as a JSON object; a row is named by its last line."""
    csv.field_size_limit(limits.value_bytes_max)  # the module's own bound is 128 KiB
    with path.open("rb") as file:
        numbered = _Numbered(file, limits)
        rows = csv.reader(numbered, strict=True)
        header: list[str] | None = None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                raise BadLine(max(1, rows.line_num), str(error)) from None
            if header is None:
                header = _header(row, key_field)
            elif row:
                if len(row) != len(header):
                    raise BadLine(rows.line_num, f"{len(row)} fields, but the header has {len(header)}")
                record = dict(zip(header, row, strict=True))
                value = json.dumps(record, ensure_ascii=False).encode()
                yield _record(rows.line_num, prefix + record[key_field].encode(), value, numbered.end, limits)
        if header is None:
            raise BadLine(1, "the header is missing")


def _header(row: list[str], key_field: str) -> list[str]:
    if len(set(row)) < len(row):
        raise BadLine(1, "a column's name is there twice")
    if key_field not in row:
        raise BadLine(1, f"no column {key_field!r}; the columns are {', '.join(row)}")
    return row


class _Numbered:
    """The lines of a file as text for the csv reader, with the line feed, since a field may hold one."""

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self._lines = _lines(file, limits)
        self.end = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line, self.end = next(self._lines)
        text = line[3:] if number == 1 and line.startswith(b"\xef\xbb\xbf") else line
        try:
            return text.decode() + "\n"
        except UnicodeDecodeError as error:
            raise BadLine(number, f"not UTF-8: {error.reason}") from None


def _lines(file: IO[bytes], limits: Limits) -> Iterator[tuple[int, bytes, int]]:
    longest = limits.value_bytes_max
    number = end = 0
    while line := file.readline(longest + 2):
        number += 1
        end += len(line)
        if number > LINES_MAX:
            raise BadLine(number, f"a file may have {LINES_MAX} lines")
        if line.endswith(b"\n"):
            line = line[:-1]
        if len(line) > longest:
            raise BadLine(number, f"longer than {longest} bytes, the bound of a value")
        yield number, line, end


def _record(line: int, key: bytes, value: bytes, end: int, limits: Limits) -> Record:
    if not 1 <= len(key) <= limits.key_bytes_max:
        raise BadLine(line, f"key: {len(key)} bytes, must be 1 to {limits.key_bytes_max}")
    if len(value) > limits.value_bytes_max:
        raise BadLine(line, f"value: {len(value)} bytes, must be 0 to {limits.value_bytes_max}")
    return Record(line, key, value, end)


def _object(number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_int=_Digits)
    except (ValueError, RecursionError) as error:
        raise BadLine(number, f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadLine(number, "not a JSON object")
    return record


class _Digits(str):
    """A whole number as it is written: of any length, since nobody counts with it."""


def _text(number: int, record: dict[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise BadLine(number, f"{field!r} must be there, as text or a whole number")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLine(number, f"{field!r} is not valid text") from None
    return value


def _bytes(number: int, record: dict[str, Any], field: str) -> bytes:
    coded = record.get(f"{field}_base64")
    if coded is None:
        return _text(number, record, field).encode()
    try:
        if not isinstance(coded, str) or isinstance(coded, _Digits):
            raise TypeError
        return base64.b64decode(coded, validate=True)
    except (ValueError, TypeError):
        raise BadLine(number, f"{field}_base64 is not base64") from None


def shown(field: str, raw: bytes) -> dict[str, str]:
    """For JSON: the field as text, or in base64 where it is not UTF-8."""
    try:
        return {field: raw.decode()}
    except UnicodeDecodeError:
        return {f"{field}_base64": base64.b64encode(raw).decode()}
