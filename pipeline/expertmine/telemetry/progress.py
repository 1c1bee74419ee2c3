"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, always on standard error.

It is logged, too.
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
"""Standard error; a file has no width of its own, and nothing must be folded there."""


def track(
    items: Iterable[Item],
    label: str,
    total: int,
    done: int = 0,
    amount: Callable[[Item], tuple[int, str]] = lambda _: (0, ""),
) -> Iterator[Item]:
    """Pass items through and show how many of `total` have come.

    Args:
        done: how many were there before this call; they count, but not towards the speed.
        amount: how much work an item was, and in what unit, for showing how much is done a second.
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
    """How much is done a second, since the first item was asked for."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._amount, self._unit = 0, ""

    @property
    def per_second(self) -> dict[str, float]:
        """As a field of an event; empty where nothing is counted."""
        if not self._amount:
            return {}
        return {self._unit: round(self._amount / max(time.monotonic() - self._started, 1e-3), 3)}

    def of(self, items: Iterable[Item], amount: Callable[[Item], tuple[int, str]]) -> Iterator[Item]:
        """Pass items through and add up what they amount to."""
        for item in items:
            more, self._unit = amount(item)
            self._amount += more
            yield item

    def __str__(self) -> str:
        return "".join(f"{number(speed)} {unit}/s" for unit, speed in self.per_second.items())


def _events(items: Iterable[Item], label: str, total: int, done: int, rate: _Rate) -> Iterator[Item]:
    """Pass items through and log now and then how far they are."""
    started = said = time.monotonic()
    for new, item in enumerate(items, 1):
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL and done + new < total:
            said = now
            left = round((now - started) / new * (total - done - new), 1)
            speed = rate.per_second or None
            logs.event("progress", what=label, done=done + new, total=total, per_second=speed, seconds_left=left)
        yield item


def _plain(items: Iterable[Item], label: str, total: int, done: int, rate: _Rate) -> Iterator[Item]:
    started = said = time.monotonic()
    new = 0
    for item in items:
        new += 1
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL and done + new < total:
            said = now
            left = (now - started) / new * (total - done - new)
            _say(f"{label}: {done + new:,} of {total:,}", str(rate), f"about {duration(left)} left")
        yield item
    if new:
        took = duration(time.monotonic() - started)
        _say(f"{label}: {done + new:,} of {total:,} in {took}", str(rate))


def _say(*parts: str) -> None:
    console.print(", ".join(part for part in parts if part), highlight=False)


def track_bytes(chunks: Iterable[Item], label: str, total: int, position: Callable[[], int]) -> Iterator[Item]:
    """Pass chunks of a file through and show how far into it reading is; what is over at once shows nothing.

    Args:
        total: bytes of the file.
        position: tells how many of them are read.
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
    started = said = time.monotonic()
    for chunk in chunks:
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL:
            said = now
            done = max(position(), 1)
            left = duration((now - started) / done * (total - done))
            console.print(f"{label}: {size(done)} of {size(total)}, about {left} left", highlight=False)
        yield chunk
