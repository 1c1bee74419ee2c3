"""Encodes one shard of responses: Zarr's sharding format, byte for byte, chunk by chunk on a pool of threads.

zarr-python's own path handles every chunk in Python, on one thread, and copies each several times; shards of a large
model hold thousands of small chunks. Knows the format (Zarr v3 specification, ``sharding_indexed``, with the index at
the end) and nothing of arrays, runs or files.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import repeat

import google_crc32c
import numcodecs.blosc
import numpy as np
from numpy.typing import NDArray

from expertmine.specs.settings import Compression, Shuffle

SHUFFLES: dict[Shuffle, int] = {
    "noshuffle": numcodecs.blosc.NOSHUFFLE,
    "shuffle": numcodecs.blosc.SHUFFLE,
    "bitshuffle": numcodecs.blosc.BITSHUFFLE,
}
CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class ShardEncoder:
    """How the shards of one array of responses are encoded."""

    block_units: int
    """Units of a chunk; a chunk has all rows of its shard."""
    compression: Compression
    dtype: str
    """Type of a response, such as ``float16``."""

    def encode(self, unit_major: NDArray[np.floating], threads: Executor, pieces: int) -> list[bytes]:
        """Encode a shard.

        Args:
            unit_major: (units, rows), whole chunks of `dtype`; fastest where each unit's rows are contiguous, copied
                chunk by chunk where they are not.
            threads: encode the pieces; codecs release the GIL.
            pieces: tasks that the chunks are divided into, neighbours together. One task for each chunk would cost
                more than its encoding.

        Returns:
            The parts of the shard, to be written one after the other.
        """
        chunks = len(unit_major) // self.block_units
        bounds = np.linspace(0, chunks, min(pieces, chunks) + 1).astype(int).tolist()
        encoded = list(threads.map(self._encode_chunks, repeat(unit_major), bounds[:-1], bounds[1:]))
        parts = [content for content, _ in encoded]
        index = np.empty((chunks, 2), "<u8")
        index[:, 1] = [length for _, lengths in encoded for length in lengths]
        index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
        trailer = index.tobytes()
        return [*parts, trailer, _checksum(trailer)]

    def _encode_chunks(self, unit_major: NDArray[np.floating], first: int, stop: int) -> tuple[bytes, list[int]]:
        """Chunks `first` to `stop`, each followed by its checksum, and how many bytes each takes."""
        codec, width = self.codec(), self.block_units
        parts = []
        for start in range(first * width, stop * width, width):
            content = np.ascontiguousarray(unit_major[start : start + width]).reshape(-1).view(np.uint8)
            encoded = content.tobytes() if codec is None else codec.encode(content)
            parts += [encoded, _checksum(encoded)]
        # One piece: whoever hashes and writes thousands of small ones would wait for the GIL at each.
        return b"".join(parts), [len(content) + CHECKSUM_BYTES for content in parts[::2]]

    def codec(self) -> numcodecs.blosc.Blosc | None:
        """What compresses the bytes of a chunk; None for no compression."""
        if self.compression.codec == "none":
            return None
        return numcodecs.blosc.Blosc(
            cname=self.compression.codec,
            clevel=self.compression.level,
            shuffle=SHUFFLES[self.compression.shuffle],
            typesize=np.dtype(self.dtype).itemsize,
        )


def _checksum(content: bytes) -> bytes:
    """CRC-32C, little-endian, as the ``crc32c`` codec appends it."""
    return int(google_crc32c.value(content)).to_bytes(CHECKSUM_BYTES, "little")
