"""Draws one concept's success and perplexity against k as plain SVG: a page may have hundreds, and matplotlib is slow.

Knows no evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def small_curve(points: Sequence[tuple[int, float, float | None]]) -> str:
    """Success and perplexity of one concept against k, as a small SVG.

    Args:
        points: k, success, perplexity.
    """
    ks = [k for k, _, _ in points]
    positions = np.array([np.log10(1 + k) for k in ks])
    span = (positions.max() - positions.min()) or 1.0
    left, width, top, height = 34.0, 150.0, 16.0, 74.0
    xs = left + (positions - positions.min()) / span * width
    fluent = np.array([np.nan if each is None else np.log10(max(each, 1e-6)) for _, _, each in points])
    low, high = (
        (np.floor(np.nanmin(fluent)), np.ceil(np.nanmax(fluent) + 1e-9)) if np.isfinite(fluent).any() else (0, 1)
    )
    panels = [
        ("success", np.array([share for _, share, _ in points]), ["0", "1"]),
        ("perplexity", (fluent - low) / ((high - low) or 1), [f"{10.0**low:,.0f}", f"{10.0**high:,.0f}"]),
    ]
    parts = ['<svg viewBox="0 0 400 116" role="img" aria-label="success and perplexity against k">']
    for panel, (title, heights, (bottom_label, top_label)) in enumerate(panels):
        shift = 200.0 * panel
        ys = top + (1 - heights) * height
        line = " ".join(f"{x + shift:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True) if np.isfinite(y))
        parts += [
            f'<text x="{left + shift:.0f}" y="9" class="t">{title}</text>',
            f'<path d="M{left + shift:.0f} {top:.0f}v{height:.0f}h{width:.0f}" class="a"/>',
            f'<text x="{left + shift - 4:.0f}" y="{top + height:.0f}" class="e">{bottom_label}</text>',
            f'<text x="{left + shift - 4:.0f}" y="{top + 6:.0f}" class="e">{top_label}</text>',
            f'<polyline points="{line}" class="l"/>',
        ]
        last = -np.inf
        for x, k in zip(xs, ks, strict=True):
            if x - last > 22:
                parts.append(f'<text x="{x + shift:.1f}" y="{top + height + 12:.0f}" class="m">{k}</text>')
                last = x
    parts.append("</svg>")
    return "".join(parts)
