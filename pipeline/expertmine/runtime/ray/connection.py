"""This process's connection to Ray: to a running cluster, or to one of its own.

Ray reads its environment when it is imported, so it is imported when it is clear what for. Token authentication is on,
on both sides. A cluster of our own listens on loopback alone and ends with us.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from expertmine.errors import UserError
from expertmine.telemetry.metrics import Meter, Record


@contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """While open, this process is connected to Ray: to a running cluster, or to one of its own.

    Args:
        address: of a running cluster, ``auto`` for the one of this machine; None starts one that ends with the context.
        cpus: of the cluster that is started.

    Raises:
        UserError: there is no cluster at the address, or ray was imported before it could be told to use a token.
    """
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ and not sys.modules["ray"].is_initialized():
        raise UserError("set RAY_AUTH_MODE=token in the environment before ray is imported: it reads it only then")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Ray's switch for "this machine only"; without it, even a local Ray listens on every interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            # Results are receipts and short texts: a small object store will do.
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=128 * 2**20,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "of our own cannot be started" if address is None else f"at {address!r} cannot be reached"
        raise UserError(f"Ray {where}: {str(error).strip()}") from error
    try:
        yield
    finally:
        ray.shutdown()


def gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def metrics_endpoints() -> list[str]:
    """Where Prometheus finds the metrics of each node of the connected cluster; none where collecting is off."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort")]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in alive]


def recorder(tags: Mapping[str, str]) -> Record:
    """Keeps meters as metrics of the connected cluster; its nodes show them some seconds later.

    Args:
        tags: of everything that is kept.
    """
    from ray.util import metrics

    own, names = dict(tags), tuple(tags)
    made: dict[Meter, Any] = {}

    def record(meter: Meter, value: float) -> None:
        if meter.kind == "counter":
            if meter not in made:
                made[meter] = metrics.Counter(meter.name, meter.description, names)
            made[meter].inc(value, own)
        elif meter.kind == "gauge":
            if meter not in made:
                made[meter] = metrics.Gauge(meter.name, meter.description, names)
            made[meter].set(value, own)
        else:
            if meter not in made:
                made[meter] = metrics.Histogram(meter.name, meter.description, list(meter.boundaries), names)
            made[meter].observe(value, own)

    return record


def loss_of_actor() -> tuple[type[Exception], ...]:
    """Exceptions of an actor's calls that mean that it is gone, was never started, or can no longer be relied on."""
    from ray import exceptions

    return (
        exceptions.RayActorError,  # dead or out of reach
        exceptions.OutOfMemoryError,  # killed by the memory monitor of its node
        exceptions.RuntimeEnvSetupError,
        exceptions.ActorUnschedulableError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,  # with the node that kept its answer
    )


def first_line(error: Exception) -> str:
    """What Ray says of an error, without the page that follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
