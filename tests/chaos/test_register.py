"""What the checker of one key finds, and what it accepts: histories by hand, and random ones against a naive judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.checkers.explain import smallest
from chaos.checkers.linearizability import Verdict
from chaos.checkers.register import Unjudgeable, by_key, check_key
from chaos.history import Operation
from tests.chaos.register_world import Hand, TrueRegister, explainable


def verdict(hand: Hand) -> Verdict:
    """By the checker, with the naive judge agreeing."""
    found = check_key(hand.operations).verdict
    assert explainable(hand.operations) is (found is Verdict.OK)
    return found


def test_a_plain_story_is_ok() -> None:
    hand = Hand()
    hand.get(0, 1, None)
    hand.put(2, 3, "a", 7)
    hand.cas(4, 5, "b", 7, 9)
    hand.mismatch(6, 7, "c", 7, 9)
    hand.get(8, 9, "b", 9)
    assert verdict(hand) is Verdict.OK


def test_a_stale_read_is_found_and_proved_by_three_operations() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    for i in range(20):
        hand.get(10 + 2 * i, 11 + 2 * i, "a", 5)
    hand.put(60, 61, "b", 6)
    hand.get(62, 63, "a", 5)
    hand.get(64, 65, "b", 6)
    finding = check_key(hand.operations)
    assert finding.verdict is Verdict.VIOLATION
    proof = smallest(hand.operations, finding)
    assert [(each.f, each.value) for each in proof.operations] == [("put", "a"), ("put", "b"), ("get", "a")]
    assert not explainable(proof.operations)


def test_a_lost_write_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.get(2, 3, None)
    assert verdict(hand) is Verdict.VIOLATION


def test_a_write_applied_twice_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.put(2, 3, "b", 6)
    hand.get(4, 5, "a", 7)
    assert verdict(hand) is Verdict.VIOLATION
    assert "took effect twice" in check_key(hand.operations).reason


def test_a_value_never_written_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.get(2, 3, "z", 6)
    assert verdict(hand) is Verdict.VIOLATION
    assert "never written" in check_key(hand.operations).reason


def test_the_value_of_a_failed_write_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", type="fail")
    hand.get(2, 3, "a", 6)
    assert verdict(hand) is Verdict.VIOLATION
    assert "failed" in check_key(hand.operations).reason


def test_a_read_before_its_write_was_called_is_found() -> None:
    hand = Hand()
    hand.get(0, 1, "a", 5)
    hand.put(2, 3, "a", 5)
    assert verdict(hand) is Verdict.VIOLATION


def test_versions_that_shrink_are_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 6)
    hand.put(2, 3, "b", 5)
    assert verdict(hand) is Verdict.VIOLATION


def test_one_version_for_two_writes_is_found() -> None:
    hand = Hand()
    hand.put(0, 3, "a", 6)
    hand.put(1, 2, "b", 6)
    assert verdict(hand) is Verdict.VIOLATION
    assert "names two writes" in check_key(hand.operations).reason


def test_an_unknown_write_may_be_observed_late() -> None:
    hand = Hand()
    hand.put(0, None, "a")
    hand.put(1, 2, "b", 5)
    hand.get(3, 4, "b", 5)
    hand.get(5, 6, "a", 9)
    assert verdict(hand) is Verdict.OK


def test_an_unknown_write_does_not_come_and_go() -> None:
    hand = Hand()
    hand.put(0, None, "a")
    hand.put(1, 2, "b", 5)
    hand.get(3, 4, "a", 9)
    hand.get(5, 6, "b", 5)
    assert verdict(hand) is Verdict.VIOLATION


def test_a_version_only_a_mismatch_saw_needs_an_unknown_write() -> None:
    hand = Hand()
    hand.put(1, 2, "b", 5)
    hand.mismatch(3, 4, "c", 5, 7)
    assert verdict(hand) is Verdict.VIOLATION
    hand.put(0, None, "a")
    assert verdict(hand) is Verdict.OK
    hand.mismatch(5, 6, "d", 5, 8)
    assert verdict(hand) is Verdict.VIOLATION, "one unknown write cannot have two versions"


def test_two_compare_and_sets_on_one_version_cannot_both_win() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.cas(2, 5, "b", 5, 6)
    hand.cas(3, 4, "c", 5, 7)
    assert verdict(hand) is Verdict.VIOLATION


def test_a_compare_and_set_that_passes_over_a_write_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.put(2, 3, "b", 6)
    hand.cas(4, 5, "c", 5, 7)
    assert verdict(hand) is Verdict.VIOLATION


def test_a_mismatch_that_found_what_it_expected_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.mismatch(2, 3, "b", 5, 5)
    assert verdict(hand) is Verdict.VIOLATION


def test_a_refusal_that_is_stale_is_found() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.put(2, 3, "b", 6)
    hand.mismatch(4, 5, "c", 6, 5)
    assert verdict(hand) is Verdict.VIOLATION


def test_deletes_are_writes() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.delete(2, 3, True, 6)
    hand.get(4, 5, None)
    hand.cas(6, 7, "b", 0, 8)
    assert verdict(hand) is Verdict.OK
    hand.delete(8, 9, False)
    assert verdict(hand) is Verdict.VIOLATION


def test_presence_alone_can_prove_an_unknown_write() -> None:
    hand = Hand()
    hand.put(0, None, "a")
    hand.delete(2, 3, True)
    assert verdict(hand) is Verdict.OK
    hand.delete(4, 5, True)
    assert verdict(hand) is Verdict.VIOLATION


def test_values_must_be_unique() -> None:
    hand = Hand()
    hand.put(0, 1, "a", 5)
    hand.put(2, 3, "a", 6)
    with pytest.raises(Unjudgeable, match="written twice"):
        check_key(hand.operations)


def test_an_operation_of_another_model_cannot_be_judged() -> None:
    with pytest.raises(Unjudgeable, match="enqueue"):
        by_key([Operation(1, "enqueue", "k", "ok", 0, 1, 0, 1)])


CHANCE = st.integers(0, 2**32).map(random.Random)


@settings(max_examples=150)
@given(CHANCE, st.integers(2, 60), st.integers(1, 10), st.booleans(), st.sampled_from([0.0, 0.05, 0.2]))
def test_a_true_register_is_always_ok(
    chance: random.Random, size: int, processes: int, deletes: bool, unknown: float
) -> None:
    register = TrueRegister(chance, "k", deletes=deletes, unknown=unknown)
    assert check_key(register.run(size, processes)).verdict is Verdict.OK


def damage(operations: list[Operation], chance: random.Random) -> None:
    """Changes one answer, the way a bug would: another version, another write's value, another outcome."""
    answered = [each for each in operations if each.type == "ok" or each.mismatch]
    if not answered:
        return
    victim = chance.choice(answered)
    written = [each for each in operations if each.f in ("put", "cas")]
    versions = [each.version for each in operations if each.version]
    if victim.f == "get" and written and chance.random() < 0.7:
        other = chance.choice(written)
        victim.value, victim.version = other.value, other.version or chance.randrange(1, 12)
    elif victim.f == "delete":
        victim.found = not victim.found
        victim.version = None
    elif victim.f == "get":
        victim.value, victim.version = None, 0
    else:
        victim.version = chance.choice([chance.randrange(1, 12), *versions])


@settings(max_examples=2500)
@given(CHANCE, st.integers(1, 6), st.integers(1, 4), st.booleans(), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 2))
def test_the_checker_agrees_with_the_naive_judge(
    chance: random.Random, size: int, processes: int, deletes: bool, unknown: float, damages: int
) -> None:
    operations = TrueRegister(chance, "k", deletes=deletes, unknown=unknown).run(size, processes)
    for _ in range(damages):
        damage(operations, chance)
    finding = check_key(operations)
    assert finding.verdict is (Verdict.OK if explainable(operations) else Verdict.VIOLATION)
    if finding.verdict is Verdict.VIOLATION:
        assert not explainable(smallest(operations, finding).operations), "what is left still proves it"


def test_a_deposed_leader_that_serves_reads_is_found_in_a_long_history() -> None:
    """The sabotage: among 3,000 operations a few reads answer what was true a while ago."""
    chance = random.Random(7)
    operations = TrueRegister(chance, "k", deletes=False, unknown=0.003).run(3_000, 8)
    assert check_key(operations).verdict is Verdict.OK
    reads = [each for each in operations if each.f == "get" and each.type == "ok" and each.invoked > 1_500]
    reads[100].value, reads[100].version = reads[0].value, reads[0].version
    finding = check_key(operations)
    assert finding.verdict is Verdict.VIOLATION
    proof = smallest(operations, finding)
    assert len(proof.operations) <= 8 and reads[100] in proof.operations


def test_the_search_is_near_linear() -> None:
    """Counted in steps, since the machine may be slow: a few per operation."""
    chance = random.Random(3)
    for key in range(20):
        operations = TrueRegister(chance, f"k{key}", deletes=False, unknown=0.02).run(400, 10)
        assert check_key(operations, steps_max=100 * len(operations)).verdict is Verdict.OK
