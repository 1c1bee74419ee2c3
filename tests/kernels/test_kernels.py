"""The kernels against naive.py, scikit-learn, and themselves with another order, layout, dtype or set of units."""

import doctest
import importlib
import math
import pickle
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_auc_score
from support import naive

import expertmine_kernels
from expertmine_kernels import (
    ConceptRows,
    Expertise,
    average_precision,
    expertise,
    key_values,
    order_keys,
    top_k,
)
from expertmine_kernels.bitmap import contains, index, insert, smaller, words_for
from expertmine_kernels.expertise import _score_units
from expertmine_kernels.sort import RADIX, radix_sort
from expertmine_kernels.sums import add, empty_sum, is_exact, rounded

FLOATS = (np.float16, np.float32, np.float64)
TIGHT = {"rtol": 0, "atol": 1e-12}

relaxed = settings(deadline=None, max_examples=150)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile for every dtype before Hypothesis measures time."""
    for dtype in FLOATS:
        average_precision(np.array([1, 2], dtype), [0, 1])


def numbers(dtype: type, *, infinities: bool = False) -> st.SearchStrategy[float]:
    """Draw numbers of a dtype: often from a few, so that there are ties; sometimes any whose sums are finite."""
    limit = min(float(np.finfo(dtype).max), 1e300)
    common = [-0.0, 0.0, 1.0, -1.0, 0.5, limit, -limit, float(np.finfo(dtype).smallest_subnormal)]
    width = {np.float16: 16, np.float32: 32, np.float64: 64}[dtype]
    anything = st.floats(-limit, limit, width=width)  # type: ignore[arg-type]
    return st.one_of(st.sampled_from(common + [np.inf, -np.inf] * infinities), anything)


@st.composite
def scored(draw: st.DrawFn, *, infinities: bool = False) -> tuple[Any, list[list[int]], list[list[int]]]:
    """Draw responses (sentences, units), and positive and negative rows of one to three concepts."""
    dtype = draw(st.sampled_from(FLOATS))
    sentences, units = draw(st.integers(2, 30)), draw(st.integers(1, 3))
    responses = draw(arrays(dtype, (sentences, units), elements=numbers(dtype, infinities=infinities)))
    positives, negatives = [], []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(sentences)))
        cut = draw(st.integers(1, sentences - 1))
        positives.append(order[:cut])
        negatives.append(order[cut : draw(st.integers(cut + 1, sentences))])
    return responses, positives, negatives


@st.composite
def pooled(draw: st.DrawFn) -> tuple[Any, dict[str, Any]]:
    """Draw responses (sentences, units), and arguments of ConceptRows.from_pools: concepts of one to three pools."""
    dtype = draw(st.sampled_from(FLOATS))
    sentences, units = draw(st.integers(2, 30)), draw(st.integers(1, 2))
    elements = numbers(dtype, infinities=draw(st.booleans()))
    responses = draw(arrays(dtype, (sentences, units), elements=elements))
    row = st.integers(0, sentences - 1)
    pools = [list(range(sentences)), *draw(st.lists(st.sets(row, min_size=1).map(list), max_size=2))]
    positives, pool_of, removed = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        pool = draw(st.integers(0, len(pools) - 1))
        kept = draw(st.sampled_from(pools[pool]))
        on = draw(st.sets(row.filter(lambda row, kept=kept: row != kept), min_size=1))
        spare = draw(st.one_of(st.sets(row), st.just(set(pools[pool]))))  # often all but one
        pool_of.append(pool)
        positives.append(draw(st.permutations(sorted(on))))
        removed.append(draw(st.permutations(sorted((on | spare) & set(pools[pool]) - {kept}))))
    return responses, {"positives": positives, "pools": pools, "pool_of": pool_of, "removed": removed}


def own_negatives(pools: Any, pool_of: Any, removed: Any) -> list[list[int]]:
    """Return each concept's negatives as a list of rows."""
    return [sorted(set(pools[pool]) - set(out)) for pool, out in zip(pool_of, removed, strict=True)]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw scores (sentences,) and labels with both classes."""
    dtype = draw(st.sampled_from(FLOATS))
    scores = draw(arrays(dtype, st.integers(2, 60), elements=numbers(dtype)))
    labels = draw(arrays(np.bool_, scores.size))
    assume(0 < labels.sum() < labels.size)
    return scores, labels


def random_responses(shape: tuple[int, ...], dtype: type = np.float16, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same_bits(left: Expertise, right: Expertise) -> None:
    for name, a, b in zip(Expertise._fields, left, right, strict=True):
        assert a.tobytes() == b.tobytes(), name


# Keys


def test_keys_order_and_recover_all_16_bit_floats() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = np.sort(every[~np.isnan(every)])
    keys = order_keys(values)
    assert values.size == 65_536 - 2 * 1023
    assert keys.dtype == np.uint16
    rises = np.diff(keys.astype(int))
    assert np.array_equal(rises > 0, np.diff(values.astype(float)) > 0)
    assert (rises >= 0).all()
    assert (rises == 0).sum() == 1, "only the two zeros share a key"
    back = key_values(keys)
    assert back.dtype == np.float16
    assert np.array_equal(back, values)
    assert not np.signbit(back[back == 0]).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_keys_order_and_recover_wide_floats(dtype: type) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 80_000, np.uint8)
    anything = bits.view(dtype)
    limits = np.finfo(dtype)
    edges = [limits.max, limits.tiny, limits.smallest_subnormal, limits.eps, 0.0, np.inf]
    values = np.sort(np.concatenate([anything[~np.isnan(anything)], edges, np.negative(edges)]).astype(dtype))
    keys = order_keys(values)
    assert np.array_equal(keys[1:] > keys[:-1], values[1:] > values[:-1])
    assert (keys[1:] >= keys[:-1]).all()
    assert np.array_equal(key_values(keys), values)


@relaxed
@given(st.data())
def test_keys_keep_the_shape_and_every_comparison(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, (2, 7), elements=numbers(dtype, infinities=True)))
    keys = order_keys(values.T)
    assert keys.shape == (7, 2)
    a, b = keys.reshape(1, -1), values.T.reshape(1, -1)
    assert np.array_equal(a < a.T, b < b.T)
    assert np.array_equal(a == a.T, b == b.T)


def test_keys_do_not_change_the_responses() -> None:
    responses = np.array([1.0, -0.0, -3.0], np.float32)
    before = responses.tobytes()
    order_keys(responses)
    expertise(responses[:, None], ConceptRows.from_lists([[0]], [[1, 2]]))
    assert responses.tobytes() == before


def test_keys_of_nothing_and_of_a_scalar() -> None:
    assert order_keys(np.empty((0, 3), np.float16)).shape == (0, 3)
    assert order_keys(np.float16(0)) == 0x8000


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_nan_is_named(dtype: type) -> None:
    responses = np.ones((4, 3), dtype)
    responses[2, 1] = responses[3, 0] = -np.nan
    with pytest.raises(ValueError, match=r"2 NaN, the first at \(2, 1\)"):
        order_keys(responses)
    with pytest.raises(ValueError, match="unit 1 to sentence 2 is NaN"):
        expertise(responses, ConceptRows.from_lists([[0]], [[1]]))


def test_a_nan_is_named_by_its_unit_in_a_later_block() -> None:
    responses = random_responses((40_000, 20))
    responses[123, 17] = np.nan
    with pytest.raises(ValueError, match="unit 17 to sentence 123 is NaN"):
        expertise(responses, ConceptRows.from_lists([[0]], [[1]]))


@pytest.mark.parametrize("responses", [np.arange(4), np.ones(4, np.complex64), np.ones(4, ">f2"), np.array(["a"])])
def test_other_dtypes_are_refused(responses: Any) -> None:
    with pytest.raises(TypeError, match=r"expected float16, float32 or float64.*\.astype"):
        order_keys(responses)


def test_keys_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match="keys are int16"):
        key_values(np.zeros(3, np.int16))


# Sorting and bitmaps


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("size", [0, 1, 2, 255, 5000])
def test_radix_sort_is_stable(dtype: type, size: int) -> None:
    draws = np.random.default_rng(size)
    few = draws.integers(0, np.iinfo(dtype).max, 1 + size // 3, dtype, endpoint=True)
    keys = draws.choice(few, size)
    order = np.argsort(keys, kind="stable")
    ours, rows = keys.copy(), np.arange(size, dtype=np.uint32)
    scratch = np.full((keys.itemsize, RADIX), 7, np.uint32)
    radix_sort(ours, rows, np.empty_like(ours), np.empty_like(rows), scratch)
    assert np.array_equal(ours, keys[order])
    assert np.array_equal(rows, order)


@relaxed
@given(st.sets(st.integers(0, 299)))
def test_bitmap_counts_smaller_members(members: set[int]) -> None:
    words, before = np.zeros(words_for(300), np.uint64), np.full(words_for(300), 9, np.uint32)
    for member in [*members, *members]:
        insert(words, np.uint32(member))
    assert index(words, before) == len(members)
    for number in range(300):
        assert smaller(words, before, np.uint32(number)) == sum(member < number for member in members)
        assert contains(words, np.uint32(number)) == (number in members)


# Sums


def summed(terms: Any, limit: float) -> Any:
    total = empty_sum(limit)
    for term in terms:
        total = add(total, term)
    return total


@pytest.mark.parametrize("precision", [11, 24])
def test_sums_reported_as_exact_are_exact(precision: int) -> None:
    """Terms of ever wider exponents, in any order, with or without removals, against exact rational sums."""
    draws = np.random.default_rng(precision)
    exact = []
    for spread in range(1, 110):
        significands = draws.integers(2 ** (precision - 1), 2**precision, 60) * draws.choice([-1, 1], 60)
        terms = np.ldexp(significands.astype(float), draws.integers(0, spread, 60))
        exact.append(is_exact(np.unique(terms), terms.size, precision))
        if exact[-1]:
            kept, removed = terms[:20], terms[20:]
            total = summed(np.concatenate([terms, -removed]), terms.size * np.abs(terms).max())
            assert rounded(total) == math.fsum(kept)
            assert rounded(total) == rounded(summed(kept[::-1], kept.size * np.abs(kept).max()))
    assert exact[40]
    assert not exact[-1]


def test_sums_of_infinities_or_of_full_significands_are_not_reported_as_exact() -> None:
    assert is_exact(np.array([0.0]), 2**20, 24)
    assert is_exact(np.array([-2.0, 0.0, 2.0]), 2**20, 24)
    assert not is_exact(np.array([0.0, np.inf]), 2, 24)
    assert not is_exact(np.array([-np.inf]), 2, 24)
    assert not is_exact(np.array([1.0]), 2, 53)
    assert not is_exact(np.array([1.0]), 2**30, 24)


@pytest.mark.parametrize("terms", [[np.inf, 1.0], [-np.inf, np.inf], [1.0, -np.inf], [1e308, 1e308], [8e307, -1.0]])
def test_overflowing_sums_match_numpy(terms: list[float]) -> None:
    with np.errstate(all="ignore"):
        expected, limit = np.sum(terms), np.abs(terms).sum()
    np.testing.assert_equal(rounded(summed(terms, limit)), expected)


# Expertise


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


# ConceptRows


def test_concept_rows_are_read_only_copies_that_survive_pickling() -> None:
    given_rows = np.array([0, 1], np.int32)
    rows = ConceptRows([0, 2], given_rows, [0], [0, 1], [2], [0, 0], [])
    given_rows[0] = 5
    assert rows.positive_rows.tolist() == [0, 1]
    assert (rows.concepts, rows.pools) == (1, 1)
    with pytest.raises(ValueError, match="read-only"):
        rows.pool_rows[0] = 1
    again = pickle.loads(pickle.dumps(rows))
    responses = random_responses((3, 2))
    assert_same_bits(expertise(responses, rows), expertise(responses, again))
    assert len(_score_units.signatures) == 1, "compiled once: for rows as made and unpickled, one block and several"


@pytest.mark.parametrize(
    ("positives", "negatives", "message"),
    [
        ([[0], []], [[1], [1]], "the positives of concept 1: no row"),
        ([[0], [0]], [[1], []], "the negatives of concept 1: no row"),
        ([[0], [-2]], [[1], [1]], "the positives of concept 1: row -2 is negative"),
        ([[0], [0]], [[1], [-1]], "the negatives of concept 1: row -1 is negative"),
        ([[0], [3, 4, 3]], [[1], [1]], "the positives of concept 1: row 3 is given twice"),
        ([[0], [3]], [[1], [5, 5]], "the negatives of concept 1: row 5 is given twice"),
        ([[0], [1, 2], [1]], [[3], [3], [7, 1]], "concept 2 has row 1 among its positives and its negatives"),
        ([[0], [1, 2]], [[2], [2]], "concept 1 has row 2 among its positives and its negatives"),
        ([[0]], [[1], [2]], "positives are given for 1 concepts, negatives for 2"),
        ([[0.5]], [[1]], "the positives of concept 0: dtype float64"),
        ([[0]], [[[1]]], r"the negatives of concept 0: dtype int64, shape \(1, 1\)"),
        ([[2**31]], [[1]], "the positives of concept 0: 2147483648 does not fit int32"),
        ([[1]], [[5 - 2**32]], "the negatives of concept 0: -4294967291 does not fit int32"),
    ],
)
def test_bad_lists_name_the_concept(positives: Any, negatives: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptRows.from_lists(positives, negatives)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive_indptr": [0, 1, 2]}, "positive_indptr must rise from 0 to the number of positive_rows, 3"),
        ({"positive_indptr": [0, 4, 3]}, "positive_indptr must rise"),
        ({"positive_indptr": []}, "positive_indptr must rise"),
        ({"pool_indptr": [1, 2]}, "pool_indptr must rise from 0 to the number of pool_rows, 2"),
        ({"pool_of": [0]}, "pool_of has the pools of 1 concepts; there are 2"),
        ({"pool_of": [0, 1]}, "concept 1 uses pool 1; there are 1 pools"),
        ({"pool_of": [-1, 0]}, "concept 0 uses pool -1"),
        ({"pool_rows": [8, -8]}, "the negatives of concept 0: row -8 is negative"),
        ({"pool_indptr": [0, 2, 4], "pool_rows": [8, 9, 3, 3]}, "pool 1: row 3 is given twice"),
        ({"removed_indptr": [0, 1]}, "removed_indptr must rise from 0 to the number of removed_rows, 0"),
        ({"removed_indptr": [0, 0]}, "removed_indptr has ranges for 1 concepts; there are 2"),
        ({"removed_rows": [0.5]}, "removed_rows: dtype float64"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"positive_indptr": [0, 1, 3], "positive_rows": [0, 1, 2], "pool_of": [0, 0]}
    good |= {"pool_indptr": [0, 2], "pool_rows": [8, 9], "removed_indptr": [0, 0, 0], "removed_rows": []}
    ConceptRows(**good)
    with pytest.raises(ValueError, match=message):
        ConceptRows(**{**good, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": [[1], [3, 3, 4]]}, "the removed rows of concept 1: row 3 is given twice"),
        ({"removed": [[1], [3, -4]]}, "the removed rows of concept 1: row -4 is negative"),
        ({"removed": [[1], [3, 5]]}, "concept 1 removes row 5, which is not in its pool 1"),
        ({"removed": [[1, 99], [3]]}, "concept 0 removes row 99, which is not in its pool 0"),
        ({"removed": [[1], [2, 3, 4]]}, "concept 1 removes all 3 rows of its pool 1; one must be left"),
        ({"removed": [[1], [4]]}, "concept 1 has row 3 among its positives and its negatives"),
        ({"removed": [[], [3]]}, "concept 0 has row 1 among its positives and its negatives"),
        ({"pool_of": [0, 0], "positives": [[1], [3, 4]]}, "concept 1 has row 4 among its positives and its negatives"),
        ({"removed": [[1]]}, "positives are given for 2 concepts, removed for 1"),
        ({"removed": [[1], [0.5]]}, "the removed rows of concept 1: dtype float64"),
        ({"pools": [range(10), [2, 3, 2**31]]}, "pool 1: 2147483648 does not fit int32"),
        ({"pools": [range(10), []], "pool_of": [0, 0]}, "pool 1: no row"),
        ({"pool_of": [0, 2]}, "concept 1 uses pool 2; there are 2 pools"),
        ({"pool_of": [0, 0.5]}, "pool_of: dtype float64"),
    ],
)
def test_bad_pools_are_refused(change: dict[str, Any], message: str) -> None:
    good = {"positives": [[1], [3]], "pools": [range(10), [2, 3, 4]], "pool_of": [0, 1], "removed": [[1], [3]]}
    ConceptRows.from_pools(**good)
    with pytest.raises(ValueError, match=message):
        ConceptRows.from_pools(**{**good, **change})


@relaxed
@given(pooled())
def test_negatives_are_the_pool_without_removed_rows(case: Any) -> None:
    _, given_rows = case
    rows = ConceptRows.from_pools(**given_rows)
    written_out = own_negatives(given_rows["pools"], given_rows["pool_of"], given_rows["removed"])
    assert [rows.negatives(concept).tolist() for concept in range(rows.concepts)] == written_out


# average_precision


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")  # scikit-learn's own, at the largest floats
@relaxed
@given(labelled())
def test_average_precision_matches_scikit_learn_and_the_naive_version(case: Any) -> None:
    scores, labels = case
    ours = average_precision(scores, labels)
    assert isinstance(ours, np.float64)
    assert abs(ours - average_precision_score(labels, scores)) < 1e-12
    assert abs(ours - naive.average_precision(scores.tolist(), labels.astype(int).tolist())) < 1e-12
    rows = ConceptRows.from_lists([np.flatnonzero(labels)], [np.flatnonzero(~labels)])
    assert abs(expertise(scores[:, None], rows).auroc[0, 0] - roc_auc_score(labels, scores)) < 1e-12


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_average_precision_of_many_units_matches_scikit_learn(dtype: type, decimals: int) -> None:
    responses = np.random.default_rng(0).standard_normal((5000, 8)).round(decimals).astype(dtype)
    labels = np.random.default_rng(2).random(5000) < 0.1
    responses[labels] += 0.5
    ours = average_precision(responses, labels)
    assert ours.shape == (8,)
    theirs = [average_precision_score(labels, responses[:, unit]) for unit in range(8)]
    np.testing.assert_allclose(ours, theirs, **TIGHT)


@pytest.mark.parametrize("labels", [[True, False, True], [1, 0, 1], [1.0, 0.0, 1.0], np.array([1, 0, 1], np.uint8)])
def test_labels_of_any_kind(labels: Any) -> None:
    assert average_precision(np.array([1, 2, 3], np.float16), labels) == pytest.approx((1 + 2 / 3) / 2)


def test_float64_keeps_what_float32_would_lose() -> None:
    scores = np.array([1.0, 1.0 + 2**-50])
    assert average_precision(scores, [0, 1]) == 1.0
    assert average_precision(scores.astype(np.float32), [0, 1]) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.ones(3), [1, 1, 1], "3 positives and 0 negatives"),
        (np.ones(3), [0, 0, 0], "0 positives and 3 negatives"),
        (np.ones(0), [], "0 positives and 0 negatives"),
        (np.ones(3), [0, 1], r"labels have shape \(2,\); expected \(3,\)"),
        (np.ones((3, 2)), [[0], [1], [0]], r"labels have shape \(3, 1\)"),
        (np.ones((3, 1, 1)), [0, 1, 0], r"responses have shape \(3, 1, 1\)"),
        (np.float32(1), [1], r"responses have shape \(\)"),
        (np.ones(3), [0, 1, 2], r"labels\[2\] is 2; expected 0 or 1"),
        (np.ones(3), [0, 1, np.nan], r"labels\[2\] is nan"),
        (np.array([1, np.nan, 1]), [0, 1, 0], "unit 0 to sentence 1 is NaN"),
    ],
)
def test_bad_labels_and_scores_are_refused(scores: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(scores, labels)


# top_k


@relaxed
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -0.0]), min_size=1, max_size=40), st.data())
def test_top_k_matches_a_full_sort(ap: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(ap)))
    ours = top_k(np.array(ap), k)
    assert ours.dtype == np.int64
    assert ours.tolist() == naive.top_k(ap, k)


def test_top_k_keeps_the_order_of_many_ties() -> None:
    ap = np.random.default_rng(0).integers(0, 5, 10_000) / 4
    for k in (1, 1000, 9_999, 10_000):
        assert top_k(ap, k).tolist() == naive.top_k(ap.tolist(), k)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_top_k_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 3"):
        top_k(np.ones(3), k)


def test_top_k_refuses_nan() -> None:
    with pytest.raises(ValueError, match="ap of unit 1 is NaN"):
        top_k(np.array([1.0, np.nan, 0.0]), 1)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        top_k(np.ones((2, 2)), 1)


# The package


@pytest.mark.parametrize("module", [name for _, name, _ in pkgutil.iter_modules(expertmine_kernels.__path__)])
def test_the_examples_in_docstrings_are_right(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"expertmine_kernels.{module}"), extraglobs={"np": np})
    assert result.failed == 0


def test_public_names_exist() -> None:
    for name in expertmine_kernels.__all__:
        assert getattr(expertmine_kernels, name).__doc__
