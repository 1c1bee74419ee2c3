"""What scoring a block of units takes of memory: how wide a block may be when a run is planned, and how much of one a
process takes on at once. A model of the arrays that are held at the same time, checked by measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expertmine.errors import StageError
from expertmine.memory import resident_bytes
from expertmine.progress import size
from expertmine.specs import StoredType

BASE = 450 * 2**20
"""Bytes of a scoring process before its first task, as planning has to guess: Python, libraries, compiled kernels."""
_STATISTICS = 6 * 8
"""Bytes that kernels return of a pair."""
_STORED = 3 * 8 + 4 * 4
"""Bytes that are stored of a pair, before compression."""
_RESPONSES_AT_ONCE, _UNITS_AT_ONCE = 1 << 18, 8
"""Kernels rank so many responses at once, and so many units at least."""


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
        """Bytes that kernels hold while they rank."""
        scratch = {2: 22, 4: 48}[np.dtype(self.dtype).itemsize]
        return scratch * max(_RESPONSES_AT_ONCE, _UNITS_AT_ONCE * self.rows)

    def needed(self, block_units: int, strip_units: int) -> int:
        """Bytes that a task takes beyond what the process held before it."""
        return self.ranks + block_units * self.block_unit + strip_units * self.strip_unit

    def widest_block(self, room: int) -> int:
        """Units of a block that is taken on whole; below 1 where not one fits."""
        return (room - self.ranks) // (self.block_unit + self.strip_unit)

    def widest_strip(self, room: int, block_units: int) -> int:
        """Units of a block that may be taken on at once, no more than it has; below 1 where not one fits."""
        return min(block_units, (room - self.ranks - block_units * self.block_unit) // self.strip_unit)


class Room:
    """How much memory a process has for blocks, of what it may hold."""

    def __init__(self, run: Path, memory: int, threads: int) -> None:
        """Begin before anything is loaded.

        Args:
            memory: bytes that the process may hold. What it holds already counts, but no more of that than `BASE`:
                a process that has done other things before cannot help what they left.
            threads: tasks that it may have at the same time.
        """
        self.run, self.memory, self.threads = run, memory, threads
        self._uncounted = max(0, resident_bytes() - BASE)

    def strip_units(self, work: Work, block_units: int) -> int:
        """How many units of a block are taken on at once, now that all else is loaded; all of them, when they fit.

        Raises:
            StageError: not one fits; says what would do.
        """
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
