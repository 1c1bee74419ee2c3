"""Look at a run from outside: how far it is, and whether what it stored is still what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from expertmine.errors import UserError
from expertmine.experts import Experts
from expertmine.ledger import Stage, load_plan, open_corpus, read_receipts
from expertmine.store import Store


@dataclass(frozen=True, slots=True)
class StageProgress:
    """How far one stage is."""

    stage: str
    done: int
    total: int
    task_seconds: float
    """Summed over the finished tasks, whoever ran them."""
    counts: dict[str, int]
    """Summed over the receipts: sentences, tokens, pairs, …"""


@dataclass(frozen=True, slots=True)
class Damage:
    """A task whose stored values are not those of its receipt."""

    stage: str
    task: int


def progress_of(run: Path) -> list[StageProgress]:
    """Progress of each stage, from the receipts alone."""
    plan = load_plan(run)
    stages: list[tuple[Stage, int]] = [("extract", plan.layout.partitions), ("score", plan.layout.blocks)]
    found = []
    for stage, total in stages:
        receipts = list(read_receipts(run, stage, total, plan.fingerprint))
        counts: dict[str, int] = {}
        for receipt in receipts:
            for name, count in receipt.counts.items():
                counts[name] = counts.get(name, 0) + count
        found.append(StageProgress(stage, len(receipts), total, sum(r.seconds for r in receipts), counts))
    reduced = (run / "experts" / "index.json").exists()
    return [*found, StageProgress("reduce", int(reduced), 1, 0.0, {})]


def verify(run: Path) -> Iterator[Damage | None]:
    """Read all that was stored again and compare it with the receipts; yields None for each task that is sound.

    Raises:
        UserError: the plan, corpus or index is damaged.
    """
    plan = load_plan(run)
    open_corpus(run, plan).check()
    store = Store(run, plan)
    stages: list[tuple[Stage, int, Callable[[int], str]]] = [
        ("extract", plan.layout.partitions, store.partition_checksum),
        ("score", plan.layout.blocks, store.scores_checksum),
    ]
    for stage, total, checksum in stages:
        for receipt in read_receipts(run, stage, total, plan.fingerprint):
            try:
                sound = checksum(receipt.task) == receipt.checksum
            except (OSError, ValueError, RuntimeError):  # a torn object: the codec or its checksum says so
                sound = False
            yield None if sound else Damage(stage, receipt.task)
    if (run / "experts" / "index.json").exists() and Experts.load(run).facts["plan"] != plan.fingerprint:
        raise UserError(f"{run / 'experts'} belongs to another plan; run `expertmine reduce {run}`")
