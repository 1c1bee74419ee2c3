"""Reads, atomic writes, copies and hashes of files, local or on an object store. Knows no file's format.

A local file is written under a temporary name, flushed and renamed. An object store has no rename and needs none: a
put of one object is visible whole or not at all. Its requests are retried with growing pauses before they fail.
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
"""Attempts per request to an object store, over about 90 seconds; the client itself retries within each attempt."""
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long, and a random 50 to 100 % of it is waited."""
TOGETHER = 64
"""Concurrent requests when many objects are read."""

_log = logging.getLogger("expertmine")
_only_once: ContextVar[bool] = ContextVar("only_once", default=False)
_ERRORS = (OSError, ValueError, TypeError, LookupError, RuntimeError)
"""What reading or writing may raise; clients of object stores raise more than OSError."""
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Error numbers of file systems that do not support hard links."""
_FINAL = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ValueError, TypeError, LookupError, RuntimeError),
)
"""Errors of an object store that a retry cannot cure."""
_FINAL_ERRNOS = (errno.ENOSYS, errno.EREMCHG, errno.EMSGSIZE)
"""Further such errors, by number: operation not supported, wrong region, object too large."""
_FINAL_NAMES = ("ParamValidationError", "UnknownServiceError")
_WITHOUT_KEYS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
)
"""Errors of clients without credentials; listed by name, since the clients' libraries need not be installed."""


def with_retries(where: Location, request: Callable[[], Result]) -> Result:
    """Make a request at a location; on an object store, retry with growing pauses while a retry may help.

    Raises:
        FileNotFoundError, FileExistsError: without a retry.
        PermissionError: without a retry; also when there are no credentials.
        OSError: any other failure, after the last attempt.
    """
    if not is_remote(where):
        return request()
    pause, attempts = FIRST_PAUSE, 1 if _only_once.get() else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return request()
        except _FINAL:
            raise
        except Exception as error:  # clients raise exceptions of their own libraries
            if type(error).__name__ in _WITHOUT_KEYS:
                raise PermissionError(f"no credentials for {where}: {error}") from error
            final = type(error).__name__ in _FINAL_NAMES or getattr(error, "errno", None) in _FINAL_ERRNOS
            if attempt == attempts or final:
                raise OSError(f"{error or type(error).__name__} ({attempt} attempts)") from error
            if attempt == 2:
                _log.warning("%s does not respond (%s); retrying for up to 90 s", where, error)
        time.sleep(pause * random.uniform(0.5, 1))
        pause *= 2
    raise AssertionError


@contextmanager
def single_attempt() -> Iterator[None]:
    """While open, requests to object stores are not retried: for status updates, which are not worth waiting for."""
    before = _only_once.set(True)
    try:
        yield
    finally:
        _only_once.reset(before)


@contextmanager
def writing(path: Location) -> Iterator[None]:
    """Turn errors of writing, such as a full disk or an unreachable object store, into one for the user.

    Raises:
        StageError: in place of an OSError; names the path.
    """
    try:
        yield
    except _ERRORS as error:
        if not isinstance(error, OSError) and not is_remote(path):
            raise  # a bug of ours
        why = getattr(error, "strerror", None) or error
        raise StageError(
            f"{path}: cannot be written ({why}); fix the cause and rerun the command; finished tasks are kept"
        ) from error


def make_folder(path: Location) -> None:
    """Create a local folder and its parents; object stores need none.

    Raises:
        UserError: the disk is full or not writable.
    """
    if not is_remote(path):
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Location, *parts: bytes) -> None:
    """Write a file atomically: readers see all of it or none, and it has reached the disk when this returns.

    Args:
        parts: the content, in pieces that are written one after the other.

    Raises:
        UserError: the disk is full or not writable, or the object store cannot be reached; the old file stays.
    """
    if is_remote(path):
        with writing(path):
            with_retries(path, lambda: path.fs.pipe_file(path.path, b"".join(parts)))
        return
    with writing(path), _flushed(path, parts) as temporary:
        temporary.replace(path)


def create(path: Location, content: bytes) -> bool:
    """Write a file if it does not exist yet; returns whether this call created it. Of several callers, one does.

    Raises:
        UserError: the disk is full or not writable, or the object store cannot be reached.
    """
    if is_remote(path):
        with writing(path):
            try:
                with_retries(path, lambda: path.fs.pipe_file(path.path, content, mode="create"))
            except FileExistsError:
                # It may be the result of an earlier attempt of ours whose response was lost.
                return read_bytes(path) == content
        return True
    with writing(path), _flushed(path, [content]) as temporary:
        try:
            os.link(temporary, path)  # fails if the name is taken, on network file systems too
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_in_place(path, content)
    return True


def _create_in_place(path: Path, content: bytes) -> bool:
    """`create` for a file system without hard links; others may see the file before it is complete."""
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextmanager
def _flushed(path: Path, parts: Sequence[bytes]) -> Iterator[Path]:
    """Write a temporary file next to a path and flush it to disk; it is removed on exit unless it was renamed."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would lock colleagues out of a shared run folder
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Location, document: Any) -> None:
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: Location) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read.
    """
    return with_retries(path, path.read_bytes)


def read_each(paths: Sequence[Location], max_bytes: int | None = None) -> Iterator[bytes | None]:
    """Read many small files of one folder, None for each that does not exist; concurrently on an object store.

    Args:
        max_bytes: how much of each file is read; None for all of it.

    Raises:
        UserError: one cannot be read.
    """
    for start in range(0, len(paths), TOGETHER):
        some = paths[start : start + TOGETHER]
        try:
            if is_remote(some[0]):
                found = _read_together(some, max_bytes)
            else:
                found = [_read_head(path, max_bytes) for path in some]
        except _ERRORS as error:
            raise UserError(f"{some[0].parent}: cannot be read ({error})") from error
        yield from found


def _read_head(path: Location, max_bytes: int | None) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(-1 if max_bytes is None else max_bytes)
    except FileNotFoundError:
        return None


def _read_together(paths: Sequence[Location], max_bytes: int | None) -> list[bytes | None]:
    remote = [path for path in paths if is_remote(path)]
    first, names = remote[0], [path.path for path in remote]

    def request() -> list[bytes | None]:
        if max_bytes is None:
            by_name = first.fs.cat(names, on_error="return", batch_size=TOGETHER)
            found = [by_name[name] for name in names]
        else:
            found = first.fs.cat_ranges(names, 0, max_bytes, on_error="return", batch_size=TOGETHER)
        for content in found:
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return [None if isinstance(content, Exception) else content for content in found]

    return with_retries(first, request)


def read_json(path: Location, what: str) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is missing, unreadable or malformed; names the file, the line, and `what` was expected.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected {what}") from error
    except (OSError, ValueError, RecursionError) as error:  # invalid UTF-8, endless numbers, deep nesting
        raise UserError(f"{path}: cannot be read ({error}); expected {what}") from error


def exists(path: Location) -> bool:
    """Return whether a file or folder exists.

    Raises:
        UserError: the object store cannot be reached, or denies access.
    """
    try:
        return with_retries(path, path.exists)
    except _ERRORS as error:
        raise UserError(f"{path}: cannot be accessed ({error})") from error


def children(folder: Location) -> list[Location]:
    """List a folder's files and folders by name; an absent folder has none.

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
    except _ERRORS as error:
        raise UserError(f"{folder}: cannot be read ({error})") from error
    return [folder / name for name in sorted(names)]


def sizes(folder: Location) -> dict[str, int]:
    """Map the relative path of every file under a folder to its bytes; an absent folder has none.

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
    """Remove a file if it exists.

    Raises:
        UserError: the disk or the object store refuses.
    """
    with writing(path), suppress(FileNotFoundError):
        if is_remote(path):
            with_retries(path, lambda: path.fs.rm_file(path.path))
        else:
            path.unlink()


def remove_folder(folder: Location) -> None:
    """Remove a folder and everything in it, if it exists.

    Raises:
        UserError: the disk or the object store refuses.
    """
    with writing(folder), suppress(FileNotFoundError):
        if is_remote(folder):
            with_retries(folder, lambda: folder.fs.rm(folder.path, recursive=True))
        else:
            shutil.rmtree(folder)


def copy(source: Location, target: Location) -> None:
    """Copy a file of any size atomically.

    Raises:
        UserError: it cannot be read or written.
    """
    with writing(target), ExitStack() as spare:
        local = source if not is_remote(source) else Path(spare.enter_context(tempfile.TemporaryDirectory())) / "file"
        if is_remote(source):
            with_retries(source, lambda: source.fs.get_file(source.path, str(local)))
        if is_remote(target):
            with_retries(target, lambda: target.fs.put_file(str(local), target.path))
        else:
            make_folder(target.parent)
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                shutil.copyfile(local, temporary)
                flush(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file that was just written out to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Location) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    if is_remote(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
