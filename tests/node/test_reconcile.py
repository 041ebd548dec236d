"""What a shard's leader does next for the map's row, by table; and whole changes played to their end in any order of events."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from itertools import product

import pytest

from cluster.raft.configuration import Configuration, problem_with_change
from node.reconcile import Facts, HandOver, Step, next_step, preferred, settled
from proto.gen.meta_pb2 import Replica, Shard


def row(placed: str, version: int = 5) -> Shard:
    """From `1 2+ 3-`: voter 1, learner 2, leaving 3; replica i is on node ni."""
    stages = {"+": Replica.LEARNER, "-": Replica.LEAVING}
    replicas = [
        Replica(id=int(each.rstrip("+-")), node=f"n{each.rstrip('+-')}", stage=stages.get(each[-1], Replica.VOTER))
        for each in placed.split()
    ]
    return Shard(id=1, version=version, replicas=replicas, next_replica_id=100)


def of(voters: str, learners: str = "", outgoing: str = "", version: int = 5) -> Configuration:
    return Configuration(*(tuple(map(int, ids)) for ids in (voters, learners, outgoing)), version=version)


def facts(
    configuration: Configuration,
    me: int = 1,
    *,
    away: Collection[int] = (),
    behind: Collection[int] = (),
    match: Mapping[int, int] | None = None,
) -> Facts:
    """All answer and have caught up, but those named."""
    members = set(configuration.members)
    return Facts(
        me, configuration, members - set(away), members - set(away) - set(behind), match or dict.fromkeys(members, 9)
    )


TABLE: list[tuple[str, Shard, Facts, Step | None]] = [
    ("all is as wanted", row("1 2 3"), facts(of("123")), None),
    ("all is as wanted, in an older configuration", row("1 2 3"), facts(of("123", version=1)), None),
    ("the map is older than the configuration", row("1 2 4+", 4), facts(of("123")), None),
    ("the configuration is joint", row("1 2 4 3-"), facts(of("124", "", "123")), None),
    ("a learner is wanted", row("1 2 3 4+"), facts(of("123", version=4)), of("123", "4")),
    ("two at once", row("1 2 3 4+ 5+"), facts(of("123", version=4)), of("123", "45")),
    ("a learner is behind", row("1 2 3 4+"), facts(of("123", "4"), behind=[4]), None),
    ("a learner is away", row("1 2 3 4+"), facts(of("123", "4"), away=[4]), None),
    ("a learner has caught up", row("1 2 3 4+"), facts(of("123", "4")), of("1234", "", "123")),
    ("one of two has", row("1 2 3 4+ 5+"), facts(of("123", "45"), behind=[5]), of("1234", "5", "123")),
    ("it replaces one", row("1 2 3- 4+"), facts(of("123", "4")), of("124", "", "123")),
    ("it will replace one", row("1 2 3- 4+"), facts(of("123", "4"), behind=[4]), None),
    ("it is to replace one that is gone", row("1 2 3- 4+"), facts(of("123", "4"), away=[3]), of("124", "", "123")),
    (
        "of two that leave one is replaced",
        row("1 2- 3- 4+ 5+"),
        facts(of("123", "45"), behind=[5]),
        of("142", "5", "123"),
    ),
    ("one leaves and nobody comes", row("1 2 3-"), facts(of("123")), of("12", "", "123")),
    ("two leave five", row("1 2 3 4- 5-"), facts(of("12345")), of("123", "", "12345")),
    ("a learner is given up", row("1 2 3 4-"), facts(of("123", "4", version=4)), of("123")),
    ("a learner the map forgot", row("1 2 3"), facts(of("123", "4", version=4)), of("123")),
    ("a voter the map forgot", row("1 2 3"), facts(of("1234", version=4)), of("123", "", "1234")),
    ("one learner for another", row("1 2 3 4- 5+"), facts(of("123", "4", version=4)), of("123", "5")),
    ("it was given up before it came", row("1 2 3 4-"), facts(of("123", version=4)), of("123")),
    ("and that is said once", row("1 2 3 4-"), facts(of("123")), None),
    ("it votes already", row("1 2 3 4+"), facts(of("1234")), None),
    ("it votes already, the row was written anew", row("1 2 3 4+", 6), facts(of("1234")), of("1234", version=6)),
    ("no majority of the old", row("1 2 3- 4+"), facts(of("123", "4"), away=[2, 3]), None),
    ("no majority of the new", row("1 2- 3-"), facts(of("123"), away=[1, 2, 3]), None),
    ("a majority of both", row("1 2 3 4+ 5"), facts(of("1235", "4"), away=[5]), of("12345", "", "1235")),
    ("the leader goes", row("1- 2 3 4+"), facts(of("123", "4"), match={1: 9, 2: 8, 3: 9, 4: 9}), HandOver(3)),
    ("the leader goes, one heir is away", row("1- 2 3 4+"), facts(of("123", "4"), away=[3]), HandOver(2)),
    ("the leader goes, no heir yet", row("1- 2 3 4+"), facts(of("123", "4"), behind=[2, 3]), None),
    ("the leader goes, only learners stay", row("1- 4+"), facts(of("1", "4")), of("4", "", "1")),
    ("the leader waits for who replaces it", row("1- 2 3 4+"), facts(of("123", "4"), behind=[4]), None),
    ("nobody would be left", row("1-"), facts(of("1")), None),
    ("a voter of the map is not in the group", row("1 2 3 4"), facts(of("123", version=4)), of("123", "4")),
]


@pytest.mark.parametrize(("wanted", "known", "step"), [each[1:] for each in TABLE], ids=[each[0] for each in TABLE])
def test_next_step(wanted: Shard, known: Facts, step: Step | None) -> None:
    found = next_step(wanted, known)
    if isinstance(step, Configuration):
        assert isinstance(found, Configuration)
        assert [set(ids) for ids in (found.voters, found.learners, found.outgoing)] == [
            set(ids) for ids in (step.voters, step.learners, step.outgoing)
        ]
        assert found.version == step.version
    else:
        assert found == step


@pytest.mark.parametrize(
    ("placed", "configuration", "is_so"),
    [
        ("1 2 3", of("123"), True),
        ("3 2 1", of("123", version=1), True),
        ("1 2 3+", of("123"), False),
        ("1 2 3", of("123", "4"), False),
        ("1 2 3", of("123", "", "12"), False),
        ("1 2 3", of("12"), False),
    ],
)
def test_settled(placed: str, configuration: Configuration, is_so: bool) -> None:
    assert settled(row(placed), configuration) is is_so


@pytest.mark.parametrize(
    ("placed", "unfit", "replica"),
    [("1 2 3", set(), 1), ("1 2 3", {"n1"}, 2), ("1- 2+ 3", set(), 3), ("1", {"n1"}, 0)],
)
def test_preferred(placed: str, unfit: set[str], replica: int) -> None:
    assert preferred(row(placed), unfit) == replica


def changes() -> list[tuple[str, str]]:
    """Rows as the meta machine writes them: one change at a time, every replica leading once."""
    rows = ["1 2 3 4+", "1- 2 3 4+", "1 2- 3 4+", "1 2 3-", "1- 2 3", "1 2 3 4+ 5+", "1- 4+"]
    return [(placed, leader) for placed, leader in product(rows, "123") if leader in placed]


@pytest.mark.parametrize(("placed", "leader"), changes())
@pytest.mark.parametrize("seed", range(5))
def test_a_change_comes_to_its_end_by_lawful_steps(placed: str, leader: str, seed: int) -> None:
    """Nodes come and go, learners lag, leaders change: whatever is proposed follows what was, and in the end the row is met. At
    no time does the group vote with fewer than the row's voters and those it replaces leave it."""
    chance = random.Random(seed)
    wanted = row(placed)
    staying = {each.id for each in wanted.replicas if each.stage != Replica.LEAVING}
    voting = {each.id for each in wanted.replicas if each.stage != Replica.LEARNER}
    configuration = Configuration(tuple(sorted(voting)), (), (), 4)
    me = int(leader)
    for turn in range(200):
        calm = turn > 150
        away = set() if calm else {e for e in configuration.members if e != me and chance.random() < 0.3}
        behind = set() if calm else {e for e in configuration.members if chance.random() < 0.4}
        step = next_step(wanted, facts(configuration, me, away=away, behind=behind))
        if isinstance(step, HandOver):
            assert step.target in configuration.voters and step.target not in away
            me = step.target
        elif step is not None:
            assert problem_with_change(configuration, step) == ""
            assert len(step.voters) >= min(len(staying), len(voting)), "never fewer than before or wanted"
            configuration = step.left() if step.joint else step
            if me not in configuration.voters:
                me = chance.choice(configuration.voters)
    assert set(configuration.voters) == staying and not configuration.learners and configuration.version == 5
