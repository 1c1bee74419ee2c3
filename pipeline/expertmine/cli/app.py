"""The command line: parse, compose, print. No logic of its own.

Bad input ends with one message and exit code 2; Ctrl-C with exit code 130, and the same command goes on from there.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from expertmine.capacity.hardware import parse_cluster
from expertmine.cli import capacity as cli_capacity
from expertmine.cli import concepts as cli_concepts
from expertmine.cli import evaluate as cli_evaluate
from expertmine.cli import index as cli_index
from expertmine.cli import report as cli_report
from expertmine.cli import serve as cli_serve
from expertmine.cli.config import config_of, takes_config
from expertmine.cli.groups import with_groups
from expertmine.cli.options import (
    ChoiceOptions,
    ClusterOptions,
    ForcingOptions,
    GpusEach,
    Memory,
    ResponseOptions,
    Run,
    ScoringOptions,
    UnitOptions,
    Where,
    request,
)
from expertmine.cli.show import console as show
from expertmine.cli.show import experts as show_experts
from expertmine.cli.show import run as show_run
from expertmine.errors import UserError
from expertmine.index.distribution import Grouping
from expertmine.index.experts import DEFAULT_K
from expertmine.mining.mine import (
    DEFAULT_TOP_K,
    Cluster,
    ExtractExecutor,
    ScoreExecutor,
    run_all,
    run_extract,
    run_reduce,
    run_score,
)
from expertmine.specs.settings import Pooling
from expertmine.steering.assignment import usual_k
from expertmine.storage.locations import place
from expertmine.telemetry.logs import LogFormat, configure
from expertmine.telemetry.progress import console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

# torch, transformers, ray and dask take seconds to import: commands import what they need.

app = typer.Typer(
    help="Find the expert units of concepts in a transformer language model, and steer generation with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_concepts.app, name="concepts")
app.add_typer(cli_evaluate.app, name="evaluate")


@app.callback()
def log(
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="EXPERTMINE_LOG_FORMAT",
            help="Lines of the log: `json` has one object a line; without --log-file on standard error, in place of "
            "progress bars.",
        ),
    ] = "text",
    log_file: Annotated[
        Path | None,
        typer.Option(
            envvar="EXPERTMINE_LOG_FILE",
            help="Log every event to this file, behind what it has. [default: warnings to standard error]",
            show_default=False,
        ),
    ] = None,
) -> None:
    configure(log_format, log_file, console)


CorpusOption = Annotated[
    Where,
    typer.Option("--corpus", parser=place, metavar="CORPUS", help="Corpus folder; may be s3://….", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Plan even what may not fit the disk or the memory.")]
TopK = Annotated[
    int | None, typer.Option("--top-k", help=f"Experts to keep a concept. [default: {DEFAULT_TOP_K}]", min=1)
]
Workers = Annotated[int | None, typer.Option(help="Processes. [default: what the machine or cluster has]", min=1)]
WhichPooling = Annotated[
    Pooling | None, typer.Option("--pooling", help="Experts by this pooling. [default: the run's first]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Of every random choice.", min=0, max=2**32 - 1)]


@app.command()
def demo(
    out: Annotated[Where, typer.Option(parser=place, metavar="RUN", help="Run folder.")] = Path("demo-run"),
    concepts: Annotated[int, typer.Option(help="How many WordNet concepts to mine.", min=20)] = 240,
) -> None:
    """The whole job on the embedded model and WordNet: mine, look at experts, steer.

    Example: `expertmine demo --out demo-run`
    """
    from expertmine.cli.demo import run_demo

    run_demo(out, concepts)


@app.command()
@takes_config
@with_groups
def units(units_: UnitOptions, as_json: AsJson = False) -> None:
    """List the hookpoints of a model, their widths and unit ids.

    Example: `expertmine units --model gpt2 --hookpoint mlp`
    """
    from expertmine.model.hookpoints import find_hookpoints, left_out_experts
    from expertmine.model.load import load_model

    loaded = load_model(units_.model, units_.revision)
    hookpoints = find_hookpoints(loaded.model, tuple(units_.hookpoints or ()))
    show_run.units(loaded.identity, hookpoints, left_out_experts(loaded.model), as_json)


@app.command()
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
    """Freeze what a run is made of, and print the bill before anything is run.

    Of a run that is planned already, say that; when its corpus has grown, or other options of scoring are given, plan
    what is to be done anew. With `--cluster` also estimate what is left of it there.

    Example: `expertmine plan run --model embedded --corpus corpus`
    """
    from expertmine.mining.mine import freeze_plan

    hardware = None if cluster is None else parse_cluster(cluster)
    planned = freeze_plan(run, corpus, request(units_, responses, scoring, scoring_memory), force)
    if hardware is not None:
        cli_capacity.of_plan(run, *planned, hardware, measure, as_json)
    else:
        (show_run.bill_as_json if as_json else show_run.bill)(run, *planned)


@app.command()
@takes_config
def extract(
    run: Run,
    executor: Annotated[ExtractExecutor, typer.Option(help="Who runs it.")] = "ray",
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; `auto` for this machine's. [default: one of its own]")
    ] = None,
    workers: Workers = None,
    gpus_each: GpusEach = None,
) -> None:
    """Stage 1: run every sentence through the model once and store the pooled responses. Resumes.

    Example: `expertmine extract run --address auto`
    """
    run_extract(run, executor, Cluster(address, workers, gpus_each))
    _tell_costs(run)


@app.command()
@takes_config
def score(
    run: Run,
    executor: Annotated[ScoreExecutor, typer.Option(help="Who runs it.")] = "dask",
    address: Annotated[
        str | None, typer.Option(help="A running Dask scheduler, or a Ray cluster. [default: one of its own]")
    ] = None,
    workers: Workers = None,
    scoring_memory: Memory = None,
) -> None:
    """Stage 2: the average precision of every unit for every concept, and how sure the best are. Resumes.

    What is computed beside average precision is part of the plan: `plan` and `mine` take its options, also for a run
    that is planned already.

    Example: `expertmine score run --workers 4`
    """
    run_score(run, executor, Cluster(address, workers, memory=scoring_memory))
    _tell_costs(run)


@app.command()
@takes_config
def reduce(run: Run, top_k: TopK = None) -> None:
    """Stage 3: the best and the worst units of every concept, as the expert index.

    Example: `expertmine reduce run --top-k 1000`
    """
    show_run.index_written(run_reduce(run, top_k))


@app.command()
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
    """All stages in a row. Run the same command again and it goes on where it stopped.

    With a corpus that has grown since, only the sentences that are new are run through the model; where there are none,
    the model is not even loaded.

    Example: `expertmine mine run --model gpt2 --corpus corpus`, or `expertmine mine --config job.yaml`
    """
    from expertmine.mining.mine import driven, freeze_plan

    asked = request(units_, responses, scoring, scoring_memory)
    with driven(run, "mine"):  # all of it: nobody else is to plan in between
        show_run.bill(run, *freeze_plan(run, corpus, asked, force))
        indexes = run_all(run, clusters.extracting(), clusters.scoring(asked.scoring_memory), top_k)
    _tell_costs(run)
    show_run.index_written(indexes)


def _tell_costs(run: Where) -> None:
    """What the run has cost so far, if this command has added to that."""
    from expertmine.run.inspection import driven_here

    show_run.costs(run, driven_here(run))


@app.command()
def status(run: Run, as_json: AsJson = False) -> None:
    """How far a run is, how fast, for how long yet, and what each worker is doing.

    Example: `expertmine status run`
    """
    from expertmine.run.inspection import drivers_of, progress_of, workers_of

    show_run.status(run, progress_of(run), workers_of(run), drivers_of(run), as_json)


@app.command()
def verify(run: Run) -> None:
    """Read everything that a run has stored again, and compare it with the receipts.

    Example: `expertmine verify run`
    """
    from expertmine.run.inspection import verify as verify_run

    show_run.verified(run, verify_run(run))


@app.command()
def experts(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name; none for all of them.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many.", min=1)] = 10,
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """The best units of a concept; or of every concept its best, and whether that is more than chance.

    Example: `expertmine experts run bird.n.01 -k 20`
    """
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.tell_if_stale(run, index)
    if concept is None:
        show_experts.every_concept(index, as_json)
    else:
        show_experts.one_concept(index, concept, k, as_json)


@app.command()
def distribution(
    run: Run,
    concept: Annotated[
        str | None, typer.Argument(help="Concept name; none for all together.", show_default=False)
    ] = None,
    by: Annotated[Grouping, typer.Option("--by", help="What the rows are.")] = "layer",
    pooling: WhichPooling = None,
    as_json: AsJson = False,
) -> None:
    """How average precision is distributed over the model's layers, kinds of module, or hookpoints.

    Example: `expertmine distribution run bird.n.01 --by hookpoint`
    """
    from expertmine.index.distribution import grouped
    from expertmine.index.experts import Experts

    index = Experts.load(run, pooling)
    show_experts.tell_if_stale(run, index)
    if concept is not None:
        index.concept_facts(concept)  # refuses one that is not there
    show_experts.distribution(grouped(index.distribution, concept, by), concept, by, as_json)


@app.command()
@takes_config
@with_groups
def generate(
    run: Annotated[str, typer.Argument(help="Run folder, expert index, or pack.", show_default=False)],
    forcing: ForcingOptions,
    choice: ChoiceOptions,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="Concept to steer to; repeatable: all at once. None leaves the model as it is."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", help=f"Experts to set. [default: what evaluation chose, or {DEFAULT_K}]", min=0),
    ] = None,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")] = "",
    count: Annotated[int, typer.Option("-n", help="Continuations.", min=1)] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Tokens that sampling chooses among; 0 for all.", min=0)] = 10,
    top_p: Annotated[float, typer.Option(help="Probability that these add up to.")] = 1.0,
    pooling: WhichPooling = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model is, if not where it was mined; its weights must be the same.")
    ] = None,
    seed: Seed = 0,
    executor: Annotated[ExtractExecutor, typer.Option(help="In this process, or as a Ray actor.")] = "serial",
    as_json: AsJson = False,
) -> None:
    """Write text while the experts of a concept are set: do(c, k).

    Example: `expertmine generate run --concept bird.n.01 -k 50 -n 5`
    """
    from expertmine.index.experts import Experts
    from expertmine.serving.offline import run_generate
    from expertmine.steering.generation import GenerationRequest

    concepts = tuple(concept or ())
    steering = replace(forcing.steering(k or 0), block=choice.block, conflicts=choice.conflicts)
    if k is None:
        steering = replace(steering, k=usual_k(Experts.load(run, pooling), concepts, steering, choice.units)[0])
    asked = GenerationRequest(
        concepts=concepts,
        steering=steering,
        units=choice.units,
        prompt=prompt,
        count=count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    (texts,) = run_generate(run, [asked], executor, pooling, model)
    show.texts(asked, texts, as_json)


app.command("config")(config_of(mine))
app.command()(takes_config(cli_serve.serve))
app.command()(cli_report.report)
app.command()(cli_capacity.estimate)
cli_index.register(app)


def main() -> None:
    """Entry point of the ``expertmine`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn about it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of missing masks where none is needed
    try:
        app()
    except UserError as error:
        show.problem(str(error))
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns a KeyboardInterrupt into this, silently
            show.problem("stopped; what is done is kept, and the same command goes on from there")
        raise
