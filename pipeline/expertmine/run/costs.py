"""What a stage has cost, from the receipts of its tasks and the records of its attempts.

Pure: reads nothing. Seconds, other than those elapsed, count only while tasks were running: not while a worker started,
nor while a task waited for one. Tasks of one process overlap, so their seconds are joined, not added.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expertmine.run.attempts import StageAttempt, attempt_at
from expertmine.run.ledger import Receipt
from expertmine.specs.plan import Stage

BYTES = "bytes"
"""The count of receipts that says how much a task stored."""
RATED = ("sentences", "tokens", "pairs", "experts", BYTES)
"""Counts whose rate per second is reported."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one stage so far, over all its attempts."""

    tasks: int
    workers: int
    """Processes that finished a task."""
    elapsed_seconds: float
    """Of all attempts; one that was killed counts until its last finished task."""
    wall_seconds: float
    """While any task was running, by the clocks of the machines."""
    worker_seconds: float
    """Summed over the workers, each while it had a task."""
    cpu_seconds: float
    """Worker seconds times the CPUs that the worker held, busy or not."""
    gpu_seconds: float
    """Worker seconds times the GPUs, or the fraction of one, that the worker held."""
    counts: dict[str, int]
    """Summed over the receipts: sentences, tokens, pairs, …"""
    per_second: dict[str, float]
    """Per second of wall time."""
    stored_bytes: int | None
    """Of the store's objects, compressed; None if a receipt does not say."""
    retried: int
    """Tasks that took more than one worker."""
    lost: int
    """Workers that died."""
    failed: int
    """Tasks that were given up, including those that were finished later."""


def costs_of(stage: Stage, receipts: Sequence[Receipt], attempts: Sequence[StageAttempt], cpus: int) -> Costs:
    """The costs of a stage.

    Args:
        attempts: of any stage, the earliest first.
        cpus: CPUs that a worker held, if no attempt says.
    """
    held = defaultdict(list)
    for receipt in receipts:
        held[receipt.worker, attempt_at(attempts, stage, receipt.finished)].append(receipt)
    worker_seconds = cpu_seconds = gpu_seconds = 0.0
    for (_, attempt), own in held.items():
        seconds = _joined(own)
        worker_seconds += seconds
        cpu_seconds += seconds * (cpus if attempt is None or attempt.cpus_each is None else attempt.cpus_each)
        gpu_seconds += seconds * _gpus(attempt, own[0].platform)
    wall = _joined(receipts)
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.counts)
    own_attempts = [attempt for attempt in attempts if attempt.stage == stage]
    return Costs(
        tasks=len(receipts),
        workers=len({receipt.worker for receipt in receipts}),
        elapsed_seconds=round(sum(_elapsed(attempt, receipts, attempts) for attempt in own_attempts), 3),
        wall_seconds=round(wall, 3),
        worker_seconds=round(worker_seconds, 3),
        cpu_seconds=round(cpu_seconds, 3),
        gpu_seconds=round(gpu_seconds, 3),
        counts=dict(counts),
        per_second={name: round(counts[name] / wall, 3) for name in RATED if counts[name] and wall},
        stored_bytes=counts[BYTES] if receipts and all(BYTES in receipt.counts for receipt in receipts) else None,
        retried=sum(attempt.retried for attempt in own_attempts),
        lost=sum(attempt.lost for attempt in own_attempts),
        failed=sum(attempt.failed for attempt in own_attempts),
    )


def _gpus(attempt: StageAttempt | None, platform: str) -> float:
    """GPUs that a worker held; if no attempt says, one if it computed on one."""
    if attempt is None or attempt.gpus_each is None:
        return float("CUDA" in platform)
    return attempt.gpus_each


def _elapsed(attempt: StageAttempt, receipts: Sequence[Receipt], attempts: Sequence[StageAttempt]) -> float:
    """Seconds from an attempt's begin to its end."""
    if attempt.ended is not None:
        return attempt.ended - attempt.began
    own = [each.finished for each in receipts if attempt_at(attempts, attempt.stage, each.finished) == attempt]
    return max(own, default=attempt.began) - attempt.began


def _joined(receipts: Iterable[Receipt]) -> float:
    """Seconds in which at least one of the tasks was running."""
    seconds, until = 0.0, float("-inf")
    for begun, finished in sorted((receipt.finished - receipt.seconds, receipt.finished) for receipt in receipts):
        seconds += max(0.0, finished - max(begun, until))
        until = max(until, finished)
    return seconds
