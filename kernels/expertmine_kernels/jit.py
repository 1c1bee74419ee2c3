"""How this package compiles: the only place where Numba's decorator is spelled.

Kernels release the GIL (Dask owns the threads), are compiled lazily for the types they meet (explicit signatures would
need a second variant for read-only arrays), and are neither cached (several processes sharing a cache have crashed),
nor parallel (aborts inside threads), nor fast-math (the same input must give the same bits on every machine).
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function in nopython mode at its first call; it keeps its type."""
    compiled: Callable[P, R] = numba.njit(nogil=True)(function)
    return compiled
