"""What a handler knows of the call it serves; grpc stays behind it, so that the simulator can pass its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Context:
    """One call being served. A handler whose caller goes away or stops waiting gets CancelledError."""

    __slots__ = ("_cancel", "_grpc", "cancelled", "ended_here")

    def __init__(self, grpc_context: Any, cancel: Callable[[], object] | None = None) -> None:
        self.cancelled = False
        """Nobody waits for the answer any more: the call was answered, broke off or ran out of time."""
        self.ended_here = False
        self._grpc = grpc_context
        self._cancel = cancel
        grpc_context.add_done_callback(self._done)

    @property
    def peer(self) -> str:
        """The caller's address, as "ipv4:127.0.0.1:4711"."""
        return str(self._grpc.peer())

    def remaining_s(self) -> float | None:
        """Seconds until the caller stops waiting; None if it set no deadline."""
        remaining = self._grpc.time_remaining()
        return None if remaining is None else float(remaining)

    def cancel(self) -> None:
        """Ends a streaming call from the server's side: its handler gets CancelledError, its caller UNAVAILABLE."""
        assert self._cancel is not None, "only a stream can be ended from here"
        self.ended_here = True
        self._cancel()

    def _done(self, _: Any) -> None:
        self.cancelled = True
