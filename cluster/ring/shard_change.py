"""The lawful changes of one shard's row: a learner comes, a replica goes, and what the shard's group has reached is settled.

Laws: one change per shard at a time; a replica's id is given once; a change made for another version of the row is refused,
so that two who plan from the same map never undo each other. A function here changes the row it is given and says whether it
did; a refusal (TenfoldError) names field and reason and comes before anything was changed. The row's version is raised by the caller.
"""

from __future__ import annotations

from cluster.errors import Code, TenfoldError, invalid
from cluster.ring.shard_map import LEARNER, LEAVING, VOTER, changing, replica, voters
from proto.gen.meta_pb2 import AddReplica, Replica, RetireReplica, SettleShard, Shard


def check_version(shard: Shard, version: int) -> None:
    """MAP_CHANGED if a command was made for another placement."""
    if version != shard.version:
        raise TenfoldError(Code.MAP_CHANGED, f"shard {shard.id}: version {version}, now {shard.version}")


def add(shard: Shard, command: AddReplica, epoch: int) -> int:
    """Lists a learner of the map of `epoch`; the replica it replaces, if any, leaves. The new one's id. It stands behind the one it
    replaces, so that it takes over its place in the preference order."""
    check_version(shard, command.version)
    _check_settled(shard)
    replaced = _replaced(shard, command.replaces)
    present = next((each for each in shard.replicas if each.node == command.node), None)
    if present is not None and present is not replaced:
        raise TenfoldError(
            Code.ALREADY_EXISTS, f"add_replica.node: {command.node!r} has replica {present.id} of shard {shard.id}"
        )
    if present is not None and len(voters(shard)) == 1:
        raise invalid(
            "add_replica.replaces", f"{present.id} is shard {shard.id}'s only voter: nothing to rebuild it from"
        )
    new = Replica(id=shard.next_replica_id, node=command.node, stage=LEARNER, epoch=epoch)
    shard.next_replica_id += 1
    rows = list(shard.replicas)
    if replaced is None:
        rows.append(new)
    else:
        replaced.stage = LEAVING
        rows.insert(rows.index(replaced) + 1, new)
    _set(shard, rows)
    return new.id


def retire(shard: Shard, command: RetireReplica) -> bool:
    """A voter goes, if another stays; or a learner is given up, and what it was to replace stays. Where that shared its node its
    memory may be gone already, so it goes too. With `undo` a voter that was to go without a successor stays: whoever asks for it has
    seen that it still votes."""
    check_version(shard, command.version)
    found = replica(shard, command.replica)
    if found is None:
        raise invalid("retire_replica.replica", f"shard {shard.id} has no replica {command.replica}")
    if command.undo:
        return _keep(shard, found)
    if found.stage == LEAVING:
        return False
    if found.stage == LEARNER:
        for each in shard.replicas:
            if each.stage == LEAVING and each.node != found.node:
                each.stage = VOTER
    else:
        _check_settled(shard)
        if len(voters(shard)) == 1:
            raise invalid("retire_replica.replica", f"{found.id} is shard {shard.id}'s only voter")
    found.stage = LEAVING
    return True


def settle(shard: Shard, command: SettleShard) -> bool:
    """The group has committed a configuration of these voters and learners: learners that vote are voters, leaving ones that are in
    neither list are gone. `order`, if given, lists all voters of the row as it is then."""
    check_version(shard, command.version)
    ids = {each.id for each in shard.replicas}
    present = {*command.voters, *command.learners}
    if not command.voters:
        raise invalid("settle.voters", "there must be one")
    if unknown := sorted(present - ids):
        raise invalid("settle.voters", f"shard {shard.id} has no replica {unknown[0]}")
    rows = [each for each in shard.replicas if each.stage != LEAVING or each.id in present]
    promoted = [each for each in rows if each.stage == LEARNER and each.id in command.voters]
    voting = [each for each in rows if each.stage == VOTER or each in promoted]
    if command.order:
        by_id = {each.id: each for each in voting}
        if sorted(command.order) != sorted(by_id):
            raise invalid("settle.order", f"must list each voter once: {sorted(by_id)}, not {sorted(command.order)}")
        others = [each for each in rows if each.id not in by_id]
        rows = [by_id[number] for number in command.order] + others
    changed = bool(promoted) or [each.id for each in rows] != [each.id for each in shard.replicas]
    for each in promoted:
        each.stage = VOTER
    _set(shard, rows)
    return changed


def _keep(shard: Shard, found: Replica) -> bool:
    if found.stage == VOTER:
        return False
    others = [each.id for each in shard.replicas if each.stage != VOTER and each is not found]
    if found.stage == LEARNER or others:
        raise invalid(
            "retire_replica.undo", f"{found.id} does not leave shard {shard.id} alone and without a successor"
        )
    found.stage = VOTER
    return True


def _replaced(shard: Shard, number: int) -> Replica | None:
    if not number:
        return None
    found = replica(shard, number)
    if found is None:
        raise invalid("add_replica.replaces", f"shard {shard.id} has no replica {number}")
    return found


def _check_settled(shard: Shard) -> None:
    if changing(shard):
        under_way = ", ".join(str(each.id) for each in shard.replicas if each.stage != VOTER)
        raise TenfoldError(Code.MAP_CHANGED, f"shard {shard.id}: a change is under way (replica {under_way})")


def _set(shard: Shard, rows: list[Replica]) -> None:
    kept = [Replica.FromString(each.SerializeToString()) for each in rows]
    del shard.replicas[:]
    shard.replicas.extend(kept)
