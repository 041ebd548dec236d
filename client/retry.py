"""Who may try again, and what an operation ends as. The law: nothing but the error table decides.

An attempt that ends definitely has not happened; one that ends indefinitely leaves the operation in doubt, and only an answer
under the same session and sequence settles that. So an operation ends ok, definitely failed or unknown, and a deadline that
passes while any attempt is in doubt is never told as a failure.
"""

from __future__ import annotations

from cluster.errors import Code, TenfoldError
from cluster.limits import Limits
from cluster.ports import ChannelBroken, Random


def backoff_s(failures: int, limits: Limits, random: Random) -> float:
    """Seconds to wait after so many failures in a row (from 1): doubled each time, bounded, with jitter of a half."""
    assert failures >= 1
    longest = min(limits.client_backoff_ms_max, limits.client_backoff_ms_min << min(failures - 1, 16))
    return longest * (0.5 + random.random() / 2) / 1000


def attempt_s(attempts: int, limits: Limits) -> float:
    """Seconds that attempt number `attempts` (from 1) may take; more each time, since what is slow must end some time."""
    return (limits.client_attempt_ms << min(attempts - 1, 2)) / 1000


def of_code(code: int, message: str) -> TenfoldError:
    """The error a reply names. A code this client does not know is a newer node's: nothing may be concluded from it."""
    try:
        known = Code(code)
    except ValueError:
        return TenfoldError(Code.INTERNAL, f"unknown code {code}: {message}")
    return TenfoldError(known, message)


def of_call(error: Exception) -> tuple[TenfoldError, bool]:
    """What a failed call means for each request in it: the error, and whether the call may have had an effect."""
    match error:
        case TenfoldError():
            return error, not error.definite
        case ChannelBroken():
            code = Code.UNAVAILABLE if error.sent else Code.UNREACHABLE
            return TenfoldError(code, _plain(str(error))), error.sent
        case TimeoutError():
            return TenfoldError(Code.UNAVAILABLE, "no answer from the node"), True
        case _:
            return TenfoldError(Code.INTERNAL, f"{type(error).__name__}: {error}"), True


ATTEMPT_OVER = (Code.DEADLINE_PASSED, Code.DEADLINE_EXCEEDED)
"""An attempt has a deadline of its own, shorter than the operation's: a node that could not answer in it says so."""

ASK_ANOTHER = (*ATTEMPT_OVER, Code.MAP_BEHIND)
"""Besides the codes after which something is to be learnt: the node is slow, or has not heard yet of what it is to hold."""


def again(error: TenfoldError, left_s: float) -> bool:
    """Whether to try again, `left_s` seconds before the operation's deadline."""
    return error.retriable or (error.code in ATTEMPT_OVER and left_s > 0)


def settled(error: TenfoldError, in_doubt: bool) -> TenfoldError:
    """How an operation ends by an error that is not tried again. A definite error speaks of its own attempt only: if an earlier
    one is in doubt, the operation is unknown."""
    if not in_doubt or not error.definite:
        return error
    code = Code.DEADLINE_EXCEEDED if error.code is Code.DEADLINE_PASSED else Code.UNKNOWN_OUTCOME
    return TenfoldError(code, f"an earlier attempt is in doubt; the last one: {describe(error)}")


class Trouble:
    """What the attempts of one shard's requests have met since `since`, none of them having been answered OK."""

    __slots__ = ("leaderless", "reached", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.leaderless = False  # a replica answered that it does not lead and knows of no leader
        self.reached = False  # some attempt was sent

    def add(self, error: TenfoldError, hint: str) -> None:
        self.leaderless = self.leaderless or (error.code is Code.NOT_LEADER and not hint)
        self.reached = self.reached or error.code is not Code.UNREACHABLE


WITHOUT_LEADER = frozenset({Code.NOT_LEADER, Code.SHUTTING_DOWN, Code.UNKNOWN_OUTCOME, Code.UNAVAILABLE, *ATTEMPT_OVER})
"""What attempts end by while a shard has no leader, besides UNREACHABLE."""


def at_deadline(
    in_doubt: bool, last: TenfoldError | None, shard: int = 0, trouble: Trouble | None = None, now: float = 0.0
) -> TenfoldError:
    """How an operation on `shard` ends when its deadline passes. `in_doubt`: it may have been applied. `last` is the last error
    of its attempts, or of what they wait for."""
    found = _why(last, trouble, now)
    where = f"shard {shard}: " if shard else ""
    if in_doubt:
        return TenfoldError(Code.DEADLINE_EXCEEDED, f"{where}{found.message}; it may have been applied or not")
    certainty = "; nothing was applied" if found.code is Code.DEADLINE_PASSED else ""
    return TenfoldError(found.code, f"{where}{found.message}{certainty}", **found.details)


def _why(last: TenfoldError | None, trouble: Trouble | None, now: float) -> TenfoldError:
    """A definite error that says what kept the operation from its end."""
    code = last.code if last is not None else None
    tried = f" for {max(0.0, now - trouble.since):.1f} s" if trouble is not None else ""
    leaderless = trouble is not None and trouble.leaderless and (code is Code.UNREACHABLE or code in WITHOUT_LEADER)
    if leaderless or code is Code.NOT_LEADER:
        asked = "is a majority of its replicas up? `tenfold status` shows"
        return TenfoldError(Code.NOT_LEADER, f"no leader found{tried}; {asked}")
    if last is None:
        return TenfoldError(Code.DEADLINE_PASSED, "no answer within the deadline")
    if code is Code.UNREACHABLE and (trouble is None or not trouble.reached):
        asked = "is the cluster up? `tenfold status` shows"
        return TenfoldError(Code.UNREACHABLE, f"none of its replicas could be reached{tried} ({last.message}); {asked}")
    if last.definite and code not in (Code.DEADLINE_PASSED, Code.UNREACHABLE):
        return TenfoldError(last.code, f"{last.message}; tried until the deadline", **last.details)
    return TenfoldError(Code.DEADLINE_PASSED, f"no answer within the deadline; the last error: {describe(last)}")


def _plain(text: str) -> str:
    """grpc's account of a connection that was not made, in a few words."""
    if "connection refused" in text.lower():
        return "connection refused"
    if text.startswith("failed to connect") and ("timed out" in text or "Timeout" in text):
        return "no answer"
    return text


def describe(error: TenfoldError) -> str:
    return f"{error.code.name}: {error.message}"
