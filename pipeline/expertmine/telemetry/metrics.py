"""Metrics for Prometheus: their definitions, and a recorder for processes outside Ray. Knows no stage and no runtime.

Metrics are exported either by Ray's agent on the node (`expertmine.runtime.ray.recorder`), or from this process's
registry, which the scheduler of a local Dask cluster serves at ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Meter:
    """The definition of a metric."""

    name: str
    """Without the prefix ``ray_``, which Ray adds, and the suffix ``_total``, which counters get."""
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    boundaries: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


Record: TypeAlias = Callable[[Meter, float], None]
"""Adds a value to a counter, sets a gauge to it, or observes it in a histogram."""


def unrecorded(meter: Meter, value: float) -> None:
    """Record nothing."""


def recorder(tags: Mapping[str, str]) -> Record:
    """Return a recorder into this process's registry of prometheus_client; if that is not installed, it does nothing.

    Args:
        tags: labels of every recorded value. All calls must use the same label names.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        return unrecorded

    def record(meter: Meter, value: float) -> None:
        own = _registered(meter, tuple(tags)).labels(**tags)
        if meter.kind == "counter":
            own.inc(value)
        elif meter.kind == "gauge":
            own.set(value)
        else:
            own.observe(value)

    return record


@cache
def _registered(meter: Meter, tags: tuple[str, ...]) -> Any:
    """Register a metric; a name can be registered only once per process."""
    from prometheus_client import Counter, Gauge, Histogram

    if meter.kind == "counter":
        return Counter(meter.name, meter.description, tags)
    if meter.kind == "gauge":
        return Gauge(meter.name, meter.description, tags)
    return Histogram(meter.name, meter.description, tags, buckets=meter.boundaries)
