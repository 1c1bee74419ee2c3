"""The stages in a row: plan, extract, score and assess, reduce, each on the runtime that was asked for. Resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from expertmine.corpus.reader import Corpus
from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.mining import assess, reduce, score
from expertmine.mining.monitor import Watch, monitor_stage
from expertmine.run import paths
from expertmine.run.lease import Lease, driving, held
from expertmine.run.ledger import (
    Failure,
    Receipt,
    load_plan,
    missing_tasks,
    require_new_folder,
    write_failures,
)
from expertmine.run.links import require_own
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

FOLLOWED = ("pairs", "experts", "sentences")
"""Counts of receipts whose rate is shown."""


_Results = Iterator[Receipt | Failed]


class _RunTasks(Protocol):
    def __call__(
        self, make_worker: Callable[[], Callable[[int], Receipt]], tasks: Sequence[int], *, tell: Tell
    ) -> _Results: ...


@dataclass(frozen=True, slots=True)
class _Scoring:
    """An open runtime for tasks of scoring."""

    run: _RunTasks
    threads: int = 1
    """Tasks that a process of it may run at a time."""
    recorder: Callable[[Mapping[str, str]], meters.Record] = meters.recorder
    metrics: Sequence[str] = ()
    """Where Prometheus finds what is recorded."""


_SCORING: tuple[
    tuple[Stage, ModuleType, Callable[[Location, int | None, int], Callable[[], Callable[[int], Receipt]]]], ...
] = (
    ("score", score, score.NewScorer),
    ("assess", assess, assess.NewAssessor),
)


def freeze_plan(run: Location, corpus: Location, request: PlanRequest, force: bool = False) -> tuple[Plan, Bill | None]:
    """Make the plan of a run folder, find the same one there, or let the run go on with a corpus that has grown.

    Args:
        force: plan what the disk or memory may not hold.

    Returns:
        The plan, and the bill of what it adds; None where the same plan was there.

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
        UserError: another does; or the folder holds something else than a run, or a link that leads out of it.
    """
    if lease := held(run):  # a stage of what this process drives already
        yield lease
        return
    require_own(run)
    if not exists(paths.plan_file(run)):
        require_new_folder(run)  # before anything is left there
    with driving(run, f"expertmine {command}", partial(console.print, markup=False, highlight=False)) as lease:
        follows = None if lease.after is None else str(lease.after)
        logs.event("run driven", run=str(run), command=command, term=lease.holder.term, follows=follows)
        yield lease


@contextmanager
def _planned(run: Location, command: str) -> Iterator[tuple[Plan, Lease]]:
    """While open, this process drives a run that was planned before.

    Raises:
        UserError: it is no run, or another process drives it.
    """
    load_plan(run)  # before anything is left in what is no run
    with driven(run, command) as lease:
        yield load_plan(run), lease


def run_extract(run: Location, executor: ExtractExecutor, cluster: Cluster) -> None:
    """Stage 1 to its end.

    Raises:
        UserError: a worker could not be made, or tasks were given up; what is done is kept.
    """
    run = absolute(run)
    with _planned(run, "extract") as (plan, lease):
        _extract(run, plan, executor, cluster, lease)


def _extract(run: Location, plan: Plan, executor: ExtractExecutor, cluster: Cluster, lease: Lease) -> None:
    from expertmine.mining import extract

    tasks = extract.plan(run)
    if tasks:
        total, threads = plan.tasks("extract"), plan.responses.threads
        with monitor_stage(run, "extract", total, len(tasks), executor) as watch:
            if executor == "serial":
                watch.began(meters.recorder(watch.tags), threads, None)
                results = serial.run(extract.NewExtractor(run), tasks, extract.IN_FLIGHT, tell=watch.tell)
            else:
                results = _extract_on_ray(run, tasks, threads, cluster, watch)
            failed = _drain(lease.keep(results), watch, total)
            _report(run, [extract.failure(run, each.task, each.reason, each.attempts) for each in failed], len(tasks))
    extract.finish(run)


def run_score(run: Location, executor: ScoreExecutor, cluster: Cluster) -> None:
    """Stage 2 to its end: every pair is scored, then the best units are assessed.

    Raises:
        UserError: a worker could not be made, or tasks were given up; what is done is kept.
    """
    run = absolute(run)
    with _planned(run, "score") as (plan, lease):
        _score(run, plan, executor, cluster, lease)


def _score(run: Location, plan: Plan, executor: ScoreExecutor, cluster: Cluster, lease: Lease) -> None:
    most = max(len(missing_tasks(run, plan, "score")), len(missing_tasks(run, plan, "assess")))
    with ExitStack() as open_clusters:
        scoring: _Scoring | None = None
        for stage, module, new_worker in _SCORING:
            lease.require()
            tasks = module.plan(run)
            if tasks:
                # One cluster for both, and none where nothing is left to do.
                scoring = scoring or open_clusters.enter_context(_scoring_on(executor, cluster, most))
                with monitor_stage(run, stage, plan.tasks(stage), len(tasks), executor) as watch:
                    watch.began(scoring.recorder(watch.tags), scoring.threads, 0.0, scoring.metrics)
                    results = scoring.run(new_worker(run, cluster.memory, scoring.threads), tasks, tell=watch.tell)
                    failed = _drain(lease.keep(results), watch, plan.tasks(stage))
                    reports = [Failure(stage, each.task, each.reason, each.attempts, []) for each in failed]
                    _report(run, reports, len(tasks))
            module.finish(run)


def run_reduce(run: Location, top_k: int | None) -> list[Location]:
    """Stage 3; returns the folders of the expert indexes, one for each pooling.

    Args:
        top_k: experts to keep a concept; None keeps as many as the index there does, or else DEFAULT_TOP_K, or all
            where the model has fewer.
    """
    with _planned(run, "reduce"):
        return reduce.reduce(run, _top_k(run, top_k))


def _top_k(run: Location, asked: int | None) -> int:
    if asked is not None:
        return asked
    before = DEFAULT_TOP_K
    with suppress(UserError):  # no index yet, or one that was torn and is made anew now
        before = Experts.load(run).top_k
    return min(before, reduce.max_experts(load_plan(run)))


def run_all(
    run: Location,
    extract_on: tuple[ExtractExecutor, Cluster],
    score_on: tuple[ScoreExecutor, Cluster],
    top_k: int | None = None,
) -> list[Location]:
    """Every stage of a planned run; what is done already is not done again. Returns the folders of the indexes.

    Raises:
        UserError: as the stages do; `top_k` is looked at before the work begins.
    """
    with _planned(run, "mine") as (plan, _):
        reduce.require_top_k(plan, _top_k(run, top_k))
        run_extract(run, *extract_on)
        run_score(run, *score_on)
        return run_reduce(run, top_k)


def _extract_on_ray(run: Location, tasks: Sequence[int], threads: int, cluster: Cluster, watch: Watch) -> _Results:
    from expertmine.mining.extract import IN_FLIGHT, NewExtractor
    from expertmine.runtime import ray

    own = None if cluster.address else max(os.cpu_count() or 1, (cluster.workers or 1) * threads)
    with ray.cluster(cluster.address, own):
        if cluster.gpus_each and own and not ray.gpus():
            raise UserError("--gpus-each is given and this machine has no GPU that Ray can see; leave it out")
        gpus_each = float(ray.gpus() > 0) if cluster.gpus_each is None else cluster.gpus_each
        room = ray.gpus() / gpus_each if gpus_each else ray.cpus() // threads
        actors = cluster.workers or max(1, int(room))
        make = NewExtractor(run, "split" if gpus_each > 1 else None)
        watch.began(ray.recorder(watch.tags), threads, gpus_each, ray.metrics_endpoints())
        yield from ray.run(make, tasks, actors, threads, gpus_each, IN_FLIGHT, watch.tell)


@contextmanager
def _scoring_on(executor: ScoreExecutor, cluster: Cluster, tasks: int) -> Iterator[_Scoring]:
    """While open, something that runs tasks of scoring."""
    workers = min(cluster.workers or os.cpu_count() or 1, tasks)
    if executor == "serial":
        yield _Scoring(serial.run)
    elif executor == "dask":
        from expertmine.runtime import dask

        with dask.cluster(cluster.address, workers) as client:
            if logs.on_stderr():
                logs.event("dashboard", url=client.dashboard_link)
            else:
                console.print(f"Dask dashboard: {client.dashboard_link}", markup=False, highlight=False, soft_wrap=True)
            metrics = () if cluster.address else (dask.metrics_endpoint(client),)
            yield _Scoring(partial(dask.run, client), dask.threads(client), metrics=metrics)
    else:
        from expertmine.runtime import ray

        with ray.cluster(cluster.address, None if cluster.address else workers):
            actors = cluster.workers or max(1, min(int(ray.cpus()), tasks))
            run = partial(ray.run, actors=actors, cpus_each=1, gpus_each=0)
            yield _Scoring(run, recorder=ray.recorder, metrics=ray.metrics_endpoints())


def _drain(results: _Results, watch: Watch, total: int) -> list[Failed]:
    """Take the results to their end, and tell of each; returns what was given up."""
    failed: list[Failed] = []

    def done() -> Iterator[Receipt]:
        for result in results:
            if isinstance(result, Failed):
                failed.append(result)
                watch.failed(result)
            else:
                watch.finished(result)
                yield result

    attempt = watch.attempt
    for _ in track(done(), attempt.stage, total, total - attempt.tasks, _amount):
        pass
    return failed


def _amount(receipt: Receipt) -> tuple[int, str]:
    """What a task has done, in the unit that people follow."""
    return next(((receipt.counts[name], name) for name in FOLLOWED if name in receipt.counts), (0, ""))


def _report(run: Location, failures: Sequence[Failure], tasks: int) -> None:
    """Tell of the tasks that were given up, after all others were done.

    Raises:
        UserError: when there are any; names the first, and where the others are told of.
    """
    if not failures:
        return
    first = min(failures, key=lambda failure: failure.task)
    kept = f"the other {tasks - len(failures)} are done" if tasks > len(failures) else "none is done"
    more = f" ({len(failures)} of {tasks} tasks failed, {kept}; see {paths.failures_folder(run, first.stage)})"
    try:
        write_failures(run, failures)
    except UserError:  # the disk that made them fail refuses this too
        more = f" ({len(failures)} of {tasks} tasks failed, {kept})"
    tried = f" after {first.attempts} attempts" if first.attempts > 1 else ""
    raise UserError(f"{first.stage} task {first.task} failed{tried}: {first.reason}{more}")
