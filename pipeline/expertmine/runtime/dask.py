"""Run tasks on Dask workers. The only importer of dask and distributed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

import dask
from distributed import Client, LocalCluster, Security, as_completed, get_worker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from expertmine.errors import StageError, UserError
from expertmine.runtime.failures import Failed

Result = TypeVar("Result")

_making = Lock()

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
    """How many tasks a worker of the cluster may have at the same time: the most that any has threads."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return max((int(worker["nthreads"]) for worker in workers), default=1)


def run(
    client: Client, make_worker: Callable[[], Callable[[int], Result]], tasks: Sequence[int]
) -> Iterator[Result | Failed]:
    """Results as they come, and what was given up; each process makes its worker once for this call.

    Raises:
        UserError: a worker could not be made, its trouble is every task's, or the scheduler is lost.
    """
    call = uuid4().hex
    futures = client.map(_call, tasks, make_worker=make_worker, call=call, pure=False, key=f"task-{call}")
    task_of = dict(zip(futures, tasks, strict=True))
    try:
        for future in as_completed(futures):
            try:
                result = future.result()
            except (FutureCancelledError, CommClosedError) as error:
                raise UserError(
                    "the Dask scheduler was lost; what is done is kept: start it and its workers again, and run the "
                    "same command"
                ) from error
            except KilledWorker as error:
                result = Failed(task_of[future], f"workers died under it: {error}", error.allowed_failures + 1)
            future.release()
            if isinstance(result, UserError):
                raise result
            yield result
    finally:
        if client.status == "running":
            client.cancel(futures)


def _quieten() -> None:
    """Have Dask log nothing of its own on a terminal that we write to; what goes wrong is raised, too."""
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _call(task: int, make_worker: Callable[[], Callable[[int], Any]], call: str) -> Any:
    """Run a task on this process's worker for the call of `run`, made at its first task.

    One worker is kept a process, that of the latest call: a cluster may outlive many runs. Bad news is returned, not
    raised: Dask's workers print what is raised in them, with a traceback.
    """
    here = get_worker().__dict__
    try:
        with _making:
            if here.get("expertmine_call") != call:
                here["expertmine_worker"] = make_worker()
                here["expertmine_call"] = call
    except UserError as error:
        return error
    try:
        return here["expertmine_worker"](task)
    except StageError as error:
        return error
    except UserError as error:
        return Failed(task, str(error))
