"""The options that select units, the values they are set to, and how units are grouped. Knows words only."""

from __future__ import annotations

from typing import Literal

Units = Literal["experts", "worst", "random", "matched"]
"""Which units of a concept: the best by average precision; the worst; random ones that are not among the best; or, for
each of the best, a random one of the same hookpoint that is not among the best."""
UNITS: tuple[Units, ...] = ("experts", "worst", "random", "matched")

DEFAULT_K = 50
"""Number of experts to set if neither the user nor an evaluation chose it."""

Forcing = Literal["mean", "p50", "p90", "zero"]
"""The value that do(c, k) sets a unit to: the mean of its responses to positives (the paper's), their median (the
reference implementation's), their 90th percentile, or zero."""

Tokens = Literal["all", "last"]
"""The tokens of a pass at which units are set: all, or only the last one of each text."""

Conflicts = Literal["best", "mean", "first"]
"""The value of a unit that several concepts share: that of the concept for which its average precision is highest (the
one named first on a tie), the mean of their values, or that of the concept named first."""

Grouping = Literal["layer", "kind", "hookpoint"]
"""How units are grouped: by layer, by kind of module (the same in every layer), or by hookpoint."""
