"""Sums that keep the bits that float64 rounds away. Knows nothing of units, rows or concepts.

Every term is split at the same bit: the upper parts add up without any error in one float64, the lower parts in
another (ExtractVector of Rump, Ogita and Oishi 2008, Accurate floating-point summation part I; the split is Dekker's
error-free a + b of 1971). Together they hold about 100 bits. If all bits fit (is_exact), a sum does not depend on the
order of its terms, and removing terms gives the sum of the remaining ones, bit for bit. It is as fast as a plain sum,
since no addition waits for the lower parts. It relies on rounding as written, see jit.py: no fast-math, and no fused
multiply-add.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expertmine_kernels.jit import jit

_DOUBLE = 53
_TOO_LARGE = 2.0**1021


class Sum(NamedTuple):
    """A running sum, high + low."""

    anchor: float
    """The power of two whose last bit is where terms are split; 0 if it would overflow, and high is a plain sum."""
    high: float
    """The sum of the upper parts: exact, or NumPy's result if a term is infinite."""
    low: float
    """The sum of the lower parts; NaN if a term is infinite."""


@jit
def empty_sum(limit: float) -> Sum:
    """Return an empty sum for terms whose absolute values never add up to more than limit."""
    return Sum(math.ldexp(1.0, math.frexp(limit)[1] + 1) if limit < _TOO_LARGE else 0.0, 0.0, 0.0)


@jit
def add(total: Sum, term: float) -> Sum:
    """Add a term; adding its negative removes it again."""
    upper = (total.anchor + term) - total.anchor
    return Sum(total.anchor, total.high + upper, total.low + (term - upper))


@jit
def rounded(total: Sum) -> float:
    """Return the sum in one float64, rounded once."""
    return total.high + total.low if math.isfinite(total.low) else total.high


@jit
def is_exact(terms: NDArray[np.float64], count: int, precision: int) -> bool:
    """Return whether a Sum of any of these terms holds every bit; the condition is sufficient, not necessary.

    All terms are multiples of q, the last bit of the smallest, and no sum exceeds count * largest, so the anchor
    is at most 4 times that. A lower part is at most 2^-53 of the anchor; low is exact while it is below 2^53 q, also
    after count terms were added and count removed.

    Args:
        terms: (n,) the distinct terms.
        count: the most terms in a sum, including repetitions.
        precision: bits of a term's significand; a term times its repetitions must be exact too.
    """
    smallest, largest = np.inf, 0.0
    for i in range(terms.size):
        size = abs(terms[i])
        largest = max(largest, size)
        if size > 0:
            smallest = min(smallest, size)
    max_ratio = 2.0 ** (2 * _DOUBLE - 4 - precision)
    return count <= 2 ** (_DOUBLE - precision) and float(count) * count * largest < smallest * max_ratio
