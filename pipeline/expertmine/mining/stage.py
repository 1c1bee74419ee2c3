"""What the four stages have in common: each is three steps, which `expertmine.mining.mine` drives in a row.

*Plan* lists the numbers of the unfinished tasks. *Run one task* is what a worker does: told only the open run and the
task's number, it writes the task's results, the same bytes however often it runs. *Finish* checks that every result is
there, and names those that are missing. The modules `extract`, `score`, `assess` and `reduce` are stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from expertmine.run.open_run import OpenRun
from expertmine.specs.settings import DEFAULT_TOP_K

Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told beside the run; each stage reads its own."""

    device: str | None = None
    """Extraction: a GPU when there is one, unless given; ``split`` spreads the model over all that are there."""
    memory: int | None = None
    """Scoring and assessment: bytes that a process may hold; None for what a block takes, as it was planned."""
    threads: int = 1
    """Scoring and assessment: tasks that a process runs at a time."""
    top_k: int = DEFAULT_TOP_K
    """Reduction: experts to keep per concept."""


class StageSteps(Protocol[Result]):
    """A stage; a module with these functions is one."""

    def plan(self, run: OpenRun) -> list[int]:
        """Prepare the stage and list its unfinished tasks.

        Raises:
            UserError: the stage before is not complete.
        """

    def new_worker(self, run: OpenRun, options: WorkerOptions) -> Callable[[], Callable[[int], Result]]:
        """What makes a worker on the machine where it is called; the worker runs one task per call. Can be pickled."""

    def finish(self, run: OpenRun) -> None:
        """Check that every task is finished.

        Raises:
            UserError: names those that are not.
        """
