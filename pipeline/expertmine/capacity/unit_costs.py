"""The cost of one unit of each kind of work, and where it was measured. Knows no job and no cluster.

The figures are CPU time of one core of an x86-64 server processor (AVX-512), so other load had little influence. Other
processors differ; `expertmine.capacity.calibrate` measures kernels and compression on the current machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from expertmine.specs.settings import Autocast, Codec, StoredType


@dataclass(frozen=True, slots=True)
class KernelCosts:
    """Costs of the kernels for units ranked over a number of sentences."""

    rows: int
    rank: float
    """Seconds per (sentence, unit) to rank responses."""
    pair: float
    """Seconds per (set of labels, unit) of any size: a bitmap over the unit's levels is cleared and counted."""
    positive: float
    """Seconds per positive of a (set of labels, unit), for random positives, the worst case for caches."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One figure."""

    value: float
    unit: str
    source: str
    """How it was measured, or that it is assumed."""


_KERNELS = "CPU time of one core of a server processor (AVX-512), normal responses"
_STORE = "CPU time of Store on the demo's responses, chunks of 2,048 × 256"
_STAGES = "CPU time of the stages on made-up responses, 300 and 1,200 concepts × 4,096 and 16,384 units"
_FORWARD = "docs/extraction.md: extraction of a GPT-2 of 6 layers × 384, two cores, tests/benchmarks/bench_extract.py"


@dataclass(frozen=True)
class UnitCosts:
    """Costs of work on one core or in one process, measured unless the source says assumed."""

    kernels: Mapping[StoredType, Sequence[KernelCosts]] = field(
        default_factory=lambda: {
            "float16": (
                KernelCosts(10_000, 1.9e-9, 130e-9, 3.3e-9),
                KernelCosts(100_000, 1.9e-9, 260e-9, 4.1e-9),
                KernelCosts(1_000_000, 1.9e-9, 500e-9, 8.8e-9),
            ),
            "float32": (
                KernelCosts(10_000, 7.3e-9, 130e-9, 3.4e-9),
                KernelCosts(100_000, 9.0e-9, 1.7e-6, 5.1e-9),
                KernelCosts(1_000_000, 14.5e-9, 5.3e-6, 31.6e-9),
            ),
        }
    )
    kernels_source: str = _KERNELS
    own_negative: Cost = Cost(0.7, "of a positive, per negative of one concept alone", "docs/scoring.md, kernels")
    operations: Mapping[Autocast, Cost] = field(
        default_factory=lambda: {
            # 4,718 and 11,399 tokens per second, 2 × 10.6 million operations each, on two cores.
            "none": Cost(50e9, "operations/s of a core, forward pass in float32", _FORWARD),
            "bfloat16": Cost(120e9, "operations/s of a core, forward pass in bfloat16", _FORWARD),
            "float16": Cost(120e9, "operations/s of a core, forward pass in float16", "assumed equal to bfloat16"),
        }
    )
    tokenise: Cost = Cost(50e-6, "s per sentence", "CPU time of tokenising 2,048 sentences of 18 tokens")
    encode: Mapping[Codec, Cost] = field(
        default_factory=lambda: {
            "zstd": Cost(190e6, "bytes/s into shards, checksums included", _STORE),
            "lz4": Cost(215e6, "bytes/s into shards, checksums included", _STORE),
            "none": Cost(260e6, "bytes/s into shards, checksums included", _STORE),
        }
    )
    decode: Cost = Cost(500e6, "bytes/s out of shards", _STORE)
    chunk: Cost = Cost(0.35e-3, "s per chunk read, in addition to its bytes", "CPU time of Store, chunks of 4 kB")
    scores: Cost = Cost(420e6, "bytes/s of statistics, encoded and written", _STAGES)
    written: Cost = Cost(2.5e-3, "s per object written, in addition to its bytes", _STAGES)
    resample: Cost = Cost(0.3e-9, "s per (sentence, resample) of an assessed unit", "CPU time of the kernel")
    draw: Cost = Cost(1.4e-9, "s per (sentence, resample) of a concept and block", "CPU time of the kernel")
    assess: Cost = Cost(0.2e-3, "s per (concept, block) with assessed units", _STAGES)
    select: Cost = Cost(0.1e-6, "s per pair to choose the units to assess, in one process", _STAGES)
    reduce: Cost = Cost(0.3e-6, "s per pair to write the index, in one process", _STAGES)
    begin: Cost = Cost(8.0, "s between stages to start processes and compile kernels", "docs/scoring.md, the demo")
    compressed: Mapping[Codec, Cost] = field(
        default_factory=lambda: {
            "zstd": Cost(0.85, "bytes stored per byte of responses", "docs/extraction.md"),
            "lz4": Cost(0.91, "bytes stored per byte of responses, with bitshuffle", "docs/extraction.md"),
            "none": Cost(1.0, "bytes stored per byte of responses", "docs/extraction.md"),
        }
    )

    def kernels_of(self, dtype: StoredType, rows: int) -> KernelCosts:
        """Costs for a number of sentences, interpolated along its logarithm; outside the measurements, the nearest."""
        points = self.kernels[dtype]
        if rows <= points[0].rows:
            return points[0]
        for low, high in itertools.pairwise(points):
            if rows <= high.rows:
                part = math.log(rows / low.rows) / math.log(high.rows / low.rows)
                pairs = ((low.rank, high.rank), (low.pair, high.pair), (low.positive, high.positive))
                return KernelCosts(rows, *(first + part * (second - first) for first, second in pairs))
        return points[-1]


MEASURED = UnitCosts()
"""The project's own measurements."""
