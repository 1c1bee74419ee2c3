"""Average precision of one concept against scikit-learn and naive.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import average_precision_score, roc_auc_score
from support import naive
from support.kernel_inputs import FLOATS, TIGHT, labelled, relaxed

from expertmine_kernels import ConceptRows, average_precision, expertise


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
