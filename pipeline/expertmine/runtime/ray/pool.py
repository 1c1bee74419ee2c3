"""Run tasks on a pool of Ray actors. Those that die are replaced, and their tasks run again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from expertmine.errors import UserError
from expertmine.runtime.cluster import Cluster, WorkerNeeds
from expertmine.runtime.events import EventHandler, Joined, Lost, Queue, Retried, ignore
from expertmine.runtime.outcomes import Assignment, Attempts, Failed, Trouble, loss_of_worker, trouble_with_worker
from expertmine.runtime.ray.actors import Actor
from expertmine.runtime.ray.connection import cluster as connected
from expertmine.runtime.ray.connection import cpus, first_line, gpus, loss_of_actor, metrics_endpoints, recorder
from expertmine.telemetry.metrics import Record

Task = TypeVar("Task")
Result = TypeVar("Result")

QUEUE_INTERVAL = 5.0
"""Seconds after which the queue is reported again though nothing came: Ray drops a gauge that is not set for 20 s."""


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """A pool of actors of the connected cluster.

    An actor has at most `in_flight` tasks at a time, once the cluster has found room for it. One that dies is replaced,
    wherever there is room, and so is one that met an exception which may pass: a GPU's errors may outlast their task.
    Its other tasks go to others. A task whose actor died while it had others too is tried again alone, and given up
    when it has taken `ATTEMPTS` actors with it. An actor without tasks is released, so that its CPUs and GPUs are free
    for the replacement of one whose node is lost.
    """

    actors: int
    cpus_each: int = 1
    gpus_each: float = 0.0
    in_flight: int = 1
    metrics: tuple[str, ...] = ()
    dashboard: str | None = None

    def recorder(self, tags: Mapping[str, str]) -> Record:
        return recorder(tags)

    def run(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        on_event: EventHandler = ignore,
    ) -> Generator[Result | Failed]:
        """As `Executor.run`."""
        resources = {"num_cpus": self.cpus_each, "num_gpus": self.gpus_each}
        pool = _ActorPool(make_worker, tasks, self.actors, self.in_flight, resources, on_event)
        try:
            pool.start()
            while pool.unfinished:
                yield from pool.next_outcomes()
                on_event(pool.queue())
        finally:
            pool.release()


@contextmanager
def opened(cluster: Cluster, needs: WorkerNeeds, tasks: int) -> Iterator[RayExecutor]:
    """While open, actors for so many tasks, on a running cluster or on one that ends with the context.

    Raises:
        UserError: the cluster cannot be reached or started, or has no GPU though a share of one is asked for.
    """
    own = None
    if cluster.address is None:
        workers = cluster.workers or max(1, (os.cpu_count() or 1) // needs.cpus)
        own = min(workers, max(1, tasks)) * needs.cpus
    with connected(cluster.address, own):
        gpus_each = 0.0
        if needs.gpus:
            if cluster.gpus_each and own and not gpus():
                raise UserError("--gpus-each is given and this machine has no GPU that Ray can see; leave it out")
            gpus_each = float(gpus() > 0) if cluster.gpus_each is None else cluster.gpus_each
        fitting = gpus() / gpus_each if gpus_each else cpus() // needs.cpus
        actors = cluster.workers or max(1, int(fitting))
        metrics = tuple(metrics_endpoints())
        yield RayExecutor(min(actors, tasks), needs.cpus, gpus_each, needs.in_flight, metrics)


class _ActorPool(Generic[Task, Result]):
    """The actors of one call of `run`, and the tasks that they have."""

    def __init__(
        self,
        make_worker: Callable[[], Callable[[Task], Result]],
        tasks: Sequence[Task],
        max_actors: int,
        in_flight: int,
        resources: dict[str, float],
        on_event: EventHandler,
    ) -> None:
        self.make_worker = make_worker
        self.max_actors = max_actors
        self.in_flight = in_flight
        self.on_event = on_event
        self.resources = resources
        self.waiting = deque(Assignment(task) for task in tasks)
        self.suspects: deque[Assignment[Task]] = deque()
        """Tasks whose attempt failed, or whose actor died; tried alone when the others are finished."""
        self.unfinished = len(tasks)
        self.answers: dict[Any, tuple[Any, Assignment[Task] | None]] = {}
        """By reference to an answer of Ray's, the actor that owes it and for what; None for whether it was started."""
        self.names: dict[Any, str] = {}
        """Machine and process of each actor that the cluster has found room for."""
        self.attempts = Attempts()
        self.actors = 0

    def start(self) -> None:
        """Have as many actors as may be, if there are tasks for them.

        Each is given tasks when the cluster has found room for it.
        """
        starting = sum(assignment is None for _, assignment in self.answers.values())
        needed = len(self.waiting) + len(self.suspects) - starting
        for _ in range(min(self.max_actors - self.actors, needed)):
            self._start_one()

    def _start_one(self) -> None:
        import ray

        made: Any = ray.remote(Actor).options(
            **self.resources, max_restarts=0, max_task_retries=0, max_concurrency=self.in_flight
        )
        actor = made.remote(self.make_worker)
        self.answers[actor.process.remote()] = (actor, None)
        self.actors += 1

    def queue(self) -> Queue:
        waiting = len(self.waiting) + len(self.suspects)
        return Queue(waiting, self.unfinished - waiting)

    def next_outcomes(self) -> Iterator[Result | Failed]:
        """Wait a while for one answer, and hand out more tasks."""
        import ray
        from ray.exceptions import RayTaskError

        come, _ = ray.wait(list(self.answers), num_returns=1, timeout=QUEUE_INTERVAL)
        if not come:
            return
        (reference,) = come
        actor, assignment = self.answers.pop(reference)
        try:
            answer = ray.get(reference)
        except loss_of_actor() as error:
            trouble = loss_of_worker(first_line(error), self.names.get(actor, ""))
            yield from self._replace(actor, assignment, trouble, to_blame=False)
            return
        except RayTaskError as error:  # the task cannot be read there, or its result cannot be sent
            answer = trouble_with_worker(error.cause if isinstance(error.cause, Exception) else error)
        if assignment is None:
            self.names[actor] = answer
            self.on_event(Joined(answer))
        elif not isinstance(answer, Trouble):
            self.attempts.succeeded()
            self.unfinished -= 1
            yield answer
        elif answer.may_pass:
            yield from self._replace(actor, assignment, answer, to_blame=True)
            return
        else:
            yield from self._failed(assignment, answer)
        self._occupy(actor)

    def _failed(
        self, assignment: Assignment[Task] | None, trouble: Trouble, without_task: bool = False
    ) -> Iterator[Failed]:
        """Count a failed attempt, and yield the task if it is given up.

        Args:
            without_task: an actor died before it had any. No task's attempts would bring that to an end.
        """
        untried = without_task or bool(self.waiting)
        failed = self.attempts.failed(assignment, trouble, self.actors, untried)
        if failed is not None:
            self.unfinished -= 1
            yield failed

    def _replace(
        self, actor: Any, assignment: Assignment[Task] | None, trouble: Trouble, to_blame: bool
    ) -> Iterator[Failed]:
        """Take the tasks from an actor that died or may be spoilt, and have another in its place.

        Args:
            to_blame: the trouble is of this assignment; otherwise any task that the actor had may be the cause.
        """
        import ray

        ray.kill(actor)
        lost = [] if assignment is None else [assignment]
        for reference, (owner, other) in list(self.answers.items()):
            if owner is actor:
                del self.answers[reference]
                lost += [] if other is None else [other]
        name = self.names.pop(actor, "")
        self.on_event(Lost(name, trouble.reason, tuple(each.task for each in lost)))
        cause = assignment if to_blame else lost[0] if len(lost) == 1 else None
        for failed in self._failed(cause, trouble, without_task=not lost):
            yield failed
            lost = [each for each in lost if each is not cause]
        for each in lost:
            innocent = cause is not None and each is not cause
            (self.waiting if innocent else self.suspects).append(each)
            self.on_event(Retried(each.task, name, trouble.reason))
        self.actors -= 1
        for other in list(self.names):
            self._occupy(other)
        self.start()

    def _occupy(self, actor: Any) -> None:
        """Give an actor as many tasks as it may have; when only suspects are left, one of them alone.

        One that has none is released. It is not kept for later: it could die meanwhile, unnoticed, and the next task
        would be blamed for that.
        """
        inside = [assignment for owner, assignment in self.answers.values() if owner is actor]
        while self.waiting and len(inside) < self.in_flight:
            assignment = self.waiting.popleft()
            inside.append(assignment)
            self._give(actor, assignment)
        if not inside and self.suspects:
            self._give(actor, self.suspects.popleft())
        elif not inside:
            del self.names[actor]
            self.actors -= 1

    def _give(self, actor: Any, assignment: Assignment[Task]) -> None:
        self.answers[actor.attempt.remote(assignment.task)] = (actor, assignment)

    def release(self) -> None:
        """Let the actors go: they end when nothing refers to them.

        Killing one at work would have Ray print that its task failed.
        """
        self.answers.clear()
        self.names.clear()
