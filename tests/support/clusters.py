"""A Ray and a Dask for all tests of a session, whichever of its processes need them; started when first asked for.

Tests that kill a cluster's own processes, or look at its sockets, start one of their own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
from support.processes import free_port, kill_family

SESSION = "EXPERTMINE_TEST_SESSION"
"""Environment variable of all processes of a session: the folder where they find each other's clusters."""

STAY = """
import sys, time
import psutil
def stay():  # while the session lasts, which may end without a word
    while psutil.pid_exists(int(sys.argv[1])):
        time.sleep(0.5)
"""
RAY = f"""{STAY}
from expertmine.runtime import ray as ours
with ours.cluster(None, cpus=4):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    stay()
"""
DASK = f"""{STAY}
import subprocess
port = sys.argv[2]
address, here = f"tcp://127.0.0.1:{{port}}", ["--host", "127.0.0.1"]
start = [sys.executable, "-m"]
options = ["--port", port, "--dashboard-address", "127.0.0.1:0"]
family = [subprocess.Popen([*start, "distributed.cli.dask_scheduler", *here, *options])]
for _ in range(2):
    options = ["--nthreads", "1", "--no-dashboard"]
    family.append(subprocess.Popen([*start, "distributed.cli.dask_worker", address, *here, *options]))
print(address, flush=True)
stay()
for process in family:
    process.kill()
"""


def begin_session() -> Path | None:
    """Make a session's folder; None in a process that belongs to a session already."""
    if SESSION in os.environ:
        return None
    os.environ[SESSION] = tempfile.mkdtemp(prefix="expertmine-tests-")
    return Path(os.environ[SESSION])


def end_session(folder: Path) -> None:
    """End the session's clusters, and remove its folder."""
    del os.environ[SESSION]
    for path in folder.glob("*.pid"):
        with suppress(psutil.NoSuchProcess):
            kill_family(psutil.Process(int(path.read_text())))
    shutil.rmtree(folder)


def ray_address() -> str:
    """Address of the session's Ray, which has four CPUs; a test uses at most two."""
    return _address("ray", RAY)


def dask_address() -> str:
    """The session's Dask: a scheduler, and two workers with one thread each."""
    return _address("dask", DASK, str(free_port()))


def _address(name: str, code: str, *arguments: str) -> str:
    folder = Path(os.environ[SESSION])
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the session may be starting it
        if not (folder / name).exists():
            _start(folder, name, code, *arguments)
    return (folder / name).read_text()


def _start(folder: Path, name: str, code: str, *arguments: str) -> None:
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(session), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    (folder / f"{name}.pid").write_text(str(process.pid))
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, (folder / f"{name}.log").read_text()
    (folder / name).write_text(address)
