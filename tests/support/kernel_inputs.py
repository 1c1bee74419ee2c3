"""Inputs of kernels, drawn by Hypothesis or at random, and what is the same in two results."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expertmine_kernels import Expertise

FLOATS = (np.float16, np.float32, np.float64)
TIGHT = {"rtol": 0, "atol": 1e-12}

relaxed = settings(deadline=None, max_examples=150)


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
