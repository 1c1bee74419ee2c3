"""A connection to a Dask scheduler: one that runs, or one of our own that ends with the context."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster, Security
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError

from expertmine.errors import UserError

FIRST_WORKER = 60
"""Seconds that a scheduler without workers is given to have one."""


ONE_THREAD = {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1}


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[Client]:
    """While open, a client of a running scheduler, or of local worker processes that end with the context.

    Raises:
        UserError: there is no scheduler at the address.
    """
    if address is not None:
        try:
            client = Client(address, timeout="20s")
        except (FileNotFoundError, PermissionError, TypeError) as error:  # a TypeError where none is named
            raise UserError(
                f"no TLS certificate configured for {address!r}: {error}. Have Dask's configuration (a file of "
                "~/.config/dask) name ca-file, client.cert and client.key under distributed.comm.tls"
            ) from error
        except (OSError, TimeoutError, ValueError, RuntimeError) as error:
            raise UserError(f"no Dask scheduler at {address!r}: {error}. Start one, or leave --address out") from error
        _quieten()
        with client:
            try:
                client.wait_for_workers(1, timeout=FIRST_WORKER)
            except TimeoutError as error:
                raise UserError(
                    f"the Dask scheduler at {address!r} has no worker after {FIRST_WORKER} s; start some"
                ) from error
            yield client
        return
    _quieten()
    # Worker processes with a thread each: kernels release the GIL, but what is around them does not.
    with (
        dask.config.set(
            {
                "distributed.worker.memory.terminate": False,
                "distributed.scheduler.allowed-failures": 0,  # we retry, and find out whose fault it was
                "distributed.nanny.pre-spawn-environ": ONE_THREAD,
            }
        ),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=Security.temporary(),
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local) as client,
    ):
        yield client


def threads(client: Client) -> int:
    """How many tasks one worker may have at the same time: the largest number of threads of any worker."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return max((int(worker["nthreads"]) for worker in workers), default=1)


def metrics_endpoint(client: Client) -> str:
    """Where Prometheus finds what the scheduler of a cluster of our own, which is in this process, shows."""
    return f"{str(client.dashboard_link).rpartition('/')[0]}/metrics"


@contextmanager
def requiring_the_scheduler() -> Iterator[None]:
    """While open, errors are the connection's: a task's are answers (see `_attempt`).

    Raises:
        UserError: the scheduler was lost.
    """
    try:
        yield
    except (FutureCancelledError, CommClosedError, OSError) as error:  # the last where it cannot be connected to
        raise UserError(
            "the Dask scheduler was lost; finished tasks are kept: start it and its workers again, and rerun the "
            "command"
        ) from error


def _quieten() -> None:
    """Have Dask log nothing of its own on a terminal that we write to; what goes wrong is raised, too."""
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
