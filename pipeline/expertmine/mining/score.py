"""Stage 2: a block of units → expertise of every concept. Needs no model and no torch.

A task reads its units' responses to all sentences once and scores every set of labels on them: the mined sentences of
each concept, its held-out ones, and shuffled labels, which show what the best of all units reaches by chance.
"""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expertmine.mining.allocator import keep_freed_memory
from expertmine.mining.scored_rows import mined_and_held_out, scored_rows
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
from expertmine.run.side_tables import write_null
from expertmine.run.statistics import KEPT, STATISTICS
from expertmine.run.store import Store, create_store
from expertmine_kernels import ConceptRows, expertise


def plan(run: OpenRun) -> list[int]:
    """Make the arrays of the scores, and list the tasks that are still to be done: a block of units and a pooling each.

    Raises:
        UserError: the responses are not complete.
    """
    require_complete(run, "extract")
    create_store(run)
    return missing_tasks(run, "score")


def new_worker(run: OpenRun, options: WorkerOptions) -> Callable[[], Scorer]:
    """What makes a `Scorer` on the machine where it is called."""
    return partial(Scorer, run, options.memory, options.threads)


def finish(run: OpenRun) -> None:
    """Check that every block has its receipt.

    Raises:
        UserError: names those without one.
    """
    require_complete(run, "score")


class Scorer:
    """Holds the labels; each call scores one block of units of one pooling."""

    def __init__(self, run: OpenRun, memory: int | None = None, threads: int = 1) -> None:
        """Open the store and lay out the labels.

        Args:
            memory: bytes that this process may hold, including what it holds already; None for what a block takes.
            threads: calls that may run at the same time.

        Raises:
            UserError: a concept has no positive or no negative sentence left, or responses are lost.
            StageError: the memory is too little for one unit, or the run was planned again.
        """
        budget = MemoryBudget(run.path, memory, threads)
        require_current(run)
        keep_freed_memory()  # all blocks have the same size
        self.run = run
        self.plan = run.plan
        self.store = Store(run)
        self.store.require_every_shard()
        mined, held_out, rows_of = mined_and_held_out(run, open_corpus(run), self.store)
        scored = scored_rows(mined, held_out, rows_of, self.plan.scoring)
        self.concepts = scored.mined
        self.held_out = scored.held_out
        self.shuffled = scored.shuffled
        sets = scored.sets
        self.rows = ConceptRows.from_pools(sets.positives, sets.pools, sets.pool_of, sets.removed)
        layout, dtype = self.plan.layout, self.plan.responses.dtype
        _compile(dtype)  # before the budget is measured: it takes memory too
        work = Work(layout.padded_shape[0], self.concepts, self.rows.concepts, dtype)
        self.strip_units = budget.strip_units(work, layout.block_units)
        self._done = 0

    def __call__(self, task: int) -> Receipt:
        """Score a block, store its statistics, and write its receipt.

        Raises:
            UserError: responses are damaged, or the disk is full.
        """
        report_worker(self.run.path, "score", platform.machine(), f"scoring {task}", self._done)
        clock = _Clock()
        pooling, block = self.plan.scoring_task(task)
        units = self.plan.layout.block(block)
        statistics: dict[str, NDArray[np.floating]] = {
            name: np.full((self.concepts, len(units)), np.nan, dtype) for name, dtype in STATISTICS.items()
        }
        null = np.full(len(self.shuffled), -np.inf)
        for strip in strips(units, self.strip_units):
            responses = self.store.read_responses(pooling, strip)
            clock.lap("read_ms")
            found = expertise(responses, self.rows)
            columns = slice(strip.start - units.start, strip.stop - units.start)
            for name in STATISTICS.keys() - {"held_out_ap"}:
                statistics[name][:, columns] = getattr(found, name)[: self.concepts]
            shuffled_from = self.concepts + len(self.held_out)
            statistics["held_out_ap"][self.held_out, columns] = found.ap[self.concepts : shuffled_from]
            null = np.maximum(null, found.ap[shuffled_from:].max(axis=1, initial=-np.inf))
            clock.lap("kernel_ms")
        keep = self.plan.kept_columns
        kept: Mapping[str, NDArray[Any]] = statistics if keep is None else select(statistics, keep // 2, units.start)
        checksums = self.store.write_scores(pooling, block, kept)
        checksums |= write_null(self.run, pooling, block, self.shuffled, null)
        clock.lap("write_ms")
        counts = {"pairs": statistics["ap"].size, "bytes": self.store.written_bytes(checksums), **clock.laps}
        receipt = finish_task(
            self.run, "score", task, checksums, counts, started=clock.started, platform=platform.machine()
        )
        self._done += 1
        report_worker(self.run.path, "score", platform.machine(), "waiting", self._done)
        return receipt


def select(statistics: Mapping[str, NDArray[np.floating]], keep: int, first_unit: int) -> dict[str, NDArray[Any]]:
    """The statistics of the best and the worst units of a block, with their ids; average precision stays for all units.

    Args:
        statistics: each (concepts, units of the block).
        keep: how many of the best, and as many of the worst; a narrow block has fewer.

    Returns:
        Each (concepts, 2 × keep): the best first, ties by ascending unit, then the worst, ties by ascending unit too.
        Columns that a narrow block does not fill are NaN, and -1 for unit ids.
    """
    ap = statistics["ap"]
    concepts, width = ap.shape
    taken = min(keep, width)
    chosen = np.full((concepts, 2 * keep), -1)
    chosen[:, :taken] = np.argsort(-ap, axis=1, kind="stable")[:, :taken]
    chosen[:, keep : keep + taken] = np.argsort(ap, axis=1, kind="stable")[:, :taken]
    some = {
        name: np.where(chosen >= 0, np.take_along_axis(values, chosen, axis=1), np.nan).astype(values.dtype)
        for name, values in statistics.items()
        if name != "ap"
    }
    return {"ap": ap, KEPT: np.where(chosen >= 0, chosen + first_unit, -1), **some}


def _compile(dtype: str) -> None:
    """Have the kernels compiled for responses of a type."""
    rows = ConceptRows.from_pools([[0], [1]], [[1, 2, 3]], [0, 0], [[], [1]])
    expertise(np.arange(4, dtype=dtype).reshape(4, 1), rows)


class _Clock:
    """Measures how long the parts of a task take."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self._laps: dict[str, float] = defaultdict(float)

    def lap(self, name: str) -> None:
        """Add the time since the last lap to a part."""
        last, self._last = self._last, time.perf_counter()
        self._laps[name] += 1000 * (self._last - last)

    @property
    def laps(self) -> dict[str, int]:
        """Milliseconds of each part."""
        return {name: round(milliseconds) for name, milliseconds in self._laps.items()}
