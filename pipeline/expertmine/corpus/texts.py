"""Collects the unique texts of a corpus: normalises, hashes, and keeps each once. Knows nothing of concepts."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MAX_LENGTH = 10_000
"""Characters of a text; a longer one is not a sentence."""

_KEY_BYTES = 16
_CHUNK = 1 << 16


class BadText(ValueError):
    """A text that cannot be stored; the message says why in a few words."""


def normalise(text: str) -> str:
    """Normalise a text for storage: Unicode NFC, white space collapsed to single spaces, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_key(text: str) -> str:
    """Return the content hash of a normalised text: 128 bits of BLAKE2b, in hexadecimal."""
    return _digest(text).hex()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


class Texts:
    """Texts by id; ids count from 0 in order of arrival, and equal texts share an id.

    Texts are stored in Arrow's memory, so that a million of them take little more than their bytes.
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._keys = bytearray()
        self._chunks: list[pa.Array] = []
        self._pending: list[str] = []
        self.repeats = 0
        """Number of texts added that were already there."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, text: str) -> int:
        """Normalise a text, add it if it is new, and return its id.

        Raises:
            BadText: it is empty, longer than MAX_LENGTH, or holds a lone surrogate.
        """
        stored = normalise(text)
        if not stored:
            raise BadText("empty")
        if len(stored) > MAX_LENGTH:
            raise BadText(f"longer than {MAX_LENGTH:,} characters")
        try:
            digest = _digest(stored)
        except UnicodeEncodeError as error:
            raise BadText("holds half a character (a lone surrogate)") from error
        found = self._ids.get(digest)
        if found is not None:
            self.repeats += 1
            return found
        self._keys += digest
        self._pending.append(stored)
        if len(self._pending) == _CHUNK:
            self._flush()
        self._ids[digest] = len(self._ids)
        return len(self._ids) - 1

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The content hashes (texts, 2), high half first."""
        return np.frombuffer(bytes(self._keys), ">u8").reshape(-1, 2).astype(np.uint64)

    def take(self, ids: NDArray[np.int32]) -> pa.Array:
        """Return texts by id, as a large_string array."""
        self._flush()
        return pa.concat_arrays([pa.array([], pa.large_string()), *self._chunks]).take(pa.array(ids))

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._pending, pa.large_string()))
        self._pending = []


def key_text(keys: NDArray[np.uint64]) -> list[str]:
    """Return content hashes (texts, 2) in hexadecimal, as `text_key` does."""
    return [f"{high:016x}{low:016x}" for high, low in keys.tolist()]
