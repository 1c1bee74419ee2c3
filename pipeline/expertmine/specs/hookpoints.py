"""A model's hookpoints: modules whose output channels are units."""

from __future__ import annotations

import re
from dataclasses import dataclass

LAYER = re.compile(r"(?:^|\.)(\d+)(?=[.#\[]|$)")
"""Finds a layer's number in a hookpoint's name."""


def layer_of(hookpoint: str) -> int | None:
    """The number of the layer that a hookpoint is in: the first number among the names of its path."""
    found = LAYER.search(hookpoint)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Hookpoint:
    """The output of one module of the model."""

    name: str
    """The module's path in the model, such as ``transformer.h.0.mlp.c_fc``."""
    width: int
    """Channels, each of them a unit."""
    first_unit: int
    """Unit id of channel 0."""

    @property
    def units(self) -> range:
        return range(self.first_unit, self.first_unit + self.width)
