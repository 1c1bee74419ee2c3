"""The stages in a row: plan, extract, score, reduce, each on the runtime that was asked for. Resumable at any point."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from expertmine import reduce, score
from expertmine.corpus import Corpus
from expertmine.errors import UserError
from expertmine.experts import Experts
from expertmine.ledger import Receipt, freeze, load_plan, plan_path
from expertmine.progress import track
from expertmine.runtime import serial
from expertmine.specs import Plan, ResponseSpec

if TYPE_CHECKING:
    from expertmine.generate import GenerationRequest
    from expertmine.planning import Bill

DEFAULT_TOP_K = 500
"""Experts kept a concept."""

ExtractExecutor = Literal["ray", "serial"]
ScoreExecutor = Literal["dask", "serial"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where tasks run."""

    address: str | None = None
    """Of a running cluster; None starts a local one that ends with the stage."""
    workers: int | None = None
    """Processes; None takes what the machine or cluster has."""
    gpus_each: float | None = None
    """GPUs an extracting actor, also a fraction; None gives each one whole where there are any."""


def freeze_plan(
    run: Path,
    corpus: Path,
    model: str,
    spec: ResponseSpec,
    patterns: Sequence[str] = (),
    revision: str | None = None,
    force: bool = False,
) -> tuple[Plan, Bill]:
    """Make the plan of a run folder, or find the same one there.

    Args:
        force: plan what the disk may not hold.

    Raises:
        UserError: bad input, another plan in the folder, or not enough disk.
    """
    from expertmine.planning import make_plan, refuse_what_will_not_fit

    opened = Corpus.open(corpus)
    plan, bill = make_plan(model, opened, spec, patterns, revision)
    if not force and not plan_path(run).exists():
        refuse_what_will_not_fit(run, bill)
    freeze(run, plan, opened)
    return plan, bill


def run_extract(run: Path, executor: ExtractExecutor, cluster: Cluster) -> None:
    """Stage 1 to its end.

    Raises:
        UserError: a task's own; what was done before it is kept.
    """
    from expertmine import extract

    run = run.absolute()
    plan = load_plan(run)
    tasks = extract.plan(run)
    if tasks:
        results = (
            serial.run(extract.NewExtractor(run), tasks)
            if executor == "serial"
            else _extract_on_ray(run, tasks, plan.responses.threads, cluster)
        )
        _drain(results, "extract", plan.layout.partitions, tasks)
    extract.finish(run)


def run_score(run: Path, executor: ScoreExecutor, cluster: Cluster) -> None:
    """Stage 2 to its end.

    Raises:
        UserError: a task's own; what was done before it is kept.
    """
    run = run.absolute()
    plan = load_plan(run)
    tasks = score.plan(run)
    if tasks:
        results = (
            serial.run(score.NewScorer(run), tasks) if executor == "serial" else _score_on_dask(run, tasks, cluster)
        )
        _drain(results, "score", plan.layout.blocks, tasks)
    score.finish(run)


def run_reduce(run: Path, top_k: int | None) -> Path:
    """Stage 3; returns the folder of the expert index.

    Args:
        top_k: experts to keep a concept; None keeps as many as the index there does, or else DEFAULT_TOP_K, or all
            where the model has fewer.
    """
    return reduce.reduce(run, _top_k(run, top_k))


def _top_k(run: Path, asked: int | None) -> int:
    if asked is not None:
        return asked
    if (run / "experts" / "index.json").exists():
        return Experts.load(run).top_k
    return min(DEFAULT_TOP_K, load_plan(run).layout.units)


def run_all(
    run: Path,
    extract_on: tuple[ExtractExecutor, Cluster],
    score_on: tuple[ScoreExecutor, Cluster],
    top_k: int | None = None,
) -> Path:
    """Every stage of a planned run; what is done already is not done again. Returns the folder of the expert index.

    Raises:
        UserError: as the stages do; `top_k` is looked at before the work begins.
    """
    reduce.require_top_k(load_plan(run), _top_k(run, top_k))
    run_extract(run, *extract_on)
    run_score(run, *score_on)
    return run_reduce(run, top_k)


def run_generate(run: Path, requests: Sequence[GenerationRequest], executor: ExtractExecutor) -> Iterator[list[str]]:
    """The continuations of each request, in order, from this process or from a Ray actor."""
    from expertmine.generate import NewGenerator

    make = NewGenerator(run.absolute())
    if executor == "serial":
        yield from map(make(), requests)
        return
    from expertmine.runtime import ray

    with ray.cluster(None):
        gpus_each = 1.0 if ray.gpus() else 0.0
        yield from ray.run(make, requests, actors=1, cpus_each=1, gpus_each=gpus_each)


def _extract_on_ray(run: Path, tasks: Sequence[int], threads: int, cluster: Cluster) -> Iterator[Receipt]:
    from expertmine.extract import NewExtractor
    from expertmine.runtime import ray

    own = None if cluster.address else max(os.cpu_count() or 1, (cluster.workers or 1) * threads)
    with ray.cluster(cluster.address, own):
        if cluster.gpus_each and own and not ray.gpus():
            raise UserError("--gpus-each is given and this machine has no GPU that Ray can see; leave it out")
        gpus_each = float(ray.gpus() > 0) if cluster.gpus_each is None else cluster.gpus_each
        room = ray.gpus() / gpus_each if gpus_each else ray.cpus() // threads
        actors = cluster.workers or max(1, int(room))
        yield from ray.run(NewExtractor(run), tasks, actors, cpus_each=threads, gpus_each=gpus_each)


def _score_on_dask(run: Path, tasks: Sequence[int], cluster: Cluster) -> Iterator[Receipt]:
    from expertmine.runtime import dask

    workers = min(cluster.workers or os.cpu_count() or 1, len(tasks))
    with dask.cluster(cluster.address, workers) as client:
        yield from dask.run(client, score.NewScorer(run), tasks)


def _drain(results: Iterator[Receipt], label: str, total: int, tasks: Sequence[int]) -> None:
    for _ in track(results, label, total, total - len(tasks)):
        pass
