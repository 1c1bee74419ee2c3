"""Numbers that Prometheus collects: what they are, and how this process keeps them where no Ray does.

A meter is kept by whoever shows it: Ray's metrics of the node (`expertmine.runtime.ray.recorder`), or the registry of
this process, which the scheduler of a Dask cluster of our own shows at its ``/metrics``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Meter:
    """A number that is followed over time."""

    name: str
    """Without the prefix ``ray_`` that Ray gives, nor the suffix ``_total`` that counters get."""
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    boundaries: tuple[float, ...] = ()
    """Of a histogram's buckets."""


Record: TypeAlias = Callable[[Meter, float], None]
"""Adds to a counter, sets a gauge, or takes a value into a histogram."""


def unrecorded(meter: Meter, value: float) -> None:
    """Keeps nothing."""


def recorder(tags: Mapping[str, str]) -> Record:
    """Keeps meters in prometheus_client's registry of this process; nothing where that is not installed.

    Args:
        tags: of everything that is kept. A call has the same names of tags as those before it.
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
    """A name can be registered only once a process."""
    from prometheus_client import Counter, Gauge, Histogram

    if meter.kind == "counter":
        return Counter(meter.name, meter.description, tags)
    if meter.kind == "gauge":
        return Gauge(meter.name, meter.description, tags)
    return Histogram(meter.name, meter.description, tags, buckets=meter.boundaries)
