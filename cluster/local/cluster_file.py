"""What cluster.json says: the shape of a local cluster, fixed at its birth, and its nodes, which come and go.

Laws: a node's name is its number, given once and never again, so that neither the cluster nor a folder ever meets another node under it;
the members of the birth stay on file when they have left, since every node of the birth begins from the same first map.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

import msgspec

from cluster.errors import invalid
from cluster.limits import DEFAULT
from cluster.types import node_name

FORMAT = 2
HOST = "127.0.0.1"
FOLDER = re.compile(r"n[1-9][0-9]?")
NUMBER_MAX = 99
REPAIR_S_MAX = 7 * 86_400


class NodeEntry(msgspec.Struct, forbid_unknown_fields=True):
    """`born`: the node has listened once, so it may have voted; an empty directory of its is one that lost its data.
    `joined`: it came after the birth."""

    node: str
    zone: str
    port: int
    born: bool = False
    joined: bool = False

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def number(self) -> int:
        return int(self.node.removeprefix("n"))


class ClusterFile(msgspec.Struct, forbid_unknown_fields=True):
    """cluster.json. `shards` counts the data shards. `removed` are nodes that were; `repair_after_s`, if set, is how long a node
    may be away before its replicas are rebuilt elsewhere."""

    format: int
    cluster_id: str
    shards: int
    replication_factor: int
    nodes: list[NodeEntry]
    removed: list[NodeEntry] = []
    repair_after_s: float | None = None

    @property
    def names(self) -> list[str]:
        return [entry.node for entry in self.nodes]

    def entry(self, node: str) -> NodeEntry:
        """TenfoldError InvalidArgument, listing the nodes, if there is no such one."""
        for each in self.nodes:
            if each.node == node:
                return each
        was = " any more" if any(each.node == node for each in self.removed) else ""
        raise invalid("node", f"{node!r} is not in this cluster{was}; its nodes are {', '.join(self.names)}")

    @property
    def birth(self) -> list[NodeEntry]:
        """The members of the birth in their order, those that have left with their last port."""
        return sorted((each for each in [*self.nodes, *self.removed] if not each.joined), key=lambda each: each.number)

    @property
    def ports(self) -> list[int]:
        """Those that no further node may have: of a member of the birth that left as well, for two members of the first map
        cannot have one address."""
        return [each.port for each in [*self.nodes, *self.removed]]

    def join(self, ports: Sequence[int], zones: Sequence[str]) -> list[NodeEntry]:
        """Adds a node for each port under the next names; zones are dealt out in turn. TenfoldError InvalidArgument."""
        check_zones(zones)
        first = 1 + max(each.number for each in [*self.nodes, *self.removed])
        if len(self.nodes) + len(ports) > DEFAULT.nodes_max:
            raise invalid("count", f"{len(self.nodes)} nodes and {len(ports)} more are above {DEFAULT.nodes_max}")
        if first + len(ports) - 1 > NUMBER_MAX:
            raise invalid("count", f"names end with n{NUMBER_MAX} and are never given twice; {len(ports)} are not left")
        joined = [
            NodeEntry(node=f"n{first + i}", zone=zones[i % len(zones)] if zones else "", port=port, joined=True)
            for i, port in enumerate(ports)
        ]
        self.nodes.extend(joined)
        return joined

    def remove(self, node: str) -> None:
        entry = self.entry(node)
        self.nodes.remove(entry)
        self.removed.append(entry)

    def check(self) -> None:
        """ValueError, TenfoldError InvalidArgument: what makes no sense in it."""
        if len(bytes.fromhex(self.cluster_id)) != 16:
            raise ValueError("cluster_id: must be 16 bytes in hexadecimal")
        entries = [*self.nodes, *self.removed]
        if len({node_name(each.node) for each in entries}) < len(entries):
            raise ValueError("nodes: two have the same name")
        if odd := [each.node for each in entries if not FOLDER.fullmatch(each.node)]:
            raise ValueError(f"nodes: {odd[0]!r} must match {FOLDER.pattern}")
        # With the members of the birth there were enough; how few may stay is up to the cluster.
        check_settings(len(self.nodes), self.replication_factor if not self.removed else 1, self.shards, [])
        check_repair_after(self.repair_after_s)


def new_cluster(
    nodes: int,
    replicas: int,
    shards: int,
    zones: Sequence[str],
    ports: Sequence[int],
    repair_after_s: float | None = None,
) -> ClusterFile:
    """A cluster not born yet, with a fresh id; zones are dealt out in turn. TenfoldError InvalidArgument."""
    check_settings(nodes, replicas, shards, zones)
    check_repair_after(repair_after_s)
    entries = [
        NodeEntry(node=f"n{i + 1}", zone=zones[i % len(zones)] if zones else "", port=port)
        for i, port in enumerate(ports)
    ]
    assert len(entries) == nodes, "every node has a port"
    return ClusterFile(FORMAT, secrets.token_hex(16), shards, replicas, entries, repair_after_s=repair_after_s)


def check_settings(nodes: int, replicas: int, shards: int, zones: Sequence[str]) -> None:
    """TenfoldError InvalidArgument names the setting that makes no sense and its bound."""
    if not 1 <= nodes <= DEFAULT.nodes_max:
        raise invalid("nodes", f"{nodes} is not in 1..{DEFAULT.nodes_max}")
    if not 1 <= shards <= DEFAULT.shards_max:
        raise invalid("shards", f"{shards} is not in 1..{DEFAULT.shards_max}")
    if replicas < 1:
        raise invalid("replicas", f"{replicas} is not positive")
    if replicas > nodes:
        raise invalid("replicas", f"{replicas} replicas need as many nodes, and there are {nodes}")
    check_zones(zones)


def check_zones(zones: Sequence[str]) -> None:
    for zone in zones:
        try:
            node_name(zone)
        except ValueError:
            raise invalid("zones", f"{zone!r} is not a name of lower-case letters, digits and hyphens") from None


def check_repair_after(seconds: float | None) -> None:
    lowest = DEFAULT.suspect_after_ms / 1000
    if seconds is not None and not lowest < seconds <= REPAIR_S_MAX:
        raise invalid("repair_after_s", f"{seconds:g}, must be above {lowest:g} and at most {REPAIR_S_MAX}")
