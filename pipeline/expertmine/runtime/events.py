"""What happens while tasks run, beside their results: workers come and go, tasks are retried, the queue gets shorter.

A runtime hands each event to the caller's `EventHandler`, in the caller's thread, between results.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker was started and can be given tasks."""

    worker: str
    """Machine and process, or an address."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker died; another takes its place where there is room."""

    worker: str
    """Machine and process, or an address; empty for one that never answered."""
    reason: str
    tasks: tuple[Any, ...]
    """Those that it had."""


@dataclass(frozen=True, slots=True)
class Retried:
    """A task is to run again, since an attempt failed or its worker died."""

    task: Any
    worker: str
    """The one that had it."""
    reason: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Queue:
    """How many tasks wait for a worker, and how many are with one."""

    waiting: int
    in_flight: int


Event: TypeAlias = Joined | Lost | Retried | Queue
EventHandler: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Handles an event by doing nothing."""


def process_name() -> str:
    """This process, as events and receipts name it."""
    return f"{socket.gethostname()}-{os.getpid()}"
