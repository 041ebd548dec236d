"""How a `TenfoldError` crosses grpc, and what every other grpc status means to a caller.

The code travels as a number in trailing metadata, the message as the status details, and whatever the error's details
hold as JSON; the grpc status itself is only for foreign clients, which know no table. The law of the way back: never say
that nothing happened unless it is sure. A failed connection attempt is sure; a broken connection never is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import grpc

from cluster.errors import Code, TenfoldError
from cluster.ports import ChannelBroken

CODE_KEY = "tenfold-code"
DETAILS_KEY = "tenfold-details-bin"
MESSAGE_CHARACTERS_MAX = 1024
DETAILS_BYTES_MAX = 4096  # far below grpc's bound on metadata (8 KiB by default)

STATUS: dict[Code, grpc.StatusCode] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.WRONG_CLUSTER: grpc.StatusCode.FAILED_PRECONDITION,
    Code.INVALID_CURSOR: grpc.StatusCode.INVALID_ARGUMENT,
    Code.UNKNOWN_CAPABILITY: grpc.StatusCode.UNIMPLEMENTED,
    Code.CROSS_SHARD: grpc.StatusCode.INVALID_ARGUMENT,
    Code.VERSION_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Code.NUMBER_OVERFLOW: grpc.StatusCode.OUT_OF_RANGE,
    Code.COMPACTED: grpc.StatusCode.OUT_OF_RANGE,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Code.DISK_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.DEADLINE_PASSED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.UNKNOWN_OUTCOME: grpc.StatusCode.UNKNOWN,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""Codes without a row travel as FAILED_PRECONDITION."""


def to_status(error: TenfoldError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Status code, details and trailing metadata for an error that leaves a handler."""
    trailing: list[tuple[str, str | bytes]] = [(CODE_KEY, str(int(error.code)))]
    plain = {k: v for k, v in error.details.items() if isinstance(v, str | int | bool)}
    encoded = json.dumps(plain, sort_keys=True).encode()
    if plain and len(encoded) <= DETAILS_BYTES_MAX:
        trailing.append((DETAILS_KEY, encoded))
    status = STATUS.get(error.code, grpc.StatusCode.FAILED_PRECONDITION)
    return status, error.message[:MESSAGE_CHARACTERS_MAX], tuple(trailing)


def from_rpc_error(error: Any) -> Exception:
    """What a caller gets for a grpc.aio.AioRpcError: TenfoldError if the other end said one, else by the status."""
    told = _told(error)
    if told is not None:
        return told
    status, text = error.code(), error.details() or ""
    match status:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError(text or "no answer within the deadline")
        case grpc.StatusCode.UNAVAILABLE:
            return ChannelBroken(text, sent=not _never_connected(text))
        case grpc.StatusCode.UNIMPLEMENTED:
            return TenfoldError(Code.UNKNOWN_CAPABILITY, text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if _request_too_large(text):
            return TenfoldError(Code.INVALID_ARGUMENT, f"message: {text}")
    return ChannelBroken(f"{status.name}: {text}")  # our servers always say their code: this came from grpc itself


def _told(error: Any) -> TenfoldError | None:
    trailing: Iterable[tuple[str, Any]] = error.trailing_metadata() or ()
    found = {key: value for key, value in trailing if key in (CODE_KEY, DETAILS_KEY)}
    if CODE_KEY not in found:
        return None
    details: dict[str, object] = {}
    try:
        code = Code(int(found[CODE_KEY]))
        details = json.loads(found.get(DETAILS_KEY, b"{}"))
    except ValueError:  # a newer node's code, or damage: nothing may be concluded from it
        code = Code.INTERNAL
    return TenfoldError(code, error.details() or "", **details)


def _never_connected(text: str) -> bool:
    """grpc's own words for a call that found no connection; anything else may have been sent."""
    return text.startswith("failed to connect to all addresses")


def _request_too_large(text: str) -> bool:
    """A request over the bound was refused before any handler saw it; of a reply over the bound one knows nothing."""
    lowered = text.lower()
    return "client: sent message larger" in lowered or "server: received message larger" in lowered
