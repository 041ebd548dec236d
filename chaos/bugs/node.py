"""Bugs of storage, sessions, snapshots and the client."""

from __future__ import annotations

from typing import Any

from chaos.bugs.patch import Bug, Patch
from client import retry, shard_queue
from cluster.errors import Code, TenfoldError
from node.machines.sessions import Sessions
from node.replica import Replica
from node.shard_clock import ShardClock
from node.storage.log import Log
from node.storage.view import NodeState


async def _no_sync(log: Log) -> None:
    """Says it is durable, and is not; segments roll as they should."""
    log._synced = True
    if log._size >= log._roll_at:
        await log._roll()


async def _flush_of_later(state: NodeState) -> Any:
    """Takes what is applied after the flush for durable."""
    await state.engine.flush()
    state.durable_applied = state._applied()
    return state.durable_applied


def _release_all(log: Log, durable_applied: Any) -> int:
    """Deletes segments that hold what only memory has."""
    return ORIGINAL_RELEASE(log, {shard: (known.replica, known.commit) for shard, known in log._shards.items()})


ORIGINAL_RELEASE = Log.release
ORIGINAL_ADMIT = Sessions.admit


def _always_admit(sessions: Sessions, session: int, sequence: int, low_water: int, index: int, view: Any) -> Any:
    """Applies a resent request again."""
    outcome = ORIGINAL_ADMIT(sessions, session, sequence, low_water, index, view)
    held = sessions._sessions.get(session)
    if outcome is not None and held is not None and sequence in held.sizes:
        held.bytes -= held.sizes.pop(sequence)
        return None
    return outcome


def _never_in_doubt(in_doubt: bool, last: TenfoldError | None) -> TenfoldError:
    """Reports a timeout as a failure."""
    return TenfoldError(Code.DEADLINE_PASSED, "the deadline passed")


def _forget_nothing(replica: Replica) -> None:
    """Loss of leadership fails what was proposed, as if it could not be applied any more."""
    for proposal in replica._take_proposals():
        proposal.fail(Code.NOT_LEADER)


def _follow_role_definitely(replica: Replica) -> None:
    led_term = replica.core.term if replica.core.role == "leader" else 0
    if led_term != replica._led_term and replica.leading:
        _forget_nothing(replica)
    ORIGINAL_FOLLOW_ROLE(replica)


ORIGINAL_FOLLOW_ROLE = Replica._follow_role


def _time_goes_back(clock: ShardClock, time_ms: int, now: float) -> None:
    clock.time_ms, clock.running, clock._at, clock._fraction_ms = time_ms, True, now, 0.0


NODE_BUGS = (
    Bug("no-fsync", "the log is never synced", (Patch(Log, "sync", _no_sync),)),
    Bug("flush-covers-later", "durable-applied is read after the flush", (Patch(NodeState, "flush", _flush_of_later),)),
    Bug("releases-too-early", "segments go before the state is flushed", (Patch(Log, "release", _release_all),)),
    Bug("applies-twice", "a resent request is applied again", (Patch(Sessions, "admit", _always_admit),)),
    Bug(
        "timeout-is-failure",
        "a deadline that passes is told as a failure",
        (Patch(shard_queue, "at_deadline", _never_in_doubt), Patch(retry, "at_deadline", _never_in_doubt)),
    ),
    Bug(
        "deposed-is-definite",
        "a deposed leader fails what it proposed as definitely not applied",
        (Patch(Replica, "_follow_role", _follow_role_definitely),),
    ),
)
