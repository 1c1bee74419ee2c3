"""Runs the tasks of an evaluation, here or on Ray actors, and saves each result in its own file.

A file is named by a hash of everything that decides the result, so an evaluation that was stopped can resume, and a
longer one reuses the results of a shorter one. Knows nothing of what a task measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster, ModelExecutorName, WorkerNeeds
from expertmine.runtime.executors import open_executor
from expertmine.runtime.outcomes import Failed
from expertmine.storage.files import children, read_json, write_json
from expertmine.storage.locations import Location
from expertmine.telemetry.progress import track


class Task(Protocol):
    """A frozen dataclass that describes the work."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A task as sent to a worker."""

    task: Any
    key: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A worker's result, in JSON types."""

    key: str
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where tasks run."""

    executor: ModelExecutorName = "serial"
    address: str | None = None
    """Address of a running Ray cluster; None starts a local one that ends with the evaluation."""
    workers: int | None = None
    """Number of actors; None for one per GPU of the machine or cluster, or per CPU if it has no GPU."""


def key_of(settings: Mapping[str, Any], task: Task) -> str:
    """A hash of everything that decides a task's result."""
    text = json.dumps({"settings": settings, "task": asdict(task)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run_tasks(
    folder: Location,
    settings: Mapping[str, Any],
    make_worker: Callable[[], Callable[[TaskRequest], TaskResult]],
    tasks: Sequence[Task],
    runtime: Runtime,
    label: str,
) -> list[dict[str, Any]]:
    """The result of each task, in order; finished tasks do not run again.

    Raises:
        UserError: a worker could not start, or a task failed; finished tasks are kept.
    """
    keys = [key_of(settings, task) for task in tasks]
    there = {path.name.removesuffix(".json") for path in children(folder / "tasks")}
    missing = {key: TaskRequest(task, key) for key, task in zip(keys, tasks, strict=True) if key not in there}
    if missing:
        done = len(tasks) - sum(key in missing for key in keys)
        for result in track(_run(make_worker, list(missing.values()), runtime), label, done + len(missing), done):
            if isinstance(result, Failed):
                raise UserError(f"{result.reason}; finished tasks are kept: fix the cause and run the command again")
            write_json(_path(folder, result.key), result.document)
    return [read_json(_path(folder, key), "the result of an evaluation's task") for key in keys]


def _path(folder: Location, key: str) -> Location:
    return folder / "tasks" / f"{key}.json"


def _run(
    make_worker: Callable[[], Callable[[TaskRequest], TaskResult]], requests: Sequence[TaskRequest], runtime: Runtime
) -> Iterator[TaskResult | Failed]:
    where = Cluster(runtime.address, runtime.workers)
    with open_executor(runtime.executor, where, WorkerNeeds(gpus=True), len(requests)) as executor:
        yield from executor.run(make_worker, requests)
