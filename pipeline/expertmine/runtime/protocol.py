"""What every runtime offers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, TypeVar

from expertmine.runtime.events import EventHandler, ignore
from expertmine.runtime.outcomes import Failed
from expertmine.telemetry.metrics import Record

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """An open runtime: serial, Dask or Ray."""

    @property
    def in_flight(self) -> int:
        """Tasks that a worker may have at the same time."""

    @property
    def cpus_each(self) -> int:
        """CPUs that a worker holds."""

    @property
    def gpus_each(self) -> float | None:
        """GPUs that a worker holds; None where that is not known."""

    @property
    def metrics(self) -> Sequence[str]:
        """URLs at which Prometheus finds what `recorder` keeps."""

    @property
    def dashboard(self) -> str | None:
        """The URL of the runtime's own page; None where it has none."""

    def recorder(self, tags: Mapping[str, str]) -> Record:
        """Keeps meters where Prometheus finds them, all with these tags."""

    def run(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        on_event: EventHandler = ignore,
    ) -> Generator[Result | Failed]:
        """Results in the order in which they come, and tasks that were given up.

        Whoever leaves early closes the generator; no task runs in this process afterwards.

        Args:
            make_worker: is sent to where workers live, as are the tasks.
            on_event: is called in this thread, between results.

        Raises:
            StageError: the stage is over (see outcomes.py).
            UserError: the cluster was lost.
        """
