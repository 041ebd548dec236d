"""node.json: what is taken, what is refused and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.errors import Code, TenfoldError
from cluster.limits import DEFAULT
from node.config import NodeConfig, read_config

PATH = Path("node.json")
BIRTH: dict[str, Any] = {
    "format": 1,
    "cluster_id": bytes(range(16)).hex(),
    "node": "n1",
    "address": "127.0.0.1:0",
    "shards": 2,
    "replication_factor": 1,
    "members": [{"node": "n1", "address": "127.0.0.1:7001"}, {"node": "n2", "address": "127.0.0.1:7002", "zone": "z"}],
}
JOINING: dict[str, Any] = {
    "format": 1,
    "cluster_id": bytes(range(16)).hex(),
    "node": "n4",
    "address": "127.0.0.1:0",
    "zone": "east",
    "join": ["127.0.0.1:7001", "127.0.0.1:7002"],
}


def read(told: dict[str, Any]) -> NodeConfig:
    return read_config(msgspec.json.encode(told), PATH)


def test_a_node_of_the_birth_knows_the_first_map() -> None:
    first = read(BIRTH).first_map()
    assert first.epoch == 1 and [member.node for member in first.members] == ["n1", "n2"] and len(first.shards) == 3


def test_a_node_that_joins_knows_nobody_yet() -> None:
    config = read(JOINING)
    assert config.join == JOINING["join"] and config.zone == "east"
    first = config.first_map()
    assert (first.cluster_id, first.epoch, len(first.members), len(first.shards)) == (bytes(range(16)), 0, 0, 0)


def test_the_time_until_a_repair_is_overridden() -> None:
    assert read(BIRTH).limits(DEFAULT) == DEFAULT
    changed = read(BIRTH | {"repair_after_s": 2.5}).limits(DEFAULT)
    assert changed.down_after_ms == 2500 and changed.suspect_after_ms == DEFAULT.suspect_after_ms


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (BIRTH | {"format": 2}, "format: 2 is newer"),
        (BIRTH | {"cluster_id": "zz"}, "cluster_id"),
        (BIRTH | {"node": "n3"}, "'n3' is not among the members"),
        (BIRTH | {"members": []}, "is not among the members"),
        (BIRTH | {"shards": 0}, "shards: 0"),
        (BIRTH | {"replication_factor": 3}, "replication_factor: 3"),
        (BIRTH | {"unknown": 1}, "unknown"),
        (BIRTH | {"repair_after_s": 1}, "repair_after_s: 1, must be above 2"),
        (BIRTH | {"repair_after_s": 1e9}, "repair_after_s: 1e+09"),
        (JOINING | {"node": "N 4"}, "node: 'N 4' must match"),
        (JOINING | {"join": ["nowhere"]}, "join: 'nowhere' is not host:port"),
        (JOINING | {"join": []}, "is not among the members"),
        (JOINING | {"shards": 2}, "join: a node that joins learns"),
        (JOINING | {"members": BIRTH["members"]}, "join: a node that joins learns"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(told: dict[str, Any], text: str) -> None:
    with pytest.raises(TenfoldError) as caught:
        read(told)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith("node.json: ") and text in caught.value.message
