"""What scoring a block of units takes of memory: how wide a block may be when a run is planned, and how much of one a
process takes on at once. A model of the arrays that are held at the same time, checked by measurements."""

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
"""Units of a block at most: wider ones gain nothing, and fewer tasks keep fewer workers busy."""
NARROWEST_BLOCK = 16
"""Units of a block at least, unless less memory is given than that takes."""
GOOD_BYTES = 512 * 2**20
"""Responses and what becomes of them that a block holds, unless more memory, or less, is given."""
_COMPILED = 310 * 2**20
"""Bytes of a process with Python, libraries and compiled kernels."""
_A_SENTENCE = 700
"""Bytes of labels, keys and places that a process holds of each sentence."""
_FRESH = 200 * 2**20
"""Bytes of a process that has imported what scoring needs, and done nothing yet."""
_DECODING = 64 * 2**20
"""Bytes of chunks that are read and decoded at the same time."""
_STATISTICS = 6 * 8
"""Bytes that kernels return of a pair."""
_STORED = 3 * 8 + 4 * 4
"""Bytes that are stored of a pair, before compression."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every unit of a run is scored on."""

    rows: int
    """Stored sentences."""
    concepts: int
    sets: int
    """Sets of labels: mined, held out, shuffled."""
    dtype: StoredType

    @property
    def base(self) -> int:
        """Bytes of a process before its first task, as planning has to guess."""
        return _COMPILED + self.rows * _A_SENTENCE

    @property
    def strip_unit(self) -> int:
        """Bytes of each unit that is taken on at once: responses, what becomes of them, and what kernels return."""
        itemsize = np.dtype(self.dtype).itemsize
        return self.rows * itemsize + self.sets * _STATISTICS

    @property
    def block_unit(self) -> int:
        """Bytes of each unit of a block until the block is written: its statistics, and one of them encoded."""
        return self.concepts * (_STORED + 3 * 8)

    @property
    def ranks(self) -> int:
        """Bytes that kernels hold while they rank; no less than what reading took before them."""
        scratch = {2: 22, 4: 48}[np.dtype(self.dtype).itemsize]
        return max(_DECODING, scratch * responses_at_once(self.rows))

    def needed(self, block_units: int, strip_units: int) -> int:
        """Bytes that a task takes beyond what the process held before it."""
        return self.ranks + block_units * self.block_unit + strip_units * self.strip_unit

    def widest_block(self, room: int) -> int:
        """Units of a block that is taken on whole; below 1 where not one fits."""
        return (room - self.ranks) // (self.block_unit + self.strip_unit)

    def widest_strip(self, room: int, block_units: int) -> int:
        """Units of a block that may be taken on at once, no more than it has; below 1 where not one fits."""
        return min(block_units, (room - self.ranks - block_units * self.block_unit) // self.strip_unit)


class MemoryBudget:
    """How much memory a process has for blocks, of what it may hold."""

    def __init__(self, run: Location, memory: int | None, threads: int) -> None:
        """Begin before anything is loaded.

        Args:
            memory: bytes that the process may hold, None for no bound. Of what it holds already, no more counts than a
                fresh process has: where others have worked before, most of that is free to be used again.
            threads: tasks that it may have at the same time.
        """
        self.run, self.memory, self.threads = run, memory, threads
        self._uncounted = max(0, resident_bytes() - _FRESH)

    def strip_units(self, work: Work, block_units: int) -> int:
        """How many units of a block are taken on at once, now that all else is loaded; all of them, when they fit.

        Raises:
            StageError: not one fits; says what would do.
        """
        if self.memory is None:
            return block_units
        held = max(0, resident_bytes() - self._uncounted)
        units = work.widest_strip((self.memory - held) // self.threads, block_units)
        if units < 1:
            least = held + self.threads * work.needed(block_units, 1)
            raise StageError(
                f"{self.run}: a scoring process may hold {size(self.memory)}, and a unit's responses to "
                f"{work.rows:,} sentences with all that is computed of a block take {size(least)}; give it that with "
                "--scoring-memory"
            )
        return units


def strips(units: range, width: int) -> Iterator[range]:
    """The units of a block, so many at a time."""
    for start in range(units.start, units.stop, width):
        yield range(start, min(start + width, units.stop))
