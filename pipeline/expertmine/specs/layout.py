"""How a run's store is cut into tasks: rows are sentences, columns are units."""

from __future__ import annotations

from dataclasses import dataclass

from expertmine.specs.checks import require

MAX_TASKS = 1_000_000
"""Of a stage; each leaves files of its own."""
MAX_SEGMENTS = 1_000
"""Times that a corpus may grow, less one."""
MAX_CELLS = 2**31
"""Rows of a store, or numbers in one of its shards, which are held in memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the store is cut: rows are sentences, columns are units.

    Each segment begins with a partition of its own, so that what was stored before stays where it is.
    """

    segments: tuple[int, ...]
    """Sentences of each segment."""
    units: int
    """Columns that hold a unit."""
    partition_rows: int
    """Sentences an extraction task; a partition owns whole shards, since a shard is the write unit."""
    block_units: int
    """Units a scoring task, the width of a chunk: a block of chunks is read once, whole."""
    shard_units: int
    """Width of a shard, a multiple of `block_units`."""

    def __post_init__(self) -> None:
        sizes = (*self.segments, self.units, self.partition_rows, self.block_units, self.shard_units)
        require(bool(self.segments) and min(sizes) >= 1, "layout: nothing to store")
        require(self.shard_units % self.block_units == 0, "layout: a shard must hold whole chunks")
        require(
            len(self.segments) <= MAX_SEGMENTS,
            f"layout: {len(self.segments):,} segments, at most {MAX_SEGMENTS:,}; plan the grown corpus as a new run",
        )
        tasks, cells = max(self.partitions, self.blocks), self.partition_rows * self.shard_units
        require(tasks <= MAX_TASKS, f"layout: {tasks:,} tasks of a stage, at most {MAX_TASKS:,}; cut it coarser")
        require(
            max(cells, self.padded_shape[0]) <= MAX_CELLS,
            f"layout: {self.padded_shape[0]:,} rows in shards of {cells:,} numbers, at most {MAX_CELLS:,} of each",
        )

    @property
    def sentences(self) -> int:
        """Rows that hold a sentence."""
        return sum(self.segments)

    @property
    def partitions(self) -> int:
        return sum(self._partitions_of(sentences) for sentences in self.segments)

    @property
    def blocks(self) -> int:
        return -(-self.units // self.block_units)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored array: whole shards only."""
        return self.partitions * self.partition_rows, -(-self.units // self.shard_units) * self.shard_units

    @property
    def objects_a_partition(self) -> int:
        """Files that a partition writes for each pooling, beside that of its tokens."""
        return self.padded_shape[1] // self.shard_units

    def first_row(self, segment: int) -> int:
        """The row of a segment's first sentence."""
        return sum(self._partitions_of(sentences) for sentences in self.segments[:segment]) * self.partition_rows

    def segment_of(self, partition: int) -> int:
        """The segment that a partition belongs to."""
        row = partition * self.partition_rows
        return max(at for at in range(len(self.segments)) if self.first_row(at) <= row)

    def partition(self, index: int) -> range:
        """The rows of one extraction task."""
        segment = self.segment_of(index)
        start = index * self.partition_rows
        return range(start, min(start + self.partition_rows, self.first_row(segment) + self.segments[segment]))

    def block(self, index: int) -> range:
        """The units of one block."""
        start = index * self.block_units
        return range(start, min(start + self.block_units, self.units))

    def _partitions_of(self, sentences: int) -> int:
        return -(-sentences // self.partition_rows)
