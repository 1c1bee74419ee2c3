"""Order-preserving integer keys of floats. Knows nothing of units, concepts or scores."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expertmine_kernels.jit import jit

Keys = NDArray[np.unsignedinteger[Any]]
Floats = NDArray[np.floating[Any]]

_KEY_OF = {np.dtype(f"f{size}"): np.dtype(f"u{size}") for size in (2, 4, 8)}
_FLOAT_OF = {key: value for value, key in _KEY_OF.items()}


def order_keys(responses: ArrayLike) -> Keys:
    """Map floats to unsigned integers of the same width that sort like the floats.

    Negative numbers have all bits flipped, other numbers only the sign bit; -0.0 becomes +0.0 first.

    Args:
        responses: float16, float32 or float64, any shape, layout and writability; infinities are ordered like numbers.

    Returns:
        uint16, uint32 or uint64, same shape, C order.

    Raises:
        TypeError: another dtype.
        ValueError: there is a NaN; names the position of the first.

    >>> order_keys(np.array([-1.5, -0.0, 0.0, 2.0], np.float16))
    array([16895, 32768, 32768, 49152], dtype=uint16)
    """
    responses = check_floats(responses)
    keys, nans = keys_and_nans(responses)
    if nans:
        raise ValueError(f"responses hold {nans} NaN, the first at {first_nan(responses)}; a NaN has no rank")
    return keys


def key_values(keys: NDArray[Any]) -> Floats:
    """Return the floats of keys: the inverse of order_keys.

    Args:
        keys: uint16, uint32 or uint64, any shape.

    Returns:
        float16, float32 or float64, same shape; NaN for keys that belong to no number.

    Raises:
        TypeError: another dtype.

    >>> key_values(np.array([16895, 49152], np.uint16))
    array([-1.5,  2. ], dtype=float16)
    """
    if keys.dtype not in _FLOAT_OF:
        raise TypeError(f"keys are {keys.dtype}; expected uint16, uint32 or uint64, as order_keys returns")
    sign, _ = _sign_and_infinity(keys.dtype)
    bits = np.where(keys & sign, keys ^ sign, ~keys)
    values: Floats = bits.view(_FLOAT_OF[keys.dtype])
    return values


def check_floats(responses: ArrayLike) -> Floats:
    """Return the array, or raise a TypeError if its dtype has no keys."""
    floats = np.asarray(responses)
    if floats.dtype not in _KEY_OF:
        raise TypeError(
            f"responses are {floats.dtype}; expected float16, float32 or float64 (native byte order): cast with .astype"
        )
    return floats


def keys_and_nans(responses: Floats) -> tuple[Keys, int]:
    """Return the keys (same shape, C order) and the number of NaN, whose keys are meaningless."""
    keys: Keys = np.array(responses, order="C").view(_KEY_OF[responses.dtype])
    return keys, _bits_to_keys(keys.reshape(-1), *_sign_and_infinity(keys.dtype))


def first_nan(responses: Floats) -> tuple[int, ...]:
    """Return the index of the first NaN in C order; there must be one."""
    return tuple(int(i) for i in np.unravel_index(np.isnan(responses).argmax(), responses.shape))


def _sign_and_infinity(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return, as scalars of a key dtype, the sign bit and the bits of +infinity."""
    sign = dtype.type(1 << (8 * dtype.itemsize - 1))
    return sign, np.array(np.inf, _FLOAT_OF[dtype]).view(dtype)[()]


@jit
def _bits_to_keys(bits: Keys, sign: Any, infinity: Any) -> int:
    """Replace the bits of floats (n,) by their keys; return the number of NaN."""
    nans = 0
    for i in range(bits.size):
        magnitude = bits[i] & ~sign
        nans += magnitude > infinity
        bits[i] = ~bits[i] if bits[i] > sign else magnitude | sign
    return nans
