"""Starts and kills the processes of tests: Ray nodes, Dask schedulers, commands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

KILLS = int(os.environ.get("EXPERTMINE_KILLS", "1"))
"""Kills of each kind."""


SEED = int(os.environ.get("EXPERTMINE_SEED", "1"))
"""Draws which processes are killed, and when."""


ENVIRONMENT = {
    **os.environ,
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # both ends are on loopback
    "RAY_worker_niceness": "0",
}


NODES = """
import sys, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    nodes.append(cluster.add_node(num_cpus=1))
    cluster.remove_node(nodes.pop(int(line)), allow_graceful=False)
    print("removed", flush=True)
"""


@contextmanager
def ray_nodes() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A Ray cluster of a head and two nodes; the process replaces the node whose number is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address, process
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                member.kill()
        process.wait()


def kill_family(process: subprocess.Popen[str] | subprocess.Popen[bytes] | psutil.Process) -> None:
    """Kill a process and all its children at once, as if the machine went down."""
    with suppress(psutil.NoSuchProcess):
        for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


@contextmanager
def scheduler(port: int) -> Iterator[subprocess.Popen[str]]:
    """A Dask scheduler and two workers, started as an engineer would."""
    address = f"tcp://127.0.0.1:{port}"
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0"],
        *[["dask_worker", address, "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"]] * 2,
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]], stderr=subprocess.DEVNULL, text=True
        )
        for command in commands
    ]
    try:
        yield processes[0]
    finally:
        for process in processes:
            kill_family(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
