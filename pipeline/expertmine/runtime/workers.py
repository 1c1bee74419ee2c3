"""The worker's side of a runtime, in whichever process it is: workers are made when needed, and raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from expertmine.runtime.outcomes import Trouble, trouble_with_task, trouble_with_worker

Worker = TypeVar("Worker")
Task = TypeVar("Task")
Result = TypeVar("Result")


class LazyWorker(Generic[Worker]):
    """A worker that is made when it is first asked for, by whichever thread; again if that failed."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self.make_worker = make_worker
        self.worker: Worker | None = None
        self._making = Lock()

    def get(self) -> Worker | Trouble:
        try:
            with self._making:
                if self.worker is None:
                    self.worker = self.make_worker()
                return self.worker
        except Exception as error:
            return trouble_with_worker(error)


def attempt(lazy: LazyWorker[Callable[[Task], Result]], task: Task) -> Result | Trouble:
    """Try a task once; what it raises is returned."""
    worker = lazy.get()
    if isinstance(worker, Trouble):
        return worker
    try:
        return worker(task)
    except Exception as error:
        return trouble_with_task(error)
