"""The stages in a row: plan, extract, score and assess, reduce, each on the chosen runtime. Resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.mining import assess, reduce, score
from expertmine.mining.extraction_memory import PARTITIONS_IN_FLIGHT
from expertmine.mining.monitor import StageMonitor, monitor_stage
from expertmine.mining.stage import StageSteps, WorkerOptions
from expertmine.run import paths, sentences
from expertmine.run.freezing import require_new_folder
from expertmine.run.lease import Lease, driving, held
from expertmine.run.ledger import (
    Failure,
    Receipt,
    missing_tasks,
    write_failures,
)
from expertmine.run.links import require_own
from expertmine.run.open_run import OpenRun, open_run
from expertmine.runtime import serial
from expertmine.runtime.cluster import Cluster, ExtractExecutor, ScoreExecutor
from expertmine.runtime.events import Tell
from expertmine.runtime.failures import Failed
from expertmine.specs.plan import Plan, Stage
from expertmine.specs.settings import DEFAULT_TOP_K, PlanRequest
from expertmine.storage.files import exists
from expertmine.storage.locations import Location, absolute
from expertmine.telemetry import logs
from expertmine.telemetry import metrics as meters
from expertmine.telemetry.progress import console, track

if TYPE_CHECKING:
    from expertmine.mining.planning import Bill

SCORING: tuple[tuple[Stage, StageSteps[Receipt]], ...] = (("score", score), ("assess", assess))
"""The stages that run one after the other on the runtime for scoring."""
FOLLOWED = ("pairs", "experts", "sentences")
"""Counts of receipts whose rate is shown."""


_Results = Iterator[Receipt | Failed]


class _RunTasks(Protocol):
    def __call__(
        self, make_worker: Callable[[], Callable[[int], Receipt]], tasks: Sequence[int], *, tell: Tell
    ) -> _Results: ...


@dataclass(frozen=True, slots=True)
class _Runtime:
    """An open runtime."""

    run: _RunTasks
    options: WorkerOptions
    """What its workers are told."""
    cpus_each: float = 1
    """CPUs that a worker holds."""
    gpus_each: float | None = 0.0
    """GPUs that a worker holds; None if that is not known."""
    recorder: Callable[[Mapping[str, str]], meters.Record] = meters.recorder
    metrics: Sequence[str] = ()
    """Addresses where Prometheus finds the recorded metrics."""


def freeze_plan(run: Location, corpus: Location, request: PlanRequest, force: bool = False) -> tuple[Plan, Bill | None]:
    """Make the plan of a run folder, find the same one there, or let the run go on with a corpus that has grown.

    Args:
        force: plan even what may not fit the disk or memory.

    Returns:
        The plan, and the bill of what it adds; None if the same plan was there.

    Raises:
        UserError: bad input, another plan in the folder, or not enough disk or memory.
    """
    from expertmine.mining.growth import plan_run

    opened = Corpus.open(corpus)
    with driven(run, "plan"):
        return plan_run(run, opened, request, force)


@contextmanager
def driven(run: Location, command: str) -> Iterator[Lease]:
    """While open, no other process plans a run, hands out its tasks or writes its index.

    Raises:
        UserError: another process does; or the folder holds something other than a run, or a link that leads out of it.
    """
    if lease := held(run):  # a stage of a command that holds the lease already
        yield lease
        return
    require_own(run)
    if not exists(paths.plan_file(run)):
        require_new_folder(run)  # before a lease is left there
    with driving(run, f"expertmine {command}", partial(console.print, markup=False, highlight=False)) as lease:
        follows = None if lease.after is None else str(lease.after)
        logs.event("run driven", run=str(run), command=command, term=lease.holder.term, follows=follows)
        yield lease


@contextmanager
def _planned(path: Location, command: str) -> Iterator[tuple[OpenRun, Lease]]:
    """While open, this process drives a run that was planned before.

    Raises:
        UserError: it is no run, or another process drives it.
    """
    open_run(path)  # before a lease is left in a folder that is no run
    with driven(path, command) as lease:
        yield open_run(path), lease  # again: until now another process might have planned it


def run_extract(path: Location, executor: ExtractExecutor, cluster: Cluster) -> None:
    """Stage 1 to its end.

    Raises:
        UserError: a worker could not be made, or tasks were given up; finished tasks are kept.
    """
    with _planned(path, "extract") as (run, lease):
        _extract(run, executor, cluster, lease)


def run_score(path: Location, executor: ScoreExecutor, cluster: Cluster) -> None:
    """Stage 2 to its end: every pair is scored, then the best units are assessed.

    Raises:
        UserError: a worker could not be made, or tasks were given up; finished tasks are kept.
    """
    with _planned(path, "score") as (run, lease):
        _score(run, executor, cluster, lease)


def run_reduce(path: Location, top_k: int | None) -> list[Location]:
    """Stage 3; returns the folders of the expert indexes, one per pooling.

    Args:
        top_k: experts to keep per concept; None keeps as many as the index that is there, or else DEFAULT_TOP_K, or
            all if the model has fewer.
    """
    with _planned(path, "reduce") as (run, lease):
        return _reduce(run, _top_k(run, top_k), lease)


def run_all(
    path: Location,
    extract_on: tuple[ExtractExecutor, Cluster],
    score_on: tuple[ScoreExecutor, Cluster],
    top_k: int | None = None,
) -> list[Location]:
    """Every stage of a planned run; finished tasks are not run again. Returns the folders of the indexes.

    Raises:
        UserError: as the stages do; `top_k` is checked before the work begins.
    """
    with _planned(path, "mine") as (run, lease):
        kept = _top_k(run, top_k)
        reduce.require_top_k(run.plan, kept)
        _extract(run, *extract_on, lease)
        _score(run, *score_on, lease)
        return _reduce(run, kept, lease)


def _extract(run: OpenRun, executor: ExtractExecutor, cluster: Cluster, lease: Lease) -> None:
    from expertmine.mining import extract

    with ExitStack() as runtimes:
        opened = _extracting_on(executor, cluster, run.plan.responses.threads)
        _drive(run, "extract", extract, executor, lambda: runtimes.enter_context(opened), lease)


def _score(run: OpenRun, executor: ScoreExecutor, cluster: Cluster, lease: Lease) -> None:
    tasks = max(len(missing_tasks(run, stage)) for stage, _ in SCORING)
    with ExitStack() as runtimes:
        # One runtime for both stages, and none if nothing is left to do.
        opened = cache(lambda: runtimes.enter_context(_scoring_on(executor, cluster, tasks)))
        for stage, steps in SCORING:
            _drive(run, stage, steps, executor, opened, lease)


def _reduce(run: OpenRun, top_k: int, lease: Lease) -> list[Location]:
    """In this process: it reads every score once, and keeps little."""
    steps: StageSteps[Location] = reduce
    tasks = steps.plan(run)
    work = steps.new_worker(run, WorkerOptions(top_k=top_k))()
    folders = [work(task) for task in lease.keep(iter(tasks))]
    steps.finish(run)
    return folders


def _drive(
    run: OpenRun,
    stage: Stage,
    steps: StageSteps[Receipt],
    executor: str,
    open_runtime: Callable[[], _Runtime],
    lease: Lease,
) -> None:
    """Plan a stage, have its tasks run, and finish it.

    Raises:
        UserError: tasks were given up, or another process drives the run by now.
    """
    run = replace(run, path=absolute(run.path))  # workers have other working directories
    lease.require()
    tasks = steps.plan(run)
    if tasks:
        total = run.plan.tasks(stage)
        with monitor_stage(run.path, stage, total, len(tasks), executor) as monitor:
            runtime = open_runtime()
            monitor.began(runtime.recorder(monitor.tags), runtime.cpus_each, runtime.gpus_each, runtime.metrics)
            results = runtime.run(steps.new_worker(run, runtime.options), tasks, tell=monitor.tell)
            failed = _drain(lease.keep(results), monitor, total)
            _report(run.path, [_failure(run, stage, each) for each in failed], len(tasks))
    steps.finish(run)


def _failure(run: OpenRun, stage: Stage, failed: Failed) -> Failure:
    """The report of a task that was given up; of a partition, with its sentences."""
    texts: list[str] = []
    if stage == "extract":
        with suppress(UserError):  # they cannot be read, which is most likely why the task failed
            texts = sentences.texts(run, failed.task)
    return Failure(stage, failed.task, failed.reason, failed.attempts, texts)


def _top_k(run: OpenRun, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    before = DEFAULT_TOP_K
    with suppress(UserError):  # no index yet, or a torn one that is written again now
        before = Experts.load(run.path).top_k
    return min(before, reduce.max_experts(run.plan))


@contextmanager
def _extracting_on(executor: ExtractExecutor, cluster: Cluster, threads: int) -> Iterator[_Runtime]:
    """While open, a runtime for tasks of extraction."""
    if executor == "serial":
        run = partial(serial.run, in_flight=PARTITIONS_IN_FLIGHT)
        yield _Runtime(run, WorkerOptions(), threads, None)
        return
    from expertmine.runtime import ray

    own = None if cluster.address else max(os.cpu_count() or 1, (cluster.workers or 1) * threads)
    with ray.cluster(cluster.address, own):
        if cluster.gpus_each and own and not ray.gpus():
            raise UserError("--gpus-each is given and this machine has no GPU that Ray can see; leave it out")
        gpus_each = float(ray.gpus() > 0) if cluster.gpus_each is None else cluster.gpus_each
        fitting = ray.gpus() / gpus_each if gpus_each else ray.cpus() // threads
        actors = cluster.workers or max(1, int(fitting))
        run = partial(ray.run, actors=actors, cpus_each=threads, gpus_each=gpus_each, in_flight=PARTITIONS_IN_FLIGHT)
        options = WorkerOptions(device="split" if gpus_each > 1 else None)
        yield _Runtime(run, options, threads, gpus_each, ray.recorder, ray.metrics_endpoints())


@contextmanager
def _scoring_on(executor: ScoreExecutor, cluster: Cluster, tasks: int) -> Iterator[_Runtime]:
    """While open, a runtime for tasks of scoring."""
    workers = min(cluster.workers or os.cpu_count() or 1, tasks)
    options = WorkerOptions(memory=cluster.memory)
    if executor == "serial":
        yield _Runtime(serial.run, options)
    elif executor == "dask":
        from expertmine.runtime import dask

        with dask.cluster(cluster.address, workers) as client:
            if logs.on_stderr():
                logs.event("dashboard", url=client.dashboard_link)
            else:
                console.print(f"Dask dashboard: {client.dashboard_link}", markup=False, highlight=False, soft_wrap=True)
            threads = dask.threads(client)
            metrics = () if cluster.address else (dask.metrics_endpoint(client),)
            yield _Runtime(partial(dask.run, client), replace(options, threads=threads), threads, metrics=metrics)
    else:
        from expertmine.runtime import ray

        with ray.cluster(cluster.address, None if cluster.address else workers):
            actors = cluster.workers or max(1, min(int(ray.cpus()), tasks))
            run = partial(ray.run, actors=actors, cpus_each=1, gpus_each=0)
            yield _Runtime(run, options, recorder=ray.recorder, metrics=ray.metrics_endpoints())


def _drain(results: _Results, monitor: StageMonitor, total: int) -> list[Failed]:
    """Report every result until the last one; returns the tasks that were given up."""
    failed: list[Failed] = []

    def done() -> Iterator[Receipt]:
        for result in results:
            if isinstance(result, Failed):
                failed.append(result)
                monitor.failed(result)
            else:
                monitor.finished(result)
                yield result

    attempt = monitor.attempt
    for _ in track(done(), attempt.stage, total, total - attempt.tasks, _amount):
        pass
    return failed


def _amount(receipt: Receipt) -> tuple[int, str]:
    """How much a task has done, in the unit that is shown."""
    return next(((receipt.counts[name], name) for name in FOLLOWED if name in receipt.counts), (0, ""))


def _report(run: Location, failures: Sequence[Failure], tasks: int) -> None:
    """Report the tasks that were given up, after all others have finished.

    Raises:
        UserError: if there are any; names the first, and where the others are described.
    """
    if not failures:
        return
    first = min(failures, key=lambda failure: failure.task)
    kept = f"the other {tasks - len(failures)} are done" if tasks > len(failures) else "none is done"
    more = f" ({len(failures)} of {tasks} tasks failed, {kept}; see {paths.failures_folder(run, first.stage)})"
    try:
        write_failures(run, failures)
    except UserError:  # the disk that made them fail also refuses this
        more = f" ({len(failures)} of {tasks} tasks failed, {kept})"
    tried = f" after {first.attempts} attempts" if first.attempts > 1 else ""
    raise UserError(f"{first.stage} task {first.task} failed{tried}: {first.reason}{more}")
