"""What may be concluded from errors, for every code of the table."""

from __future__ import annotations

import random

import pytest

from client.retry import Trouble, again, at_deadline, attempt_s, backoff_s, of_call, of_code, settled
from cluster.errors import TABLE, Code, TenfoldError
from cluster.limits import DEFAULT
from cluster.ports import ChannelBroken

ERRORS = [code for code in Code if code is not Code.OK]


@pytest.mark.parametrize("code", ERRORS)
def test_an_operation_in_doubt_never_ends_as_a_definite_failure(code: Code) -> None:
    assert not settled(TenfoldError(code), in_doubt=True).definite
    assert not at_deadline(True, TenfoldError(code)).definite
    assert at_deadline(True, None).code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("code", ERRORS)
def test_without_doubt_an_operation_ends_as_its_error_says(code: Code) -> None:
    assert settled(TenfoldError(code), in_doubt=False).code is code
    assert at_deadline(False, TenfoldError(code)).definite


@pytest.mark.parametrize("code", ERRORS)
def test_only_the_table_decides_what_is_tried_again(code: Code) -> None:
    late = code in (Code.DEADLINE_PASSED, Code.DEADLINE_EXCEEDED)  # of one attempt, while there is time for another
    assert again(TenfoldError(code), 1.0) == (TABLE[code].retriable or late)
    assert again(TenfoldError(code), 0.0) == TABLE[code].retriable


def test_what_an_operation_without_answer_is_told() -> None:
    """(the last error, what else was met, in doubt) and how it ends"""
    not_leader, broken, unsent = Code.NOT_LEADER, Code.UNAVAILABLE, Code.UNREACHABLE
    expected = [
        (None, [], False, Code.DEADLINE_PASSED, "shard 3: no answer within the deadline; nothing was applied"),
        (unsent, [unsent], False, unsent, "shard 3: none of its replicas could be reached for 2.0 s (why); is the"),
        (unsent, [unsent, not_leader], False, not_leader, "shard 3: no leader found for 2.0 s; is a majority of"),
        (broken, [broken, not_leader], False, not_leader, "shard 3: no leader found for 2.0 s"),
        (broken, [broken, not_leader], True, Code.DEADLINE_EXCEEDED, "shard 3: no leader found for 2.0 s"),
        (
            unsent,
            [unsent, broken],
            False,
            Code.DEADLINE_PASSED,
            "shard 3: no answer within the deadline; the last error",
        ),
        (Code.OVERLOADED, [not_leader], False, Code.OVERLOADED, "shard 3: why; tried until the deadline"),
    ]
    for last, met, in_doubt, code, told in expected:
        trouble = Trouble(10.0)
        for each in met:
            trouble.add(TenfoldError(each), "")
        error = at_deadline(in_doubt, TenfoldError(last, "why") if last else None, 3, trouble, 12.0)
        assert error.code is code and error.message.startswith(told), error
        assert error.message.endswith("it may have been applied or not") == in_doubt
        assert error.definite == (not in_doubt)


def test_a_replica_that_names_a_leader_is_not_without_one() -> None:
    trouble = Trouble(0.0)
    trouble.add(TenfoldError(Code.NOT_LEADER), "n2")
    assert not trouble.leaderless and trouble.reached


def test_what_a_failed_call_means() -> None:
    refused, effect = of_call(
        ChannelBroken("failed to connect to all addresses; x: Connection refused (111)", sent=False)
    )
    assert (refused.code, refused.message, effect) == (Code.UNREACHABLE, "connection refused", False)
    assert of_call(ChannelBroken("failed to connect to all addresses; timed out", sent=False))[0].message == "no answer"
    assert of_call(ChannelBroken("x"))[0].code is Code.UNAVAILABLE
    assert of_call(ChannelBroken("x"))[1] is True
    assert of_call(TimeoutError())[1] is True
    assert of_call(TenfoldError(Code.OVERLOADED))[1] is False
    assert of_call(TenfoldError(Code.INTERNAL))[1] is True
    assert of_call(ValueError("a bug"))[0].code is Code.INTERNAL
    assert of_code(12345, "?").code is Code.INTERNAL, "nothing may be concluded from an unknown code"


def test_backoff_grows_to_its_bound_with_jitter() -> None:
    chance = random.Random(3)
    waits = [[backoff_s(failures, DEFAULT, chance) * 1000 for _ in range(50)] for failures in range(1, 40)]
    for failures, drawn in enumerate(waits, 1):
        longest = min(200, 10 * 2 ** (failures - 1))
        assert all(longest / 2 <= wait <= longest for wait in drawn)
        assert len(set(drawn)) > 10
    assert [attempt_s(n, DEFAULT) for n in (1, 2, 3, 4)] == [2, 4, 8, 8]
