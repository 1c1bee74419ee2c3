"""Tasks of an evaluation: run here or on Ray actors, each kept in a file of its own when it is done.

What is kept is found again by a hash of all that decides it, so that an evaluation that was stopped goes on, and a
longer one takes over what a shorter one has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol

from expertmine.errors import UserError
from expertmine.runtime import serial
from expertmine.runtime.failures import Failed
from expertmine.storage.files import children, read_json, write_json
from expertmine.storage.locations import Location
from expertmine.telemetry.progress import track

Executor = Literal["serial", "ray"]


class Task(Protocol):
    """A frozen dataclass that says what is to be done."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A task on its way to a worker."""

    task: Any
    key: str


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a worker makes of it, as JSON has it."""

    key: str
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where tasks run."""

    executor: Executor = "serial"
    address: str | None = None
    """Of a running Ray cluster; None starts a local one that ends with the evaluation."""
    workers: int | None = None
    """Actors; None for as many as the machine or cluster has CPUs, or GPUs where it has some."""


def key_of(settings: Mapping[str, Any], task: Task) -> str:
    """A hash of all that decides what a task finds."""
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
    """What each task finds, in order; those that are done already are not done again.

    Raises:
        UserError: a worker could not be made, or a task failed; what is done is kept.
    """
    keys = [key_of(settings, task) for task in tasks]
    there = {path.name.removesuffix(".json") for path in children(folder / "tasks")}
    missing = {key: TaskRequest(task, key) for key, task in zip(keys, tasks, strict=True) if key not in there}
    if missing:
        done = len(tasks) - sum(key in missing for key in keys)
        for answer in track(_run(make_worker, list(missing.values()), runtime), label, done + len(missing), done):
            if isinstance(answer, Failed):
                raise UserError(f"{answer.reason}; what is done is kept, and the same command goes on from there")
            write_json(_path(folder, answer.key), answer.document)
    return [read_json(_path(folder, key), "what a task of an evaluation has found") for key in keys]


def _path(folder: Location, key: str) -> Location:
    return folder / "tasks" / f"{key}.json"


def _run(
    make_worker: Callable[[], Callable[[TaskRequest], TaskResult]], request: Sequence[TaskRequest], runtime: Runtime
) -> Iterator[TaskResult | Failed]:
    if runtime.executor == "serial":
        yield from serial.run(make_worker, request)
        return
    from expertmine.runtime import ray

    with ray.cluster(runtime.address, None if runtime.address else (runtime.workers or os.cpu_count())):
        gpus_each = 1.0 if ray.gpus() else 0.0
        actors = runtime.workers or max(1, ray.gpus() or ray.cpus())
        yield from ray.run(make_worker, request, min(actors, len(request)), cpus_each=1, gpus_each=gpus_each)
