"""The table of a member's life: what it must allow, and what never happens."""

from __future__ import annotations

from cluster.membership.state import LAWFUL, MAY_HOLD, MemberState, lawful, state_of
from proto.gen.meta_pb2 import Member

UP, JOINING, SUSPECT, DOWN, LEAVING, REMOVED = MemberState


def reachable(start: MemberState) -> set[MemberState]:
    found, ahead = {start}, [start]
    while ahead:
        for each in LAWFUL[ahead.pop()] - found:
            found.add(each)
            ahead.append(each)
    return found


def test_the_words_are_those_of_the_map() -> None:
    assert [each.word for each in MemberState] == ["up", "joining", "suspect", "down", "leaving", "removed"]
    assert state_of(Member(state=Member.SUSPECT)) is SUSPECT


def test_every_member_can_leave_and_everything_comes_from_joining() -> None:
    assert reachable(JOINING) == set(MemberState)
    for each in set(MemberState) - {REMOVED}:
        assert REMOVED in reachable(each)
        assert each is LEAVING or lawful(each, LEAVING)


def test_who_leaves_is_never_back_and_nobody_joins_twice() -> None:
    assert reachable(LEAVING) == {LEAVING, REMOVED}
    assert reachable(REMOVED) == {REMOVED}
    assert all(JOINING not in following for following in LAWFUL.values())


def test_nobody_is_down_who_was_not_suspected_before() -> None:
    assert [each for each in MemberState if lawful(each, DOWN)] == [SUSPECT]
    assert lawful(DOWN, UP) and lawful(SUSPECT, UP) and not lawful(UP, JOINING)


def test_nothing_is_done_about_a_suspect() -> None:
    assert set(MAY_HOLD) == {UP, SUSPECT}
