"""Schedules: what may happen to a cluster, as a list of small actions that a test draws, and the return to calm."""

from __future__ import annotations

from collections.abc import Callable

from cluster.types import Role
from tests.raft.changes import gone, wanted
from tests.raft.network import Cluster, Replica

MAIL_MAX = 200
Action = tuple[str, int, int]
"""What, and two numbers that say where: any number fits any action."""


def pick(cluster: Cluster, number: int) -> Replica:
    return list(cluster.replicas.values())[number % len(cluster.replicas)]


def live(cluster: Cluster, number: int) -> Replica | None:
    up = cluster.up()
    return up[number % len(up)] if up else None


def leading(cluster: Cluster, number: int) -> Replica | None:
    """A leader if there is one; deposed ones as well."""
    leaders = cluster.leaders()
    return leaders[number % len(leaders)] if leaders else live(cluster, number)


def _tick(cluster: Cluster, a: int, b: int) -> None:
    cluster.tick(1 + a % 4)


def _tick_one(cluster: Cluster, a: int, b: int) -> None:
    cluster.tick(1 + b % 8, only=[pick(cluster, a).replica])


def _work(cluster: Cluster, a: int, b: int) -> None:
    cluster.work()


def _begin(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        replica.begin()


def _finish(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        replica.finish()


def _deliver(cluster: Cluster, a: int, b: int) -> None:
    if cluster.mail:
        cluster.deliver(a % len(cluster.mail), keep=b % 4 == 0)


def _drop(cluster: Cluster, a: int, b: int) -> None:
    if cluster.mail:
        cluster.drop(a % len(cluster.mail))


def _propose(cluster: Cluster, a: int, b: int) -> None:
    if replica := leading(cluster, a):
        number = cluster.next_context()
        replica.propose(*(bytes([number % 251, position]) * (1 + b % 9) for position in range(1 + b % 7)))


def _read(cluster: Cluster, a: int, b: int) -> None:
    if replica := leading(cluster, a):
        replica.read()


def _crash(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        replica.crash(kept=b % 4)


def _bounce(cluster: Cluster, a: int, b: int) -> None:
    """Down and up again before anyone notices."""
    if replica := live(cluster, a):
        replica.crash(kept=b % 3)
        replica.start()


def _restart(cluster: Cluster, a: int, b: int) -> None:
    down = [each for each in cluster.replicas.values() if not each.up]
    if down:
        replica = down[a % len(down)]
        replica.start()
        for each in cluster.up():
            each.core.peer_reconnected(replica.replica)


def _cut(cluster: Cluster, a: int, b: int) -> None:
    one, other = pick(cluster, a).replica, pick(cluster, b).replica
    if one != other:
        cluster.cut.add((one, other))


def _isolate(cluster: Cluster, a: int, b: int) -> None:
    cluster.isolate(pick(cluster, a).replica)


def _heal(cluster: Cluster, a: int, b: int) -> None:
    cluster.heal()


def _compact(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        point = replica.core.compaction_point()
        replica.compact(replica.core.applied_index if b % 2 else point)


def _transfer(cluster: Cluster, a: int, b: int) -> None:
    replica = leading(cluster, a)
    if replica and replica.core.role is Role.LEADER:
        voters = replica.core.configuration.voters
        replica.core.transfer_leadership(voters[b % len(voters)])


def _reconfigure(cluster: Cluster, a: int, b: int) -> None:
    replica = leading(cluster, a)
    if replica and replica.core.role is Role.LEADER:
        replica.reconfigure(wanted(cluster, replica.core.configuration, b % 9, a))


def _split(cluster: Cluster, a: int, b: int) -> None:
    """In a moment of calm a leader takes most voters out for others, and these and the old ones lose sight of each other before
    the old ones have heard of it; both sides go on, but neither may elect or commit for itself."""
    cluster.heal()
    for kind in (0, 6):
        cluster.run(4)
        for leader in cluster.leaders():
            leader.reconfigure(wanted(cluster, leader.core.configuration, kind, a))
    holder = next((each for each in cluster.up() if each.core.configuration.joint), None)
    if holder is None:
        return
    inside = set(holder.core.configuration.voters)
    cluster.cut |= {
        (one, other) for one in cluster.replicas for other in cluster.replicas if (one in inside) != (other in inside)
    }
    for _ in range(b % 8):
        cluster.tick(1 + a % 3)
        cluster.work()
        cluster.work()
    for each in cluster.up():
        each.core.campaign(force=a % 2 == 0)
    for _ in range(4):
        cluster.work()
    for each in cluster.leaders():
        each.propose(bytes([a, b]))


def _retire(cluster: Cluster, a: int, b: int) -> None:
    """The node of a removed replica deletes it; until then it may disturb."""
    if former := gone(cluster):
        cluster.retire(former[a % len(former)].replica)


def _campaign(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        replica.core.campaign(force=b % 2 == 0)


def _coup(cluster: Cluster, a: int, b: int) -> None:
    """The leader is cut off with entries of its own, and others elect without it."""
    replica = leading(cluster, a)
    others = [each for each in cluster.up() if each is not replica]
    if replica and others:
        cluster.isolate(replica.replica)
        _propose(cluster, a, b)
        cluster.tick(1 + b % 8)
        for each in others[: 1 + a % 2]:
            each.core.campaign(force=b % 2 == 0)
        for _ in range(b % 5):
            cluster.work()
        for each in cluster.leaders():
            each.propose(bytes([b, a]))


def _reverse(cluster: Cluster, a: int, b: int) -> None:
    """What was sent last comes first; with luck once more."""
    cluster.mail.reverse()
    for position in range(min(len(cluster.mail), a % 6)):
        cluster.deliver(position, keep=True)


def _hint(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        if b % 2:
            replica.core.peer_disconnected(replica.core.leader)
        else:
            replica.core.peer_reconnected(pick(cluster, b).replica)


def _wake(cluster: Cluster, a: int, b: int) -> None:
    if replica := live(cluster, a):
        replica.core.wake()


WEIGHTS: dict[Callable[[Cluster, int, int], None], int] = {
    _work: 28,
    _tick: 12,
    _begin: 8,
    _finish: 5,
    _deliver: 12,
    _drop: 3,
    _propose: 10,
    _read: 4,
    _crash: 1,
    _bounce: 2,
    _restart: 4,
    _cut: 2,
    _isolate: 1,
    _heal: 3,
    _compact: 3,
    _transfer: 2,
    _reconfigure: 0,
    _split: 0,
    _retire: 0,
    _campaign: 2,
    _coup: 3,
    _reverse: 3,
    _hint: 2,
    _wake: 1,
}
ACTIONS = {each.__name__.removeprefix("_"): each for each in WEIGHTS}
WEIGHTED = [name for name, each in ACTIONS.items() for _ in range(WEIGHTS[each])]
MOVING = WEIGHTED + ["reconfigure"] * 12 + ["split"] + ["retire"] * 2
"""The same with membership changes."""


def perform(cluster: Cluster, action: Action) -> None:
    name, a, b = action
    ACTIONS[name](cluster, a, b)
    while len(cluster.mail) > MAIL_MAX:
        cluster.drop(0)
    cluster.check()


def perform_out_of_step(cluster: Cluster, action: Action) -> None:
    """With clocks that run as they please: no lease can be relied upon, everything else can."""
    name, a, b = action
    cluster.in_step = False
    if name == "tick":
        _tick_one(cluster, a, b)
        return
    if name in ("campaign", "coup", "split"):
        cluster.expire_promises()
    perform(cluster, action)


def converge(cluster: Cluster) -> None:
    """Faults end: a leader is found, new entries commit, every member holds the same, and the cluster falls silent; who was
    removed changes nothing of that."""
    cluster.heal()
    for each in cluster.replicas.values():
        if not each.up:
            each.start()
    limit = 12 * cluster.settings.election_ticks_max
    _run_until(cluster, limit, lambda: bool(settled(cluster)))
    before = cluster.laws.commit
    _run_until(cluster, limit, lambda: any(each.propose(b"calm") for each in settled(cluster)[:1]))
    _run_until(cluster, limit, lambda: all(each.core.silent for each in settled(cluster)) and bool(settled(cluster)))
    members = settled(cluster)
    assert cluster.laws.commit > before, "the new entry was not committed"
    indexes = {(each.core.log.last_index, each.core.commit_index, each.machine.index) for each in members}
    assert indexes == {(cluster.laws.commit,) * 3}, f"silent, but not equal: {indexes}"
    assert len({each.machine.chain for each in members}) == 1, "the states differ"
    assert not any(each.reads for each in members), "a read was never answered"
    if len(cluster.replicas) > len(members):
        term = members[0].core.term
        cluster.run(3 * cluster.settings.election_ticks_max)
        assert settled(cluster)[:1] == members[:1] and members[0].core.term == term, "a removed replica disturbs"


def settled(cluster: Cluster) -> list[Replica]:
    """The members, their leader first, once they agree on it and no change is under way; else nobody."""
    for leader in cluster.leaders():
        core = leader.core
        members = [leader] + [cluster.replicas[peer] for peer in core.peers if peer in cluster.replicas]
        agree = {(each.core.leader, each.core.term, each.core.configuration) for each in members}
        over = core.term_start <= core.commit_index >= core.configuration_index and not core.configuration.joint
        if over and len(agree) == 1 and len(members) == len(core.configuration.members):
            return members
    return []


def _run_until(cluster: Cluster, ticks: int, done: Callable[[], bool]) -> None:
    for _ in range(ticks):
        cluster.tick()
        cluster.settle()
        if done():
            return
    states = [
        (each.replica, each.core.role.value, each.core.term, each.core.silent, each.core.progress)
        for each in cluster.up()
    ]
    raise AssertionError(f"not within {ticks} ticks: {states}")
