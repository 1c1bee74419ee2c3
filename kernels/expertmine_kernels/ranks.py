"""Each unit's responses as dense ranks, prepared once and shared by all concepts. Knows nothing of concepts.

A unit's *levels* are its distinct responses in ascending order; a row's *rank* is the index of its level. Ranks have
the order and ties of the responses, whatever their dtype, and are as small as possible, so that a set of rows becomes
a short bitmap over the levels.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmine_kernels.bitmap import index, insert, smaller, words_for
from expertmine_kernels.jit import jit
from expertmine_kernels.keys import Keys, key_values
from expertmine_kernels.sort import RADIX, radix_sort

_HALVES = 1 << 16


class Ranked(NamedTuple):
    """The responses of a few units, by rank."""

    ranks: NDArray[np.uint32]
    """(units, sentences): the index of each row's level."""
    levels: NDArray[np.float64]
    """(units, sentences): each unit's distinct responses, ascending; values after the last level are undefined."""
    level_counts: NDArray[np.int64]
    """(units,): the number of levels per unit."""
    precision: int
    """Bits of a response's significand: 11, 24 or 53."""


def rank_units(keys: Keys) -> Ranked:
    """Rank the rows of each unit.

    Args:
        keys: (units, sentences) C order, from order_keys.
    """
    units, _ = keys.shape
    ranks = np.empty(keys.shape, np.uint32)
    level_counts = np.empty(units, np.int64)
    if keys.dtype == np.uint16:
        levels = np.empty(keys.shape, np.float64)
        _rank_halves(keys, _HALF_VALUES, ranks, levels, level_counts)
    else:
        level_keys = np.zeros_like(keys)
        _rank_by_sorting(keys, ranks, level_keys, level_counts)
        levels = key_values(level_keys).astype(np.float64)
    return Ranked(ranks, levels, level_counts, int(np.finfo(f"f{keys.itemsize}").nmant) + 1)


def _half_values() -> NDArray[np.float64]:
    """Return the float of every 16-bit key; (65536,)."""
    return key_values(np.arange(_HALVES, dtype=np.uint16)).astype(np.float64)


_HALF_VALUES = _half_values()


@jit
def _rank_halves(
    keys: NDArray[Any],
    half_values: NDArray[np.float64],
    ranks: NDArray[np.uint32],
    levels: NDArray[np.float64],
    level_counts: NDArray[np.int64],
) -> None:
    """Rank uint16 keys without sorting: a bitmap holds all 65,536 possible keys."""
    words = np.empty(words_for(_HALVES), np.uint64)
    before = np.empty(words.size, np.uint32)
    for unit in range(keys.shape[0]):
        words[:] = 0
        for row in range(keys.shape[1]):
            insert(words, np.uint32(keys[unit, row]))
        level_counts[unit] = index(words, before)
        for row in range(keys.shape[1]):
            key = np.uint32(keys[unit, row])
            rank = smaller(words, before, key)
            ranks[unit, row] = rank
            levels[unit, rank] = half_values[key]


@jit
def _rank_by_sorting(
    keys: NDArray[Any], ranks: NDArray[np.uint32], level_keys: NDArray[Any], level_counts: NDArray[np.int64]
) -> None:
    """Rank keys that are too wide for a bitmap."""
    sentences = keys.shape[1]
    ordered, spare_keys = np.empty(sentences, keys.dtype), np.empty(sentences, keys.dtype)
    rows, spare_rows = np.empty(sentences, np.uint32), np.empty(sentences, np.uint32)
    starts = np.empty((keys.itemsize, RADIX), np.uint32)
    for unit in range(keys.shape[0]):
        for row in range(sentences):
            ordered[row] = keys[unit, row]
            rows[row] = row
        radix_sort(ordered, rows, spare_keys, spare_rows, starts)
        rank = -1
        for i in range(sentences):
            if i == 0 or ordered[i] != ordered[i - 1]:
                rank += 1
                level_keys[unit, rank] = ordered[i]
            ranks[unit, rows[i]] = rank
        level_counts[unit] = rank + 1
