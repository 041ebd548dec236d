"""Histories of locks written by hand: a script sets the clock and says what happened."""

from __future__ import annotations

import io
from typing import Any

from chaos.checkers import lock
from chaos.checkers.lock import LockFinding
from chaos.history import FEED, EventType, LockFacts, Recorder, header, parse

NAME = "seat"
A, B, C = 10, 20, 30
TTL_MS = 1000


class Script:
    """Writes a history whose clock it sets, in milliseconds."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._file = io.BytesIO()
        self._recorder = Recorder(self._file, header(1, {}, {}), lambda: self.now_ms * 1_000_000)
        self._process = 0

    def at(self, now_ms: int) -> Script:
        assert now_ms >= self.now_ms
        self.now_ms = now_ms
        return self

    def invoke(self, f: str, key: str = NAME, value: str | None = None, **facts: Any) -> tuple[int, str, str]:
        self._process += 1
        asked = LockFacts(**facts)
        self._recorder.record(self._process, "invoke", f, key=key, value=value, shard=1, lock=asked)
        return self._process, f, key

    def done(self, call: tuple[int, str, str], type: EventType = "ok", **fields: Any) -> None:
        process, f, key = call
        self._recorder.record(process, type, f, key=key, shard=1, **fields)

    def ask(
        self, lease: int, *, mode: str = "exclusive", attempt: int = 1, wait_ms: int = 5000, **facts: Any
    ) -> tuple[int, str, str]:
        return self.invoke("acquire", lease=lease, attempt=attempt, mode=mode, ttl_ms=TTL_MS, wait_ms=wait_ms, **facts)

    def granted(self, call: tuple[int, str, str], token: int, *, until_ms: int, queued: int = 0) -> None:
        self.done(call, lock=LockFacts(token=token, index=token, queued=queued, until_ns=until_ms * 1_000_000))

    def take(self, lease: int, token: int, **facts: Any) -> None:
        """Asked and answered at once; believed for 900 ms."""
        call = self.ask(lease, **facts)
        self.held(lease, token)
        self.granted(call, token, until_ms=self.now_ms + 900)

    def held(self, lease: int, token: int, index: int = 0) -> None:
        facts = LockFacts(lease=lease, attempt=1, token=token, index=index or token)
        self._recorder.record(FEED, "ok", "holder", key=NAME, shard=1, lock=facts)

    def free(self, index: int) -> None:
        self._recorder.record(FEED, "ok", "free", key=NAME, shard=1, lock=LockFacts(index=index))

    def release(self, lease: int, index: int, found: bool = True) -> None:
        call = self.invoke("release", lease=lease, attempt=1)
        self.done(call, found=found, lock=LockFacts(index=index))

    def renew(self, lease: int) -> None:
        call = self.invoke("renew", key=f"lease/{lease:x}", lease=lease, ttl_ms=TTL_MS)
        self.done(call, lock=LockFacts(until_ns=(self.now_ms + 900) * 1_000_000))

    def write(
        self, token: int, version: int, error: str = "", key: str = "register", *, home: bool = False, until_ms: int = 0
    ) -> None:
        """`home`: to a register in the lock's own shard. Answered at once, or at `until_ms`."""
        mode = "holder" if home else ""
        call = self.invoke("put", key=key, value=f"{token}.{version}", name=NAME, token=token, mode=mode)
        self.at(max(self.now_ms, until_ms))
        if error:
            self.done(call, "fail", error=error)
        else:
            self.done(call, version=version)

    def check(self) -> LockFinding:
        self._recorder.flush()
        return lock.check(parse(self._file.getvalue().split(b"\n")))

    def laws(self) -> set[str]:
        return {each.law for each in self.check().problems}
