"""Figures of an index: the distribution of average precision, the layers of experts, the overlap of concepts.

Knows no run and no page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from expertmine.index.distribution import BINS, EDGES
from expertmine.index.experts import Experts
from expertmine.report.contents import TOP, Best, Overlaps
from expertmine.report.style import (
    BLUE,
    FAINT,
    HEAT,
    ORANGE,
    PANEL,
    RULE,
    Panel,
    log_values,
    single_panel,
)
from expertmine.specs.hookpoints import LAYER, layer_of

SHOWN_CONCEPTS = 60
"""Maximum concepts in an overlap heat map."""
_EXPERT = re.compile(r"\[\d+\]")


def pairs_by_ap(index: Experts) -> NDArray[np.int64]:
    """(bins,) number of (concept, unit) pairs by average precision, in twentieths of 0 to 1."""
    bins = index.distribution["bins"].combine_chunks().flatten().to_numpy()
    counts: NDArray[np.int64] = bins.reshape(-1, BINS).sum(axis=0, dtype=np.int64)
    return counts


def distribution_panels(index: Experts, best: Best) -> list[Panel]:
    """Average precision of all pairs; of best units with their thresholds; and of best units on held-out sentences."""
    panels: list[Panel] = [partial(_all_pairs, pairs_by_ap(index)), partial(_best_units, best)]
    if not np.isnan(best.held_out).all():
        panels.append(partial(_held_out, best))
    return panels


def _all_pairs(counts: NDArray[np.int64], axes: Axes) -> None:
    (bins,) = np.nonzero(counts)
    axes.bar(EDGES[:-1][bins] + 0.5 / BINS, counts[bins], width=0.86 / BINS, color=BLUE)
    axes.set_yscale("log")
    axes.set_ylim(0.5, counts.max() * 3)
    log_values(axes, "(concept, unit) pairs")
    _unit_axis(axes, "average precision")
    axes.set_title("All pairs")


def _best_units(best: Best, axes: Axes) -> None:
    known = best.thresholds[~np.isnan(best.thresholds)]
    fine = np.arange(2 * BINS + 1) / (2 * BINS)
    if len(known):
        axes.hist(known, fine.tolist(), color=ORANGE, alpha=0.55)
    axes.hist(best.ap, fine.tolist(), histtype="step", color=BLUE, linewidth=1.4)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
    axes.set_ylabel("concepts")
    _unit_axis(axes, "average precision")
    axes.set_title(f"Best unit (n = {len(best.ap):,})")
    axes.text(0.98, 0.97, "best unit", color=BLUE, ha="right", va="top", transform=axes.transAxes)
    if len(known):
        axes.text(0.98, 0.89, "threshold by chance", color=ORANGE, ha="right", va="top", transform=axes.transAxes)


def _held_out(best: Best, axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.7)
    dense = len(best.ap) > 300
    axes.plot(best.ap, best.held_out, "o", color=BLUE, markersize=2 if dense else 3, alpha=0.45, markeredgewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_ylabel("held-out sentences")
    _unit_axis(axes, "mined sentences")
    axes.set_title(f"AP of best unit (n = {int((~np.isnan(best.held_out)).sum()):,})")


def _unit_axis(axes: Axes, label: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel(label)


@dataclass(frozen=True)
class ExpertMap:
    """A model's experts by kind of module and layer; arrays are (kinds, layers), NaN if there is no such module."""

    kinds: tuple[str, ...]
    layers: tuple[str, ...]
    share: NDArray[np.float64]
    """Share of all concepts' k best units."""
    enrichment: NDArray[np.float64]
    """This share divided by the share of all units."""
    best_ap: NDArray[np.float64]
    """Mean over concepts of the highest average precision of these units."""
    k: int


def expert_map(index: Experts) -> ExpertMap:
    """Count the experts of all concepts by kind of module and layer."""
    hookpoints = index.metadata["hookpoints"]
    names = [hookpoint["name"] for hookpoint in hookpoints]
    kinds = list(dict.fromkeys(_kind(name) for name in names))
    layers = sorted({layer_of(name) for name in names}, key=lambda layer: (layer is None, layer or 0))
    cell = np.array([kinds.index(_kind(name)) * len(layers) + layers.index(layer_of(name)) for name in names])
    cells = len(kinds) * len(layers)
    shape = len(kinds), len(layers)

    k = min(TOP, index.top_k)
    units = index.table["unit"].to_numpy().reshape(-1, index.top_k)[:, :k]
    starts = np.array([hookpoint["first_unit"] for hookpoint in hookpoints])
    owners = cell[np.searchsorted(starts, units.ravel(), side="right") - 1]
    share = np.bincount(owners, minlength=cells) / units.size
    width = np.bincount(cell, [hookpoint["width"] for hookpoint in hookpoints], minlength=cells)
    highest = index.distribution["max_ap"].to_numpy().reshape(-1, len(names))
    best = np.full((len(highest), cells), -np.inf)
    for at, target in enumerate(cell):
        best[:, target] = np.maximum(best[:, target], highest[:, at])
    exists = width > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        enrichment = share / (width / width.sum())
    return ExpertMap(
        tuple(_short(kinds)),
        tuple("–" if layer is None else str(layer) for layer in layers),
        np.where(exists, share, np.nan).reshape(shape),
        np.where(exists, enrichment, np.nan).reshape(shape),
        np.where(exists, best.mean(axis=0), np.nan).reshape(shape),
        k,
    )


def _kind(hookpoint: str) -> str:
    """A hookpoint's name without its layer and without the number of an expert of a mixture."""
    return _EXPERT.sub("[*]", LAYER.sub(lambda found: found[0].replace(found[1], "*"), hookpoint, count=1))


def _short(kinds: Sequence[str]) -> list[str]:
    """Kinds without their common beginning, up to the layer."""
    if all("*." in kind for kind in kinds) and len({kind.split("*.", 1)[0] for kind in kinds}) == 1:
        return [kind.split("*.", 1)[1] for kind in kinds]
    return list(kinds)


def expert_map_panels(found: ExpertMap) -> list[Panel]:
    """Heat maps of the share of experts, of this share relative to the share of units, and of the best expertise."""
    return [
        partial(_heat, found, found.share * 100, f"Share of the {found.k} best, %", "{:.0f}", 0.0),
        partial(_heat, found, found.enrichment, "Times their share of units", "{:.1f}", 0.0),
        partial(_heat, found, found.best_ap, "Mean best AP", "{:.2f}", float(np.nanmin(found.best_ap))),
    ]


def expert_map_size(found: ExpertMap) -> tuple[float, float]:
    """Size in inches of a heat map with its rows."""
    return PANEL[0], min(6.0, 1.0 + 0.24 * len(found.kinds))


def _heat(found: ExpertMap, values: NDArray[np.float64], title: str, form: str, low: float, axes: Axes) -> None:
    kinds, layers = values.shape
    high = float(np.nanmax(values))
    axes.imshow(values, cmap=HEAT, vmin=low, vmax=high or 1.0, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(kinds), [_cut(kind, 18) for kind in found.kinds])
    step = -(-layers // 13)
    axes.set_xticks(range(0, layers, step), found.layers[::step])
    axes.set_xlabel("layer")
    axes.set_title(title)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if layers <= 8:
        for row, column in np.argwhere(np.isfinite(values)):
            dark = (values[row, column] - low) > 0.5 * ((high - low) or 1)
            axes.text(
                column, row, form.format(values[row, column]), ha="center", va="center", fontsize=6.5,
                color="#ffffff" if dark else "#111111",
            )  # fmt: skip


def _cut(text: str, max_letters: int) -> str:
    """A name shortened at its beginning, since its end distinguishes kinds and senses."""
    return text if len(text) <= max_letters else f"…{text[-max_letters + 1 :]}"


def clustered(overlaps: Overlaps, shown: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order some concepts so that concepts that share experts are next to each other (average linkage).

    Args:
        shown: indices of the concepts.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(shown) < 3:
        return shown
    distance = 1 - overlaps.jaccard[np.ix_(shown, shown)]
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    ordered: NDArray[np.int64] = shown[leaves_list(tree)]
    return ordered


def overlap_figure(overlaps: Overlaps) -> Figure:
    """A heat map of the overlap of the most connected concepts, clustered."""
    shown = clustered(overlaps, overlaps.most_connected(SHOWN_CONCEPTS))
    side = 1.9 + 0.095 * max(len(shown), 8)
    return single_panel(partial(_overlap, overlaps, shown), (side, side))


def _overlap(overlaps: Overlaps, shown: NDArray[np.int64], axes: Axes) -> None:
    values = overlaps.jaccard[np.ix_(shown, shown)].copy()
    np.fill_diagonal(values, np.nan)
    high = float(np.nanmax(values)) if len(shown) > 1 else 1.0
    image = axes.imshow(values, cmap=HEAT, vmin=0, vmax=max(high, 0.01), interpolation="nearest")
    names = [_cut_end(overlaps.names[at], 24) for at in shown]
    size = 5.2 if len(shown) > 25 else 7
    axes.set_yticks(range(len(shown)), names, fontsize=size)
    axes.set_xticks(range(len(shown)), names, fontsize=size, rotation=90)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, location="top", shrink=0.4, aspect=24, anchor=(0.0, 0.0), pad=0.012)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.set_label(f"shared of the {overlaps.k} best (Jaccard)", fontsize=7)
    axes.set_facecolor(RULE)


def _cut_end(text: str, max_letters: int) -> str:
    return text if len(text) <= max_letters else f"{text[: max_letters - 1]}…"
