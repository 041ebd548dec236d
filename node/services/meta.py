"""Checks meta requests before they are proposed or asked. They go to shard 0 alone."""

from __future__ import annotations

from collections.abc import Set

from google.protobuf.message import DecodeError

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ring.shard_map import validate_first
from cluster.types import META_SHARD, node_name
from node.machines.meta import MetaMachine
from proto.gen.meta_pb2 import Member, MetaCommand, MetaQuery, SettleShard

_ADDRESS_BYTES_MAX = 255  # a host name's longest, by DNS, is 253
_WRITES = frozenset((b"map",))
_COMMANDS = tuple(field.name for field in MetaCommand.DESCRIPTOR.fields)


class Service:
    name = "meta"
    client_commands = False  # the map is changed by nodes only

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def machine(self) -> MetaMachine:
        return MetaMachine(self._limits)

    def command(self, body: bytes, shard: int, shards: int) -> tuple[MetaCommand, Set[bytes]]:
        self._check_body(body, shard)
        try:
            command = MetaCommand.FromString(body)
        except DecodeError:
            raise invalid("body", "not a MetaCommand") from None
        which = command.WhichOneof("command")
        if which is None:
            raise invalid("command", f"must be one of {', '.join(_COMMANDS)}")
        self._check(which, command)
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

    def _check(self, which: str, command: MetaCommand) -> None:
        match which:
            case "bootstrap":
                self._check_bootstrap(command)
            case "set_member":
                _check_member(command.set_member, "set_member")
            case "join":
                _check_member(command.join.member, "join.member")
            case "set_state":
                _check_node(command.set_state.node, "set_state")
                _check_state(command.set_state.state)
            case "remove_member":
                _check_node(command.remove_member, "remove_member")
            case "add_replica":
                self._check_shard(command.add_replica.shard, which)
                _check_node(command.add_replica.node, which)
            case "retire_replica":
                self._check_shard(command.retire_replica.shard, which)
            case "settle":
                self._check_settle(command.settle)

    def _check_bootstrap(self, command: MetaCommand) -> None:
        members, shards = len(command.bootstrap.members), len(command.bootstrap.shards)
        if not 1 <= members <= self._limits.nodes_max:
            raise invalid("bootstrap.members", f"{members}, must be 1 to {self._limits.nodes_max}")
        if not 2 <= shards <= self._limits.shards_max + 1:
            raise invalid("bootstrap.shards", f"{shards}, must be 2 to {self._limits.shards_max + 1}")
        try:
            validate_first(command.bootstrap)
        except ValueError as problem:
            raise TenfoldError(Code.INVALID_ARGUMENT, f"bootstrap.{problem}") from None

    def _check_shard(self, shard: int, which: str) -> None:
        if shard > self._limits.shards_max:
            raise invalid(f"{which}.shard", f"{shard}, must be 0 to {self._limits.shards_max}")

    def _check_settle(self, settle: SettleShard) -> None:
        self._check_shard(settle.shard, "settle")
        for field, ids in (("voters", settle.voters), ("learners", settle.learners), ("order", settle.order)):
            low = 1 if field == "voters" else 0
            if not low <= len(ids) <= self._limits.nodes_max:
                raise invalid(f"settle.{field}", f"{len(ids)}, must be {low} to {self._limits.nodes_max}")
            if len(set(ids)) < len(ids) or 0 in ids:
                raise invalid(f"settle.{field}", "must be positive, each named once")
        if both := sorted(set(settle.voters) & set(settle.learners)):
            raise invalid("settle.learners", f"{both[0]} is among the voters")


def _check_node(node: str, field: str) -> None:
    try:
        node_name(node)
    except ValueError as problem:
        raise TenfoldError(Code.INVALID_ARGUMENT, f"{field}.{problem}") from None


def _check_state(state: int) -> None:
    if state not in Member.State.values():
        raise invalid("set_state.state", f"{state}, must be 0 to {max(Member.State.values())}")
    if state == Member.JOINING:
        raise invalid("set_state.state", "joining is where a member begins")


def _check_member(member: Member, field: str) -> None:
    _check_node(member.node, field)
    host, _, port = member.address.rpartition(":")
    size = len(member.address.encode())
    if size > _ADDRESS_BYTES_MAX:
        raise invalid(f"{field}.address", f"{size} bytes, must be 1 to {_ADDRESS_BYTES_MAX}")
    if not host or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise invalid(f"{field}.address", f"{member.address!r} is not host:port")
    if len(member.zone.encode()) > _ADDRESS_BYTES_MAX:
        raise invalid(f"{field}.zone", f"over {_ADDRESS_BYTES_MAX} bytes")
