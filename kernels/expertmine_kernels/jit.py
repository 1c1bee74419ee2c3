"""The compiler settings of this package: the only module that uses Numba's decorator. Knows no kernel.

Kernels release the GIL (Dask owns the threads) and are compiled lazily for the types of their arguments (explicit
signatures would need a second variant for read-only arrays). They are not cached (processes that share a cache have
crashed), not parallel (it aborts inside threads), and not fast-math (the same input must give the same bits on every
machine).
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
