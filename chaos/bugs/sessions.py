"""Bugs of sessions and of what callers are told."""

from __future__ import annotations

import asyncio
from typing import Any

from chaos.bugs.patch import Bug, Patch
from client import retry, shard_queue
from client.flights import CommandFlight
from client.shard_queue import ShardQueue
from cluster.errors import Code, TenfoldError
from node.machines.sessions import Sessions
from node.replica import Replica
from node.tickets import Proposal
from proto.gen import entry_pb2

ADMIT = Sessions.admit
FOLLOW_ROLE = Replica._follow_role
MAKE_PROPOSAL = Proposal.__init__
IDLE_S = 1.0


def _always_admit(sessions: Sessions, session: int, sequence: int, low_water: int, index: int, view: Any) -> Any:
    outcome = ADMIT(sessions, session, sequence, low_water, index, view)
    held = sessions._sessions.get(session)
    if outcome is not None and held is not None and sequence in held.sizes:
        held.bytes -= held.sizes.pop(sequence)
        return None
    return outcome


def _admit_below(sessions: Sessions, session: int, sequence: int, low_water: int, index: int, view: Any) -> Any:
    outcome = ADMIT(sessions, session, sequence, low_water, index, view)
    held = sessions._sessions.get(session)
    return None if held is not None and sequence <= held.low_water else outcome


def _any_session(sessions: Sessions, session: int, sequence: int, low_water: int, index: int, view: Any) -> Any:
    """The answer of whoever used that sequence."""
    if session in sessions._sessions:
        for other, held in sessions._sessions.items():
            if sequence in held.sizes:
                return sessions._kept(other, sequence, view)
    return ADMIT(sessions, session, sequence, low_water, index, view)


def _expire_by_own_clock(sessions: Sessions, session: int, sequence: int, low_water: int, index: int, view: Any) -> Any:
    """The time of the process that applies: every replica has another."""
    now = asyncio.get_running_loop().time()
    used: dict[int, float] = sessions.__dict__.setdefault("_used_at", {})
    if session in sessions._sessions and now - used.get(session, now) > IDLE_S:
        sessions._drop(session, view)
    used[session] = now
    return ADMIT(sessions, session, sequence, low_water, index, view)


def _never_in_doubt(in_doubt: bool, last: TenfoldError | None, *rest: Any) -> TenfoldError:
    return TenfoldError(Code.DEADLINE_PASSED, "the deadline passed")


def _follow_role_definitely(replica: Replica) -> None:
    led_term = replica.core.term if replica.core.role == "leader" else 0
    if led_term != replica._led_term and replica.leading:
        for proposal in replica._take_proposals():
            proposal.fail(Code.NOT_LEADER)
    FOLLOW_ROLE(replica)


def _keep_waiting(replica: Replica) -> None:
    """Who proposed at an index gets the answer of whatever is applied there."""
    kept = dict(replica._proposed)
    replica._proposed.clear()
    FOLLOW_ROLE(replica)
    replica._proposed.update(kept)


def _write_keys_at_will(proposal: Proposal, latch: Any, request: entry_pb2.Request, command: Any, writes: Any) -> None:
    MAKE_PROPOSAL(proposal, latch, request, command, frozenset())


def _try_again_under_another(queue: ShardQueue, flight: CommandFlight, error: TenfoldError) -> bool:
    """A request in doubt goes out anew when its session is gone."""
    if queue._session is flight.session:
        queue._session = None
    flight.close()
    queue._put_back(flight.pending)
    return True


SESSION_BUGS = (
    Bug("applies-twice", "a resent request is applied again", (Patch(Sessions, "admit", _always_admit),)),
    Bug(
        "reopens-what-was-closed",
        "a copy that comes after its sequence was closed is applied again",
        (Patch(Sessions, "admit", _admit_below),),
    ),
    Bug(
        "answers-another-session",
        "duplicates are known by their sequence, whatever their session",
        (Patch(Sessions, "admit", _any_session),),
    ),
    Bug(
        "sessions-by-own-clock",
        "a session expires by the clock of the replica that applies",
        (Patch(Sessions, "admit", _expire_by_own_clock),),
    ),
    Bug(
        "retries-under-another-session",
        "a client sends what is in doubt again under a new session",
        (Patch(ShardQueue, "_session_expired", _try_again_under_another),),
        taste="bad lines",
    ),
    Bug(
        "timeout-is-failure",
        "a deadline that passes is told as a failure",
        (Patch(shard_queue, "at_deadline", _never_in_doubt), Patch(retry, "at_deadline", _never_in_doubt)),
    ),
    Bug(
        "deposed-is-definite",
        "a deposed leader fails what it proposed as definitely not applied",
        (Patch(Replica, "_follow_role", _follow_role_definitely),),
        taste="fresh leaders",
    ),
    Bug(
        "takes-anothers-result",
        "the entry of another leader at the same index answers a proposal",
        (Patch(Replica, "_follow_role", _keep_waiting),),
    ),
    Bug(
        "two-writes-one-version",
        "requests that write one key share a log entry",
        (Patch(Proposal, "__init__", _write_keys_at_will),),
    ),
)
