"""Run tasks in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from expertmine.runtime.cluster import WorkerNeeds
from expertmine.runtime.events import EventHandler, Queue, Retried, ignore
from expertmine.runtime.outcomes import Assignment, Attempts, Failed, Trouble
from expertmine.runtime.workers import LazyWorker, attempt
from expertmine.telemetry import metrics
from expertmine.telemetry.metrics import Record

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SerialExecutor:
    """This process, with one worker.

    With one task in flight, it runs in the caller's thread when the next result is asked for. With more, each has a
    thread; if the caller leaves early, the worker's method `stop` is called, where there is one, since threads cannot
    be ended from outside.
    """

    in_flight: int = 1
    cpus_each: int = 1
    gpus_each: float | None = None
    metrics: tuple[str, ...] = ()
    dashboard: str | None = None

    def recorder(self, tags: Mapping[str, str]) -> Record:
        return metrics.recorder(tags)

    def run(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        on_event: EventHandler = ignore,
    ) -> Generator[Result | Failed]:
        """As `Executor.run`; the worker is made when there is a task for it, in the caller's thread."""
        queue = deque(Assignment(task) for task in tasks)
        if not queue:
            return
        worker, attempts, unfinished = LazyWorker(make_worker), Attempts(), len(queue)
        while isinstance(trouble := worker.get(), Trouble):
            attempts.failed(queue[0], trouble, self.in_flight, untried=True)  # raises in the end
            on_event(Retried(queue[0].task, trouble.worker, trouble.reason))
        answers: Generator[tuple[Assignment[Task], Any]] = (
            _in_turn(worker, queue) if self.in_flight == 1 else _in_threads(worker, queue, self.in_flight)
        )
        with closing(answers):  # at once, also when the stage is over: threads must not go on
            for assignment, answer in answers:
                if isinstance(answer, Trouble):
                    untried = any(each.attempts == 0 for each in queue)
                    failed = attempts.failed(assignment, answer, self.in_flight, untried)
                    if failed is None:
                        on_event(Retried(assignment.task, answer.worker, answer.reason))
                        queue.append(assignment)
                        continue
                    yield failed
                else:
                    attempts.succeeded()
                    yield answer
                unfinished -= 1
                running = min(unfinished - len(queue), self.in_flight)
                on_event(Queue(unfinished - running, running))


def _in_turn(
    worker: LazyWorker[Callable[[Task], Result]], queue: deque[Assignment[Task]]
) -> Generator[tuple[Assignment[Task], Result | Trouble]]:
    """Each attempt's answer, in the caller's thread."""
    while queue:
        assignment = queue.popleft()
        answer = attempt(worker, assignment.task)
        yield assignment, answer


def _in_threads(
    worker: LazyWorker[Callable[[Task], Result]], queue: deque[Assignment[Task]], in_flight: int
) -> Generator[tuple[Assignment[Task], Result | Trouble]]:
    """Each attempt's answer as it comes, from several threads; the caller may add to the queue."""
    running: dict[Future[Result | Trouble], Assignment[Task]] = {}

    def fill() -> None:
        while queue and len(running) < in_flight:
            assignment = queue.popleft()
            running[threads.submit(attempt, worker, assignment.task)] = assignment

    with ThreadPoolExecutor(in_flight) as threads:
        try:
            fill()
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                answers = [(running.pop(future), future.result()) for future in done]
                fill()
                yield from answers
                fill()
        finally:
            stop = getattr(worker.worker, "stop", None)
            if running and stop is not None:
                stop()
            threads.shutdown(cancel_futures=True)


@contextmanager
def opened(needs: WorkerNeeds) -> Iterator[SerialExecutor]:
    """While open, this process as a runtime. It uses what GPUs there are, unknown to the caller."""
    yield SerialExecutor(needs.in_flight, needs.cpus, None if needs.gpus else 0.0)
