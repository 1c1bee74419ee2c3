"""Run tasks on Ray actors. The only importer of ray.

Ray reads its environment when it is imported, so it is imported when it is clear what for. Token authentication is on,
on both sides. A cluster of our own listens on loopback alone and ends with us.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        UserError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
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
    except ConnectionError as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}. Start one, or leave --address out") from error
    try:
        yield
    finally:
        ray.shutdown()


class _Actor(Generic[Request, Result]):
    """A worker in a process of its own."""

    def __init__(self, make_worker: Callable[[], Callable[[Request], Result]]) -> None:
        self.worker = make_worker()

    def work(self, request: Request) -> Result:
        return self.worker(request)


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
    """Results as they come, from a pool of actors with one request each in flight.

    Raises:
        UserError: a task's own, or the actors were lost more often than `RESTARTS` times.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    if not requests:
        return
    remote: Any = ray.remote(_Actor).options(
        num_cpus=cpus_each, num_gpus=gpus_each, max_restarts=RESTARTS, max_task_retries=RESTARTS
    )
    handles = [remote.remote(make_worker) for _ in range(min(actors, len(requests)))]
    pool = ActorPool(handles)
    try:
        yield from pool.map_unordered(lambda actor, request: actor.work.remote(request), list(requests))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    except RayActorError as error:
        raise UserError(f"an actor was lost {RESTARTS + 1} times: {error}. What is done is kept; run again") from error
    finally:
        for handle in handles:
            ray.kill(handle)
