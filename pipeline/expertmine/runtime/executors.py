"""Opens a runtime by its name. Ray and Dask are imported only if they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from expertmine.errors import UserError
from expertmine.runtime import serial
from expertmine.runtime.cluster import Cluster, ExecutorName, WorkerNeeds
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.protocol import Executor

Request = TypeVar("Request")
Result = TypeVar("Result")


def open_executor(
    name: ExecutorName, cluster: Cluster, needs: WorkerNeeds, tasks: int
) -> AbstractContextManager[Executor]:
    """While open, a runtime for so many tasks; a cluster that it has started ends with the context.

    Raises:
        UserError: the cluster cannot be reached or started.
    """
    if name == "serial":
        return serial.opened(needs)
    if name == "dask":
        from expertmine.runtime import dask

        return dask.opened(cluster, tasks)
    from expertmine.runtime import ray

    return ray.opened(cluster, needs, tasks)


def run_in_order(
    executor: Executor, make_worker: Callable[[], Callable[[Request], Result]], requests: Sequence[Request]
) -> Iterator[Result]:
    """The result of each request, in the order of the requests, as soon as those before it have come.

    Raises:
        UserError: a request was given up, or the stage is over.
    """
    make = _MakeNumbering(make_worker, requests)
    early: dict[int, Result] = {}
    due = 0
    with closing(executor.run(make, range(len(requests)))) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise UserError(outcome.reason)
            at, result = outcome
            early[at] = result
            while due in early:
                yield early.pop(due)
                due += 1


@dataclass(frozen=True, slots=True)
class _MakeNumbering(Generic[Request, Result]):
    """Makes workers that are told a request's number, and return it beside the result."""

    make_worker: Callable[[], Callable[[Request], Result]]
    requests: Sequence[Request]

    def __call__(self) -> Callable[[int], tuple[int, Result]]:
        worker, requests = self.make_worker(), self.requests
        return lambda at: (at, worker(requests[at]))
