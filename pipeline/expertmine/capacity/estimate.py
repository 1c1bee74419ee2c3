"""Estimates a job on a cluster: time by stage, bytes, memory, and the bottleneck of each stage.

Adds up unit costs (`expertmine.capacity.unit_costs`); runs nothing and opens no files. Does not know where the workload
comes from (`expertmine.capacity.workloads`) or what else the machines do: it assumes an otherwise idle cluster without
failures.

The parts of a stage run in parallel, as *lanes*, so the stage takes as long as its slowest lane. Tasks are not divided:
65 tasks on 64 processes take as long as 128.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expertmine.capacity.hardware import Hardware
from expertmine.capacity.unit_costs import MEASURED, UnitCosts
from expertmine.mining.extraction_memory import partitions_bytes
from expertmine.mining.scoring_memory import Work
from expertmine.run.statistics import STATISTICS, expertise_bytes
from expertmine.specs.layout import Layout
from expertmine.specs.plan import Stage
from expertmine.specs.settings import ASSESSED, Autocast, Codec, ScoringSpec, StoredType, WeightsType

REQUESTS_AT_ONCE = 10
"""Concurrent requests to the store per reading process, zarr's default."""
REQUESTS_PER_CHUNK = 2
"""One request for the chunk's position in its shard, one for the chunk."""
PAIR_BYTES = sum(np.dtype(dtype).itemsize for dtype in STATISTICS.values())
"""Bytes of all statistics of a pair."""
FORWARD = "forward passes"
"""Name of the GPUs' work."""
AP_BYTES = np.dtype(STATISTICS["ap"]).itemsize

StageName = Literal["extract", "score", "select", "assess", "reduce"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything about a job that its cost depends on."""

    layout: Layout
    poolings: int
    dtype: StoredType
    codec: Codec
    autocast: Autocast
    weights: WeightsType
    left: Mapping[Stage, int]
    """Remaining tasks of the stages extract, score and assess."""
    tokens: int
    """Tokens of the sentences still to run, special tokens included."""
    parameters: int
    """Parameters of the transformer blocks that a token is multiplied with; two operations each."""
    weights_bytes: int
    """Memory of the whole model."""
    pass_bytes: int
    """Memory of a forward pass in addition to the weights."""
    concepts: int
    positives: float
    """Mean number of mined positives per concept."""
    negatives: float
    held_out_positives: float
    held_out_negatives: float
    own_negatives: bool
    """Whether each concept has negatives of its own; otherwise all share one pool."""
    shuffles: int
    """Total number of sets of shuffled labels."""
    scoring: ScoringSpec
    compressed: float | None = None
    """Bytes stored per byte of responses, if measured; None for the codec's usual ratio."""
    forward_seconds: float | None = None
    """Time of all forward passes in one process of this machine, if measured; used only without GPUs."""

    @property
    def work(self) -> Work:
        """The work of scoring a unit."""
        return Work(self.layout.padded_shape[0], self.concepts, 2 * self.concepts + self.shuffles, self.dtype)

    @property
    def pairs(self) -> int:
        """(concept, unit) pairs over all poolings."""
        return self.concepts * self.layout.units * self.poolings

    @property
    def response_bytes(self) -> int:
        """Bytes of the responses of all partitions, before compression."""
        rows, columns = self.layout.padded_shape
        return rows * columns * np.dtype(self.dtype).itemsize * self.poolings

    @property
    def expertise_bytes(self) -> int:
        """Bytes of all statistics, before compression."""
        return expertise_bytes(self.layout, self.concepts, self.poolings, self.scoring.keep)

    def share(self, stage: Stage) -> float:
        """The share of a stage that remains."""
        total = {"extract": self.layout.partitions}.get(stage, self.layout.blocks * self.poolings)
        return self.left[stage] / total


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """The estimate of one stage."""

    stage: StageName
    seconds: float
    """From start to end."""
    lanes: Mapping[str, float]
    """Seconds of each part that runs in parallel; the slowest decides."""
    work: Mapping[str, float]
    """Core seconds or GPU seconds by kind of work."""
    tasks: int
    workers: int

    @property
    def bottleneck(self) -> str:
        """The slowest lane; if that is CPUs, with their largest kind of work."""
        lane = max(self.lanes, key=lambda name: self.lanes[name])
        if lane not in ("CPUs", "one process"):
            return lane
        return f"{lane}: {max(self.work, key=lambda name: self.work[name])}"

    @property
    def idle(self) -> float:
        """Share of the workers' time without a task, because the last round is rarely full."""
        rounds = math.ceil(self.tasks / self.workers) if self.tasks else 0
        return 1 - self.tasks / (rounds * self.workers) if rounds else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that a process needs and the memory it is given, in bytes."""

    what: str
    needed: float
    given: float
    remedy: str

    @property
    def fits(self) -> bool:
        return self.needed <= self.given


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a job on a cluster."""

    stages: tuple[StageEstimate, ...]
    memory: tuple[Memory, ...]
    stored_bytes: float
    """Compressed responses."""
    expertise_bytes: float
    """Statistics before compression, which reduces them little."""
    gpu_hours: float
    """GPU hours allocated for extraction."""
    gpu_hours_at_work: float
    core_hours: float
    """Hours of cores that work or wait for the store."""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def bottleneck(self) -> StageEstimate:
        """The slowest stage."""
        return max(self.stages, key=lambda stage: stage.seconds)


def estimate(load: Workload, hardware: Hardware, costs: UnitCosts = MEASURED) -> Estimate:
    """Estimate the rest of a job."""
    stages: list[StageEstimate] = []
    if load.left["extract"]:
        stages.append(_extract(load, hardware, costs))
    if load.left["score"]:
        stages.append(_score(load, hardware, costs))
    if load.left["assess"]:
        stages += [_select(load, hardware, costs), _assess(load, hardware, costs)]
    stages.append(_reduce(load, hardware, costs))
    extracting = [stage for stage in stages if stage.stage == "extract" and hardware.gpus]
    held = sum(stage.seconds * hardware.gpus for stage in extracting) / 3600
    at_work = sum(stage.work[FORWARD] for stage in extracting) / 3600
    cores = sum(sum(stage.work.values()) for stage in stages) / 3600 - at_work
    stored = load.response_bytes * _compressed(load, costs)
    return Estimate(tuple(stages), tuple(_memory(load, hardware)), stored, load.expertise_bytes, held, at_work, cores)


def _compressed(load: Workload, costs: UnitCosts) -> float:
    return costs.compressed[load.codec].value if load.compressed is None else load.compressed


def _rounds(tasks: int, workers: int) -> int:
    return -(-tasks // workers)


def _forward_seconds(load: Workload, hardware: Hardware, costs: UnitCosts) -> float:
    """Seconds of one GPU, or of one core, for all forward passes."""
    operations = 2.0 * load.parameters * load.tokens
    if hardware.gpus:
        return operations / (hardware.peak(load.autocast, load.weights) * hardware.utilisation)
    if load.forward_seconds is not None:
        return load.forward_seconds
    cast: Autocast = load.autocast if load.weights == "float32" else "bfloat16"
    return operations / costs.operations[cast].value


def _extract(load: Workload, hardware: Hardware, costs: UnitCosts) -> StageEstimate:
    """Tokenising, running and writing are parallel in a process with a GPU; without a GPU they share its core."""
    tasks, workers = load.left["extract"], hardware.extractors
    objects = 2 + load.layout.objects_per_partition * load.poolings
    written = load.response_bytes * load.share("extract")
    work = {
        FORWARD: _forward_seconds(load, hardware, costs),
        "compressing and writing": written / costs.encode[load.codec].value + tasks * objects * costs.written.value,
        "tokenising": tasks * load.layout.partition_rows * costs.tokenise.value,
    }
    waiting = tasks * objects * hardware.latency
    lanes = {"store bandwidth": written * _compressed(load, costs) / hardware.store_bandwidth}
    if hardware.gpus:
        writing = work["compressing and writing"] + waiting
        lanes["GPUs"] = _rounds(tasks, hardware.forward_passes) * work[FORWARD] / tasks
        lanes["the writing thread of each process"] = _rounds(tasks, workers) * writing / tasks
        lanes["CPUs"] = sum(work.values()) / hardware.cpus  # a core drives each GPU
    else:
        lanes["CPUs"] = _rounds(tasks, workers) * (sum(work.values()) + waiting) / tasks
    return StageEstimate("extract", max(lanes.values()) + costs.begin.value, lanes, work, tasks, workers)


def _reading(load: Workload, costs: UnitCosts) -> tuple[float, float]:
    """Core seconds to read all responses once, and the number of chunks."""
    chunks = load.layout.partitions * load.layout.blocks * load.poolings
    return load.response_bytes / costs.decode.value + chunks * costs.chunk.value, chunks


def _kernels(load: Workload, costs: UnitCosts) -> dict[str, float]:
    """Core seconds of kernels over all units."""
    kernel = costs.kernels_of(load.dtype, load.layout.padded_shape[0])
    negative = costs.own_negative.value * kernel.positive

    def sets(count: int, positives: float, negatives: float) -> float:
        """Core seconds of sets of labels: positives count per set, negatives per set or once for a shared pool."""
        one = kernel.pair + kernel.positive * positives
        pool = kernel.pair + negative * negatives
        return count * (one + pool) if load.own_negatives else count * one + pool

    held_out = sets(load.concepts, load.held_out_positives, load.held_out_negatives) if load.held_out_positives else 0.0
    # A shuffle's positives are removed from the negatives that it shares with others.
    shuffled = load.shuffles * (kernel.pair + (kernel.positive + negative) * load.positives)
    units = load.layout.units * load.poolings
    return {
        "ranking": units * load.layout.padded_shape[0] * kernel.rank,
        "kernels, concepts": units * (sets(load.concepts, load.positives, load.negatives) + held_out),
        "kernels, shuffled labels": units * shuffled,
    }


def _of_blocks(
    load: Workload,
    hardware: Hardware,
    costs: UnitCosts,
    stage: Stage,
    work: dict[str, float],
    objects: int,
    written: float,
) -> tuple[dict[str, float], dict[str, float]]:
    """Lanes and work of a stage whose tasks are blocks of units and read all responses of their units.

    Args:
        work: core seconds of the whole stage, without reading.
        objects: objects written per task.
        written: bytes written by the whole stage.
    """
    share, tasks = load.share(stage), load.left[stage]
    reading, chunks = _reading(load, costs)
    work = {name: seconds * share for name, seconds in {"reading": reading, **work}.items()}
    waiting = share * chunks * REQUESTS_PER_CHUNK / REQUESTS_AT_ONCE + tasks * objects
    work["waiting for the store"] = waiting * hardware.latency
    moved = share * (load.response_bytes * _compressed(load, costs) + written)
    lanes = {
        "CPUs": _rounds(tasks, hardware.cpus) * sum(work.values()) / tasks,
        "store bandwidth": moved / hardware.store_bandwidth,
    }
    return lanes, work


def _score(load: Workload, hardware: Hardware, costs: UnitCosts) -> StageEstimate:
    tasks, objects = load.left["score"], len(STATISTICS) + 2
    all_tasks = load.layout.blocks * load.poolings
    writing = load.expertise_bytes / costs.scores.value + all_tasks * objects * costs.written.value
    work = {**_kernels(load, costs), "writing": writing}
    lanes, work = _of_blocks(load, hardware, costs, "score", work, objects, load.expertise_bytes)
    return StageEstimate("score", max(lanes.values()) + costs.begin.value, lanes, work, tasks, hardware.cpus)


def _assess(load: Workload, hardware: Hardware, costs: UnitCosts) -> StageEstimate:
    tasks, objects, blocks = load.left["assess"], 2, load.layout.blocks
    assessed = min(ASSESSED, load.layout.units)
    # Which blocks a concept's best units are in is not known; assume random ones.
    with_any = load.concepts * load.poolings * blocks * (1 - (1 - 1 / blocks) ** assessed)
    drawn = (
        load.positives + load.negatives + load.held_out_positives + load.held_out_negatives
    ) * load.scoring.resamples
    work = {
        "drawing resamples": with_any * drawn * costs.draw.value,
        "resamples": load.concepts * load.poolings * assessed * drawn * costs.resample.value,
        "the rest": with_any * costs.assess.value + blocks * load.poolings * objects * costs.written.value,
    }
    lanes, work = _of_blocks(load, hardware, costs, "assess", work, objects, 0.0)
    begin = 0.0 if load.left["score"] else costs.begin.value  # scoring has started the processes
    return StageEstimate("assess", max(lanes.values()) + begin, lanes, work, tasks, hardware.cpus)


def _select(load: Workload, hardware: Hardware, costs: UnitCosts) -> StageEstimate:
    """Choosing the units to assess reads every pair, in the process that runs the stage."""
    objects = load.layout.blocks * load.poolings
    return _in_one_process("select", load.pairs * costs.select.value, objects, load.pairs * AP_BYTES, hardware)


def _reduce(load: Workload, hardware: Hardware, costs: UnitCosts) -> StageEstimate:
    share = load.expertise_bytes / (load.pairs * PAIR_BYTES)
    choosing = costs.select.value + (costs.reduce.value - costs.select.value) * min(1.0, share)
    objects = load.layout.blocks * load.poolings * (len(STATISTICS) + 1)
    return _in_one_process("reduce", load.pairs * choosing, objects, load.expertise_bytes, hardware)


def _in_one_process(stage: StageName, seconds: float, objects: int, bytes_: float, hardware: Hardware) -> StageEstimate:
    """Work on all statistics in one process, which more machines do not make faster."""
    work = {"statistics of all pairs": seconds, "waiting for the store": objects * hardware.latency}
    lanes = {"one process": sum(work.values()), "store bandwidth": bytes_ / hardware.store_bandwidth}
    return StageEstimate(stage, max(lanes.values()), lanes, work, 1, 1)


def _memory(load: Workload, hardware: Hardware) -> Iterator[Memory]:
    partitions = partitions_bytes(load.layout, np.dtype(load.dtype).itemsize * load.poolings)
    if load.left["extract"]:
        passing = load.weights_bytes + load.pass_bytes
        if hardware.gpus:
            on_one = max(1, int(1 / hardware.gpus_each))
            remedy = "--weights bfloat16, a smaller --batch-tokens, or more GPUs each"
            given = hardware.gpu_memory * max(1.0, hardware.gpus_each)
            yield Memory("a GPU, with its extracting processes", on_one * passing, given, remedy)
        own = partitions + (0 if hardware.gpus else passing)
        cores = hardware.cpu_memory * hardware.cpus / hardware.extractors
        yield Memory("an extracting process", own, cores, "fewer hookpoints, or more cores for each process")
    width = load.layout.block_units
    needed = load.work.base + load.work.needed(width, width)
    yield Memory("a scoring process", needed, hardware.cpu_memory, "--scoring-memory bounds it")
