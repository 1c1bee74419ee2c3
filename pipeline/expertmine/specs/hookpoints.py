"""A model's hookpoints: modules whose output channels are units. Knows no model; only names and numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

LAYER = re.compile(r"(?:^|\.)(\d+)(?=[.#\[]|$)")
"""Finds the layer number in a hookpoint's name."""


def layer_of(hookpoint: str) -> int | None:
    """Return the number of a hookpoint's layer: the first number in its path; None if there is none."""
    found = LAYER.search(hookpoint)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Hookpoint:
    """The output of one module of the model."""

    name: str
    """The module's path in the model, such as ``transformer.h.0.mlp.c_fc``."""
    width: int
    """Number of channels; each is a unit."""
    first_unit: int
    """Unit id of channel 0."""

    @property
    def units(self) -> range:
        """Ids of its units."""
        return range(self.first_unit, self.first_unit + self.width)
