"""Unique texts while a corpus is made: normalised, hashed, each kept once. Knows nothing of concepts."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LONGEST = 10_000
"""Characters of a text; what is longer is no sentence."""

_KEY_BYTES = 16
_CHUNK = 1 << 16


class BadText(ValueError):
    """A text that no corpus takes; says why in a few words."""


def normalise(text: str) -> str:
    """The text as it is stored: Unicode NFC, each run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_key(text: str) -> str:
    """Content hash of a normalised text: 128 bits of BLAKE2b, in hexadecimal."""
    return _digest(text).hex()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


class Texts:
    """Texts by id; ids count up from 0 in order of arrival, and the same text has the same id.

    Texts lie in Arrow's memory, so that a million of them take little more than their bytes.
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._keys = bytearray()
        self._chunks: list[pa.Array] = []
        self._pending: list[str] = []
        self.repeats = 0
        """How many texts came that were there already."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, text: str) -> int:
        """The id of a text, after normalisation.

        Raises:
            BadText: it is empty, longer than LONGEST, or holds half a character (a lone surrogate).
        """
        stored = normalise(text)
        if not stored:
            raise BadText("empty")
        if len(stored) > LONGEST:
            raise BadText(f"longer than {LONGEST:,} characters")
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
        """(texts, 2) the content hashes, high half first."""
        return np.frombuffer(bytes(self._keys), ">u8").reshape(-1, 2).astype(np.uint64)

    def take(self, ids: NDArray[np.int32]) -> pa.Array:
        """Texts by id, as a large_string array."""
        self._flush()
        return pa.concat_arrays([pa.array([], pa.large_string()), *self._chunks]).take(pa.array(ids))

    def _flush(self) -> None:
        self._chunks.append(pa.array(self._pending, pa.large_string()))
        self._pending = []


def key_text(keys: NDArray[np.uint64]) -> list[str]:
    """Content hashes (texts, 2) in hexadecimal, as `text_key` gives them."""
    return [f"{high:016x}{low:016x}" for high, low in keys.tolist()]
