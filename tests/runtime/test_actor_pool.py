"""The pool of Ray actors on a simulated cluster, where deaths come when a test wants them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import exceptions

from expertmine.errors import StageError, UserError
from expertmine.runtime.events import Event, Lost, Queue, Retried
from expertmine.runtime.outcomes import ATTEMPTS, Failed, trouble_with_task
from expertmine.runtime.ray import RayExecutor
from expertmine.runtime.ray.actors import StreamingActor
from expertmine.runtime.ray.hosting import HostedActor

LOSSES = [
    exceptions.ActorDiedError(),
    exceptions.ActorUnavailableError("it does not answer", None),
    exceptions.OutOfMemoryError("killed by the memory monitor"),
    exceptions.OutOfMemoryError(""),
    exceptions.NodeDiedError("its node is gone"),
    exceptions.WorkerCrashedError(),
    exceptions.ObjectLostError("00", None, ""),
]
"""What Ray raises in place of an answer when an actor is gone."""


@dataclass(eq=False)
class Handle:
    """An actor: what refers to it keeps it alive, as in Ray."""

    number: int
    placed: bool = False
    dead: bool = False

    @property
    def process(self) -> Any:
        return SimpleNamespace(remote=lambda: Call(self, "start"))

    @property
    def attempt(self) -> Any:
        return SimpleNamespace(remote=lambda task: Call(self, task))


@dataclass(eq=False)
class Call:
    """A reference to the answer of an actor's call."""

    actor: Handle
    task: Any


@dataclass
class SimulatedRay:
    """As much of Ray as the pool uses: answers come in the order of the calls, from actors that have found room."""

    room: int
    script: dict[Any, list[Any]]
    """By task, or ``start``, how its calls end one after another: an exception to raise, or an answer. Those without
    a script, or past its end, return ten times the task."""
    keeps_room: bool = True
    """The room of an actor that died can be used again; not so when its node is lost."""
    actors: list[weakref.ref[Handle]] = field(default_factory=list)

    def alive(self) -> list[Handle]:
        return [each for made in self.actors if (each := made()) is not None and not each.dead]

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self.make))

    def make(self, make_worker: object) -> Handle:
        assert len(self.actors) < 50, "actors are started without end"
        made = Handle(len(self.actors))
        self.actors.append(weakref.ref(made))
        return made

    def wait(self, calls: Sequence[Call], num_returns: int, timeout: float) -> tuple[list[Call], list[Call]]:
        for each in self.alive():
            each.placed |= sum(other.placed for other in self.alive()) < self.room
        come = [call for call in calls if call.actor.placed]
        assert come, "nothing will ever come"
        return come[:1], come[1:]

    def get(self, call: Call) -> Any:
        ends = self.script.get(call.task, [])
        end = ends.pop(0) if ends else "actor" if call.task == "start" else 10 * call.task
        if isinstance(end, Exception):
            self.room -= not self.keeps_room
            call.actor.dead = True
            raise end
        return end

    def kill(self, actor: Handle) -> None:
        actor.dead = True


Simulate = Callable[..., SimulatedRay]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    def simulate(*arguments: Any, **options: Any) -> SimulatedRay:
        simulated = SimulatedRay(*arguments, **options)
        for name in ("remote", "wait", "get", "kill"):
            monkeypatch.setattr(ray, name, getattr(simulated, name))
        return simulated

    return simulate


def run(tasks: int, actors: int, in_flight: int = 1, on_event: Callable[[Event], None] = lambda _: None) -> list[Any]:
    executor = RayExecutor(actors, in_flight=in_flight)
    return list(executor.run(lambda: lambda task: task, range(tasks), on_event))


def test_an_actor_without_tasks_makes_room_for_the_task_of_a_lost_node(simulate: Simulate) -> None:
    simulate(2, {1: [exceptions.ActorDiedError()]}, keeps_room=False)
    assert run(tasks=2, actors=2) == [0, 10]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_one_place_left_is_enough_for_all_tasks(simulate: Simulate, in_flight: int) -> None:
    simulate(3, {1: [exceptions.ActorDiedError()], 5: [exceptions.ActorDiedError()]}, keeps_room=False)
    assert sorted(run(tasks=9, actors=3, in_flight=in_flight)) == [10 * task for task in range(9)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("when", ["start", 1])
def test_every_way_to_lose_an_actor_costs_nothing(simulate: Simulate, when: str | int, loss: Exception) -> None:
    simulate(1, {when: [loss]})
    events: list[Event] = []
    assert run(tasks=3, actors=1, on_event=events.append) == ([0, 10, 20] if when == "start" else [0, 20, 10])
    (lost,) = (event for event in events if isinstance(event, Lost))
    assert lost.tasks == (() if when == "start" else (1,))
    assert [event.task for event in events if isinstance(event, Retried)] == list(lost.tasks)


def test_actors_that_die_before_they_have_a_task_end_the_stage(simulate: Simulate) -> None:
    starts = ["actor", *(exceptions.ActorDiedError() for _ in range(99))]
    simulated = simulate(1, {"start": starts, 0: [exceptions.ActorDiedError()]})
    with pytest.raises(StageError, match=r"attempts in a row failed and no task was finished meanwhile"):
        run(tasks=1, actors=1)
    assert len(simulated.actors) <= 3 * ATTEMPTS


def test_no_actor_is_started_for_a_task_that_was_given_up(simulate: Simulate) -> None:
    simulated = simulate(1, {0: [exceptions.ActorDiedError() for _ in range(ATTEMPTS)]})
    (failed,) = run(tasks=1, actors=1)
    assert isinstance(failed, Failed)
    assert len(simulated.actors) == ATTEMPTS


def test_no_more_actors_than_tasks_without_one(simulate: Simulate) -> None:
    simulated = simulate(9, {0: [exceptions.ActorDiedError()], 1: [trouble_with_task(OSError("it may pass"))]})
    assert sorted(run(tasks=3, actors=9)) == [0, 10, 20]
    assert len(simulated.actors) == 5


def test_no_actor_is_kept_after_an_exception(simulate: Simulate) -> None:
    simulated = simulate(2, {})

    def refuse(event: Event) -> None:
        if event == Queue(0, 2):
            raise OSError("the caller's")

    with pytest.raises(OSError, match="the caller's") as caught:
        run(tasks=4, actors=2, on_event=refuse)
    assert caught.tb is not None  # and with it all that was referred to
    assert not simulated.alive()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_hosted_actor_is_replaced_however_it_is_lost(monkeypatch: pytest.MonkeyPatch, loss: Exception) -> None:
    def get(_: object) -> int:
        raise loss

    made: list[SimpleNamespace] = []

    def make(_: object) -> SimpleNamespace:
        call = SimpleNamespace(remote=lambda *_: None)
        made.append(SimpleNamespace(ready=call, check=call))
        return made[-1]

    def remote(kind: type) -> SimpleNamespace:
        assert kind is StreamingActor
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(ray, "get", lambda _: None)
    host = HostedActor(lambda: None, {})  # type: ignore[arg-type,return-value]
    host.start()
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ConnectionError, match="an actor was lost"):
        host.check("request")
    assert host.actor is made[1]
    with pytest.raises(UserError, match="the actor died while its worker was made"):
        host.start()
