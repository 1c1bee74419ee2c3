"""The style of figures, and writing them reproducibly. Knows no run and no page.

Ink is dark grey, the accents are a dark blue and a lighter orange, which colour-blind readers and grey print can
distinguish. Lines are labelled at their ends instead of in a legend. Fonts are measured as DejaVu Sans, part of
matplotlib, so the layout is the same on every machine.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from expertmine.errors import UserError
from expertmine.storage.files import write_atomically
from expertmine.storage.locations import Location

INK = "#262626"
RULE = "#c9c9c9"
FAINT = "#9a9a9a"
BLUE = "#17497d"
ORANGE = "#d9802e"

HEAT = LinearSegmentedColormap.from_list("heat", ["#f6f6f3", "#bcd0df", "#5f8fb4", "#17497d", "#08203d"])
"""From paper to ink, with evenly falling lightness."""

PANEL = (3.3, 2.7)
"""Size of one panel in inches: as wide as a phone or a column of a paper."""

SUFFIXES = (".svg", ".png", ".pdf")

Panel = Callable[[Axes], None]
"""Draws on the axes it is given."""

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "text.parse_math": False,  # names are data: a dollar sign does not start a formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "patch.linewidth": 0.0,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "path.simplify": True,
}


@contextmanager
def styled(salt: str = "expertmine") -> Iterator[None]:
    """While open, matplotlib draws in this style, whatever the user's own settings are.

    Args:
        salt: for the ids inside an SVG; figures on one page need different salts.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        settings["svg.hashsalt"] = salt
        yield


def single_panel(panel: Panel, size: tuple[float, float] = PANEL) -> Figure:
    """A figure of one panel; `size` in inches."""
    return side_by_side([panel], size)


def side_by_side(panels: Sequence[Panel], size: tuple[float, float] = PANEL) -> Figure:
    """A figure of panels in a row.

    Args:
        size: of each panel, in inches.
    """
    with styled():
        figure = Figure(figsize=(size[0] * len(panels), size[1]))
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
    return figure


def save(figure: Figure, path: Location) -> Location:
    """Write a figure as SVG, PNG or PDF, by the path's suffix; the same figure gives the same bytes.

    Raises:
        UserError: unknown suffix, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown suffix for a figure; expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    write_atomically(path, _bytes(figure, path.suffix[1:], "expertmine", "white"))
    return path


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as SVG for embedding in a page: only ids that it refers to, and colours from the page's variables.

    Args:
        name: of the figure, unique on the page.
    """
    text = _bytes(figure, "svg", name, "none").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' xmlns(?::xlink)?="[^"]*"| version="1.1"', "", text)
    text = text.replace("xlink:href", "href")
    for colour, variable in ((INK, "ink"), (RULE, "rule"), (FAINT, "faint"), (BLUE, "blue"), (ORANGE, "orange")):
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r">\s+<(?!tspan)", "><", text)


def _bytes(figure: Figure, kind: str, salt: str, background: str) -> bytes:
    omitted = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate", "Producer", "Creator")}
    metadata: dict[str, Any] = {"Software": None} if kind == "png" else dict.fromkeys(omitted[kind])
    buffer = io.BytesIO()
    with styled(salt):
        figure.savefig(buffer, format=kind, metadata=metadata, facecolor=background)
    return buffer.getvalue()


def steps_axis(axes: Axes, ladder: Sequence[int], label: str = "experts set, k") -> None:
    """Make x an axis of k: logarithmic with room for 0, and a tick at each value."""
    positive = [k for k in ladder if k > 0]
    if positive and 0 in ladder:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    elif positive:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ladder)))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = _labelled_steps(axes, sorted(ladder))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if round(value) in shown else ""))
    axes.set_xlabel(label)


def _labelled_steps(axes: Axes, ladder: Sequence[int], gap: float = 0.105) -> set[int]:
    """Values of k whose labels do not overlap: both ends first, then from the left."""
    if len(ladder) < 3:
        return set(ladder)
    positions = axes.xaxis.get_transform().transform(np.array(ladder, np.float64))
    width = (positions[-1] - positions[0]) or 1.0
    shown = [0]
    for at in range(1, len(ladder) - 1):
        if positions[at] - positions[shown[-1]] > gap * width and positions[-1] - positions[at] > gap * width:
            shown.append(at)
    return {ladder[at] for at in (*shown, len(ladder) - 1)}


def log_values(axes: Axes, label: str) -> None:
    """Make y logarithmic with plain numbers as ticks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 30
    within = [tick for power in range(-3, 9) for tick in np.array([1, 2, 5] if narrow else [1]) * 10.0**power]
    axes.yaxis.set_major_locator(FixedLocator(within))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylim(low, high)
    axes.set_ylabel(label)


def share_axis(axes: Axes, label: str) -> None:
    """Make y a share, from 0 to 1."""
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_ylabel(label)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.105) -> None:
    """Label lines at their right ends, and move labels apart where they would overlap.

    Args:
        ends: x and y of a line's end, its label, its colour.
        gap: minimum distance between labels, as a share of the axes' height.
    """
    ends = [end for end in ends if np.isfinite(end[1])]
    if not ends:
        return
    axes.autoscale_view()  # matplotlib delays this, but positions are needed now
    to_share = axes.transData + axes.transAxes.inverted()
    heights = to_share.transform([(x, y) for x, y, _, _ in ends])[:, 1]
    order = np.argsort(heights, kind="stable")
    placed = heights[order].copy()
    for at in range(1, len(placed)):
        placed[at] = max(placed[at], placed[at - 1] + gap)
    over = placed[-1] - max(1.0, heights.max())
    if over > 0:
        placed[-1] -= over
        for at in range(len(placed) - 2, -1, -1):
            placed[at] = min(placed[at], placed[at + 1] - gap)
    for at, height in zip(order, placed, strict=True):
        x, y, words, colour = ends[at]
        axes.annotate(
            words,
            xy=(x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
        )
