"""What a run has done: one receipt for each finished task.

A task is finished when its receipt is there, never because a folder or a chunk is. Receipts are written last, by
temporary file and rename; those of another plan are refused; a torn one counts as not written. Beside them, for people
to read, are the state of each worker and a report of each task that failed.
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

from expertmine.errors import StageError, UserError
from expertmine.run import paths
from expertmine.run.open_run import OpenRun, open_run
from expertmine.runtime.events import process_name
from expertmine.specs.plan import Stage
from expertmine.storage.files import (
    children,
    read_each,
    remove,
    remove_folder,
    single_attempt,
    write_atomically,
    write_json,
)
from expertmine.storage.locations import Location, is_remote
from expertmine.storage.untrusted import record

Read = TypeVar("Read")

REPORT_INTERVAL = 10.0
"""Seconds between two reports of a worker's state to an object store."""
_reported: dict[str, float] = {}

_KEY = re.compile(r"[a-z_]+(/[a-z0-9_]+)+(\.parquet)?")
"""Keys of objects in the store, and of tables beside it; nothing else is read by the keys of a receipt."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a task is finished."""

    stage: Stage
    task: int
    fingerprint: str
    """The fingerprint that the plan has for this task, see `expertmine.specs.plan.Plan.task_fingerprint`."""
    checksums: dict[str, str]
    """SHA-256 of each object in the store that the task wrote, by its key."""
    seconds: float
    """From the task's begin to its end, waiting for others in the same process included."""
    finished: float
    """When, in seconds since 1970, UTC."""
    worker: str
    """Machine and process that ran it."""
    platform: str
    """Kind of processor and versions of the libraries: the last bits of a result depend on them."""
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker was doing when it last reported."""

    stage: Stage
    machine: str
    process: int
    platform: str
    since: float
    """When it began that, in seconds since 1970, UTC."""
    doing: str
    """Such as ``scoring 3``, or ``waiting`` for more."""
    tasks: int
    """Finished by this worker so far."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that was given up in the last attempt to run its stage."""

    stage: Stage
    task: int
    reason: str
    attempts: int
    sentences: list[str]
    """The sentences of a partition that could not be extracted."""


def worker_name() -> str:
    """This process, as receipts name it."""
    return process_name()


def report_worker(run: Location, stage: Stage, platform: str, doing: str, tasks: int) -> None:
    """Report what this process is doing. Nothing depends on it: a report that cannot be written is left out."""
    state = WorkerState(stage, socket.gethostname(), os.getpid(), platform, now(), doing, tasks)
    path = paths.worker_file(run, stage, worker_name())
    text = json.dumps(asdict(state))
    if is_remote(path):
        _report_to_store(path, text)
        return
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        temporary.replace(path)


def _report_to_store(path: Location, text: str) -> None:
    """The same on an object store, where work waits for each request: at most one report per interval."""
    if time.monotonic() - _reported.get(str(path), -REPORT_INTERVAL) >= REPORT_INTERVAL:
        _reported[str(path)] = time.monotonic()
        with suppress(UserError), single_attempt():
            write_atomically(path, text.encode())


def finish_task(
    run: OpenRun,
    stage: Stage,
    task: int,
    checksums: dict[str, str],
    counts: dict[str, int],
    *,
    started: float,
    platform: str,
) -> Receipt:
    """Write the receipt of a task that this process has finished.

    Args:
        checksums: SHA-256 of each object that the task wrote, by its key.
        started: when the task began, by `time.perf_counter`.
        platform: see `Receipt.platform`.

    Raises:
        UserError: the disk is full or refuses.
        StageError: the run was planned again while the task ran.
    """
    receipt = Receipt(
        stage=stage,
        task=task,
        fingerprint=run.plan.task_fingerprint(stage, task),
        checksums=checksums,
        seconds=round(time.perf_counter() - started, 3),
        finished=now(),
        worker=worker_name(),
        platform=platform,
        counts=counts,
    )
    write_receipt(run, receipt)
    return receipt


def write_receipt(run: OpenRun, receipt: Receipt) -> None:
    """Make a task finished, and forget its earlier failure, if there was one.

    Reads the plan from the disk again: a receipt must never vouch for a plan that was replaced while the task ran.

    Raises:
        UserError: the disk is full or refuses.
        StageError: the run was planned again while the task ran.
    """
    if open_run(run.path).plan.task_fingerprint(receipt.stage, receipt.task) != receipt.fingerprint:
        raise StageError(f"{run} was planned again while this task ran; its results are not kept")
    write_json(paths.receipt_file(run.path, receipt.stage, receipt.task), asdict(receipt))
    remove(paths.failure_file(run.path, receipt.stage, receipt.task))


def read_receipts(run: OpenRun, stage: Stage) -> Iterator[Receipt]:
    """The receipts of a stage, in order of tasks.

    Raises:
        UserError: a receipt belongs to another plan, or names an object that no run has.
    """
    files = [paths.receipt_file(run.path, stage, task) for task in range(run.plan.tasks(stage))]
    for task, (path, content) in enumerate(zip(files, read_each(files), strict=True)):
        receipt = record(content, Receipt)
        if receipt is None or (receipt.stage, receipt.task) != (stage, task):
            continue  # missing, torn by a failing disk, or of another task: this one runs again
        if strange := [key for key in receipt.checksums if not _KEY.fullmatch(key)]:
            raise UserError(f"{path} names {strange[0][:80]!r}, which is no object of a run; remove this receipt")
        if receipt.fingerprint != run.plan.task_fingerprint(stage, task):
            raise UserError(f"{path} belongs to another plan; the run folder mixes two runs. Use a new run folder.")
        yield receipt


def forget_receipts(run: Location, stage: Stage) -> None:
    """Have every task of a stage run again.

    Raises:
        UserError: the disk refuses.
    """
    remove_folder(paths.receipts_folder(run, stage))


def missing_tasks(run: OpenRun, stage: Stage) -> list[int]:
    """The tasks of a stage that have no receipt yet."""
    done = {receipt.task for receipt in read_receipts(run, stage)}
    return [task for task in range(run.plan.tasks(stage)) if task not in done]


def require_complete(run: OpenRun, stage: Stage) -> None:
    """Refuse to go on while a stage has tasks without a receipt.

    Raises:
        UserError: names the first of them and the command that runs them.
    """
    if missing := missing_tasks(run, stage):
        first = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        command = "extract" if stage == "extract" else "score"
        raise UserError(
            f"{run}: {len(missing)} of {run.plan.tasks(stage)} {stage} tasks are not done ({first}); "
            f"run `expertmine {command} {run}`"
        )


def read_workers(run: Location) -> list[WorkerState]:
    """The last report of every worker of the run, the latest first."""
    return sorted(read_records(paths.workers_folder(run), WorkerState), key=lambda state: -state.since)


def write_failures(run: Location, failures: Sequence[Failure]) -> None:
    """Write a report of each task that was given up.

    Raises:
        UserError: the disk is full or refuses.
    """
    for failure in failures:
        write_json(paths.failure_file(run, failure.stage, failure.task), asdict(failure))


def read_failures(run: Location, stage: Stage) -> list[Failure]:
    """The tasks of a stage that were given up and are still unfinished."""
    return read_records(paths.failures_folder(run, stage), Failure)


def read_records(folder: Location, kind: type[Read]) -> list[Read]:
    """Every whole record of a folder, in order of names."""
    files = [path for path in children(folder) if path.name.endswith(".json") and not path.name.startswith(".")]
    found = [record(content, kind) for content in read_each(files)]
    return [each for each in found if each is not None]


def now() -> float:
    """Seconds since 1970, UTC, to the millisecond."""
    return round(time.time(), 3)
