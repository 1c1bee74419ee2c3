"""Run tasks on Dask workers. The only importer of dask and distributed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

import dask
from distributed import Client, Future, LocalCluster, Security, as_completed, get_worker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from expertmine.errors import StageError, UserError
from expertmine.runtime.events import Event, Joined, Lost, Queue, Retried, Tell, nobody, process_name
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
        except (FileNotFoundError, PermissionError, TypeError) as error:  # a TypeError where none is named
            raise UserError(
                f"no certificate to show at {address!r}: {error}. Have Dask's configuration (a file of ~/.config/dask) "
                "name ca-file, client.cert and client.key under distributed.comm.tls"
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


def metrics_endpoint(client: Client) -> str:
    """Where Prometheus finds what the scheduler of a cluster of our own, which is in this process, shows."""
    return f"{str(client.dashboard_link).rpartition('/')[0]}/metrics"


def run(
    client: Client, make_worker: Callable[[], Callable[[int], Result]], tasks: Sequence[int], tell: Tell = nobody
) -> Iterator[Result | Failed]:
    """Results as they come, and what was given up; each process makes its worker once for this call.

    What else happens is told to `tell`: workers by their addresses, after the next result.

    Raises:
        UserError: a worker could not be made, its trouble is every task's, or the scheduler is lost.
    """
    call = uuid4().hex
    keys = [f"task-{call}-{task}" for task in tasks]
    task_of = dict(zip(keys, tasks, strict=True))
    workers = _Workers(client, task_of)
    futures = client.map(_call, tasks, make_worker=make_worker, call=call, pure=False, key=keys)
    unfinished = len(tasks)
    try:
        for future, fetched in _fetched(client, as_completed(futures)):
            try:
                result = future.result() if fetched is None else fetched
            except KilledWorker as error:
                task, died = task_of[str(future.key)], error.allowed_failures + 1
                result = Failed(task, f"workers died under it: {error}", died, error.last_worker.address)
            future.release()
            if isinstance(result, UserError):
                raise result
            yield result
            unfinished -= 1
            for event in workers.news():
                tell(event)
            tell(workers.queue(unfinished))
    except (FutureCancelledError, CommClosedError, OSError) as error:  # the last where it cannot be connected to
        raise UserError(
            "the Dask scheduler was lost; what is done is kept: start it and its workers again, and run the "
            "same command"
        ) from error
    finally:
        if client.status == "running":
            workers.ignore()
            client.cancel(futures)


def _fetched(client: Client, completed: as_completed) -> Iterator[tuple[Future[Any], Any]]:
    """Futures that are completed, each with its result, or None where it must be asked for.

    What has completed together is fetched together: a round trip for each result would take longer than a small task.
    """
    for batch in completed.batches():
        finished = {future.key: future for future in batch if future.status == "finished"}
        results = client.gather(finished, errors="skip")
        yield from ((future, results.get(future.key)) for future in batch)


THREADS_ARE_NEWS = 5.0
"""Seconds between looks at how many tasks the workers take at a time."""


class _Workers:
    """What a scheduler says of its workers that come and go while a call of `run` is under way."""

    def __init__(self, client: Client, task_of: Mapping[str, int]) -> None:
        self.client = client
        self.task_of = task_of
        self.said: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.looked = -THREADS_ARE_NEWS
        self.threads = 0
        client.subscribe_topic("all", lambda event: self.said.put(event[1]))

    def news(self) -> Iterator[Event]:
        """What was said since it was last asked for."""
        with suppress(Empty):
            while True:
                yield from self._told(self.said.get_nowait())

    def _told(self, message: dict[str, Any]) -> Iterator[Event]:
        if message.get("action") == "add-worker":
            yield Joined(message["worker"])
        if message.get("action") == "remove-worker" and not message["expected"]:
            tasks = [self.task_of[key] for key in message["processing-tasks"] if key in self.task_of]
            yield Lost(message["worker"], "the scheduler lost it", tuple(tasks))
            for task in tasks:
                yield Retried(task, message["worker"])

    def queue(self, unfinished: int) -> Queue:
        """Workers that have enough to do are at as many tasks as they have threads; the scheduler keeps the others."""
        if time.monotonic() - self.looked > THREADS_ARE_NEWS:
            self.threads, self.looked = sum(self.client.nthreads().values()), time.monotonic()
        in_flight = min(unfinished, self.threads)
        return Queue(unfinished - in_flight, in_flight)

    def ignore(self) -> None:
        """Listen no longer."""
        self.client.unsubscribe_topic("all")


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
        return Failed(task, str(error), worker=process_name())
