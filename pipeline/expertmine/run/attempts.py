"""What each attempt of a stage had and met: how much of a machine a worker held, and what was lost on the way.

A attempt is the process that hands a stage's tasks out. It leaves a record beside the news of the run's workers: for
people and for the bill of what a run has cost. It is news, not a promise: what cannot be written stays unsaid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from expertmine.errors import UserError
from expertmine.run import paths
from expertmine.run.ledger import read_records
from expertmine.specs.plan import Stage
from expertmine.storage.files import single_attempt, write_json
from expertmine.storage.locations import Location


@dataclass(frozen=True, slots=True)
class StageAttempt:
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


def write_attempt(run: Location, attempt: StageAttempt) -> None:
    """Leave a driver's record, in place of what it said before."""
    with suppress(UserError), single_attempt():
        write_json(paths.attempt_file(run, attempt.stage, attempt.process, attempt.began), asdict(attempt))


def read_attempts(run: Location) -> list[StageAttempt]:
    """Every attempt that left a record, the earliest first."""
    records = read_records(paths.attempts_folder(run), StageAttempt)
    found = [replace(attempt, metrics=tuple(attempt.metrics)) for attempt in records]
    return sorted(found, key=lambda attempt: attempt.began)


def attempt_at(attempts: Sequence[StageAttempt], stage: Stage, moment: float) -> StageAttempt | None:
    """Who drove a stage at a moment: of `attempts`, the earliest first, the last that had begun."""
    begun = [attempt for attempt in attempts if attempt.stage == stage and attempt.began <= moment]
    return begun[-1] if begun else None
