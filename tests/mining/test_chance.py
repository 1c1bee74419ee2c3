"""What chance does: its expectation by enumeration, p-values and thresholds by definition, and noise as noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from expertmine.mining.chance import expected_ap, p_values, thresholds, transferred_null
from expertmine.mining.scored_rows import null_classes
from expertmine_kernels import ConceptRows, expertise


@pytest.mark.parametrize("positives, negatives", [(1, 1), (1, 6), (3, 4), (5, 2), (4, 4)])
def test_the_expectation_is_the_mean_over_every_order(positives: int, negatives: int) -> None:
    total = positives + negatives
    scores = np.arange(total, 0, -1)
    found = [
        average_precision_score(np.isin(np.arange(total), places), scores)
        for places in itertools.combinations(range(total), positives)
    ]
    assert expected_ap(np.array([positives]), np.array([negatives])) == pytest.approx(np.mean(found), abs=1e-12)


def test_the_expectation_of_many_at_once() -> None:
    found = expected_ap(np.array([[1, 30], [200, 5]]), np.array([[1, 9], [1000, 10**6]]))
    assert found.shape == (2, 2)
    for at in np.ndindex(2, 2):
        alone = expected_ap(np.array([[1, 30], [200, 5]])[at], np.array([[1, 9], [1000, 10**6]])[at])
        assert found[at] == pytest.approx(float(alone), rel=1e-12)


lifts = st.lists(st.sampled_from([-0.1, 0.0, 0.05, 0.1, 0.2, 0.7]), min_size=1, max_size=45)


@given(null=lifts, observed=lifts, alpha=st.sampled_from([0.05, 0.1, 0.25]))
def test_p_values_and_thresholds_say_the_same(null: list[float], observed: list[float], alpha: float) -> None:
    (found,) = p_values(np.array([observed]), np.array([null]))
    (threshold,) = thresholds(np.array([null]), alpha)
    for lift, p in zip(observed, found, strict=True):
        assert p == (1 + sum(other >= lift for other in null)) / (1 + len(null))
        if np.isnan(threshold):
            assert p > alpha
        else:
            assert (p <= alpha) == (lift > threshold)


def test_without_shuffles_nothing_is_said() -> None:
    assert np.isnan(p_values(np.zeros((2, 3)), np.empty((2, 0)))).all()
    assert np.isnan(thresholds(np.empty((2, 0)))).all()
    assert np.isnan(thresholds(np.zeros((2, 18)))).all()
    assert not np.isnan(thresholds(np.zeros((2, 19)))).any()


def test_noise_has_false_experts_as_rarely_as_promised() -> None:
    """The best of 300 units that know nothing passes the threshold for one concept in twenty, not for most."""
    rng = np.random.default_rng(3)
    concepts, permutations, rows, positives = 200, 39, 120, 30
    responses = rng.standard_normal((rows, 300)).astype(np.float16)
    shuffled = np.array([rng.permutation(rows) for _ in range(concepts * (permutations + 1))])
    sets = ConceptRows.from_lists(list(shuffled[:, :positives]), list(shuffled[:, positives:]))
    best = expertise(responses, sets).ap.max(axis=1).reshape(concepts, permutations + 1)
    lift = best - expected_ap(np.array(positives), np.array(rows - positives))
    false = lift[:, 0] > thresholds(lift[:, 1:])
    assert 0 < false.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / concepts)
    assert best[:, 0].min() > 1.1 * positives / rows  # and yet each looks far better than its prevalence


@pytest.mark.parametrize("smaller, larger", [
    ((87, 1477), (88, 986)), ((39, 437), (40, 292)), ((300, 437), (301, 292)), ((5, 8), (5, 11)),
    ((300, 39), (300, 57)), ((300, 292), (437, 292)), ((20, 1000), (29, 1400)),
])  # fmt: skip
def test_a_shared_null_is_no_easier_than_ones_own(smaller: tuple[int, int], larger: tuple[int, int]) -> None:
    """Whatever concepts of a class are like: noise passes the shared threshold no more often than promised."""
    classes = null_classes(*np.array([smaller, larger]).T, "shared")
    fewest = int(classes.positives[1]), int(classes.negatives[1])
    rng = np.random.default_rng(1)
    responses = rng.standard_normal((sum(larger) + sum(smaller), 800)).astype(np.float16)

    def best(positives: int, negatives: int) -> np.ndarray:
        drawn = [rng.permutation(len(responses))[: positives + negatives] for _ in range(250)]
        sets = ConceptRows.from_lists([rows[:positives] for rows in drawn], [rows[positives:] for rows in drawn])
        return expertise(responses, sets).ap.max(axis=1)

    own = expected_ap(*np.array([[larger[0]], [larger[1]]]))
    null = transferred_null(best(*fewest)[np.newaxis], expected_ap(*np.array([[fewest[0]], [fewest[1]]])), own)
    false = best(*larger) > thresholds(null)
    assert false.mean() < 0.05 + 3 * np.sqrt(2 * 0.05 * 0.95 / 250)  # both the threshold and the share are estimates


def test_what_is_brought_over_to_the_same_sizes_is_itself() -> None:
    max_ap, expected = np.array([[0.3, 0.7], [1.0, 0.4]]), np.array([0.1, 0.3])
    assert transferred_null(max_ap, expected, expected).tolist() == max_ap.tolist()
    harder = transferred_null(max_ap, expected, expected + 0.1)
    assert (harder >= max_ap + 0.1 - 1e-15).all()
