"""``expertmine estimate``, and the estimate of ``plan --cluster``. Parse, compose, print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from expertmine.capacity.hardware import EXAMPLE, parse_cluster
from expertmine.cli.groups import with_groups
from expertmine.cli.options import Memory, ResponseOptions, ScoringOptions, UnitOptions, request
from expertmine.cli.show import capacity as show_capacity
from expertmine.cli.show import run as show_run
from expertmine.errors import UserError

if TYPE_CHECKING:
    from expertmine.capacity.estimate import Workload
    from expertmine.capacity.hardware import Hardware
    from expertmine.capacity.unit_costs import UnitCosts
    from expertmine.mining.planning import Bill
    from expertmine.specs.plan import Plan
    from expertmine.storage.locations import Location

CLUSTER_HELP = (
    f"Estimate the job on a cluster such as `{EXAMPLE}`; optional: gpu-memory, gpu-flops, utilisation, gpus-each, "
    "cpu-memory, latency."
)
OfCluster = Annotated[str | None, typer.Option("--cluster", help=CLUSTER_HELP, metavar="NAME=VALUE,…")]
Measure = Annotated[
    bool, typer.Option("--measure", help="Measure kernels and compression on this machine first, for a few seconds.")
]


@with_groups
def estimate(
    units_: UnitOptions,
    responses: ResponseOptions,
    scoring: ScoringOptions,
    sentences: Annotated[int, typer.Option(help="Unique sentences in the corpus.", min=1, show_default=False)],
    concepts: Annotated[int, typer.Option(help="Number of concepts.", min=1, show_default=False)],
    cluster: Annotated[str, typer.Option(help=CLUSTER_HELP, metavar="NAME=VALUE,…", show_default=False)],
    tokens_a_sentence: Annotated[float, typer.Option("--tokens-a-sentence", help="Mean tokens per sentence.")] = 20.0,
    positives: Annotated[int, typer.Option(help="Positives per concept.", min=1)] = 1000,
    negatives: Annotated[int, typer.Option(help="Negatives in the pool.", min=1)] = 1000,
    own_negatives: Annotated[
        bool, typer.Option("--own-negatives", help="Each concept has its own negatives instead of a shared pool.")
    ] = False,
    held_out: Annotated[float, typer.Option("--held-out", help="Percentage held out of each concept.")] = 0.0,
    unit_count: Annotated[
        int | None,
        typer.Option("--units", help="Number of units, if there is no configuration.", min=1),
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option("--parameters", help="Parameters of the transformer blocks, such as 6.5e9; with --units."),
    ] = None,
    scoring_memory: Memory = None,
    measure: Measure = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate a job from its dimensions, without weights or corpus: time by stage, bottlenecks, what would help.

    Only the model's configuration is needed: gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-7b, llama-13b, a
    config.json, or anything that `--model` accepts elsewhere. For a planned run, `expertmine plan --cluster` is more
    exact.

    Example: `expertmine estimate --model gpt2-xl --autocast bfloat16 --sentences 1000000 --concepts 1344 --cluster
    gpus=64,cpus=512,store-bandwidth=10GB/s`
    """
    from expertmine.capacity.workloads import ModelDimensions, Sizes, model_dimensions, paper_workload

    hardware = parse_cluster(cluster)
    plan_request = request(units_, responses, scoring, scoring_memory)
    sizes = Sizes(sentences, tokens_a_sentence, concepts, positives, negatives, held_out, own_negatives)
    if (unit_count is None) != (parameters is None):
        raise UserError("--units and --parameters describe a model together; give both or neither")
    if unit_count is not None and parameters is not None:
        dimensions = ModelDimensions.on_paper(unit_count, parameters)
    else:
        dimensions = model_dimensions(units_.model, units_.revision, plan_request.patterns)
    _print(paper_workload(dimensions, sizes, plan_request), hardware, measure, as_json)


def of_plan(run: Location, plan: Plan, bill: Bill | None, hardware: Hardware, measure: bool, as_json: bool) -> None:
    """Print the bill and an estimate of the rest of a planned run on a cluster."""
    from expertmine.capacity.workloads import workload_of_run
    from expertmine.run.open_run import OpenRun

    if not as_json:
        show_run.bill(run, plan, bill)
    load = workload_of_run(OpenRun(run, plan), bill)
    more = {"run": str(run), "plan": plan.to_json(), "bill": None if bill is None else asdict(bill)}
    _print(load, hardware, measure, as_json, **more)


def _print(load: Workload, hardware: Hardware, measure: bool, as_json: bool, **more: object) -> None:
    from expertmine.capacity.advice import advice
    from expertmine.capacity.estimate import estimate

    costs = _costs(load, measure)
    found = estimate(load, hardware, costs)
    show_capacity.estimate(found, advice(load, hardware, costs), load, hardware, costs, as_json, **more)


def _costs(load: Workload, measure_: bool) -> UnitCosts:
    from expertmine.capacity.unit_costs import MEASURED

    if not measure_:
        return MEASURED
    from expertmine.capacity.calibrate import measure

    return measure(load.dtype, load.codec, load.layout.padded_shape[0], MEASURED)
