"""Stage 2, second part: how certain the best units are. Sentences are resampled many times, with replacement.

Resampled mined sentences show how stable the order of the best units is; resampled held-out ones give an interval for
their average precision. A task is a block of units, as in scoring, but only units among the best of some concept count.
Needs no model and no torch.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.draws import salted_number
from expertmine.mining.allocator import keep_freed_memory
from expertmine.mining.ranking import best_units
from expertmine.mining.scored_rows import LabelSplit, mined_and_held_out
from expertmine.mining.scoring_memory import MemoryBudget, Work, strips
from expertmine.mining.stage import WorkerOptions
from expertmine.run.ledger import (
    Receipt,
    finish_task,
    missing_tasks,
    report_worker,
    require_complete,
)
from expertmine.run.open_run import OpenRun, open_corpus, require_current
from expertmine.run.side_tables import has_selection, read_selection, write_assessment, write_selection
from expertmine.run.store import Store
from expertmine.specs.settings import ASSESSED, Pooling
from expertmine_kernels import draw_with_replacement, resampled_average_precision

MAX_NEGATIVES = 10_000
"""With more negatives than these, each resample has every one once: resampling them would add next to nothing."""
INTERVAL = (2.5, 97.5)
"""Percentiles of the resamples that bound the interval."""


def plan(run: OpenRun) -> list[int]:
    """Write which units are assessed, and list the unfinished tasks.

    Raises:
        UserError: scoring is not complete.
    """
    frozen = run.plan
    require_complete(run, "score")
    missing = missing_tasks(run, "assess")
    store = Store(run)
    for pooling in frozen.responses.poolings if frozen.scoring.resamples else ():
        if missing or not has_selection(run, pooling):
            units = best_units(store, pooling, min(ASSESSED, frozen.layout.units))
            write_selection(run, pooling, units)
    return missing


def new_worker(run: OpenRun, options: WorkerOptions) -> Callable[[], Assessor]:
    """What makes an `Assessor` on the machine where it is called."""
    return partial(Assessor, run, options.memory, options.threads)


def finish(run: OpenRun) -> None:
    """Check that every block has its receipt.

    Raises:
        UserError: names those without one.
    """
    require_complete(run, "assess")


class Assessor:
    """Holds the labels and the assessed units; each call assesses one block of one pooling."""

    def __init__(self, run: OpenRun, memory: int | None = None, threads: int = 1) -> None:
        """Open the store; `memory` and `threads` are those of `Scorer`.

        Raises:
            UserError: responses are lost, or the selection cannot be read.
            StageError: the memory is too little for one unit, or the run was planned again.
        """
        budget = MemoryBudget(run.path, memory, threads)
        require_current(run)
        keep_freed_memory()
        self.run = run
        self.plan = run.plan
        self.corpus = open_corpus(run)
        self.store = Store(run)
        self.store.require_every_shard()
        self.mined, self.held_out, self.rows_of = mined_and_held_out(run, self.corpus, self.store)
        self.selected = {pooling: read_selection(run, pooling) for pooling in self.plan.responses.poolings}
        self.has_held_out = set(self.held_out.concepts.tolist())
        layout = self.plan.layout
        work = Work(layout.padded_shape[0], 0, 0, self.plan.responses.dtype)
        self.strip_units = budget.strip_units(work, layout.block_units)
        self._done = 0

    def __call__(self, task: int) -> Receipt:
        """Assess a block, write its table, and write its receipt.

        Raises:
            UserError: responses are damaged, or the disk is full.
        """
        report_worker(self.run.path, "assess", platform.machine(), f"assessing {task}", self._done)
        started = time.perf_counter()
        pooling, block = self.plan.scoring_task(task)
        selected = self.selected[pooling]
        found = [
            self._strip(pooling, selected, strip) for strip in strips(self.plan.layout.block(block), self.strip_units)
        ]
        owners, ranks, resampled, interval = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.lexsort([ranks, owners])  # whatever the strips were
        at = owners[order], ranks[order]
        checksums = write_assessment(self.run, pooling, block, at, selected[at], resampled[order], interval[order])
        counts = {"experts": len(owners)}
        receipt = finish_task(self.run, "assess", task, checksums, counts, started=started, platform=platform.machine())
        self._done += 1
        report_worker(self.run.path, "assess", platform.machine(), "waiting", self._done)
        return receipt

    def _strip(self, pooling: Pooling, selected: NDArray[np.int64], units: range) -> tuple[NDArray[Any], ...]:
        """Concepts, ranks, resampled average precision and intervals of the selected units of a strip."""
        owners, ranks = np.nonzero((selected >= units.start) & (selected < units.stop))
        resampled = np.empty((len(owners), self.plan.scoring.resamples), np.float32)
        interval = np.full((len(owners), 2), np.nan)
        if not len(owners):
            return owners, ranks, resampled, interval
        responses = self.store.read_responses(pooling, units)
        columns = selected[owners, ranks] - units.start
        starts = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
        for first, last in itertools.pairwise([*starts, len(owners)]):
            concept_id, own = int(owners[first]), slice(first, last)
            resampled[own] = self.resample(self.mined, responses, concept_id, columns[own], "mined")
            if concept_id in self.has_held_out:
                again = self.resample(self.held_out, responses, concept_id, columns[own], "held out")
                interval[own] = np.percentile(again, INTERVAL, axis=1).T
        return owners, ranks, resampled, interval

    def resample(
        self,
        split: LabelSplit,
        responses: NDArray[np.floating[Any]],
        concept_id: int,
        columns: NDArray[np.int64],
        salt: str,
    ) -> NDArray[np.float64]:
        """(columns, resamples) average precision of units; positives and negatives are resampled separately."""
        spec = self.plan.scoring
        salt = f"{salt} {spec.seed} {self.corpus.concepts[concept_id].name}"
        positives = split.positives_of(concept_id)
        negatives = split.negatives_of(concept_id)
        rows = self.rows_of[np.concatenate([positives, negatives])]
        counts = [
            draw_with_replacement(len(ids), spec.resamples, salted_number(f"{kind} {salt}"))
            for kind, ids in (("positives", positives), ("negatives", negatives))
            if kind == "positives" or len(ids) <= MAX_NEGATIVES
        ]
        labels = np.arange(len(rows)) < len(positives)
        return resampled_average_precision(responses[np.ix_(rows, columns)], labels, np.concatenate(counts))
