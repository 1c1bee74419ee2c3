"""Formats numbers for people: durations, counts, bytes, probabilities. Knows nothing of what they measure."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Format seconds: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float) -> str:
    """Format a count: ``870``, ``12,300``, ``4.56 million``, ``1.2 billion``."""
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        if value >= limit:
            return f"{value / limit:.3g} {word}"
    return f"{value:,.0f}"


def size(bytes_: float) -> str:
    """Format bytes, in powers of 1,000: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 1000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:,.3g} TB"


def p_value(value: float, permutations: int) -> str:
    """Format a p-value; the smallest one that so many shuffles can show is a bound: ``≤ 0.05``."""
    if math.isnan(value):
        return "–"
    return f"{value:.2g}" if value * (permutations + 1) > 1.5 else f"≤ {value:.2g}"


def interval(low: float, high: float) -> str:
    """Format an interval: ``0.61–0.74``; a dash for NaN."""
    return "–" if math.isnan(low) else f"{low:.2f}–{high:.2f}"
