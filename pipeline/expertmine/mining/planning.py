"""Make a plan: inspect the model and the corpus, divide the work, and add up the bill before it begins."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.mining.extraction_memory import partitions_bytes, pass_bytes
from expertmine.mining.scored_rows import null_classes
from expertmine.mining.scoring_memory import GOOD_BYTES, NARROWEST_BLOCK, WIDEST_BLOCK, Work
from expertmine.model.hookpoints import find_hookpoints, left_out_experts
from expertmine.model.load import LoadedModel, load_model
from expertmine.model.responses import TYPES, forward_passes, make_batches, padding_id, prepare
from expertmine.run import sentences
from expertmine.run.statistics import STATISTICS, expertise_bytes
from expertmine.run.store import encoded_size
from expertmine.specs.layout import Layout
from expertmine.specs.plan import Plan
from expertmine.specs.settings import PlanRequest, ResponseSpec, ScoringSpec, kept_columns
from expertmine.storage.locations import Location, absolute, is_remote
from expertmine.telemetry.formats import size

PARTITION_BYTES = 256 * 2**20
"""Maximum bytes of responses that an extracting process gathers before it writes them."""
SHARD_BYTES = 64 * 2**20
MIN_ROWS = 512
"""Sentences of a partition, where that many fit."""
SAMPLE_SENTENCES = 256
"""Sentences of the timing sample."""
SAMPLE_BYTES = 64 * 2**20
"""Maximum bytes of the sample's responses that are compressed to see how far they shrink."""
KEEP_SHOWN = (16, 64)
"""Values of --keep whose bytes the bill reports for comparison."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What a plan will cost."""

    sentences: int
    """To run through the model."""
    stored: int
    """Sentences of the corpus that were in the run before."""
    dropped: int
    """Too long, or without a real token."""
    tokens: int
    """Special ones included, padding not."""
    units: int
    left_out: tuple[str, ...]
    """Modules of experts that have no units, since they do not compute by linear maps that can be seen."""
    pairs: int
    """(concept, unit) pairs to score, per pooling."""
    response_bytes: int
    """Before compression, of every pooling; new ones only."""
    stored_bytes: int
    """After compression, by how far a sample, or what is stored, shrank."""
    expertise_bytes: int
    """Before compression."""
    expertise_choices: dict[str, int]
    """What that would be if other statistics were kept, see `expertmine.specs.plan.ScoringSpec.keep`."""
    files: int
    """That the run will write."""
    extract_memory: int | None
    """Bytes an extracting process holds beside torch itself: weights, a pass, partitions. None where no model was
    loaded."""
    score_memory: int
    """Bytes a scoring process holds, Python and its libraries included: a block, its ranks, its statistics."""
    null_sets: int
    """Shuffles of labels that are scored beside the concepts."""
    extract_seconds: float | None
    """For one process on this machine, from a timed sample, or from what the run has done; None where it has not."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What running some sentences has shown."""

    seconds_a_token: float | None
    compressed: float
    """Bytes after compression for each before."""


def make_plan(request: PlanRequest, corpus: Corpus) -> tuple[Plan, Bill]:
    """Plan a new run.

    Raises:
        UserError: the model cannot be loaded or hooked, the corpus is torn, or a concept would lose all its sentences.
    """
    corpus.check()
    spec = request.responses
    loaded = load_model(request.model, request.revision, dtype=TYPES[spec.weights])
    _require_context(spec, loaded)
    hookpoints = find_hookpoints(loaded.model, request.patterns)
    table = sentences.of_corpus(corpus)
    lengths = measure_lengths(loaded.tokenizer, table["text"], spec)
    require_concepts_kept(corpus, lengths > 0, spec)
    segment = sentences.segment_of(table)
    scoring = ScoringSpec(**request.scoring)
    units = sum(hookpoint.width for hookpoint in hookpoints)
    itemsize = np.dtype(spec.dtype).itemsize * len(spec.poolings)
    work = scoring_work(corpus, lengths > 0, segment.sentences, spec, scoring)
    plan = Plan(
        model=loaded.identity,
        patterns=request.patterns,
        hookpoints=hookpoints,
        corpus=corpus.identity,
        responses=spec,
        compression=request.compression,
        segments=(segment,),
        layout=make_layout(segment.sentences, units, itemsize, widest_block(work, request.scoring_memory)),
        scoring=scoring,
    )
    kept = np.flatnonzero(lengths)
    spread = kept[np.linspace(0, len(kept) - 1, min(SAMPLE_SENTENCES, len(kept))).astype(int)]
    sample = _run_sample(loaded, plan, table["text"].take(spread).to_pylist())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in loaded.model.parameters())
    bill = make_bill(plan, lengths, 0, sample, weights, work)
    return plan, bill if request.patterns else replace(bill, left_out=tuple(left_out_experts(loaded.model)))


def make_bill(
    plan: Plan, lengths: NDArray[np.int64], stored: int, sample: Sample, weights: int | None, work: Work
) -> Bill:
    """Add up what a plan will cost.

    Args:
        lengths: (sentences that are new,) tokens of each, 0 for those that will be dropped.
        stored: sentences that are not new.
        weights: bytes of the model, when it was loaded.
        work: of scoring.
    """
    layout, spec = plan.layout, plan.responses
    itemsize = np.dtype(spec.dtype).itemsize * len(spec.poolings)
    rows = -(-len(lengths) // layout.partition_rows) * layout.partition_rows
    a_pass = pass_bytes(max(hookpoint.width for hookpoint in plan.hookpoints), spec.batch_tokens)
    pairs = plan.corpus.concepts * layout.units
    tokens = int(lengths.sum())
    partitions = rows // layout.partition_rows
    scores = plan.tasks("score")
    choices = {"all": expertise_bytes_of(plan, None)}
    for keep in KEEP_SHOWN:
        if kept_columns(keep, layout.block_units) is not None:
            choices[str(keep)] = expertise_bytes_of(plan, keep)
    return Bill(
        sentences=int((lengths > 0).sum()),
        stored=stored,
        dropped=int((lengths == 0).sum()),
        tokens=tokens,
        units=layout.units,
        left_out=(),
        pairs=pairs,
        response_bytes=rows * layout.padded_shape[1] * itemsize,
        stored_bytes=round(len(lengths) * layout.padded_shape[1] * itemsize * sample.compressed),
        expertise_bytes=expertise_bytes_of(plan, plan.scoring.keep),
        expertise_choices=choices,
        files=partitions * (2 + layout.objects_per_partition * len(spec.poolings))
        + scores * (2 + len(STATISTICS))
        + 2 * plan.tasks("assess"),
        extract_memory=None if weights is None else weights + a_pass + partitions_bytes(layout, itemsize),
        score_memory=work.base + work.needed(layout.block_units, layout.block_units),
        null_sets=work.sets - 2 * work.concepts,
        extract_seconds=None if sample.seconds_a_token is None else sample.seconds_a_token * tokens,
    )


def refuse_what_will_not_fit(run: Location, bill: Bill) -> None:
    """Compare a bill with this machine: the disk under the run folder, if that is on one, and the memory of a process.

    Raises:
        UserError: it will not fit.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    largest = max(bill.extract_memory or 0, bill.score_memory)
    if largest > memory:
        scoring = largest == bill.score_memory
        whose, remedy = ("a scoring", "bound it with --scoring-memory") if scoring else ("a", "choose fewer hookpoints")
        raise UserError(
            f"{run}: {whose} process would hold {size(largest)} and this machine has {size(memory)} of memory; "
            f"{remedy}, or pass --force if it will run elsewhere"
        )
    if is_remote(run):
        return  # nobody knows how much an object store holds
    above = next(folder for folder in (run, *absolute(run).parents) if folder.exists())
    free = shutil.disk_usage(above).free
    needed = bill.stored_bytes + bill.expertise_bytes
    if needed > free:
        raise UserError(
            f"{run}: the run may need {size(needed)} of disk and {above} has {size(free)} free; "
            "choose another disk, fewer hookpoints or fewer sentences, or pass --force"
        )


def scoring_work(corpus: Corpus, kept: NDArray[np.bool_], rows: int, spec: ResponseSpec, scoring: ScoringSpec) -> Work:
    """What every unit will be scored on.

    Args:
        kept: (sentences,) those that are run.
        rows: stored sentences, those of earlier corpora too.
    """
    mined = corpus.counts(kept & ~corpus.held_out)
    shuffled = scoring.permutations * len(np.unique(null_classes(*mined, scoring.null).shuffled))
    concepts = corpus.identity.concepts
    return Work(rows, concepts, 2 * concepts + shuffled, spec.dtype)


def widest_block(work: Work, memory: int | None) -> int:
    """Units of a block that a scoring process of so much memory takes on whole; None for as much as is good.

    Raises:
        UserError: not even one.
    """
    if memory is None:
        return max(NARROWEST_BLOCK, GOOD_BYTES // work.strip_unit)
    units = work.widest_block(memory - work.base)
    if units < 1:
        raise UserError(
            f"--scoring-memory is {size(memory)}, and scoring one unit with {work.rows:,} sentences and "
            f"{work.concepts:,} concepts takes about {size(work.base + work.needed(1, 1))}; raise it to at least that"
        )
    return units


def expertise_bytes_of(plan: Plan, keep: int | None) -> int:
    """Bytes of all stored statistics of a plan before compression, if it kept `keep` of each kind."""
    return expertise_bytes(plan.layout, plan.corpus.concepts, len(plan.responses.poolings), keep)


def make_layout(sentences_: int, units: int, itemsize: int, widest_block: int) -> Layout:
    """Cut the store so that every task fits its memory budget and there is work for several workers.

    Args:
        itemsize: bytes of a response, of all poolings together.
        widest_block: units that a scoring process can take on.
    """
    narrowest = min(NARROWEST_BLOCK, widest_block)
    block = _multiple(
        min(widest_block // NARROWEST_BLOCK * NARROWEST_BLOCK, -(-units // 8)), narrowest, narrowest, WIDEST_BLOCK
    )
    # Sentences of a batch should be of nearly one length, which takes some hundreds to choose among.
    rows = _multiple(min(PARTITION_BYTES // (units * itemsize), max(-(-sentences_ // 8), MIN_ROWS)), 32, 32, 2048)
    rows = min(rows, _multiple(sentences_, 32, 32, rows))
    blocks_a_shard = max(1, min(SHARD_BYTES // (rows * block * itemsize), -(-units // block)))
    return Layout((sentences_,), units, partition_rows=rows, block_units=block, shard_units=block * blocks_a_shard)


def _multiple(value: int, of: int, least: int, most: int) -> int:
    """The value rounded up to a multiple of `of`, within bounds."""
    return max(least, min(most, -(-value // of) * of))


def _require_context(spec: ResponseSpec, loaded: LoadedModel) -> None:
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    if context is not None and spec.max_tokens > context:
        raise UserError(f"--max-tokens is {spec.max_tokens}, but {loaded.identity.name!r} reads at most {context}")


def measure_lengths(
    tokenizer: PreTrainedTokenizerBase, texts: pa.ChunkedArray, spec: ResponseSpec
) -> NDArray[np.int64]:
    """(texts,) tokens of each, 0 for those that will be dropped."""
    lengths = np.zeros(len(texts), np.int64)
    step = 10_000
    for start in range(0, len(lengths), step):
        tokenised, kept = prepare(tokenizer, texts.slice(start, step).to_pylist(), spec)
        for row in kept:
            lengths[start + row] = len(tokenised[row].ids)
    return lengths


def require_concepts_kept(corpus: Corpus, kept: NDArray[np.bool_], spec: ResponseSpec) -> None:
    """Check that every concept keeps positive and negative sentences.

    Args:
        kept: (sentences,) those that are run.

    Raises:
        UserError: names a concept that does not.
    """
    for kind, counts in zip(("positive", "negative"), corpus.counts(kept & ~corpus.held_out), strict=True):
        for concept_id in np.flatnonzero(counts == 0):
            raise UserError(
                f"concept {corpus.concepts[concept_id].name!r} keeps no {kind} sentence of at most {spec.max_tokens} "
                "tokens; raise --max-tokens, or use --too-long truncate"
            )


def _run_sample(loaded: LoadedModel, plan: Plan, texts: Sequence[str]) -> Sample:
    """Run some sentences as extraction does, and compress what comes; the first pass is not timed."""
    spec, tokenizer = plan.responses, loaded.tokenizer
    tokenised, kept = prepare(tokenizer, texts, spec)
    batches = make_batches(tokenised, kept, spec, padding_id(tokenizer))
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        with forward_passes(loaded.model, plan.hookpoints, spec) as forward:
            forward(batches[0])
            started = time.perf_counter()
            responses = torch.cat([forward(batch).responses.cpu() for batch in batches], dim=1)
            seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    every = max(1, responses[0].nbytes // SAMPLE_BYTES)
    taken = responses[0, :, ::every].numpy()
    compressed = encoded_size(taken, plan.layout.block_units, plan.compression) / taken.nbytes
    # Filling counts as tokens here: this few sentences need much of it, whole partitions next to none.
    return Sample(seconds / sum(batch.ids.numel() for batch in batches), compressed)
