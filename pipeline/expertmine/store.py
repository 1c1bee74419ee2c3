"""The Zarr store of a run: pooled responses and expertise. The only importer of zarr and numcodecs.

A shard is the write unit: zarr cannot write part of one, so an extraction task owns the shards of its rows and a
scoring task the chunks of its units, and every dimension is padded to whole ones. Responses are stored unit-major
(a transposed codec), which compresses better and is the order in which scoring reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.core.sync import sync
from zarr.storage import StorePath

from expertmine.errors import UserError
from expertmine.files import writing
from expertmine.specs import Plan

STATISTICS = {
    "ap": "float64",
    "auroc": "float64",
    "held_out_ap": "float64",
    "on_mean": "float32",
    "on_p50": "float32",
    "on_p90": "float32",
    "off_mean": "float32",
}
"""Stored statistics a (concept, unit) and their types. ``held_out_ap`` is NaN for concepts without held-out labels."""

# Workers bring their own parallelism; a pool of threads in each would fight it.
numcodecs.blosc.set_nthreads(1)
# A shard that is not there was lost, never left out for being all zeros.
zarr.config.set({"array.write_empty_chunks": True})


_REMEDY = "`expertmine verify RUN` says which receipts to remove; run the stage again after that"


class Store:
    """The arrays of one run, opened for a plan."""

    def __init__(self, run: Path, plan: Plan) -> None:
        """Open the store that `create_store` made.

        Raises:
            UserError: it is not there, or has another layout than the plan.
        """
        path = run / "store.zarr"
        try:
            group = zarr.open_group(path, mode="r+")
            arrays = {name: group[name] for name in _layouts(plan)}
        except (zarr.errors.BaseZarrError, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: cannot be opened as this run's store ({error}); use a new run folder") from error
        self.plan = plan
        self._path = path
        self._arrays: dict[str, zarr.Array[Any]] = {}
        for name, layout in _layouts(plan).items():
            array = arrays[name]
            if not isinstance(array, zarr.Array) or array.shape != layout["shape"] or array.chunks != layout["chunks"]:
                raise UserError(f"{path / name} has another layout than the plan; use a new run folder")
            self._arrays[name] = array

    def write_partition(self, index: int, responses: NDArray[np.floating[Any]], tokens: NDArray[np.int32]) -> str:
        """Store one partition.

        Args:
            responses: (sentences of the partition, units), of the plan's type.
            tokens: (sentences of the partition,) how many tokens were pooled; 0 marks a sentence that was dropped.

        Returns:
            The checksum for its receipt.

        Raises:
            UserError: the disk is full or refuses.
        """
        rows = self.plan.layout.partition_rows
        span = slice(index * rows, (index + 1) * rows)
        padded = np.zeros((rows, self._arrays["responses"].shape[1]), self.plan.responses.dtype)
        padded[: responses.shape[0], : responses.shape[1]] = responses
        padded_tokens = np.zeros(rows, np.int32)
        padded_tokens[: len(tokens)] = tokens
        with writing(self._path):
            sync(self._remove_shards(index))
            self._arrays["responses"][span] = padded
            self._arrays["tokens"][span] = padded_tokens
        return checksum(padded, padded_tokens)

    def require_every_shard(self) -> None:
        """Refuse to read responses or tokens of which a part is lost: zarr would make zeros of it.

        Raises:
            UserError: names the first partition that lost one.
        """
        for partition in range(self.plan.layout.partitions):
            if not sync(self._has_every_shard(partition)):
                raise UserError(f"{self._path}: partition {partition} has lost a shard; {_REMEDY}")

    async def _has_every_shard(self, partition: int) -> bool:
        return all([await shard.exists() for shard in self._shards(partition)])

    async def _remove_shards(self, partition: int) -> None:
        """Remove what a former attempt left: zarr reads a shard before it writes it, and stumbles over a torn one."""
        for shard in self._shards(partition):
            await shard.delete()

    def _shards(self, partition: int) -> list[StorePath]:
        """Where a partition's shards of responses, and its tokens, lie."""
        layout = self.plan.layout
        shards = range(layout.padded_shape[1] // layout.shard_units)
        keys = [("tokens", (partition,)), *(("responses", (partition, shard)) for shard in shards)]
        arrays = [(self._arrays[name], key) for name, key in keys]
        return [array.store_path / array.metadata.encode_chunk_key(key) for array, key in arrays]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # what zarr and its codecs raise over torn bytes
            raise UserError(f"{self._path} is damaged ({error}); {_REMEDY}") from error

    def partition_checksum(self, index: int) -> str:
        """Read a partition back and give its checksum."""
        rows = self.plan.layout.partition_rows
        span = slice(index * rows, (index + 1) * rows)
        return checksum(np.asarray(self._arrays["responses"][span]), np.asarray(self._arrays["tokens"][span]))

    def read_responses(self, units: range) -> NDArray[np.floating[Any]]:
        """(sentences, units) of every sentence; reads whole chunks once when `units` is a block of the layout.

        Raises:
            UserError: a shard is damaged.
        """
        with self._reading():
            return np.asarray(self._arrays["responses"][: self.plan.layout.sentences, units.start : units.stop])

    def read_tokens(self) -> NDArray[np.int32]:
        """(sentences,) pooled tokens; 0 for a sentence that was dropped.

        Raises:
            UserError: a chunk is damaged.
        """
        with self._reading():
            return np.asarray(self._arrays["tokens"][: self.plan.layout.sentences])

    def write_scores(self, index: int, statistics: Mapping[str, NDArray[np.floating[Any]]]) -> str:
        """Store one block of every statistic, each (concepts, units of the block).

        Returns:
            The checksum for its receipt.
        """
        width = self.plan.layout.block_units
        written = []
        for name in STATISTICS:
            array = self._arrays[f"expertise/{name}"]
            padded = np.full((array.shape[0], width), np.nan, array.dtype)
            padded[:, : statistics[name].shape[1]] = statistics[name]
            with writing(self._path):
                array[:, index * width : (index + 1) * width] = padded
            written.append(padded)
        return checksum(*written)

    def scores_checksum(self, index: int) -> str:
        """Read a block of expertise back and give its checksum."""
        width = self.plan.layout.block_units
        span = slice(index * width, (index + 1) * width)
        return checksum(*(np.asarray(self._arrays[f"expertise/{name}"][:, span]) for name in STATISTICS))

    def read_scores(self, name: str, units: range) -> NDArray[np.floating[Any]]:
        """One statistic, (concepts, units).

        Raises:
            UserError: a chunk is damaged.
        """
        with self._reading():
            return np.asarray(self._arrays[f"expertise/{name}"][:, units.start : units.stop])


def checksum(*arrays: NDArray[Any]) -> str:
    """SHA-256 over the arrays' bytes in C order: of values, so that it does not depend on the codec."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def create_store(run: Path, plan: Plan) -> None:
    """Make the arrays of a run that are not there yet; for one process, before workers open the store."""
    path = run / "store.zarr"
    with writing(path):
        group = zarr.open_group(path, mode="a")
        for name, layout in _layouts(plan).items():
            if name not in group:
                group.create_array(name, **layout)


def _layouts(plan: Plan) -> dict[str, dict[str, Any]]:
    """Every array of the store: its path in the group → shape, chunks, shards, type and codecs."""
    layout, concepts = plan.layout, plan.corpus.concepts
    rows = layout.partition_rows
    responses = {
        "shape": layout.padded_shape,
        "chunks": (rows, layout.block_units),
        "shards": (rows, layout.shard_units),
        "dtype": plan.responses.dtype,
        "filters": [TransposeCodec(order=(1, 0))],
        "compressors": [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"), Crc32cCodec()],
        "fill_value": 0,
    }
    tokens = {"shape": layout.padded_shape[:1], "chunks": (rows,), "dtype": "int32", "fill_value": 0}
    expertise = {
        "shape": (concepts, layout.blocks * layout.block_units),
        "chunks": (concepts, layout.block_units),
        "compressors": [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle")],
        "fill_value": float("nan"),
    }
    scores = {f"expertise/{name}": {**expertise, "dtype": dtype} for name, dtype in STATISTICS.items()}
    return {"responses": responses, "tokens": tokens, **scores}
