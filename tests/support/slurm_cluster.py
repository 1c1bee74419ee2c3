"""A real Slurm of several nodes on this machine: a controller and its nodes, in a folder that goes with them.

Nothing of the machine's own configuration is read or changed: the configuration, the key, the socket and the ports are
this cluster's. It listens where the machine's name leads, which is loopback on most.
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
"""That each node says it has: jobs of several tests run side by side, whatever the machine has."""

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
    """Programs of Slurm that this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], *SYSTEM_FOLDERS])


@dataclass(frozen=True, slots=True)
class Slurm:
    """A cluster that runs."""

    folder: Path
    """Its configuration, state and logs."""

    @property
    def environment(self) -> dict[str, str]:
        """In which its commands are called; nothing of a job, or of a Ray, that the tests themselves may be."""
        others = ("SLURM_", "SBATCH_", "RAY_")
        outside = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        return {**outside, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *arguments: object, **environment: str) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run(
            [*map(str, arguments)],
            capture_output=True, text=True, timeout=60, env=self.environment | environment,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def submit(
        self, log: Path, script: Path, *arguments: object, options: Mapping[str, object], **environment: str
    ) -> int:
        """The number of a job whose output is appended to a log."""
        chosen = [f"--{name}={value}" for name, value in options.items()]
        answer = self.command("sbatch", "--parsable", f"--output={log}", *chosen, script, *arguments, **environment)
        return int(answer)

    def job(self, number: int) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, ExitCode, …"""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, number: int, state: str, restarts: int, log: Path, seconds: float = 400) -> dict[str, str]:
        """What is known of a job when it is in that state, after so many restarts."""
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
    """While open, a cluster of NODES; its jobs end with it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path: of a socket, among others
    folder.chmod(0o711)  # munged asks for a socket that all can reach
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
    address = socket.gethostbyname(host)  # the one that a slurmd binds, whatever else it is told
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={at} CPUs={CPUS} State=UNKNOWN"
        for name, at in zip(NODES, ports, strict=True)
    ]
    first = 100_000 + secrets.randbelow(900_000)  # no other cluster of this machine has such jobs
    told = {"first": first, "host": host, "address": address, "port": port, "user": getpass.getuser(), "folder": folder}
    text = CONFIGURATION.format(**told, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextmanager
def _daemon(cluster: Slurm, program: str, *arguments: str) -> Iterator[None]:
    """A daemon in the foreground of a session of its own."""
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
