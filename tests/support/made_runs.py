"""Runs with synthetic responses of any size, without a model or an extraction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.corpora import LabelledTexts, write_lists
from support.partitions import write_responses

from expertmine.corpus.reader import Corpus
from expertmine.mining.growth import begin
from expertmine.mining.planning import make_layout, scoring_work, widest_block
from expertmine.run import sentences
from expertmine.run.ledger import Receipt, write_receipt
from expertmine.run.open_run import OpenRun
from expertmine.run.store import Store, create_store
from expertmine.specs.hookpoints import Hookpoint
from expertmine.specs.identity import ModelIdentity
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Compression, ResponseSpec, ScoringSpec

HOOKPOINTS = 8


def make_corpus(folder: Path, texts: int, concepts: int, positives: int, pool: int, held_out_percent: int = 0) -> Path:
    """Write a corpus of concepts with random positives and one shared pool of negatives."""
    rng = np.random.default_rng(0)
    names = np.array([f"sentence {at} of {texts}" for at in range(texts)], dtype=object)
    drawn = [
        LabelledTexts(f"concept {at:05d}", "", "", rng.choice(names, positives, replace=False).tolist(), [], 0)
        for at in range(concepts)
    ]
    shared = rng.choice(names, pool, replace=False).tolist()
    write_lists(drawn, folder, held_out_percent=held_out_percent, pools=[shared])
    return folder


def make_run(
    run: Path, corpus: Path, units: int, memory: int | None = None, block_units: int | None = None, **scoring: Any
) -> Plan:
    """Make an extracted run whose responses are normally distributed and independent of every concept."""
    opened = Corpus.open(corpus)
    table = sentences.of_corpus(opened)
    segment, spec, chosen = sentences.segment_of(table), ResponseSpec(), ScoringSpec(**scoring)
    work = scoring_work(opened, np.ones(segment.sentences, np.bool_), segment.sentences, spec, chosen)
    width = units // HOOKPOINTS
    layout = make_layout(segment.sentences, width * HOOKPOINTS, 2, block_units or widest_block(work, memory))
    plan = Plan(
        model=ModelIdentity("made up", None, "None", "0" * 64, "0" * 64),
        patterns=(),
        hookpoints=tuple(Hookpoint(f"layer.{at}.out", width, at * width) for at in range(HOOKPOINTS)),
        corpus=opened.identity,
        responses=spec,
        compression=Compression(),
        segments=(segment,),
        layout=layout,
        scoring=chosen,
    )
    begin(run, plan, opened)
    planned = OpenRun(run, plan)
    create_store(planned)
    store = Store(planned)
    for partition in range(layout.partitions):
        rng = np.random.default_rng(partition)
        rows = np.arange(len(layout.partition(partition)))
        responses = rng.standard_normal((len(rows), layout.units), np.float32).astype(np.float16)
        checksums = write_responses(store, partition, responses, np.ones(len(rows), np.int32))
        fingerprint = plan.task_fingerprint("extract", partition)
        counts = {"sentences": len(rows), "tokens": len(rows)}
        write_receipt(planned, Receipt("extract", partition, fingerprint, checksums, 0.0, 0.0, "none", "none", counts))
    return plan
