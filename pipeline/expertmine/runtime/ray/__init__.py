"""Run tasks on Ray actors. The only folder that imports ray."""

from expertmine.runtime.ray.connection import cluster, cpus, gpus, metrics_endpoints, recorder
from expertmine.runtime.ray.hosting import HostedActor, hosted
from expertmine.runtime.ray.pool import RayExecutor, opened

__all__ = ["HostedActor", "RayExecutor", "cluster", "cpus", "gpus", "hosted", "metrics_endpoints", "opened", "recorder"]
