"""One Ray actor that answers piece by piece, as this process sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from threading import Lock
from typing import Any

from expertmine.errors import UserError
from expertmine.runtime.outcomes import Trouble
from expertmine.runtime.ray.actors import Streaming, StreamingActor
from expertmine.runtime.ray.connection import first_line, loss_of_actor

POLL = 0.1
"""Seconds between looks at whether a request that is being answered was called off."""


@contextmanager
def hosted(make_worker: Callable[[], Streaming], cpus: float, gpus: float) -> Iterator[HostedActor]:
    """While open, one actor that answers piece by piece; another takes its place when it dies.

    Raises:
        UserError: its worker cannot be made.
    """
    host = HostedActor(make_worker, {"num_cpus": cpus, "num_gpus": gpus})
    try:
        host.start()
        yield host
    finally:
        host.release()


class HostedActor:
    """The actor of one `hosted` and, after its death, the next."""

    def __init__(self, make_worker: Callable[[], Streaming], resources: dict[str, float]) -> None:
        self.make_worker = make_worker
        self.resources = resources
        self.actor: Any = None
        self.batches = count()
        self.changing = Lock()

    def start(self) -> None:
        """Have an actor, and wait until it can work.

        Raises:
            UserError: its worker cannot be made.
        """
        import ray

        self.actor = self._new_actor()
        try:
            trouble = ray.get(self.actor.ready.remote())
        except loss_of_actor() as error:
            raise UserError(
                f"the actor died while its worker was made (memory, most often): {first_line(error)}"
            ) from error
        if trouble:
            raise UserError(trouble.reason)

    def check(self, request: Any) -> int:
        """What the worker finds.

        Raises:
            UserError: the worker's.
            ConnectionError: the actor died; another takes its place.
        """
        import ray

        actor = self.actor
        with self._replacing(actor):
            return int(_unless_trouble(ray.get(actor.check.remote(request))))

    def stream(self, requests: Sequence[Any], stopped: Callable[[int], bool]) -> Iterator[Any]:
        """The worker's pieces. A request is called off once `stopped` says so of its position, also between pieces.

        Raises:
            UserError: the worker's.
            ConnectionError: the actor died; another takes its place.
            RuntimeError: the worker raised something else; says what.
        """
        import ray

        actor, batch = self.actor, next(self.batches)
        left = set(range(len(requests)))
        with self._replacing(actor):
            answers = actor.stream.options(num_returns="streaming").remote(batch, requests)
            try:
                while True:
                    come, _ = ray.wait([answers], timeout=POLL)
                    for position in [position for position in left if stopped(position)]:
                        left.remove(position)
                        actor.call_off.remote(batch, position)
                    if come:
                        try:
                            answer = next(answers)
                        except StopIteration:
                            left.clear()
                            return
                        yield from _unless_trouble(ray.get(answer))
            finally:
                for position in left:  # the caller has left early, or there is trouble
                    actor.call_off.remote(batch, position)

    @contextmanager
    def _replacing(self, actor: Any) -> Iterator[None]:
        """Have another actor when this one dies."""
        import ray

        try:
            yield
        except loss_of_actor() as error:
            with self.changing:
                if self.actor is actor:
                    ray.kill(actor)
                    self.actor = self._new_actor()
                    self.actor.ready.remote()  # so that it need not be waited for longer than it takes
            raise ConnectionError(f"an actor was lost: {first_line(error)}") from error

    def _new_actor(self) -> Any:
        import ray

        made: Any = ray.remote(StreamingActor).options(
            **self.resources, max_restarts=0, max_task_retries=0, max_concurrency=16
        )
        return made.remote(self.make_worker)

    def release(self) -> None:
        """Let the actor go: it ends when nothing refers to it."""
        self.actor = None


def _unless_trouble(answer: Any) -> Any:
    """An actor's answer, or its trouble as an exception."""
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, Trouble):
        raise ConnectionError(answer.reason) if answer.ends_stage else RuntimeError(answer.reason)
    return answer
