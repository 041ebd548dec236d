"""Errors keep their meaning across grpc, and doubt is never turned into certainty."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken
from cluster.wire.status import CODE_KEY, DETAILS_BYTES_MAX, from_rpc_error, to_status


def rpc_error(status: grpc.StatusCode, text: str, trailing: tuple = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=text)


@pytest.mark.parametrize("code", [c for c in Code if c is not Code.OK])
def test_every_code_comes_back_as_itself(code: Code) -> None:
    status, text, trailing = to_status(TenfoldError(code, "why", leader="n2", floor=7, open=True))
    assert status is not grpc.StatusCode.OK
    back = from_rpc_error(rpc_error(status, text, trailing))
    assert isinstance(back, TenfoldError)
    assert (back.code, back.message) == (code, "why")
    assert back.details == {"leader": "n2", "floor": 7, "open": True}


def test_details_that_do_not_fit_are_left_out() -> None:
    _, text, trailing = to_status(
        TenfoldError(Code.NOT_LEADER, "m" * 10_000, leader="x" * DETAILS_BYTES_MAX, raw=b"\0")
    )
    assert [key for key, _ in trailing] == [CODE_KEY]
    assert len(text) == 1024


@pytest.mark.parametrize("number", ["12345", "x", ""])
def test_a_code_not_in_the_table_concludes_nothing(number: str) -> None:
    back = from_rpc_error(rpc_error(grpc.StatusCode.FAILED_PRECONDITION, "new", ((CODE_KEY, number),)))
    assert isinstance(back, TenfoldError)
    assert not back.definite


def test_only_a_connection_never_made_is_surely_unsent() -> None:
    never = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: x"))
    assert isinstance(never, ChannelBroken) and not never.sent
    for text in ("Socket closed", "Connection reset by peer", "GOAWAY received", ""):
        broken = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, text))
        assert isinstance(broken, ChannelBroken) and broken.sent


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED])
def test_grpc_s_own_failures_are_a_broken_channel(status: grpc.StatusCode) -> None:
    broken = from_rpc_error(rpc_error(status, "Internal error from Core"))
    assert isinstance(broken, ChannelBroken) and broken.sent


def test_too_large_a_request_is_the_caller_s_mistake_but_of_too_large_a_reply_nothing_is_known() -> None:
    sent = from_rpc_error(
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger than max (9 vs. 8)")
    )
    assert isinstance(sent, TenfoldError) and sent.code is Code.INVALID_ARGUMENT
    got = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max"))
    assert isinstance(got, ChannelBroken) and got.sent
