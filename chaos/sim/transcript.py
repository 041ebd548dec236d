"""What happened, twice: as a hash of everything, which tells whether two runs were the same, and as the last lines, for people.

Only facts that a seed determines enter the hash: times, names, bytes. Texts that may hold an address of the interpreter
(the repr of a task) are for people alone.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
import xxhash

from chaos.sim.loop import PROCESS

TAIL_LINES = 400

_MESSAGE = struct.Struct("<dHHI")


class Transcript:
    def __init__(self, now: Callable[[], float]) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.messages = 0
        self._now = now
        self._hash = xxhash.xxh3_128()

    def note(self, who: str, what: str, told: str = "") -> None:
        """An event. `told` is shown and not hashed."""
        line = f"{self._now():11.6f} {who:8} {what}"
        self._hash.update(line.encode())
        self.tail.append(f"{line} {told}" if told else line)

    def message(self, source: int, target: int, data: bytes) -> None:
        """A message was handed over."""
        self.messages += 1
        self._hash.update(_MESSAGE.pack(self._now(), source, target, len(data)) + data)

    def data(self, data: bytes) -> None:
        self._hash.update(data)

    def hash(self) -> str:
        return self._hash.hexdigest()

    def listen(self) -> Callable[[], None]:
        """Takes what the program logs from now on; call what is returned to give the log back."""
        before = structlog.get_config()
        structlog.configure(processors=[self._logged], cache_logger_on_first_use=False)

        def restore() -> None:
            structlog.configure(**before)

        return restore

    def _logged(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        process = PROCESS.get()
        what = str(event.pop("event"))
        error = event.pop("exc_info", None)
        told = " ".join(f"{name}={value}" for name, value in event.items())
        self.note(process.host if process else "-", what, f"{told} {error!r}" if error else told)
        raise structlog.DropEvent
