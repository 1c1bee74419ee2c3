"""A real Slurm cluster on this machine: a controller and several nodes, in a temporary folder.

It neither reads nor changes the machine's own configuration: its configuration, key, socket and ports are its own. It
listens on the address of the machine's host name, which on most machines is loopback.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("sbatch", "scontrol", "squeue", "slurmctld", "slurmd", "munged")
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")
NODES = ("node1", "node2")
CPUS = 8
"""CPUs that each node claims, so that jobs of several tests run side by side on any machine."""

CONFIGURATION = """\
ClusterName=tests
FirstJobId={first}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=10
MinJobAge=86400
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def programs_missing() -> list[str]:
    """List Slurm's programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], *SYSTEM_FOLDERS])


@dataclass(frozen=True, slots=True)
class Slurm:
    """A running cluster."""

    folder: Path
    """Holds its configuration, state and logs."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment of its commands, without variables of a Slurm job or a Ray in which the tests may run."""
        others = ("SLURM_", "SBATCH_", "RAY_")
        outside = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**outside, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *arguments: object, **environment: str) -> str:
        """Run one of Slurm's commands; return its standard output."""
        done = subprocess.run(
            [*map(str, arguments)],
            capture_output=True, text=True, timeout=60, env=self.environment | environment,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def submit(
        self, log: Path, script: Path, *arguments: object, options: Mapping[str, object], **environment: str
    ) -> int:
        """Submit a job whose output is appended to a log; return its number."""
        chosen = [f"--{name}={value}" for name, value in options.items()]
        answer = self.command("sbatch", "--parsable", f"--output={log}", *chosen, script, *arguments, **environment)
        return int(answer)

    def job(self, number: int) -> dict[str, str]:
        """Return the controller's record of a job: JobState, Restarts, ExitCode, …"""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: int, state: str, restarts: int, log: Path, seconds: float = 400) -> dict[str, str]:
        """Wait until a job is in a state after so many restarts; return its record."""
        deadline = time.monotonic() + seconds
        while True:
            known = self.job(number)
            if (known["JobState"], int(known["Restarts"])) == (state, restarts):
                return known
            ended = known["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
            said = log.read_text() if log.exists() else ""
            assert not ended, (
                f"{known['JobState']} after {known['Restarts']} restarts, not {state} after {restarts}: {said}"
            )
            assert time.monotonic() < deadline, f"not {state} after {seconds} s: {known}; {said}"
            time.sleep(0.1)


@contextmanager
def slurm() -> Iterator[Slurm]:
    """While open, a cluster of NODES; its jobs end when it closes."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need a short path
    folder.chmod(0o711)  # munged requires a socket that everyone can reach
    with ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = Slurm(folder)
        _configure(folder)
        key = folder / "munge.key"
        running.enter_context(
            _daemon(cluster, "munged", "--foreground", f"--socket={folder}/munge.sock", f"--key-file={key}",
                    f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
                    f"--log-file={folder}/munged.log", "--num-threads=10")
        )  # fmt: skip
        _wait(lambda: (folder / "munge.sock").exists(), folder)
        running.enter_context(_daemon(cluster, "slurmctld", "-D", "-i"))
        for node in NODES:
            running.enter_context(_daemon(cluster, "slurmd", "-D", "-N", node))
        _wait(lambda: _idle(cluster) == len(NODES), folder)
        try:
            yield cluster
        finally:
            _end_jobs(cluster)


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    port, *ports = _free_ports(1 + len(NODES))
    host = socket.gethostname()
    address = socket.gethostbyname(host)  # slurmd always binds this one
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={at} CPUs={CPUS} State=UNKNOWN"
        for name, at in zip(NODES, ports, strict=True)
    ]
    first = 100_000 + secrets.randbelow(900_000)  # unlike the jobs of other clusters on this machine
    fields = {
        "first": first,
        "host": host,
        "address": address,
        "port": port,
        "user": getpass.getuser(),
        "folder": folder,
    }
    text = CONFIGURATION.format(**fields, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextmanager
def _daemon(cluster: Slurm, program: str, *arguments: str) -> Iterator[None]:
    """While open, run a daemon in the foreground of its own session."""
    with (cluster.folder / f"{program}-{'-'.join(arguments[-1:])}.out".replace("/", "_")).open("w") as out:
        process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=cluster.environment, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            for member in [*family, process]:
                with suppress(psutil.NoSuchProcess, ProcessLookupError):
                    member.kill()
            process.wait()


def _idle(cluster: Slurm) -> int:
    with suppress(AssertionError):
        return cluster.command("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")
    return 0


def _end_jobs(cluster: Slurm) -> None:
    with suppress(AssertionError):
        jobs = cluster.command("squeue", "--noheader", "--format=%A").split()
        if jobs:
            cluster.command("scancel", "--full", *jobs)
        _wait(lambda: not cluster.command("squeue", "--noheader").strip(), cluster.folder)


def _wait(done: object, folder: Path, seconds: float = 60) -> None:
    assert callable(done)
    deadline = time.monotonic() + seconds
    while not done():
        logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.[lo][ou][gt]"))
        assert time.monotonic() < deadline, f"Slurm is not ready after {seconds} s; {logs}"
        time.sleep(0.1)
