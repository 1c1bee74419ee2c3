"""Generates texts for a list of requests, in this process or in a Ray actor that ends afterwards. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from expertmine.errors import UserError
from expertmine.runtime.failures import Failed
from expertmine.specs.settings import Pooling
from expertmine.storage.locations import Location, absolute

if TYPE_CHECKING:
    from expertmine.runtime.cluster import ExtractExecutor
    from expertmine.steering.generation import GenerationRequest


def run_generate(
    index: Location | str,
    requests: Sequence[GenerationRequest],
    executor: ExtractExecutor,
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
    if executor == "serial":
        yield from map(make(), requests)
        return
    from expertmine.runtime import ray

    with ray.cluster(None):
        gpus_each = 1.0 if ray.gpus() else 0.0
        for texts in ray.run(make, requests, actors=1, cpus_each=1, gpus_each=gpus_each):
            if isinstance(texts, Failed):
                raise UserError(texts.reason)
            yield texts
