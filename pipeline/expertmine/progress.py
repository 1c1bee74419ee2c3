"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere. Always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

PLAIN_INTERVAL = 10.0
"""Seconds between plain lines."""

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
"""Standard error; a file has no width of its own, and nothing must be folded there."""


def track(items: Iterable[Item], label: str, total: int, done: int = 0) -> Iterator[Item]:
    """Pass items through and show how many of `total` have come.

    Args:
        done: how many were there before this call; they count, but not towards the speed.
    """
    if not console.is_terminal:
        yield from _plain(items, label, total, done)
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, completed=done)
        for item in items:
            bar.advance(task)
            yield item


def _plain(items: Iterable[Item], label: str, total: int, done: int) -> Iterator[Item]:
    started = said = time.monotonic()
    new = 0
    for item in items:
        new += 1
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL and done + new < total:
            said = now
            left = (now - started) / new * (total - done - new)
            console.print(f"{label}: {done + new:,} of {total:,}, about {duration(left)} left", highlight=False)
        yield item
    if new:
        took = duration(time.monotonic() - started)
        console.print(f"{label}: {done + new:,} of {total:,} in {took}", highlight=False)


def track_bytes(chunks: Iterable[Item], label: str, total: int, position: Callable[[], int]) -> Iterator[Item]:
    """Pass chunks of a file through and show how far into it reading is; what is over at once shows nothing.

    Args:
        total: bytes of the file.
        position: tells how many of them are read.
    """
    if not console.is_terminal:
        yield from _plain_bytes(chunks, label, total, position)
        return
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        for chunk in chunks:
            bar.update(task, completed=position())
            yield chunk


def _plain_bytes(chunks: Iterable[Item], label: str, total: int, position: Callable[[], int]) -> Iterator[Item]:
    started = said = time.monotonic()
    for chunk in chunks:
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL:
            said = now
            done = max(position(), 1)
            left = duration((now - started) / done * (total - done))
            console.print(f"{label}: {size(done)} of {size(total)}, about {left} left", highlight=False)
        yield chunk


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(bytes_: float) -> str:
    """Bytes as people say them, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 1000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:,.3g} TB"
