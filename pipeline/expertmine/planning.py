"""Make a plan: look at the model and the corpus, cut the work, and add up the bill before any of it is done."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expertmine.corpus import Corpus
from expertmine.errors import UserError
from expertmine.models import LoadedModel, load_model
from expertmine.progress import size
from expertmine.responses import make_batches, prepare, run_batch
from expertmine.specs import Hookpoint, Layout, Plan, ResponseSpec
from expertmine.store import STATISTICS
from expertmine.units import find_hookpoints

PARTITION_BYTES = 256 * 2**20
"""Most responses that an extracting process holds before it writes them."""
SHARD_BYTES = 64 * 2**20
SCORING_BYTES = 256 * 2**20
"""Most responses that a scoring task reads."""
SAMPLE_SENTENCES = 256
"""Sentences of the timing sample."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a plan will cost."""

    sentences: int
    """To run through the model."""
    dropped: int
    """Too long, or without a real token."""
    tokens: int
    """Special ones included, padding not."""
    units: int
    pairs: int
    """(concept, unit) pairs to score."""
    response_bytes: int
    """Before compression."""
    expertise_bytes: int
    """Before compression."""
    extract_memory: int
    """Bytes an extracting process holds beside torch itself: weights and one partition."""
    score_memory: int
    """Bytes a scoring process holds: one block and its keys."""
    extract_seconds: float
    """For one process on this machine, from a timed sample."""


def make_plan(
    model_name: str,
    corpus: Corpus,
    spec: ResponseSpec,
    patterns: Sequence[str] = (),
    revision: str | None = None,
) -> tuple[Plan, Bill]:
    """Plan a run.

    Args:
        patterns: globs over module paths; none means the default hookpoints.

    Raises:
        UserError: the model cannot be loaded or hooked, the corpus is torn, or a concept would lose all its sentences.
    """
    corpus.check()
    loaded = load_model(model_name, revision)
    _require_context(spec, loaded)
    hookpoints = find_hookpoints(loaded.model, patterns)
    units = sum(hookpoint.width for hookpoint in hookpoints)
    lengths = _lengths(loaded, corpus, spec)
    _require_concepts_kept(corpus, lengths > 0, spec)
    itemsize = np.dtype(spec.dtype).itemsize
    plan = Plan(
        model=loaded.identity,
        hookpoints=hookpoints,
        corpus=corpus.identity,
        responses=spec,
        layout=make_layout(corpus.identity.sentences, units, itemsize),
    )
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    partition = plan.layout.partition_rows * plan.layout.padded_shape[1] * itemsize
    score_block = corpus.identity.sentences * plan.layout.block_units * itemsize
    pairs = corpus.identity.concepts * units
    bill = Bill(
        sentences=int((lengths > 0).sum()),
        dropped=int((lengths == 0).sum()),
        tokens=int(lengths.sum()),
        units=units,
        pairs=pairs,
        response_bytes=plan.layout.padded_shape[0] * plan.layout.padded_shape[1] * itemsize,
        expertise_bytes=pairs * sum(np.dtype(dtype).itemsize for dtype in STATISTICS.values()),
        extract_memory=weights + 3 * partition,
        score_memory=3 * score_block,
        extract_seconds=_measure(loaded, corpus, hookpoints, spec) * int(lengths.sum()),
    )
    return plan, bill


def refuse_what_will_not_fit(run: Path, bill: Bill) -> None:
    """Compare a bill with this machine: the disk under the run folder, and the memory of one process.

    Raises:
        UserError: it will not fit.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    largest = max(bill.extract_memory, bill.score_memory)
    if largest > memory:
        raise UserError(
            f"{run}: a process would hold {size(largest)} and this machine has {size(memory)} of memory; "
            "choose fewer hookpoints, or say --force when it will run elsewhere"
        )
    above = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    free = shutil.disk_usage(above).free
    needed = bill.response_bytes + bill.expertise_bytes
    if needed > free:
        raise UserError(
            f"{run}: the run may need {size(needed)} of disk and {above} has {size(free)} free; "
            "choose another disk, fewer hookpoints or fewer sentences, or say --force"
        )


def make_layout(sentences: int, units: int, itemsize: int) -> Layout:
    """Cut the store so that every task fits its memory budget and there is work for several workers."""
    block = _multiple(min(SCORING_BYTES // (sentences * itemsize), -(-units // 8)), 16, 16, 256)
    rows = _multiple(min(PARTITION_BYTES // (units * itemsize), -(-sentences // 8)), 32, 32, 2048)
    blocks_a_shard = max(1, min(SHARD_BYTES // (rows * block * itemsize), -(-units // block)))
    return Layout(sentences, units, partition_rows=rows, block_units=block, shard_units=block * blocks_a_shard)


def _multiple(value: int, of: int, least: int, most: int) -> int:
    """The value rounded up to a multiple of `of`, within bounds."""
    return max(least, min(most, -(-value // of) * of))


def _require_context(spec: ResponseSpec, loaded: LoadedModel) -> None:
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    if context is not None and spec.max_tokens > context:
        raise UserError(f"--max-tokens is {spec.max_tokens}, but {loaded.identity.name!r} reads at most {context}")


def _lengths(loaded: LoadedModel, corpus: Corpus, spec: ResponseSpec) -> NDArray[np.int64]:
    """(sentences,) tokens of each, 0 for those that will be dropped."""
    lengths = np.zeros(corpus.identity.sentences, np.int64)
    step = 10_000
    for start in range(0, len(lengths), step):
        texts = corpus.texts(range(start, min(start + step, len(lengths))))
        tokenised, kept = prepare(loaded.tokenizer, texts, spec)
        for row in kept:
            lengths[start + row] = len(tokenised[row].ids)
    return lengths


def _require_concepts_kept(corpus: Corpus, kept: NDArray[np.bool_], spec: ResponseSpec) -> None:
    for kind, counts in zip(("positive", "negative"), corpus.counts(kept & ~corpus.held_out), strict=True):
        for concept_id in np.flatnonzero(counts == 0):
            raise UserError(
                f"concept {corpus.concepts[concept_id].name!r} keeps no {kind} sentence of at most {spec.max_tokens} "
                "tokens; raise --max-tokens, or use --too-long truncate"
            )


def _measure(loaded: LoadedModel, corpus: Corpus, hookpoints: Sequence[Hookpoint], spec: ResponseSpec) -> float:
    """Seconds a token of one process, over the first sentences; the first pass is not counted."""
    texts = corpus.texts(range(min(SAMPLE_SENTENCES, corpus.identity.sentences)))
    tokenised, kept = prepare(loaded.tokenizer, texts, spec)
    batches = make_batches(tokenised, kept, spec.batch_tokens, loaded.tokenizer.pad_token_id or 0)
    tokens = sum(len(tokenised[row].ids) for row in kept)
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    started = 0.0
    try:
        for _ in range(2):
            started = time.perf_counter()
            for batch in batches:
                for pooled in run_batch(loaded.model, hookpoints, batch, spec.pooling):
                    pooled.cpu()
    finally:
        torch.set_num_threads(threads)
    return (time.perf_counter() - started) / max(tokens, 1)
