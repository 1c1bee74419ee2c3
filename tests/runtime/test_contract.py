"""One contract for all runtimes: how a task ends, by scripted failures, and how often it was tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.workers import calls, new_scripted, outcomes

from expertmine.errors import StageError, UserError
from expertmine.runtime import dask, ray
from expertmine.runtime.cluster import Cluster
from expertmine.runtime.events import Event, Lost, Queue, Retried
from expertmine.runtime.executors import run_in_order
from expertmine.runtime.outcomes import ATTEMPTS, Failed
from expertmine.runtime.protocol import Executor
from expertmine.runtime.serial import SerialExecutor

WORKERS = 2


@pytest.fixture(scope="module")
def on_dask() -> Iterator[Executor]:
    """One Dask for all tests of this module."""
    with dask.opened(Cluster(workers=WORKERS), tasks=99) as executor:
        yield executor


@pytest.fixture
def mortal_dask() -> Iterator[Executor]:
    """A Dask of the test's own, whose workers may die by the dozen."""
    with dask.opened(Cluster(workers=WORKERS), tasks=99) as executor:
        yield executor


@pytest.fixture(scope="module")
def on_ray(ray_address: str) -> Iterator[Executor]:
    """Actors of the session's Ray, on one connection for all tests of this module."""
    with ray.cluster(ray_address):
        yield ray.RayExecutor(WORKERS)


@pytest.fixture
def in_turn() -> Executor:
    return SerialExecutor()


@pytest.fixture
def in_threads() -> Executor:
    return SerialExecutor(in_flight=2)


@pytest.fixture
def on_ray_in_threads(on_ray: Executor) -> Executor:
    return ray.RayExecutor(WORKERS, in_flight=3)


ON_RAY = [pytest.param(name, marks=pytest.mark.slow) for name in ("on_ray", "on_ray_in_threads")]


@pytest.fixture(params=["in_turn", "in_threads", "on_dask", ON_RAY[0]])
def executor(request: pytest.FixtureRequest) -> Executor:
    found: Executor = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["mortal_dask", *ON_RAY])
def cluster(request: pytest.FixtureRequest) -> Executor:
    """Those whose workers may die."""
    found: Executor = request.getfixturevalue(request.param)
    return found


def test_results_come_and_each_task_is_called_once(executor: Executor, tmp_path: Path) -> None:
    events: list[Event] = []
    found = list(executor.run(new_scripted(tmp_path, {}), range(8), events.append))
    assert sorted(found) == [10 * task for task in range(8)]
    assert [calls(tmp_path, f"task-{task}") for task in range(8)] == 8 * [1]
    assert events[-1] == Queue(0, 0)
    assert not [event for event in events if isinstance(event, Lost | Retried)]


def test_no_task_needs_no_worker(executor: Executor, tmp_path: Path) -> None:
    assert list(executor.run(new_scripted(tmp_path, {}, ["UserError"]), [])) == []
    assert calls(tmp_path, "making") == 0


def test_bad_input_is_given_up_at_once(executor: Executor, tmp_path: Path) -> None:
    done, failed = outcomes(executor, new_scripted(tmp_path, {1: ["UserError"]}), range(4))
    assert failed == [Failed(1, "task-1 meets a scripted UserError", 1)]
    assert failed[0].worker
    assert sorted(done) == [0, 20, 30]
    assert calls(tmp_path, "task-1") == 1


def test_an_exception_that_passes_costs_an_attempt(executor: Executor, tmp_path: Path) -> None:
    events: list[Event] = []
    script = {1: ["OSError", "RuntimeError", "ok"]}
    found = list(executor.run(new_scripted(tmp_path, script), range(4), events.append))
    assert sorted(found) == [0, 10, 20, 30]
    assert calls(tmp_path, "task-1") == 3
    retried = [event for event in events if isinstance(event, Retried) and event.task == 1]
    assert len(retried) == 2
    for event, error in zip(retried, script[1], strict=False):
        assert f"{error}: task-1 meets a scripted {error} (" in event.reason
    assert events[-1] == Queue(0, 0)


def test_an_exception_that_stays_is_given_up_after_as_many_attempts(executor: Executor, tmp_path: Path) -> None:
    done, failed = outcomes(executor, new_scripted(tmp_path, {1: ["OSError"]}), range(4))
    assert sorted(done) == [0, 20, 30]
    assert [(each.task, each.attempts) for each in failed] == [(1, ATTEMPTS)]
    assert "OSError: task-1 meets a scripted OSError (" in failed[0].reason
    assert "workers.py, line" in failed[0].reason
    assert calls(tmp_path, "task-1") == ATTEMPTS


def test_trouble_of_every_task_ends_the_stage(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^task-0 meets a scripted StageError$"):
        outcomes(executor, new_scripted(tmp_path, {0: ["StageError"]}), [0, *range(100, 150)])
    assert calls(tmp_path, "task-0") == 1


def test_a_worker_that_refuses_to_be_made_ends_the_stage(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^making meets a scripted UserError$"):
        outcomes(executor, new_scripted(tmp_path, {}, ["UserError"]), range(4))
    assert not list(tmp_path.glob("task-*"))


def test_a_worker_that_cannot_be_made_is_tried_again(executor: Executor, tmp_path: Path) -> None:
    done, failed = outcomes(executor, new_scripted(tmp_path / "passes", {}, ["OSError", "ok"]), range(4))
    assert (sorted(done), failed) == ([0, 10, 20, 30], [])
    with pytest.raises(StageError, match="making meets a scripted OSError"):
        outcomes(executor, new_scripted(tmp_path / "stays", {}, ["OSError"]), [0])
    assert calls(tmp_path / "stays", "making") == ATTEMPTS
    assert not list((tmp_path / "stays").glob("task-*"))


def test_a_stage_where_nothing_succeeds_is_over_before_every_task_was_tried(executor: Executor, tmp_path: Path) -> None:
    tasks = range(200)
    with pytest.raises(StageError, match=r"attempts in a row failed .*OSError"):
        outcomes(executor, new_scripted(tmp_path, {task: ["OSError"] for task in tasks}), tasks)
    assert len(list(tmp_path.glob("task-*"))) < len(tasks)


def test_failures_to_make_a_worker_are_not_the_tasks(executor: Executor, tmp_path: Path) -> None:
    events: list[Event] = []
    make = new_scripted(tmp_path, {0: ["OSError", "ok"]}, ["OSError", "OSError", "ok"])
    assert list(executor.run(make, [0], events.append)) == [0]
    assert calls(tmp_path, "task-0") == 2
    assert len([event for event in events if isinstance(event, Retried)]) == ATTEMPTS


def test_what_the_caller_raises_is_the_callers(executor: Executor, tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        raise OSError("the caller's disk")

    with pytest.raises(OSError, match="the caller's disk"):
        list(executor.run(new_scripted(tmp_path, {}), range(4), refuse))


def test_a_worker_that_dies_costs_nothing(cluster: Executor, tmp_path: Path) -> None:
    events: list[Event] = []
    found = list(cluster.run(new_scripted(tmp_path, {1: ["die", "ok"]}), range(6), events.append))
    assert sorted(found) == [10 * task for task in range(6)]
    assert calls(tmp_path, "task-1") == 2
    assert 1 in {event.task for event in events if isinstance(event, Retried)}
    assert [event for event in events if isinstance(event, Lost)]


def test_a_task_that_kills_every_worker_is_given_up(cluster: Executor, tmp_path: Path) -> None:
    done, failed = outcomes(cluster, new_scripted(tmp_path, {1: ["die"]}), range(6))
    assert sorted(done) == [0, 20, 30, 40, 50]
    assert [each.task for each in failed] == [1]
    assert ATTEMPTS <= failed[0].attempts <= calls(tmp_path, "task-1") <= ATTEMPTS + 1
    assert "its process was lost" in failed[0].reason


def test_a_stage_where_every_task_kills_its_worker_is_over_early(cluster: Executor, tmp_path: Path) -> None:
    tasks = range(200)
    with pytest.raises(StageError, match=r"attempts in a row failed .*its process was lost"):
        outcomes(cluster, new_scripted(tmp_path, {task: ["die"] for task in tasks}), tasks)
    assert len(list(tmp_path.glob("task-*"))) < len(tasks) / 2
    # The next call may still meet a worker that is dying; those after it must not.
    done, failed = outcomes(cluster, new_scripted(tmp_path / "after", {}), range(9))
    assert (sorted(done), failed) == ([10 * task for task in range(9)], [])


def test_a_dask_without_workers_is_not_waited_for(
    mortal_dask: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask.executor, "ABSENCE", 1.0)
    monkeypatch.setattr(dask.executor, "THREADS_INTERVAL", 0.2)
    assert isinstance(mortal_dask, dask.DaskExecutor)
    mortal_dask.client.cluster.scale(0)
    while mortal_dask.client.nthreads():
        time.sleep(0.05)
    with pytest.raises(StageError, match="no Dask worker came back within"):
        outcomes(mortal_dask, new_scripted(tmp_path, {}), range(3))


def test_results_that_take_long_to_fetch_are_fetched_once(
    on_dask: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask.executor, "LOOK_INTERVAL", 0.01)

    def new_worker() -> Callable[[int], object]:
        class Heavy:
            def __reduce__(self) -> tuple[type[str], tuple[str]]:
                with (tmp_path / "sent").open("a") as log:
                    log.write("sent ")
                time.sleep(0.2)
                return str, ("heavy",)

        return lambda task: Heavy()

    assert list(on_dask.run(new_worker, [0])) == ["heavy"]
    assert (tmp_path / "sent").read_text() == "sent "


def test_exceptions_and_deaths_add_up(cluster: Executor, tmp_path: Path) -> None:
    done, failed = outcomes(cluster, new_scripted(tmp_path, {0: ["OSError", "die", "ok"]}), [0])
    assert (done, failed) == ([0], [])
    assert calls(tmp_path, "task-0") == 3


@pytest.mark.parametrize("in_flight", [1, 2])
def test_ctrl_c_in_a_task_of_this_process_ends_everything(in_flight: int, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        outcomes(SerialExecutor(in_flight), new_scripted(tmp_path, {0: ["KeyboardInterrupt"]}), range(9))
    assert calls(tmp_path, "task-0") == 1


def test_one_task_at_a_time_runs_when_its_result_is_asked_for(tmp_path: Path) -> None:
    results = SerialExecutor().run(new_scripted(tmp_path, {}), range(3))
    assert next(results) == 0
    assert calls(tmp_path, "task-1") == 0


@pytest.mark.parametrize("script", [{}, {0: ["OSError", "ok"], 2: ["RuntimeError", "ok"]}])
def test_results_in_the_order_of_the_requests(
    executor: Executor, script: dict[int, Sequence[str]], tmp_path: Path
) -> None:
    requests = [3, 0, 2, 1, 4]
    assert list(run_in_order(executor, new_scripted(tmp_path, script), requests)) == [30, 0, 20, 10, 40]


def test_the_death_of_an_actor_changes_no_order(cluster: Executor, tmp_path: Path) -> None:
    assert list(run_in_order(cluster, new_scripted(tmp_path, {3: ["die", "ok"]}), [3, 0, 2, 1])) == [30, 0, 20, 10]


def test_a_request_that_is_given_up_ends_results_in_order(executor: Executor, tmp_path: Path) -> None:
    results = run_in_order(executor, new_scripted(tmp_path, {1: ["UserError"]}), [0, 1])
    with pytest.raises(UserError, match="task-1 meets a scripted UserError"):
        list(results)


@pytest.mark.slow
def test_generated_texts_stay_in_order_when_the_actor_dies(
    on_ray: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertmine.serving.offline import run_generate
    from expertmine.steering import generation

    make: Callable[[], Callable[[int], int]] = new_scripted(tmp_path, {5: ["die", "ok"]})
    monkeypatch.setattr(generation, "NewGenerator", lambda *_, **__: make)
    assert list(run_generate("index", [5, 6, 7], "ray")) == [50, 60, 70]  # type: ignore[list-item, comparison-overlap]
    assert calls(tmp_path, "task-5") == 2
