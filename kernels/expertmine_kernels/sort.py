"""Radix sort of unsigned integers. Knows nothing of floats, units or concepts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmine_kernels.jit import jit

RADIX = 256


@jit
def radix_sort(
    keys: NDArray[np.unsignedinteger[Any]],
    rows: NDArray[np.uint32],
    spare_keys: NDArray[np.unsignedinteger[Any]],
    spare_rows: NDArray[np.uint32],
    starts: NDArray[np.uint32],
) -> None:
    """Sort keys (n,) ascending in place and permute rows (n,) alike; equal keys keep their order.

    Least significant digit first, 8 bits per pass: 2 passes for uint16, 4 for uint32, 8 for uint64, always an even
    number, so that the result ends in the caller's arrays. Scratch: spare_keys (n,), spare_rows (n,),
    starts (bytes per key, RADIX).
    """
    digits = keys.itemsize
    starts[:digits] = 0
    for i in range(keys.size):
        for digit in range(digits):
            starts[digit, (keys[i] >> (8 * digit)) & 255] += 1
    for digit in range(digits):
        total = np.uint32(0)
        for value in range(RADIX):
            count = starts[digit, value]
            starts[digit, value] = total
            total += count
        for i in range(keys.size):
            value = (keys[i] >> (8 * digit)) & 255
            position = starts[digit, value]
            starts[digit, value] = position + np.uint32(1)
            spare_keys[position] = keys[i]
            spare_rows[position] = rows[i]
        keys, spare_keys = spare_keys, keys
        rows, spare_rows = spare_rows, rows
