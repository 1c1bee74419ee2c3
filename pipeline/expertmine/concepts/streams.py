"""Streams files of any size, plain or gzip, as chunks or lines in constant memory. Knows no format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from expertmine.errors import UserError
from expertmine.telemetry.progress import track_bytes

_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"


def chunks(path: Path, show_progress: bool = True) -> Iterator[bytes]:
    """Read a file in chunks; it is decompressed if its first bytes are gzip's, whatever its name.

    Raises:
        UserError: it is missing, unreadable, or cut short.
    """
    with _reading(path), path.open("rb") as raw:
        compressed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        content = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        pieces = iter(lambda: content.read(_CHUNK), b"")
        if show_progress:
            pieces = track_bytes(pieces, f"read {path.name}", path.stat().st_size, raw.tell)
        yield from pieces


def lines(path: Path, show_progress: bool = True) -> Iterator[tuple[int, str]]:
    """Read lines with their numbers, from 1, without line ends; a leading byte order mark is dropped.

    Raises:
        UserError: as `chunks` does, or a line is not UTF-8.
    """
    begun: list[bytes] = []  # pieces of a line that continues in the next chunk
    number = 0
    for chunk in chunks(path, show_progress):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            number += 1
            yield number, _decode(path, number, b"".join([*begun, end]))
            begun = []
        begun.append(rest)
    if last := b"".join(begun):
        yield number + 1, _decode(path, number + 1, last)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line is 0x{line[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is cut short or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
