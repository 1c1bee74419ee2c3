"""Shows progress of long work on standard error: a bar on a terminal, elsewhere a plain line every few seconds.

Progress is also logged as events. Knows nothing of the work itself.
"""

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

from expertmine.telemetry import logs
from expertmine.telemetry.formats import duration, number, size

Item = TypeVar("Item")

PLAIN_INTERVAL = 10.0
"""Seconds between plain lines, and between events."""

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
"""Standard error; a file has no width, so a fixed one keeps lines from wrapping."""


def track(
    items: Iterable[Item],
    label: str,
    total: int,
    done: int = 0,
    amount: Callable[[Item], tuple[int, str]] = lambda _: (0, ""),
) -> Iterator[Item]:
    """Pass items through and show how many of `total` are done.

    Args:
        done: items that were done before this call; they do not count towards the speed.
        amount: returns how much work an item was and its unit, for the speed per second.
    """
    rate = _Rate()
    items = _events(rate.of(items, amount), label, total, done, rate)
    if logs.on_stderr():
        yield from items
        return
    if not console.is_terminal:
        yield from _plain(items, label, total, done, rate)
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")
        for item in items:
            bar.update(task, advance=1, rate=str(rate))
            yield item


class _Rate:
    """Work per second since the first item was requested."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._amount, self._unit = 0, ""

    @property
    def per_second(self) -> dict[str, float]:
        """The speed by unit, as a field of an event; empty if nothing was counted."""
        if not self._amount:
            return {}
        return {self._unit: round(self._amount / max(time.monotonic() - self._started, 1e-3), 3)}

    def of(self, items: Iterable[Item], amount: Callable[[Item], tuple[int, str]]) -> Iterator[Item]:
        """Pass items through and add up their work."""
        for item in items:
            more, self._unit = amount(item)
            self._amount += more
            yield item

    def __str__(self) -> str:
        return "".join(f"{number(speed)} {unit}/s" for unit, speed in self.per_second.items())


def _events(items: Iterable[Item], label: str, total: int, done: int, rate: _Rate) -> Iterator[Item]:
    """Pass items through and log an event every `PLAIN_INTERVAL` seconds."""
    started = reported = time.monotonic()
    for new, item in enumerate(items, 1):
        now = time.monotonic()
        if now - reported >= PLAIN_INTERVAL and done + new < total:
            reported = now
            left = round((now - started) / new * (total - done - new), 1)
            speed = rate.per_second or None
            logs.event("progress", what=label, done=done + new, total=total, per_second=speed, seconds_left=left)
        yield item


def _plain(items: Iterable[Item], label: str, total: int, done: int, rate: _Rate) -> Iterator[Item]:
    """Pass items through and print a line every `PLAIN_INTERVAL` seconds."""
    started = reported = time.monotonic()
    new = 0
    for item in items:
        new += 1
        now = time.monotonic()
        if now - reported >= PLAIN_INTERVAL and done + new < total:
            reported = now
            left = (now - started) / new * (total - done - new)
            _print_line(f"{label}: {done + new:,} of {total:,}", str(rate), f"about {duration(left)} left")
        yield item
    if new:
        took = duration(time.monotonic() - started)
        _print_line(f"{label}: {done + new:,} of {total:,} in {took}", str(rate))


def _print_line(*parts: str) -> None:
    console.print(", ".join(part for part in parts if part), highlight=False)


def track_bytes(chunks: Iterable[Item], label: str, total: int, position: Callable[[], int]) -> Iterator[Item]:
    """Pass chunks of a file through and show how much of it has been read; quick reads leave no line.

    Args:
        total: bytes of the file.
        position: returns how many bytes have been read.
    """
    if not console.is_terminal or logs.on_stderr():
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
    started = reported = time.monotonic()
    for chunk in chunks:
        now = time.monotonic()
        if now - reported >= PLAIN_INTERVAL:
            reported = now
            done = max(position(), 1)
            left = duration((now - started) / done * (total - done))
            console.print(f"{label}: {size(done)} of {size(total)}, about {left} left", highlight=False)
        yield chunk
