"""Run tasks on Dask workers: what each attempt gave, and what happens to the workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Generic, TypeVar
from uuid import uuid4

from distributed import Client, Future, as_completed, get_worker
from distributed.scheduler import KilledWorker

from expertmine.errors import StageError
from expertmine.runtime.cluster import Cluster
from expertmine.runtime.dask.connection import cluster, metrics_endpoint, requiring_the_scheduler, threads
from expertmine.runtime.events import Event, EventHandler, Joined, Lost, Queue, Retried, ignore
from expertmine.runtime.outcomes import Assignment, Attempts, Failed, Trouble, loss_of_worker, trouble_with_worker
from expertmine.runtime.workers import LazyWorker, attempt
from expertmine.telemetry import metrics
from expertmine.telemetry.metrics import Record

Task = TypeVar("Task")
Result = TypeVar("Result")

_choosing = Lock()


@dataclass(frozen=True, slots=True)
class DaskExecutor:
    """The workers of a scheduler. Each process makes its worker once for a call of `run`; its threads share it."""

    client: Client
    in_flight: int = 1
    gpus_each: float | None = 0.0
    metrics: tuple[str, ...] = ()
    dashboard: str | None = None

    @property
    def cpus_each(self) -> int:
        return self.in_flight

    def recorder(self, tags: Mapping[str, str]) -> Record:
        return metrics.recorder(tags)

    def run(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        on_event: EventHandler = ignore,
    ) -> Generator[Result | Failed]:
        """As `Executor.run`.

        A task whose worker died while others were unfinished is tried again alone: any of them may be the cause. A
        running scheduler first retries it as often as it is configured to.
        """
        if not tasks:
            return
        call, attempts, unfinished = _Call(self.client, make_worker, tasks), Attempts(), len(tasks)
        try:
            call.begin()
            for assignment, answer in call.answers():
                if isinstance(answer, Trouble):
                    failed = attempts.failed(assignment, answer, call.workers.max_threads, bool(call.untried))
                    if assignment is None:
                        continue
                    if failed is None:
                        on_event(Retried(assignment.task, answer.worker, answer.reason))
                        call.submit(assignment)
                        continue
                    yield failed
                else:
                    attempts.succeeded()
                    yield answer
                unfinished -= 1
                for event in call.workers.news():
                    on_event(event)
                on_event(call.workers.queue(unfinished))
        finally:
            call.end()


@contextmanager
def opened(where: Cluster, tasks: int) -> Iterator[DaskExecutor]:
    """While open, workers for so many tasks, of a running scheduler or of one that ends with the context.

    Raises:
        UserError: as `cluster`.
    """
    with cluster(where.address, min(where.workers or os.cpu_count() or 1, tasks)) as client:
        endpoints = () if where.address else (metrics_endpoint(client),)
        yield DaskExecutor(client, threads(client), metrics=endpoints, dashboard=client.dashboard_link)


class _Call(Generic[Task, Result]):
    """One call of `run`, as the scheduler has it: each attempt at a task is a future."""

    def __init__(
        self, client: Client, make_worker: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task]
    ) -> None:
        self.client = client
        self.make_worker = make_worker
        self.name = uuid4().hex
        self.assigned = {f"task-{self.name}-{at}": Assignment(task) for at, task in enumerate(tasks)}
        """By the key of their future."""
        self.untried = set(self.assigned)
        """Keys of the first attempts that have no answer yet."""
        self.deaths: set[str] = set()
        """Workers that died; by their ids, since another may have the same address."""
        self.futures: dict[str, Future[Any]] = {}
        """Those without an answer yet, by their keys."""
        self.suspects: deque[Assignment[Task]] = deque()
        """Tasks whose worker died; tried alone when the others are finished."""
        self.completed = as_completed(loop=client.loop)
        self.workers = _Workers(client, self.assigned)

    def begin(self) -> None:
        """Submit every task.

        Raises:
            UserError: the scheduler was lost; likewise in the other methods.
        """
        tasks = [assignment.task for assignment in self.assigned.values()]
        sent: dict[str, Any] = {"make_worker": self.make_worker, "call": self.name}
        self.workers.threads()  # before any of them dies
        with requiring_the_scheduler():
            self._follow(self.client.map(_attempt, tasks, pure=False, key=[*self.assigned], **sent))

    def submit(self, assignment: Assignment[Task]) -> None:
        """Have a task tried again, after those that were not tried."""
        key = f"task-{uuid4().hex}"
        self.assigned[key] = assignment
        sent: dict[str, Any] = {"make_worker": self.make_worker, "call": self.name}
        with requiring_the_scheduler():
            self._follow([self.client.submit(_attempt, assignment.task, pure=False, key=key, priority=-1, **sent)])

    def _follow(self, futures: Sequence[Future[Any]]) -> None:
        self.futures |= {str(future.key): future for future in futures}
        self.completed.update(futures)

    def answers(self) -> Iterator[tuple[Assignment[Task], Result | Trouble] | tuple[None, Trouble]]:
        """Each attempt's answer as it comes; without a task, the death of a worker that had several."""
        while self.futures or self.suspects:
            if not self.futures:
                self.submit(self.suspects.popleft())
            alone = len(self.futures) == 1
            with requiring_the_scheduler():
                # What has completed together is fetched together: a round trip for each result would take longer than
                # a small task.
                batch = self._completed_together()
                fetched = self._fetched({str(future.key): future for future in batch if future.status == "finished"})
            for future in batch:
                key = str(future.key)
                assignment = self.assigned[key]
                self.untried.discard(key)
                answer = fetched[key] if key in fetched else self._answer(future)
                del self.futures[key]
                future.release()
                if not isinstance(answer, KilledWorker):
                    yield assignment, answer
                    continue
                dead = answer.last_worker
                trouble = loss_of_worker(str(answer), dead.address)
                if alone:
                    assignment.attempts += answer.allowed_failures
                    yield assignment, trouble
                    continue
                self.suspects.append(assignment)
                if dead.server_id not in self.deaths:
                    self.deaths.add(dead.server_id)
                    yield None, trouble

    def _completed_together(self) -> list[Future[Any]]:
        """The next futures that have an answer, at least one.

        Raises:
            StageError: no worker is left to give one.
        """
        while not (batch := self.completed.next_batch(block=False)):
            with self.completed.thread_condition:
                self.completed.thread_condition.wait(timeout=LOOK_INTERVAL)
            self.workers.require_any()
        return list(batch)

    def _fetched(self, finished: dict[str, Future[Any]]) -> dict[str, Any]:
        """The answers of finished futures; one whose worker died since is computed again.

        Raises:
            StageError: no worker is left to do so.
        """

        loop: Any = self.client.loop  # always one of asyncio's, which its type does not say
        gathering = self.client.gather(finished, errors="skip", asynchronous=True)
        fetching = asyncio.run_coroutine_threadsafe(gathering, loop.asyncio_loop)
        try:
            while not wait([fetching], timeout=LOOK_INTERVAL).done:
                self.workers.require_any()
            return dict(fetching.result())
        finally:
            fetching.cancel()

    def _answer(self, future: Future[Any]) -> Any:
        """The answer of a future that may have failed; a KilledWorker if the scheduler has given it up."""
        with requiring_the_scheduler():
            try:
                return future.result()
            except KilledWorker as error:
                return error
            except Exception as error:
                if future.status != "error":
                    raise  # the scheduler's, or the connection's
                return trouble_with_worker(error)  # the task cannot be read there, or its result not be sent

    def end(self) -> None:
        """Cancel what is left."""
        if self.client.status == "running":
            self.workers.ignore()
            self.client.cancel(list(self.futures.values()))


LOOK_INTERVAL = 0.1
"""Seconds between looks at whether there are workers to wait for."""
THREADS_INTERVAL = 5.0
"""Seconds between looks at how many tasks the workers take at a time."""
ABSENCE = 60.0
"""Seconds that a cluster of our own may be without any worker; one is started again within seconds."""


class _Workers:
    """What a scheduler reports of its workers during a call of `run`."""

    def __init__(self, client: Client, assigned: Mapping[str, Assignment[Any]]) -> None:
        self.client = client
        self.assigned = assigned
        self.messages: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.looked = -THREADS_INTERVAL
        self.found = 0
        self.absent_since: float | None = None
        self.max_threads = 0
        """The most threads that were found: workers that die together do not count as fewer."""
        client.subscribe_topic("all", lambda event: self.messages.put(event[1]))

    def news(self) -> Iterator[Event]:
        """What was reported since the last call."""
        with suppress(Empty):
            while True:
                yield from self._events_of(self.messages.get_nowait())

    def _events_of(self, message: dict[str, Any]) -> Iterator[Event]:
        if message.get("action") == "add-worker":
            yield Joined(message["worker"])
        if message.get("action") == "remove-worker" and not message["expected"]:
            keys = message["processing-tasks"]
            tasks = [self.assigned[key].task for key in keys if key in self.assigned]
            yield Lost(message["worker"], "the scheduler lost it", tuple(tasks))
            for task in tasks:
                yield Retried(task, message["worker"], "the scheduler lost it")

    def threads(self) -> int:
        """How many tasks the workers take at a time, as was last found."""
        if time.monotonic() - self.looked > THREADS_INTERVAL:
            with requiring_the_scheduler():
                self.found = sum(self.client.nthreads().values())
            self.max_threads = max(self.max_threads, self.found)
            self.looked = time.monotonic()
        return self.found

    def require_any(self) -> None:
        """Refuse to wait for ever for workers of a cluster of our own; whoever runs another may start some.

        Raises:
            StageError: there has been none for `ABSENCE` seconds.
        """
        if self.client.cluster is None or self.threads():
            self.absent_since = None
            return
        self.absent_since = self.absent_since or time.monotonic()
        if time.monotonic() - self.absent_since > ABSENCE:
            raise StageError(
                f"no Dask worker came back within {ABSENCE:.0f} s; finished tasks are kept: fix the cause (memory, "
                "most often) and rerun the command"
            )

    def queue(self, unfinished: int) -> Queue:
        """Workers that have enough to do have as many tasks as threads; the scheduler keeps the others."""
        in_flight = min(unfinished, self.threads())
        return Queue(unfinished - in_flight, in_flight)

    def ignore(self) -> None:
        """Listen no longer."""
        self.client.unsubscribe_topic("all")


def _attempt(task: Any, make_worker: Callable[[], Callable[[Any], Any]], call: str) -> Any:
    """Try a task with this process's worker for the call of `run`; what is raised is returned.

    One worker is kept per process, that of the latest call: a cluster may outlive many runs.
    """
    here = get_worker().__dict__
    with _choosing:
        if here.get("expertmine_call") != call:
            here["expertmine_worker"] = LazyWorker(make_worker)
            here["expertmine_call"] = call
        worker = here["expertmine_worker"]
    return attempt(worker, task)
