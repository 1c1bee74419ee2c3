"""The report: a run's results as one self-contained HTML page that needs neither network nor server.

The template escapes everything that comes from data, or the page includes it as JSON that no script evaluates. The page
may run only its own script, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from expertmine.errors import UserError
from expertmine.evaluate.results import ConceptCurve, Success
from expertmine.index.experts import Experts
from expertmine.index.units import Expert
from expertmine.report import contents, evaluation_figures, figures
from expertmine.report.marks import Marks, Span, Wanted, find_marks
from expertmine.report.overlaps import overlaps
from expertmine.report.sentences import Shown, UnitSentences, extreme_sentences
from expertmine.report.small_curve import small_curve
from expertmine.report.style import PANEL, Panel, inline_svg, single_panel
from expertmine.run.open_run import open_corpus
from expertmine.specs.settings import Pooling
from expertmine.storage.files import write_atomically
from expertmine.storage.locations import Location
from expertmine.telemetry.formats import p_value

HERE = Path(__file__).parent
MAX_DETAILS = 300
"""Default number of concepts shown in full."""
LOOKED_AT = 3
"""Best units of a concept whose sentences are shown."""
LISTED = 10
"""Best units listed per concept."""
STATIC_ROWS = 50
"""Rows of the table without a script, and on paper."""
STATIC_DETAILS = 3
NEAREST = 6
PAIRS = 100
SAMPLED = 6
"""Concepts whose steered texts are shown outside of their details."""
MAX_OVERLAPPING = 3000
"""Up to this many concepts, all pairs are compared; of more, only the concepts shown in full."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The contents of a report."""

    title: str | None = None
    sentences: int = 5
    """Sentences with the highest response, for each of a concept's three best units; 0 does not load the model."""
    concepts: tuple[str, ...] = ()
    """Concepts to show in full; empty for the farthest above chance."""
    max_concepts: int | None = None
    """Number of concepts to show in full; None for all, up to 300."""
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence for display: the text before the marked token, the token, the text after it."""

    label: str
    response: str
    before: str
    mark: str
    after: str


@dataclass(frozen=True, slots=True)
class Detail:
    """A concept shown in full."""

    name: str
    description: str
    metadata: Mapping[str, Any]
    experts: tuple[Expert, ...]
    units: tuple[tuple[Expert, tuple[tuple[str, tuple[Sentence, ...]], ...]], ...]
    """For each of the best experts: groups of sentences with their headings."""
    nearest: tuple[tuple[str, float], ...]
    curve: ConceptCurve | None
    drawing: Markup
    chosen_k: int | None


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A summary of a report that was written."""

    path: Path
    concepts: int
    details: int
    marks: Marks | None
    note: str | None
    """Why there are no sentences."""


def write_report(
    run: Location, out: Path, options: ReportOptions = ReportOptions(), pooling: Pooling | None = None
) -> WrittenReport:
    """Write the report of a run, or of an expert index, as one HTML file; the same run gives the same bytes.

    Args:
        pooling: which of the run's indexes; by default that of its first pooling.

    Raises:
        UserError: there is no index, a requested concept is unknown, the store is damaged, or the model is missing.
    """
    contents.require_counts(options.sentences, options.max_concepts or 0)
    source = contents.open_source(run, Experts.load(run, pooling))
    best = contents.Best.of(source.index)
    count = MAX_DETAILS if options.max_concepts is None else options.max_concepts
    chosen = contents.chosen_details(source, best, options.concepts, count)
    units, marks, note = _sentences(source, chosen, options)
    shared = _overlaps(source.index, chosen)
    details = [_detail(source, name, units.get(name, ()), marks, shared) for name in chosen]
    content = _render(source, best, options, details, shared, marks, note)
    write_atomically(out, content.encode())
    return WrittenReport(out, len(best.names), len(details), marks, note)


def _sentences(
    source: contents.Source, chosen: Sequence[str], options: ReportOptions
) -> tuple[dict[str, tuple[UnitSentences, ...]], Marks | None, str | None]:
    """Sentences for the best units of some concepts and their marks, or the reason why there are none."""
    if not options.sentences:
        return {}, None, "they are turned off (`--sentences 0`)"
    if source.run is None or not chosen:
        return {}, None, source.note
    pooling: Pooling = source.index.metadata["pooling"]
    experts = {name: source.index[name].top(min(LOOKED_AT, source.index.top_k)) for name in chosen}
    corpus = open_corpus(source.run)
    found = extreme_sentences(source.run, corpus, pooling, experts, options.sentences)
    texts: dict[int, str] = {}
    wanted: dict[Wanted, None] = {}
    for unit in (unit for units in found.values() for unit in units):
        for shown in (*unit.highest, *unit.lowest_positives, *unit.highest_negatives):
            texts[shown.sentence_id] = shown.text
            wanted[Wanted(shown.sentence_id, unit.expert.unit, shown.response)] = None
    try:
        return found, find_marks(source.run.plan, pooling, texts, list(wanted), options.device), None
    except UserError as error:
        raise UserError(f"{error} (`--sentences 0` makes the report without the model)") from error


def _overlaps(index: Experts, chosen: Sequence[str]) -> contents.Overlaps:
    k = min(contents.TOP, index.top_k)
    names, jaccard = overlaps(index, k, None if len(index) <= MAX_OVERLAPPING else chosen)
    return contents.Overlaps(tuple(names), jaccard, k)


def _detail(
    source: contents.Source,
    name: str,
    units: Sequence[UnitSentences],
    marks: Marks | None,
    shared: contents.Overlaps,
) -> Detail:
    found = source.index[name]
    curve = source.curve(name)
    drawing = ""
    if curve and len(curve.points) > 1:
        drawing = small_curve([(point.k, point.success.share, point.success.perplexity) for point in curve.points])
    return Detail(
        name=name,
        description=found.description,
        metadata=source.index.concept_metadata(name),
        experts=found.top(min(LISTED, len(found))),
        units=tuple((unit.expert, tuple(_groups(unit, marks))) for unit in units),
        nearest=tuple(shared.nearest(name, NEAREST)),
        curve=curve,
        drawing=Markup(drawing),  # made of numbers only
        chosen_k=contents.chosen_success(source, name)[0],
    )


def _groups(unit: UnitSentences, marks: Marks | None) -> Iterator[tuple[str, tuple[Sentence, ...]]]:
    spans = marks.spans if marks else {}
    for heading, shown in (
        ("highest of all", unit.highest),
        ("lowest positives", unit.lowest_positives),
        ("highest negatives", unit.highest_negatives),
    ):
        if shown:
            yield heading, tuple(_marked(each, spans.get((each.sentence_id, unit.expert.unit))) for each in shown)


def _marked(shown: Shown, span: Span | None) -> Sentence:
    start, stop = span or (len(shown.text), len(shown.text))
    return Sentence(
        shown.label,
        f"{shown.response:z.2f}".replace("-", "−"),
        shown.text[:start],
        shown.text[start:stop],
        shown.text[stop:],
    )


def _render(
    source: contents.Source,
    best: contents.Best,
    options: ReportOptions,
    details: Sequence[Detail],
    shared: contents.Overlaps,
    marks: Marks | None,
    note: str | None,
) -> str:
    rows = contents.concept_rows(source, best)
    shown = contents.known_columns(rows)
    expert_map = figures.expert_map(source.index)
    drawings = _drawings(source, best, expert_map, shared)
    script = (HERE / "page.js").read_text()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["decimals"] = lambda value, places: contents.number(value, f",.{places}f").shown.replace(
        "-", "−"
    )
    environment.filters["p"] = partial(_p_value, source.index.metadata["scoring"]["permutations"])
    environment.filters["of_interval"] = lambda each: f"{each.mean:.2f} ({each.low:.2f}–{each.high:.2f})"
    return environment.get_template("page.html.j2").render(
        title=options.title or f"Expert units of {_short(source.index.model.name)}",
        css=Markup((HERE / "page.css").read_text()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        options=options,
        source=source,
        metadata=contents.run_metadata(source),
        scoring=source.index.metadata["scoring"],
        best=best,
        columns=[contents.COLUMNS[at] for at in shown],
        shown=shown,
        rows=rows,
        static_rows=STATIC_ROWS,
        table=_as_json(_table(rows, shown, details)),
        details=details,
        static_details=details[:STATIC_DETAILS],
        sentences_note=note,
        marks=marks,
        looked_at=LOOKED_AT,
        expert_map=expert_map,
        shared=shared,
        pairs=shared.pairs(PAIRS),
        shown_overlaps=min(figures.SHOWN_CONCEPTS, len(shared.names)),
        above=sum(row.above for row in rows),
        steering=source.steering,
        steps=contents.group_success(source.steering) if source.steering else [],
        samples=_sampled(source, details),
        ablation=source.ablation,
        parity=source.parity,
        drawn={name: list(_drawn(name, *drawing)) for name, drawing in drawings.items()},
    )


def _short(model: str) -> str:
    """A model's name; of a local folder, only the last part."""
    return Path(model).name if Path(model).is_absolute() else model


def _drawings(
    source: contents.Source, best: contents.Best, expert_map: figures.ExpertMap, shared: contents.Overlaps
) -> dict[str, tuple[Iterable[Panel | Figure], tuple[float, float]]]:
    """Every figure of the page: its panels, or the whole figure, and the size of a panel."""
    found: dict[str, tuple[Iterable[Panel | Figure], tuple[float, float]]] = {
        "distribution": (figures.distribution_panels(source.index, best), PANEL),
        "where": (figures.expert_map_panels(expert_map), figures.expert_map_size(expert_map)),
    }
    if len(shared.names) > 1:
        found["overlap"] = ([figures.overlap_figure(shared)], PANEL)
    if source.steering:
        found["steering"] = (evaluation_figures.concept_panels(source.steering), PANEL)
    if source.ablation:
        size = evaluation_figures.ablation_size(source.ablation)
        found["ablation"] = (evaluation_figures.ablation_panels(source.ablation), size)
    if source.parity:
        found["parity"] = (evaluation_figures.parity_panels(source.parity), PANEL)
    return found


def _drawn(name: str, panels: Iterable[Panel | Figure], size: tuple[float, float]) -> Iterator[Markup]:
    """The panels of a figure as separate SVGs, so that they wrap on a narrow screen.

    Matplotlib escapes the names in them.
    """
    for at, panel in enumerate(panels):
        figure = panel if isinstance(panel, Figure) else single_panel(panel, size)
        yield Markup(inline_svg(figure, f"{name} {at}"))


def _p_value(permutations: int, value: float | None) -> str:
    return contents.DASH if value is None else p_value(value, permutations)


def _table(rows: Sequence[contents.ConceptRow], shown: Sequence[int], details: Sequence[Detail]) -> dict[str, Any]:
    """The table of concepts for the page's script: each cell's text, and its sort key if that differs.

    Args:
        shown: indices of the columns shown.
    """
    positions = {detail.name: at for at, detail in enumerate(details)}
    return {
        "rows": [
            [
                [each.shown if each.key == each.shown else [each.shown, each.key] for each in _cells(row, shown)],
                positions.get(row.name, -1),
                int(row.above),
            ]
            for row in rows
        ]
    }


def _cells(row: contents.ConceptRow, shown: Sequence[int]) -> list[contents.TableCell]:
    return [row.cells[at] for at in shown]


def _as_json(document: Any) -> Markup:
    """JSON for a script element, escaped so that nothing in it can end the element."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sampled(
    source: contents.Source, details: Sequence[Detail]
) -> list[tuple[ConceptCurve, list[tuple[int, Success]]]]:
    """The evaluated concepts with the highest success at their chosen k, and their texts at each k."""

    def success(curve: ConceptCurve) -> float:
        return max((point.success.share for point in curve.points if point.k == curve.chosen_k), default=-1.0)

    curves = source.steering.curves if source.steering else ()
    with_texts = [curve for curve in curves if any(point.success.examples for point in curve.points)]
    chosen = sorted(with_texts, key=lambda curve: (-success(curve), curve.concept))[:SAMPLED]
    return [(curve, [(point.k, point.success) for point in curve.points if point.success.examples]) for curve in chosen]
