"""Extraction on a GPU against the bare forward pass: tokens per second, and what the writer takes.

Models have the shapes of well-known ones, with random weights made on the device; sentences are WordNet's definitions,
joined until they have some 40 tokens. Needs PyTorch, transformers and zarr, but no Ray and no Dask:

    PYTHONPATH=pipeline:kernels:tests python tests/benchmarks/gpu_extraction.py llama-7b gpt2-xl

On a machine without a GPU, ``tiny`` proves that the script runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.corpora import LabelledTexts, write_lists
from support.sentences import long_sentences
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from expertmine.corpus.reader import Corpus
from expertmine.mining import extract
from expertmine.mining.extraction_memory import PARTITIONS_IN_FLIGHT
from expertmine.mining.growth import begin
from expertmine.mining.planning import make_layout, scoring_work, widest_block
from expertmine.model import fused_maximum
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.load import EMBEDDED_FOLDER, LoadedModel
from expertmine.model.responses import Batch, forward_passes, make_batches, padding_id, prepare
from expertmine.run import sentences
from expertmine.run.open_run import OpenRun
from expertmine.run.shards import ShardEncoder
from expertmine.run.store import Store
from expertmine.runtime.serial import SerialExecutor
from expertmine.specs.identity import ModelIdentity
from expertmine.specs.plan import Plan
from expertmine.specs.settings import Compression, ResponseSpec, ScoringSpec

SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "tiny": lambda: LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, vocab_size=6000
    ),
    "gpt2-medium": lambda: GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-xl": lambda: GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "llama-7b": lambda: LlamaConfig(),
}


def make_model(shape: str, device: torch.device) -> LoadedModel:
    """A model of a shape, its weights drawn on the device."""
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(previous)
    identity = ModelIdentity(shape, None, type(model).__name__, "0" * 64, "0" * 64)
    return LoadedModel(model.eval(), AutoTokenizer.from_pretrained(EMBEDDED_FOLDER), identity)


def make_run(folder: Path, loaded: LoadedModel, written: list[str], batch_tokens: int) -> OpenRun:
    """A planned run over some sentences."""
    half = len(written) // 2
    if not (folder / "corpus").exists():
        write_lists(
            [LabelledTexts("one half", "", "", written[:half], written[half:])], folder / "corpus", held_out_percent=0
        )
    corpus = Corpus.open(folder / "corpus")
    hookpoints = find_hookpoints(loaded.model)
    spec = ResponseSpec(weights="bfloat16", batch_tokens=batch_tokens)
    table = sentences.of_corpus(corpus)
    segment = sentences.segment_of(table)
    work = scoring_work(corpus, np.ones(segment.sentences, np.bool_), segment.sentences, spec, ScoringSpec())
    units = sum(hookpoint.width for hookpoint in hookpoints)
    layout = make_layout(segment.sentences, units, 2, widest_block(work, None))
    plan = Plan(
        loaded.identity, (), hookpoints, corpus.identity, spec, Compression(), (segment,), layout, ScoringSpec()
    )
    path = folder / f"run {batch_tokens} {time.time_ns()}"
    begin(path, plan, corpus)
    return OpenRun(path, plan)


@dataclass(frozen=True)
class Work:
    name: str
    do: Callable[[], object]


def speeds(works: list[Work], tokens: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Tokens per second, each kind of work in turn; prints medians, and medians of the ratios to the first."""
    found: dict[str, list[float]] = {work.name: [] for work in works}
    for _ in range(rounds):
        for work in works:
            started = time.perf_counter()
            work.do()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[work.name].append(tokens / (time.perf_counter() - started))
    base = found[works[0].name]
    for name, own in found.items():
        ratio = statistics.median(one / other for one, other in zip(own, base, strict=True))
        print(f"  {name:<46}{statistics.median(own):>10,.0f} tokens/s{ratio:>8.3f}", flush=True)
    return {name: statistics.median(own) for name, own in found.items()}


def measure(shape: str, count: int, batch_tokens: list[int], rounds: int, folder: Path, device: torch.device) -> None:
    started = time.perf_counter()
    loaded = make_model(shape, device)
    written = long_sentences(count, loaded.tokenizer)
    for size in batch_tokens:
        run = make_run(folder, loaded, written, size)
        layout = run.plan.layout
        tasks = extract.plan(run)
        if size == batch_tokens[0]:
            print(
                f"\n{shape}: {layout.units:,} units, {len(written):,} sentences in {layout.partitions} partitions of "
                f"{layout.partition_rows} rows, blocks of {layout.block_units}, {layout.objects_per_partition} shards; "
                f"made in {time.perf_counter() - started:.1f} s",
                flush=True,
            )
        worker = extract.Extractor(run, loaded=loaded)
        batches: list[Batch] = []
        for task in tasks:
            tokenised, kept = prepare(loaded.tokenizer, sentences.texts(run, task), run.plan.responses)
            batches += make_batches(tokenised, kept, run.plan.responses, padding_id(loaded.tokenizer))
        tokens = sum(int(batch.pooled.sum()) for batch in batches)
        filled = sum(batch.ids.numel() for batch in batches)
        print(f" batches of {size:,} tokens: {len(batches)}, {tokens / filled:.2f} of their tokens real", flush=True)

        def bare(batches: list[Batch] = batches) -> None:
            with torch.inference_mode():
                for batch in batches:
                    mask = None if batch.attended is None else batch.attended.to(device, non_blocking=True)
                    loaded.model.base_model(
                        input_ids=batch.ids.to(device, non_blocking=True), attention_mask=mask, use_cache=False
                    )

        def hooked(batches: list[Batch] = batches, plan: Plan = run.plan) -> None:
            with forward_passes(loaded.model, plan.hookpoints, plan.responses) as forward:
                for batch in batches:
                    forward(batch)

        def hooked_without_kernel() -> None:
            original, fused_maximum.available = fused_maximum.available, lambda: False  # type: ignore[assignment]
            try:
                hooked()
            finally:
                fused_maximum.available = original  # type: ignore[assignment]

        def whole(worker: extract.Extractor = worker, tasks: list[int] = tasks) -> list[Any]:
            return list(SerialExecutor(PARTITIONS_IN_FLIGHT).run(lambda: worker, tasks))

        works = [Work("bare forward pass", bare), Work("hooked and pooled", hooked)]
        if fused_maximum.available():
            works.append(Work("hooked and pooled by PyTorch's operations", hooked_without_kernel))
        works.append(Work("extraction: pooled, encoded, stored", whole))
        for work in works:
            work.do()  # warm
        speeds(works, tokens, rounds, device)
        first, second = whole(), whole()
        same = {one.task: one.checksums for one in first} == {one.task: one.checksums for one in second}
        print(f"  run twice, the same bytes: {same}", flush=True)
    measure_writer(worker)


def measure_writer(worker: extract.Extractor) -> None:
    """What the writer takes, by threads, against its codec alone on the same chunks."""
    layout = worker.plan.layout
    rng = np.random.default_rng(0)
    shape = (layout.padded_shape[1], layout.partition_rows)
    drawn = np.maximum(*rng.standard_normal((2, 4096, layout.partition_rows), np.float32)).astype(np.float16)
    values = np.ascontiguousarray(np.resize(drawn, shape))
    tokens = np.ones(layout.partition_rows, np.int32)
    codec = ShardEncoder(layout.block_units, worker.plan.compression, worker.plan.responses.dtype).codec()
    chunks = [
        values[start : start + layout.block_units].reshape(-1).view(np.uint8)
        for start in range(0, len(values), layout.block_units)
    ]
    print(f"  one partition, {values.nbytes / 1e6:,.0f} MB; MB/s", flush=True)
    cores = len(os.sched_getaffinity(0))
    for threads in [each for each in (1, 2, 4, 8) if each <= max(2, cores)]:
        store = Store(worker.run, threads)
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            if codec is not None:
                list(pool.map(codec.encode, chunks))
            alone = time.perf_counter() - started
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            store.write_partition(0, {"max": values}, tokens)
            taken.append(time.perf_counter() - started)
        speed = [values.nbytes / 1e6 / seconds for seconds in (min(taken), alone)]
        print(f"  {threads:>3} threads: writer {speed[0]:>7,.0f}, codec {speed[1]:>7,.0f}, {speed[0] / speed[1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=["llama-7b", "gpt2-xl"], choices=list(SHAPES))
    parser.add_argument("--sentences", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where runs are written. [default: a temporary folder]")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}", flush=True)
    for shape in options.shapes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            measure(shape, options.sentences, options.batch_tokens, options.rounds, Path(folder), device)
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
