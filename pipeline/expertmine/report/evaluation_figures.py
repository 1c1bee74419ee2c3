"""Figures of evaluations' results, for the report and for a paper. Knows no run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from expertmine.evaluate.results import (
    Ablation,
    ConceptCurve,
    ConceptEvaluation,
    Estimate,
    Lean,
    Parity,
    ParitySummary,
    Success,
)
from expertmine.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    PANEL,
    RULE,
    Panel,
    label_ends,
    log_values,
    save,
    share_axis,
    side_by_side,
    steps_axis,
)

__all__ = [
    "ablation_figure", "ablation_panels", "concept_figure", "concept_panels", "parity_figure", "parity_panels", "save",
    "unsteered_share",
]  # fmt: skip

UNSTEERED = "unsteered"
"""The variant of an ablation that sets nothing."""


def concept_figure(evaluation: ConceptEvaluation) -> Figure:
    """Success and perplexity against k: a thin line per concept, and a thick one for their mean or median."""
    return side_by_side(concept_panels(evaluation))


def ablation_figure(ablation: Ablation) -> Figure:
    """Success of each variant with its 95 % interval, and its perplexity relative to unsteered."""
    return side_by_side(ablation_panels(ablation), ablation_size(ablation))


def parity_figure(parity: Parity) -> Figure:
    """p(she) - p(he) against k, the parity points of contexts, and perplexity."""
    return side_by_side(parity_panels(parity))


def concept_panels(evaluation: ConceptEvaluation) -> list[Panel]:
    """The panels of `concept_figure`."""
    return [partial(_success, evaluation), partial(_perplexity, evaluation)]


def ablation_panels(ablation: Ablation) -> list[Panel]:
    """The panels of `ablation_figure`."""
    return [partial(_variants, ablation), partial(_ratios, ablation)]


def parity_panels(parity: Parity) -> list[Panel]:
    """The panels of `parity_figure`; perplexity only if texts were sampled."""
    panels: list[Panel] = [partial(_difference, parity), partial(_parity_points, parity)]
    sampled = any(summary.mean_perplexity for summary, _ in _of_lean(parity))
    return [*panels, partial(_parity_perplexity, parity)] if sampled else panels


def ablation_size(ablation: Ablation) -> tuple[float, float]:
    """Size in inches of a panel with a row per variant."""
    return PANEL[0], max(1.6, 0.8 + 0.3 * len(_shown(ablation)))


def unsteered_share(ablation: Ablation) -> float | None:
    """Mean success with nothing set; None if it was not measured."""
    known = [cell.success.share for cell in ablation.cells if cell.k == 0 or cell.variant == UNSTEERED]
    return float(np.mean(known)) if known else None


def _of_each(
    curves: Sequence[ConceptCurve], value: Callable[[Success], float | None]
) -> tuple[list[int], NDArray[np.float64]]:
    """The values of k, and a measurement (concepts, ks), NaN if not known."""
    ladder = sorted({point.k for curve in curves for point in curve.points})
    found = np.full((len(curves), len(ladder)), np.nan)
    for at, curve in enumerate(curves):
        for point in curve.points:
            known = value(point.success)
            if known is not None:
                found[at, ladder.index(point.k)] = known
    return ladder, found


def _lines(
    axes: Axes, evaluation: ConceptEvaluation, ladder: Sequence[int], found: NDArray[np.float64], colour: str
) -> None:
    """Draw a thin line per concept, the band of the middle half, and a dot at each chosen k."""
    for row, curve in zip(found, evaluation.curves, strict=True):
        axes.plot(ladder, row, color=FAINT, linewidth=0.6, alpha=0.7, zorder=1)
        if curve.chosen_k is not None and curve.chosen_k in ladder:
            height = row[ladder.index(curve.chosen_k)]
            axes.plot(curve.chosen_k, height, "o", color=ORANGE, markersize=3, markeredgewidth=0, zorder=4)
    if len(found) >= 4:
        low, high = _over_concepts(partial(np.nanpercentile, q=[25, 75]), found)
        axes.fill_between(ladder, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)


def _over_concepts(reduce: Callable[..., NDArray[np.float64]], found: NDArray[np.float64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a k without known values gives NaN, as intended
        return reduce(found, axis=0)


def _success(evaluation: ConceptEvaluation, axes: Axes) -> None:
    ladder, share = _of_each(evaluation.curves, lambda success: success.share)
    _, lexical = _of_each(evaluation.curves, lambda success: success.lexical)
    _lines(axes, evaluation, ladder, share, BLUE)
    mean = _over_concepts(np.nanmean, share)
    axes.plot(ladder, mean, color=BLUE, zorder=3)
    ends = [(ladder[-1], mean[-1], "mean,\nclassifier", BLUE)]
    if not np.isnan(lexical).all():
        words = _over_concepts(np.nanmean, lexical)
        axes.plot(ladder, words, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, zorder=3)
        ends.append((ladder[-1], words[-1], "mean,\nlexical", INK))
    steps_axis(axes, ladder)
    share_axis(axes, "share of generations")
    axes.set_title(f"Success (n = {len(evaluation.curves)} {_noun(len(evaluation.curves), 'concept')})")
    label_ends(axes, ends, gap=0.17)
    _label_dots(axes, evaluation)


def _perplexity(evaluation: ConceptEvaluation, axes: Axes) -> None:
    ladder, found = _of_each(evaluation.curves, lambda success: success.perplexity)
    _lines(axes, evaluation, ladder, found, BLUE)
    middle = _over_concepts(np.nanmedian, found)
    axes.plot(ladder, middle, color=BLUE, zorder=3)
    steps_axis(axes, ladder)
    log_values(axes, "perplexity")
    axes.set_title("Fluency")
    label_ends(axes, [(ladder[-1], middle[-1], "median", BLUE)])


def _label_dots(axes: Axes, evaluation: ConceptEvaluation) -> None:
    if any(curve.chosen_k is not None for curve in evaluation.curves):
        axes.plot(0.045, 0.945, "o", color=ORANGE, markersize=3, markeredgewidth=0, transform=axes.transAxes)
        axes.text(0.08, 0.945, "chosen k", color=INK, va="center", transform=axes.transAxes)


def _noun(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _shown(ablation: Ablation) -> list[int]:
    """Indices of the comparisons with a row: all but the unsteered one."""
    return [at for at, each in enumerate(ablation.comparisons) if each.variant != UNSTEERED]


def _variants(ablation: Ablation, axes: Axes) -> None:
    rows = [ablation.comparisons[at] for at in _shown(ablation)]
    lexical = any(row.lexical for row in rows)
    for position, row in enumerate(rows):
        colour = BLUE if row.variant == "experts" else INK
        at = position - 0.12 if lexical else position
        axes.plot([row.share.low, row.share.high], [at, at], color=colour, linewidth=1.4)
        axes.plot(row.share.mean, at, "o", color=colour, markersize=4.5)
        if row.lexical is not None:
            at = position + 0.18
            axes.plot([row.lexical.low, row.lexical.high], [at, at], color=FAINT, linewidth=1)
            axes.plot(row.lexical.mean, at, "o", color=FAINT, markersize=3.5, markerfacecolor="white")
    unsteered = unsteered_share(ablation)
    _rows_axis(axes, [row.variant for row in rows])
    highest = max(0.05, *(row.share.high for row in rows))
    axes.set_xlim(-0.02 * highest, 1.08 * highest)
    if unsteered is not None:
        axes.axvline(unsteered, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        axes.text(
            unsteered, -0.5, " unsteered", color=INK, fontsize=7, va="bottom",
            ha="left" if unsteered < axes.get_xlim()[1] / 2 else "right",
        )  # fmt: skip
    axes.set_xlabel("share of generations\n● classifier  ○ lexical" if lexical else "share of generations")
    concepts = len({cell.concept for cell in ablation.cells})
    axes.set_title(f"Success (n = {concepts} {_noun(concepts, 'concept')})")


def _ratios(ablation: Ablation, axes: Axes) -> None:
    rows = [ablation.comparisons[at] for at in _shown(ablation)]
    known = [row.perplexity_ratio for row in rows if row.perplexity_ratio is not None]
    for at, row in enumerate(rows):
        if row.perplexity_ratio is not None:
            axes.plot(row.perplexity_ratio, at, "o", color=BLUE if row.variant == "experts" else INK, markersize=4.5)
            axes.annotate(
                f"{row.perplexity_ratio:.2g}", (row.perplexity_ratio, at), (5, 0), textcoords="offset points",
                va="center", fontsize=7,
            )  # fmt: skip
    axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes.set_xscale("log")
    low, high = min([0.9, *known]), max([1.5, *known])
    axes.set_xlim(low / 1.15, high * (high / low) ** 0.15)
    ticks = [
        tick for tick in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000) if low / 1.15 <= tick <= high * 1.15
    ]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    _rows_axis(axes, [row.variant for row in rows])
    axes.set_xlabel("perplexity, times unsteered (median)")
    axes.set_title("Fluency")


def _rows_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for at in range(len(names)):
        axes.axhline(at, color=RULE, linewidth=0.4, zorder=0)


_LEANS: tuple[tuple[Lean, str], ...] = (("she", ORANGE), ("he", BLUE), ("none", FAINT))
_DASHES: dict[Estimate, object] = {"sampled": "-", "exact": (0, (4, 2))}


def _of_lean(parity: Parity) -> list[tuple[ParitySummary, str]]:
    """Summaries of contexts with a lean, and their colour."""
    colours = dict(_LEANS)
    return [(each, colours[each.lean]) for each in parity.summaries if each.lean != "none" and each.contexts]


def _difference(parity: Parity, axes: Axes) -> None:
    axes.axhline(0, color=INK, linewidth=0.6)
    ends = []
    for summary, colour in _of_lean(parity):
        axes.plot(parity.ladder, summary.mean_difference, color=colour, linestyle=_DASHES[summary.estimate])
        words = f"leans {summary.lean},\n{summary.estimate}"
        ends.append((parity.ladder[-1], summary.mean_difference[-1], words, colour))
    steps_axis(axes, parity.ladder)
    axes.set_ylabel("p(she) − p(he), mean")
    axes.set_title("Difference")
    label_ends(axes, ends, gap=0.17)


def _parity_points(parity: Parity, axes: Axes) -> None:
    ends = []
    last = parity.ladder[-1]
    for summary, colour in _of_lean(parity):
        points = sorted(
            curve.parity_k
            for curve in parity.curves
            if (curve.lean, curve.estimate) == (summary.lean, summary.estimate) and curve.parity_k is not None
        )
        share = np.arange(len(points) + 1) / summary.contexts
        axes.step([0, *points, last], [*share, share[-1]], where="post", color=colour,
                  linestyle=_DASHES[summary.estimate])  # fmt: skip
        ends.append((last, float(share[-1]), f"{summary.reached} of {summary.contexts}", colour))
    steps_axis(axes, parity.ladder, "parity point, k")
    share_axis(axes, "share of contexts at parity")
    axes.set_title("Parity points")
    label_ends(axes, ends)


def _parity_perplexity(parity: Parity, axes: Axes) -> None:
    ends = []
    for summary, colour in _of_lean(parity):
        if not summary.mean_perplexity:
            continue
        values = np.array([np.nan if each is None else each for each in summary.mean_perplexity], np.float64)
        axes.plot(parity.ladder, values, color=colour, linestyle=_DASHES[summary.estimate])
        ends.append((parity.ladder[-1], float(values[-1]), f"leans {summary.lean}", colour))
    steps_axis(axes, parity.ladder)
    log_values(axes, "perplexity, mean")
    axes.set_title("Fluency")
    label_ends(axes, ends)
