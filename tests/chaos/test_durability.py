"""What counts as lost, to the last write."""

from __future__ import annotations

from chaos.checkers import durability
from tests.chaos.register_world import Hand


def lost(hand: Hand) -> list[str | None]:
    return [each.write.value for each in durability.check({"k": hand.operations}).lost]


def story() -> Hand:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.put(2, 3, "b", 7)
    hand.put(4, 5, "c", 9)
    return hand


def test_the_last_write_survives_and_the_others_were_overwritten() -> None:
    hand = story()
    hand.get(10, 11, "c", 9, final=True)
    found = durability.check({"k": hand.operations})
    assert found == durability.Durability(acknowledged=3, lost=[], unread=[])


def test_what_is_above_the_final_version_is_lost() -> None:
    hand = story()
    hand.get(10, 11, "a", 5, final=True)
    assert lost(hand) == ["b", "c"]


def test_another_value_under_the_same_version_is_a_loss() -> None:
    hand = story()
    hand.get(10, 11, "z", 9, final=True)
    assert lost(hand) == ["c"]


def test_an_unknown_or_failed_write_cannot_be_lost() -> None:
    hand = story()
    hand.put(6, None, "d")
    hand.put(7, 8, "e", type="fail")
    hand.mismatch(7, 9, "f", 1, 9)
    hand.get(10, 11, "c", 9, final=True)
    assert lost(hand) == []


def test_an_unknown_write_may_be_the_last() -> None:
    hand = story()
    hand.put(6, None, "d")
    hand.get(10, 11, "d", 12, final=True)
    assert lost(hand) == []


def test_an_absent_key_lost_everything() -> None:
    hand = story()
    hand.get(10, 11, None, 0, final=True)
    assert lost(hand) == ["a", "b", "c"]


def test_a_delete_explains_absence_only_if_it_may_have_come_later() -> None:
    hand = story()
    hand.delete(6, 7, True, 10)
    hand.get(10, 11, None, 0, final=True)
    assert lost(hand) == []
    early = Hand()
    early.put(0, 1, "a", 5)
    early.delete(2, 3, True)
    early.put(4, 5, "b", 9)
    early.get(10, 11, None, 0, final=True)
    assert lost(early) == ["b"]
    early.delete(3, None)
    assert lost(early) == [], "an unknown delete may take effect at any time"


def test_a_delete_can_be_lost_too() -> None:
    hand = story()
    hand.delete(6, 7, True, 10)
    hand.get(10, 11, "c", 9, final=True)
    assert len(durability.check({"k": hand.operations}).lost) == 1
    unversioned = story()
    unversioned.delete(6, 7, True)
    unversioned.get(10, 11, "c", 9, final=True)
    assert len(durability.check({"k": unversioned.operations}).lost) == 1


def test_a_key_without_a_final_answer_is_unread() -> None:
    hand = story()
    hand.get(10, 11, "a", 5)
    assert durability.check({"k": hand.operations}).unread == ["k"]
