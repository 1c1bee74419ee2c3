"""A record of each attempt to run a stage: the resources that its workers held, and its losses.

The process that hands out a stage's tasks writes it, beside the states of the workers: for people, and to add up costs.
Nothing depends on it: a record that cannot be written is left out.
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
    """None while it runs, and if it was killed."""
    tasks: int = 0
    """Tasks without a receipt when it began."""
    cpus_each: float | None = None
    """CPUs that a worker holds; None if that is not known."""
    gpus_each: float | None = None
    """GPUs that a worker holds; None if that is not known."""
    retried: int = 0
    """Tasks that took more than one worker."""
    lost: int = 0
    """Workers that died."""
    failed: int = 0
    """Tasks that were given up."""
    metrics: tuple[str, ...] = ()
    """Addresses where Prometheus finds metrics while it runs."""


def write_attempt(run: Location, attempt: StageAttempt) -> None:
    """Write an attempt's record, in place of its earlier one."""
    with suppress(UserError), single_attempt():
        write_json(paths.attempt_file(run, attempt.stage, attempt.process, attempt.began), asdict(attempt))


def read_attempts(run: Location) -> list[StageAttempt]:
    """Every recorded attempt, the earliest first."""
    records = read_records(paths.attempts_folder(run), StageAttempt)
    found = [replace(attempt, metrics=tuple(attempt.metrics)) for attempt in records]
    return sorted(found, key=lambda attempt: attempt.began)


def attempt_at(attempts: Sequence[StageAttempt], stage: Stage, moment: float) -> StageAttempt | None:
    """The attempt that drove a stage at a moment: the last one of `attempts`, the earliest first, that had begun."""
    begun = [attempt for attempt in attempts if attempt.stage == stage and attempt.began <= moment]
    return begun[-1] if begun else None
