"""Stage 1: a partition of sentences → pooled responses in the store.

Knows the run folder and a task's index; nothing of who runs it. Running a task again writes the same bytes.

A partition goes through three phases: its texts are tokenised, its batches run through the model, and its responses are
encoded and written. Each phase takes one partition at a time. A process that is given `PARTITIONS_IN_FLIGHT` of them at
once, in threads, keeps the model at work while the next one is tokenised and the last one is written. It never holds
more.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expertmine.errors import UserError
from expertmine.mining.allocator import keep_freed_memory
from expertmine.mining.extraction_memory import PHASES
from expertmine.mining.partition_buffer import Gathered, PartitionBuffer
from expertmine.mining.stage import WorkerOptions
from expertmine.model.load import LoadedModel, load_identical
from expertmine.model.responses import (
    TYPES,
    Batch,
    Pooled,
    forward_passes,
    make_batches,
    padding_id,
    pooled_tokens,
    prepare,
    refuse_nan,
)
from expertmine.run import sentences
from expertmine.run.ledger import (
    Receipt,
    finish_task,
    missing_tasks,
    report_worker,
    require_complete,
)
from expertmine.run.open_run import OpenRun, require_current
from expertmine.run.store import Store, create_store


def plan(run: OpenRun) -> list[int]:
    """Make the store and list the partitions that are still to be run."""
    create_store(run)
    return missing_tasks(run, "extract")


def new_worker(run: OpenRun, options: WorkerOptions) -> Callable[[], Extractor]:
    """What makes an `Extractor` on the machine where it is called."""
    return partial(Extractor, run, options.device)


def finish(run: OpenRun) -> None:
    """Check that every partition has its receipt.

    Raises:
        UserError: names those without one.
    """
    require_complete(run, "extract")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A partition, tokenised."""

    texts: list[str]
    batches: list[Batch]
    tokens: NDArray[np.int32]
    """(texts,) pooled tokens of each; 0 for texts that are not run."""


@dataclass(frozen=True, slots=True)
class _Extracted:
    """A partition's responses, on their way from the device."""

    rows: NDArray[np.int64]
    """(sentences,) their rows in the partition, in order of batches."""
    gathered: Gathered
    """The responses; counted are whether any is NaN, then (hookpoints,) how many were saturated."""
    halvings: int
    """How often the batch size has been halved in this process so far."""


class Extractor:
    """Holds the model; each call runs one partition, and calls may come from several threads at once."""

    def __init__(self, run: OpenRun, device: str | None = None, loaded: LoadedModel | None = None) -> None:
        """Load the model of the plan.

        Args:
            device: a GPU if there is one, unless given; ``split`` spreads the model over all GPUs.
            loaded: the model, if it is loaded already; it is trusted to be the plan's.

        Raises:
            UserError: the model or store are not those of the plan.
            StageError: the run was planned again.
        """
        require_current(run)
        keep_freed_memory()
        self.run = run
        self.plan = run.plan
        torch.set_num_threads(self.plan.responses.threads)
        # One thread makes all calls of PyTorch: each calling thread keeps a thread team of its own, and teams of more
        # threads than there are processors slow each other down.
        self.passes = ThreadPoolExecutor(1, "passes")
        weights = TYPES[self.plan.responses.weights]
        self.loaded = loaded or self.passes.submit(load_identical, self.plan.model, device, weights).result()
        own = self.loaded.model.device
        self.store = Store(run, _write_threads(own))
        self.copies = torch.cuda.Stream(own) if own.type == "cuda" else None
        self.platform = _platform(own)
        self._phases = {name: Lock() for name in PHASES}
        self._inside: dict[str, int] = {}
        self._tokens_at_most = self.plan.responses.batch_tokens
        self._halvings = 0
        self._done = 0
        self._stopped = False

    def stop(self) -> None:
        """Have running calls in other threads end before their next batch, with a UserError."""
        self._stopped = True

    def __call__(self, partition: int) -> Receipt:
        """Run a partition, store its responses, and write its receipt.

        Raises:
            UserError: a response is NaN, a single sentence is too much for the memory, or the disk is full.
        """
        started = time.perf_counter()
        with self._phase("tokenising", partition):
            prepared = self._prepare(partition)
        with self._phase("running", partition):
            extracted = self.passes.submit(self._run, prepared.batches).result()
        with self._phase("writing", partition):
            responses, (not_a_number, *saturated) = extracted.gathered.wait()
            if not_a_number:
                self._refuse_nan(prepared, extracted, responses)
            checksums = self._write(partition, prepared, responses)
            counts = self._counts(prepared, extracted, saturated) | {"bytes": self.store.written_bytes(checksums)}
            receipt = finish_task(
                self.run, "extract", partition, checksums, counts, started=started, platform=self.platform
            )
            self._done += 1
        return receipt

    @contextmanager
    def _phase(self, name: str, partition: int) -> Iterator[None]:
        """Enter a phase as its only partition, and report that for the run's status."""
        with self._phases[name]:
            self._inside[name] = partition
            self._report()
            try:
                yield
            finally:
                del self._inside[name]
                self._report()

    def _report(self) -> None:
        inside = dict(self._inside)
        doing = ", ".join(f"{name} {inside[name]}" for name in PHASES if name in inside) or "waiting"
        report_worker(self.run.path, "extract", self.platform, doing, self._done)

    def _prepare(self, partition: int) -> _Prepared:
        spec, tokenizer = self.plan.responses, self.loaded.tokenizer
        texts = sentences.texts(self.run, partition)
        tokenised, kept = prepare(tokenizer, texts, spec)
        tokens = np.zeros(len(texts), np.int32)
        tokens[kept] = [pooled_tokens(tokenised[row], spec) for row in kept]
        return _Prepared(texts, make_batches(tokenised, kept, spec, padding_id(tokenizer)), tokens)

    def _run(self, batches: list[Batch]) -> _Extracted:
        """Run every batch through the model; the last responses may still be on their way when this returns."""
        spec, device = self.plan.responses, self.loaded.model.device
        rows = np.array([row for batch in batches for row in batch.rows], np.int64)
        buffer = PartitionBuffer(len(spec.poolings), self.plan.layout, TYPES[spec.dtype], device)
        saturated = torch.zeros(len(self.plan.hookpoints), dtype=torch.int64, device=device)
        not_a_number = torch.zeros((), dtype=torch.bool, device=device)
        waiting = deque(batches)
        with forward_passes(self.loaded.model, self.plan.hookpoints, spec) as forward:
            while waiting:
                if self._stopped:
                    raise UserError("stopped; finished tasks are kept")
                batch = waiting.popleft()
                if batch.ids.numel() > self._tokens_at_most and len(batch.rows) > 1:
                    waiting.extendleft(reversed(batch.halves()))
                    continue
                pooled = self._try(forward, batch)
                if pooled is None:
                    waiting.appendleft(batch)
                    continue
                buffer.add(torch.tensor(batch.rows), pooled.responses)
                saturated += pooled.saturated
                not_a_number |= pooled.not_a_number
        counts = torch.cat([not_a_number.long().reshape(1), saturated])
        return _Extracted(rows, buffer.send(counts, self.copies), self._halvings)

    def _try(self, forward: Callable[[Batch], Pooled], batch: Batch) -> Pooled | None:
        """A forward pass; None if memory ran out, and batches are smaller from here on.

        Raises:
            UserError: memory ran out for a single sentence.
        """
        try:
            return forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(batch.rows) == 1:
                raise UserError(
                    f"one sentence of {batch.ids.numel()} tokens is too much for the memory of {self.platform}; "
                    "choose a lower --max-tokens, fewer hookpoints, --autocast bfloat16, or a larger device"
                ) from error
        self._tokens_at_most = max(1, batch.ids.numel() // 2)
        self._halvings += 1
        if self.loaded.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _refuse_nan(self, prepared: _Prepared, extracted: _Extracted, responses: NDArray[np.floating[Any]]) -> None:
        texts = [prepared.texts[row] for row in extracted.rows]
        for values in responses:
            refuse_nan(values[: self.plan.layout.units].T[extracted.rows], self.plan.hookpoints, texts)

    def _write(self, partition: int, prepared: _Prepared, responses: NDArray[np.floating[Any]]) -> dict[str, str]:
        tokens = np.zeros(self.plan.layout.partition_rows, np.int32)
        tokens[: len(prepared.tokens)] = prepared.tokens
        by_pooling = dict(zip(self.plan.responses.poolings, responses, strict=True))
        return self.store.write_partition(partition, by_pooling, tokens)

    def _counts(self, prepared: _Prepared, extracted: _Extracted, saturated: Sequence[int]) -> dict[str, int]:
        counted = zip(self.plan.hookpoints, saturated, strict=True)
        return {
            "sentences": len(extracted.rows),
            "dropped": len(prepared.texts) - len(extracted.rows),
            "tokens": int(prepared.tokens.sum()),
            "halvings": extracted.halvings,
            **{f"saturated {hookpoint.name}": count for hookpoint, count in counted if count},
        }


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)  # PyTorch's messages on CPUs


WRITE_THREADS = 4
"""Threads that encode beside a model on a GPU, where there are as many cores. More are slower: encoding a chunk is a
millisecond without the GIL, and each return to Python waits for the thread that launches the model's kernels."""


def _write_threads(device: torch.device) -> int:
    """Threads that encode beside a model on this device; 1 beside one on the CPU, whose cores the model has."""
    if device.type != "cuda":
        return 1
    return max(1, min(WRITE_THREADS, len(os.sched_getaffinity(0)) // torch.cuda.device_count()))


def _platform(device: torch.device) -> str:
    """What the last bits of a response depend on, other than the plan."""
    versions = f"torch {torch.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, {versions}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {versions}"
