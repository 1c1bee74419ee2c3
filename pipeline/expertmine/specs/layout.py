"""How a run's store is split into tasks. Knows no store; only the arithmetic of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from expertmine.specs.checks import require

MAX_TASKS = 1_000_000
"""Tasks per stage; each writes files of its own."""
MAX_SEGMENTS = 1_000
"""Segments of a run: the first corpus and each time it grew."""
MAX_CELLS = 2**31
"""Rows of a store, and numbers in one of its shards; a shard is held in memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the store is split: rows are sentences, columns are units.

    Each segment starts a new partition, so that stored responses stay in their rows when the corpus grows.
    """

    segments: tuple[int, ...]
    """Number of sentences per segment."""
    units: int
    """Number of columns that hold a unit."""
    partition_rows: int
    """Rows per partition, which one extraction task writes; it owns whole shards, since a shard is the write unit."""
    block_units: int
    """Units per block, which one scoring task reads; also the width of a chunk, so that each chunk is read once."""
    shard_units: int
    """Width of a shard, a multiple of `block_units`."""

    def __post_init__(self) -> None:
        sizes = (*self.segments, self.units, self.partition_rows, self.block_units, self.shard_units)
        require(bool(self.segments) and min(sizes) >= 1, "layout: a size is 0 or less, so there is nothing to store")
        require(
            self.shard_units % self.block_units == 0,
            f"layout: shard_units is {self.shard_units}, expected a multiple of block_units, {self.block_units}",
        )
        require(
            len(self.segments) <= MAX_SEGMENTS,
            f"layout: {len(self.segments):,} segments, expected at most {MAX_SEGMENTS:,}; plan the grown corpus as a "
            "new run",
        )
        tasks, cells = max(self.partitions, self.blocks), self.partition_rows * self.shard_units
        require(
            tasks <= MAX_TASKS,
            f"layout: {tasks:,} tasks in a stage, expected at most {MAX_TASKS:,}; make partitions or blocks larger",
        )
        require(
            max(cells, self.padded_shape[0]) <= MAX_CELLS,
            f"layout: {self.padded_shape[0]:,} rows and shards of {cells:,} numbers, expected at most {MAX_CELLS:,} "
            "of each",
        )

    @property
    def sentences(self) -> int:
        """Rows that hold a sentence."""
        return sum(self.segments)

    @property
    def partitions(self) -> int:
        """Number of extraction tasks."""
        return sum(self._partitions_of(sentences) for sentences in self.segments)

    @property
    def blocks(self) -> int:
        """Number of blocks of units."""
        return -(-self.units // self.block_units)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Rows and columns of the stored array, padded to whole shards."""
        return self.partitions * self.partition_rows, -(-self.units // self.shard_units) * self.shard_units

    @property
    def objects_per_partition(self) -> int:
        """Files that a partition writes per pooling, not counting its file of tokens."""
        return self.padded_shape[1] // self.shard_units

    def first_row(self, segment: int) -> int:
        """Return the row of a segment's first sentence."""
        return sum(self._partitions_of(sentences) for sentences in self.segments[:segment]) * self.partition_rows

    def segment_of(self, partition: int) -> int:
        """Return the segment that a partition belongs to."""
        row = partition * self.partition_rows
        return max(at for at in range(len(self.segments)) if self.first_row(at) <= row)

    def partition(self, index: int) -> range:
        """Return the rows of one extraction task."""
        segment = self.segment_of(index)
        start = index * self.partition_rows
        return range(start, min(start + self.partition_rows, self.first_row(segment) + self.segments[segment]))

    def block(self, index: int) -> range:
        """Return the units of one block."""
        start = index * self.block_units
        return range(start, min(start + self.block_units, self.units))

    def _partitions_of(self, sentences: int) -> int:
        return -(-sentences // self.partition_rows)
