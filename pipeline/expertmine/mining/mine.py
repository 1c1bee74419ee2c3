"""The stages in a row: plan, extract, score and assess, reduce, each on the chosen runtime. Resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

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
from expertmine.runtime.cluster import Cluster, ExecutorName, ModelExecutorName, WorkerNeeds
from expertmine.runtime.executors import open_executor
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.protocol import Executor
from expertmine.specs.plan import Plan, Stage
from expertmine.specs.settings import DEFAULT_TOP_K, PlanRequest
from expertmine.storage.files import exists
from expertmine.storage.locations import Location, absolute
from expertmine.telemetry import logs
from expertmine.telemetry.progress import console, track

if TYPE_CHECKING:
    from expertmine.mining.planning import Bill

SCORING: tuple[tuple[Stage, StageSteps[Receipt]], ...] = (("score", score), ("assess", assess))
"""The stages that run one after the other on the runtime for scoring."""
FOLLOWED = ("pairs", "experts", "sentences")
"""Counts of receipts whose rate is shown."""


_Results = Iterator[Receipt | Failed]


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


def run_extract(path: Location, executor: ModelExecutorName, cluster: Cluster) -> None:
    """Stage 1 to its end.

    Raises:
        UserError: a worker could not be made, or tasks were given up; finished tasks are kept.
    """
    with _planned(path, "extract") as (run, lease):
        _extract(run, executor, cluster, lease)


def run_score(path: Location, executor: ExecutorName, cluster: Cluster) -> None:
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
    extract_on: tuple[ModelExecutorName, Cluster],
    score_on: tuple[ExecutorName, Cluster],
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


def _extract(run: OpenRun, executor: ModelExecutorName, cluster: Cluster, lease: Lease) -> None:
    from expertmine.mining import extract

    needs = WorkerNeeds(run.plan.responses.threads, gpus=True, in_flight=PARTITIONS_IN_FLIGHT)
    _run_stages(run, [("extract", extract)], executor, cluster, needs, lease)


def _score(run: OpenRun, executor: ExecutorName, cluster: Cluster, lease: Lease) -> None:
    _run_stages(run, SCORING, executor, cluster, WorkerNeeds(), lease)


def _reduce(run: OpenRun, top_k: int, lease: Lease) -> list[Location]:
    """In this process: it reads every score once, and keeps little."""
    steps: StageSteps[Location] = reduce
    tasks = steps.plan(run)
    work = steps.new_worker(run, WorkerOptions(top_k=top_k))()
    folders = [work(task) for task in lease.keep(iter(tasks))]
    steps.finish(run)
    return folders


def _run_stages(
    run: OpenRun,
    stages: Sequence[tuple[Stage, StageSteps[Receipt]]],
    executor: ExecutorName,
    cluster: Cluster,
    needs: WorkerNeeds,
    lease: Lease,
) -> None:
    """Plan each stage, have its tasks run, and finish it: all on one runtime, and on none if nothing is left to do.

    Raises:
        UserError: tasks were given up, or another process drives the run by now.
    """
    run = replace(run, path=absolute(run.path))  # workers have other working directories
    runtime: Executor | None = None
    with ExitStack() as stack:
        for at, (stage, steps) in enumerate(stages):
            lease.require()
            tasks = steps.plan(run)
            if tasks:
                total = run.plan.tasks(stage)
                with monitor_stage(run.path, stage, total, len(tasks), executor) as monitor:
                    if runtime is None:
                        later = (len(missing_tasks(run, name)) for name, _ in stages[at + 1 :])
                        opening = open_executor(executor, cluster, needs, max(len(tasks), *later, 0))
                        runtime = stack.enter_context(_announced(opening))
                    monitor.began(runtime)
                    device = "split" if (runtime.gpus_each or 0) > 1 else None
                    options = WorkerOptions(device, cluster.memory, runtime.in_flight)
                    work = runtime.run(steps.new_worker(run, options), tasks, monitor.on_event)
                    with closing(work) as results:  # threads end before the lease does, whatever is raised
                        failed = _drain(lease.keep(results), monitor, total)
                    _report(run.path, [_failure(run, stage, each) for each in failed], len(tasks))
            steps.finish(run)


@contextmanager
def _announced(opening: AbstractContextManager[Executor]) -> Iterator[Executor]:
    """While open, the same executor; the user is told where its dashboard is, if it has one."""
    with opening as runtime:
        if runtime.dashboard and logs.on_stderr():
            logs.event("dashboard", url=runtime.dashboard)
        elif runtime.dashboard:
            shown = f"Dask dashboard: {runtime.dashboard}"
            console.print(shown, markup=False, highlight=False, soft_wrap=True)
        yield runtime


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
