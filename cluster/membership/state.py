"""The life of a member, as a table.

    joining -> up <-> suspect -> down -> up         what is heard of it decides (detector.py)
    any of these -> leaving -> removed              a person decides

Laws: a name that is removed never comes back. Who leaves does not stop leaving, and gets no new replicas. Nothing is done about a
suspect; what was on a member that is down is rebuilt elsewhere. Whether a leaving member is heard is not its state.
"""

from __future__ import annotations

from enum import IntEnum

from proto.gen.meta_pb2 import Member


class MemberState(IntEnum):
    UP = 0
    JOINING = 1
    SUSPECT = 2
    DOWN = 3
    LEAVING = 4
    REMOVED = -1  # in no map any more

    @property
    def word(self) -> str:
        return self.name.lower()


LAWFUL: dict[MemberState, frozenset[MemberState]] = {
    MemberState.JOINING: frozenset((MemberState.UP, MemberState.LEAVING)),
    MemberState.UP: frozenset((MemberState.SUSPECT, MemberState.LEAVING)),
    MemberState.SUSPECT: frozenset((MemberState.UP, MemberState.DOWN, MemberState.LEAVING)),
    MemberState.DOWN: frozenset((MemberState.UP, MemberState.LEAVING)),
    MemberState.LEAVING: frozenset((MemberState.REMOVED,)),
    MemberState.REMOVED: frozenset(),
}
"""What may follow each state."""

assert {each.name: each.value for each in MemberState if each >= 0} == dict(Member.State.items()), "as in the map"
assert set(LAWFUL) == set(MemberState), "every state has its row"

MAY_HOLD = frozenset((MemberState.UP, MemberState.SUSPECT))
"""Where replicas are wanted; the rest get none, and lose what they hold to others, but for one that has yet to come up."""


def lawful(old: MemberState, new: MemberState) -> bool:
    return new in LAWFUL[old]


def state_of(member: Member) -> MemberState:
    """ValueError for a state that is none."""
    return MemberState(member.state)
