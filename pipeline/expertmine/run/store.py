"""The Zarr store of a run: pooled responses and expertise. The only importer of zarr and numcodecs.

A shard is the write unit: zarr cannot write part of one, so an extraction task owns the shards of its rows and a
scoring task the chunks of its units, and every dimension is padded to whole ones. What a task writes is encoded in
memory and written whole, with a checksum of its bytes for the receipt. Responses are stored unit-major (a
transposed codec), which compresses better and is the order in which scoring reads.

The plan alone says what an array is. The descriptions in a store (``zarr.json``) are compared with the plan's and never
acted upon: an untrusted one could name other codecs, or shapes that no memory holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath

from expertmine.errors import UserError
from expertmine.run.open_run import OpenRun
from expertmine.run.paths import store_folder
from expertmine.run.shards import ShardEncoder
from expertmine.run.statistics import KEPT, statistics_of
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Compression, Pooling
from expertmine.storage.files import read_each, remove_folder, sha256_file, sizes, with_retries, write_atomically
from expertmine.storage.locations import Location, is_remote
from expertmine.storage.untrusted import mismatch

SHARDS_AT_ONCE = 4
"""Shards of a partition that are encoded, hashed and written at a time, each of some 64 MB."""
PIECES_PER_THREAD = 2
"""Tasks of a shard for each thread that encodes: more balance the threads better, fewer cost less."""

DESCRIPTION = "zarr.json"
LARGEST_DESCRIPTION = 1 << 16
"""Bytes of an array's description that are looked at; ours have about a thousand."""
_UNSAID: Mapping[str, Any] = {"attributes": {}, "storage_transformers": [], "dimension_names": None}
"""Parts of a description that mean nothing when they are as here, and need not be there."""

# Workers bring their own parallelism; a pool of threads in each would fight it.
numcodecs.blosc.set_nthreads(1)
# A shard that is not there was lost, never left out for being all zeros.
zarr.config.set({"array.write_empty_chunks": True})


Read = TypeVar("Read")

_REMEDY = "`expertmine verify RUN` says which receipts to remove; run the stage again after that"


class Store:
    """The arrays of one run."""

    def __init__(self, run: OpenRun, write_threads: int = 1) -> None:
        """Open the store that `create_store` made.

        Args:
            write_threads: that encode and hash what `write_partition` writes.

        Raises:
            UserError: it is not there, or has another layout than the plan.
        """
        path = store_folder(run.path)
        templates, expected = _template_arrays(run.plan)
        found = _read_descriptions(path, templates)
        for name in templates:
            if found[name] is None:
                raise UserError(
                    f"{path}: cannot be opened as this run's store ({name} is missing); use a new run folder"
                )
            if _normalised_metadata(found[name]) != _normalised_metadata(expected[name]):
                raise _another_layout(path / name)
        self.plan = run.plan
        self._path = path
        self._written: dict[str, int] = {}
        self._encoder = ShardEncoder(run.plan.layout.block_units, run.plan.compression, run.plan.responses.dtype)
        # Shards wait for their chunks, so the two need pools of their own; threads begin when there is work for them.
        self._chunk_threads = ThreadPoolExecutor(write_threads, "chunks")
        self._pieces = PIECES_PER_THREAD * write_threads
        self._shard_threads = ThreadPoolExecutor(min(write_threads, SHARDS_AT_ONCE), "shards")
        root = _root(path)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        for name, template in templates.items():
            array: zarr.Array[Any] = zarr.Array(zarr.AsyncArray[Any](template.metadata, StorePath(root, name)))
            # Unit-major in memory as in the store: decoding need not transpose, nor need the kernels.
            self._arrays[name] = array.with_config({"order": "F"}) if name.startswith("responses/") else array

    def write_partition(
        self, index: int, responses: Mapping[Pooling, NDArray[np.floating[Any]]], tokens: NDArray[np.int32]
    ) -> dict[str, str]:
        """Store one partition.

        Args:
            responses: of each pooling, (padded units, partition rows) of the plan's type, 0 where nothing was run;
                fastest where each unit's rows are contiguous.
            tokens: (partition rows,) how many tokens were pooled; 0 for sentences that were not run.

        Returns:
            The checksum of each object written, by its key, for the receipt.

        Raises:
            UserError: the disk is full or refuses.
        """
        width = self.plan.layout.shard_units
        shards = [
            self._shard_threads.submit(
                self._put_shard, pooling, (index, shard), values[shard * width : (shard + 1) * width]
            )
            for pooling, values in responses.items()
            for shard in range(self.plan.layout.objects_per_partition)
        ]
        wait(shards)
        checksums = dict(pair for shard in shards for pair in shard.result().items())
        return checksums | self._put("tokens", (index,), tokens)

    def _put_shard(
        self, pooling: Pooling, position: tuple[int, int], unit_major: NDArray[np.floating[Any]]
    ) -> dict[str, str]:
        """Write one shard of responses; returns its checksum by its key."""
        encoded = self._encoder.encode(unit_major, self._chunk_threads, self._pieces)
        return self._put_encoded(self._key(f"responses/{pooling}", position), encoded)

    def require_every_shard(self) -> None:
        """Refuse to read responses or tokens if a shard is lost: zarr would read zeros.

        Raises:
            UserError: names the first partition that lost one.
        """
        shards = range(self.plan.layout.objects_per_partition)
        responses = [f"responses/{pooling}" for pooling in self.plan.responses.poolings]
        there = {f"{name}/{key}" for name in ("tokens", *responses) for key in self._objects(name)}
        for partition in range(self.plan.layout.partitions):
            keys = [("tokens", (partition,)), *((name, (partition, shard)) for name in responses for shard in shards)]
            if not all(self._key(*key) in there for key in keys):
                raise UserError(f"{self._path}: partition {partition} has lost a shard; {_REMEDY}")

    def _objects(self, name: str) -> dict[str, int]:
        """Bytes of every object under a name, by its key there."""
        return self._reading(lambda: sizes(self._path / name))

    def _key(self, name: str, position: tuple[int, ...]) -> str:
        """Of a chunk that is not in a shard, or a shard, of an array."""
        return f"{name}/{self._arrays[name].metadata.encode_chunk_key(position)}"

    def _put(self, name: str, position: tuple[int, ...], values: NDArray[Any]) -> dict[str, str]:
        """Write one whole object of an array; returns its checksum by its key.

        Zarr itself would read the object of an earlier attempt before it writes, and fail on a torn one.
        """
        return self._put_encoded(self._key(name, position), [_encode(_layouts(self.plan)[name], values).to_bytes()])

    def _put_encoded(self, key: str, parts: Sequence[bytes]) -> dict[str, str]:
        """Write an object of several parts; returns its checksum by its key."""
        write_atomically(self._path / key, *parts)
        self._written[key] = sum(map(len, parts))
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return {key: digest.hexdigest()}

    def written_bytes(self, keys: Iterable[str]) -> int:
        """Bytes of objects that this process has just written, by their keys; other keys count 0."""
        return sum(self._written.pop(key, 0) for key in keys)

    def sound(self, checksums: Mapping[str, str]) -> bool:
        """Whether each of a receipt's objects is there with the bytes that were written."""
        return all(self._checksum(key) == checksum for key, checksum in checksums.items())

    def stored_bytes(self, keys: Iterable[str]) -> int:
        """Bytes of some objects, by their keys; absent ones count 0."""
        found = self._objects("")
        return sum(found.get(key, 0) for key in keys)

    def _checksum(self, key: str) -> str | None:
        try:
            return sha256_file(self._path / key)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self._path / key}: cannot be read ({error})") from error

    def _reading(self, read: Callable[[], Read]) -> Read:
        try:
            return with_retries(self._path, read)
        # Raised by zarr and its codecs for torn bytes; the last two if those ask for an endless read.
        except (OSError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            why = str(error) or type(error).__name__
            raise UserError(f"{self._path} is damaged or cannot be read ({why}); {_REMEDY}") from error

    def read_responses(self, pooling: Pooling, units: range) -> NDArray[np.floating[Any]]:
        """(rows, units) of every row; reads whole chunks once when `units` is a block of the layout.

        Raises:
            UserError: a shard is damaged.
        """
        array = self._arrays[f"responses/{pooling}"]
        return self._reading(lambda: np.asarray(array[:, units.start : units.stop]))

    def read_tokens(self) -> NDArray[np.int32]:
        """(rows,) pooled tokens; 0 for a sentence that was dropped, and for a row without one.

        Raises:
            UserError: a chunk is damaged.
        """
        return self._reading(lambda: np.asarray(self._arrays["tokens"][:]))

    def write_scores(self, pooling: Pooling, block: int, statistics: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        """Store one block of every statistic.

        Args:
            statistics: each (concepts, units of the block), or (concepts, kept columns) and `KEPT` with them where the
                plan keeps some only; average precision is always of all units.

        Returns:
            The checksum of each object written, by its key, for the receipt.

        Raises:
            UserError: the disk is full or refuses.
        """
        checksums: dict[str, str] = {}
        for statistic in statistics_of(self.plan.layout.block_units, self.plan.scoring.keep):
            name = f"expertise/{pooling}/{statistic}"
            array, values = self._arrays[name], statistics[statistic]
            padded = np.full((len(values), array.chunks[1]), array.fill_value, array.dtype)
            padded[:, : values.shape[1]] = values
            checksums |= self._put(name, (0, block), padded)
        return checksums

    def read_scores(self, pooling: Pooling, statistic: str, units: range) -> NDArray[np.floating[Any]]:
        """One statistic that is stored of all units, (concepts, units).

        Raises:
            UserError: a chunk is damaged.
        """
        array = self._arrays[f"expertise/{pooling}/{statistic}"]
        return self._reading(lambda: np.asarray(array[:, units.start : units.stop]))

    def read_kept(self, pooling: Pooling, statistic: str, block: int) -> NDArray[Any]:
        """(concepts, kept columns) one statistic of the kept units of a block, or their ids, `KEPT`.

        Raises:
            UserError: a chunk is damaged.
        """
        array = self._arrays[f"expertise/{pooling}/{statistic}"]
        columns = slice(block * array.chunks[1], (block + 1) * array.chunks[1])
        return self._reading(lambda: np.asarray(array[:, columns]))


def create_store(run: OpenRun) -> None:
    """Create the missing arrays of a run, and lengthen those of a run that has grown.

    For one process, before workers open the store.

    Raises:
        UserError: the disk is full or refuses, or arrays of another plan are there.
    """
    path = store_folder(run.path)
    templates, expected = _template_arrays(run.plan)
    found = _read_descriptions(path, expected)
    for name, description in expected.items():
        if name in templates and found[name] is not None:
            if _normalised_metadata(found[name]) == _normalised_metadata(description):
                continue
            if name.startswith("expertise/"):  # of another plan's concepts; everything is scored again
                remove_folder(path / name)
            elif not _is_longer(description, found[name]):
                raise _another_layout(path / name)
        if name in templates or found[name] is None:
            write_atomically(path / name / DESCRIPTION, description)


def _template_arrays(plan: Plan) -> tuple[dict[str, zarr.Array[Any]], dict[str, bytes]]:
    """The arrays of a plan's store, made in memory and empty; and the descriptions, of the groups above them too."""
    objects: dict[str, Buffer] = {}
    group = zarr.open_group(MemoryStore(objects), mode="w")
    templates = {name: group.create_array(name, **layout) for name, layout in _layouts(plan).items()}
    return templates, {key.removesuffix(DESCRIPTION).rstrip("/"): each.to_bytes() for key, each in objects.items()}


def _read_descriptions(path: Location, names: Iterable[str]) -> dict[str, bytes | None]:
    """The beginning of each description, as long as an honest one is; None if there is none.

    Raises:
        UserError: they cannot be read.
    """
    files = {name: path / name / DESCRIPTION for name in names}
    return dict(zip(files, read_each(list(files.values()), LARGEST_DESCRIPTION + 1), strict=True))


def _normalised_metadata(description: bytes | None) -> dict[str, Any] | None:
    """A description with its defaults filled in; None if it is not one of ours."""
    try:
        said = json.loads(description or b"") if len(description or b"") <= LARGEST_DESCRIPTION else None
    except (ValueError, RecursionError):
        return None
    return {**_UNSAID, **said} if isinstance(said, dict) else None


def _is_longer(description: bytes, than: bytes | None) -> bool:
    """Whether one array is another with more rows."""
    new, old = _normalised_metadata(description), _normalised_metadata(than)
    if new is None or old is None or {**new, "shape": None} != {**old, "shape": None}:
        return False
    shape = old["shape"]
    return mismatch(shape, [int]) is None and shape[1:] == new["shape"][1:] and [0] < shape < new["shape"]


def _another_layout(path: Location) -> UserError:
    return UserError(f"{path} has another layout than the plan; use a new run folder")


def _root(path: Location) -> LocalStore | FsspecStore:
    """A store as zarr takes it. It has an event loop of its own, and therefore a client of its own."""
    if is_remote(path):
        return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options), read_only=True)
    return LocalStore(path, read_only=True)


def encoded_size(responses: NDArray[np.floating[Any]], block_units: int, compression: Compression) -> int:
    """Bytes that responses (sentences, units) take in chunks of `block_units` units and all these sentences."""
    width = -(-responses.shape[1] // block_units) * block_units
    padded = np.zeros((len(responses), width), responses.dtype)
    padded[:, : responses.shape[1]] = responses
    with ThreadPoolExecutor(1) as thread:
        return sum(map(len, ShardEncoder(block_units, compression, responses.dtype.name).encode(padded.T, thread, 1)))


def _encode(layout: Mapping[str, Any], values: NDArray[Any]) -> Buffer:
    """One object of an array, a chunk or a shard, as bytes; `values` is all of it."""
    objects: dict[str, Buffer] = {}
    template = zarr.create_array(MemoryStore(objects), **{**layout, "shape": values.shape})
    template[...] = values
    (key,) = objects.keys() - {"zarr.json"}
    return objects[key]


def _response_layout(
    compression: Compression, dtype: str, chunks: tuple[int, int], shards: tuple[int, int]
) -> dict[str, Any]:
    codecs: list[BloscCodec | Crc32cCodec] = [Crc32cCodec()]
    if compression.codec != "none":
        codecs.insert(0, BloscCodec(cname=compression.codec, clevel=compression.level, shuffle=compression.shuffle))
    return {
        "chunks": chunks,
        "shards": shards,
        "dtype": dtype,
        "filters": [TransposeCodec(order=(1, 0))],
        "compressors": codecs,
        "fill_value": 0,
    }


def _layouts(plan: Plan) -> dict[str, dict[str, Any]]:
    """Every array of the store: its path in the group → shape, chunks, shards, type and codecs."""
    layout, concepts = plan.layout, plan.corpus.concepts
    rows = layout.partition_rows
    chunks, shards = (rows, layout.block_units), (rows, layout.shard_units)
    responses = {
        "shape": layout.padded_shape,
        **_response_layout(plan.compression, plan.responses.dtype, chunks, shards),
    }
    tokens = {"shape": layout.padded_shape[:1], "chunks": (rows,), "dtype": "int32", "fill_value": 0}
    poolings = plan.responses.poolings
    return {
        "tokens": tokens,
        **{f"responses/{pooling}": responses for pooling in poolings},
        **{
            f"expertise/{pooling}/{name}": {
                "shape": (concepts, layout.blocks * columns),
                "chunks": (concepts, columns),
                "dtype": dtype,
                "compressors": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")],
                "fill_value": -1 if name == KEPT else float("nan"),
            }
            for pooling in poolings
            for name, (dtype, columns) in statistics_of(layout.block_units, plan.scoring.keep).items()
        },
    }
