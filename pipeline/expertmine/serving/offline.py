"""Texts for a list of requests: written in this process, or by a Ray actor that ends with them."""

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
    """The continuations of each request, in order, from this process or from a Ray actor.

    Args:
        index: a run folder, an expert index, or a pack.
        pooling: of the responses that the experts were found by; the run's first unless given.
        model: where the model is, if not where it was mined.

    Raises:
        UserError: a request that cannot be met.
    """
    from expertmine.steering.generation import NewGenerator

    # An actor may have another working folder.
    if isinstance(index, str) and Path(index).exists():
        index = Path(index)
    make = NewGenerator(index if isinstance(index, str) else absolute(index), pooling, model=model)
    if executor == "serial":
        yield from map(make(), requests)
        return
    from expertmine.runtime import ray

    with ray.cluster(None):
        gpus_each = 1.0 if ray.gpus() else 0.0
        for written in ray.run(make, requests, actors=1, cpus_each=1, gpus_each=gpus_each):
            if isinstance(written, Failed):
                raise UserError(written.reason)
            yield written
