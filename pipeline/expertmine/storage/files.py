"""Small files and whole objects, here or on an object store: written whole or not at all, and hashes of them.

On a disk that takes a temporary name, a flush and a rename. An object store has no renaming and needs none: a put of
one object is seen whole or not at all. Its requests are tried again, later and later, before anything is given up.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from expertmine.errors import StageError, UserError
from expertmine.storage.locations import Location, is_remote

Result = TypeVar("Result")

ATTEMPTS = 8
"""How often a request to an object store is made, within some 90 seconds; its client tries a few times each time."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long, less up to a half by lot."""
TOGETHER = 64
"""Requests that are in flight at once where many objects are read."""

_log = logging.getLogger("expertmine")
_hasty: ContextVar[bool] = ContextVar("hasty", default=False)
_TROUBLE = (OSError, ValueError, TypeError, LookupError, RuntimeError)
"""What reading and writing at a place may end with: clients of object stores raise what they like."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links answer to making one."""
_FINAL = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, LookupError, RuntimeError),
)
"""Answers of an object store, and contents, that asking again does not change."""
_FINAL_ERRNOS = (errno.ENOSYS, errno.EREMCHG, errno.EMSGSIZE)
"""And among others: a store that cannot do it, is of another region, or takes nothing as large."""
_FINAL_NAMES = ("ParamValidationError", "UnknownServiceError")
_WITHOUT_KEYS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
)
"""So are these, of clients that have no credentials; named, since the clients' libraries need not be installed."""


def with_retries(where: Location, request: Callable[[], Result]) -> Result:
    """Do something at a place; on an object store again and again, with pauses, while it may yet succeed.

    Raises:
        FileNotFoundError, FileExistsError: at once.
        PermissionError: at once; also where there are no credentials.
        OSError: whatever else it was, at last.
    """
    if not is_remote(where):
        return request()
    pause, attempts = FIRST_PAUSE, 1 if _hasty.get() else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return request()
        except _FINAL:
            raise
        except Exception as error:  # clients raise what they like, of their own libraries
            if type(error).__name__ in _WITHOUT_KEYS:
                raise PermissionError(f"no credentials for {where}: {error}") from error
            final = type(error).__name__ in _FINAL_NAMES or getattr(error, "errno", None) in _FINAL_ERRNOS
            if attempt == attempts or final:
                raise OSError(f"{error or type(error).__name__} ({attempt} attempts)") from error
            if attempt == 2:
                _log.warning("%s does not answer (%s); it is asked again for a while", where, error)
        time.sleep(pause * random.uniform(0.5, 1))
        pause *= 2
    raise AssertionError


@contextmanager
def single_attempt() -> Iterator[None]:
    """Within, requests to object stores are made once: for news and farewells, which nobody should wait for."""
    before = _hasty.set(True)
    try:
        yield
    finally:
        _hasty.reset(before)


@contextmanager
def writing(path: Location) -> Iterator[None]:
    """Tell the user when a disk is full or refuses, or an object store cannot be reached.

    Raises:
        StageError: in place of an OSError; names the path.
    """
    try:
        yield
    except _TROUBLE as error:
        if not isinstance(error, OSError) and not is_remote(path):
            raise  # a mistake of ours
        why = getattr(error, "strerror", None) or error
        raise StageError(
            f"{path}: cannot be written ({why}); mend that and run the same command again: what is done is kept"
        ) from error


def make_folder(path: Location) -> None:
    """Make a folder and those above it, where there are such things as folders.

    Raises:
        UserError: the disk is full or refuses.
    """
    if not is_remote(path):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Location, content: bytes) -> None:
    """Write a file: readers see all of it or none, and it is on the disk itself when this returns.

    Raises:
        UserError: the disk is full or refuses, or the object store cannot be reached; what was there stays.
    """
    if is_remote(path):
        with writing(path):
            with_retries(path, lambda: path.fs.pipe_file(path.path, content))
        return
    with writing(path), _flushed(path, content) as temporary:
        temporary.replace(path)


def create(path: Location, content: bytes) -> bool:
    """Write a file that must not be there yet; of several who try, one does. Returns whether it was this one.

    Raises:
        UserError: the disk is full or refuses, or the object store cannot be reached.
    """
    if is_remote(path):
        with writing(path):
            try:
                with_retries(path, lambda: path.fs.pipe_file(path.path, content, mode="create"))
            except FileExistsError:
                # Perhaps by an attempt of our own whose answer was lost.
                return read_bytes(path) == content
        return True
    with writing(path), _flushed(path, content) as temporary:
        try:
            os.link(temporary, path)  # fails where the name is taken, on network file systems as well
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_in_place(path, content)
    return True


def _create_in_place(path: Path, content: bytes) -> bool:
    """The same on a file system that knows no hard links; others may see the file before it is whole."""
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextmanager
def _flushed(path: Path, content: bytes) -> Iterator[Path]:
    """A file of another name beside a path, that is on the disk itself; gone at the end, unless it was renamed."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would lock colleagues out of a shared run folder
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Location, document: Any) -> None:
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: Location) -> bytes:
    """All of a file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    return with_retries(path, path.read_bytes)


def read_each(paths: Sequence[Location], most: int | None = None) -> Iterator[bytes | None]:
    """Each of many small files of one place, None where there is none; many at a time from an object store.

    Args:
        most: bytes of each that are read; None for all.

    Raises:
        UserError: one cannot be read.
    """
    for start in range(0, len(paths), TOGETHER):
        some = paths[start : start + TOGETHER]
        try:
            found = _read_together(some, most) if is_remote(some[0]) else [_beginning(path, most) for path in some]
        except _TROUBLE as error:
            raise UserError(f"{some[0].parent}: cannot be read ({error})") from error
        yield from found


def _beginning(path: Location, most: int | None) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(-1 if most is None else most)
    except FileNotFoundError:
        return None


def _read_together(paths: Sequence[Location], most: int | None) -> list[bytes | None]:
    remote = [path for path in paths if is_remote(path)]
    first, names = remote[0], [path.path for path in remote]

    def request() -> list[bytes | None]:
        if most is None:
            by_name = first.fs.cat(names, on_error="return", batch_size=TOGETHER)
            found = [by_name[name] for name in names]
        else:
            found = first.fs.cat_ranges(names, 0, most, on_error="return", batch_size=TOGETHER)
        for answer in found:
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
        return [None if isinstance(answer, Exception) else answer for answer in found]

    return with_retries(first, request)


def read_json(path: Location, what: str) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: missing, unreadable or malformed; names the file, the line, and `what` was expected.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected {what}") from error
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no UTF-8, endless numbers and brackets
        raise UserError(f"{path}: cannot be read ({error}); expected {what}") from error


def exists(path: Location) -> bool:
    """Whether there is a file or a folder.

    Raises:
        UserError: the object store cannot be reached, or does not let us in.
    """
    try:
        return with_retries(path, path.exists)
    except _TROUBLE as error:
        raise UserError(f"{path}: cannot be looked at ({error})") from error


def children(folder: Location) -> list[Location]:
    """What lies in a folder, in order of names; nothing where there is none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if is_remote(folder):
            found = with_retries(folder, lambda: folder.fs.ls(folder.path, detail=False, refresh=True))
            names = [name.rstrip("/").rpartition("/")[2] for name in found if name.rstrip("/") != folder.path]
        else:
            names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except _TROUBLE as error:
        raise UserError(f"{folder}: cannot be read ({error})") from error
    return [folder / name for name in sorted(names)]


def sizes(folder: Location) -> dict[str, int]:
    """Bytes of every file under a folder, by its path in it; nothing where there is none.

    Raises:
        OSError: it cannot be read.
    """
    if is_remote(folder):
        found = with_retries(folder, lambda: folder.fs.find(folder.path, detail=True))
        start = len(folder.path.rstrip("/")) + 1
        return {name[start:]: int(info["size"]) for name, info in found.items()}
    return {
        str((Path(above) / name).relative_to(folder)): (Path(above) / name).stat().st_size
        for above, _, names in os.walk(folder)
        for name in names
    }


def remove(path: Location) -> None:
    """Have a file gone.

    Raises:
        UserError: the disk or the object store refuses.
    """
    with writing(path), suppress(FileNotFoundError):
        if is_remote(path):
            with_retries(path, lambda: path.fs.rm_file(path.path))
        else:
            path.unlink()


def remove_folder(folder: Location) -> None:
    """Have a folder gone, with all that is in it.

    Raises:
        UserError: the disk or the object store refuses.
    """
    with writing(folder), suppress(FileNotFoundError):
        if is_remote(folder):
            with_retries(folder, lambda: folder.fs.rm(folder.path, recursive=True))
        else:
            shutil.rmtree(folder)


def copy(source: Location, target: Location) -> None:
    """Copy a file, whole or not at all, however large.

    Raises:
        UserError: it cannot be read, or not be written.
    """
    with writing(target), ExitStack() as spare:
        here = source if not is_remote(source) else Path(spare.enter_context(tempfile.TemporaryDirectory())) / "file"
        if is_remote(source):
            with_retries(source, lambda: source.fs.get_file(source.path, str(here)))
        if is_remote(target):
            with_retries(target, lambda: target.fs.put_file(str(here), target.path))
        else:
            make_folder(target.parent)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                shutil.copyfile(here, temporary)
                flush(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system bring a file that was just written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Location) -> str:
    """Of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    if is_remote(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
