"""Finds changes that would make a job faster, or halve its time; the effect of each is estimated.

Knows no more than `expertmine.capacity.estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from expertmine.capacity.estimate import Workload, estimate
from expertmine.capacity.hardware import Hardware
from expertmine.capacity.unit_costs import MEASURED, UnitCosts
from expertmine.specs.plan import Stage
from expertmine.telemetry.formats import size

KEPT = 16
"""The proposed `--keep`: best and worst units per block whose statistics are kept."""
MAX_STEPS = 8
"""Maximum number of changes to combine in order to halve the time."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change to the job or the cluster."""

    what: str
    seconds: float
    """Time of the whole job with the change."""
    gives_up: str = ""
    """The part of the result that is lost; empty if the index stays the same."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Changes that would make a job faster."""

    changes: tuple[Change, ...]
    """Single changes, the best first."""
    halving: tuple[Change, ...]
    """Combined changes that halve the time without giving anything up; empty if there are none."""
    giving_up: tuple[Change, ...]
    """Combined changes that halve the time but give something up; empty if not needed, or if there are none."""


def advice(load: Workload, hardware: Hardware, costs: UnitCosts = MEASURED) -> Advice:
    """Estimate single changes, and search for a combination that halves the time."""
    half = estimate(load, hardware, costs).seconds / 2
    changes = sorted((change for change, _, _ in _options(load, hardware, costs)), key=lambda change: change.seconds)
    halving = _steps(load, hardware, costs, half, giving_up=False)
    giving_up = () if halving else _steps(load, hardware, costs, half, giving_up=True)
    return Advice(tuple(changes), halving, giving_up)


def _steps(load: Workload, hardware: Hardware, costs: UnitCosts, until: float, giving_up: bool) -> tuple[Change, ...]:
    """Add the best change again and again until the job takes at most `until` seconds; empty if that is not reached."""
    taken: list[Change] = []
    for _ in range(MAX_STEPS):
        given_up = {step.what for step in taken if step.gives_up}
        options = [
            option
            for option in _options(load, hardware, costs)
            if not option[0].gives_up or (giving_up and option[0].what not in given_up)
        ]
        change, load, hardware = min(options, key=lambda option: option[0].seconds)
        taken.append(change)
        if change.seconds <= until:
            return tuple(taken)
    return ()


def _options(load: Workload, hardware: Hardware, costs: UnitCosts) -> list[tuple[Change, Workload, Hardware]]:
    return [
        (Change(what, estimate(new_load, new_hardware, costs).seconds, gives_up), new_load, new_hardware)
        for what, gives_up, new_load, new_hardware in _changed(load, hardware)
    ]


def _changed(load: Workload, hardware: Hardware) -> Iterator[tuple[str, str, Workload, Hardware]]:
    """Each change: its name, what it gives up, and the new workload and hardware."""
    if hardware.gpus and load.left["extract"]:
        yield f"{2 * hardware.gpus} GPUs", "", load, replace(hardware, gpus=2 * hardware.gpus)
        if hardware.gpus_each <= 1:
            halved = hardware.gpus_each / 2
            yield f"--gpus-each {halved:g}", "", load, replace(hardware, gpus_each=halved)
    yield f"{2 * hardware.cpus} CPUs", "", load, replace(hardware, cpus=2 * hardware.cpus)
    wider = 2 * hardware.store_bandwidth
    yield f"a store of {size(wider)}/s", "", load, replace(hardware, store_bandwidth=wider)
    shorter = hardware.latency / 2
    yield f"a store with {1000 * shorter:g} ms latency", "", load, replace(hardware, latency=shorter)
    if load.left["extract"]:
        if load.autocast == "none" and load.weights == "float32" and hardware.gpu_flops is None:
            cast = replace(load, autocast="bfloat16", forward_seconds=None)
            yield "--autocast bfloat16", "float32's last bits", cast, hardware
        if load.codec != "none":
            yield "--codec none", "", replace(load, codec="none", compressed=None), hardware
    if load.dtype == "float32":
        yield "--dtype float16", "float32's last bits", replace(load, dtype="float16"), hardware
    if load.scoring.keep is None and load.layout.block_units > 2 * KEPT:
        kept = replace(load, scoring=replace(load.scoring, keep=KEPT))
        yield f"--keep {KEPT}", f"experts beyond the best {KEPT} per concept", kept, hardware
    if load.layout.units > 1:
        yield "half the units (--hookpoint)", "the other units", _with_half_the_units(load), hardware
    if load.shuffles:
        yield "--permutations 0", "p-values and thresholds", replace(load, shuffles=0), hardware
    if load.left["assess"]:
        yield "--resamples 0", "intervals and stability", replace(load, left={**load.left, "assess": 0}), hardware
    if load.own_negatives:
        shared = replace(load, own_negatives=False)
        yield "a pool of negatives shared by all concepts", "each concept's own negatives", shared, hardware


def _with_half_the_units(load: Workload) -> Workload:
    layout = replace(load.layout, units=load.layout.units // 2)
    blocks = layout.blocks * load.poolings
    left: dict[Stage, int] = {
        "extract": load.left["extract"],
        "score": math.ceil(load.share("score") * blocks),
        "assess": math.ceil(load.share("assess") * blocks),
    }
    return replace(load, layout=layout, left=left)
