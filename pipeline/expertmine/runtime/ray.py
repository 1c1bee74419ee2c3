"""Run tasks on Ray actors. The only importer of ray.

Ray reads its environment when it is imported, so it is imported when it is clear what for. Token authentication is on,
on both sides. A cluster of our own listens on loopback alone and ends with us.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Generic, TypeVar

from expertmine.errors import UserError

Request = TypeVar("Request")
Result = TypeVar("Result")

RESTARTS = 3
"""How often an actor comes back, and a task is tried again, after a process or node was lost."""


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


class _Actor(Generic[Request, Result]):
    """A worker in a process of its own, made at its first request.

    A UserError is returned, not raised: Ray prints what is raised in an actor, with a traceback.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Request], Result]]) -> None:
        self.make_worker = make_worker
        self.worker: Callable[[Request], Result] | None = None

    def placed(self) -> None:
        """Answer once the cluster has found room."""

    def work(self, request: Request) -> Result | UserError:
        try:
            if self.worker is None:
                self.worker = self.make_worker()
            return self.worker(request)
        except UserError as error:
            return error


def gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def run(
    make_worker: Callable[[], Callable[[Request], Result]],
    requests: Sequence[Request],
    actors: int,
    cpus_each: int,
    gpus_each: float,
) -> Iterator[Result]:
    """Results as they come; each actor has one request at a time, once the cluster has found room for it.

    Raises:
        UserError: a task's own, or an actor was lost more often than `RESTARTS` times.
    """
    import ray
    from ray.exceptions import RayActorError

    remote: Any = ray.remote(_Actor).options(
        num_cpus=cpus_each, num_gpus=gpus_each, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    handles = [remote.remote(make_worker) for _ in range(min(actors, len(requests)))]
    waiting = iter(requests)
    unfinished = len(requests)
    # What was asked of whom; an actor that finds no room never answers, and the others do its share.
    asked = {handle.placed.remote(): (handle, False) for handle in handles}
    try:
        while unfinished:
            (answer,), _ = ray.wait(list(asked), num_returns=1)
            handle, is_result = asked.pop(answer)
            result = ray.get(answer)
            for request in islice(waiting, 1):
                asked[handle.work.remote(request)] = (handle, True)
            if isinstance(result, UserError):
                raise result
            if is_result:
                unfinished -= 1
                yield result
    except RayActorError as error:
        raise UserError(
            f"an actor was lost {RESTARTS + 1} times ({str(error).strip().splitlines()[0]}); what is done is kept: "
            "see to the cause (memory, most often) and run the same command again"
        ) from error
    finally:
        # Actors end when nothing refers to them. Killing one that is at work would have Ray print that its task failed.
        asked.clear()
        handles.clear()
