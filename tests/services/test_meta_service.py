"""What the meta service refuses; and that the folder's listing is the registry."""

from __future__ import annotations

import pytest

from cluster.errors import Code, TenfoldError
from cluster.ring.shard_map import first_map
from node.capabilities import discover
from node.services.capability import CapabilityService
from node.services.meta import Service
from proto.gen.meta_pb2 import (
    AddReplica,
    JoinMember,
    Member,
    MetaCommand,
    MetaQuery,
    RetireReplica,
    SetRebalancing,
    SetState,
    SettleShard,
    ShardMap,
)
from tests.machines.shard_world import tiny

LIMITS = tiny(shards_max=4)


def born(nodes: int = 3, shards: int = 4) -> ShardMap:
    members = [(f"n{number}", f"127.0.0.1:{7000 + number}", "") for number in range(nodes)]
    return first_map(b"c" * 16, members, shards, 3)


def broken(field: str) -> ShardMap:
    changed = born()
    if field == "epoch":
        changed.epoch = 0
    elif field == "members":
        changed.members[1].address = changed.members[0].address
    elif field == "shards":
        del changed.shards[:]
    else:
        changed.cluster_id = b""
    return changed


def refused(command: MetaCommand, shard: int = 0) -> TenfoldError:
    with pytest.raises(TenfoldError) as raised:
        Service(LIMITS).command(command.SerializeToString(), shard, 4)
    return raised.value


INVALID = [
    (MetaCommand(), "command: must be one of bootstrap, set_member, join, set_state, remove_member, add_replica,"),
    (MetaCommand(bootstrap=broken("cluster_id")), "bootstrap.cluster_id"),
    (MetaCommand(bootstrap=broken("epoch")), "bootstrap.epoch"),
    (MetaCommand(bootstrap=broken("members")), "bootstrap.members"),
    (MetaCommand(bootstrap=ShardMap()), "bootstrap.members: 0, must be 1 to 3"),
    (MetaCommand(bootstrap=broken("shards")), "bootstrap.shards: 0, must be 2 to 5"),
    (MetaCommand(bootstrap=born(nodes=4)), "bootstrap.members: 4, must be 1 to 3"),
    (MetaCommand(bootstrap=born(shards=5)), "bootstrap.shards: 6, must be 2 to 5"),
    (MetaCommand(set_member=Member(node="Node", address="h:1")), "set_member.node"),
    (MetaCommand(set_member=Member(node="n1", address="h")), "set_member.address: 'h' is not host:port"),
    (MetaCommand(set_member=Member(node="n1", address="h:0")), "set_member.address"),
    (MetaCommand(set_member=Member(node="n1", address="h:65536")), "set_member.address"),
    (MetaCommand(set_member=Member(node="n1", address="h:\u0663")), "set_member.address"),
    (MetaCommand(set_member=Member(node="n1", address="h" * 254 + ":1")), "set_member.address: 256 bytes"),
    (MetaCommand(set_member=Member(node="n1", address="h:1", zone="z" * 256)), "set_member.zone"),
    (MetaCommand(join=JoinMember(member=Member(node="Node", address="h:1"))), "join.member.node"),
    (MetaCommand(join=JoinMember(member=Member(node="n1", address="h"))), "join.member.address: 'h' is not host:port"),
    (MetaCommand(join=JoinMember()), "join.member.node"),
    (MetaCommand(set_state=SetState(node="../n1", state=Member.UP)), "set_state.node"),
    (MetaCommand(set_state=SetState(node="n1", state=9)), "set_state.state: 9, must be 0 to 4"),  # type: ignore[arg-type]
    (MetaCommand(set_state=SetState(node="n1", state=Member.JOINING)), "set_state.state: joining is where"),
    (MetaCommand(remove_member="N"), "remove_member.node"),
    (MetaCommand(add_replica=AddReplica(shard=5, node="n1")), "add_replica.shard: 5, must be 0 to 4"),
    (MetaCommand(add_replica=AddReplica(shard=1, node="N")), "add_replica.node"),
    (MetaCommand(retire_replica=RetireReplica(shard=5)), "retire_replica.shard: 5, must be 0 to 4"),
    (MetaCommand(settle=SettleShard(shard=5, voters=[1])), "settle.shard: 5, must be 0 to 4"),
    (MetaCommand(settle=SettleShard(shard=1)), "settle.voters: 0, must be 1 to 3"),
    (MetaCommand(settle=SettleShard(voters=[1, 2, 3, 4])), "settle.voters: 4, must be 1 to 3"),
    (MetaCommand(settle=SettleShard(voters=[1, 1])), "settle.voters: must be positive, each named once"),
    (MetaCommand(settle=SettleShard(voters=[1], order=[0])), "settle.order: must be positive, each named once"),
    (MetaCommand(settle=SettleShard(voters=[1, 2], learners=[2])), "settle.learners: 2 is among the voters"),
]


@pytest.mark.parametrize(
    ("command", "words"), INVALID, ids=[f"{n} {words[:24]}" for n, (_, words) in enumerate(INVALID)]
)
def test_a_command_that_makes_no_sense_is_refused_by_field(command: MetaCommand, words: str) -> None:
    error = refused(command)
    assert error.code is Code.INVALID_ARGUMENT and words in error.message


def test_what_makes_sense_passes() -> None:
    for command in (
        MetaCommand(bootstrap=born()),
        MetaCommand(set_member=Member(node="n1", address="[::1]:7000", zone="a")),
        MetaCommand(join=JoinMember(member=Member(node="n9", address="h:1"), lost=True)),
        MetaCommand(set_state=SetState(node="n1", state=Member.LEAVING)),
        MetaCommand(remove_member="n1"),
        MetaCommand(add_replica=AddReplica(shard=4, version=1, node="n1", replaces=2)),
        MetaCommand(retire_replica=RetireReplica(shard=0, version=1, replica=1)),
        MetaCommand(settle=SettleShard(shard=4, version=1, voters=[1, 2], learners=[3], order=[2, 1])),
        MetaCommand(set_rebalancing=SetRebalancing(on=True)),
    ):
        parsed, written = Service(LIMITS).command(command.SerializeToString(), 0, 4)
        assert parsed == command and written
    assert Service(LIMITS).query(MetaQuery().SerializeToString(), 0, 4) == MetaQuery()


def test_meta_is_asked_of_shard_zero_only_and_in_its_own_words() -> None:
    service = Service(LIMITS)
    assert refused(MetaCommand(bootstrap=born()), shard=1).code is Code.WRONG_SHARD
    for check in (service.command, service.query):
        for body, words in ((b"\xff\xff", "body: not a Meta"), (b"\0" * 4097, "body: 4097 bytes")):
            with pytest.raises(TenfoldError, match=words):
                check(body, 0, 4)
    with pytest.raises(TenfoldError) as raised:
        service.query(b"", 1, 4)
    assert raised.value.code is Code.WRONG_SHARD


def test_the_folder_is_the_registry() -> None:
    found: dict[str, CapabilityService] = discover(LIMITS)
    assert list(found) == sorted(found) and {"kv", "meta"} <= set(found)
    for name, service in found.items():
        assert service.name == service.machine().name == name
        assert service.machine() is not service.machine()
