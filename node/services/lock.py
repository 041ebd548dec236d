"""Checks lock requests before they are proposed or asked.

Law: a name lies in the shard it is sent to, routed as keys are. A lease has no shard: whoever holds it renews and ends it
wherever it has anything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence, Set

from google.protobuf.message import DecodeError

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ring.ring import shard_of
from node.machines.lock import LockMachine, event_message
from proto.gen.lock_pb2 import SEMAPHORE, LockAcquire, LockCommand, LockMode, LockQuery

_MODES = frozenset(LockMode.values())
_COMMANDS = tuple(field.name for field in LockCommand.DESCRIPTOR.fields)
_QUERIES = tuple(field.name for field in LockQuery.DESCRIPTOR.fields)
_UNSEEN = frozenset(("Cc", "Cf", "Zl", "Zp"))
"""Categories of what moves, hides or turns around the text beside it; a list of locks is read by people."""
_NOTHING: frozenset[bytes] = frozenset()
_REASON_BYTES_MAX = 4096  # the owners of a long cycle


class Service:
    name = "lock"
    client_commands = True
    event = staticmethod(event_message)

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def machine(self) -> LockMachine:
        return LockMachine(self._limits)

    # ---- commands

    def command(self, body: bytes, shard: int, shards: int) -> tuple[LockCommand, Set[bytes] | None]:
        self._check_body(body, shard, shards)
        try:
            command = LockCommand.FromString(body)
        except DecodeError:
            raise invalid("body", "not a LockCommand") from None
        which = command.WhichOneof("command")
        if which is None:
            raise invalid("command", f"must be one of {', '.join(_COMMANDS)}")
        if which == "renew":
            _check_lease(command.renew.lease, "renew.lease")
            self._check_ttl(command.renew.ttl_ms, "renew.ttl_ms")
            return command, _NOTHING
        if which == "end_lease":
            _check_lease(command.end_lease.lease, "end_lease.lease")
            return command, None  # whatever the lease holds
        name = getattr(command, which).name
        self._check_name(name, f"{which}.name", shard, shards)
        if which == "acquire":
            self._check_acquire(command.acquire)
        elif which == "release":
            _check_lease(command.release.lease, "release.lease")
            if command.release.reason:
                _check_text(command.release.reason, "release.reason", _REASON_BYTES_MAX)
        return command, frozenset((written(name),))

    def _check_acquire(self, asked: LockAcquire) -> None:
        limits = self._limits
        _check_lease(asked.lease, "acquire.lease")
        _check_text(asked.owner, "acquire.owner", limits.lock_owner_bytes_max)
        if len(asked.metadata) > limits.lock_metadata_bytes_max:
            bound = limits.lock_metadata_bytes_max
            raise invalid("acquire.metadata", f"{len(asked.metadata)} bytes, must be 0 to {bound}")
        if asked.mode not in _MODES:
            raise invalid("acquire.mode", f"{asked.mode} is unknown")
        if asked.mode == SEMAPHORE:
            if not 1 <= asked.capacity <= limits.lock_permits_max:
                raise invalid("acquire.capacity", f"{asked.capacity}, must be 1 to {limits.lock_permits_max}")
            if asked.permits > asked.capacity:
                raise invalid("acquire.permits", f"{asked.permits}, must be 0 to {asked.capacity}, the capacity")
        else:
            for field, bound in (("capacity", 0), ("permits", 1)):
                if getattr(asked, field) > bound:
                    raise invalid(f"acquire.{field}", f"{getattr(asked, field)}, is for SEMAPHORE only")
        self._check_ttl(asked.ttl_ms, "acquire.ttl_ms")
        if asked.wait_ms > limits.lock_wait_ms_max:
            raise invalid("acquire.wait_ms", f"{asked.wait_ms}, must be 0 to {limits.lock_wait_ms_max}")
        if asked.delay_ms > limits.lock_delay_ms_max:
            raise invalid("acquire.delay_ms", f"{asked.delay_ms}, must be 0 to {limits.lock_delay_ms_max}")

    def _check_ttl(self, ttl_ms: int, where: str) -> None:
        low, high = self._limits.lock_ttl_ms_min, self._limits.lock_ttl_ms_max
        if not low <= ttl_ms <= high:
            raise invalid(where, f"{ttl_ms}, must be {low} to {high}")

    # ---- queries

    def query(self, body: bytes, shard: int, shards: int) -> LockQuery:
        self._check_body(body, shard, shards)
        try:
            query = LockQuery.FromString(body)
        except DecodeError:
            raise invalid("body", "not a LockQuery") from None
        which = query.WhichOneof("query")
        if which == "get":
            self._check_name(query.get, "get", shard, shards)
        elif which == "check":
            self._check_name(query.check.name, "check.name", shard, shards)
            _check_lease(query.check.lease, "check.lease")
        elif which == "list":
            for field in ("start", "prefix"):
                text = getattr(query.list, field)
                if text:
                    _check_text(text, f"list.{field}", self._limits.lock_name_bytes_max)
        elif which == "edges":
            self._check_owners(query.edges.owners)
        else:
            raise invalid("query", f"must be one of {', '.join(_QUERIES)}")
        return query

    def _check_owners(self, owners: Sequence[str]) -> None:
        bound = self._limits.lock_list_max
        if not 1 <= len(owners) <= bound:
            raise invalid("edges.owners", f"{len(owners)}, must be 1 to {bound}")
        for position, owner in enumerate(owners):
            _check_text(owner, f"edges.owners[{position}]", self._limits.lock_owner_bytes_max)

    # ---- what both share

    def _check_body(self, body: bytes, shard: int, shards: int) -> None:
        if len(body) > self._limits.request_bytes_max:
            raise invalid("body", f"{len(body)} bytes, must be 0 to {self._limits.request_bytes_max}")
        if not 1 <= shard <= shards:
            raise TenfoldError(Code.WRONG_SHARD, f"shard {shard} holds no locks; those of locks are 1 to {shards}")

    def _check_name(self, name: str, where: str, shard: int, shards: int) -> None:
        check_name(name, where, self._limits)
        found = shard_of(name.encode(), shards)
        if found != shard:
            raise TenfoldError(Code.WRONG_SHARD, f"{where}: lies in shard {found}, not {shard}")


def written(name: str) -> bytes:
    """What keeps two requests about one lock out of one entry; a key that happens to be equal does no harm."""
    return b"\0lock/" + name.encode()


def check_name(name: str, where: str, limits: Limits) -> None:
    _check_text(name, where, limits.lock_name_bytes_max)


def _check_text(text: str, where: str, bytes_max: int) -> None:
    size = len(text.encode())
    if not 1 <= size <= bytes_max:
        raise invalid(where, f"{size} bytes, must be 1 to {bytes_max}")
    if text.isprintable():
        return
    for position, character in enumerate(text):
        if unicodedata.category(character) in _UNSEEN:
            raise invalid(where, f"character {position} (U+{ord(character):04X}) is one of control or format")


def _check_lease(lease: int, where: str) -> None:
    if not lease:
        raise invalid(where, "0, must be 1 or more")
