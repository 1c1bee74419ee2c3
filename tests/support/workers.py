"""Workers for tests of runtimes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from expertmine.errors import UserError


def new_squarer(folder: Path) -> Callable[[], Callable[[int], int]]:
    """Return a factory of workers that kill their process when they first get task 3, and refuse task 13.

    The worker is defined inside so that it is pickled by value: other processes cannot import this file.
    """

    def square(task: int) -> int:
        if task == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 13:
            raise UserError("thirteen is refused")
        return task * task

    return lambda: square
