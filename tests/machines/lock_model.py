"""What the lock machine must do, in the plainest words: lists that are searched, nothing that is kept twice, tokens remembered for ever."""

from __future__ import annotations

from typing import Any

from cluster.errors import Code
from cluster.limits import Limits
from proto.gen.lock_pb2 import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    LockAcquire,
    LockCommand,
    LockEvent,
    LockRelease,
    LockResult,
)

Answer = LockResult | Code


class Row:
    """An attempt that holds (`token`) or waits."""

    def __init__(self, asked: LockAcquire, index: int, now_ms: int) -> None:
        self.name, self.lease, self.attempt, self.owner = asked.name, asked.lease, asked.attempt, asked.owner
        self.mode, self.capacity, self.permits = asked.mode, asked.capacity, asked.permits or 1
        self.delay_ms, self.until_ms, self.index, self.token = asked.delay_ms, now_ms + asked.wait_ms, index, 0


def together(one: Row, others: list[Row]) -> bool:
    if one.mode == SEMAPHORE:
        return sum(each.permits for each in others) + one.permits <= one.capacity
    return all(one.mode == each.mode == SHARED for each in others)


class LockModel:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.leases: dict[int, int] = {}
        self.rows: list[Row] = []  # who holds in the order of the tokens, who waits in that of the log
        self.delays: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.passing: set[str] = set()  # free, but their last token is ahead of the log
        self.told: dict[tuple[int, int], tuple[int, int]] = {}  # attempt -> kind, token
        self.changed: set[str] = set()
        self.ended_in_part = False  # a lease, by the last pulse

    def begin(self) -> None:
        self.told, self.changed = {}, set()
        self.ended_in_part = False

    def held(self, name: str) -> list[Row]:
        return sorted((r for r in self.rows if r.name == name and r.token), key=lambda r: (r.token, r.lease, r.attempt))

    def queue(self, name: str) -> list[Row]:
        return [row for row in self.rows if row.name == name and not row.token]

    def live(self, row: Row, now_ms: int) -> bool:
        return self.leases[row.lease] > now_ms and (row.token > 0 or row.until_ms > now_ms)

    def apply(self, command: LockCommand, index: int, now_ms: int) -> Answer:
        which = command.WhichOneof("command")
        asked: Any = getattr(command, str(which))
        answer: Answer = getattr(self, str(which))(asked, index, now_ms)
        return answer

    def acquire(self, asked: LockAcquire, index: int, now_ms: int) -> Answer:
        limits, name, expires_ms = self.limits, asked.name, now_ms + asked.ttl_ms
        known = asked.lease in self.leases
        if (known and self.leases[asked.lease] <= now_ms) or not (known or asked.new_lease):
            return Code.UNKNOWN_LEASE
        mine = [row for row in self.rows if row.lease == asked.lease]
        for row in mine:
            if row.attempt == asked.attempt:
                return Code.INVALID_ARGUMENT if row.name != name else self._stands(row, expires_ms)
        row, held, queue = Row(asked, index, now_ms), self.held(name), self.queue(name)
        for other in held + queue:
            if (other.mode == SEMAPHORE) != (row.mode == SEMAPHORE) or other.capacity != row.capacity:
                return Code.LOCK_MODE_DIFFERS
        mine_alone = held and held[0].mode == EXCLUSIVE and held[0].owner == asked.owner
        again = asked.reentrant and mine_alone and any(self.live(each, now_ms) for each in held)
        free = not queue and name not in self.delays and together(row, held)
        if not free and not again and not asked.wait_ms:
            if known:
                self.leases[asked.lease] = max(self.leases[asked.lease], expires_ms)
            return LockResult(waiters=len(queue))
        used = {r.name for r in self.rows} | set(self.delays) | self.passing
        if len(used | {name}) > limits.locks_max or len(mine) >= limits.lease_attempts_max:
            return Code.LOCK_TABLE_FULL
        if not known and len(self.leases) >= limits.lock_leases_max:
            return Code.LOCK_TABLE_FULL
        if not free and not again:
            if len(queue) >= limits.lock_waiters_max:
                return Code.TOO_MANY_WAITERS
            if self.deadlock(row, now_ms):
                return Code.DEADLOCK
        self.rows.append(row)
        if again:
            row.token, row.mode = held[0].token, EXCLUSIVE
            self.changed.add(name)
        elif free:
            self._grant(row, index)
        if again or free:
            self.settle(name, index, now_ms)
        return self._stands(row, expires_ms)

    def _stands(self, row: Row, expires_ms: int) -> LockResult:
        self.leases[row.lease] = max(self.leases.get(row.lease, 0), expires_ms)
        before = self.queue(row.name).index(row) if not row.token else 0
        return LockResult(granted=row.token > 0, token=row.token, waiting=not row.token, waiters=before)

    def _grant(self, row: Row, index: int) -> None:
        row.token = self.last[row.name] = max(index, self.last.get(row.name, 0) + 1)
        self.changed.add(row.name)

    def deadlock(self, asking: Row, now_ms: int) -> bool:
        def needs(row: Row) -> set[str]:
            queue = self.queue(row.name)
            before = queue[: queue.index(row)] if row in queue else queue
            strict = [row, *(each for each in before if self.live(each, now_ms))]
            held = [each for each in self.held(row.name) if self.live(each, now_ms)]

            def needed(s: Row, h: Row) -> bool:
                own = [each for each in held if each.owner == s.owner != h.owner and s.mode == SEMAPHORE]
                if s.permits + sum(each.permits for each in own) > s.capacity:
                    own = []  # it waits for itself
                return not together(s, [h, *own])

            return {h.owner for h in held if any(needed(s, h) for s in strict)}

        waits = [each for each in self.rows if not each.token and self.live(each, now_ms)]
        reached: set[str] = set()
        ahead = needs(asking) - {asking.owner}
        while ahead:
            owner = ahead.pop()
            reached.add(owner)
            for wait in waits:
                if wait.owner == owner:
                    ahead |= needs(wait) - reached - {owner}
        return asking.owner in reached

    def renew(self, asked: Any, index: int, now_ms: int) -> Answer:
        if self.leases.get(asked.lease, 0) <= now_ms:
            return Code.UNKNOWN_LEASE
        self.leases[asked.lease] = max(self.leases[asked.lease], now_ms + asked.ttl_ms)
        return LockResult()

    def release(self, asked: LockRelease, index: int, now_ms: int) -> Answer:
        result = LockResult()
        found = [row for row in self.rows if (row.lease, row.attempt) == (asked.lease, asked.attempt)]
        if found and found[0].name != asked.name:
            return Code.INVALID_ARGUMENT
        if found and found[0].token and asked.reason:
            return LockResult(granted=True, token=found[0].token)
        if found:
            if not found[0].token:
                kind = LockEvent.DEADLOCK if asked.reason else LockEvent.CANCELLED
                self.told[asked.lease, asked.attempt] = (kind, 0)
            self.remove(found)
            self.settle(asked.name, index, now_ms)
            result.released = True
        elif self.held(asked.name) and asked.lease in self.leases:
            return Code.NOT_HOLDER
        if asked.end_lease and not any(row.lease == asked.lease for row in self.rows):
            self.leases.pop(asked.lease, None)
        return result

    def end_lease(self, asked: Any, index: int, now_ms: int) -> Answer:
        if asked.lease not in self.leases:
            return LockResult()
        gone = [row for row in self.rows if row.lease == asked.lease]
        if asked.unclean:
            self.keep_delays(gone, now_ms)
        self.told |= {(row.lease, row.attempt): (LockEvent.CANCELLED, 0) for row in gone if not row.token}
        self.remove(gone)
        del self.leases[asked.lease]
        for name in {row.name for row in gone}:
            self.settle(name, index, now_ms)
        return LockResult(released=True)

    def force_release(self, asked: Any, index: int, now_ms: int) -> Answer:
        gone = [row for row in self.held(asked.name) if asked.token in (0, row.token)]
        if not gone and (asked.token or asked.name not in self.delays):
            return LockResult(waiters=len(self.queue(asked.name)))
        self.told |= {(row.lease, row.attempt): (LockEvent.LOST, row.token) for row in gone}
        self.remove(gone)
        if not asked.token:
            self.delays.pop(asked.name, None)
        self.settle(asked.name, index, now_ms)
        return LockResult(released=True)

    def remove(self, gone: list[Row]) -> None:
        self.rows = [row for row in self.rows if row not in gone]
        self.changed |= {row.name for row in gone if row.token}

    def settle(self, name: str, index: int, now_ms: int) -> None:
        while name not in self.delays and (queue := self.queue(name)):
            first = queue[0]
            if not self.live(first, now_ms):
                expired = self.leases[first.lease] <= now_ms
                self.told[first.lease, first.attempt] = (LockEvent.LOST if expired else LockEvent.TIMED_OUT, 0)
                self.remove([first])
            elif together(first, self.held(name)):
                self._grant(first, index)
                self.told[first.lease, first.attempt] = (LockEvent.GRANTED, first.token)
            else:
                break
        self.passing.discard(name)
        if (
            self.last.get(name, 0) > index
            and not any(row.name == name for row in self.rows)
            and name not in self.delays
        ):
            self.passing.add(name)

    def pulse(self, index: int, now_ms: int) -> None:
        room, touched = self.limits.pulse_keys_max, set[str]()

        def cost(name: str) -> int:
            first = name not in touched
            touched.add(name)
            return 1 + len(self.queue(name)) * first

        for expires_ms, lease in sorted((ms, id) for id, ms in self.leases.items()):
            if expires_ms > now_ms or room <= 0:
                break
            room -= 1
            mine = sorted((row for row in self.rows if row.lease == lease), key=lambda row: row.attempt)
            gone: list[Row] = []
            for row in mine:
                if room > 0 or not gone:
                    room -= cost(row.name)
                    gone.append(row)
            self.told |= {(row.lease, row.attempt): (LockEvent.LOST, row.token) for row in gone}
            self.keep_delays(gone, now_ms)
            self.remove(gone)
            if gone == mine:
                del self.leases[lease]
            else:
                self.ended_in_part = True
        over = [row for row in self.rows if not row.token and row.until_ms <= now_ms]
        for row in sorted(over, key=lambda each: (each.until_ms, each.lease, each.attempt)):
            if room > 0:
                room -= cost(row.name)
                self.told[row.lease, row.attempt] = (LockEvent.TIMED_OUT, 0)
                self.remove([row])
        for until_ms, name in sorted((ms, name) for name, ms in self.delays.items()):
            if until_ms <= now_ms and room > 0:
                room -= cost(name)
                del self.delays[name]
        for name in touched | {name for name in self.passing if self.last[name] <= index}:
            self.settle(name, index, now_ms)

    def keep_delays(self, gone: list[Row], now_ms: int) -> None:
        for row in gone:
            if row.token and row.delay_ms:
                self.delays[row.name] = max(self.delays.get(row.name, 0), now_ms + row.delay_ms)

    def due(self, now_ms: int) -> bool:
        ends = [*self.leases.values(), *self.delays.values(), *(r.until_ms for r in self.rows if not r.token)]
        return any(end_ms <= now_ms for end_ms in ends)
