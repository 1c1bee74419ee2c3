"""Resampled average precision against scikit-learn with sample weights, and the draws against their distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from expertmine_kernels import draw_with_replacement, resampled_average_precision


@st.composite
def resampled(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, units, resamples = draw(st.integers(2, 30)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 0.1, 1.0, 3.0, np.inf])
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    flat = draw(st.lists(values, min_size=rows * units, max_size=rows * units))
    labels = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    labels[0] = True
    size = rows * resamples
    counts = np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))).reshape(rows, resamples)
    counts[0] += 1
    return np.array(flat, dtype).reshape(rows, units), labels, counts


@given(resampled())
@settings(deadline=None, max_examples=200)
def test_it_matches_scikit_learn_with_weights(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    responses, labels, counts = case
    found = resampled_average_precision(responses, labels, counts)
    once = np.where(labels[:, np.newaxis], counts, 1)
    np.testing.assert_array_equal(
        resampled_average_precision(responses, labels, counts[labels]),
        resampled_average_precision(responses, labels, once),
    )
    finite = np.clip(responses.astype(np.float64), -1e9, 1e9)  # scikit-learn refuses infinities
    for unit in range(responses.shape[1]):
        for resample in range(counts.shape[1]):
            weights = counts[:, resample].astype(float)
            drawn = weights > 0
            expected = average_precision_score(labels[drawn], finite[drawn, unit], sample_weight=weights[drawn])
            assert found[unit, resample] == pytest.approx(expected, abs=1e-12)


def test_counts_of_one_give_average_precision_in_any_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    responses, labels = rng.standard_normal((300, 8)).round(1).astype(np.float16), rng.random(300) < 0.3
    counts = np.stack([np.ones(300, np.int64), rng.integers(0, 3, 300)], axis=1)
    found = resampled_average_precision(responses, labels, counts)
    expected = [average_precision_score(labels, responses[:, unit].astype(float)) for unit in range(8)]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)
    order = rng.permutation(300)
    np.testing.assert_array_equal(resampled_average_precision(responses[order], labels[order], counts[order]), found)


@pytest.mark.parametrize("changed, message", [
    ({"labels": [True, False]}, "do not fit"),
    ({"counts": [[1], [1], [1], [-1]]}, "at least 0"),
    ({"counts": [[1.0], [1.0], [1.0], [1.0]]}, "integers"),
    ({"counts": [[0, 1], [0, 0], [1, 1], [1, 1]]}, "resample 0 has no positive"),
    ({"responses": [[0.0], [np.nan], [1.0], [2.0]]}, r"\(1, 0\) is NaN"),
])  # fmt: skip
def test_bad_input_is_refused(changed: dict[str, object], message: str) -> None:
    given_ = {"responses": [[0.0], [1.0], [2.0], [3.0]], "labels": [True, True, False, False], "counts": [[1]] * 4}
    given_ |= changed  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        resampled_average_precision(np.array(given_["responses"]), given_["labels"], given_["counts"])


def drawn_in_whole_numbers(rows: int, resamples: int, seed: int) -> list[list[int]]:
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def scatter(number: int) -> int:
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & mask
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB & mask
        return number ^ (number >> 31)

    counts = [[0] * resamples for _ in range(rows)]
    for resample in range(resamples):
        state = scatter((seed + resample * golden) & mask)
        for step in range(1, rows + 1):
            counts[(scatter((state + step * golden) & mask) >> 32) * rows >> 32][resample] += 1
    return counts


def test_draws_do_not_depend_on_the_machine_or_the_number_of_resamples() -> None:
    assert draw_with_replacement(6, 4, seed=7).tolist() == draw_with_replacement(6, 9, seed=7)[:, :4].tolist()
    for seed in (0, 7, 2**64 - 1):
        assert draw_with_replacement(5, 3, seed).tolist() == drawn_in_whole_numbers(5, 3, seed)


def test_draws_have_the_expected_mean_variance_and_covariance() -> None:
    """Counts of n draws from n rows: mean 1, variance 1 - 1/n, covariance -1/n; within five standard errors."""
    for rows in (7, 200):
        counts = np.concatenate([draw_with_replacement(rows, 500, seed=seed) for seed in range(8)], axis=1)
        assert (counts.sum(axis=0) == rows).all()
        error = 1 / np.sqrt(counts.shape[1])
        np.testing.assert_allclose(counts.mean(axis=1), 1, atol=5 * error)
        covariance = np.cov(counts)
        assert np.diag(covariance).mean() == pytest.approx(1 - 1 / rows, abs=5 * error)
        others = covariance[~np.eye(rows, dtype=bool)]
        np.testing.assert_allclose(others, -1 / rows, atol=6 * error)
