"""What hostile input must meet: one message, before any work or memory that it asks for is spent on it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pytest

from expertmine.errors import UserError

LITTLE = 200_000_000
"""Bytes that may be taken on the way to a refusal; the inputs ask for more, some for petabytes."""


_pools: list[pa.MemoryPool] = []
"""Those that were measured: Arrow keeps no reference, and what was allocated from one may live on."""


@contextmanager
def little_memory() -> Iterator[None]:
    """Require that what happens within takes little memory: of Python and numpy, and of Arrow."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    _pools.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
    assert peak < LITTLE
    assert (pool.max_memory() or 0) < LITTLE


@contextmanager
def refusal(match: str) -> Iterator[None]:
    """Require one message that steers no terminal, at the cost of little memory."""
    with little_memory(), pytest.raises(UserError, match=match) as raised:
        yield
    assert "\x1b" not in str(raised.value)
