"""How a task ends, on every runtime: by its result, given up (`Failed`), or with the whole stage. Decided here alone.

| an attempt meets | what follows |
|---|---|
| a UserError of the task | the task is given up at once: it would fail again |
| a StageError of the task | the stage is over: every other task would meet the same |
| another exception of the task | tried again when untried tasks are done, given up after `ATTEMPTS` attempts |
| a UserError while the worker is made | the stage is over |
| another exception while the worker is made | tried again; the stage is over after `ATTEMPTS` attempts |
| the loss of its worker | tried again; given up when that has happened too often |

KeyboardInterrupt and SystemExit are none of these: they end the process that they were raised in.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from expertmine.errors import StageError, UserError
from expertmine.runtime.events import process_name

Task = TypeVar("Task")

ATTEMPTS = 3
"""How often a task is tried that meets an exception which may pass, or whose worker dies."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A task that was given up."""

    task: Any
    reason: str
    attempts: int = 1
    worker: str = field(default="", compare=False)
    """The last to have it: machine and process, or an address; empty where that is not known."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong in one attempt at a task. Workers return it in place of a result.

    Nothing is raised through Ray or Dask: they print the traceback, and the exceptions of a task could be taken for
    those of the cluster.
    """

    reason: str
    worker: str
    """Machine and process, or an address."""
    may_pass: bool
    """Another attempt may succeed."""
    ends_stage: bool
    """Every task would meet the same: if it does not pass, the stage is over."""


@dataclass(eq=False, slots=True)
class Assignment(Generic[Task]):
    """A task on its way through a runtime."""

    task: Task
    attempts: int = 0
    """Those that failed."""
    without_worker: int = 0
    """How often the worker for it could not be made, which is not its fault."""


def trouble_with_task(error: Exception) -> Trouble:
    """Classify an exception that a task has raised."""
    if isinstance(error, UserError):
        return Trouble(str(error), process_name(), may_pass=False, ends_stage=isinstance(error, StageError))
    return Trouble(_located(error), process_name(), may_pass=True, ends_stage=False)


def trouble_with_worker(error: Exception) -> Trouble:
    """Classify an exception that was raised while a worker was made, or brought to its process."""
    if isinstance(error, UserError):
        return Trouble(str(error), process_name(), may_pass=False, ends_stage=True)
    return Trouble(_located(error), process_name(), may_pass=True, ends_stage=True)


def loss_of_worker(reason: str, worker: str) -> Trouble:
    """The trouble of the tasks that a worker had when it died."""
    return Trouble(f"its process was lost: {reason}", worker, may_pass=True, ends_stage=False)


class Attempts:
    """The failed attempts of one `run`: what follows from each, and whether anything succeeds at all.

    Otherwise a defect or a lost file system would be met three times by each of thousands of tasks.
    """

    def __init__(self) -> None:
        self.failed_in_a_row = 0

    def succeeded(self) -> None:
        """A task has its result."""
        self.failed_in_a_row = 0

    def failed(
        self, assignment: Assignment[Any] | None, trouble: Trouble, workers: int, untried: bool
    ) -> Failed | None:
        """Count a failed attempt; returns None if there is to be another.

        Args:
            assignment: the task; None where several were with the same worker, and any may be the cause.
            workers: how many tasks may be tried at the same time.
            untried: there are other tasks yet, that were not tried.

        Raises:
            StageError: the stage is over.
        """
        if not trouble.may_pass:
            self.failed_in_a_row = 0
        else:
            self.failed_in_a_row += 1
            if untried and self.failed_in_a_row > ATTEMPTS * (workers + 1):
                raise StageError(
                    f"{self.failed_in_a_row} attempts in a row failed and no task was finished meanwhile "
                    f"({trouble.reason}); finished tasks are kept: fix the cause (memory, most often) and rerun the "
                    "command"
                )
        if assignment is None:
            return None
        if trouble.ends_stage:
            assignment.without_worker += 1
            if trouble.may_pass and assignment.without_worker < ATTEMPTS:
                return None
            raise StageError(trouble.reason)
        assignment.attempts += 1
        if trouble.may_pass and assignment.attempts < ATTEMPTS:
            return None
        return Failed(assignment.task, trouble.reason, assignment.attempts, trouble.worker)


def _located(error: Exception) -> str:
    """An exception in words, with the line that raised it."""
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({where[-1].filename}, line {where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}{place}"
