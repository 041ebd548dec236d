"""The table of errors: one row a code, with what a caller may conclude and do.

`definite` means the operation has surely not taken effect; an indefinite error leaves the outcome unknown (`info` in a
history), and a retry is allowed only under the same session and sequence. `retriable` means trying again may succeed;
`refresh` says what the client must learn first. After Maelstrom's errors.edn and aiokafka's retry policy.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Code(IntEnum):
    OK = 0
    # the caller's mistake
    INVALID_ARGUMENT = 1
    WRONG_CLUSTER = 2
    INVALID_CURSOR = 3
    UNKNOWN_CAPABILITY = 4
    CROSS_SHARD = 5
    # a definite answer of the machine
    VERSION_MISMATCH = 20
    NOT_A_NUMBER = 21
    NUMBER_OVERFLOW = 22
    COMPACTED = 23
    ALREADY_EXISTS = 24
    MAP_CHANGED = 25
    MEMBER_BUSY = 26
    LOCK_HELD = 27
    STALE_TOKEN = 28
    UNKNOWN_LEASE = 29
    DEADLOCK = 30
    NOT_HOLDER = 31
    TOO_MANY_WAITERS = 32
    LOCK_MODE_DIFFERS = 33
    LOCK_TABLE_FULL = 34
    LEASE_LOST = 35
    # routing
    NOT_LEADER = 40
    WRONG_SHARD = 41
    MAP_BEHIND = 42
    STALE_MAP = 43
    # the node's condition
    OVERLOADED = 60
    SHUTTING_DOWN = 61
    QUARANTINED = 62
    DISK_FULL = 63
    UNREACHABLE = 64
    # time and the unknown
    DEADLINE_PASSED = 80
    DEADLINE_EXCEEDED = 81
    UNKNOWN_OUTCOME = 82
    UNAVAILABLE = 83
    SESSION_EXPIRED = 84
    # a bug
    INTERNAL = 99


class Refresh(StrEnum):
    NOTHING = "nothing"
    LEADER = "leader"
    MAP = "map"
    SESSION = "session"


class Row(NamedTuple):
    definite: bool
    retriable: bool
    refresh: Refresh
    meaning: str


TABLE: dict[Code, Row] = {
    Code.OK: Row(True, False, Refresh.NOTHING, "done"),
    Code.INVALID_ARGUMENT: Row(True, False, Refresh.NOTHING, "a field is missing, malformed or over its bound"),
    Code.WRONG_CLUSTER: Row(True, False, Refresh.NOTHING, "the request names another cluster"),
    Code.INVALID_CURSOR: Row(True, False, Refresh.NOTHING, "the cursor or token is malformed or foreign"),
    Code.UNKNOWN_CAPABILITY: Row(True, False, Refresh.NOTHING, "this cluster does not serve that capability"),
    Code.CROSS_SHARD: Row(True, False, Refresh.NOTHING, "the keys lie in several shards; use one hash tag in {braces}"),
    Code.VERSION_MISMATCH: Row(True, False, Refresh.NOTHING, "the key's version is not the expected one"),
    Code.NOT_A_NUMBER: Row(True, False, Refresh.NOTHING, "increment of a value that is not a 64-bit decimal number"),
    Code.NUMBER_OVERFLOW: Row(True, False, Refresh.NOTHING, "the number would leave the signed 64-bit range"),
    Code.COMPACTED: Row(True, False, Refresh.NOTHING, "the history asked for is gone; the oldest token is given"),
    Code.ALREADY_EXISTS: Row(True, False, Refresh.NOTHING, "it exists already"),
    Code.MAP_CHANGED: Row(True, True, Refresh.MAP, "the shard's placement changed meanwhile, or a change is under way"),
    Code.MEMBER_BUSY: Row(True, False, Refresh.NOTHING, "the member still holds replicas; drain it first"),
    Code.LOCK_HELD: Row(True, False, Refresh.NOTHING, "somebody else holds the lock; holder and queue are given"),
    Code.STALE_TOKEN: Row(True, False, Refresh.NOTHING, "a higher fencing token was shown, or the token holds no more"),
    Code.UNKNOWN_LEASE: Row(True, False, Refresh.NOTHING, "the lease is unknown in this shard or has expired"),
    Code.DEADLOCK: Row(True, False, Refresh.NOTHING, "waiting would close, or has closed, a cycle of waiters"),
    Code.NOT_HOLDER: Row(True, False, Refresh.NOTHING, "somebody else holds the lock; nothing was released"),
    Code.TOO_MANY_WAITERS: Row(True, False, Refresh.NOTHING, "the lock's queue is full"),
    Code.LOCK_MODE_DIFFERS: Row(
        True, False, Refresh.NOTHING, "the lock is in use as a semaphore, or of another capacity"
    ),
    Code.LOCK_TABLE_FULL: Row(
        True, False, Refresh.NOTHING, "no room for a further lock, lease, attempt or fenced name"
    ),
    Code.LEASE_LOST: Row(
        True, False, Refresh.NOTHING, "the lease ended, or may have, while its locks were relied upon"
    ),
    Code.NOT_LEADER: Row(True, True, Refresh.LEADER, "this replica does not lead the shard"),
    Code.WRONG_SHARD: Row(True, True, Refresh.MAP, "this node holds no replica of the shard, or the key is not in it"),
    Code.MAP_BEHIND: Row(True, True, Refresh.NOTHING, "the client's map is newer than the node's"),
    Code.STALE_MAP: Row(True, True, Refresh.MAP, "the client's map is older than the shard's placement"),
    Code.OVERLOADED: Row(True, True, Refresh.NOTHING, "a bounded queue is full"),
    Code.SHUTTING_DOWN: Row(True, True, Refresh.LEADER, "the node is stopping"),
    Code.QUARANTINED: Row(True, True, Refresh.LEADER, "the replica's storage was found corrupt"),
    Code.DISK_FULL: Row(True, True, Refresh.LEADER, "the node's disk is full"),
    Code.UNREACHABLE: Row(True, True, Refresh.LEADER, "no connection to the node could be made; nothing was sent"),
    Code.DEADLINE_PASSED: Row(True, False, Refresh.NOTHING, "the deadline passed and nothing was applied"),
    Code.DEADLINE_EXCEEDED: Row(False, False, Refresh.NOTHING, "no answer within the deadline"),
    Code.UNKNOWN_OUTCOME: Row(False, True, Refresh.LEADER, "leadership was lost while the entry was in flight"),
    Code.UNAVAILABLE: Row(False, True, Refresh.LEADER, "the connection broke or the node did not answer"),
    Code.SESSION_EXPIRED: Row(False, False, Refresh.SESSION, "the session is unknown or its window was passed"),
    Code.INTERNAL: Row(False, False, Refresh.NOTHING, "a bug in the server"),
}

assert set(TABLE) == set(Code), "every code has its row"


class TenfoldError(Exception):
    """An error of the table. `code` says what may be concluded; `details` carries what the code promises (leader,
    floor, expected and found versions)."""

    def __init__(self, code: Code, message: str = "", **details: object) -> None:
        super().__init__(message or TABLE[code].meaning)
        self.code = code
        self.details = details

    @property
    def definite(self) -> bool:
        return TABLE[self.code].definite

    @property
    def retriable(self) -> bool:
        return TABLE[self.code].retriable

    @property
    def message(self) -> str:
        return str(self.args[0])


def invalid(field: str, problem: str) -> TenfoldError:
    """InvalidArgument that names the field."""
    return TenfoldError(Code.INVALID_ARGUMENT, f"{field}: {problem}")
