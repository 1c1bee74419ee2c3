"""Sums that are the same in any order, against exact ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from expertmine_kernels.sums import add, empty_sum, is_exact, rounded


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
