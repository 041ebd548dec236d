"""Bugs of the log on disk, of the state and of snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from chaos.bugs.patch import Bug, Patch
from cluster.raft import follower
from cluster.raft.messages import Message
from node.replica import Replica
from node.snapshots import Sending, Snapshots
from node.storage import log as log_module
from node.storage import record, recovery, segment, snapshot
from node.storage.log import Log
from node.storage.record import Record
from node.storage.recovery import Recovery
from node.storage.view import NodeState, ShardState

RELEASE = Log.release
READ_RECORD = record.read_record
READ_PAIRS = snapshot.read_pairs
CREATE_SEGMENT = segment.create_segment
FLUSH = NodeState.flush
FREEZE = Snapshots._freeze
UNTIL_STREAM_S = 0.05


async def _no_sync(log: Log) -> None:
    """Says it is durable, and is not; segments roll as they should."""
    log._synced = True
    if log._size >= log._roll_at:
        await log._roll()


async def _sync_later(log: Log) -> None:
    """Returns when the sync has begun, so that a round is written before the one before it is durable."""
    if not log._synced:
        log._synced = True
        if log._size >= log._roll_at:
            await log._file.sync()
            await log._roll()
        else:
            task = asyncio.get_running_loop().create_task(log._file.sync())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())


class _NamesNotSynced:
    """A disk whose directories are not synced."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def sync_directory(self, path: str) -> None:
        return None


async def _create_unnamed(disk: Any, *given: Any) -> Any:
    return await CREATE_SEGMENT(_NamesNotSynced(disk), *given)


async def _flush_of_later(state: NodeState) -> Any:
    await state.engine.flush()
    state.durable_applied = state._applied()
    return state.durable_applied


def _release_all(log: Log, durable_applied: Any) -> int:
    return RELEASE(log, {shard: (known.replica, known.commit) for shard, known in log._shards.items()})


def _intact(body: bytes, at: int, sequence: int) -> Record | None:
    record = READ_RECORD(body, at, sequence)
    if record is not None:
        record.intact = True
    return record


def _index_first(state: ShardState, index: int, term: int, time_ms: int) -> None:
    """The applied index goes into the engine at once, what was applied with the next batch."""
    SET_APPLIED(state, index, term, time_ms)
    state._state.write({state._key: state._batch[state._key]})


SET_APPLIED = ShardState.set_applied


def _without(prefix: bytes) -> Any:
    def read(data: bytes) -> Iterator[tuple[bytes, bytes]]:
        return ((key, value) for key, value in READ_PAIRS(data) if not key.startswith(prefix))

    return read


async def _no_flush_between_rounds(state: NodeState) -> Any:
    """The base of the log moves before the snapshot is durable."""
    task = asyncio.current_task()
    if task is not None and task.get_name() == "pump":
        return state.durable_applied
    return await FLUSH(state)


async def _freeze_apart(snapshots: Snapshots, replica: Replica, message: Message) -> Any:
    """The state is frozen at once, and its index read when the stream begins."""
    early: list[Any] = []

    async def job() -> None:
        early.append(replica.state.snapshot())

    await snapshots._pump.exclusively(job)
    try:
        await asyncio.sleep(UNTIL_STREAM_S)
        sending = await FREEZE(snapshots, replica, message)
    except BaseException:
        early[0].close()
        raise
    sending.source.close()
    return Sending(sending.header, early[0], sending.check)


def _want_any(state: Any, message: Message) -> bool:
    """Also one that is older than what is here, or of a leader that is deposed."""
    return bool(message.receiver == state.replica and message.sender != state.replica)


STORAGE_BUGS = (
    Bug("no-fsync", "the log is never synced", (Patch(Log, "sync", _no_sync),)),
    Bug(
        "fsync-comes-later",
        "a round is written before the one before it is durable",
        (Patch(Log, "sync", _sync_later),),
        taste="in the dark",
    ),
    Bug(
        "names-not-synced",
        "a new segment is used before its name is durable",
        (Patch(segment, "create_segment", _create_unnamed), Patch(log_module, "create_segment", _create_unnamed)),
    ),
    Bug(
        "torn-tail-accepted",
        "recovery takes a record whose checksum does not match",
        (Patch(recovery, "read_record", _intact), Patch(Recovery, "_is_whole", lambda *_: True)),
        taste="in the dark",
    ),
    Bug(
        "releases-too-early",
        "segments go before the state is flushed",
        (Patch(Log, "release", _release_all),),
        taste="in the dark",
    ),
    Bug(
        "flush-covers-later",
        "durable-applied is read after the flush",
        (Patch(NodeState, "flush", _flush_of_later),),
        taste="in the dark",
    ),
    Bug(
        "skips-after-a-crash",
        "the applied index is written apart from what was applied",
        (Patch(ShardState, "set_applied", _index_first),),
    ),
    Bug(
        "snapshot-without-sessions",
        "the session table is not in the snapshot",
        (Patch(snapshot, "read_pairs", _without(b"session/")),),
    ),
    Bug(
        "snapshot-without-feed",
        "the change feed is not in the snapshot",
        (Patch(snapshot, "read_pairs", _without(b"feed/")),),
    ),
    Bug(
        "snapshot-ahead-of-state",
        "a snapshot names an index that its state has not applied yet",
        (Patch(Snapshots, "_freeze", _freeze_apart),),
        taste="left behind",
    ),
    Bug(
        "older-snapshot-wins",
        "a snapshot is installed over a newer state",
        (Patch(follower, "wants_snapshot", _want_any),),
        taste="left behind",
    ),
    Bug(
        "base-moves-first",
        "the log's base moves before an installed snapshot is durable",
        (Patch(NodeState, "flush", _no_flush_between_rounds),),
        taste="left behind",
    ),
)
