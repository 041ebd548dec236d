"""What may be concluded from errors, for every code of the table."""

from __future__ import annotations

import random

import pytest

from client.retry import again, at_deadline, attempt_s, backoff_s, of_call, of_code, settled
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


def test_what_a_failed_call_means() -> None:
    assert of_call(ChannelBroken("x", sent=False))[1] is False
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
