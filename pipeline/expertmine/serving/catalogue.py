"""The concepts of an index as JSON for clients. Knows no HTTP."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from expertmine.index.experts import Experts
from expertmine.index.units import Expert

SHOWN = 20
"""Experts shown per concept."""


class Catalogue:
    """Concepts in the order of the index."""

    def __init__(self, experts: Experts) -> None:
        """Read the best average precision of every concept."""
        self.experts = experts
        best = experts.table["ap"].to_numpy()[:: experts.top_k]
        self.entries = [
            {
                "name": name,
                "description": experts.concept_metadata(name)["description"],
                "best_ap": without_nan(float(ap)),
                "chosen_k": experts.chosen_k(name),
            }
            for name, ap in zip(experts, best, strict=True)
        ]

    def search(self, words: str) -> list[dict[str, Any]]:
        """Entries whose name or description contains all of these words, ignoring case."""
        wanted = words.lower().split()
        return [
            entry
            for entry in self.entries
            if all(word in f"{entry['name']} {entry['description']}".lower() for word in wanted)
        ]

    def concept(self, name: str) -> dict[str, Any]:
        """A concept's metadata and its first experts.

        Raises:
            UnknownConcept: there is no concept of that name.
        """
        found = self.experts[name]
        metadata = {key: without_nan(value) for key, value in self.experts.concept_metadata(name).items()}
        return {
            **metadata,
            "best_ap": without_nan(found[0].ap),
            "chosen_k": self.experts.chosen_k(name),
            "experts_kept": len(found),
            "experts": [_expert(expert) for expert in found[:SHOWN]],
        }


def _expert(expert: Expert) -> dict[str, Any]:
    return {name: without_nan(value) for name, value in asdict(expert).items()}


def without_nan(value: Any) -> Any:
    """Replace NaN and infinities by None, since JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
