"""Rows of concepts: lists, pools, and all that is refused in them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from numba.core.event import install_recorder
from support.kernel_inputs import assert_same_bits, own_negatives, pooled, random_responses, relaxed

from expertmine_kernels import ConceptRows, expertise


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
    expected = expertise(responses, rows)
    with install_recorder("numba:compile") as compiled:
        assert_same_bits(expected, expertise(responses, again))
    assert not compiled.buffer, "what was compiled for rows as made serves unpickled ones, too"


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
