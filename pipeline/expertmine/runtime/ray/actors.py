"""Plain classes that are put into processes of their own. Know nothing of Ray.

Trouble is returned, not raised: Ray prints what is raised in an actor, with a traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from expertmine.errors import UserError
from expertmine.runtime.events import process_name
from expertmine.runtime.outcomes import Trouble, trouble_with_task
from expertmine.runtime.workers import LazyWorker, attempt

Task = TypeVar("Task")
Result = TypeVar("Result")


class Actor(Generic[Task, Result]):
    """A worker in a process of its own, made at its first task."""

    def __init__(self, make_worker: Callable[[], Callable[[Task], Result]]) -> None:
        self.worker = LazyWorker(make_worker)

    def process(self) -> str:
        """The name of its process; answers once the cluster has found room for it."""
        return process_name()

    def attempt(self, task: Task) -> Result | Trouble:
        return attempt(self.worker, task)


class Streaming(Protocol):
    """What a `StreamingActor` holds: `stream` is called by one thread at a time, `check` by several."""

    def check(self, request: Any) -> int: ...

    def stream(self, requests: Sequence[Any], stopped: Callable[[int], bool]) -> Iterator[Any]: ...


class StreamingActor:
    """A worker in a process of its own, that answers piece by piece."""

    def __init__(self, make_worker: Callable[[], Streaming]) -> None:
        self.worker = LazyWorker(make_worker)
        self.streaming = Lock()
        self.called_off: set[tuple[int, int]] = set()

    def ready(self) -> Trouble | None:
        """Make the worker, unless it is there."""
        worker = self.worker.get()
        return worker if isinstance(worker, Trouble) else None

    def check(self, request: Any) -> int | UserError | Trouble:
        worker = self.worker.get()
        if isinstance(worker, Trouble):
            return worker
        try:
            return worker.check(request)
        except UserError as error:
            return error
        except Exception as error:
            return trouble_with_task(error)

    def stream(self, batch: int, requests: Sequence[Any]) -> Iterator[list[Any] | UserError | Trouble]:
        """As many pieces at a time as have come: each answer of an actor has its price."""
        worker = self.worker.get()
        if isinstance(worker, Trouble):
            yield worker
            return
        pieces: SimpleQueue[Any] = SimpleQueue()
        with self.streaming:
            Thread(target=self._write, args=(worker, batch, requests, pieces.put), daemon=True).start()
            ended = False
            while not ended:
                come = [pieces.get()]
                with suppress(Empty):
                    while True:
                        come.append(pieces.get_nowait())
                ended = come[-1] is None
                trouble = [each for each in come if isinstance(each, UserError | Trouble)]
                if written := [each for each in come if not isinstance(each, UserError | Trouble | None)]:
                    yield written
                yield from trouble
            for past in [each for each in list(self.called_off) if each[0] <= batch]:
                self.called_off.discard(past)

    def _write(self, worker: Streaming, batch: int, requests: Sequence[Any], put: Callable[[Any], None]) -> None:
        """Put a worker's pieces, then None, where `stream` finds them."""
        try:
            for piece in worker.stream(requests, lambda position: (batch, position) in self.called_off):
                put(piece)
        except UserError as error:
            put(error)
        except Exception as error:  # a library's, a bug's
            put(trouble_with_task(error))
        finally:
            put(None)

    def call_off(self, batch: int, position: int) -> None:
        """A request needs no more pieces."""
        self.called_off.add((batch, position))
