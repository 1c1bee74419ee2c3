"""Run tasks on Dask workers. The only importer of dask and distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

import dask
from distributed import Client, LocalCluster, Security, as_completed, get_worker
from distributed.scheduler import KilledWorker

from expertmine.errors import StageError, UserError
from expertmine.runtime.failures import Failed

Result = TypeVar("Result")

_making = Lock()

KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 1 << 29, "MALLOC_MMAP_THRESHOLD_": 1 << 25, "MALLOC_ARENA_MAX": 1}
"""For glibc's malloc in workers. Dask has it give back to the system what is above 64 kB, and then each task's arrays
are mapped and cleared anew: on blocks of 256 units by 36,000 sentences that made kernels take half as long again."""
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
        with client:
            yield client
        return
    # Worker processes with a thread each: kernels release the GIL, but what is around them does not.
    with (
        dask.config.set(
            {
                "distributed.worker.memory.terminate": False,
                "distributed.nanny.pre-spawn-environ": {**KEPT_MEMORY, **ONE_THREAD},
            }
        ),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            security=Security.temporary(),
            silence_logs="ERROR",
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
        UserError: a worker could not be made, or its trouble is every task's.
    """
    call = uuid4().hex
    futures = client.map(_call, tasks, make_worker=make_worker, call=call, pure=False, key=f"task-{call}")
    task_of = dict(zip(futures, tasks, strict=True))
    try:
        for future in as_completed(futures):
            try:
                result = future.result()
            except KilledWorker as error:
                result = Failed(task_of[future], f"workers died under it: {error}", error.allowed_failures + 1)
            future.release()
            if isinstance(result, UserError):
                raise result
            yield result
    finally:
        client.cancel(futures)


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
