"""Expertise against naive.py, and against itself with another order, layout, dtype, pool or set of units."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from support import naive
from support.kernel_inputs import (
    FLOATS,
    TIGHT,
    assert_same_bits,
    own_negatives,
    pooled,
    random_responses,
    relaxed,
    scored,
)

from expertmine_kernels import ConceptRows, Expertise, expertise


@relaxed
@given(scored())
def test_expertise_matches_the_naive_version(case: Any) -> None:
    responses, positives, negatives = case
    ours = expertise(responses, ConceptRows.from_lists(positives, negatives))
    theirs = naive.expertise(responses, positives, negatives)
    for name, a, b in zip(Expertise._fields, ours, theirs, strict=True):
        assert a.dtype == np.float64
        assert a.shape == (len(positives), responses.shape[1])
        if name in ("ap", "auroc"):
            np.testing.assert_allclose(a, b, **TIGHT, err_msg=name)
        elif name in ("on_p50", "on_p90"):
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            scale = np.abs(responses.astype(np.float64)).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-14 * scale, err_msg=name)


@relaxed
@given(scored(infinities=True))
def test_infinities_are_ranked_like_numbers(case: Any) -> None:
    responses, positives, negatives = case
    ours = expertise(responses, ConceptRows.from_lists(positives, negatives))
    finite = np.clip(responses.astype(np.float64), -1e301, 1e301)
    theirs = naive.expertise(finite, positives, negatives)
    np.testing.assert_allclose(ours.ap, theirs[0], **TIGHT)
    np.testing.assert_allclose(ours.auroc, theirs[1], **TIGHT)


def test_statistics_of_infinities_match_numpy() -> None:
    responses = np.array([[np.inf], [np.inf], [1.0], [-np.inf]], np.float32)
    only_high = expertise(responses, ConceptRows.from_lists([[0, 1]], [[2, 3]]))
    assert (only_high.on_mean, only_high.on_p50, only_high.on_p90, only_high.off_mean) == (
        np.inf,
        np.inf,
        np.inf,
        -np.inf,
    )
    both = expertise(responses, ConceptRows.from_lists([[0, 3]], [[2]]))
    assert np.isnan([both.on_mean, both.on_p50]).all()


@relaxed
@given(scored(), st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_the_order_of_rows(case: Any, random: Any) -> None:
    responses, positives, negatives = case
    ours = expertise(responses, ConceptRows.from_lists(positives, negatives))
    place = list(range(len(responses)))
    random.shuffle(place)
    shuffled = np.empty_like(responses)
    shuffled[place] = responses
    moved = [[[place[row] for row in rows] for rows in side] for side in (positives, negatives)]
    for side in moved:
        for rows in side:
            random.shuffle(rows)
    indptr = [np.cumsum([0, *map(len, side)]) for side in moved]
    rows = [np.concatenate(side) for side in moved]
    own = np.arange(len(positives))
    none_removed = np.zeros_like(indptr[0])
    moved_rows = ConceptRows(indptr[0], rows[0], own, indptr[1], rows[1], none_removed, [])
    assert_same_bits(ours, expertise(shuffled, moved_rows))


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_do_not_depend_on_the_order_of_many_rows(dtype: type) -> None:
    draws = np.random.default_rng(5)
    responses = (draws.standard_normal((2000, 2)) * np.exp(2 * draws.standard_normal((2000, 2)))).astype(dtype)
    ours = expertise(responses, ConceptRows.from_lists([np.arange(900)], [np.arange(900, 2000)]))
    order = draws.permutation(2000)
    place = np.argsort(order)
    assert_same_bits(ours, expertise(responses[order], ConceptRows.from_lists([place[:900]], [place[900:]])))


@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_do_not_depend_on_the_layout(dtype: type) -> None:
    sentences, units = 3001, 301  # several blocks and tiles, the last of each partial
    plain = random_responses((sentences, units), dtype)
    rows = ConceptRows.from_lists([range(500), range(200, 900)], [range(1000, 3001), range(900, 2000)])
    ours = expertise(plain, rows)
    read_only = np.asfortranarray(plain)
    read_only.setflags(write=False)
    wide = np.zeros((2 * sentences, 3 * units), dtype)
    wide[::2, ::3] = plain
    backwards = np.ascontiguousarray(plain[::-1, ::-1])[::-1, ::-1]
    for other in (np.asfortranarray(plain), read_only, wide[::2, ::3], backwards):
        assert_same_bits(ours, expertise(other, rows))


def test_bits_do_not_depend_on_other_units() -> None:
    responses = random_responses((3001, 200))
    rows = ConceptRows.from_lists([range(500)], [range(1000, 3001)])
    together = expertise(responses, rows)
    for unit in (0, 86, 87, 88, 199):
        alone = expertise(responses[:, unit : unit + 1], rows)
        assert_same_bits(alone, Expertise(*(a[:, unit : unit + 1] for a in together)))


def test_bits_do_not_depend_on_sharing_a_pool() -> None:
    responses = random_responses((400, 5)).round(1)
    positives = [[300, 301, 302], range(200, 299), [399], range(310, 390)]
    pool = np.arange(150)
    shared = ConceptRows.from_lists(positives, [pool, pool[::-1], pool, range(150, 200)])
    assert shared.pools == 2
    assert shared.pool_of.tolist() == [0, 0, 0, 1]
    one_each = [np.arange(150)] * 3 + [np.arange(150, 200)]
    own = ConceptRows.from_pools(positives, one_each, pool_of=[0, 1, 2, 3], removed=[()] * 4)
    assert own.pools == 4
    assert_same_bits(expertise(responses, shared), expertise(responses, own))


@settings(relaxed, max_examples=600)
@given(pooled())
def test_bits_do_not_depend_on_removing_rows_from_a_pool(case: Any) -> None:
    responses, given_rows = case
    rest = {name: given_rows[name] for name in ("pools", "pool_of", "removed")}
    own = ConceptRows.from_lists(given_rows["positives"], own_negatives(**rest))
    assert_same_bits(expertise(responses, ConceptRows.from_pools(**given_rows)), expertise(responses, own))


@pytest.mark.parametrize("decimals", [1, 9])
@pytest.mark.parametrize("dtype", FLOATS)
def test_bits_do_not_depend_on_removing_many_rows(dtype: type, decimals: int) -> None:
    draws = np.random.default_rng(8)
    responses = draws.standard_normal((3000, 3)) * np.exp(2 * draws.standard_normal((3000, 3)))
    responses = responses.round(decimals).astype(dtype)
    positives = [draws.choice(3000, size, replace=False) for size in (1, 30, 300, 2999)]
    removed = [np.union1d(rows, draws.choice(3000, 200)) for rows in positives[:-1]] + positives[-1:]
    shared = ConceptRows.from_pools(positives, [range(3000)], [0] * 4, removed)
    own = ConceptRows.from_lists(positives, [shared.negatives(concept) for concept in range(4)])
    assert (shared.pools, own.pools) == (1, 4)
    assert_same_bits(expertise(responses, shared), expertise(responses, own))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_mean_over_negatives_is_rounded_once(dtype: type) -> None:
    responses = (random_responses((3000, 3), np.float64) ** 3).astype(dtype)
    positives = [range(100), range(50, 2000)]
    shared = ConceptRows.from_pools(positives, [range(3000)], [0, 0], positives)
    means = expertise(responses, shared).off_mean
    for concept in range(2):
        for unit in range(3):
            off = responses[shared.negatives(concept), unit].tolist()
            assert means[concept, unit] == math.fsum(off) / len(off)


def test_a_removed_infinity_leaves_no_trace() -> None:
    responses = np.array([[np.inf], [-np.inf], [np.inf], [1.0], [2.5], [0.0]], np.float32)
    removed = [[0, 1, 2], [0, 1], [0, 2], [0]]
    scored = expertise(responses, ConceptRows.from_pools([[0]] * 4, [range(6)], [0] * 4, removed))
    np.testing.assert_array_equal(scored.off_mean[:, 0], [3.5 / 3, np.inf, -np.inf, np.nan])


def test_float16_scores_like_its_wider_copies() -> None:
    narrow = random_responses((1500, 4)).round(1)
    rows = ConceptRows.from_lists([range(400)], [range(500, 1500)])
    for dtype in (np.float32, np.float64):
        assert_same_bits(expertise(narrow, rows), expertise(narrow.astype(dtype), rows))


def test_threads_agree_with_one_thread() -> None:
    blocks = [random_responses((1000, 40), seed=seed) for seed in range(8)]
    rows = ConceptRows.from_lists([range(300)] * 5, [range(400, 1000)] * 5)
    with ThreadPoolExecutor(4) as pool:
        for block, threaded in zip(blocks, pool.map(lambda block: expertise(block, rows), blocks), strict=True):
            assert_same_bits(expertise(block, rows), threaded)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("positives", [1, 7, 200])
def test_a_constant_unit_has_the_prevalence(dtype: type, positives: int) -> None:
    scored = expertise(np.full((300, 1), -2.5, dtype), ConceptRows.from_lists([range(positives)], [range(200, 300)]))
    assert scored.ap[0, 0] == pytest.approx(positives / (positives + 100), abs=1e-15)
    assert scored.auroc[0, 0] == 0.5
    for mean in scored[2:]:
        assert mean[0, 0] == -2.5


def test_perfect_and_inverted_units() -> None:
    responses = np.array([[3, 0], [2, 1], [1, 2], [0, 3]], np.float16)
    scored = expertise(responses, ConceptRows.from_lists([[0, 1]], [[2, 3]]))
    assert scored.ap.tolist() == [[1.0, pytest.approx((1 / 3 + 2 / 4) / 2)]]
    assert scored.auroc.tolist() == [[1.0, 0.0]]


def test_minus_zero_is_zero() -> None:
    responses = np.array([[-0.0], [0.0], [0.0], [-0.0]], np.float16)
    scored = expertise(responses, ConceptRows.from_lists([[0, 1]], [[2, 3]]))
    assert scored.ap[0, 0] == 0.5
    assert not np.signbit(np.array(scored)).any()


def test_a_wide_unit_has_more_levels_than_16_bits() -> None:
    responses = random_responses((150_000, 1), np.float32)
    labels = np.random.default_rng(1).random(150_000) < 0.2
    responses[labels] += 0.3
    assert len(np.unique(responses)) > 1 << 16
    scored = expertise(responses, ConceptRows.from_lists([np.flatnonzero(labels)], [np.flatnonzero(~labels)]))
    assert abs(scored.ap[0, 0] - average_precision_score(labels, responses[:, 0])) < 1e-12
    assert abs(scored.auroc[0, 0] - roc_auc_score(labels, responses[:, 0])) < 1e-12
    assert scored.on_p90[0, 0] == np.percentile(responses[labels].astype(np.float64), 90)


@pytest.mark.parametrize("shape", [(5, 0), (5, 2)])
def test_no_units_or_no_concepts_give_empty_tables(shape: tuple[int, int]) -> None:
    concepts = 0 if shape[1] else 1
    scored = expertise(np.zeros(shape, np.float16), ConceptRows.from_lists([[0]] * concepts, [[1]] * concepts))
    assert {a.shape for a in scored} == {(concepts, shape[1])}


def test_an_unused_pool_changes_nothing() -> None:
    responses = random_responses((10, 3))
    used = ConceptRows.from_pools([[0, 1]], [[2, 3, 4]], [0], [()])
    spare = ConceptRows.from_pools([[0, 1]], [[9, 10**6], [2, 3, 4], [0, 1]], [1], [()])
    assert_same_bits(expertise(responses, used), expertise(responses, spare))


def test_misfits_are_refused() -> None:
    rows = ConceptRows.from_lists([[0], [1]], [[2], [9]])
    with pytest.raises(ValueError, match=r"shape \(10,\); expected \(sentences, units\)"):
        expertise(np.zeros(10, np.float16), rows)
    with pytest.raises(ValueError, match="concept 1 uses row 9, but the responses have 9 sentences"):
        expertise(np.zeros((9, 1), np.float16), rows)
    removes_what_is_beyond = ConceptRows.from_pools([[0], [0]], [[1], [2, 9]], [0, 1], [(), [9]])
    with pytest.raises(ValueError, match="concept 1 uses row 9, but the responses have 9 sentences"):
        expertise(np.zeros((9, 1), np.float16), removes_what_is_beyond)
