"""Identifies the model, the corpus and the sentences of a run, by hashes. Computes no hashes itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from expertmine.specs.checks import require

_HASH = re.compile(r"[0-9a-z]{1,64}")
"""A valid corpus fingerprint; it names a folder."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model, identified by a hash of its weights; a run accepts no other."""

    name: str
    """``embedded``, a local folder, or a Hugging Face model id."""
    revision: str | None
    """Branch, tag or commit on the hub; None for the hub's default or a local folder."""
    architecture: str
    """The model's class name, such as ``GPT2LMHeadModel``."""
    weights: str
    """Hash of all parameters, see `expertmine.model.load.weights_hash`."""
    tokenizer: str
    """Hash of the serialised tokenizer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Sentences that were added to a run together: at its start, or when its corpus grew."""

    sentences: int
    keys: str
    """SHA-256 of the sentences' keys, in order."""


@dataclass(frozen=True, slots=True)
class CorpusIdentity:
    """A corpus, identified by its fingerprint, with the numbers of its sentences and concepts."""

    fingerprint: str
    sentences: int
    concepts: int

    def __post_init__(self) -> None:
        require(
            bool(_HASH.fullmatch(self.fingerprint)),
            f"corpus fingerprint is {self.fingerprint[:80]!r}: expected a hash of up to 64 small letters and digits",
        )
        least = min(self.sentences, self.concepts)
        require(least >= 0, f"corpus: {self.sentences} sentences and {self.concepts} concepts, expected 0 or more")
