"""Shards against zarr's own encoding of them: the same bytes, and plain zarr reads them back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.storage import MemoryStore

from expertmine.run.shards import ShardEncoder
from expertmine.specs.settings import Compression

COMPRESSIONS = [
    Compression("none"),
    *(
        Compression(codec, level, shuffle)  # type: ignore[arg-type]
        for codec, level, shuffle in product(("zstd", "lz4"), (1, 5), ("noshuffle", "shuffle", "bitshuffle"))
    ),
]


def zarr_array(values: np.ndarray, block: int, compression: Compression) -> tuple[zarr.Array, MemoryStore]:
    """An array of one shard whose chunks hold all rows and `block` units, in memory."""
    codecs: list[object] = [Crc32cCodec()]
    if compression.codec != "none":
        codecs.insert(0, BloscCodec(cname=compression.codec, clevel=compression.level, shuffle=compression.shuffle))
    store = MemoryStore()
    array = zarr.create_array(
        store,
        shape=values.shape,
        chunks=(len(values), block),
        shards=values.shape,
        dtype=values.dtype,
        filters=[TransposeCodec(order=(1, 0))],
        compressors=codecs,
        fill_value=0,
    )
    return array, store


def responses(rows: int, units: int, dtype: str) -> np.ndarray:
    """(rows, units) maxima of normal values, a column of zeros and one of equal values among them."""
    drawn = np.random.default_rng(0).standard_normal((3, rows, units)).max(0).astype(dtype)
    drawn[:, 1], drawn[:, 2] = 0, -1.5
    return drawn


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=str)
def test_a_shard_has_the_bytes_that_zarr_gives_it(compression: Compression, dtype: str) -> None:
    values, block = responses(32, 5 * 64, dtype), 64
    with zarr.config.set({"array.write_empty_chunks": True}):
        array, store = zarr_array(values, block, compression)
        array[...] = values
    (key,) = store._store_dict.keys() - {"zarr.json"}
    encoder = ShardEncoder(block, compression, dtype)
    with ThreadPoolExecutor(3) as threads:
        transposed = encoder.encode(values.T, threads, 3)
        contiguous = encoder.encode(np.ascontiguousarray(values.T), threads, 3)
    assert b"".join(transposed) == b"".join(contiguous) == store._store_dict[key].to_bytes()


def test_plain_zarr_reads_a_shard() -> None:
    values, block = responses(64, 3 * 32, "float16"), 32
    array, store = zarr_array(values, block, Compression())
    with ThreadPoolExecutor(2) as threads:
        shard = b"".join(ShardEncoder(block, Compression(), "float16").encode(values.T, threads, 3))
    store._store_dict["c/0/0"] = zarr.core.buffer.cpu.Buffer.from_bytes(shard)
    assert np.array_equal(array[...], values)
