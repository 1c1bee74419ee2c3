"""The commands of a run: plan, extract, score, reduce, mine, status, verify. Parse, compose, print."""

from __future__ import annotations

from typing import Annotated

import typer

from expertmine.capacity.hardware import parse_cluster
from expertmine.cli import capacity as cli_capacity
from expertmine.cli.config import takes_config
from expertmine.cli.groups import with_groups
from expertmine.cli.options import (
    AsJson,
    ClusterOptions,
    GpusEach,
    Memory,
    ResponseOptions,
    Run,
    ScoringOptions,
    TopK,
    UnitOptions,
    Where,
    request,
)
from expertmine.cli.show import run as show_run
from expertmine.runtime.cluster import Cluster, ExecutorName, ModelExecutorName
from expertmine.storage.locations import location

# torch, transformers, ray and dask take seconds to import: commands import what they need.

CorpusOption = Annotated[
    Where,
    typer.Option(
        "--corpus", parser=location, metavar="CORPUS", help="Corpus folder; may be s3://….", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Plan even if the disk or the memory may not be enough.")]
Workers = Annotated[int | None, typer.Option(help="Number of processes. [default: as many as fit the cluster]", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (plan, extract, score, reduce, mine, status, verify):
        app.command()(command)


@takes_config
@with_groups
def plan(
    run: Run,
    corpus: CorpusOption,
    units_: UnitOptions,
    responses: ResponseOptions,
    scoring: ScoringOptions,
    scoring_memory: Memory = None,
    force: Force = False,
    cluster: cli_capacity.OfCluster = None,
    measure: cli_capacity.Measure = False,
    as_json: AsJson = False,
) -> None:
    """Freeze the plan of a run and print the bill: time, disk and memory, before anything runs.

    If the run is already planned, report that; if its corpus has grown or scoring options differ, plan the work that
    is needed again. With `--cluster`, also estimate the remaining work on that cluster.

    Example: `expertmine plan run --model embedded --corpus corpus`
    """
    from expertmine.mining.mine import freeze_plan

    hardware = None if cluster is None else parse_cluster(cluster)
    planned = freeze_plan(run, corpus, request(units_, responses, scoring, scoring_memory), force)
    if hardware is not None:
        cli_capacity.of_plan(run, *planned, hardware, measure, as_json)
    else:
        (show_run.bill_as_json if as_json else show_run.bill)(run, *planned)


@takes_config
def extract(
    run: Run,
    executor: Annotated[ModelExecutorName, typer.Option(help="What runs the extraction.")] = "ray",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; `auto` for this machine's. [default: start one]")
    ] = None,
    workers: Workers = None,
    gpus_each: GpusEach = None,
) -> None:
    """Stage 1: run every sentence through the model once and store the pooled responses. Resumes.

    Example: `expertmine extract run --address auto`
    """
    from expertmine.mining.mine import run_extract

    run_extract(run, executor, Cluster(address, workers, gpus_each))
    _print_costs(run)


@takes_config
def score(
    run: Run,
    executor: Annotated[ExecutorName, typer.Option(help="What runs the scoring.")] = "dask",
    address: Annotated[
        str | None, typer.Option(help="A running Dask scheduler, or a Ray cluster. [default: start one]")
    ] = None,
    workers: Workers = None,
    scoring_memory: Memory = None,
) -> None:
    """Stage 2: compute the average precision of every unit for every concept, and test the best units. Resumes.

    Options of scoring are part of the plan: give them to `plan` or `mine`, also for a run that is already planned.

    Example: `expertmine score run --workers 4`
    """
    from expertmine.mining.mine import run_score

    run_score(run, executor, Cluster(address, workers, memory=scoring_memory))
    _print_costs(run)


@takes_config
def reduce(run: Run, top_k: TopK = None) -> None:
    """Stage 3: write the expert index, the best and worst units of every concept.

    Example: `expertmine reduce run --top-k 1000`
    """
    from expertmine.mining.mine import run_reduce

    show_run.index_written(run_reduce(run, top_k))


@takes_config
@with_groups
def mine(
    run: Run,
    corpus: CorpusOption,
    units_: UnitOptions,
    responses: ResponseOptions,
    scoring: ScoringOptions,
    clusters: ClusterOptions,
    scoring_memory: Memory = None,
    top_k: TopK = None,
    force: Force = False,
) -> None:
    """Run all stages. To resume a stopped run, run the same command again.

    If the corpus has grown, only new sentences are run through the model; without new sentences the model is not
    loaded.

    Example: `expertmine mine run --model gpt2 --corpus corpus`, or `expertmine mine --config job.yaml`
    """
    from expertmine.mining.mine import driven, freeze_plan, run_all

    plan_request = request(units_, responses, scoring, scoring_memory)
    with driven(run, "mine"):  # for all stages, so that nobody else plans in between
        show_run.bill(run, *freeze_plan(run, corpus, plan_request, force))
        indexes = run_all(run, clusters.extracting(), clusters.scoring(plan_request.scoring_memory), top_k)
    _print_costs(run)
    show_run.index_written(indexes)


def _print_costs(run: Where) -> None:
    """Print the costs of the run so far, if this command has added to them."""
    from expertmine.run.inspection import driven_here

    show_run.costs(run, driven_here(run))


def status(run: Run, as_json: AsJson = False) -> None:
    """Show a run's progress, speed and remaining time, and what each worker is doing.

    Example: `expertmine status run`
    """
    from expertmine.run.inspection import attempts_of, progress_of, workers_of

    show_run.status(run, progress_of(run), workers_of(run), attempts_of(run), as_json)


def verify(run: Run) -> None:
    """Check a run's stored data against its receipts.

    Example: `expertmine verify run`
    """
    from expertmine.run.inspection import verify as verify_run

    show_run.verified(run, verify_run(run))
