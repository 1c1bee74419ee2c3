"""The contents of the page as plain data, read from an index, a run and its evaluations. Knows no HTML or figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmine.errors import UserError
from expertmine.evaluate.results import Ablation, ConceptCurve, ConceptEvaluation, Parity, Success, read_result
from expertmine.index.experts import Experts
from expertmine.run import paths
from expertmine.run.ledger import read_receipts
from expertmine.run.open_run import OpenRun, open_run
from expertmine.specs.plan import STAGES
from expertmine.storage.files import exists
from expertmine.storage.locations import Location
from expertmine.telemetry.formats import interval, p_value

TOP = 100
"""Number of best units that count as a concept's experts on this page."""

DASH = "–"


@dataclass(frozen=True)
class Source:
    """A run with its index and evaluations, or an index alone."""

    path: Location
    index: Experts
    run: OpenRun | None
    """None for an index alone, and for a run that was planned again after the index was made."""
    note: str | None
    """Why there is no run."""
    steering: ConceptEvaluation | None
    ablation: Ablation | None
    parity: Parity | None

    @property
    def pooling(self) -> str:
        return str(self.index.metadata["pooling"])

    def curve(self, concept: str) -> ConceptCurve | None:
        """The evaluated curve of a concept; None if it was not evaluated."""
        curves = self.steering.curves if self.steering else ()
        return next((curve for curve in curves if curve.concept == concept), None)

    def earlier(self, result: ConceptEvaluation | Ablation | Parity) -> bool:
        """Whether an evaluation was made with an earlier index than this one."""
        return bool(result.provenance.experts != self.index.metadata["checksums"]["experts"])


def open_source(path: Location, index: Experts) -> Source:
    """Read the plan and the evaluations that belong to an index.

    Raises:
        UserError: the plan or an evaluation's result is damaged.
    """
    run: OpenRun | None = None
    note: str | None = "this is an expert index without its run"
    if exists(paths.plan_file(path)):
        run, note = open_run(path), None
        if run.plan.fingerprint != index.metadata["plan"]:
            run, note = None, "the run was planned again after its index was made"
        elif not exists(paths.store_folder(path)):
            run, note = None, "the run's stored responses are missing"
    pooling = str(index.metadata["pooling"])
    return Source(
        path,
        index,
        run,
        note,
        read_result(path, pooling, ConceptEvaluation),
        read_result(path, pooling, Ablation),
        read_result(path, pooling, Parity),
    )


@dataclass(frozen=True, slots=True)
class TableCell:
    """A cell of a table: its text and its sort key."""

    shown: str
    key: float | str | None
    """None sorts last."""


@dataclass(frozen=True, slots=True)
class ConceptRow:
    """A row of the table of concepts."""

    name: str
    cells: tuple[TableCell, ...]
    above: bool
    """Whether its best unit is above its threshold."""


COLUMNS: tuple[tuple[str, str], ...] = (
    ("concept", "Name in the corpus"),
    ("positives", "Mined positive sentences"),
    ("negatives", "Mined negative sentences"),
    ("best AP", "Average precision of the best unit on mined sentences"),
    ("held out (95 %)", "Average precision of the same unit on sentences that mining did not see"),
    ("p", "Probability that the best of all units does as well under shuffled labels"),
    ("threshold", "Average precision that the best of all units exceeds in 5 of 100 shuffles"),
    ("units above", "Units above the threshold"),
    ("stability", "Share of the 10 best units that stay among the 10 best when sentences are resampled"),
    ("chosen k", "Number of experts to set, as chosen by the evaluation"),
    (
        "success",
        "Share of generations at the chosen k that a classifier assigns to the concept; optimistic, because k was "
        "chosen on the same generations",
    ),
    ("perplexity", "Perplexity of these generations"),
    ("description", "Description in the corpus"),
)
"""Columns of the table of concepts: heading and explanation."""


@dataclass(frozen=True)
class Best:
    """The best unit of each concept."""

    names: tuple[str, ...]
    ap: NDArray[np.float64]
    """(concepts,)"""
    held_out: NDArray[np.float64]
    """(concepts,) NaN if not known."""
    thresholds: NDArray[np.float64]
    """(concepts,) NaN if not known."""

    @classmethod
    def of(cls, index: Experts) -> Best:
        table, kept = index.table, index.top_k
        chance = [metadata["chance"]["threshold"] for metadata in index.metadata["concepts"]]
        return cls(
            tuple(index),
            table["ap"].to_numpy()[::kept],
            table["held_out_ap"].to_numpy()[::kept],
            np.array([math.nan if each is None else each for each in chance], np.float64),
        )

    @property
    def margin(self) -> NDArray[np.float64]:
        """(concepts,) average precision minus the threshold; minus 0 if no threshold is known."""
        return self.ap - np.nan_to_num(self.thresholds)

    @property
    def order(self) -> NDArray[np.int64]:
        """(concepts,) indices by margin, the largest first."""
        return np.argsort(-self.margin, kind="stable")


def concept_rows(source: Source, best: Best) -> list[ConceptRow]:
    """A row per concept, the highest best average precision first."""
    permutations = source.index.metadata["scoring"]["permutations"]
    return [
        _row(source, best.names[at], permutations, bool(best.ap[at] > best.thresholds[at]))
        for at in np.argsort(-best.ap, kind="stable").tolist()
    ]


def known_columns(rows: Sequence[ConceptRow]) -> list[int]:
    """Indices of the columns with a value for at least one concept."""
    return [at for at in range(len(COLUMNS)) if any(row.cells[at].key not in (None, "") for row in rows)]


def _row(source: Source, name: str, permutations: int, above: bool) -> ConceptRow:
    metadata, expert = source.index.concept_metadata(name), source.index[name].top(1)[0]
    chance, stability = metadata["chance"], metadata["stability"].get("10")
    chosen, success = chosen_success(source, name)
    held_out = number(expert.held_out_ap, ".3f")
    if not math.isnan(expert.held_out_low):
        held_out = TableCell(f"{held_out.shown} ({interval(expert.held_out_low, expert.held_out_high)})", held_out.key)
    return ConceptRow(
        name,
        (
            TableCell(name, name),
            number(metadata["positives"], ",d"),
            number(metadata["negatives"], ",d"),
            number(expert.ap, ".3f"),
            held_out,
            TableCell(p_value(expert.p_value, permutations), number(expert.p_value, "").key),
            number(chance["threshold"], ".3f"),
            number(chance["units_above"], ",d"),
            number(stability, ".0%"),
            number(chosen, ",d"),
            number(success.share if success else None, ".2f"),
            number(success.perplexity if success else None, ",.0f"),
            TableCell(metadata["description"], metadata["description"]),
        ),
        above,
    )


def chosen_success(source: Source, concept: str) -> tuple[int | None, Success | None]:
    """The k that an evaluation chose for a concept, and the measurements at this k; None if not known."""
    curve = source.curve(concept)
    chosen = curve.chosen_k if curve else source.index.chosen_k(concept)
    points = curve.points if curve else ()
    return chosen, next((point.success for point in points if point.k == chosen), None)


def number(value: float | int | None, spec: str) -> TableCell:
    """A number as a cell; a dash if it is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return TableCell(DASH, None)
    return TableCell(format(value, spec), value)


def run_metadata(source: Source) -> list[tuple[str, str]]:
    """The labels and values of the page's header."""
    metadata, model = source.index.metadata, source.index.model
    scoring, responses = metadata["scoring"], metadata["responses"]
    keep = "all units" if scoring["keep"] is None else f"the {scoring['keep']} best and worst units per block"
    found = [
        ("Model", model.name + (f", revision {model.revision}" if model.revision else "")),
        ("Architecture", model.architecture),
        ("Weights", f"SHA-256 {model.weights[:12]}…"),
        ("Units", f"{metadata['units']:,} at {len(metadata['hookpoints']):,} hookpoints"),
        ("Concepts", f"{len(metadata['concepts']):,}"),
        ("Sentences", f"{metadata['corpus']['sentences']:,} in the corpus"),
    ]
    if source.run is not None:
        found += _counts(source.run)
    found += [
        ("Corpus", f"fingerprint {metadata['corpus']['fingerprint'][:12]}…"),
        ("Responses", f"{metadata['pooling']} pooling, stored as {responses['dtype']}, model in {responses['weights']}"
         + ("" if responses["autocast"] == "none" else f" with autocast to {responses['autocast']}")),
        ("Tokens per sentence", f"at most {responses['max_tokens']}, longer ones "
         + ("dropped" if responses["too_long"] == "drop" else "truncated")
         + (", special tokens pooled too" if responses["special_tokens"] else "")),
        ("Scoring", f"{scoring['permutations']} permutations ({scoring['null']} null), {scoring['resamples']} "
         f"resamples, alpha {scoring['alpha']:g}, seed {scoring['seed']}; statistics of {keep}"),
        ("Experts kept", f"{source.index.top_k:,} per concept"),
        ("Index", f"plan {metadata['plan'][:12]}…, table {metadata['checksums']['experts'][:12]}…"),
        ("Evaluated", _evaluated(source)),
        ("expertmine", _version()),
    ]  # fmt: skip
    return found


def _counts(run: OpenRun) -> list[tuple[str, str]]:
    """Sentences run through the model, and each stage's progress."""
    done, totals, dropped = {}, {"sentences": 0, "tokens": 0}, 0
    for stage in STAGES:
        receipts = list(read_receipts(run, stage))
        done[stage] = f"{stage} {len(receipts):,} of {run.plan.tasks(stage):,}"
        if stage == "extract":
            totals = {name: sum(receipt.counts.get(name, 0) for receipt in receipts) for name in totals}
            dropped = sum(receipt.counts.get("dropped", 0) for receipt in receipts)
    lost = f", {dropped:,} dropped as too long" if dropped else ""
    return [
        ("Run through the model", f"{totals['sentences']:,} sentences, {totals['tokens']:,} tokens{lost}"),
        ("Tasks done", "; ".join(done[stage] for stage in STAGES if run.plan.tasks(stage))),
    ]


def _evaluated(source: Source) -> str:
    parts = []
    if source.steering:
        parts.append(f"steering of {len(source.steering.curves):,} concepts")
    if source.ablation:
        parts.append(f"ablation of {len({cell.concept for cell in source.ablation.cells}):,} concepts")
    if source.parity:
        parts.append(f"gender parity in {len({curve.context for curve in source.parity.curves}):,} contexts")
    return "; ".join(parts) or "not yet"


def _version() -> str:
    try:
        return version("expertmine")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown version"


def chosen_details(source: Source, best: Best, names: Sequence[str], count: int) -> list[str]:
    """The concepts to show in full, the farthest above chance first.

    Args:
        names: the requested concepts; if empty, the `count` that are farthest above chance.

    Raises:
        UnknownConcept: a requested concept is not in the index.
    """
    for name in names:
        source.index.concept_metadata(name)
    ordered = [best.names[at] for at in best.order.tolist()]
    return [name for name in ordered if name in names] if names else ordered[:count]


def require_counts(sentences: int, concepts: int) -> None:
    """Check the options that are counts.

    Raises:
        UserError: a count is negative.
    """
    for name, value in (("--sentences", sentences), ("--concepts", concepts)):
        if value < 0:
            raise UserError(f"{name} is {value}: expected 0 or more")


@dataclass(frozen=True)
class Overlaps:
    """How many experts concepts share."""

    names: tuple[str, ...]
    jaccard: NDArray[np.float64]
    """(concepts, concepts) Jaccard index of their k best units."""
    k: int

    def nearest(self, concept: str, count: int) -> list[tuple[str, float]]:
        """The concepts that share the most experts with one, and their Jaccard index; without those that share none."""
        at = self._positions.get(concept)
        if at is None:
            return []
        row = self.jaccard[at].copy()
        row[at] = -1
        order = np.argsort(-row, kind="stable")[:count]
        return [(self.names[other], float(row[other])) for other in order if row[other] > 0]

    def pairs(self, count: int) -> list[tuple[str, str, float, int]]:
        """The closest pairs: two names, their overlap, and how many experts they share."""
        first, second = np.triu_indices(len(self.names), 1)
        values = self.jaccard[first, second]
        order = np.argsort(-values, kind="stable")[:count]
        return [
            (self.names[first[at]], self.names[second[at]], float(values[at]), self.shared(float(values[at])))
            for at in order
            if values[at] > 0
        ]

    def shared(self, jaccard: float) -> int:
        """The number of experts that two sets of k share, from their Jaccard index."""
        return round(2 * self.k * jaccard / (1 + jaccard))

    def most_connected(self, count: int) -> NDArray[np.int64]:
        """Indices of the concepts that share the most experts with others, in ascending order."""
        together = self.jaccard.sum(axis=1)
        return np.sort(np.argsort(-together, kind="stable")[:count])

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {name: at for at, name in enumerate(self.names)}


def group_success(evaluation: ConceptEvaluation) -> list[dict[str, Any]]:
    """Mean success and median perplexity over all evaluated concepts, per k."""
    found = []
    for k in sorted({point.k for curve in evaluation.curves for point in curve.points}):
        points = [point.success for curve in evaluation.curves for point in curve.points if point.k == k]
        lexical = [each.lexical for each in points if each.lexical is not None]
        fluent = [each.perplexity for each in points if each.perplexity is not None]
        found.append(
            {
                "k": k,
                "concepts": len(points),
                "share": number(float(np.mean([each.share for each in points])), ".2f").shown,
                "lexical": number(float(np.mean(lexical)) if lexical else None, ".2f").shown,
                "perplexity": number(float(np.median(fluent)) if fluent else None, ",.0f").shown,
                "distinct_2": number(float(np.mean([each.distinct_2 for each in points])), ".2f").shown,
            }
        )
    return found
