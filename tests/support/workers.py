"""Workers for tests of runtimes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from expertmine.errors import UserError


def new_squarer(folder: Path) -> Callable[[], Callable[[int], int]]:
    """Makes workers that kill their own process at the first sight of task 3, and refuse task 13.

    What is defined in a function travels to other processes by value: they cannot import this file.
    """

    def square(task: int) -> int:
        if task == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 13:
            raise UserError("thirteen is refused")
        return task * task

    return lambda: square
