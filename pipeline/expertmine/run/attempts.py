"""What each driver of a stage had and met: how much of a machine a worker held, and what was lost on the way.

A driver is the process that hands a stage's tasks out. It leaves a record beside the news of the run's workers: for
people and for the bill of what a run has cost. It is news, not a promise: what cannot be written stays unsaid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from expertmine.errors import UserError
from expertmine.run.ledger import read_records
from expertmine.specs.plan import Stage
from expertmine.storage.files import hastily, write_json
from expertmine.storage.locations import Place


@dataclass(frozen=True, slots=True)
class Driver:
    """One attempt to run a stage to its end."""

    stage: Stage
    process: str
    """Machine and process."""
    executor: str
    """Such as ``ray``."""
    began: float
    """In seconds since 1970, UTC."""
    ended: float | None = None
    """None while it runs, and where it was killed."""
    tasks: int = 0
    """That had no receipt when it began."""
    cpus_each: float | None = None
    """CPUs that a worker holds; None where that is not known."""
    gpus_each: float | None = None
    """GPUs that a worker holds; None where that is not known."""
    retried: int = 0
    """Tasks that took more than one worker."""
    lost: int = 0
    """Workers that died."""
    failed: int = 0
    """Tasks that were given up."""
    metrics: tuple[str, ...] = ()
    """Where Prometheus finds numbers while it runs."""


def _folder(run: Place) -> Place:
    return run / "workers" / "drivers"


def write_driver(run: Place, driver: Driver) -> None:
    """Leave a driver's record, in place of what it said before."""
    with suppress(UserError), hastily():
        write_json(_folder(run) / f"{driver.began:.3f}-{driver.stage}-{driver.process}.json", asdict(driver))


def read_drivers(run: Place) -> list[Driver]:
    """Every driver that left a record, the earliest first."""
    found = [replace(driver, metrics=tuple(driver.metrics)) for driver in read_records(_folder(run), Driver)]
    return sorted(found, key=lambda driver: driver.began)


def driver_at(drivers: Sequence[Driver], stage: Stage, moment: float) -> Driver | None:
    """Who drove a stage at a moment: of `drivers`, the earliest first, the last that had begun."""
    begun = [driver for driver in drivers if driver.stage == stage and driver.began <= moment]
    return begun[-1] if begun else None
