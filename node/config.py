"""What a node is told at birth or when it joins (`node.json`, written by the launcher) and checks before it opens anything."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT, Limits
from cluster.ring.shard_map import first_map
from cluster.types import NODE_PATTERN
from proto.gen import meta_pb2

FORMAT = 1
REPAIR_S_MAX = 86_400 * 7


class MemberConfig(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    address: str
    zone: str = ""


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """A node of the birth has `members`, every node of the cluster at birth with this one, and the shape of the cluster; one
    that comes later has `join` instead, addresses of any nodes. All addresses are seeds: a peer's Hello and the map win."""

    format: int
    cluster_id: str
    node: str
    address: str
    shards: int = 0
    replication_factor: int = 0
    members: list[MemberConfig] = []
    join: list[str] = []
    zone: str = ""
    born: bool = False
    """The launcher has seen this node run before: an empty directory is a lost one, and its replicas must not vote."""
    repair_after_s: float | None = None
    """Overrides `down_after_ms`: how long a member may be away before its replicas are rebuilt elsewhere."""

    @property
    def cluster(self) -> bytes:
        return bytes.fromhex(self.cluster_id)

    def first_map(self) -> meta_pb2.ShardMap:
        """What the node knows before it has heard anything: the map of the birth, or one of nobody at epoch 0."""
        if self.join:
            return meta_pb2.ShardMap(cluster_id=self.cluster)
        members = [(each.node, each.address, each.zone) for each in self.members]
        return first_map(self.cluster, members, self.shards, self.replication_factor)

    def limits(self, limits: Limits) -> Limits:
        """The product's, but for what this file overrides."""
        if self.repair_after_s is None:
            return limits
        return replace(limits, down_after_ms=round(self.repair_after_s * 1000))


def read_config(text: bytes, path: Path) -> NodeConfig:
    """Parses and checks a node.json; TenfoldError InvalidArgument names the file, the field and the bound."""
    try:
        config = msgspec.json.decode(text, type=NodeConfig)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise TenfoldError(Code.INVALID_ARGUMENT, f"{path}: {error}") from None
    problem = _problem(config)
    if problem:
        raise TenfoldError(Code.INVALID_ARGUMENT, f"{path}: {problem}")
    return config


def _problem(config: NodeConfig) -> str:
    if config.format > FORMAT:
        return f"format: {config.format} is newer than this program's {FORMAT}"
    try:
        if len(config.cluster) != 16:
            return "cluster_id: must be 16 bytes in hexadecimal"
    except ValueError:
        return "cluster_id: must be 16 bytes in hexadecimal"
    if (
        config.repair_after_s is not None
        and not DEFAULT.suspect_after_ms / 1000 < config.repair_after_s <= REPAIR_S_MAX
    ):
        low = DEFAULT.suspect_after_ms / 1000
        return f"repair_after_s: {config.repair_after_s:g}, must be above {low:g} and at most {REPAIR_S_MAX}"
    if not NODE_PATTERN.fullmatch(config.node):
        return f"node: {config.node!r} must match {NODE_PATTERN.pattern}"
    return _problem_with_joining(config) if config.join else _problem_with_birth(config)


def _problem_with_joining(config: NodeConfig) -> str:
    if config.members or config.shards or config.replication_factor:
        return "join: a node that joins learns members, shards and replication_factor from the cluster"
    bad = next((each for each in config.join if not re.fullmatch(r".+:[0-9]{1,5}", each)), None)
    if bad is not None:
        return f"join: {bad!r} is not host:port"
    return ""


def _problem_with_birth(config: NodeConfig) -> str:
    names = [member.node for member in config.members]
    bad = next((name for name in names if not NODE_PATTERN.fullmatch(name)), None)
    if bad is not None:
        return f"members: {bad!r} must match {NODE_PATTERN.pattern}"
    if len(set(names)) != len(names):
        return "members: a node is named twice"
    if config.node not in names:
        return f"node: {config.node!r} is not among the members"
    if not 1 <= len(names) <= DEFAULT.nodes_max:
        return f"members: {len(names)}, must be 1 to {DEFAULT.nodes_max}"
    if not 1 <= config.shards <= DEFAULT.shards_max:
        return f"shards: {config.shards}, must be 1 to {DEFAULT.shards_max}"
    if not 1 <= config.replication_factor <= len(names):
        return f"replication_factor: {config.replication_factor}, must be 1 to {len(names)}, the number of nodes"
    return ""
