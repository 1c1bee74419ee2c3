"""The memory that scoring a block of units takes: how wide a block may be when a run is planned, and how wide a *strip*
of a block a process takes at once. It models the arrays that are held at the same time; measurements check it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from expertmine.errors import StageError
from expertmine.mining.allocator import resident_bytes
from expertmine.specs.settings import StoredType
from expertmine.storage.locations import Location
from expertmine.telemetry.formats import size
from expertmine_kernels import responses_at_once

WIDEST_BLOCK = 256
"""Largest number of units per block: wider blocks gain nothing, and fewer tasks keep fewer workers busy."""
NARROWEST_BLOCK = 16
"""Smallest number of units per block, unless the memory budget is too small for it."""
GOOD_BYTES = 512 * 2**20
"""Bytes of a block's responses and statistics, unless a memory budget is given."""
_COMPILED = 310 * 2**20
"""Bytes of a process with Python, libraries and compiled kernels."""
_A_SENTENCE = 700
"""Bytes of labels, keys and rows that a process holds per sentence."""
_FRESH = 200 * 2**20
"""Bytes of a process that has imported what scoring needs, and has not begun."""
_DECODING = 64 * 2**20
"""Bytes of chunks that are read and decoded at once."""
_STATISTICS = 6 * 8
"""Bytes that kernels return per pair."""
_STORED = 3 * 8 + 4 * 4
"""Bytes that are stored per pair, before compression."""


@dataclass(frozen=True, slots=True)
class Work:
    """The sentences and sets of labels that every unit of a run is scored on."""

    rows: int
    """Stored sentences."""
    concepts: int
    sets: int
    """Sets of labels: mined, held out, shuffled."""
    dtype: StoredType

    @property
    def base(self) -> int:
        """Bytes of a process before its first task, as planning estimates them."""
        return _COMPILED + self.rows * _A_SENTENCE

    @property
    def strip_unit(self) -> int:
        """Bytes per unit of a strip: its responses, and the statistics that kernels return."""
        itemsize = np.dtype(self.dtype).itemsize
        return self.rows * itemsize + self.sets * _STATISTICS

    @property
    def block_unit(self) -> int:
        """Bytes per unit of a block until the block is written: its statistics, and one of them encoded."""
        return self.concepts * (_STORED + 3 * 8)

    @property
    def ranks(self) -> int:
        """Bytes that kernels hold while they rank responses; at least what reading them took."""
        scratch = {2: 22, 4: 48}[np.dtype(self.dtype).itemsize]
        return max(_DECODING, scratch * responses_at_once(self.rows))

    def needed(self, block_units: int, strip_units: int) -> int:
        """Bytes that a task takes beyond what the process held before."""
        return self.ranks + block_units * self.block_unit + strip_units * self.strip_unit

    def widest_block(self, budget: int) -> int:
        """Units of a block that fits a memory budget as one strip; below 1 if not one fits."""
        return (budget - self.ranks) // (self.block_unit + self.strip_unit)

    def widest_strip(self, budget: int, block_units: int) -> int:
        """Units of a strip that fits a memory budget, at most those of the block; below 1 if not one fits."""
        return min(block_units, (budget - self.ranks - block_units * self.block_unit) // self.strip_unit)


class MemoryBudget:
    """How much of its memory a process has for blocks."""

    def __init__(self, run: Location, memory: int | None, threads: int) -> None:
        """Measure the process before anything is loaded.

        Args:
            memory: bytes that the process may hold, None for no bound. Memory that it holds already counts only up to
                that of a fresh process: most of the rest was freed by earlier work, and is used again.
            threads: tasks that it runs at the same time.
        """
        self.run, self.memory, self.threads = run, memory, threads
        self._uncounted = max(0, resident_bytes() - _FRESH)

    def strip_units(self, work: Work, block_units: int) -> int:
        """Units per strip, now that everything else is loaded; the whole block if it fits.

        Raises:
            StageError: not one fits; says how much would do.
        """
        if self.memory is None:
            return block_units
        held = max(0, resident_bytes() - self._uncounted)
        units = work.widest_strip((self.memory - held) // self.threads, block_units)
        if units < 1:
            least = held + self.threads * work.needed(block_units, 1)
            raise StageError(
                f"{self.run}: a scoring process may hold {size(self.memory)}, and a unit's responses to "
                f"{work.rows:,} sentences with the statistics of a block take {size(least)}; raise "
                "--scoring-memory to at least that"
            )
        return units


def strips(units: range, width: int) -> Iterator[range]:
    """The units of a block, `width` at a time."""
    for start in range(units.start, units.stop, width):
        yield range(start, min(start + width, units.stop))
