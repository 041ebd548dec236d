"""What the key-value facade takes and gives. Immutable; what comes by the thousand is a tuple, which is several times
cheaper to build than a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import TenfoldError

Key = str | bytes
Value = str | bytes
"""Text is sent as UTF-8."""


@dataclass(frozen=True, slots=True)
class KvValue:
    """`version` is the log index of the key's last write. `stale_ms`: at most so old; 0 unless read with consistency stale."""

    value: bytes
    version: int
    stale_ms: int = 0


class KvItem(NamedTuple):
    """One key of a scan; `value` is empty when only keys were asked for."""

    key: bytes
    value: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Page:
    """`cursor` goes on behind the last item; None when the range is done."""

    items: list[KvItem]
    cursor: str | None


class Put(NamedTuple):
    key: Key
    value: Value
    ttl_ms: int | None = None


class Delete(NamedTuple):
    key: Key


class Increment(NamedTuple):
    """`ttl_ms` None keeps the present expiry."""

    key: Key
    delta: int = 1
    ttl_ms: int | None = None


class CompareAndSet(NamedTuple):
    """Writes if the key's version is `version`; 0 means absent."""

    key: Key
    value: Value
    version: int
    ttl_ms: int | None = None


class CompareAndDelete(NamedTuple):
    key: Key
    version: int


class Get(NamedTuple):
    """Only inside a transaction's branch."""

    key: Key


WriteEntry = Put | Delete | Increment | CompareAndSet | CompareAndDelete
Entry = WriteEntry | Get


class Condition(StrEnum):
    VERSION_EQUAL = "version_equal"
    VERSION_NOT_EQUAL = "version_not_equal"
    VERSION_LESS = "version_less"
    VERSION_GREATER = "version_greater"
    VALUE_EQUAL = "value_equal"
    VALUE_NOT_EQUAL = "value_not_equal"


class Compare(NamedTuple):
    """`operand` is a version (0: absent) or a value, as the condition says. An absent key equals no value."""

    key: Key
    condition: Condition
    operand: int | Value


class BatchResult(NamedTuple):
    """How one entry of a batch ended: `error` None is ok. An indefinite error leaves this entry's outcome unknown.

    `version` is that of the write (of a delete: the index it was deleted at), `found` whether a deleted key was there,
    `number` the new number of an increment.
    """

    version: int = 0
    found: bool = False
    number: int = 0
    error: TenfoldError | None = None


class OpResult(NamedTuple):
    """One operation of a transaction. `value` and `found` are a get's; the rest as in BatchResult."""

    version: int
    found: bool
    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """`succeeded`: all compares held and `then` ran; otherwise `otherwise` ran. `version` is the log index of it all."""

    succeeded: bool
    results: tuple[OpResult, ...]
    version: int
