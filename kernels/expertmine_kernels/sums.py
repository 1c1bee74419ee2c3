"""Sums that keep what float64 rounds away. Knows nothing of units, rows or concepts.

Every term is cut in two at the same bit: the upper parts add up without any error in one float64, the lower parts in
another (ExtractVector of Rump, Ogita and Oishi 2008, Accurate floating-point summation part I; the cut is Dekker's
error-free a + b of 1971). Together they hold about 100 bits. Where that is all of them (is_exact), a sum does not
depend on the order of its terms, and taking terms out again gives the sum of those left, bit for bit. It costs what a
plain sum does: no addition waits for the lower parts. Rests on rounding as written, see jit.py: no fast-math, and no
fused multiply-add.
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
    """The power of two whose last place is where terms are cut; 0, where it would overflow, makes high a plain sum."""
    high: float
    """The sum of the upper parts: exact, or as NumPy has it when a term is infinite."""
    low: float
    """The sum of the lower parts; NaN when a term is infinite."""


@jit
def empty_sum(limit: float) -> Sum:
    """Return a sum without terms, for terms whose absolute values add up to at most limit at any time."""
    return Sum(math.ldexp(1.0, math.frexp(limit)[1] + 1) if limit < _TOO_LARGE else 0.0, 0.0, 0.0)


@jit
def add(total: Sum, term: float) -> Sum:
    """Return a sum with one more term; its negative takes it out again."""
    upper = (total.anchor + term) - total.anchor
    return Sum(total.anchor, total.high + upper, total.low + (term - upper))


@jit
def rounded(total: Sum) -> float:
    """Return the sum in one float64, rounded once."""
    return total.high + total.low if math.isfinite(total.low) else total.high


@jit
def is_exact(terms: NDArray[np.float64], count: int, precision: int) -> bool:
    """Return whether a Sum of any of these terms holds every bit; a sufficient condition, not a necessary one.

    All terms are multiples of q, the last place of the smallest, and no sum exceeds count * largest, so the anchor
    is at most 4 times that. A lower part is at most 2^-53 of the anchor; low is exact while it is below 2^53 q, also
    after count terms were put in and count taken out.

    Args:
        terms: (n,) the distinct terms.
        count: how many terms there may be at most, repetitions included.
        precision: how many bits a term's significand has; a term times its repetitions must be exact too.
    """
    smallest, largest = np.inf, 0.0
    for i in range(terms.size):
        size = abs(terms[i])
        largest = max(largest, size)
        if size > 0:
            smallest = min(smallest, size)
    room = 2.0 ** (2 * _DOUBLE - 4 - precision)
    return count <= 2 ** (_DOUBLE - precision) and float(count) * count * largest < smallest * room
