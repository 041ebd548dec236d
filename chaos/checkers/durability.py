"""Is everything that was acknowledged still there?

After healing every key is read once more. Versions of a key only grow, so the last read decides about each acknowledged
write: it survived if it is the value read or if a later version is. It is lost if the version read is lower, if the
version is the same and the value is not, or if the key is absent and no delete explains that. A key without a final
answer decides nothing, and is counted as unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from chaos.history import Operation


class Lost(NamedTuple):
    write: Operation
    final: Operation
    """The read that misses it."""


class Durability(NamedTuple):
    acknowledged: int
    """Writes that were answered ok."""
    lost: list[Lost]
    unread: list[str]
    """Keys without an answered final read."""


def check(keys: Mapping[str, list[Operation]]) -> Durability:
    """Judges the operations of each key, final reads among them."""
    acknowledged = 0
    lost: list[Lost] = []
    unread: list[str] = []
    for key, operations in keys.items():
        writes = [operation for operation in operations if operation.writes and operation.type == "ok"]
        acknowledged += len(writes)
        final = next((each for each in reversed(operations) if each.final and each.type == "ok"), None)
        if final is None:
            unread.append(key)
            continue
        lost += [Lost(write, final) for write in writes if _is_lost(write, final, operations)]
    return Durability(acknowledged, lost, unread)


def _is_lost(write: Operation, final: Operation, operations: list[Operation]) -> bool:
    assert write.completed is not None
    if write.f == "delete":
        return _delete_is_lost(write, final, operations)
    if final.value is None:
        return not any(_may_follow(each, write) for each in operations if each.f == "delete" and each.type != "fail")
    assert write.version is not None and final.version is not None
    return final.version < write.version or (final.version == write.version and final.value != write.value)


def _may_follow(delete: Operation, write: Operation) -> bool:
    """Could the delete have taken effect after the write? Not if it had returned before the write was called."""
    if delete.type == "ok" and delete.version and write.version:
        return delete.version > write.version
    return delete.type == "info" or delete.completed is None or delete.completed > write.invoked


def _delete_is_lost(delete: Operation, final: Operation, operations: list[Operation]) -> bool:
    """A key that is there again needs a write that may have followed the delete."""
    if final.value is None or delete.found is False:
        return False
    if delete.version and final.version is not None:
        return final.version < delete.version
    writer = next((each for each in operations if each.writes and each.value == final.value), None)
    return (
        writer is not None
        and writer.type == "ok"
        and writer.completed is not None
        and writer.completed < delete.invoked
    )
