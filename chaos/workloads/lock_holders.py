"""The load of locks on real processes: some that hold, each with its part of the clients, and what happens to them.

Now and then one is stopped for longer than its leases last, or killed and replaced. A fault is on record before it is injected;
whatever ends the run, none is left stopped, and none outlives it.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from chaos.history import EventType, Recorder
from chaos.workloads.lock import LockOptions, LockWorkload
from chaos.workloads.lock_calls import Locks
from chaos.workloads.lock_holder import Part, Progress

HOLDERS = 4
PROCESSES_EACH = 1_000_000
BETWEEN_S = (2.0, 5.0)
PAUSE_S = (1.0, 4.0)
KILL_SHARE = 0.5
END_S = 30.0


class _Holder:
    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process
        self.progress = Progress(0, 0, 0)
        self.reading = asyncio.get_running_loop().create_task(self._read(), name=f"progress of {name}")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.progress = msgspec.json.decode(line, type=Progress)

    def signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def gone(self) -> int:
        code = await self.process.wait()
        await self.reading
        return code


class LockHolders:
    """A workload of the runner. `store` reads back."""

    def __init__(
        self, recorder: Recorder, store: Locks, addresses: Sequence[str], shards: int, seed: int, parts: Path, start_ns: int,
        options: LockOptions,
    ) -> None:  # fmt: skip
        self._recorder, self._addresses, self._shards, self._seed = recorder, list(addresses), shards, seed
        self._parts, self._start_ns, self._options = parts, start_ns, options
        self._reader = LockWorkload(recorder, [store], shards, seed, options)
        self._chance = random.Random(f"{seed}/holders")
        self._holders: list[_Holder] = []
        self._ended: list[_Holder] = []
        self._made = 0
        self._stopped = asyncio.Event()
        self.faults = 0

    @property
    def _all(self) -> list[_Holder]:
        return [*self._holders, *self._ended]

    @property
    def operations(self) -> int:
        return sum(each.progress.operations for each in self._all)

    @property
    def answers(self) -> Mapping[EventType, int]:
        return Counter[EventType]({"info": sum(each.progress.unknown for each in self._all)})

    @property
    def keys(self) -> Sequence[tuple[int, str]]:
        return self._reader.keys

    def stop(self) -> None:
        self._stopped.set()

    async def read_back(self) -> int:
        return await self._reader.read_back()

    async def run(self) -> None:
        """Until `stop`; then every holder has ended its turns."""
        try:
            for _ in range(HOLDERS):
                self._holders.append(await self._start())
            while not await self._stopped_within(self._chance.uniform(*BETWEEN_S)):
                await self._strike(self._chance.randrange(len(self._holders)))
        finally:
            self._reader.take_all()
            await self._end()

    async def _start(self) -> _Holder:
        self._made += 1
        name = f"holder-{self._made}"
        options = replace(self._options, first_process=self._made * PROCESSES_EACH, name=f"{self._made}/")
        path = str(self._parts / f"{name}.jsonl")
        part = Part(self._addresses, path, self._start_ns, self._seed, self._shards, options)
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "chaos.workloads.lock_holder"]
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(part) + b"\n")
        return _Holder(name, process)

    async def _strike(self, at: int) -> None:
        holder = self._holders[at]
        if holder.process.returncode is not None:
            raise RuntimeError(f"{holder.name} ended by itself, with code {holder.process.returncode}")
        self.faults += 1
        if self._chance.random() < KILL_SHARE:
            self._recorder.fault("invoke", "kill-holder", node=holder.name)
            holder.signal(signal.SIGKILL)
            await holder.gone()
            self._recorder.fault("ok", "kill-holder", node=holder.name)
            self._ended.append(holder)
            self._holders[at] = await self._start()
            return
        self._recorder.fault("invoke", "pause-holder", node=holder.name)
        holder.signal(signal.SIGSTOP)
        try:
            await self._stopped_within(self._chance.uniform(*PAUSE_S))
        finally:
            holder.signal(signal.SIGCONT)
            self._recorder.fault("ok", "pause-holder", node=holder.name)

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        return self._stopped.is_set()

    async def _end(self) -> None:
        """Lets them end their turns; one that does not is killed."""
        for holder in self._holders:
            assert holder.process.stdin is not None
            holder.process.stdin.close()
        for holder in self._holders:
            try:
                async with asyncio.timeout(END_S):
                    await holder.gone()
            except TimeoutError:
                holder.signal(signal.SIGKILL)
                await holder.gone()
