"""Measures this machine's unit costs in a second or two, on made-up responses. Knows no job and no cluster.

Measures the CPU time of one thread, so other programs on the machine have little influence.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from expertmine.capacity.unit_costs import Cost, KernelCosts, UnitCosts
from expertmine.mining.scoring_memory import WIDEST_BLOCK
from expertmine.run.store import encoded_size
from expertmine.specs.settings import Codec, Compression, StoredType
from expertmine_kernels import ConceptRows, expertise

MAX_ROWS = 1_000_000
ROUNDS = 5
_RESPONSES = 2_000_000
"""Number of made-up responses; sets the number of units."""
_POOL, _SMALL, _LARGE = 100, 100, 800
"""Sentences in the pool of negatives, and positives in small and in large sets."""
_FEW = 50
"""Number of sets of labels; more with many rows, so that ranking does not dominate."""


def measure(dtype: StoredType, codec: Codec, rows: int, costs: UnitCosts) -> UnitCosts:
    """Replace the costs of kernels and compression by measurements on this machine.

    Args:
        rows: sentences that a unit is ranked over; at most MAX_ROWS are measured.
        costs: source of all other costs.
    """
    source = f"measured on this machine ({platform.machine()})"
    kernels = {**costs.kernels, dtype: (measure_kernels(dtype, rows),)}
    encode = Cost(_encoding_speed(dtype, codec), costs.encode[codec].unit, source)
    # Reading is not measured, but scaled by the same ratio as writing.
    decode = replace(costs.decode, value=costs.decode.value * encode.value / costs.encode[codec].value)
    return replace(costs, kernels=kernels, kernels_source=source, encode={**costs.encode, codec: encode}, decode=decode)


def measure_kernels(dtype: StoredType, rows: int) -> KernelCosts:
    """Measure kernels at three sizes of work; the differences give the cost of each part.

    Args:
        rows: sentences per unit; 2,000 to `MAX_ROWS` are measured.
    """
    rows = min(max(rows, 2_000), MAX_ROWS)
    units = max(4, _RESPONSES // rows)
    more, larger = min(max(200, rows // 500), 2_000), min(max(_FEW, rows // 2_500), 400)
    responses = _made_up(rows, units, dtype)
    few, many = _sets(rows, _FEW, _SMALL), _sets(rows, _FEW + more, _SMALL)
    large = _sets(rows, larger, _LARGE)
    expertise(responses[:, :1], few)  # compiles before timing
    of_few, of_many, of_large = (
        _shortest(lambda sets=sets: expertise(responses, sets)) / units  # type: ignore[misc]
        for sets in (few, many, large)
    )
    per_set = max((of_many - of_few) / more, 1e-9)
    ranking = max(of_few - _FEW * per_set, 1e-10 * rows)
    positive = max(((of_large - ranking) / larger - per_set) / (_LARGE - _SMALL), 1e-10)
    return KernelCosts(
        rows=rows,
        rank=ranking / rows,
        pair=max(per_set - _SMALL * positive, 1e-9),
        positive=positive,
    )


def _encoding_speed(dtype: StoredType, codec: Codec) -> float:
    """Bytes per second."""
    responses = _made_up(2048, 2 * WIDEST_BLOCK, dtype)
    seconds = _shortest(lambda: encoded_size(responses, WIDEST_BLOCK, Compression(codec)))
    return responses.nbytes / seconds


def _made_up(rows: int, units: int, dtype: StoredType) -> NDArray[np.floating]:
    """(rows, units) normal responses, unit-major in memory as in the store."""
    return np.random.default_rng(0).standard_normal((units, rows), np.float32).astype(dtype).T


def _sets(rows: int, count: int, positives: int) -> ConceptRows:
    """Sets of random positives with one pool of negatives."""
    rng = np.random.default_rng(1)
    drawn = [_POOL + rng.choice(rows - _POOL, positives, replace=False) for _ in range(count)]
    return ConceptRows.from_pools(drawn, [np.arange(_POOL)], [0] * count, [[]] * count)


def _shortest(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest round."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)
