"""The words by which users choose units, what they are set to, and how they are counted."""

from __future__ import annotations

from typing import Literal

Units = Literal["experts", "worst", "random", "matched"]
"""Which units of a concept: the best by average precision; the worst; drawn at random from all that are not among the
best; or for each of the best one of the same hookpoint, drawn at random likewise."""
UNITS: tuple[Units, ...] = ("experts", "worst", "random", "matched")

DEFAULT_K = 50
"""Experts that are set unless the user says how many, or an evaluation chose."""

Forcing = Literal["mean", "p50", "p90", "zero"]
"""Value that do(c, k) sets a unit to: the mean of its responses to positives (the paper's), their median (the
reference's), their 90th percentile, or zero."""

Tokens = Literal["all", "last"]
"""At which tokens of a pass units are set: at all of them, or at the last one of each text only."""

Conflicts = Literal["best", "mean", "first"]
"""What a unit is set to that several concepts share: the value of the concept that it tells best (by average precision;
the one named first where they are equal), the mean of their values, or the value of the one named first."""

Grouping = Literal["layer", "kind", "hookpoint"]
"""Layers, kinds of module (the same in every layer), or hookpoints."""
