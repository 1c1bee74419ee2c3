"""Begin a run, go on with it, or let its corpus grow: the only module that has a plan written."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.mining.planning import (
    Bill,
    Sample,
    make_bill,
    make_plan,
    measure_lengths,
    refuse_what_will_not_fit,
    require_concepts_kept,
    scoring_work,
)
from expertmine.run import sentences
from expertmine.run.freezing import freeze, require_new_folder
from expertmine.run.ledger import Receipt, read_receipts
from expertmine.run.open_run import OpenRun, open_run
from expertmine.run.paths import plan_file
from expertmine.run.store import Store
from expertmine.specs.plan import Plan
from expertmine.specs.settings import PlanRequest
from expertmine.storage.files import exists
from expertmine.storage.locations import Location


def plan_run(run: Location, corpus: Corpus, request: PlanRequest, force: bool) -> tuple[Plan, Bill | None]:
    """Make the plan of a run folder, or find it there; if the corpus has changed, or its pairs are to be scored
    differently, the run goes on with that.

    Args:
        force: plan even what may not fit the disk or memory.

    Returns:
        The plan, and the bill of what it adds; None if the same plan was there.

    Raises:
        UserError: bad input, a run of another model or other settings in the folder, or not enough disk or memory.
    """
    if not exists(plan_file(run)):
        require_new_folder(run)
        plan, bill = make_plan(request, corpus)
        if not force:
            refuse_what_will_not_fit(run, bill)
        begin(run, plan, corpus)
        return plan, bill
    opened = open_run(run)
    frozen = opened.plan
    _require_same(opened, request)
    scoring = replace(frozen.scoring, **request.scoring)
    if frozen.corpus == corpus.identity and frozen.scoring == scoring:
        return frozen, None
    return _go_on(opened, replace(frozen, scoring=scoring), corpus, force)


def begin(run: Location, plan: Plan, corpus: Corpus) -> None:
    """Make the run folder of a new plan: its sentences, its own copy of the corpus, and then the plan.

    Raises:
        UserError: the disk is full or refuses.
    """
    sentences.write_segment(run, 0, sentences.of_corpus(corpus), plan.layout.partition_rows)
    freeze(run, plan, corpus)


def _require_same(run: OpenRun, request: PlanRequest) -> None:
    frozen = run.plan
    named = frozen.model.name in (request.model, str(Path(request.model).resolve()))
    pairs = {
        "model": (frozen.model.name, frozen.model.name if named else request.model),
        "revision": (frozen.model.revision, request.revision),
        "hookpoints": (frozen.patterns, request.patterns),
        **{name: (getattr(frozen.responses, name), getattr(request.responses, name)) for name in _fields(request)},
        "compression": (frozen.compression, request.compression),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise UserError(
                f"{plan_file(run.path)} is another plan: its {name} is {found!r}, and {wanted!r} is requested; "
                "give another run folder, or remove this one to start again"
            )


def _fields(request: PlanRequest) -> tuple[str, ...]:
    return tuple(request.responses.__dataclass_fields__)


def _go_on(run: OpenRun, wanted: Plan, corpus: Corpus, force: bool) -> tuple[Plan, Bill]:
    """Go on with another corpus, or have its pairs scored differently; everything is scored again.

    Stored responses stay where they are, and new ones are appended. Loads no model, and without new sentences no
    tokenizer either.
    """
    frozen = run.plan
    corpus.check()
    rows_of = sentences.rows_of(run, corpus)
    new = np.flatnonzero(rows_of < 0)
    table = sentences.of_corpus(corpus).take(new)
    lengths = np.zeros(0, np.int64)
    plan = replace(wanted, corpus=corpus.identity)
    if len(new):
        from expertmine.model.load import load_tokenizer

        lengths = measure_lengths(load_tokenizer(frozen.model), table["text"], frozen.responses)
        segments = (*frozen.segments, sentences.segment_of(table))
        layout = replace(frozen.layout, segments=tuple(segment.sentences for segment in segments))
        plan = replace(plan, segments=segments, layout=layout)
    receipts = list(read_receipts(run, "extract"))
    kept = _kept(run, receipts)[rows_of]
    kept[new] = lengths > 0
    require_concepts_kept(corpus, kept, frozen.responses)
    work = scoring_work(corpus, kept, plan.layout.padded_shape[0], plan.responses, plan.scoring)
    bill = make_bill(plan, lengths, len(rows_of) - len(new), _so_far(run, receipts), None, work)
    if not force:
        refuse_what_will_not_fit(run.path, bill)
    if len(new):
        sentences.write_segment(run.path, len(frozen.segments), table, plan.layout.partition_rows)
    freeze(run.path, plan, corpus, again=("score", "assess"))
    return plan, bill


def _kept(run: OpenRun, receipts: list[Receipt]) -> NDArray[np.bool_]:
    """(rows,) whether the sentence in a row was run, or may yet be: rows without a receipt count as kept."""
    plan = run.plan
    kept = np.ones(plan.layout.padded_shape[0], np.bool_)
    if receipts:
        tokens = Store(run).read_tokens()
        for receipt in receipts:
            rows = plan.layout.partition(receipt.task)
            kept[rows.start : rows.stop] = tokens[rows.start : rows.stop] > 0
    return kept


def _so_far(run: OpenRun, receipts: list[Receipt]) -> Sample:
    """The speed and compression of the run so far; none if it has not begun."""
    if not receipts:
        return Sample(None, 1.0)
    plan = run.plan
    by_worker = defaultdict(list)
    for receipt in receipts:
        by_worker[receipt.worker].append(receipt)
    seconds = sum(
        max(receipt.finished for receipt in own) - min(receipt.finished - receipt.seconds for receipt in own)
        for own in by_worker.values()
    )
    tokens = sum(receipt.counts["tokens"] for receipt in receipts)
    raw = len(receipts) * plan.layout.partition_rows * plan.layout.padded_shape[1] * len(plan.responses.poolings)
    itemsize = np.dtype(plan.responses.dtype).itemsize
    stored = Store(run).stored_bytes([key for receipt in receipts for key in receipt.checksums])
    return Sample(seconds / max(tokens, 1), stored / (raw * itemsize))
