"""The stages in a row: plan, extract, score and assess, reduce, each on the runtime that was asked for. Resumable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from expertmine import assess, reduce, score
from expertmine.corpus import Corpus
from expertmine.errors import UserError
from expertmine.experts import Experts
from expertmine.ledger import Failure, Receipt, load_plan, missing_tasks, write_failures
from expertmine.progress import console, track
from expertmine.runtime import serial
from expertmine.runtime.failures import Failed
from expertmine.specs import Plan, PlanRequest, Pooling, Stage

if TYPE_CHECKING:
    from expertmine.generate import GenerationRequest
    from expertmine.planning import Bill

DEFAULT_TOP_K = 500
"""Experts kept a concept."""

ExtractExecutor = Literal["ray", "serial"]
ScoreExecutor = Literal["dask", "ray", "serial"]


FOLLOWED = ("pairs", "experts", "sentences")
"""Counts of receipts whose rate is shown."""

_RunTasks = tuple[Callable[[Callable[[], Callable[[int], Receipt]], Sequence[int]], Iterator[Receipt | Failed]], int]


_SCORING: tuple[
    tuple[Stage, ModuleType, Callable[[Path, int | None, int], Callable[[], Callable[[int], Receipt]]]], ...
] = (
    ("score", score, score.NewScorer),
    ("assess", assess, assess.NewAssessor),
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where tasks run."""

    address: str | None = None
    """Of a running cluster; None starts a local one that ends with the stage."""
    workers: int | None = None
    """Processes; None takes what the machine or cluster has."""
    gpus_each: float | None = None
    """GPUs an extracting actor, also a fraction; None gives each one whole where there are any."""
    memory: int | None = None
    """Bytes that a scoring process may hold; None for what a block takes, as it was planned."""


def freeze_plan(run: Path, corpus: Path, request: PlanRequest, force: bool = False) -> tuple[Plan, Bill | None]:
    """Make the plan of a run folder, find the same one there, or let the run go on with a corpus that has grown.

    Args:
        force: plan what the disk or memory may not hold.

    Returns:
        The plan, and the bill of what it adds; None where the same plan was there.

    Raises:
        UserError: bad input, another plan in the folder, or not enough disk or memory.
    """
    from expertmine.runs import plan_run

    return plan_run(run, Corpus.open(corpus), request, force)


def run_extract(run: Path, executor: ExtractExecutor, cluster: Cluster) -> None:
    """Stage 1 to its end.

    Raises:
        UserError: a worker could not be made, or tasks were given up; what is done is kept.
    """
    from expertmine import extract

    run = run.absolute()
    plan = load_plan(run)
    tasks = extract.plan(run)
    if tasks:
        results = (
            serial.run(extract.NewExtractor(run), tasks, extract.IN_FLIGHT)
            if executor == "serial"
            else _extract_on_ray(run, tasks, plan.responses.threads, cluster)
        )
        failed = _drain(results, "extract", plan.tasks("extract"), tasks)
        _report(run, [extract.failure(run, each.task, each.reason, each.attempts) for each in failed], len(tasks))
    extract.finish(run)


def run_score(run: Path, executor: ScoreExecutor, cluster: Cluster) -> None:
    """Stage 2 to its end: every pair is scored, then the best units are assessed.

    Raises:
        UserError: a worker could not be made, or tasks were given up; what is done is kept.
    """
    run = run.absolute()
    plan = load_plan(run)
    most = max(len(missing_tasks(run, plan, "score")), len(missing_tasks(run, plan, "assess")))
    with ExitStack() as open_clusters:
        run_tasks: _RunTasks | None = None
        for stage, module, new_worker in _SCORING:
            tasks = module.plan(run)
            if tasks:
                # One cluster for both, and none where nothing is left to do.
                run_tasks = run_tasks or open_clusters.enter_context(_scoring_on(executor, cluster, most))
                results, threads = run_tasks
                found = results(new_worker(run, cluster.memory, threads), tasks)
                failed = _drain(found, stage, plan.tasks(stage), tasks)
                _report(run, [Failure(stage, each.task, each.reason, each.attempts, []) for each in failed], len(tasks))
            module.finish(run)


def run_reduce(run: Path, top_k: int | None) -> list[Path]:
    """Stage 3; returns the folders of the expert indexes, one for each pooling.

    Args:
        top_k: experts to keep a concept; None keeps as many as the index there does, or else DEFAULT_TOP_K, or all
            where the model has fewer.
    """
    return reduce.reduce(run, _top_k(run, top_k))


def _top_k(run: Path, asked: int | None) -> int:
    if asked is not None:
        return asked
    before = DEFAULT_TOP_K
    with suppress(UserError):  # no index yet, or one that was torn and is made anew now
        before = Experts.load(run).top_k
    return min(before, reduce.most_experts(load_plan(run)))


def run_all(
    run: Path,
    extract_on: tuple[ExtractExecutor, Cluster],
    score_on: tuple[ScoreExecutor, Cluster],
    top_k: int | None = None,
) -> list[Path]:
    """Every stage of a planned run; what is done already is not done again. Returns the folders of the indexes.

    Raises:
        UserError: as the stages do; `top_k` is looked at before the work begins.
    """
    reduce.require_top_k(load_plan(run), _top_k(run, top_k))
    run_extract(run, *extract_on)
    run_score(run, *score_on)
    return run_reduce(run, top_k)


def run_generate(
    index: Path | str,
    requests: Sequence[GenerationRequest],
    executor: ExtractExecutor,
    pooling: Pooling | None = None,
    model: str | None = None,
) -> Iterator[list[str]]:
    """The continuations of each request, in order, from this process or from a Ray actor.

    Args:
        index: a run folder, an expert index, or a pack.
        pooling: of the responses that the experts were found by; the run's first unless given.
        model: where the model is, if not where it was mined.

    Raises:
        UserError: a request that cannot be met.
    """
    from expertmine.generate import NewGenerator

    # An actor may have another working folder.
    make = NewGenerator(Path(index).absolute() if Path(index).exists() else index, pooling, model=model)
    if executor == "serial":
        yield from map(make(), requests)
        return
    from expertmine.runtime import ray

    with ray.cluster(None):
        gpus_each = 1.0 if ray.gpus() else 0.0
        for written in ray.run(make, requests, actors=1, cpus_each=1, gpus_each=gpus_each):
            if isinstance(written, Failed):
                raise UserError(written.reason)
            yield written


def _extract_on_ray(run: Path, tasks: Sequence[int], threads: int, cluster: Cluster) -> Iterator[Receipt | Failed]:
    from expertmine.extract import IN_FLIGHT, NewExtractor
    from expertmine.runtime import ray

    own = None if cluster.address else max(os.cpu_count() or 1, (cluster.workers or 1) * threads)
    with ray.cluster(cluster.address, own):
        if cluster.gpus_each and own and not ray.gpus():
            raise UserError("--gpus-each is given and this machine has no GPU that Ray can see; leave it out")
        gpus_each = float(ray.gpus() > 0) if cluster.gpus_each is None else cluster.gpus_each
        room = ray.gpus() / gpus_each if gpus_each else ray.cpus() // threads
        actors = cluster.workers or max(1, int(room))
        make = NewExtractor(run, "split" if gpus_each > 1 else None)
        yield from ray.run(make, tasks, actors, cpus_each=threads, gpus_each=gpus_each, in_flight=IN_FLIGHT)


@contextmanager
def _scoring_on(executor: ScoreExecutor, cluster: Cluster, tasks: int) -> Iterator[_RunTasks]:
    """While open, something that runs tasks of scoring, and how many a process of it may run at a time."""
    workers = min(cluster.workers or os.cpu_count() or 1, tasks)
    if executor == "serial":
        yield serial.run, 1
    elif executor == "dask":
        from expertmine.runtime import dask

        with dask.cluster(cluster.address, workers) as client:
            console.print(f"Dask dashboard: {client.dashboard_link}", markup=False, highlight=False, soft_wrap=True)
            yield partial(dask.run, client), dask.threads(client)
    else:
        from expertmine.runtime import ray

        with ray.cluster(cluster.address, None if cluster.address else workers):
            actors = cluster.workers or max(1, min(int(ray.cpus()), tasks))
            yield partial(ray.run, actors=actors, cpus_each=1, gpus_each=0), 1


def _drain(results: Iterator[Receipt | Failed], label: str, total: int, tasks: Sequence[int]) -> list[Failed]:
    """Take the results to their end; returns what was given up."""
    failed: list[Failed] = []

    def done() -> Iterator[Receipt]:
        for result in results:
            if isinstance(result, Failed):
                failed.append(result)
            else:
                yield result

    for _ in track(done(), label, total, total - len(tasks), _amount):
        pass
    return failed


def _amount(receipt: Receipt) -> tuple[int, str]:
    """What a task has done, in the unit that people follow."""
    return next(((receipt.counts[name], name) for name in FOLLOWED if name in receipt.counts), (0, ""))


def _report(run: Path, failures: Sequence[Failure], tasks: int) -> None:
    """Tell of the tasks that were given up, after all others were done.

    Raises:
        UserError: when there are any; names the first, and where the others are told of.
    """
    if not failures:
        return
    first = min(failures, key=lambda failure: failure.task)
    kept = f"the other {tasks - len(failures)} are done" if tasks > len(failures) else "none is done"
    more = f" ({len(failures)} of {tasks} tasks failed, {kept}; see {run / 'failures' / first.stage})"
    try:
        write_failures(run, failures)
    except UserError:  # the disk that made them fail refuses this too
        more = f" ({len(failures)} of {tasks} tasks failed, {kept})"
    tried = f" after {first.attempts} attempts" if first.attempts > 1 else ""
    raise UserError(f"{first.stage} task {first.task} failed{tried}: {first.reason}{more}")
