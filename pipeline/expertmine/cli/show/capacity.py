"""Prints an estimate: the stages and their bottlenecks, changes that would help, and the assumptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from expertmine.capacity.hardware import assumed
from expertmine.cli.show.console import as_json, out, table
from expertmine.telemetry.formats import duration, size

if TYPE_CHECKING:
    from expertmine.capacity.advice import Advice
    from expertmine.capacity.estimate import Estimate, StageEstimate, Workload
    from expertmine.capacity.hardware import Hardware
    from expertmine.capacity.unit_costs import UnitCosts

WORTH_SHOWING = 0.97
"""A change is shown if it reduces the job's time to this share or less."""
SHOWN_WORK = 3
"""Kinds of work shown per stage."""


def estimate(
    found: Estimate,
    advice: Advice,
    load: Workload,
    hardware: Hardware,
    costs: UnitCosts,
    json_: bool,
    **more: Any,
) -> None:
    """Print an estimate.

    Args:
        more: further fields of the JSON document.
    """
    if json_:
        as_json({**more, "capacity": _document(found, advice, load, hardware, costs)})
        return
    for label, text in _summary(found, load):
        out.print(f"{label:<12}{text}", markup=False, soft_wrap=True)
    out.print()
    out.print(_stages(found))
    out.print()
    slowest = found.bottleneck
    share = slowest.seconds / found.seconds if found.seconds else 0.0
    out.print(
        f"bottleneck  {slowest.stage}, {share:.0%} of the time, limited by {_limit(slowest)}",
        markup=False,
        soft_wrap=True,
    )
    for need in found.memory:
        verdict = "" if need.fits else f": does not fit; {need.remedy}"
        text = f"{need.what} needs {size(need.needed)} of {size(need.given)}{verdict}"
        out.print(f"{'memory':<12}{text}", markup=False, soft_wrap=True)
    _advise(found, advice)
    out.print()
    for line in _assumptions(load, hardware, costs):
        out.print(f"{'assumed':<12}{line}", markup=False, soft_wrap=True)


def _summary(found: Estimate, load: Workload) -> Iterator[tuple[str, str]]:
    layout = load.layout
    of_all = "" if load.left["extract"] == layout.partitions else f"; {layout.sentences:,} sentences in total"
    yield "to run", f"{load.tokens:,} tokens through {load.parameters / 1e6:,.1f} million parameters{of_all}"
    poolings = f" × {load.poolings} poolings" if load.poolings > 1 else ""
    yield "pairs", f"{load.concepts:,} concepts × {layout.units:,} units{poolings} = {load.pairs:,}"
    yield (
        "store",
        f"{size(found.stored_bytes)} of compressed responses, and {size(found.expertise_bytes)} of statistics before "
        "compression",
    )
    gpus = f"{found.gpu_hours:,.1f} GPU hours ({found.gpu_hours_at_work:,.1f} at work), " if found.gpu_hours else ""
    yield "takes", f"{duration(found.seconds)}, {gpus}{found.core_hours:,.1f} core hours"


def _stages(found: Estimate) -> Table:
    made = table("stage", "time", "bottleneck", "next", "tasks", "workers", "idle", "work")
    for column in (made.columns[2], made.columns[3], made.columns[-1]):
        column.justify = "left"
    made.columns[-1].no_wrap = False
    for stage in found.stages:
        _, *others = sorted(stage.lanes.items(), key=lambda lane: -lane[1])
        made.add_row(
            stage.stage,
            duration(stage.seconds),
            escape(_limit(stage)),
            escape(f"{others[0][0]}, {duration(others[0][1])}") if others else "",
            f"{stage.tasks:,}",
            f"{stage.workers:,}",
            f"{stage.idle:.0%}",
            escape(_work(stage)),
        )
    return made


def _limit(stage: StageEstimate) -> str:
    if stage.seconds > 2 * max(stage.lanes.values()):
        return "the start of its processes"
    return stage.bottleneck


def _work(stage: StageEstimate) -> str:
    """The largest kinds of work, as shares of all work."""
    total = sum(stage.work.values()) or 1.0
    largest = sorted(stage.work.items(), key=lambda work: -work[1])[:SHOWN_WORK]
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in largest)


def _advise(found: Estimate, advice: Advice) -> None:
    worth = [change for change in advice.changes if change.seconds < WORTH_SHOWING * found.seconds]
    if worth:
        out.print()
        made = table("what would help", "new time", "of now", "gives up")
        made.columns[-1].justify = "left"
        for change in worth:
            share = f"{change.seconds / found.seconds:.0%}"
            made.add_row(escape(change.what), duration(change.seconds), share, escape(change.gives_up))
        out.print(made)
    out.print()
    for label, steps in (("to halve it", advice.halving), ("or give up", advice.giving_up)):
        if steps:
            text = f"{', then '.join(step.what for step in steps)}: {duration(steps[-1].seconds)}"
            out.print(f"{label:<12}{text}", markup=False, soft_wrap=True)
        elif label == "to halve it":
            out.print(f"{label:<12}a larger cluster alone is not enough", markup=False, soft_wrap=True)


def _assumptions(load: Workload, hardware: Hardware, costs: UnitCosts) -> Iterator[str]:
    by_default = assumed(hardware)
    if hardware.gpus and load.left["extract"]:
        card = " (an NVIDIA A100's)" if "gpu-flops" in by_default else ""
        peak = hardware.peak(load.autocast, load.weights) / 1e12
        yield (f"a GPU reaches {hardware.utilisation:.0%} of {peak:,.4g} TFLOPS{card}; this was not measured on a GPU")
    if "latency" in by_default:
        yield f"a request to the store takes {1000 * hardware.latency:g} ms; give latency=20ms for an object store"
    yield f"the cluster is otherwise idle and nothing fails; kernels: {costs.kernels_source}"


def _document(found: Estimate, advice: Advice, load: Workload, hardware: Hardware, costs: UnitCosts) -> dict[str, Any]:
    stages = [{**asdict(stage), "bottleneck": stage.bottleneck, "idle": stage.idle} for stage in found.stages]
    return {
        **asdict(found),
        "stages": stages,
        "memory": [{**asdict(need), "fits": need.fits} for need in found.memory],
        "seconds": found.seconds,
        "bottleneck": found.bottleneck.stage,
        **asdict(advice),
        "workload": {**asdict(load), "pairs": load.pairs},
        "hardware": {**asdict(hardware), "assumed": assumed(hardware)},
        "unit_costs": asdict(costs),
    }
