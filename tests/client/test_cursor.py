"""Cursors and tokens are exact, bound to cluster and query, and recognise damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.cursor import Place, decode_cursor, decode_token, encode_cursor, encode_token, query_hash
from cluster.errors import Code, TenfoldError

HERE, THERE = b"c" * 16, b"d" * 16
PLACES = st.dictionaries(
    st.integers(1, 1024), st.builds(Place, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), min_size=1
)


@given(st.binary(max_size=50), PLACES)
def test_they_come_back_as_they_went(position: bytes, vector: dict[int, Place]) -> None:
    assert decode_cursor(encode_cursor(HERE, 5, position), HERE, 5) == position
    assert decode_token(encode_token(HERE, 5, vector), HERE, 5) == vector


@given(st.binary(max_size=50), st.data())
def test_damage_is_recognised(position: bytes, data: st.DataObject) -> None:
    text = encode_cursor(HERE, 5, position)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "ABCDxyz019-_" if c != text[at]]))
    damaged = text[:at] + other + text[at + 1 :]
    try:
        assert decode_cursor(damaged, HERE, 5) == position, "unused bits of the last character"
    except TenfoldError as error:
        assert error.code is Code.INVALID_CURSOR


@pytest.mark.parametrize("text", ["", "x", "é", "a b", "=" * 8, "A" * 60, "\0"])
def test_nonsense_is_an_invalid_cursor(text: str) -> None:
    for decode in (decode_cursor, decode_token):
        with pytest.raises(TenfoldError) as caught:
            decode(text, HERE, 5)
        assert caught.value.code is Code.INVALID_CURSOR


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (encode_cursor(THERE, 5, b"k"), "another cluster"),
        (encode_cursor(HERE, 6, b"k"), "another query"),
        (encode_token(HERE, 5, {1: Place(1, 0)}), "another kind"),
    ],
)
def test_a_foreign_cursor_is_refused(text: str, told: str) -> None:
    with pytest.raises(TenfoldError, match=told):
        decode_cursor(text, HERE, 5)


def test_a_query_is_told_from_others_by_each_part_and_its_place() -> None:
    hashes = [query_hash(b"ab", b"c", False), query_hash(b"a", b"bc", False), query_hash(b"ab", b"c", True)]
    assert len(set(hashes)) == 3
