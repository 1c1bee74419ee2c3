"""Kills that are known to have taken effect: of a process that is alive, while its run is unfinished."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from support.processes import SEED

PATIENCE = 120
"""Seconds that something is waited for before it counts as stuck."""


def receipts(run: Path, stages: Sequence[str]) -> int:
    """How many tasks of these stages are done."""
    return sum(len(list((run / "receipts" / stage).glob("[0-9]*.json"))) for stage in stages)


def wait_until(condition: Callable[[], object], why: str) -> None:
    """Wait until something is true; fail when it does not come about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"seed {SEED}: {why}"
        time.sleep(0.01)


def wait_for_receipts(run: Path, stages: Sequence[str], more: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many more tasks are done, or the process has ended."""
    wanted = receipts(run, stages) + more
    wait_until(
        lambda: receipts(run, stages) >= wanted or process.poll() is not None,
        f"not {wanted} receipts of {', '.join(stages)}",
    )


def workers(run: Path) -> list[psutil.Process]:
    """Live processes that work on a run, as they say in its folder."""
    found = []
    for path in (run / "workers").glob("[!.]*.json"):
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            process = psutil.Process(json.loads(path.read_text())["process"])
            if not is_dead(process):
                found.append(process)
    return found


def is_dead(process: psutil.Process) -> bool:
    """Whether a process has ended, also where nobody has asked yet how."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill_worker(run: Path, lot: random.Random) -> None:
    """Kill one of the processes that work on a run, as soon as there is one, and see it dead."""
    wait_until(lambda: workers(run), "no worker")
    victim = lot.choice(workers(run))
    victim.kill()
    wait_until(lambda: is_dead(victim), f"process {victim.pid} outlives its kill")


def kill_driver(process: subprocess.Popen[str]) -> None:
    """Kill a driver that is alive, and see it dead of that."""
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, f"seed {SEED}: it had ended by itself, with {process.returncode}"
