"""Compares extraction with the bare forward pass and with padding every sentence; also its memory and its codecs.

Ratios in one run: a GPT-2 of 6 layers × 384 with random weights, two threads, WordNet sentences joined to about 40
tokens. Run by `make bench`; `pytest tests` does not collect it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from support.corpora import LabelledTexts, write_lists
from support.plans import plan_new
from support.sentences import glosses, long_sentences
from transformers import GPT2Config, GPT2LMHeadModel
from zarr.codecs import BloscCodec, BytesCodec, TransposeCodec
from zarr.storage import MemoryStore

from expertmine.mining import extract
from expertmine.mining.extraction_memory import PARTITIONS_IN_FLIGHT
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.hooks import reading
from expertmine.model.load import EMBEDDED, EMBEDDED_FOLDER, load_model
from expertmine.model.responses import Batch, forward_passes, make_batches, padding_id, prepare
from expertmine.run import sentences
from expertmine.run.open_run import open_run
from expertmine.runtime.serial import SerialExecutor
from expertmine.specs.settings import ResponseSpec

ROUNDS = 5
SENTENCES = 1536
PADDED_SENTENCES = 128
PADDED = 128


def save_gpt2(folder: Path, layers: int, width: int, heads: int) -> Path:
    """A GPT-2 with random weights and the embedded tokenizer, as a model folder."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=6000, n_positions=PADDED, n_embd=width, n_layer=layers, n_head=heads, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / name, folder)
    return folder


def corpus_of(texts: list[str], folder: Path) -> Path:
    half = len(texts) // 2
    write_lists([LabelledTexts("one half", "", "", texts[:half], texts[half:])], folder, held_out_percent=0)
    return folder


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Work:
    name: str
    do: Callable[[], object]
    tokens: int
    """Tokens of the sentences, without padding."""


def speeds(works: list[Work]) -> dict[str, float]:
    """Tokens per second of each kind of work, run in turn for ROUNDS rounds; medians of the ratios to the first."""
    found: dict[str, list[float]] = {work.name: [] for work in works}
    for _ in range(ROUNDS):
        for work in works:
            found[work.name].append(work.tokens / seconds(work.do))
    base = found[works[0].name]
    ratios = {name: statistics.median(o / b for o, b in zip(own, base, strict=True)) for name, own in found.items()}
    print(f"{'':<50}{'tokens/s':>10}{'speed':>8}")
    for name, own in found.items():
        print(f"{name:<50}{statistics.median(own):>10,.0f}{ratios[name]:>8.2f}")
    return ratios


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_extraction_against_the_bare_forward_pass(autocast: Any, tmp_path: Path) -> None:
    model = save_gpt2(tmp_path / "model", 6, 384, 6)
    corpus = corpus_of(long_sentences(SENTENCES, load_model(EMBEDDED).tokenizer), tmp_path / "corpus")
    run = tmp_path / "run"
    options = {"max_tokens": PADDED, "threads": 2, "autocast": autocast}
    plan, _ = plan_new(run, model, corpus, None, **options)
    tasks = extract.plan(open_run(run))
    worker = extract.Extractor(open_run(run), "cpu")
    loaded = worker.loaded
    texts = [text for task in tasks for text in sentences.texts(open_run(run), task)]
    fill = padding_id(loaded.tokenizer)
    batches: list[Batch] = []
    for task in tasks:
        tokenised, kept = prepare(loaded.tokenizer, sentences.texts(open_run(run), task), plan.responses)
        batches += make_batches(tokenised, kept, plan.responses, fill)
    tokens = sum(int(batch.pooled.sum()) for batch in batches)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=autocast == "bfloat16")

    def in_the_same_thread(work: Callable[[], object]) -> None:
        """In the same thread as extraction's passes, since a second thread that calls PyTorch would slow both."""
        worker.passes.submit(work).result()

    def forward(batch: Batch) -> None:
        with torch.inference_mode(), cast:
            loaded.model.base_model(input_ids=batch.ids, attention_mask=batch.attended, use_cache=False)

    def bare() -> None:
        in_the_same_thread(lambda: [forward(batch) for batch in batches])

    def whole() -> None:
        assert all(
            isinstance(done, extract.Receipt)
            for done in SerialExecutor(PARTITIONS_IN_FLIGHT).run(lambda: worker, tasks)
        )

    padded_spec = ResponseSpec(poolings=("reference",), max_tokens=PADDED)
    few = texts[:: len(texts) // PADDED_SENTENCES]
    tokenised, kept = prepare(loaded.tokenizer, few, padded_spec)
    padded = make_batches(tokenised, kept, padded_spec, fill)
    few_tokens = sum(sum(tokenised[row].real) for row in kept)

    def bare_padded() -> None:
        in_the_same_thread(lambda: [forward(batch) for batch in padded])

    def as_the_reference() -> None:
        """Copy every output to NumPy and take its maximum there."""
        kept_outputs: list[Any] = []
        names = [hookpoint.name for hookpoint in plan.hookpoints]
        with reading(loaded.model, names, lambda name, output: kept_outputs.append(output.float().numpy())):
            for batch in padded:
                in_the_same_thread(lambda batch=batch: forward(batch))
                for output in kept_outputs:
                    output.reshape(len(batch.rows), PADDED, -1).max(axis=1)
                kept_outputs.clear()

    bare()
    print(f"\n{len(texts):,} sentences, {tokens / len(texts):.1f} tokens on average, autocast {autocast}, 2 threads")
    ours = "extraction: tokenised, pooled, stored"
    found = speeds(
        [
            Work("bare forward pass, the same batches", bare, tokens),
            Work(ours, whole, tokens),
            Work(f"bare forward pass, padded to {PADDED}", bare_padded, few_tokens),
            Work(f"padded to {PADDED}, hooked, pooled by NumPy", as_the_reference, few_tokens),
        ]
    )
    print(f"extraction / bare: {found[ours]:.2f} (target 0.90)")
    for name in list(found)[2:]:
        print(f"extraction / {name}: {found[ours] / found[name]:.1f} (target 4)")


@pytest.mark.parametrize("layers, width", [(1, 128)])
def test_memory_does_not_grow_with_the_corpus(layers: int, width: int, tmp_path: Path) -> None:
    model = save_gpt2(tmp_path / "model", layers, width, 4)
    print("\nsentences  partitions   seconds   peak MB of the extracting process")
    for count in (10_000, 100_000):
        texts = [f"the number {at} and its neighbour {at + 1} are known by name" for at in range(count)]
        corpus = corpus_of(texts, tmp_path / f"corpus {count}")
        plan, bill = plan_new(tmp_path / f"run {count}", model, corpus, None)
        command = [sys.executable, "-m", "expertmine", "extract", str(tmp_path / f"run {count}")]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--executor", "serial"], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        took = time.perf_counter() - started
        print(f"{count:>9,} {plan.layout.partitions:>11} {took:>9.1f} {usage.ru_maxrss / 1e3:>9,.0f}")
        assert bill.extract_memory is not None


def test_codecs_on_real_responses() -> None:
    loaded = load_model(EMBEDDED)
    hookpoints = find_hookpoints(loaded.model)
    spec = ResponseSpec()
    texts = [text for _, text in zip(range(2048), glosses(), strict=False)]
    tokenised, kept = prepare(loaded.tokenizer, texts, spec)
    responses = np.zeros((len(texts), sum(hookpoint.width for hookpoint in hookpoints)), np.float16)
    with forward_passes(loaded.model, hookpoints, spec) as forward:
        for batch in make_batches(tokenised, kept, spec, padding_id(loaded.tokenizer)):
            responses[list(batch.rows)] = forward(batch).responses[0].numpy()
    responses = responses[:, : responses.shape[1] // 256 * 256]
    shape = responses.shape
    print(f"\n{shape[0]:,} sentences × {shape[1]:,} units of the embedded model, chunks of all × 256, float16")
    print(f"{'order':<16}{'codec':<22}{'of raw':>8}{'MB/s in':>9}{'MB/s out':>10}")
    codecs: list[tuple[str, Any]] = [("none", None)]
    codecs += [
        (f"{name}-{level} {shuffle}", BloscCodec(cname=name, clevel=level, shuffle=shuffle))
        for (name, level), shuffle in product(
            [("lz4", 5), ("zstd", 1), ("zstd", 3), ("zstd", 5), ("zstd", 9)], ["bitshuffle", "shuffle", "noshuffle"]
        )
    ]
    for order, (name, codec) in product(("unit-major", "sentence-major"), codecs):
        filters = [TransposeCodec(order=(1, 0))] if order == "unit-major" else []
        array = zarr.create_array(
            MemoryStore(objects := {}),
            shape=shape,
            chunks=(shape[0], 256),
            dtype="float16",
            filters=filters,
            serializer=BytesCodec(),
            compressors=[codec] if codec else None,
        )

        def write(array: Any = array) -> None:
            array[...] = responses

        written = min(seconds(write) for _ in range(2))
        read = min(seconds(lambda array=array: array[...]) for _ in range(2))
        size = sum(len(content) for key, content in objects.items() if key != "zarr.json")
        speeds = f"{responses.nbytes / written / 1e6:>9,.0f}{responses.nbytes / read / 1e6:>10,.0f}"
        print(f"{order:<16}{name:<22}{size / responses.nbytes:>8.3f}{speeds}")
