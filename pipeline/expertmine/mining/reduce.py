"""Stage 3: expertise → expert index: the best and the worst units of every concept, and how they compare with chance.

Streams over blocks of units; the result does not depend on the order in which blocks were scored or are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.index.distribution import Distribution
from expertmine.index.experts import is_index_of
from expertmine.index.units import SCHEMA
from expertmine.index.writer import write_index
from expertmine.mining.chance import ALPHA, expected_ap, p_values, thresholds, transferred_null
from expertmine.mining.controls import controls
from expertmine.mining.ranking import Extremes
from expertmine.mining.scored_rows import LabelSplit, NullClasses, mined_and_held_out, null_classes
from expertmine.mining.stage import WorkerOptions
from expertmine.run import lease
from expertmine.run.ledger import require_complete
from expertmine.run.open_run import OpenRun, open_corpus, require_current
from expertmine.run.paths import index_folder
from expertmine.run.side_tables import read_assessments, read_null
from expertmine.run.statistics import KEPT, STATISTICS
from expertmine.run.store import Store
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location
from expertmine.telemetry.progress import track

STABILITY_AT = (10, 50)
"""Values of k for which the index says how many of the k best stay among them when sentences are resampled."""


def max_experts(plan: Plan) -> int:
    """How many experts per concept the index may hold: all units, or as many as have their statistics kept."""
    return plan.layout.units if plan.kept_columns is None else min(plan.kept_columns // 2, plan.layout.units)


def require_top_k(plan: Plan, kept: int) -> None:
    """Check the number of experts to keep.

    Raises:
        UserError: it is more than there are, or 0.
    """
    most = max_experts(plan)
    if not 1 <= kept <= most:
        why = "the model's units" if most == plan.layout.units else "as many as have their statistics kept, see --keep"
        raise UserError(f"--top-k is {kept}: expected 1 to {most}, {why}")


def plan(run: OpenRun) -> list[int]:
    """List the tasks: a pooling each, all of them, since an index that is there may keep another number of experts.

    Raises:
        UserError: scoring is not complete.
    """
    require_complete(run, "score")
    require_complete(run, "assess")
    return list(range(len(run.plan.responses.poolings)))


def new_worker(run: OpenRun, options: WorkerOptions) -> Callable[[], Reducer]:
    """What makes a `Reducer` on the machine where it is called."""
    return partial(Reducer, run, options.top_k)


def finish(run: OpenRun) -> None:
    """Check that the index of every pooling is there, and of this plan.

    Raises:
        UserError: names one that is not.
    """
    for pooling in run.plan.responses.poolings:
        folder = index_folder(run.path, run.plan, pooling)
        if not is_index_of(folder, run.plan):
            raise UserError(f"{folder} is not the index of this run's plan; run `expertmine reduce {run}`")


class Reducer:
    """Holds the labels; each call writes the index of one pooling."""

    def __init__(self, run: OpenRun, top_k: int) -> None:
        """Open the store.

        Args:
            top_k: experts to keep per concept.

        Raises:
            UserError: the store is damaged, or `top_k` is out of range.
            StageError: the run was planned again.
        """
        require_current(run)
        require_top_k(run.plan, top_k)
        self.run, self.top_k = run, top_k
        self.store, self.corpus = Store(run), open_corpus(run)
        self.chance = _Chance.of(run, self.corpus, self.store)

    def __call__(self, task: int) -> Location:
        """Write the index of a pooling; returns its folder.

        Raises:
            UserError: statistics are damaged, or the disk is full.
        """
        pooling = self.run.plan.responses.poolings[task]
        return _reduce(self.run, pooling, self.store, self.corpus, self.chance, self.top_k)


def _reduce(run: OpenRun, pooling: Pooling, store: Store, corpus: Corpus, chance: _Chance, kept: int) -> Location:
    plan = run.plan
    null = chance.null(run, pooling)
    best, worst = Extremes(plan.corpus.concepts, kept), Extremes(plan.corpus.concepts, kept, worst=True)
    distribution = Distribution(plan.corpus.concepts, plan.hookpoints, thresholds(null))
    label = "reduce" if len(plan.responses.poolings) == 1 else f"reduce {pooling}"
    for block in track(range(plan.layout.blocks), label, plan.layout.blocks):
        units = plan.layout.block(block)
        ap = store.read_scores(pooling, "ap", units)
        for extremes in (best, worst):
            extremes.add(ap, units.start)
        distribution.add(ap, units)
    tables = {"distribution": distribution.table([concept.name for concept in corpus.concepts])}
    interval, stability = _assessed(run, pooling, kept)
    chosen = {"experts": best.found()[0], "worst": worst.found()[0]}
    chosen["random"], chosen["matched"] = controls(chosen["experts"], plan.hookpoints, plan.scoring.seed)
    statistics = _statistics(store, pooling, np.concatenate(list(chosen.values()), axis=1))
    for at, (name, units_) in enumerate(chosen.items()):
        values = {each: found[:, at * kept : (at + 1) * kept] for each, found in statistics.items()}
        values["p_value"] = p_values(values["ap"], null)
        # Only the best are assessed.
        assessed = interval if name == "experts" else np.full_like(interval, np.nan)
        values["held_out_low"], values["held_out_high"] = np.moveaxis(assessed, 2, 0)
        tables[name] = _table(plan, corpus, units_, values)
    concepts = _concepts(corpus, chance)
    for at, metadata in enumerate(concepts):
        threshold = distribution.thresholds[at]
        known = not np.isnan(threshold)
        metadata["chance"] = {
            "expected_ap": float(chance.expected[at]),
            "threshold": float(threshold) if known else None,
            "units_above": int(distribution.above[at].sum()) if known else None,
            "labels_of": corpus.concepts[chance.classes.shuffled[at]].name if plan.scoring.permutations else None,
        }
        metadata["stability"] = {str(k): float(shares[at]) for k, shares in stability.items()}
    lease.require(run.path)
    return write_index(index_folder(run.path, plan, pooling), tables, plan, pooling, concepts, ALPHA)


@dataclass(frozen=True)
class _Chance:
    """What shuffled labels give: the same for every pooling, except the maxima."""

    mined: LabelSplit
    held_out: LabelSplit
    expected: NDArray[np.float64]
    """(concepts,) expected average precision of a random order."""
    classes: NullClasses

    @classmethod
    def of(cls, run: OpenRun, corpus: Corpus, store: Store) -> _Chance:
        mined, held_out, _ = mined_and_held_out(run, corpus, store)
        classes = null_classes(mined.positives, mined.negatives, run.plan.scoring.null)
        return cls(mined, held_out, expected_ap(mined.positives, mined.negatives), classes)

    def null(self, run: OpenRun, pooling: Pooling) -> NDArray[np.float64]:
        """(concepts, permutations) average precision of the best of all units under shuffled labels."""
        permutations = run.plan.scoring.permutations
        if not permutations:
            return np.empty((len(self.expected), 0))
        shuffled, max_ap = read_null(run, pooling)
        position = np.empty(len(self.expected), np.int64)
        position[shuffled[::permutations]] = np.arange(len(shuffled) // permutations)
        of_class = max_ap.reshape(-1, permutations)[position[self.classes.shuffled]]
        return transferred_null(of_class, expected_ap(self.classes.positives, self.classes.negatives), self.expected)


def _assessed(run: OpenRun, pooling: Pooling, kept: int) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """Intervals on held-out sentences, (concepts, kept, 2), and for some k the share that stays, (concepts,)."""
    interval = np.full((run.plan.corpus.concepts, kept, 2), np.nan)
    if not run.plan.scoring.resamples:
        return interval, {}
    resampled, found = read_assessments(run, pooling)
    known = min(kept, found.shape[1])
    interval[:, :known] = found[:, :known]
    ks = [k for k in STABILITY_AT if 2 * k <= found.shape[1]]
    return interval, {k: np.array([stability(each, k) for each in resampled]) for k in ks}


def stability(resampled: NDArray[np.floating[Any]], k: int) -> float:
    """Share of the k best units that are among the k best of a resample, on average.

    Args:
        resampled: (units, resamples) average precision of a concept's units, the best on all sentences first; ties go
            to the earlier one.
    """
    best = np.argsort(-resampled, axis=0, kind="stable")[:k]
    return float((best < k).mean())


def _statistics(store: Store, pooling: Pooling, chosen: NDArray[np.int64]) -> dict[str, NDArray[np.floating[Any]]]:
    """Every stored statistic of chosen units, each (concepts, chosen); NaN for statistics that were not kept."""
    plan = store.plan
    found = {name: np.full(chosen.shape, np.nan, dtype) for name, dtype in STATISTICS.items()}
    blocks = chosen // plan.layout.block_units
    for block in np.unique(blocks).tolist():
        units = plan.layout.block(block)
        at = np.nonzero(blocks == block)
        cells = at[0], chosen[at] - units.start
        found["ap"][at] = store.read_scores(pooling, "ap", units)[cells]
        if plan.kept_columns is not None:
            same = store.read_kept(pooling, KEPT, block)[at[0]] == chosen[at][:, np.newaxis]
            (there,) = np.nonzero(same.any(axis=1))
            at = at[0][there], at[1][there]
            cells = at[0], same[there].argmax(axis=1)
        for name in STATISTICS.keys() - {"ap"}:
            if plan.kept_columns is None:
                found[name][at] = store.read_scores(pooling, name, units)[cells]
            else:
                found[name][at] = store.read_kept(pooling, name, block)[cells]
    return found


def _concepts(corpus: Corpus, chance: _Chance) -> list[dict[str, Any]]:
    """The index's metadata of each concept; its sentences are those that were run."""
    held_out = chance.held_out.positives + chance.held_out.negatives
    return [
        {
            "name": concept.name,
            "group": concept.group,
            "description": concept.description,
            "positives": int(chance.mined.positives[concept.concept_id]),
            "negatives": int(chance.mined.negatives[concept.concept_id]),
            "held_out": int(held_out[concept.concept_id]),
        }
        for concept in corpus.concepts
    ]


def _table(
    plan: Plan, corpus: Corpus, units: NDArray[np.int64], values: dict[str, NDArray[np.floating[Any]]]
) -> pa.Table:
    """Units as a table, a row for each concept and rank."""
    ranks = units.shape[1]
    flat = units.ravel()
    starts = np.array([hookpoint.first_unit for hookpoint in plan.hookpoints])
    at = np.searchsorted(starts, flat, side="right") - 1
    hookpoints = np.array([hookpoint.name for hookpoint in plan.hookpoints])
    columns = {
        "concept": pa.array(np.repeat(np.array([each.name for each in corpus.concepts], dtype=object), ranks)),
        "group": pa.array(np.repeat(np.array([each.group for each in corpus.concepts], dtype=object), ranks)),
        "rank": pa.array(np.tile(np.arange(1, ranks + 1, dtype=np.int32), len(units))),
        "unit": pa.array(flat),
        "hookpoint": pa.array(hookpoints[at]),
        "channel": pa.array((flat - starts[at]).astype(np.int32)),
        **{name: pa.array(column.ravel()) for name, column in values.items()},
    }
    return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)
