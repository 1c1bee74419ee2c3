"""What a runtime tells while tasks run, beside their results: workers that come and go, and how much is waiting.

It is told to a callable of the caller's, in the caller's thread, between results.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker has found room and can be given tasks."""

    worker: str
    """Machine and process, or an address."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker died; another takes its place where there is room."""

    worker: str
    """Machine and process, or an address; empty for one that never answered."""
    reason: str
    tasks: tuple[Any, ...]
    """What it was at."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A task is to run again, since its worker died."""

    task: Any
    worker: str
    """That one."""


@dataclass(frozen=True, slots=True)
class Queue:
    """How many tasks nobody has yet, and how many are with a worker."""

    waiting: int
    in_flight: int


Event: TypeAlias = Joined | Lost | Retried | Queue
Tell: TypeAlias = Callable[[Event], None]


def nobody(event: Event) -> None:
    """Is told what nobody asked for."""


def process_name() -> str:
    """This process, as events and receipts name it."""
    return f"{socket.gethostname()}-{os.getpid()}"
