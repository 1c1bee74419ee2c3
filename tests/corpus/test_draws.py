"""Texts, hash priorities and the held-out split: samples depend only on the seed and the texts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmine.corpus.draws import draw, draw_names, draw_others, hash_priorities
from expertmine.corpus.held_out import choose_held_out
from expertmine.corpus.texts import BadText, Texts, key_text, text_key


def texts_of(*given_: str) -> Texts:
    texts = Texts()
    for text in given_:
        texts.add(text)
    return texts


def keys(count: int) -> np.ndarray:
    return texts_of(*map(str, range(count))).keys


def test_a_text_has_one_id_however_it_is_spaced_or_composed() -> None:
    texts = texts_of("caf\u00e9 au lait", "b")
    assert texts.add(" cafe\u0301  au\tlait\n") == 0
    assert texts.take(np.array([1, 0], np.int32)).to_pylist() == ["b", "caf\u00e9 au lait"]
    assert key_text(texts.keys) == [text_key("caf\u00e9 au lait"), text_key("b")]


def test_more_texts_than_fit_one_chunk_keep_their_ids() -> None:
    count = 70_000
    texts = texts_of(*(f"text {i}" for i in range(count)))
    ids = np.array([count - 1, 0, 65_535, 65_536], np.int32)
    assert texts.take(ids).to_pylist() == [f"text {i}" for i in ids]
    assert texts.add("text 65536") == 65_536


@pytest.mark.parametrize("text, reason", [
    ("", "empty"), (" \n\u00a0", "empty"), ("x" * 10_001, "longer than"), ("\ud800", "half a character"),
])  # fmt: skip
def test_bad_texts(text: str, reason: str) -> None:
    with pytest.raises(BadText, match=reason):
        Texts().add(text)


def test_priorities_do_not_depend_on_order_and_differ_by_salt() -> None:
    forth, back = texts_of(*"abcdefgh"), texts_of(*"hgfedcba")
    np.testing.assert_array_equal(hash_priorities(forth.keys, "salt"), hash_priorities(back.keys, "salt")[::-1])
    assert (hash_priorities(forth.keys, "salt") != hash_priorities(forth.keys, "pepper")).all()
    assert draw_names(["b", "a", "c"], 2, "s") == draw_names(["c", "b", "a"], 2, "s")


def test_priorities_match_python_integers() -> None:
    """SplitMix64's finaliser in Python's integers: equal on every machine, so that fingerprints stay valid."""
    key = int(text_key("a text"), 16) & (2**64 - 1)
    mixed = key ^ int.from_bytes(hashlib.blake2b(b"a salt", digest_size=8).digest(), "big")
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    assert hash_priorities(texts_of("a text").keys, "a salt").tolist() == [mixed ^ (mixed >> 31)]


def test_draws_are_about_even() -> None:
    """Every id is drawn about equally often: 400 draws of 50 from 200 give each 100 on average."""
    all_keys = keys(200)
    everything = np.arange(200, dtype=np.int32)
    by_key = np.lexsort((all_keys[:, 1], all_keys[:, 0])).astype(np.int32)
    for drawn in (
        [draw(everything, 50, hash_priorities(all_keys, f"salt {i}")) for i in range(400)],
        [draw_others(by_key, everything[:0], 50, f"salt {i}") for i in range(400)],
    ):
        counts = np.bincount(np.concatenate(drawn), minlength=200)
        assert counts.sum() == 20_000
        assert 60 < counts.min() < counts.max() < 140  # 100 ± 4.6 standard deviations


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.integers(1, 70))
@settings(deadline=None)
def test_others_are_others_and_as_many_as_there_are(total: int, without: set[int], count: int) -> None:
    left_out = np.array(sorted(i for i in without if i < total), np.int32)
    found = draw_others(np.random.default_rng(0).permutation(total).astype(np.int32), left_out, count, "salt")
    assert len(found) == len(set(found.tolist())) == min(count, total - len(left_out))
    assert not set(found.tolist()) & set(left_out.tolist())
    assert (np.diff(found) > 0).all()


@given(
    st.lists(st.sets(st.integers(0, 39), min_size=1, max_size=40), min_size=1, max_size=8),
    st.sampled_from([1, 20, 50, 90]),
)
@settings(deadline=None)
def test_no_set_is_held_out_whole(sets: list[set[int]], percent: float) -> None:
    rows = [np.array(sorted(one), np.int32) for one in sets]
    held_out = choose_held_out(rows, [], hash_priorities(keys(40), "salt"), percent)
    for one in rows:
        assert not held_out[one].all()
    np.testing.assert_array_equal(held_out, choose_held_out(rows[::-1], [], hash_priorities(keys(40), "salt"), percent))


def test_disjoint_sets_have_their_exact_share() -> None:
    sets = [np.arange(0, 100, dtype=np.int32), np.arange(100, 102, dtype=np.int32), np.arange(102, 103, dtype=np.int32)]
    pool = np.arange(103, 143, dtype=np.int32)
    held_out = choose_held_out(sets, [pool], hash_priorities(keys(143), "salt"), 20)
    assert [int(held_out[rows].sum()) for rows in (*sets, pool)] == [20, 1, 0, 8]


def test_nested_sets_have_about_their_share() -> None:
    """Closures within closures, as in WordNet."""
    sets = [np.arange(size, dtype=np.int32) for size in (10, 100, 1000)]
    held_out = choose_held_out(sets, [], hash_priorities(keys(1000), "salt"), 25)
    assert [int(held_out[rows].sum()) for rows in sets] == [2, 25, 250]


def test_nothing_is_held_out_unless_asked() -> None:
    assert not choose_held_out([np.arange(5, dtype=np.int32)], [], hash_priorities(keys(5), ""), 0).any()
