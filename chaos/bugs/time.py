"""Bugs of time: shard time, expiry, silence."""

from __future__ import annotations

import asyncio
from typing import Any

from chaos.bugs.patch import Bug, Patch
from cluster.raft import silence
from cluster.raft.state import State
from cluster.types import Role
from node.machines.kv import KvMachine
from node.machines.machine import Stamp
from node.shard_clock import ShardClock
from proto.gen.kv_pb2 import KvAnswer

PULSE = KvMachine.pulse
GET = KvMachine._get
APPLY = KvMachine.apply
START = ShardClock.start
WAKE = silence.wake


def _own_time(machine: KvMachine, stamp: Stamp, view: Any) -> None:
    """Expires by the time of the process that applies."""
    own_ms = int(asyncio.get_running_loop().time() * 1000) % 300
    PULSE(machine, Stamp(stamp.index, stamp.term, stamp.time_ms + own_ms, stamp.wall_ms), view)


def _hide_by_wall(machine: KvMachine, request: Any, view: Any) -> KvAnswer:
    """Hides what the reader's own clock calls expired, before a pulse has said so."""
    answer = GET(machine, request, view)
    loop = asyncio.get_running_loop()
    seen: dict[tuple[bytes, int], float] = machine.__dict__.setdefault("_seen_at", {})
    for item in answer.items:
        if item.version and item.expires_ms:
            first = seen.setdefault((item.key, item.version), loop.time())
            if loop.time() - first > 0.3:
                item.version, item.value = 0, b""
    return answer


def _time_runs_on(clock: ShardClock, time_ms: int, now: float) -> None:
    """While nobody led, time passed too."""
    stood_ms = int((now - clock._at) * 1000) if clock._at else 0
    START(clock, time_ms + stood_ms, now)


def _never_wakes(state: State) -> None:
    """A follower that fell silent stays so, whatever happens to its leader."""
    if state.role is Role.LEADER:
        WAKE(state)


TIME_BUGS = (
    Bug(
        "expires-by-own-clock",
        "a pulse expires by the time of the replica that applies it",
        (Patch(KvMachine, "pulse", _own_time),),
    ),
    Bug(
        "hides-by-own-clock",
        "a read hides what its own clock calls expired",
        (Patch(KvMachine, "_get", _hide_by_wall),),
    ),
    Bug(
        "time-runs-without-leader",
        "shard time goes on while nobody leads",
        (Patch(ShardClock, "start", _time_runs_on),),
    ),
    Bug(
        "never-wakes",
        "a silent follower does not wake when its leader is gone",
        (Patch(silence, "wake", _never_wakes),),
        taste="quiet",
    ),
)
