"""Small files written whole or not at all, and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expertmine.errors import StageError, UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell the user when a disk is full or refuses.

    Raises:
        StageError: in place of an OSError; names the path.
    """
    try:
        yield
    except OSError as error:
        raise StageError(
            f"{path}: cannot be written ({error.strerror or error}); mend that and run the same command again: "
            "what is done is kept"
        ) from error


def flush(path: Path) -> None:
    """Have the system bring a file that was just written to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by temporary name, flush to disk, and rename: readers see all of it or none.

    Raises:
        UserError: the disk is full or refuses; what was there stays.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # mkstemp's 0600 would lock colleagues out of a shared run folder
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, document: Any) -> None:
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: missing, unreadable or malformed; names the file, the line, and `what` was expected.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected {what}") from error
    except (OSError, ValueError, RecursionError) as error:  # bytes that are no UTF-8, endless numbers and brackets
        raise UserError(f"{path}: cannot be read ({error}); expected {what}") from error


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
