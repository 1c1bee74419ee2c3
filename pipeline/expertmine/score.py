"""Stage 2: a block of units → expertise of every concept. Needs no model and no torch.

A task reads its units' responses to all sentences once and scores every concept on them: on the mined sentences, and,
where a concept has held-out ones, their average precision too.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expertmine import sentences
from expertmine.corpus import Corpus, membership
from expertmine.errors import UserError
from expertmine.ledger import (
    Receipt,
    load_plan,
    missing_tasks,
    now,
    open_corpus,
    report_worker,
    require_complete,
    worker_name,
    write_receipt,
)
from expertmine.sampling import Ids
from expertmine.store import Store, create_store
from expertmine_kernels import ConceptRows, expertise


def plan(run: Path) -> list[int]:
    """Make room for the scores, and list the tasks that are still to be done: a block of units and a pooling each.

    Raises:
        UserError: the responses are not complete.
    """
    frozen = load_plan(run)
    require_complete(run, frozen, "extract")
    create_store(run, frozen)
    return missing_tasks(run, frozen, "score")


def finish(run: Path) -> None:
    """Check that every block has its receipt.

    Raises:
        UserError: names those that have none.
    """
    require_complete(run, load_plan(run), "score")


@dataclass(frozen=True, slots=True)
class Labels:
    """The rows that each concept is scored on."""

    concepts: NDArray[np.int64]
    """Ids of the concepts, one for each concept of `rows`."""
    rows: ConceptRows


def labels(corpus: Corpus, usable: NDArray[np.bool_], rows_of: NDArray[np.int64]) -> Labels | None:
    """Labels among the usable sentences, for the concepts that have both kinds there; None when none has.

    Args:
        usable: (sentences,)
        rows_of: (sentences,) the row of each usable one.
    """
    kept = np.flatnonzero((np.array(corpus.counts(usable)) > 0).all(axis=0))
    usable_pools = [pool[usable[pool]] for pool in corpus.pools]
    in_pool = membership(usable_pools, len(usable))
    positives, removed, pool_of = [], [], []
    pools: list[Ids] = []
    places: dict[int | bytes, int] = {}
    for concept_id in kept.tolist():
        own = corpus.labels(concept_id)
        pool = corpus.concepts[concept_id].pool
        identity: int | bytes
        if pool is not None and not len(own.negatives):
            identity, rows = pool, usable_pools[pool]
            taken = np.concatenate([own.positives, own.neither])
            removed.append(taken[in_pool[pool, taken]])
        else:
            negatives = corpus.rows(concept_id).negatives
            rows = negatives[usable[negatives]]
            identity = rows.tobytes()
            removed.append(rows[:0])
        if identity not in places:
            places[identity] = len(pools)
            pools.append(rows)
        pool_of.append(places[identity])
        positives.append(own.positives[usable[own.positives]])
    if not len(kept):
        return None
    stored = [[np.sort(rows_of[ids]) for ids in sets] for sets in (positives, pools, removed)]
    return Labels(kept, ConceptRows.from_pools(stored[0], stored[1], pool_of, stored[2]))


@dataclass(frozen=True, slots=True)
class NewScorer:
    """Makes a `Scorer` wherever it is called; travels to workers in its stead."""

    run: Path

    def __call__(self) -> Scorer:
        return Scorer(self.run)


class Scorer:
    """Holds the labels; each call scores one block of units, pooled in one way."""

    def __init__(self, run: Path) -> None:
        """Open the store and lay the labels out.

        Raises:
            UserError: a concept has no positive or no negative sentence left, or responses are lost.
        """
        self.run = run
        self.plan = load_plan(run)
        corpus = open_corpus(run, self.plan)
        self.store = Store(run, self.plan)
        self.store.require_every_shard()
        rows_of = sentences.rows_of(run, self.plan, corpus)
        ran = (rows_of >= 0) & (self.store.read_tokens() > 0)[rows_of]
        mined = labels(corpus, ran & ~corpus.held_out, rows_of)
        if mined is None or len(mined.concepts) < len(corpus.concepts):
            scored = set(mined.concepts.tolist()) if mined else set()
            lost = next(concept for concept in corpus.concepts if concept.concept_id not in scored)
            raise UserError(
                f"concept {lost.name!r} has no positive or no negative sentence of at most "
                f"{self.plan.responses.max_tokens} tokens; raise --max-tokens, or use --too-long truncate"
            )
        self.mined = mined
        self._done = 0
        self.held_out = labels(corpus, ran & corpus.held_out, rows_of)

    def __call__(self, task: int) -> Receipt:
        """Score a block, store its statistics, and write its receipt.

        Raises:
            UserError: responses are damaged, or the disk is full.
        """
        self._report(f"scoring {task}")
        started = time.perf_counter()
        pooling, block = self.plan.scoring_task(task)
        responses = self.store.read_responses(pooling, self.plan.layout.block(block))
        read = time.perf_counter()
        found = expertise(responses, self.mined.rows)
        held_out_ap = np.full(found.ap.shape, np.nan)
        if self.held_out is not None:
            held_out_ap[self.held_out.concepts] = expertise(responses, self.held_out.rows).ap
        scored = time.perf_counter()
        statistics = {
            "ap": found.ap,
            "auroc": found.auroc,
            "held_out_ap": held_out_ap,
            "on_mean": found.on_mean,
            "on_p50": found.on_p50,
            "on_p90": found.on_p90,
            "off_mean": found.off_mean,
        }
        receipt = Receipt(
            stage="score",
            task=task,
            fingerprint=self.plan.task_fingerprint("score", task),
            checksums=self.store.write_scores(pooling, block, statistics),
            seconds=round(time.perf_counter() - started, 3),
            finished=now(),
            worker=worker_name(),
            platform=platform.machine(),
            counts={
                "pairs": found.ap.size,
                "read_ms": round(1000 * (read - started)),
                "kernel_ms": round(1000 * (scored - read)),
            },
        )
        write_receipt(self.run, receipt)
        self._done += 1
        self._report("waiting")
        return receipt

    def _report(self, doing: str) -> None:
        report_worker(self.run, "score", platform.machine(), doing, self._done)
