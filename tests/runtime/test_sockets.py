"""What our commands listen on while they run, and which clients their servers accept.

Sockets are looked at from outside, over and over, of every process that a command has started.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import psutil
import pytest
from distributed import Client, Security
from support.processes import kill_family

from expertmine.runtime import dask

pytestmark = pytest.mark.slow

LOOK_EVERY = 0.4
"""Seconds between looks: a look takes a good part of a core, and servers listen for seconds."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that others can send to."""

    program: str
    address: str
    port: int

    @property
    def on_loopback(self) -> bool:
        address = ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return (mapped or address).is_loopback


class Family:
    """A process, all that it has started, and what these have listened on; children that lost their parent included."""

    def __init__(self, process: int) -> None:
        self.members = {process: psutil.Process(process)}
        self.heard: set[Listener] = set()

    def look(self) -> None:
        for process in psutil.process_iter(["ppid"]):  # parents come before their children, most often
            if process.info["ppid"] in self.members:
                self.members[process.pid] = process
        for found in psutil.net_connections("inet"):
            # A datagram socket has no state: without a peer, it takes what anyone sends.
            open_to_all = found.status == "LISTEN" or (found.type == socket.SOCK_DGRAM and not found.raddr)
            if open_to_all and found.laddr and found.pid in self.members:
                with suppress(psutil.NoSuchProcess):
                    name = self.members[found.pid].name()
                    self.heard.add(Listener(name, found.laddr.ip, found.laddr.port))

    def programs(self) -> set[str]:
        return {listener.program for listener in self.heard}


def without_settings_of_ray() -> dict[str, str]:
    """This process's environment without what other tests had Ray do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


@contextmanager
def command(log: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], Family]]:
    """One of our commands, in a process of its own; what it says goes to a file."""
    line = [sys.executable, "-m", "expertmine", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(line, stdout=file, stderr=file, text=True, env=without_settings_of_ray())
    try:
        yield process, Family(process.pid)
    finally:
        kill_family(process)


def watch(process: subprocess.Popen[str], family: Family, until: Callable[[], bool], seconds: float = 120) -> None:
    """Look at the sockets until the process has ended, or something else."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not until():
        assert time.monotonic() < deadline, family.heard
        family.look()
        time.sleep(LOOK_EVERY)


def never() -> bool:
    return False


@pytest.fixture
def extracted(mined: Path, tmp_path: Path) -> Path:
    """A run that is to be scored."""
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    for stage in ("score", "assess"):
        shutil.rmtree(run / "receipts" / stage)
    return run


def assert_on_loopback(family: Family) -> None:
    assert family.heard
    assert [listener for listener in family.heard if not listener.on_loopback] == []


def test_extraction_listens_on_loopback_alone(new_run: Path, tmp_path: Path) -> None:
    with command(tmp_path / "log", "extract", new_run, "--workers", 1) as (process, family):
        watch(process, family, until=never)
        assert process.wait() == 0, (tmp_path / "log").read_text()
    assert {"raylet", "gcs_server"} <= family.programs()
    assert_on_loopback(family)


def test_scoring_on_ray_listens_on_loopback_alone(extracted: Path, tmp_path: Path) -> None:
    with command(tmp_path / "log", "score", extracted, "--executor", "ray", "--workers", 1) as (process, family):
        watch(process, family, until=never)
        assert process.wait() == 0, (tmp_path / "log").read_text()
    assert {"raylet", "gcs_server"} <= family.programs()
    assert_on_loopback(family)


def test_scoring_on_dask_listens_on_loopback_alone(extracted: Path, tmp_path: Path) -> None:
    with command(tmp_path / "log", "score", extracted, "--workers", 2) as (process, family):
        watch(process, family, until=never)
        said = (tmp_path / "log").read_text()
        assert process.wait() == 0, said
    assert any(f"http://{heard.address}:{heard.port}/status" in said for heard in family.heard), said
    assert len(family.heard) >= 4  # a scheduler, its dashboard, two workers
    assert_on_loopback(family)


@pytest.mark.parametrize("executor", ["serial", "ray"])
def test_serving_listens_on_loopback_alone(executor: str, mined: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with command(log, "serve", mined, "--port", 0, "--device", "cpu", "--executor", executor) as (process, family):
        watch(process, family, until=lambda: "token: " in log.read_text())
        family.look()
        assert process.poll() is None, log.read_text()
    assert ("raylet" in family.programs()) == (executor == "ray")
    assert_on_loopback(family)


RAY = """
import sys
from expertmine.runtime import ray as ours
with ours.cluster(None, cpus=1):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
RAYS_CLIENT = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: "accepted").remote()))
"""


def test_ray_lets_in_who_has_the_token_and_nobody_else(tmp_path: Path) -> None:
    """The token is made by Ray, in the home folder of who starts it."""
    environment = {**without_settings_of_ray(), "HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    server = subprocess.Popen(
        [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()

        def client(**settings: str) -> subprocess.CompletedProcess[str]:
            line = [sys.executable, "-c", RAYS_CLIENT, address]
            return subprocess.run(line, capture_output=True, text=True, timeout=60, env={**environment, **settings})

        welcome = client(RAY_AUTH_MODE="token")
        assert welcome.stdout == "accepted\n", welcome.stderr
        for stranger in (client(RAY_AUTH_MODE="disabled"), client(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)):
            assert stranger.returncode != 0
            assert "accepted" not in stranger.stdout
            assert "auth" in stranger.stderr.lower()
    finally:
        kill_family(server)


def test_dask_lets_in_who_has_the_certificate_and_nobody_else() -> None:
    """The scheduler's socket and the workers', by Dask's own client and without any."""
    with dask.cluster(None, workers=1) as client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
        assert len(workers) == 1
        assert client.scheduler is not None
        scheduler = str(client.scheduler.address)
        addresses = [scheduler, workers[0]["nanny"], *client.nthreads()]
        assert len(set(addresses)) == 3
        assert client.submit(sum, [1, 2]).result() == 3
        for address, shown in ((scheduler.replace("tls", "tcp"), Security()), (scheduler, Security.temporary())):
            with pytest.raises(OSError):
                Client(address, security=shown, timeout="3s").close()
        for address in addresses:  # the scheduler's, a nanny's and a worker's
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
                greeting_without_certificate(address)


def greeting_without_certificate(address: str) -> bytes:
    """The first that a server says to a client that shows nothing."""
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=20) as plain, context.wrap_socket(plain) as connection:
        return connection.recv(1)
