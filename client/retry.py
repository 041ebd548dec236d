"""Who may try again, and what an operation ends as. The law: nothing but the error table decides.

An attempt that ends definitely has not happened; one that ends indefinitely leaves the operation in doubt, and only an answer
under the same session and sequence settles that. So an operation ends ok, definitely failed or unknown, and a deadline that
passes while any attempt is in doubt is never told as a failure.
"""

from __future__ import annotations

from cluster.errors import TABLE, Code, TenfoldError
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
            return TenfoldError(Code.UNAVAILABLE, str(error)), error.sent
        case TimeoutError():
            return TenfoldError(Code.UNAVAILABLE, "no answer from the node"), True
        case _:
            return TenfoldError(Code.INTERNAL, f"{type(error).__name__}: {error}"), True


ATTEMPT_OVER = (Code.DEADLINE_PASSED, Code.DEADLINE_EXCEEDED)
"""An attempt has a deadline of its own, shorter than the operation's: a node that could not answer in it says so."""


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


def at_deadline(in_doubt: bool, last: TenfoldError | None) -> TenfoldError:
    """How an operation ends when its deadline passes. `last` is the last error of its attempts, or of what they wait for."""
    told = f"; the last error: {describe(last)}" if last is not None else ""
    if in_doubt:
        return TenfoldError(Code.DEADLINE_EXCEEDED, TABLE[Code.DEADLINE_EXCEEDED].meaning + told)
    if last is not None and last.definite and last.code is not Code.DEADLINE_PASSED:
        return TenfoldError(last.code, f"{last.message}; tried until the deadline", **last.details)
    return TenfoldError(Code.DEADLINE_PASSED, TABLE[Code.DEADLINE_PASSED].meaning + told)


def describe(error: TenfoldError) -> str:
    return f"{error.code.name}: {error.message}"
