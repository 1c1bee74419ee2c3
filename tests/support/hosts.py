"""Simulated hosts: network namespaces, each with its own address, network card and folder for Ray.

They share the disk, as the machines of a cluster share a run's folder. The network between them is in a namespace too,
so the machine's own network is not touched and any addresses will do. Cutting off a host is like pulling its cable:
its peers are not notified.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RAYS_FOLDER = Path("/tmp/ray")
"""Where Ray keeps its sockets, also on nodes that join; each host has its own folder mounted there."""
AS_ITSELF = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace that is connected to a switch."""

    name: str
    address: str
    switch: str
    port: str
    folder: Path

    def start(self, *command: object, environment: Mapping[str, str], **how: Any) -> subprocess.Popen[str]:
        """Start a command on the host; end it with `kill_family`."""
        namespaces = ["ip", "netns", "exec", self.name, "unshare", "--uts"]
        itself = ["sh", "-c", AS_ITSELF, self.name, self.folder, RAYS_FOLDER]
        return subprocess.Popen(
            list(map(str, [*namespaces, *itself, *command])), env=dict(environment), text=True, **how
        )

    def cut_off(self) -> None:
        """Disconnect the host from the switch."""
        _ip("-n", self.switch, "link", "set", self.port, "down")


def why_not() -> str | None:
    """Return why this machine cannot simulate hosts; None if it can."""
    if missing := [name for name in ("ip", "unshare", "mount", "hostname") if shutil.which(name) is None]:
        return f"no network namespaces: no {' and no '.join(missing)} here (Debian's iproute2, util-linux, hostname)"
    if os.geteuid() != 0:
        return "no network namespaces: only root may make them"
    probe = f"expertmine-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "exec", probe, "unshare", "--uts", "sh", "-c", "hostname probe && mount --bind /tmp /tmp")
        _ip("-n", probe, "link", "add", "eth0", "type", "veth", "peer", "name", "port0", "netns", probe)
    except RuntimeError as error:
        return f"no network namespaces: {error}"
    finally:
        with suppress(RuntimeError):
            _ip("netns", "del", probe)
    return None


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """While open, this many hosts on one switch, with addresses from 10.0.0.1.

    Args:
        folder: holds a folder for Ray per host.
    """
    switch = f"expertmine-{os.getpid()}-switch"
    made = [
        Host(f"expertmine-{os.getpid()}-{at}", f"10.0.0.{at}", switch, f"port{at}", folder / f"host {at}")
        for at in range(1, count + 1)
    ]
    RAYS_FOLDER.mkdir(exist_ok=True)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "address", "add", "10.0.0.254/24", "dev", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in made:
            host.folder.mkdir()
            _plug_in(host)
        yield made
    finally:
        for name in (switch, *(host.name for host in made)):
            with suppress(RuntimeError):  # it may not have been created
                _ip("netns", "del", name)


def _plug_in(host: Host) -> None:
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "set", "lo", "up")
    _ip("-n", host.name, "link", "add", "eth0", "type", "veth", "peer", "name", host.port, "netns", host.switch)
    _ip("-n", host.switch, "link", "set", host.port, "master", "bridge", "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "eth0", "up")
    # A route to nowhere: Ray and Dask take as their own address the one that they would use towards the internet.
    _ip("-n", host.name, "route", "add", "default", "via", "10.0.0.254")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
