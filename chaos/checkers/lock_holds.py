"""Who held which lock from when until when: in the log, and by the holder's own belief.

A hold begins in the log at its token and ends at the index of its release, or where the feed tells of somebody else. In real
time it surely lasts from before anybody knew of the grant until its lease may have run out or its holder asked for its end.
Everything here only convicts: where an end or an order is not known, nothing follows from it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from chaos.history import Event, History, Operation

EXCLUSIVE, SHARED, SEMAPHORE = "exclusive", "shared", "semaphore"
NEVER_NS = 1 << 62
ENDS = ("release", "end", "lost")
"""By these a holder stops to believe: it gives up one lock, all that its lease has in a shard, or is told that all is lost."""

CONFIRM = "confirm"
"""The mode of a write that releases its lock in the same commit."""


class Problem(NamedTuple):
    """`law` names what is broken: overlap, early, delay, token, log, revived, fence, queue, deadlock."""

    law: str
    name: str
    text: str


class Point(NamedTuple):
    """The feed told at `ns` that from `log_index` on this attempt holds the lock; lease 0: nobody does."""

    log_index: int
    ns: int
    lease: int
    attempt: int
    token: int


class Renewal(NamedTuple):
    """The lease was asked to last from `sent_ns`; it is believed until `until_ns` (0: not known to be done)."""

    sent_ns: int
    until_ns: int
    ttl_ms: int
    type: str
    f: str
    completed_ns: int

    @property
    def ends_ns(self) -> int:
        """Then the ttl is over if it was done when it was sent."""
        return self.sent_ns + self.ttl_ms * 1_000_000

    def may_prolong(self, before_ns: int) -> bool:
        """Nobody knows whether it did, or when. A refused acquire renews the lease, too."""
        return self.type == "info" or self.completed_ns > before_ns or (self.f == "acquire" and self.type == "fail")


class Hold(msgspec.Struct, gc=False):
    """`granted`: log index of the grant. `known_ns`: then it was surely done. `answered_ns`: then its holder was told. `delay_ns`: so
    long, at least, nobody gets it after it was lost.
    `given_up_ns`: then its holder asked for its end. `ended`: log index of its end."""

    name: str
    shard: int
    mode: str
    capacity: int
    permits: int
    lease: int
    attempt: int
    token: int
    granted: int
    known_ns: int
    until_ns: int
    answered_ns: int
    delay_ns: int
    given_up_ns: int = NEVER_NS
    ended: int = 0
    point: int = -1
    """Where in the feed of its name it begins; -1: nowhere."""

    @property
    def believed_ns(self) -> int:
        """Its holder believed in it until then."""
        return min(self.until_ns, self.given_up_ns)

    @property
    def closed_ns(self) -> int:
        """Nobody could be granted it until then."""
        return min(self.until_ns + self.delay_ns, self.given_up_ns)

    def tells(self, point: Point) -> bool:
        """Is it told there? Perhaps by another attempt of its lease, which took it once more under the same token."""
        return point.lease == self.lease and (point.attempt == self.attempt or point.token == self.token)

    def conflicts(self, other: Hold) -> bool:
        return EXCLUSIVE in (self.mode, other.mode)

    def __str__(self) -> str:
        return f"token {self.token} (lease {self.lease:x}, attempt {self.attempt})"


class Facts:
    """What the laws are about, gathered once."""

    def __init__(self, history: History, drift: float) -> None:
        """`drift`: how much faster than the truth a shard's time may run."""
        self._drift = drift
        self.problems: list[Problem] = []
        self.operations = history.operations
        self.end_ns = history.end_ns
        self.feed: dict[str, list[Point]] = defaultdict(list)
        self.told_to: dict[int, int] = {}  # shard -> highest index its feed has told of
        self.gaps: dict[int, int] = {}  # shard -> up to here the feed may lack something
        self.renewals: dict[tuple[int, int], list[Renewal]] = defaultdict(list)  # (lease, shard)
        self.ends: dict[tuple[int, int], list[Operation]] = defaultdict(list)  # (lease, shard)
        self.holds: dict[str, list[Hold]] = defaultdict(list)
        self.forces: dict[str, list[Operation]] = defaultdict(list)  # by operators, of a name
        self.delayed: dict[str, set[tuple[int, int]]] = defaultdict(
            set
        )  # attempts that leave a lock closed if they are lost
        self._twice: set[tuple[str, int]] = set()  # (name, lease) that asked for what it held
        self._shards: dict[str, int] = {}
        self._modes: dict[str, set[str]] = defaultdict(set)
        self._alone: dict[str, set[tuple[int, int]]] = {}  # the attempts that were granted exclusively
        for event in history.feed:
            self._take(event)
        for each in history.operations:
            self._gather(each)
        self._build()

    def _take(self, event: Event) -> None:
        shard, facts = event.shard or 0, event.lock
        if event.f == "gap":
            self.gaps[shard] = max(event.version or 0, self.gaps.get(shard, 0))
            return
        assert facts is not None and event.key is not None
        index = facts.index
        points = self.feed[event.key]
        self._shards[event.key] = shard
        if points and index <= points[-1].log_index:
            self.problem("log", event.key, f"the feed tells index {index} after {points[-1].log_index}")
        points.append(Point(index, event.time, facts.lease, facts.attempt, facts.token))
        self.told_to[shard] = max(index, self.told_to.get(shard, 0))

    def _gather(self, each: Operation) -> None:
        if each.asked is None:
            return
        key = (each.asked.lease, each.shard or 0)
        if each.f == "acquire":
            self._modes[each.key].add(each.asked.mode)
            if each.asked.reentrant:
                self._twice.add((each.key, each.asked.lease))
            if each.asked.delay_ms:
                self.delayed[each.key].add((each.asked.lease, each.asked.attempt))
        if each.f in ("acquire", "renew"):
            until_ns = 0
            if each.type == "ok" and each.told is not None:  # what the holder believes, or may believe
                until_ns = max(each.told.until_ns, each.invoked_ns + int(each.asked.ttl_ms * 1e6 * (1 - self._drift)))
            done_ns = each.completed_ns if each.completed_ns is not None else NEVER_NS
            self.renewals[key].append(Renewal(each.invoked_ns, until_ns, each.asked.ttl_ms, each.type, each.f, done_ns))
        elif each.f in ENDS or (each.f == "put" and each.asked.mode == CONFIRM):
            self.ends[key].append(each)
        elif each.f == "force" and each.type != "fail":
            self.forces[each.key].append(each)

    def problem(self, law: str, name: str, text: str) -> None:
        self.problems.append(Problem(law, name, text))

    # -- holds ---------------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        found: dict[tuple[str, int, int], Hold] = {}
        before: set[tuple[str, int, int]] = set()
        for each in self.operations:
            if each.f != "acquire" or each.asked is None:
                continue
            asked, told, done_ns = each.asked, each.told, each.completed_ns or 0
            key = (each.key, asked.lease, asked.attempt)
            first = key not in before
            before.add(key)
            if each.type != "ok" or told is None:
                continue
            known = found.get(key)
            if known is not None:
                forced = any(force.invoked_ns < done_ns for force in self.forces[each.key])
                if known.token != told.token and not forced:
                    self.problem("token", each.key, f"{known} was answered token {told.token} when it was asked again")
                known.known_ns = min(known.known_ns, done_ns)
                known.answered_ns = min(known.answered_ns, done_ns)
                continue
            if asked.reentrant and any(
                hold.lease == asked.lease and hold.token == told.token for hold in self.holds[each.key]
            ):
                continue  # a further row of a hold; under another token it is a hold by itself
            until_ns = max((r.until_ns for r in self.renewals[asked.lease, each.shard or 0]), default=0)
            hold = Hold(
                each.key, each.shard or 0, asked.mode, asked.capacity, max(1, asked.permits), asked.lease, asked.attempt,
                told.token, told.index if first else told.token, done_ns, until_ns, done_ns, int(asked.delay_ms * 1e6 * (1 - self._drift)),
            )  # fmt: skip
            self._find_end(hold, each.invoked_ns)
            found[key] = hold
            self.holds[each.key].append(hold)
        for name, holds in self.holds.items():
            holds.sort(key=lambda hold: hold.token)
            self._alone[name] = {(hold.lease, hold.attempt) for hold in holds if hold.mode == EXCLUSIVE}
            self._find_points(name, holds)

    def _find_end(self, hold: Hold, asked_ns: int) -> None:
        forced_ns = hold.given_up_ns = self.forced_ns(hold.name, asked_ns)
        for end in self.ends[hold.lease, hold.shard]:
            if not ends(end, hold.name, hold.attempt) or end.invoked_ns < asked_ns:
                continue
            hold.given_up_ns = min(hold.given_up_ns, end.invoked_ns)
            if end.type != "ok" or (end.completed_ns or NEVER_NS) >= forced_ns:  # it may be the end of something else
                continue
            if end.f == "release" and (hold.name, hold.lease) in self._twice:  # it may be held by another attempt
                continue
            if end.f == "put":
                hold.ended = end.version or 0
            elif end.found and end.told is not None and end.told.index:
                hold.ended = end.told.index

    def _find_points(self, name: str, holds: Sequence[Hold]) -> None:
        at = {
            (point.lease, point.attempt): number for number, point in reversed(list(enumerate(self.feed.get(name, ()))))
        }
        for hold in holds:
            hold.point = at.get((hold.lease, hold.attempt), -1)
            if hold.point >= 0:
                hold.known_ns = min(hold.known_ns, self.feed[name][hold.point].ns)

    def after(self, hold: Hold) -> Point | None:
        """What the feed tells of an exclusive hold's end."""
        if hold.point < 0 or hold.mode != EXCLUSIVE:
            return None
        points = self.feed[hold.name]
        for number in range(hold.point + 1, len(points)):
            if not hold.tells(points[number]):
                return points[number]
        return None

    def gone(self, hold: Hold) -> Point | None:
        """The first that the feed tells after the grant of a free lock, or of another who holds it alone: then it was over."""
        alone = self._alone[hold.name]
        for point in self.feed.get(hold.name, ()):
            who = (point.lease, point.attempt)
            if hold.tells(point) or point.log_index <= hold.granted:
                continue
            if not point.lease or who in alone:
                return point
        return None

    def lives_until(self, lease: int, shard: int, ns: int) -> int:
        """Until when the lease surely lives, by what was answered before `ns`."""
        known = (each.until_ns for each in self.renewals[lease, shard] if each.completed_ns <= ns)
        return max(known, default=0)

    def missed(self, hold: Hold) -> bool:
        """Whether the feed may lack something since the hold began: then it ended at some index up to the one told."""
        return self.gaps.get(hold.shard, 0) > hold.granted

    def forced_ns(self, name: str, asked_ns: int) -> int:
        """From when on an operator may have taken away what was asked for then."""
        forced = (
            force.invoked_ns
            for force in self.forces[name]
            if force.type == "info" or (force.completed_ns or NEVER_NS) >= asked_ns
        )
        return min(forced, default=NEVER_NS)

    def whole_after(self, name: str) -> int:
        """Above this log index the feed tells everything of the name."""
        return self.gaps.get(self._shards.get(name, 0), 0)

    def modes(self, name: str) -> set[str]:
        """That were asked for."""
        return self._modes[name]

    def all_holds(self) -> Iterator[Hold]:
        for holds in self.holds.values():
            yield from holds


def ends(end: Operation, name: str, attempt: int) -> bool:
    """Whether what gives up something of a lease gives up this attempt."""
    assert end.asked is not None
    if end.f == "release":
        return (end.key, end.asked.attempt) == (name, attempt)
    return end.f != "put" or (end.asked.name, end.asked.attempt) == (name, attempt)


# -- laws --------------------------------------------------------------------------------------------------------------


def check_tokens(facts: Facts) -> None:
    """Strictly increasing per name: in the feed, among the answers, and in real time."""
    for name, points in facts.feed.items():
        if facts.modes(name) != {EXCLUSIVE}:
            continue  # the feed names one of several holders, and not always the last
        highest, last = 0, points[0]
        for point in points:
            who = (point.lease, point.attempt)
            twice = (point.lease, point.token) == (last.lease, last.token)  # another attempt of a lease that has it
            if not point.lease or (highest and (twice or who == (last.lease, last.attempt))):
                continue
            if point.token <= highest:
                facts.problem(
                    "token", name, f"the feed tells token {point.token} at index {point.log_index} after {highest}"
                )
            highest, last = max(highest, point.token), point
    for name, holds in facts.holds.items():
        for first, second in pairwise(holds):
            if first.token == second.token:
                facts.problem("token", name, f"{first} and {second} are one token")
    _check_real_time(facts)


def _check_real_time(facts: Facts) -> None:
    """What was asked after a grant was known has a higher token."""
    for name, holds in facts.holds.items():
        asked = {
            (each.asked.lease, each.asked.attempt): each.invoked_ns
            for each in reversed(facts.operations)
            if each.f == "acquire" and each.key == name and each.asked is not None
        }
        earliest: Hold | None = None  # of the tokens above, the one that was known first
        for hold in reversed(holds):
            if earliest is not None and asked[hold.lease, hold.attempt] > earliest.known_ns:
                facts.problem("token", name, f"{hold} was asked for when {earliest} was known")
            if earliest is None or hold.known_ns < earliest.known_ns:
                earliest = hold


def check_feed(facts: Facts) -> None:
    """Exclusive grants are in the feed, and what it tells of the end of any hold agrees with the holders."""
    for hold in facts.all_holds():
        if hold.granted <= facts.gaps.get(hold.shard, 0):
            continue
        if hold.mode != EXCLUSIVE:
            if (end := facts.gone(hold)) is not None:
                _check_end(facts, hold, end)
            continue
        if hold.point < 0:
            if hold.granted < facts.told_to.get(hold.shard, 0):
                facts.problem("log", hold.name, f"the feed does not tell of {hold}")
            continue
        point = facts.feed[hold.name][hold.point]
        if point.token != hold.token:
            facts.problem("token", hold.name, f"{hold} has token {point.token} in the feed")
        if (end := facts.after(hold)) is not None:
            _check_end(facts, hold, end)


def _check_end(facts: Facts, hold: Hold, end: Point) -> None:
    if hold.ended > end.log_index:
        facts.problem("log", hold.name, f"{hold} was released at {hold.ended}, and had ended at {end.log_index}")
    if hold.mode == EXCLUSIVE and 0 < hold.ended < end.log_index and not facts.missed(hold):
        facts.problem("log", hold.name, f"{hold} was released at {hold.ended}, and lasted until {end.log_index}")
    if hold.given_up_ns <= end.ns:
        return
    renewals = facts.renewals[hold.lease, hold.shard]
    until_ns = max((each.until_ns for each in renewals if each.sent_ns < end.ns), default=0)
    if until_ns > end.ns:
        left_ms = (until_ns - end.ns) / 1e6
        facts.problem(
            "early", hold.name, f"{hold} ended at index {end.log_index}, {left_ms:.1f} ms before its lease could"
        )
    for each in renewals:
        if each.f == "renew" and each.type == "ok" and each.sent_ns > end.ns:
            facts.problem(
                "revived", hold.name, f"the lease of {hold} was renewed after it had ended at index {end.log_index}"
            )
            return


def check_renewals(facts: Facts) -> None:
    """A lease is known as long as it surely lives."""
    for each in facts.operations:
        if each.f != "renew" or each.type != "fail" or each.error != "UNKNOWN_LEASE" or each.asked is None:
            continue
        lease, shard, done_ns = each.asked.lease, each.shard or 0, each.completed_ns or NEVER_NS
        left_ms = (facts.lives_until(lease, shard, each.invoked_ns) - done_ns) / 1e6
        ended = (end.f != "release" and end.invoked_ns < done_ns for end in facts.ends[lease, shard])
        if left_ms > 0 and not any(ended):  # a confirm ends a lease, too, that has nothing else there
            text = f"lease {lease:x} is unknown in shard {shard} {left_ms:.1f} ms before it could be over"
            facts.problem("early", each.key, text)


def check_releases(facts: Facts) -> None:
    """Nobody gives up what it never asked for."""
    asked = {
        (each.key, each.asked.lease, each.asked.attempt)
        for each in facts.operations
        if each.f == "acquire" and each.asked is not None
    }
    for each in facts.operations:
        if each.f != "release" or each.type != "ok" or not each.found or each.asked is None:
            continue
        if (each.key, each.asked.lease, each.asked.attempt) not in asked:
            text = f"attempt {each.asked.attempt} of lease {each.asked.lease:x} never asked for it, and released it"
            facts.problem("log", each.key, text)


def check_overlaps(facts: Facts) -> int:
    """Holds that were granted while an incompatible one was believed in, or lasted in the log; how many were in real time."""
    overlaps = 0
    for name, holds in facts.holds.items():
        for hold, other in _clashes(holds, [each.known_ns for each in holds], [each.believed_ns for each in holds]):
            overlaps += 1
            ms = (other.believed_ns - hold.known_ns) / 1e6
            facts.problem("overlap", name, f"{hold} was granted {ms:.1f} ms before {other} was over for its holder")
        closed = [each.closed_ns if each.delay_ns else 0 for each in holds]
        for hold, other in _clashes(holds, [each.known_ns for each in holds], closed):
            if other.believed_ns <= hold.known_ns:
                ms = (other.closed_ns - hold.known_ns) / 1e6
                facts.problem("delay", name, f"{hold} was granted {ms:.1f} ms before the delay after {other} was over")
        over = [_log_end(facts, each) for each in holds]
        for hold, other in _clashes(holds, [each.granted for each in holds], over):
            facts.problem("log", name, f"{hold} was granted before the log ends {other}")
    return overlaps


def _log_end(facts: Facts, hold: Hold) -> int:
    """0 where nobody knows."""
    end = facts.after(hold)
    return hold.ended or (end.log_index if end is not None and not facts.missed(hold) else 0)


def _clashes(holds: Sequence[Hold], starts: Sequence[int], ends: Sequence[int]) -> Iterator[tuple[Hold, Hold]]:
    """Each hold, in the order of tokens, with an earlier one that surely lasted when it was granted and does not go with it.
    Those that lasted at a grant lasted all at once."""
    soonest = list(starts)  # of this grant and all later ones
    for at in range(len(holds) - 2, -1, -1):
        soonest[at] = min(soonest[at], soonest[at + 1])
    lasting: list[tuple[int, int]] = []
    for at, hold in enumerate(holds):
        while lasting and lasting[0][0] <= soonest[at]:
            heapq.heappop(lasting)
        others = [holds[each] for end, each in lasting if end > starts[at]]
        clash = next((other for other in others if hold.conflicts(other)), None)
        if clash is None and hold.mode == SEMAPHORE and others:
            used = hold.permits + sum(other.permits for other in others)
            clash = others[0] if used > hold.capacity else None
        if clash is not None:
            yield hold, clash
        heapq.heappush(lasting, (ends[at], at))


def expiry_ms(facts: Facts) -> list[float]:
    """For each exclusive hold that ran out: from the end of its lease's last ttl until the feed told of its end."""
    found = []
    for hold in facts.all_holds():
        end = facts.after(hold)
        if end is None or hold.given_up_ns <= end.ns or facts.missed(hold):
            continue
        before = [each for each in facts.renewals[hold.lease, hold.shard] if each.sent_ns < end.ns]
        last_ns = max((each.ends_ns for each in before if each.type == "ok"), default=0)
        if any(each.may_prolong(end.ns) and each.ends_ns > last_ns for each in before):
            continue
        if last_ns:
            found.append((end.ns - last_ns) / 1e6)
    return found
