"""Membership changes for the schedules: which ones a leader is asked for, and who may be gone for good."""

from __future__ import annotations

from cluster.raft.configuration import Configuration
from tests.raft.network import Cluster, Replica

MEMBERS_MAX = 6


def joint(old: Configuration, voters: tuple[int, ...]) -> Configuration:
    """From `old` to these voters, who are no learners any more."""
    learners = tuple(each for each in old.learners if each not in voters)
    return Configuration(voters, learners, old.voters, old.version + 1)


def with_learners(old: Configuration, learners: tuple[int, ...]) -> Configuration:
    return Configuration(old.voters, learners, (), old.version + 1)


def wanted(cluster: Cluster, old: Configuration, kind: int, number: int) -> Configuration:
    """Any kind and number fit any configuration; what makes no sense there leaves it as it is."""
    voters, learners = old.voters, old.learners
    one = voters[number % len(voters)]
    rest = tuple(each for each in voters if each != one)
    small = len(old.members) < MEMBERS_MAX
    if kind == 0 and small:
        return with_learners(old, (*learners, *(cluster.join() for _ in range(MEMBERS_MAX - len(old.members)))))
    if kind == 1 and learners:
        return joint(old, (*voters, learners[number % len(learners)]))
    if kind == 2 and rest:
        return joint(old, rest)
    if kind == 3 and learners:  # replaces one, the leader with luck
        return joint(old, (*rest, learners[number % len(learners)]))
    if kind == 4 and learners:
        return with_learners(old, learners[1:])
    if kind == 5:  # several at once, in another order
        everybody = tuple(reversed(voters + learners))
        return joint(old, tuple(each for place, each in enumerate(everybody) if number >> place & 1) or rest or voters)
    if kind == 6 and len(learners) > 1:  # a majority of the new ones need not hold one of the old ones
        return joint(old, (one, *learners))
    if kind == 7 and small:  # without having been a learner, which is lawful, if not wise
        return joint(old, (*voters, cluster.join()))
    return with_learners(old, learners)


def gone(cluster: Cluster) -> list[Replica]:
    """Who was a member and is none by the newest configuration that anybody applied: nobody needs its vote again."""
    members = cluster.laws.newest[1].members
    former = cluster.laws.members.difference(members)
    return [each for each in cluster.replicas.values() if each.replica in former]
