"""Checks the fencing tokens that come with a command, whatever its capability.

Law: `holder` is set here and by nobody else: the lock lies in the shard of the command, so its present token can be asked for in
the same commit. A lock that is released with a command is among what the command writes, since an entry changes a lock once.
"""

from __future__ import annotations

from collections.abc import Set

from cluster.errors import Code, TenfoldError, invalid
from cluster.limits import Limits
from cluster.ring.ring import shard_of
from node.services.lock import check_name, written
from proto.gen.entry_pb2 import Request


def checked(request: Request, shard: int, shards: int, writes: Set[bytes] | None, limits: Limits) -> Set[bytes] | None:
    """What the request writes, the locks it releases counted. TenfoldError: INVALID_ARGUMENT, CROSS_SHARD."""
    if len(request.fences) > limits.fences_max:
        raise invalid("fences", f"{len(request.fences)}, must be 0 to {limits.fences_max}")
    names: set[str] = set()
    released: set[bytes] = set()
    for position, fence in enumerate(request.fences):
        where = f"fences[{position}]"
        check_name(fence.name, f"{where}.name", limits)
        if fence.name in names:
            raise invalid(f"{where}.name", f"{fence.name!r} is named twice")
        names.add(fence.name)
        if not fence.token:
            raise invalid(f"{where}.token", "0, must be 1 or more")
        home = shard_of(fence.name.encode(), shards)
        fence.holder = home == shard
        if fence.release:
            if home != shard:
                message = f"{where}: {fence.name!r} lies in shard {home}, the command in {shard}; use one hash tag"
                raise TenfoldError(Code.CROSS_SHARD, f"{message} in {{braces}}")
            released.add(written(fence.name))
    if not released:
        return writes
    if writes is None or not writes.isdisjoint(released):
        raise invalid("fences", "a command about locks cannot release one by a fence")
    return writes | released
