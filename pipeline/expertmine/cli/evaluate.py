"""The commands of ``expertmine evaluate``: parse, compose, print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from expertmine.cli.config import takes_config
from expertmine.cli.groups import with_groups
from expertmine.cli.options import ForcingOptions, Run
from expertmine.cli.show import evaluation as show_evaluation
from expertmine.errors import UserError
from expertmine.specs.settings import Pooling

if TYPE_CHECKING:
    from expertmine.evaluate.cells import CellSettings
    from expertmine.evaluate.tasks import Runtime
    from expertmine.runtime.cluster import ModelExecutorName

app = typer.Typer(help="Measure the effects of steering.", no_args_is_help=True)

Concepts = Annotated[
    list[str] | None, typer.Option("--concept", help="A concept; repeatable. [default: some at random]")
]
Count = Annotated[int, typer.Option("--count", help="Number of random concepts.", min=1)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Maximum length of a generation, in tokens.", min=1)]


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """The options of every evaluation."""

    samples: Annotated[int, typer.Option("-n", "--samples", help="Generations per concept and k.", min=1)] = 100
    judge_model: Annotated[
        str | None,
        typer.Option("--judge-model", help="Measure perplexity with this model. [default: the same model, unsteered]"),
    ] = None
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Use the experts of this pooling. [default: the run's first]")
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Seed of every random choice.", min=0, max=2**32 - 1)] = 0
    executor: Annotated[str, typer.Option("--executor", help="Run in this process (serial) or on Ray actors.")] = (
        "serial"
    )
    address: Annotated[
        str | None,
        typer.Option("--address", help="A running Ray cluster; `auto` for this machine's. [default: start one]"),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Number of actors. [default: as many as fit the cluster]", min=1),
    ] = None
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="File for the figure: .svg, .png or .pdf. [default: .svg next to the result]"),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False

    def settings(self, forcing: ForcingOptions, max_new_tokens: int) -> CellSettings:
        """Settings of generation and measurement.

        Raises:
            UserError: a value out of range.
        """
        from expertmine.evaluate.cells import CellSettings

        return CellSettings(self.samples, max_new_tokens, forcing.steering(0), self.seed, self.judge_model)

    def runtime(self) -> Runtime:
        """Where tasks run.

        Raises:
            UserError: an unknown executor.
        """
        from expertmine.evaluate.tasks import Runtime

        if self.executor not in ("serial", "ray"):
            raise UserError(f"--executor is {self.executor!r}: expected serial or ray")
        return Runtime(cast("ModelExecutorName", self.executor), self.address, self.workers)


@app.command("concept")
@takes_config
@with_groups
def concept(
    run: Run,
    forcing: ForcingOptions,
    options: EvaluationOptions,
    concept: Concepts = None,
    count: Count = 30,
    k: Annotated[list[int] | None, typer.Option("-k", help="Experts to set; repeatable. [default: 0 to 300]")] = None,
    max_new_tokens: NewTokens = 40,
    fluency: Annotated[
        float, typer.Option(help="Perplexity allowed for the chosen k, as a multiple of that at k = 0.", min=1)
    ] = 3.0,
) -> None:
    """Measure success and fluency against k, and choose the best k per concept. Resumes.

    Success is the share of generations that an independent classifier assigns to the concept, and the share with one
    of its words. The chosen k is saved in the run's index; `generate` and `serve` use it by default.

    Example: `expertmine evaluate concept run --concept bird.n.01 -k 10 -k 30 -k 100`
    """
    from expertmine.evaluate.concept import LADDER, evaluate
    from expertmine.report.evaluation_figures import concept_figure

    settings = options.settings(forcing, max_new_tokens)
    found = evaluate(run, concept or (), count, k or LADDER, settings, fluency, options.pooling, options.runtime())
    drawn = show_evaluation.draw(run, found, concept_figure, options.figure)
    show_evaluation.concept(found, drawn, options.as_json)


@app.command("ablation")
@takes_config
@with_groups
def ablation(
    run: Run,
    forcing: ForcingOptions,
    options: EvaluationOptions,
    concept: Concepts = None,
    count: Count = 30,
    k: Annotated[
        int | None, typer.Option("-k", help="Units to set. [default: chosen by `evaluate concept`]", min=1)
    ] = None,
    max_new_tokens: NewTokens = 40,
) -> None:
    """Compare experts with the same number of other units: do experts matter more than chance? Resumes.

    The other units are random units of the model, random units of the experts' hookpoints, experts of lower rank, and
    the worst units. By default it uses concepts that `evaluate concept` has evaluated, with new texts.

    Example: `expertmine evaluate ablation run --count 30`
    """
    from expertmine.evaluate.ablation import evaluate
    from expertmine.report.evaluation_figures import ablation_figure

    settings = options.settings(forcing, max_new_tokens)
    found = evaluate(run, concept or (), count, k, settings, options.pooling, options.runtime())
    drawn = show_evaluation.draw(run, found, ablation_figure, options.figure)
    show_evaluation.ablation(found, drawn, options.as_json)


@app.command("parity")
@takes_config
@with_groups
def parity(
    run: Run,
    forcing: ForcingOptions,
    options: EvaluationOptions,
    man: Annotated[str, typer.Option(help="Concept to set if a context leans to she.")] = "man.n.01",
    woman: Annotated[str, typer.Option(help="Concept to set if a context leans to he.")] = "woman.n.01",
    occupations: Annotated[
        Path | None, typer.Option(help="File of occupations, one per line. [default: the paper's 51]")
    ] = None,
    contexts: Annotated[
        int | None, typer.Option(help="Number of random contexts. [default: all, 17 per occupation]", min=1)
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="Experts to set; repeatable. [default: the paper's]")
    ] = None,
    estimate: Annotated[
        list[str] | None,
        typer.Option(help="`sampled` (count generations) or `exact` (next-token probability). [default: both]"),
    ] = None,
    max_new_tokens: NewTokens = 15,
) -> None:
    """Measure how many experts make *she* as likely as *he* (section 5 of the paper), over 867 contexts. Resumes.

    The exact estimate takes half a minute, sampling an hour.

    Example: `expertmine evaluate parity run --estimate exact`
    """
    from expertmine.evaluate.contexts import contexts as every_context
    from expertmine.evaluate.contexts import draw, read_occupations
    from expertmine.evaluate.parity import LADDER, Pair, evaluate
    from expertmine.report.evaluation_figures import parity_figure

    which = every_context() if occupations is None else every_context(read_occupations(occupations))
    if contexts is not None:
        which = draw(which, contexts, options.seed)
    settings = options.settings(forcing, max_new_tokens)
    found = evaluate(
        run,
        Pair(man, woman),
        which,
        k or LADDER,
        settings,
        show_evaluation.estimates(estimate),
        options.pooling,
        options.runtime(),
    )
    drawn = show_evaluation.draw(run, found, parity_figure, options.figure)
    show_evaluation.parity(found, drawn, options.as_json)
