"""Run tasks on Ray actors. The only importer of ray.

Ray reads its environment when it is imported, so it is imported when it is clear what for. Token authentication is on,
on both sides. A cluster of our own listens on loopback alone and ends with us.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock
from typing import Any, Generic, TypeVar

from expertmine.errors import UserError
from expertmine.runtime.actors import Actor, Broken, Streaming, StreamingActor
from expertmine.runtime.events import Joined, Lost, Queue, Retried, Tell, nobody
from expertmine.runtime.failures import ATTEMPTS, Failed
from expertmine.telemetry.metrics import Meter, Record

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


def gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def metrics_endpoints() -> list[str]:
    """Where Prometheus finds the metrics of each node of the connected cluster; none where collecting is off."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort")]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive]


def recorder(tags: Mapping[str, str]) -> Record:
    """Keeps meters as metrics of the connected cluster; its nodes show them some seconds later.

    Args:
        tags: of everything that is kept.
    """
    from ray.util import metrics

    own, names = dict(tags), tuple(tags)
    made: dict[Meter, Any] = {}

    def record(meter: Meter, value: float) -> None:
        if meter.kind == "counter":
            if meter not in made:
                made[meter] = metrics.Counter(meter.name, meter.description, names)
            made[meter].inc(value, own)
        elif meter.kind == "gauge":
            if meter not in made:
                made[meter] = metrics.Gauge(meter.name, meter.description, names)
            made[meter].set(value, own)
        else:
            if meter not in made:
                made[meter] = metrics.Histogram(meter.name, meter.description, list(meter.boundaries), names)
            made[meter].observe(value, own)

    return record


def run(
    make_worker: Callable[[], Callable[[Request], Result]],
    requests: Sequence[Request],
    actors: int,
    cpus_each: int,
    gpus_each: float,
    in_flight: int = 1,
    tell: Tell = nobody,
) -> Iterator[Result | Failed]:
    """Results as they come, and what was given up; what else happens is told to `tell`.

    An actor has at most `in_flight` requests at a time, once the cluster has found room for it. One that dies is
    replaced, wherever there is room; what it was at goes to others. A request whose actor died while it was at others
    too is tried again alone, and given up when it has taken `ATTEMPTS` actors with it.

    Raises:
        UserError: a worker could not be made, its trouble is every task's, or actors die without finishing anything.
    """
    crew = _Crew(make_worker, requests, in_flight, {"num_cpus": cpus_each, "num_gpus": gpus_each}, tell)
    try:
        for _ in range(min(actors, len(requests))):
            crew.hire()
        while crew.unfinished:
            yield from crew.next_news()
            tell(crew.queue())
    finally:
        crew.dismiss()


QUEUE_IS_NEWS = 5.0
"""Seconds after which the queue is told again though nothing came: Ray forgets a gauge that nobody sets for 20 s."""


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
        tell: Tell,
    ) -> None:
        self.make_worker = make_worker
        self.in_flight = in_flight
        self.tell = tell
        self.resources = resources
        self.waiting = deque(_Asked(request) for request in requests)
        self.suspects: deque[_Asked[Request]] = deque()
        """Requests that were with an actor when it died; tried alone when the others are done."""
        self.unfinished = len(requests)
        self.answers: dict[Any, tuple[Any, _Asked[Request] | None]] = {}
        """Who was asked for what; None for whether it is placed."""
        self.names: dict[Any, str] = {}
        """Machine and process of each actor that was placed."""
        self.deaths_in_a_row = 0
        self.actors = 0

    def hire(self) -> None:
        """Have one more actor; it is given work when it says that it is placed."""
        import ray

        made: Any = ray.remote(Actor).options(
            **self.resources, max_restarts=0, max_task_retries=0, max_concurrency=self.in_flight
        )
        actor = made.remote(self.make_worker)
        self.answers[actor.placed.remote()] = (actor, None)
        self.actors += 1

    def queue(self) -> Queue:
        """How much is to be done yet."""
        waiting = len(self.waiting) + len(self.suspects)
        return Queue(waiting, self.unfinished - waiting)

    def next_news(self) -> Iterator[Result | Failed]:
        """Wait a while for one answer, and hand out more work."""
        import ray
        from ray.exceptions import ObjectLostError, RayActorError

        come, _ = ray.wait(list(self.answers), num_returns=1, timeout=QUEUE_IS_NEWS)
        if not come:
            return
        (answer,) = come
        actor, asked = self.answers.pop(answer)
        try:
            news = ray.get(answer)
        except (RayActorError, ObjectLostError) as error:
            yield from self._replace(actor, asked, _first(error))
            return
        if isinstance(news, Broken):
            if news.ends_all:
                raise UserError(news.reason)
            yield from self._replace(actor, asked, news.reason)
            return
        if asked is not None:
            self.deaths_in_a_row = 0
            self.unfinished -= 1
            yield replace(news, attempts=asked.attempts + 1) if isinstance(news, Failed) else news
        else:
            self.names[actor] = news
            self.tell(Joined(news))
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
        name = self.names.pop(actor, "")
        self.tell(Lost(name, reason, tuple(each.request for each in lost)))
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
                yield Failed(alone.request, f"its process was lost each time: {reason}", alone.attempts, name)
                lost = []
        for again in lost:
            self.suspects.append(again)
            self.tell(Retried(again.request, name))
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

        made: Any = ray.remote(StreamingActor).options(
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
    if isinstance(answer, Broken):
        raise ConnectionError(answer.reason) if answer.ends_all else RuntimeError(answer.reason)
    return answer


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
