"""Run tasks in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Generic, TypeVar

from expertmine.errors import StageError, UserError
from expertmine.runtime.events import Queue, Tell, nobody, process_name
from expertmine.runtime.failures import Failed

Task = TypeVar("Task")
Result = TypeVar("Result")


def run(
    make_worker: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], in_flight: int = 1, tell: Tell = nobody
) -> Iterator[Result | Failed]:
    """Results as they come, and what was given up; the worker is made when there is a task for it.

    Args:
        in_flight: tasks that the worker is given at once, in threads; it must bear that. When the caller leaves
            early, a worker that has a method `stop` is told so, since threads cannot be ended from outside.

    Raises:
        UserError: the worker could not be made, or its trouble is every task's.
    """
    if not tasks:
        return
    worker = _Worker(make_worker())
    waiting = iter(tasks)
    running: set[Future[Result | Failed]] = set()
    unfinished = len(tasks)
    with ThreadPoolExecutor(in_flight) as threads:
        try:
            while running or (running := {threads.submit(worker, task) for task in islice(waiting, in_flight)}):
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {threads.submit(worker, task) for task in islice(waiting, len(done))}
                for future in done:
                    unfinished -= 1
                    yield future.result()
                tell(Queue(unfinished - len(running), len(running)))
        finally:
            stop = getattr(worker.worker, "stop", None)
            if running and stop is not None:
                stop()
            threads.shutdown(cancel_futures=True)


class _Worker(Generic[Task, Result]):
    """A worker whose bad input is a failed task."""

    def __init__(self, worker: Callable[[Task], Result]) -> None:
        self.worker = worker

    def __call__(self, task: Task) -> Result | Failed:
        try:
            return self.worker(task)
        except StageError:
            raise
        except UserError as error:
            return Failed(task, str(error), worker=process_name())
