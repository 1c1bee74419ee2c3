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

    def encode(self, unit_major: NDArray[np.floating], threads: Executor) -> list[bytes]:
        """Encode a shard.

        Args:
            unit_major: (units, rows), whole chunks of `dtype`; fastest where each unit's rows are contiguous, copied
                chunk by chunk where they are not.
            threads: encode several chunks at a time; codecs release the GIL.

        Returns:
            The parts of the shard, to be written one after the other.
        """
        starts = range(0, len(unit_major), self.block_units)
        parts = list(threads.map(self._encode_chunk, repeat(unit_major), starts))
        index = np.empty((len(parts), 2), "<u8")
        index[:, 1] = [len(encoded) + CHECKSUM_BYTES for encoded, _ in parts]
        index[:, 0] = np.cumsum(index[:, 1]) - index[:, 1]
        trailer = index.tobytes()
        return [content for part in parts for content in part] + [trailer, _checksum(trailer)]

    def _encode_chunk(self, unit_major: NDArray[np.floating], start: int) -> tuple[bytes, bytes]:
        chunk = np.ascontiguousarray(unit_major[start : start + self.block_units])
        content = chunk.reshape(-1).view(np.uint8)
        codec = self._codec()
        encoded = content.tobytes() if codec is None else codec.encode(content)
        return encoded, _checksum(encoded)

    def _codec(self) -> numcodecs.blosc.Blosc | None:
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
