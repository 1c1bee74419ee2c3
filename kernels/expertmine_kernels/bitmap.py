"""A set of small integers as a bitmap that answers "how many members are smaller?" in a few instructions.

`words` (w,) uint64 holds one bit per possible member, 64 per word; `before` (w,) uint32 holds how many members the
lower words have. This is the rank directory of succinct data structures (Jacobson 1989); it saves the kernels a sort.
Knows nothing of responses or concepts.
"""

import numpy as np
from numpy.typing import NDArray

from expertmine_kernels.jit import jit

Words = NDArray[np.uint64]
Before = NDArray[np.uint32]

_ONE = np.uint64(1)
_SHIFT = np.uint32(6)
_LOW = np.uint32(63)


@jit
def words_for(limit: int) -> int:
    """Return how many words a set of integers below limit needs."""
    return (limit + 63) // 64


@jit
def insert(words: Words, member: np.uint32) -> None:
    """Add a member to the set; it may already be in it."""
    words[member >> _SHIFT] |= _ONE << np.uint64(member & _LOW)


@jit
def index(words: Words, before: Before) -> int:
    """Fill before (w,) once all members are added; return the number of distinct members."""
    total = 0
    for word in range(words.size):
        before[word] = total
        total += _popcount(words[word])
    return total


@jit
def smaller(words: Words, before: Before, number: np.uint32) -> np.uint32:
    """Return how many members are smaller than a number; for a member, this is its index in ascending order."""
    word = number >> _SHIFT
    below = (_ONE << np.uint64(number & _LOW)) - _ONE
    return np.uint32(before[word] + np.uint32(_popcount(words[word] & below)))


@jit
def contains(words: Words, number: np.uint32) -> np.uint32:
    """Return 1 if a number is in the set, else 0."""
    return np.uint32((words[number >> _SHIFT] >> np.uint64(number & _LOW)) & _ONE)


@jit
def _popcount(word: np.uint64) -> int:
    """Return how many bits are set; written so that LLVM replaces it by the machine's own instruction."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return int(np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56)))
