"""Which model, which corpus and which sentences a run is of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from expertmine.specs.checks import require

_HASH = re.compile(r"[0-9a-z]{1,64}")
"""What a corpus may have as its fingerprint, which names a folder."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model, by a hash of its weights; a run accepts no other."""

    name: str
    """``embedded``, a local folder, or a Hugging Face model id."""
    revision: str | None
    """Branch, tag or commit on the hub; None for its default or for a folder."""
    architecture: str
    """Class name of the model, such as ``GPT2LMHeadModel``."""
    weights: str
    """Hash of all parameters, see `expertmine.model.load.weights_hash`."""
    tokenizer: str
    """Hash of the tokenizer's own serialisation."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Sentences that came to a run together: those it began with, or those by which its corpus grew."""

    sentences: int
    keys: str
    """SHA-256 of their keys, in order."""


@dataclass(frozen=True, slots=True)
class CorpusIdentity:
    """Which sentences and concepts."""

    fingerprint: str
    sentences: int
    concepts: int

    def __post_init__(self) -> None:
        require(
            bool(_HASH.fullmatch(self.fingerprint)),
            f"corpus fingerprint is {self.fingerprint[:80]!r}: expected a hash, which names a folder of the run",
        )
        least = min(self.sentences, self.concepts)
        require(least >= 0, f"corpus: {self.sentences} sentences and {self.concepts} concepts, expected 0 or more")
