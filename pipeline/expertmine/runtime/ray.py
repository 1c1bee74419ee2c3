"""Run tasks on Ray actors. The only importer of ray.

Ray reads its environment when it is imported, so it is imported when it is clear what for. Token authentication is on,
on both sides. A cluster of our own listens on loopback alone and ends with us.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from expertmine.errors import StageError, UserError
from expertmine.runtime.failures import ATTEMPTS, Failed

Request = TypeVar("Request")
Result = TypeVar("Result")


@contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """While open, this process is connected to Ray: to a running cluster, or to one of its own.

    Args:
        address: of a running cluster, ``auto`` for the one of this machine; None starts one that ends with the context.
        cpus: of the cluster that is started.

    Raises:
        UserError: there is no cluster at the address, or ray was imported before it could be told to use a token.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ and not sys.modules["ray"].is_initialized():
        raise UserError("set RAY_AUTH_MODE=token in the environment before ray is imported: it reads it only then")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Ray's switch for "this machine only"; without it, even a local Ray listens on every interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            # Results are receipts and short texts: a small object store will do.
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=128 * 2**20,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "of our own cannot be started" if address is None else f"at {address!r} cannot be reached"
        raise UserError(f"Ray {where}: {str(error).strip()}") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True, slots=True)
class _Broken:
    """An actor's answer when it could not be made, or met what is not its task's fault."""

    reason: str
    ends_all: bool
    """Whether others would meet the same; otherwise its process may be spoilt."""


def _broken(error: Exception) -> _Broken:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _Broken(f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})", ends_all=False)


class _Actor(Generic[Request, Result]):
    """A worker in a process of its own, made at its first request.

    Bad news is returned, not raised: Ray prints what is raised in an actor, with a traceback.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Request], Result]]) -> None:
        self.make_worker = make_worker
        self.worker: Callable[[Request], Result] | None = None
        self.making = Lock()

    def placed(self) -> None:
        """Answer once the cluster has found room."""

    def work(self, request: Request) -> Result | Failed | _Broken:
        try:
            with self.making:
                if self.worker is None:
                    self.worker = self.make_worker()
        except UserError as error:
            return _Broken(str(error), ends_all=True)
        try:
            return self.worker(request)
        except StageError as error:
            return _Broken(str(error), ends_all=True)
        except UserError as error:
            return Failed(request, str(error))
        except Exception as error:  # a driver's, a library's, a bug's
            return _broken(error)


def gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def run(
    make_worker: Callable[[], Callable[[Request], Result]],
    requests: Sequence[Request],
    actors: int,
    cpus_each: int,
    gpus_each: float,
    in_flight: int = 1,
) -> Iterator[Result | Failed]:
    """Results as they come, and what was given up.

    An actor has at most `in_flight` requests at a time, once the cluster has found room for it. One that dies is
    replaced, wherever there is room; what it was at goes to others. A request whose actor died while it was at others
    too is tried again alone, and given up when it has taken `ATTEMPTS` actors with it.

    Raises:
        UserError: a worker could not be made, its trouble is every task's, or actors die without finishing anything.
    """
    crew = _Crew(make_worker, requests, in_flight, {"num_cpus": cpus_each, "num_gpus": gpus_each})
    try:
        for _ in range(min(actors, len(requests))):
            crew.hire()
        while crew.unfinished:
            yield from crew.next_news()
    finally:
        crew.dismiss()


@dataclass(eq=False, slots=True)
class _Asked(Generic[Request]):
    """A request on its way."""

    request: Request
    attempts: int = 0
    """Actors that it took with it when it was alone with them."""


class _Crew(Generic[Request, Result]):
    """The actors of one call of `run`, and who was asked for what."""

    def __init__(
        self,
        make_worker: Callable[[], Callable[[Request], Result]],
        requests: Sequence[Request],
        in_flight: int,
        resources: dict[str, float],
    ) -> None:
        self.make_worker = make_worker
        self.in_flight = in_flight
        self.resources = resources
        self.waiting = deque(_Asked(request) for request in requests)
        self.suspects: deque[_Asked[Request]] = deque()
        """Requests that were with an actor when it died; tried alone when the others are done."""
        self.unfinished = len(requests)
        self.answers: dict[Any, tuple[Any, _Asked[Request] | None]] = {}
        """Who was asked for what; None for whether it is placed."""
        self.deaths_in_a_row = 0
        self.actors = 0

    def hire(self) -> None:
        """Have one more actor; it is given work when it says that it is placed."""
        import ray

        made: Any = ray.remote(_Actor).options(
            **self.resources, max_restarts=0, max_task_retries=0, max_concurrency=self.in_flight
        )
        actor = made.remote(self.make_worker)
        self.answers[actor.placed.remote()] = (actor, None)
        self.actors += 1

    def next_news(self) -> Iterator[Result | Failed]:
        """Wait for one answer, and hand out more work."""
        import ray
        from ray.exceptions import ObjectLostError, RayActorError

        (answer,), _ = ray.wait(list(self.answers), num_returns=1)
        actor, asked = self.answers.pop(answer)
        try:
            news = ray.get(answer)
        except (RayActorError, ObjectLostError) as error:
            yield from self._replace(actor, asked, _first(error))
            return
        if isinstance(news, _Broken):
            if news.ends_all:
                raise UserError(news.reason)
            yield from self._replace(actor, asked, news.reason)
            return
        if asked is not None:
            self.deaths_in_a_row = 0
            self.unfinished -= 1
            yield replace(news, attempts=asked.attempts + 1) if isinstance(news, Failed) else news
        self._occupy(actor)

    def _replace(self, actor: Any, asked: _Asked[Request] | None, reason: str) -> Iterator[Failed]:
        """Take a lost actor's work from it, and have another in its place."""
        import ray

        ray.kill(actor)
        lost = [] if asked is None else [asked]
        for answer, (who, what) in list(self.answers.items()):
            if who is actor:
                del self.answers[answer]
                lost += [] if what is None else [what]
        self.deaths_in_a_row += 1
        if self.waiting and self.deaths_in_a_row > ATTEMPTS * (self.actors + 1):
            raise UserError(
                f"{self.deaths_in_a_row} actors were lost in a row and nothing was done meanwhile ({reason}); what is "
                "done is kept: see to the cause (memory, most often) and run the same command again"
            )
        if len(lost) == 1:
            (alone,) = lost
            alone.attempts += 1
            if alone.attempts == ATTEMPTS:
                self.unfinished -= 1
                yield Failed(alone.request, f"its process was lost each time: {reason}", alone.attempts)
                lost = []
        self.suspects.extend(lost)
        self.actors -= 1
        self.hire()
        for idle in {id(who): who for who, _ in self.answers.values()}.values():
            self._occupy(idle)

    def _occupy(self, actor: Any) -> None:
        """Give an actor as much as it should have at once; when only suspects are left, one of them alone."""
        inside = [what for who, what in self.answers.values() if who is actor]
        if None in inside:
            return  # not placed yet
        while self.waiting and len(inside) < self.in_flight:
            asked = self.waiting.popleft()
            inside.append(asked)
            self._ask(actor, asked)
        if not inside and self.suspects:
            self._ask(actor, self.suspects.popleft())

    def _ask(self, actor: Any, asked: _Asked[Request]) -> None:
        self.answers[actor.work.remote(asked.request)] = (actor, asked)

    def dismiss(self) -> None:
        """Let the actors go: they end when nothing refers to them.

        Killing one that is at work would have Ray print that its task failed.
        """
        self.answers.clear()


POLL = 0.1
"""Seconds between looks at whether a request that is being answered was called off."""


class Streaming(Protocol):
    """What `hosted` keeps in an actor: `stream` is called by one thread at a time, `check` by several."""

    def check(self, request: Any) -> int: ...

    def stream(self, requests: Sequence[Any], stopped: Callable[[int], bool]) -> Iterator[Any]: ...


@contextmanager
def hosted(make_worker: Callable[[], Streaming], cpus: float, gpus: float) -> Iterator[Hosted]:
    """While open, one actor that answers piece by piece; another is hired when it dies.

    Raises:
        UserError: its worker cannot be made.
    """
    host = Hosted(make_worker, {"num_cpus": cpus, "num_gpus": gpus})
    try:
        host.hire()
        yield host
    finally:
        host.dismiss()


class _StreamingActor:
    """A worker in a process of its own, that answers piece by piece. Bad news is returned, not raised."""

    def __init__(self, make_worker: Callable[[], Streaming]) -> None:
        self.make_worker = make_worker
        self.worker: Streaming | None = None
        self.making = Lock()
        self.streaming = Lock()
        self.called_off: set[tuple[int, int]] = set()

    def ready(self) -> _Broken | None:
        """Make the worker, unless it is there."""
        try:
            with self.making:
                self.worker = self.worker or self.make_worker()
        except UserError as error:
            return _Broken(str(error), ends_all=True)
        return None

    def check(self, request: Any) -> int | UserError | _Broken:
        if broken := self.ready():
            return broken
        assert self.worker is not None
        try:
            return self.worker.check(request)
        except UserError as error:
            return error

    def stream(self, batch: int, requests: Sequence[Any]) -> Iterator[list[Any] | UserError | _Broken]:
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
                trouble = [each for each in come if isinstance(each, UserError | _Broken)]
                if pieces := [each for each in come if not isinstance(each, UserError | _Broken | None)]:
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
            tell(_broken(error))
        finally:
            tell(None)

    def call_off(self, batch: int, place: int) -> None:
        """A request needs no more pieces."""
        self.called_off.add((batch, place))


class Hosted:
    """The actor of one `hosted`, as this process sees it."""

    def __init__(self, make_worker: Callable[[], Streaming], resources: dict[str, float]) -> None:
        self.make_worker = make_worker
        self.resources = resources
        self.actor: Any = None
        self.batches = count()
        self.changing = Lock()

    def hire(self) -> None:
        """Have an actor, and wait until it can work.

        Raises:
            UserError: its worker cannot be made.
        """
        import ray
        from ray.exceptions import RayActorError

        self.actor = self._new_actor()
        try:
            broken = ray.get(self.actor.ready.remote())
        except RayActorError as error:
            raise UserError(f"the actor died while it was made ready (memory, most often): {_first(error)}") from error
        if broken:
            raise UserError(broken.reason)

    def check(self, request: Any) -> int:
        """What the worker finds.

        Raises:
            UserError: the worker's.
            ConnectionError: the actor died; another takes its place.
        """
        import ray

        actor = self.actor
        with self._replacing(actor):
            return int(_require(ray.get(actor.check.remote(request))))

    def stream(self, requests: Sequence[Any], stopped: Callable[[int], bool]) -> Iterator[Any]:
        """The worker's pieces. A request is called off once `stopped` says so of its place, also between pieces.

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
                    for place in [place for place in left if stopped(place)]:
                        left.remove(place)
                        actor.call_off.remote(batch, place)
                    if come:
                        try:
                            answer = next(answers)
                        except StopIteration:
                            left.clear()
                            return
                        yield from _require(ray.get(answer))
            finally:
                for place in left:  # the caller has left early, or there is trouble
                    actor.call_off.remote(batch, place)

    @contextmanager
    def _replacing(self, actor: Any) -> Iterator[None]:
        """Have another actor when this one dies."""
        import ray
        from ray.exceptions import ObjectLostError, RayActorError

        try:
            yield
        except (RayActorError, ObjectLostError) as error:
            with self.changing:
                if self.actor is actor:
                    ray.kill(actor)
                    self.actor = self._new_actor()
                    self.actor.ready.remote()  # so that it need not be waited for longer than it takes
            raise ConnectionError(f"an actor was lost: {_first(error)}") from error

    def _new_actor(self) -> Any:
        import ray

        made: Any = ray.remote(_StreamingActor).options(
            **self.resources, max_restarts=0, max_task_retries=0, max_concurrency=16
        )
        return made.remote(self.make_worker)

    def dismiss(self) -> None:
        """Let the actor go: it ends when nothing refers to it."""
        self.actor = None


def _require(answer: Any) -> Any:
    """An actor's answer, or its bad news as an exception."""
    if isinstance(answer, UserError):
        raise answer
    if isinstance(answer, _Broken):
        raise ConnectionError(answer.reason) if answer.ends_all else RuntimeError(answer.reason)
    return answer


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
