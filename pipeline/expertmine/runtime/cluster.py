"""Where a stage's tasks run, as its user asks for it. Imports no runtime: naming one costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExtractExecutor = Literal["ray", "serial"]
ScoreExecutor = Literal["dask", "ray", "serial"]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where tasks run."""

    address: str | None = None
    """Of a running cluster; None starts a local one that ends with the stage."""
    workers: int | None = None
    """Processes; None takes what the machine or cluster has."""
    gpus_each: float | None = None
    """GPUs per extracting actor, also a fraction; None gives each one whole where there are any."""
    memory: int | None = None
    """Bytes that a scoring process may hold; None for what a block takes, as it was planned."""
