"""Run tasks on Dask workers. The only importer of dask and distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import dask
from distributed import Client, LocalCluster, as_completed, get_worker
from distributed.scheduler import KilledWorker

from expertmine.errors import UserError

Result = TypeVar("Result")

_making = Lock()


@contextmanager
def cluster(address: str | None, workers: int) -> Iterator[Client]:
    """While open, a client of a running scheduler, or of local worker processes that end with the context.

    Raises:
        UserError: there is no scheduler at the address.
    """
    if address is not None:
        try:
            client = Client(address, timeout="20s")
        except (OSError, TimeoutError) as error:
            raise UserError(f"no Dask scheduler at {address!r}: {error}. Start one, or leave --address out") from error
        with client:
            yield client
        return
    # Worker processes with a thread each: kernels release the GIL, but what is around them does not.
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs="ERROR",
        ) as local,
        Client(local) as client,
    ):
        yield client


def run(client: Client, make_worker: Callable[[], Callable[[int], Result]], tasks: Sequence[int]) -> Iterator[Result]:
    """Results as they come; each worker process makes its worker once.

    Raises:
        UserError: a task's own, or workers died under a task more often than Dask allows.
    """
    futures = client.map(_call, tasks, make_worker=make_worker, pure=False, key=f"{type(make_worker).__name__}")
    try:
        for future in as_completed(futures):
            result = future.result()
            future.release()
            if isinstance(result, UserError):
                raise result
            yield result
    except KilledWorker as error:
        raise UserError(f"workers died under a task: {error}. What is done is kept; run again") from error
    finally:
        client.cancel(futures)


def _call(task: int, make_worker: Callable[[], Callable[[int], Any]]) -> Any:
    """Run a task on this process's worker for `make_worker`, made at its first task.

    A UserError is returned, not raised: Dask's workers print what is raised in them, with a traceback.
    """
    kept: dict[Any, Callable[[int], Any]] = get_worker().__dict__.setdefault("expertmine_workers", {})
    try:
        with _making:
            if make_worker not in kept:
                kept[make_worker] = make_worker()
        return kept[make_worker](task)
    except UserError as error:
        return error
