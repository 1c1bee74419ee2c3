"""Plain classes that a runtime puts into processes of their own. Know nothing of who puts them there.

Bad news is returned, not raised: Ray prints what is raised in an actor, with a traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from expertmine.errors import StageError, UserError
from expertmine.runtime.events import process_name
from expertmine.runtime.failures import Failed

Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Broken:
    """An actor's answer when it could not be made, or met what is not its task's fault."""

    reason: str
    ends_all: bool
    """Whether others would meet the same; otherwise its process may be spoilt."""


def broken_by(error: Exception) -> Broken:
    """The answer of an actor that met an exception; names the place."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return Broken(f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})", ends_all=False)


class Actor(Generic[Request, Result]):
    """A worker in a process of its own, made at its first request."""

    def __init__(self, make_worker: Callable[[], Callable[[Request], Result]]) -> None:
        self.make_worker = make_worker
        self.worker: Callable[[Request], Result] | None = None
        self.making = Lock()

    def placed(self) -> str:
        """Answer once the cluster has found room; says in which process."""
        return process_name()

    def work(self, request: Request) -> Result | Failed | Broken:
        try:
            with self.making:
                if self.worker is None:
                    self.worker = self.make_worker()
        except UserError as error:
            return Broken(str(error), ends_all=True)
        try:
            return self.worker(request)
        except StageError as error:
            return Broken(str(error), ends_all=True)
        except UserError as error:
            return Failed(request, str(error), worker=process_name())
        except Exception as error:  # a driver's, a library's, a bug's
            return broken_by(error)


class Streaming(Protocol):
    """What `hosted` keeps in an actor: `stream` is called by one thread at a time, `check` by several."""

    def check(self, request: Any) -> int: ...

    def stream(self, requests: Sequence[Any], stopped: Callable[[int], bool]) -> Iterator[Any]: ...


class StreamingActor:
    """A worker in a process of its own, that answers piece by piece."""

    def __init__(self, make_worker: Callable[[], Streaming]) -> None:
        self.make_worker = make_worker
        self.worker: Streaming | None = None
        self.making = Lock()
        self.streaming = Lock()
        self.called_off: set[tuple[int, int]] = set()

    def ready(self) -> Broken | None:
        """Make the worker, unless it is there."""
        try:
            with self.making:
                self.worker = self.worker or self.make_worker()
        except UserError as error:
            return Broken(str(error), ends_all=True)
        return None

    def check(self, request: Any) -> int | UserError | Broken:
        if broken := self.ready():
            return broken
        assert self.worker is not None
        try:
            return self.worker.check(request)
        except UserError as error:
            return error

    def stream(self, batch: int, requests: Sequence[Any]) -> Iterator[list[Any] | UserError | Broken]:
        """As many pieces at a time as have come: each answer of an actor has its price."""
        if broken := self.ready():
            yield broken
            return
        news: SimpleQueue[Any] = SimpleQueue()
        with self.streaming:
            Thread(target=self._write, args=(batch, requests, news.put), daemon=True).start()
            ended = False
            while not ended:
                come = [news.get()]
                with suppress(Empty):
                    while True:
                        come.append(news.get_nowait())
                ended = come[-1] is None
                trouble = [each for each in come if isinstance(each, UserError | Broken)]
                if pieces := [each for each in come if not isinstance(each, UserError | Broken | None)]:
                    yield pieces
                yield from trouble
            for past in [each for each in list(self.called_off) if each[0] <= batch]:
                self.called_off.discard(past)

    def _write(self, batch: int, requests: Sequence[Any], tell: Callable[[Any], None]) -> None:
        assert self.worker is not None
        try:
            for piece in self.worker.stream(requests, lambda place: (batch, place) in self.called_off):
                tell(piece)
        except UserError as error:
            tell(error)
        except Exception as error:  # a library's, a bug's
            tell(broken_by(error))
        finally:
            tell(None)

    def call_off(self, batch: int, place: int) -> None:
        """A request needs no more pieces."""
        self.called_off.add((batch, place))
