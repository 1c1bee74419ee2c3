"""The lease of a run: one process at a time may plan it, hand out its tasks or write its index.

The lease holder holds it for one term, and says so in a file named by the term's number, which only one process can
create (``RUN/lock/00000007.json``); the highest term counts. It writes the file again every few seconds. When a holder
is gone, another process on the same machine sees that and follows at once; one on another machine follows when the file
has not changed for a while, without trusting the other's clock. This works the same on disks and object stores.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from expertmine.errors import StageError, UserError
from expertmine.run import paths
from expertmine.storage.files import children, create, exists, read_each, remove, single_attempt, write_json
from expertmine.storage.locations import Location, absolute
from expertmine.storage.untrusted import record, visible

Result = TypeVar("Result")

HEARTBEAT = 10.0
"""Seconds between two writings of a holder's file."""
STALE = 40.0
"""Seconds without a heartbeat after which a holder on another machine counts as gone."""
POLL = 1.0
"""Seconds between two reads of a file that is watched."""
_LAST = 253402300799.0
"""The end of the year 9999: later moments cannot be written as a date."""


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """A lease holder, as its file describes it."""

    term: int
    machine: str
    home: str
    """Which processes it can see: its machine since the last boot, and its namespace."""
    process: int
    born: str
    """When the process began, as its machine counts; tells apart two processes that had the same number."""
    command: str
    since: float
    """Seconds since 1970, UTC."""
    heartbeats: int = 0
    """How often the file was written."""
    ended: bool = False

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(max(self.since, 0.0), _LAST)))
        return visible(f"`{self.command}`, process {self.process} on {self.machine}, since {began}")


_held: dict[str, Lease] = {}
"""The runs that this process drives."""


class Lease:
    """The right to drive a run, while it lasts."""

    def __init__(self, run: Location, holder: LeaseHolder, after: LeaseHolder | None) -> None:
        self.run, self.holder, self.after = run, holder, after
        self.made = False
        """Whether the run folder is new."""
        self._overtaken: LeaseHolder | None = None
        self._over = Event()
        self._thread = Thread(target=self._heartbeat, daemon=True, name="expertmine-lock")

    def keep(self, results: Iterator[Result]) -> Iterator[Result]:
        """Pass results on as long as the lease lasts.

        Raises:
            StageError: another process drives the run now: this machine was asleep, or cut off, for too long.
        """
        for result in results:
            if self._overtaken is not None:
                raise _overtaken(self.run, self._overtaken)
            yield result

    def require(self) -> None:
        """Check that the lease lasts, before a write that cannot be undone.

        Raises:
            StageError: another process drives the run now.
        """
        latest = _latest(_files(self.run))
        if latest is not None and latest.term > self.holder.term:
            raise _overtaken(self.run, latest)

    def _heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            self.holder = replace(self.holder, heartbeats=self.holder.heartbeats + 1)
            # A full disk or an unreachable store must not end work that can go on. The next heartbeat comes soon.
            with suppress(UserError, OSError), single_attempt():
                self._write()

    def _write(self) -> None:
        latest = _latest(_files(self.run))
        if latest is not None and latest.term > self.holder.term:
            self._overtaken = latest
        else:
            write_json(paths.lease_file(self.run, self.holder.term), asdict(self.holder))

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Release the lease; leave no file behind in a folder without a plan."""
        self._over.set()
        self._thread.join()
        self.holder = replace(self.holder, ended=True)
        with suppress(UserError, OSError), single_attempt():
            if exists(paths.plan_file(self.run)):
                self._write()
            else:
                self._vanish()

    def _vanish(self) -> None:
        path = paths.lease_file(self.run, self.holder.term)
        remove(path)
        with suppress(OSError):  # not empty
            if isinstance(path, Path):
                path.parent.rmdir()
                if self.made:
                    path.parent.parent.rmdir()


@contextmanager
def driving(run: Location, command: str, tell: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """While open, this process drives a run; a lease that it holds already is used.

    Args:
        command: the command that needs it, such as ``mine``; shown to other processes.
        tell: is told why taking the lease is slow, and which holder this process follows.

    Raises:
        UserError: another process drives it; names that process.
    """
    if lease := held(run):
        yield lease
        return
    new = not exists(absolute(run))
    lease = _take(absolute(run), command, tell)
    lease.made = new
    lease.begin()
    key = str(absolute(run))
    _held[key] = lease
    try:
        yield lease
    finally:
        del _held[key]
        lease.end()


def held(run: Location) -> Lease | None:
    """The lease that this process holds on a run; None if it holds none."""
    return _held.get(str(absolute(run)))


def require(run: Location) -> None:
    """Check that this process still drives a run, if it has taken its lease.

    Raises:
        StageError: another process drives it now.
    """
    if lease := held(run):
        lease.require()


def _overtaken(run: Location, by: LeaseHolder) -> StageError:
    return StageError(f"{run} is driven by {by} now; this process was silent for too long, and stops")


def _take(run: Location, command: str, tell: Callable[[str], None]) -> Lease:
    files = _files(run)  # once: a second listing might show a term that was never checked
    latest = _latest(files)
    if files and (latest is None or latest.term < _term(files[-1])):
        latest = _once_whole(files[-1], tell) or latest
    if latest is not None and not latest.ended and not _is_this_process(latest):
        if _is_alive(run, latest, tell):
            raise UserError(
                f"{run} is driven by {latest}; wait for it or stop it, then rerun the command. "
                "Finished tasks are kept either way"
            )
        tell(f"taking over from {latest}, which is gone")
    term = _term(files[-1]) + 1 if files else 1
    own = LeaseHolder(
        term, socket.gethostname(), _home(), os.getpid(), _born(os.getpid()), command, round(time.time(), 3)
    )
    if not create(paths.lease_file(run, term), json.dumps(asdict(own)).encode()):
        raise UserError(f"{run}: another process took the lease at the same moment: {_latest(_files(run))}")
    # A process that listed the terms long ago could take a number that was used, and removed, since.
    above = _latest(_files(run))
    if above is not None and above.term > term:
        remove(paths.lease_file(run, term))
        raise UserError(f"{run} is driven by {above}; wait for it or stop it, then rerun the command")
    for path in _files(run):
        if _term(path) < term:
            remove(path)
    return Lease(run, own, None if latest is None or latest.ended else latest)


def _latest(files: list[Location]) -> LeaseHolder | None:
    """The holder of the highest term whose file is whole; `files` in order of terms."""
    for content in read_each(files[::-1]):
        if (holder := record(content, LeaseHolder)) is not None:
            return holder
    return None


def _files(run: Location) -> list[Location]:
    """The file of every term, in order."""
    return [path for path in children(paths.leases_folder(run)) if paths.is_lease_file(path)]


def _term(path: Location) -> int:
    return int(path.stem)


def _once_whole(path: Location, tell: Callable[[str], None]) -> LeaseHolder | None:
    """The holder that a file names, once it is written to its end; None if it stays torn."""
    tell(f"{path} is not whole; waiting up to {STALE:.0f} s for the process that writes it")
    until = time.monotonic() + STALE
    while (holder := _latest([path])) is None and time.monotonic() < until:
        time.sleep(POLL)
    return holder


def _is_this_process(holder: LeaseHolder) -> bool:
    """Whether the holder is this process: the end of an earlier term could not be written."""
    return (holder.home, holder.process, holder.born) == (_home(), os.getpid(), _born(os.getpid()))


def _is_alive(run: Location, holder: LeaseHolder, tell: Callable[[str], None]) -> bool:
    """Whether a holder is still running: by its process on this machine, or else by changes of its file."""
    if holder.home == _home() and not _is_hidden(holder.process):
        return _born(holder.process) == holder.born
    tell(f"{run} was driven by {holder}; waiting up to {STALE:.0f} s for its heartbeat")
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(POLL)
        latest = _latest(_files(run))
        if latest != holder:
            return latest is not None and not latest.ended
    return False


def _home() -> str:
    """Which processes this one can see: its machine since the last boot, and its namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _born(process: int) -> str:
    """When a process of this machine began, in clock ticks; empty if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _without_proc(process)
    return "" if fields[0] in "ZX" else fields[19]


def _is_hidden(process: int) -> bool:
    """Whether there is a process of another user that `/proc` does not show (Linux's ``hidepid``)."""
    if _born(process):
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False  # a zombie


def _without_proc(process: int) -> str:
    """The same for systems without ``/proc``, which tell only whether the process exists."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
