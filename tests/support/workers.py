"""Workers for tests of runtimes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from expertmine.errors import StageError, UserError
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.protocol import Executor

Result = TypeVar("Result")


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


def new_scripted(
    folder: Path, script: Mapping[int, Sequence[str]], making: Sequence[str] = ()
) -> Callable[[], Callable[[int], int]]:
    """Makes workers whose calls end as a script says; each call leaves a file in a folder, whichever process has it.

    Args:
        script: by task, how its calls end one after another: ``ok``, ``die``, or the name of an exception; the last
            holds for all that follow. Tasks without a script return ten times their number.
        making: the same for the making of workers.
    """
    folder.mkdir(exist_ok=True)
    errors = {each.__name__: each for each in (UserError, StageError, OSError, RuntimeError, KeyboardInterrupt)}

    def act(name: str, ends: Sequence[str]) -> None:
        for call in range(1000):
            try:
                (folder / f"{name}.{call}").touch(exist_ok=False)
                break
            except FileExistsError:
                pass
        end = ends[min(call, len(ends) - 1)] if ends else "ok"
        if end == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if end != "ok":
            raise errors[end](f"{name} meets a scripted {end}")

    def work(task: int) -> int:
        act(f"task-{task}", script.get(task, ()))
        return 10 * task

    def make() -> Callable[[int], int]:
        act("making", making)
        return work

    return make


def calls(folder: Path, name: str) -> int:
    """How often a scripted worker was called: ``task-3``, ``making``."""
    return len(list(folder.glob(f"{name}.*")))


def outcomes(
    executor: Executor, make: Callable[[], Callable[[int], Result]], tasks: Sequence[int]
) -> tuple[list[Result], list[Failed]]:
    """The results and the tasks that were given up, to the end."""
    done: list[Result] = []
    failed: list[Failed] = []
    for outcome in executor.run(make, tasks):
        if isinstance(outcome, Failed):
            failed.append(outcome)
        else:
            done.append(outcome)
    return done, failed
