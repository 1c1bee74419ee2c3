"""What a runtime yields for a task that it gave up, so that the rest completes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ATTEMPTS = 3
"""How often a task is tried whose worker dies under it."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A task that was given up."""

    task: Any
    reason: str
    attempts: int = 1
    worker: str = field(default="", compare=False)
    """Who had it last: machine and process, or an address; empty where that is not known."""
