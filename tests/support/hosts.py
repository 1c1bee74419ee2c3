"""Hosts on one machine: network namespaces, each with an address, a network card, and a folder of Ray's of its own.

They share the disk, as the machines of a cluster share that of a run. The network between them lies in a namespace too:
the machine's own is not touched, and addresses may be any. A host is cut off as a cable is pulled: nothing tells those
who were talking to it.
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
"""Where Ray keeps its sockets, also on nodes that join: each host finds a folder of its own there."""
AS_ITSELF = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && exec "$@"'


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace that is plugged into a switch."""

    name: str
    address: str
    switch: str
    port: str
    folder: Path

    def start(self, *command: object, environment: Mapping[str, str], **how: Any) -> subprocess.Popen[str]:
        """Start a command there; see `kill_family` for its end."""
        namespaces = ["ip", "netns", "exec", self.name, "unshare", "--uts"]
        itself = ["sh", "-c", AS_ITSELF, self.name, self.folder, RAYS_FOLDER]
        return subprocess.Popen(
            list(map(str, [*namespaces, *itself, *command])), env=dict(environment), text=True, **how
        )

    def cut_off(self) -> None:
        """Pull its cable."""
        _ip("-n", self.switch, "link", "set", self.port, "down")


def why_not() -> str | None:
    """Why this machine cannot have such hosts, or None where it can."""
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
    """While open, so many hosts on one switch: 10.0.0.1 and so on.

    Args:
        folder: for what Ray keeps, a folder each.
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
            with suppress(RuntimeError):  # those that were not reached
                _ip("netns", "del", name)


def _plug_in(host: Host) -> None:
    _ip("netns", "add", host.name)
    _ip("-n", host.name, "link", "set", "lo", "up")
    _ip("-n", host.name, "link", "add", "eth0", "type", "veth", "peer", "name", host.port, "netns", host.switch)
    _ip("-n", host.switch, "link", "set", host.port, "master", "bridge", "up")
    _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
    _ip("-n", host.name, "link", "set", "eth0", "up")
    # Leads nowhere; Ray and Dask ask which address they would have towards the world, and take that for their own.
    _ip("-n", host.name, "route", "add", "default", "via", "10.0.0.254")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")
