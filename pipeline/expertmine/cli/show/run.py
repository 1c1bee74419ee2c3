"""Prints a run: its bill, its progress and costs, and whether its data are intact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from expertmine.cli.show.console import as_json, out, table
from expertmine.errors import UserError
from expertmine.run.paths import failure_file, receipt_file
from expertmine.storage.locations import absolute
from expertmine.storage.untrusted import visible
from expertmine.telemetry import logs
from expertmine.telemetry.formats import duration, number, size
from expertmine.telemetry.progress import console as stderr

if TYPE_CHECKING:
    from expertmine.mining.planning import Bill
    from expertmine.run.attempts import StageAttempt
    from expertmine.run.costs import Costs
    from expertmine.run.inspection import Damage, StageProgress, Worker
    from expertmine.specs.hookpoints import Hookpoint
    from expertmine.specs.identity import ModelIdentity
    from expertmine.specs.plan import Plan
    from expertmine.storage.locations import Location

SHOWN_WORKERS = 12
SHOWN_COUNTS = ("sentences", "tokens", "pairs", "experts")
"""Counts shown in tables; JSON has all."""


def bill(run: Location, plan: Plan, bill_: Bill | None) -> None:
    """Print what a plan will cost, on standard error because it precedes results."""
    metadata = None if bill_ is None else asdict(bill_)
    logs.event("run planned", run=str(absolute(run)), sentences=plan.corpus.sentences, bill=metadata)
    if logs.on_stderr():
        return
    if bill_ is None:
        stderr.print(f"{run} is already planned: {plan.corpus.sentences:,} sentences", markup=False, soft_wrap=True)
        return
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(justify="left")
    made.add_column(justify="left")
    for label, text in _lines(plan, bill_):
        made.add_row(label, escape(visible(text)))
    stderr.print(made)


def bill_as_json(run: Location, plan: Plan, bill_: Bill | None) -> None:
    planned = {"partitions": plan.tasks("extract"), "scoring_tasks": plan.tasks("score")}
    as_json({"run": str(run), "plan": plan.to_json(), **planned, "bill": None if bill_ is None else asdict(bill_)})


def _lines(plan: Plan, bill_: Bill) -> Iterator[tuple[str, str]]:
    model = plan.model
    yield (
        "model",
        f"{model.name} ({model.architecture}), {bill_.units:,} units, {len(plan.hookpoints)} hookpoints",
    )
    if bill_.left_out:
        yield "left out", f"experts of mixtures without plain linear maps, such as {bill_.left_out[0]}"
    dropped = f", {bill_.dropped:,} dropped" if bill_.dropped else ""
    stored = f"; {bill_.stored:,} others are already in the run" if bill_.stored else ""
    yield "sentences", f"{bill_.sentences:,} to run{dropped}, {bill_.tokens:,} tokens{stored}"
    poolings = plan.responses.poolings
    each = f", for each pooling of {', '.join(poolings)}" if len(poolings) > 1 else ""
    yield "pairs", f"{plan.corpus.concepts:,} concepts × {bill_.units:,} units = {bill_.pairs:,}{each}"
    yield (
        "disk",
        f"{size(bill_.response_bytes)} of responses, about {size(bill_.stored_bytes)} compressed, and "
        f"{size(bill_.expertise_bytes)} of expertise before compression, in {bill_.files:,} files",
    )
    choices = (f"--keep {keep}: {size(bytes_)}" for keep, bytes_ in bill_.expertise_choices.items())
    yield "expertise", ", ".join(choices)
    scoring = plan.scoring
    resampled = f"; sentences resampled {scoring.resamples} times for the best units" if scoring.resamples else ""
    yield "chance", f"{bill_.null_sets:,} shuffles of labels for {plan.corpus.concepts:,} concepts{resampled}"
    extracting = (
        ""
        if bill_.extract_memory is None
        else f"{size(bill_.extract_memory)} per extracting process, in addition to Python and its libraries; "
    )
    yield "memory", f"{extracting}{size(bill_.score_memory)} per scoring process"
    yield "tasks", f"{plan.layout.partitions:,} partitions, {plan.tasks('score'):,} blocks of units"
    if bill_.extract_seconds is not None and bill_.tokens:
        took = f"about {duration(bill_.extract_seconds)} with one process"
        yield "extraction", f"{took} on this machine; n processes take about 1/n as long"


def index_written(folders: Sequence[Location]) -> None:
    for folder in folders:
        out.print(f"{folder}: expert index", soft_wrap=True, markup=False)


def units(model: ModelIdentity, hookpoints: Sequence[Hookpoint], left_out: Sequence[str], json_: bool) -> None:
    """Print the hookpoints of a model in order of execution, and experts of mixtures that cannot be mined."""
    total = sum(hookpoint.width for hookpoint in hookpoints)
    if json_:
        listed = {"hookpoints": [asdict(each) for each in hookpoints], "left_out": left_out}
        as_json({"model": asdict(model), "units": total, **listed})
        return
    made = table("hookpoint", "width", "units")
    for hookpoint in hookpoints:
        first, last = hookpoint.units.start, hookpoint.units.stop - 1
        made.add_row(escape(visible(hookpoint.name)), f"{hookpoint.width:,}", f"{first} – {last}")
    out.print(made)
    named = visible(f"{model.name} ({model.architecture})")
    out.print(f"{named}: {len(hookpoints):,} hookpoints, {total:,} units", markup=False)
    for name in left_out:
        out.print(f"{visible(name)}: experts of a mixture without plain linear maps; they have no units", markup=False)


def status(
    run: Location,
    stages: Sequence[StageProgress],
    workers: Sequence[Worker],
    attempts: Sequence[StageAttempt],
    json_: bool,
) -> None:
    """Print a run's progress, costs and workers.

    Args:
        attempts: the stage attempts that are still running.
    """
    if json_:
        document = {"stages": [asdict(stage) for stage in stages], "workers": [asdict(worker) for worker in workers]}
        as_json({"run": str(run), **document, "drivers": [asdict(attempt) for attempt in attempts]})
        return
    made = table("stage", "tasks", "done", "time left", "counts", "per second")
    for column in made.columns[-2:]:
        column.justify = "left"
    for stage in stages:
        counts = [name for name in SHOWN_COUNTS if name in stage.counts]
        made.add_row(
            stage.stage,
            f"{stage.done:,}/{stage.total:,}",
            f"{stage.done / stage.total:.0%}",
            "" if stage.seconds_left is None else duration(stage.seconds_left),
            ", ".join(f"{stage.counts[name]:,} {name}" for name in counts),
            ", ".join(f"{stage.per_second[name]:,.0f} {name}" for name in counts),
        )
    out.print(made)
    for stage in stages:
        for note in _notes(run, stage):
            out.print(visible(f"{stage.stage}: {note}"), soft_wrap=True, markup=False)
    for attempt in attempts:
        if attempt.metrics:
            running = f"{attempt.stage}: metrics at {', '.join(attempt.metrics)} while it runs"
            out.print(visible(running), soft_wrap=True, markup=False)
    if any(stage.costs and stage.costs.tasks for stage in stages):
        out.print()
        out.print(_cost_table(stages))
    _workers(workers)


def costs(run: Location, stages: Sequence[StageProgress]) -> None:
    """Print what a run has cost so far, on standard error because it is not a result."""
    spent = [stage for stage in stages if stage.costs and stage.costs.tasks]
    for stage in spent:
        assert stage.costs is not None
        logs.event("costs", run=str(absolute(run)), stage=stage.stage, **asdict(stage.costs))
    if spent and not logs.on_stderr():
        stderr.print(_cost_table(spent))


def _cost_table(stages: Sequence[StageProgress]) -> Table:
    # "At work" is the time in which any task was running.
    times = ("elapsed", "at work", "workers", "worker time", "CPU time", "GPU time")
    made = table("cost", *times, "stored", "per second", "problems")
    for column in made.columns[-2:]:
        column.justify = "left"
    for stage in stages:
        if stage.costs and stage.costs.tasks:
            made.add_row(stage.stage, *_cost_cells(stage.costs))
    return made


def _cost_cells(spent: Costs) -> Iterator[str]:
    yield duration(spent.elapsed_seconds)
    yield duration(spent.wall_seconds)
    yield f"{spent.workers:,}"
    yield duration(spent.worker_seconds)
    yield duration(spent.cpu_seconds)
    yield duration(spent.gpu_seconds) if spent.gpu_seconds else "–"
    yield size(spent.stored_bytes) if spent.stored_bytes else ""
    yield ", ".join(f"{number(spent.per_second[name])} {name}" for name in SHOWN_COUNTS if name in spent.per_second)
    problems = (("retried", spent.retried), ("workers lost", spent.lost), ("failed", spent.failed))
    yield ", ".join(f"{count:,} {what}" for what, count in problems if count)


def _notes(run: Location, stage: StageProgress) -> Iterator[str]:
    """Notes on a stage in addition to its progress."""
    if saturated := sum(count for name, count in stage.counts.items() if name.startswith("saturated ")):
        yield f"{saturated:,} responses beyond float16's range were stored as its largest value"
    if stage.counts.get("dropped"):
        yield f"{stage.counts['dropped']:,} sentences dropped, because they are too long or have no tokens"
    if stage.counts.get("halvings"):
        yield "memory ran out and batches were made smaller; last bits of responses may differ"
    if len(stage.platforms) > 1:
        kinds = "; ".join(stage.platforms)
        yield f"ran on {len(stage.platforms)} kinds of machine ({kinds}); last bits of responses may differ"
    for failure in stage.failures:
        where = failure_file(run, failure.stage, failure.task)
        yield f"gave up task {failure.task}: {failure.reason} ({where})"


def _workers(workers: Sequence[Worker]) -> None:
    if not workers:
        return
    made = table("worker", "stage", "doing", "for", "tasks", "on", left=3)
    made.columns[-1].justify = "left"
    for worker in workers[:SHOWN_WORKERS]:
        state = worker.state
        made.add_row(
            escape(visible(f"{state.machine}, process {state.process}")),
            escape(visible(state.stage)),
            "ended" if worker.alive is False else escape(visible(state.doing)),
            duration(worker.seconds),
            f"{state.tasks:,}",
            escape(visible(state.platform)),
        )
    out.print()
    out.print(made)
    if len(workers) > SHOWN_WORKERS:
        out.print(f"… and {len(workers) - SHOWN_WORKERS:,} others; --json lists them")


def verified(run: Location, verdicts: Iterator[Damage | None]) -> None:
    """Print the result of a verification.

    Raises:
        UserError: data are damaged; names the receipts to remove.
    """
    checked = list(verdicts)
    damaged = [verdict for verdict in checked if verdict is not None]
    if damaged:
        names = " ".join(str(receipt_file(run, d.stage, d.task)) for d in damaged[:10])
        raise UserError(
            f"{run}: {len(damaged)} of {len(checked)} tasks do not match their receipts, first {damaged[0].stage} task "
            f"{damaged[0].task}. Remove these receipts and run the stage again: {names}"
        )
    if not checked:
        raise UserError(f"{run}: nothing to verify yet, since no task has finished; run `expertmine extract {run}`")
    out.print(f"{run}: {len(checked):,} tasks match their receipts", soft_wrap=True, markup=False)
