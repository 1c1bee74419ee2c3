"""Inspect a run from outside: its progress, and whether the stored bytes are still those that were written."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from expertmine.errors import UserError
from expertmine.index.experts import is_index_of
from expertmine.index.names import METADATA
from expertmine.run import paths, sentences
from expertmine.run.attempts import StageAttempt, read_attempts
from expertmine.run.costs import Costs, costs_of
from expertmine.run.ledger import (
    Failure,
    Receipt,
    WorkerState,
    now,
    read_failures,
    read_receipts,
    read_workers,
    worker_name,
)
from expertmine.run.links import require_own
from expertmine.run.open_run import open_corpus, open_run
from expertmine.run.side_tables import is_table, tables_are_sound
from expertmine.run.store import Store
from expertmine.specs.plan import STAGES, Stage
from expertmine.storage.files import exists
from expertmine.storage.locations import Location

RECENT = 600.0
"""Seconds before the last receipt over which the rate is taken."""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """The progress of one stage."""

    stage: str
    done: int
    total: int
    task_seconds: float
    """Summed over the finished tasks, whoever ran them."""
    counts: dict[str, int]
    """Summed over the receipts: sentences, tokens, pairs, …"""
    per_second: dict[str, float]
    """The same counts, for each second of the last ten minutes of work."""
    seconds_left: float | None
    """At that rate, with as many workers; None if no task is left, or none is finished yet."""
    platforms: tuple[str, ...]
    """Kinds of machine that its tasks ran on."""
    failures: tuple[Failure, ...]
    """Tasks that were given up and are still unfinished."""
    costs: Costs | None = None
    """Costs of the finished tasks; None for a stage that writes no receipts."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that works, or worked, on the run."""

    state: WorkerState
    alive: bool | None
    """None for a process of another machine, which cannot be checked from here."""
    seconds: float
    """Since it last reported its state."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A task whose stored bytes do not match its receipt."""

    stage: Stage
    task: int


def progress_of(run: Location) -> list[StageProgress]:
    """Progress of each stage, from the receipts alone.

    Raises:
        UserError: the plan is damaged, or a link leads out of the run.
    """
    require_own(run)
    opened = open_run(run)
    plan = opened.plan
    attempts = read_attempts(run)
    found = [
        _progress(
            stage,
            receipts := list(read_receipts(opened, stage)),
            plan.tasks(stage),
            read_failures(run, stage),
            costs_of(stage, receipts, attempts, plan.responses.threads if stage == "extract" else 1),
        )
        for stage in STAGES
        if plan.tasks(stage)
    ]
    folders = [paths.index_folder(run, plan, pooling) for pooling in plan.responses.poolings]
    reduced = sum(is_index_of(folder, plan) for folder in folders)
    return [*found, StageProgress("reduce", reduced, len(folders), 0.0, {}, {}, None, (), ())]


def driven_here(run: Location) -> list[StageProgress]:
    """Progress of each stage if this process has driven one of them, for reporting its costs; else nothing."""
    return progress_of(run) if any(attempt.process == worker_name() for attempt in read_attempts(run)) else []


def attempts_of(run: Location) -> list[StageAttempt]:
    """The last attempt of each stage, if it has not ended: it is running, or it was killed."""
    last = {attempt.stage: attempt for attempt in read_attempts(run)}
    return [attempt for attempt in last.values() if attempt.ended is None]


def _progress(
    stage: Stage, receipts: Sequence[Receipt], total: int, failures: Sequence[Failure], costs: Costs
) -> StageProgress:
    counts = _sum(receipts)
    per_second, left = {}, None
    if receipts:
        last = max(receipt.finished for receipt in receipts)
        recent = [receipt for receipt in receipts if receipt.finished > last - RECENT]
        span = max(last - min(receipt.finished - receipt.seconds for receipt in recent), 1e-3)
        per_second = {name: round(count / span, 3) for name, count in _sum(recent).items()}
        left = (total - len(receipts)) * span / len(recent) if len(receipts) < total else None
    return StageProgress(
        stage,
        len(receipts),
        total,
        round(sum(receipt.seconds for receipt in receipts), 3),
        counts,
        per_second,
        left,
        tuple(sorted({receipt.platform for receipt in receipts})),
        tuple(failures),
        costs,
    )


def _sum(receipts: Sequence[Receipt]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt.counts)
    return dict(total)


def workers_of(run: Location) -> list[Worker]:
    """Every process that reported its state, the latest first."""
    here = socket.gethostname()
    return [
        Worker(state, _is_alive(state.process) if state.machine == here else None, max(0.0, now() - state.since))
        for state in read_workers(run)
    ]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def verify(run: Location) -> Iterator[Damage | None]:
    """Read everything that was stored and compare it with the receipts; yields None for each sound task.

    Raises:
        UserError: the plan, sentences, corpus or index is damaged, or a link leads out of the run.
    """
    require_own(run)
    opened = open_run(run)
    plan, corpus, store = opened.plan, open_corpus(opened), Store(opened)
    corpus.check()
    sentences.rows_of(opened, corpus)
    for stage in STAGES:
        for receipt in read_receipts(opened, stage):
            of_store = {key: value for key, value in receipt.checksums.items() if not is_table(key)}
            sound = store.sound(of_store) and tables_are_sound(opened, receipt.checksums)
            yield None if sound else Damage(stage, receipt.task)
    for pooling in plan.responses.poolings:
        folder = paths.index_folder(run, plan, pooling)
        if exists(folder / METADATA) and not is_index_of(folder, plan):
            raise UserError(f"{folder} belongs to another plan; run `expertmine reduce {run}`")
