"""Run tasks one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Result = TypeVar("Result")


def run(make_worker: Callable[[], Callable[[int], Result]], tasks: Sequence[int]) -> Iterator[Result]:
    """Results in task order; the worker is made when there is a task for it."""
    if tasks:
        worker = make_worker()
        for task in tasks:
            yield worker(task)
