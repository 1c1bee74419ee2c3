"""What a run has promised and what it has done: the frozen plan, and one receipt for each finished task.

A task is finished when its receipt is there, never because a folder or a chunk is. Receipts are written last, by
temporary file and rename; those of another plan are refused; a torn one counts as not written. Beside them lie, for
people to read, the state of each worker and a report of each task that failed.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from expertmine.corpus.reader import FILES, Corpus
from expertmine.errors import StageError, UserError
from expertmine.run import lease as locks
from expertmine.run import paths
from expertmine.runtime.events import process_name
from expertmine.specs.plan import Plan, Stage
from expertmine.storage.files import (
    children,
    copy,
    read_each,
    read_json,
    remove,
    remove_folder,
    single_attempt,
    write_atomically,
    write_json,
)
from expertmine.storage.locations import Location, is_remote, same
from expertmine.storage.untrusted import record

Read = TypeVar("Read")

NEWS_EVERY = 10.0
"""Seconds between two words of a worker to an object store of what it does."""
_told: dict[str, float] = {}

_KEY = re.compile(r"[a-z_]+(/[a-z0-9_]+)+(\.parquet)?")
"""Keys of objects in the store, and of tables beside it; they are read by these."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a task is done."""

    stage: Stage
    task: int
    fingerprint: str
    """What the plan says of this task, see `expertmine.specs.plan.Plan.task_fingerprint`."""
    checksums: dict[str, str]
    """SHA-256 of each object in the store that the task wrote, by its key."""
    seconds: float
    """From the task's begin to its end, waiting for others in the same process included."""
    finished: float
    """When, in seconds since 1970, UTC."""
    worker: str
    """Who did it: machine and process."""
    platform: str
    """Kind of processor, and versions of what computes: what the last bits of a number depend on."""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker was doing when it last said so."""

    stage: Stage
    machine: str
    process: int
    platform: str
    since: float
    """When it began with what it is doing, in seconds since 1970, UTC."""
    doing: str
    """Such as ``scoring 3``, or ``waiting`` for more."""
    tasks: int
    """Done by this worker so far."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that was given up in the last attempt to run its stage."""

    stage: Stage
    task: int
    reason: str
    attempts: int
    sentences: list[str]
    """The sentences of a partition that could not be extracted."""


def require_new_folder(run: Location) -> None:
    """Refuse to plan a run in a folder of other things.

    Raises:
        UserError: the folder holds something else than what an interrupted beginning leaves.
    """
    if any(path.name not in paths.BEFORE_THE_PLAN and not path.name.startswith(".") for path in children(run)):
        raise UserError(f"{run} exists and is no run folder (it has no plan.json); give another one")


def freeze(run: Location, plan: Plan, corpus: Corpus, anew: Sequence[Stage] = ()) -> None:
    """Write a plan, after the run's own copy of its corpus, so that the run is whole in itself.

    The plan's sentences must be there already (`expertmine.run.sentences.write_segment`). Where another plan was, its
    corpus goes when the new plan has come.

    Args:
        anew: stages all of whose tasks are to run again.

    Raises:
        UserError: the disk is full or refuses, the corpus was written to meanwhile, or another drives the run.
    """
    own = paths.corpus_folder(run, plan.corpus)
    if not same(corpus.path, own):
        for name in reversed(FILES):  # corpus.json last
            copy(corpus.path / name, own / name)
        copied = Corpus.open(own)
        copied.check()
        if copied.identity != plan.corpus:
            raise UserError(f"{corpus.path} has changed while it was copied; plan the run again")
    locks.require(run)
    for stage in anew:
        forget_receipts(run, stage)
    write_json(paths.plan_file(run), plan.to_json())
    for stage in anew:  # what a worker of the earlier plan has finished just now
        forget_receipts(run, stage)
    for other in children(own.parent):
        if other.name != own.name:
            remove_folder(other)


def load_plan(run: Location) -> Plan:
    """The frozen plan of a run folder.

    Raises:
        UserError: there is none, or it was edited.
    """
    path = paths.plan_file(run)
    document = read_json(path, "a run folder made by `expertmine plan` or `expertmine mine`")
    if not isinstance(document, dict):
        raise UserError(f"{path}: not a plan; plan the run again")
    return Plan.from_json(document, str(path))


def open_corpus(run: Location, plan: Plan) -> Corpus:
    """The run's own copy of its corpus.

    Raises:
        UserError: it is not the one that was planned.
    """
    corpus = Corpus.open(paths.corpus_folder(run, plan.corpus))
    if corpus.identity != plan.corpus:
        raise UserError(f"{corpus.path} is not the corpus of this run's plan; restore it, or plan a new run")
    return corpus


def worker_name() -> str:
    """This process, as receipts name it."""
    return process_name()


def report_worker(run: Location, stage: Stage, platform: str, doing: str, tasks: int) -> None:
    """Say what this process is doing. It is news, not a promise: what cannot be written stays unsaid."""
    state = WorkerState(stage, socket.gethostname(), os.getpid(), platform, now(), doing, tasks)
    path = paths.worker_file(run, stage, worker_name())
    text = json.dumps(asdict(state))
    if is_remote(path):
        _tell_store(path, text)
        return
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        temporary.replace(path)


def _tell_store(path: Location, text: str) -> None:
    """The same at an object store, where each word is a request that work waits for: no more than one in a while."""
    if time.monotonic() - _told.get(str(path), -NEWS_EVERY) >= NEWS_EVERY:
        _told[str(path)] = time.monotonic()
        with suppress(UserError), single_attempt():
            write_atomically(path, text.encode())


def write_receipt(run: Location, receipt: Receipt) -> None:
    """Make a task done, and its failure of before, if there was one, history.

    Raises:
        UserError: the disk is full or refuses.
    """
    if load_plan(run).task_fingerprint(receipt.stage, receipt.task) != receipt.fingerprint:
        raise StageError(f"{run} was planned anew while this task ran; what it found is not kept")
    write_json(paths.receipt_file(run, receipt.stage, receipt.task), asdict(receipt))
    remove(paths.failure_file(run, receipt.stage, receipt.task))


def read_receipts(run: Location, plan: Plan, stage: Stage) -> Iterator[Receipt]:
    """The receipts of a stage that are there, by task.

    Raises:
        UserError: a receipt belongs to another plan, or speaks of what is no object of a run.
    """
    files = [paths.receipt_file(run, stage, task) for task in range(plan.tasks(stage))]
    for task, (path, content) in enumerate(zip(files, read_each(files), strict=True)):
        receipt = record(content, Receipt)
        if receipt is None or (receipt.stage, receipt.task) != (stage, task):
            continue  # not written, torn by a failing disk, or another task's: this one runs again
        if strange := [key for key in receipt.checksums if not _KEY.fullmatch(key)]:
            raise UserError(f"{path} speaks of {strange[0][:80]!r}, which is no object of a run; remove this receipt")
        if receipt.fingerprint != plan.task_fingerprint(stage, task):
            raise UserError(f"{path} belongs to another plan; the run folder mixes two runs. Use a new run folder.")
        yield receipt


def forget_receipts(run: Location, stage: Stage) -> None:
    """Have every task of a stage run again.

    Raises:
        UserError: the disk refuses.
    """
    remove_folder(paths.receipts_folder(run, stage))


def missing_tasks(run: Location, plan: Plan, stage: Stage) -> list[int]:
    """The tasks of a stage that have no receipt yet."""
    done = {receipt.task for receipt in read_receipts(run, plan, stage)}
    return [task for task in range(plan.tasks(stage)) if task not in done]


def require_complete(run: Location, plan: Plan, stage: Stage) -> None:
    """Refuse to go on while a stage has tasks without receipt.

    Raises:
        UserError: names the first of them and the command that runs them.
    """
    if missing := missing_tasks(run, plan, stage):
        first = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        command = "extract" if stage == "extract" else "score"
        raise UserError(
            f"{run}: {len(missing)} of {plan.tasks(stage)} {stage} tasks are not done ({first}); "
            f"run `expertmine {command} {run}`"
        )


def read_workers(run: Location) -> list[WorkerState]:
    """What every worker of the run last said, the latest first."""
    return sorted(read_records(paths.workers_folder(run), WorkerState), key=lambda state: -state.since)


def write_failures(run: Location, failures: Sequence[Failure]) -> None:
    """Keep a report of each task that was given up.

    Raises:
        UserError: the disk is full or refuses.
    """
    for failure in failures:
        write_json(paths.failure_file(run, failure.stage, failure.task), asdict(failure))


def read_failures(run: Location, stage: Stage) -> list[Failure]:
    """The tasks of a stage that were given up and not done since."""
    return read_records(paths.failures_folder(run, stage), Failure)


def read_records(folder: Location, kind: type[Read]) -> list[Read]:
    """Every record of a folder that is whole, in order of names."""
    files = [path for path in children(folder) if path.name.endswith(".json") and not path.name.startswith(".")]
    found = [record(content, kind) for content in read_each(files)]
    return [each for each in found if each is not None]


def now() -> float:
    """Seconds since 1970, UTC, to the millisecond."""
    return round(time.time(), 3)
