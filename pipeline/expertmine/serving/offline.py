"""Generates texts for a list of requests, in this process or in a Ray actor that ends afterwards. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expertmine.runtime.cluster import Cluster, ModelExecutorName, WorkerNeeds
from expertmine.runtime.executors import open_executor, run_in_order
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location, absolute

if TYPE_CHECKING:
    from expertmine.steering.generation import GenerationRequest


def run_generate(
    index: Location | str,
    requests: Sequence[GenerationRequest],
    executor: ModelExecutorName,
    pooling: Pooling | None = None,
    model: str | None = None,
) -> Iterator[list[str]]:
    """Yield the continuations of each request, in order.

    Args:
        index: a run folder, an expert index, or a pack.
        pooling: which of a run's indexes; by default that of its first pooling.
        model: location of the model if it has moved since mining.

    Raises:
        UserError: a request is invalid.
    """
    from expertmine.steering.generation import NewGenerator

    # An actor may have another working directory, so a local path is made absolute.
    if isinstance(index, str) and Path(index).exists():
        index = Path(index)
    make = NewGenerator(index if isinstance(index, str) else absolute(index), pooling, model=model)
    with open_executor(executor, Cluster(workers=1), WorkerNeeds(gpus=True), len(requests)) as runtime:
        yield from run_in_order(runtime, make, requests)
