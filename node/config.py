"""What a node is told at birth (`node.json`, written once by the launcher) and checks before it opens anything."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.types import NODE_PATTERN

FORMAT = 1


class MemberConfig(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    address: str
    zone: str = ""


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    """`members` holds every node of the cluster at birth, this one included; addresses are seeds, a peer's Hello wins."""

    format: int
    cluster_id: str
    node: str
    address: str
    shards: int
    replication_factor: int
    members: list[MemberConfig]
    zone: str = ""
    born: bool = False
    """The launcher has seen this node run before: an empty directory is a lost one, and its replicas must not vote."""

    @property
    def cluster(self) -> bytes:
        return bytes.fromhex(self.cluster_id)


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
