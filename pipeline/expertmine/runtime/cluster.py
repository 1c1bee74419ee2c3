"""Where tasks run, and what their workers take: what a runtime is told when it is opened. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

ExecutorName: TypeAlias = Literal["dask", "ray", "serial"]
ModelExecutorName: TypeAlias = Literal["ray", "serial"]
"""Those whose workers may hold a model: Dask's need no PyTorch."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where tasks run."""

    address: str | None = None
    """Of a running cluster; None starts a local one that ends with its use."""
    workers: int | None = None
    """Processes; None takes as many as the machine or cluster has room for."""
    gpus_each: float | None = None
    """GPUs per worker with a model, also a fraction; None gives each one whole where there are any."""
    memory: int | None = None
    """Bytes that a scoring process may hold; None for what a block takes, as it was planned."""


@dataclass(frozen=True, slots=True)
class WorkerNeeds:
    """What one worker takes."""

    cpus: int = 1
    gpus: bool = False
    """It uses GPUs, where there are any."""
    in_flight: int = 1
    """Tasks that it is given at the same time, each in a thread. Dask gives as many as its workers have threads."""
