"""Run tasks on Dask workers. The only folder that imports dask and distributed."""

from expertmine.runtime.dask.connection import cluster, metrics_endpoint, threads
from expertmine.runtime.dask.executor import DaskExecutor, opened

__all__ = ["DaskExecutor", "cluster", "metrics_endpoint", "opened", "threads"]
