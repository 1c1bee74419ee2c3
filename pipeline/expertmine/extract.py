"""Stage 1: a partition of sentences → pooled responses in the store.

Knows the run folder and a task's index; nothing of who runs it. Running a task again writes the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expertmine.ledger import Receipt, load_plan, missing_tasks, open_corpus, require_complete, write_receipt
from expertmine.models import load_identical
from expertmine.responses import Batch, make_batches, prepare, refuse_nan, run_batch, to_stored
from expertmine.store import Store, create_store


def plan(run: Path) -> list[int]:
    """Make the store and list the partitions that are still to be run."""
    frozen = load_plan(run)
    create_store(run, frozen)
    return missing_tasks(run, "extract", frozen.layout.partitions, frozen.fingerprint)


def finish(run: Path) -> None:
    """Check that every partition has its receipt.

    Raises:
        UserError: names those that have none.
    """
    frozen = load_plan(run)
    require_complete(run, "extract", frozen.layout.partitions, frozen.fingerprint)


@dataclass(frozen=True, slots=True)
class NewExtractor:
    """Makes an `Extractor` wherever it is called; travels to workers in its stead."""

    run: Path
    device: str | None = None

    def __call__(self) -> Extractor:
        return Extractor(self.run, self.device)


class Extractor:
    """Holds the model; each call runs one partition."""

    def __init__(self, run: Path, device: str | None = None) -> None:
        """Load the model of the plan.

        Args:
            device: a GPU when there is one, unless given.

        Raises:
            UserError: the model, corpus or store are not those of the plan.
        """
        self.run = run
        self.plan = load_plan(run)
        torch.set_num_threads(self.plan.responses.threads)
        self.corpus = open_corpus(run, self.plan)
        self.store = Store(run, self.plan)
        self.loaded = load_identical(self.plan.model, device)

    def __call__(self, partition: int) -> Receipt:
        """Run a partition, store its responses, and write its receipt.

        Raises:
            UserError: a response is NaN.
        """
        started = time.perf_counter()
        spec, layout = self.plan.responses, self.plan.layout
        texts = self.corpus.texts(layout.partition(partition))
        tokenised, kept = prepare(self.loaded.tokenizer, texts, spec)
        fill = self.loaded.tokenizer.pad_token_id or 0
        responses = np.zeros((len(texts), layout.units), spec.dtype)
        saturated = np.zeros(len(self.plan.hookpoints), np.int64)
        for batch in make_batches(tokenised, kept, spec.batch_tokens, fill):
            self._run_batch(batch, texts, responses, saturated)
        tokens = np.zeros(len(texts), np.int32)
        tokens[kept] = [sum(tokenised[row].real) for row in kept]
        receipt = Receipt(
            stage="extract",
            task=partition,
            fingerprint=self.plan.fingerprint,
            checksum=self.store.write_partition(partition, responses, tokens),
            seconds=round(time.perf_counter() - started, 3),
            counts={
                "sentences": len(kept),
                "dropped": len(texts) - len(kept),
                "tokens": int(tokens.sum()),
                **{
                    f"saturated {hookpoint.name}": int(count)
                    for hookpoint, count in zip(self.plan.hookpoints, saturated, strict=True)
                    if count
                },
            },
        )
        write_receipt(self.run, receipt)
        return receipt

    def _run_batch(
        self, batch: Batch, texts: list[str], responses: NDArray[np.floating], saturated: NDArray[np.int64]
    ) -> None:
        """One forward pass; fills the batch's rows of `responses` and adds to `saturated`."""
        pooled = run_batch(self.loaded.model, self.plan.hookpoints, batch, self.plan.responses.pooling)
        rows = list(batch.rows)
        batch_texts = [texts[row] for row in rows]
        for at, hookpoint in enumerate(self.plan.hookpoints):
            values = pooled[at].float().cpu().numpy()
            refuse_nan(values, hookpoint, batch_texts)
            stored, over = to_stored(values, self.plan.responses.dtype)
            responses[rows, hookpoint.units.start : hookpoint.units.stop] = stored
            saturated[at] += over.sum()
