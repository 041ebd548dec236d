"""Checks meta requests before they are proposed or asked. They go to shard 0 alone."""

from __future__ import annotations

from collections.abc import Set

from google.protobuf.message import DecodeError

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ring.shard_map import validate
from cluster.types import META_SHARD, node_name
from node.machines.meta import MetaMachine
from proto.gen.meta_pb2 import Member, MetaCommand, MetaQuery

_ADDRESS_BYTES_MAX = 255  # a host name's longest, by DNS, is 253
_WRITES = frozenset((b"map",))


class Service:
    name = "meta"
    client_commands = False  # the map is changed by nodes only

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def machine(self) -> MetaMachine:
        return MetaMachine()

    def command(self, body: bytes, shard: int, shards: int) -> tuple[MetaCommand, Set[bytes]]:
        self._check_body(body, shard)
        try:
            command = MetaCommand.FromString(body)
        except DecodeError:
            raise invalid("body", "not a MetaCommand") from None
        which = command.WhichOneof("command")
        if which == "bootstrap":
            self._check_bootstrap(command)
        elif which == "set_member":
            _check_member(command.set_member)
        else:
            raise invalid("command", "must be bootstrap or set_member")
        return command, _WRITES

    def query(self, body: bytes, shard: int, shards: int) -> MetaQuery:
        self._check_body(body, shard)
        try:
            return MetaQuery.FromString(body)
        except DecodeError:
            raise invalid("body", "not a MetaQuery") from None

    def _check_body(self, body: bytes, shard: int) -> None:
        if len(body) > self._limits.request_bytes_max:
            raise invalid("body", f"{len(body)} bytes, must be 0 to {self._limits.request_bytes_max}")
        if shard != META_SHARD:
            raise TenfoldError(Code.WRONG_SHARD, f"meta is shard {META_SHARD}, not {shard}")

    def _check_bootstrap(self, command: MetaCommand) -> None:
        members, shards = len(command.bootstrap.members), len(command.bootstrap.shards)
        if not 1 <= members <= self._limits.nodes_max:
            raise invalid("bootstrap.members", f"{members}, must be 1 to {self._limits.nodes_max}")
        if not 2 <= shards <= self._limits.shards_max + 1:
            raise invalid("bootstrap.shards", f"{shards}, must be 2 to {self._limits.shards_max + 1}")
        try:
            validate(command.bootstrap)
        except ValueError as problem:
            raise TenfoldError(Code.INVALID_ARGUMENT, f"bootstrap.{problem}") from None


def _check_member(member: Member) -> None:
    try:
        node_name(member.node)
    except ValueError as problem:
        raise TenfoldError(Code.INVALID_ARGUMENT, f"set_member.{problem}") from None
    host, _, port = member.address.rpartition(":")
    size = len(member.address.encode())
    if size > _ADDRESS_BYTES_MAX:
        raise invalid("set_member.address", f"{size} bytes, must be 1 to {_ADDRESS_BYTES_MAX}")
    if not host or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise invalid("set_member.address", f"{member.address!r} is not host:port")
    if len(member.zone.encode()) > _ADDRESS_BYTES_MAX:
        raise invalid("set_member.zone", f"over {_ADDRESS_BYTES_MAX} bytes")
