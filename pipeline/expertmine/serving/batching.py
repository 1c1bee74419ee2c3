"""One thread that owns what writes; the requests of many clients wait for it in a queue and share its batches.

First come, first served. Knows no HTTP and no event loop: a job brings the function that tells its client.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Condition, Thread
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from expertmine.errors import UserError

if TYPE_CHECKING:
    from expertmine.steering.generation import GenerationRequest, Piece

GATHER = 0.01
"""Seconds from a request to an idle thread to the start of its batch: those who ask together share it."""

log = logging.getLogger(__name__)


class Writer(Protocol):
    """What writes: a `Generator`, here or in another process. `stream` is called by one thread, `check` by several."""

    def check(self, request: GenerationRequest) -> int:
        """Tokens of the prompt.

        Raises:
            UserError: the request cannot be met.
            ConnectionError: the process that would know was lost.
        """

    def stream(self, requests: Sequence[GenerationRequest], stopped: Callable[[int], bool]) -> Iterator[Piece]:
        """Text as it comes; a request for which `stopped` is true needs no more of it.

        Raises:
            UserError: a request cannot be met.
            ConnectionError: the process that wrote was lost.
        """


class Busy(Exception):
    """No more requests are taken for now; the message says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last that a job is told."""

    how: Literal["done", "refused", "failed", "lost", "stopping"]
    """All written; the client's fault; ours; the process that wrote is gone; or this one is about to end."""
    message: str = ""


News: TypeAlias = "Piece | Ended"


class Job:
    """Requests of one client, written in one batch."""

    def __init__(self, requests: Sequence[GenerationRequest], tell: Callable[[News], None]) -> None:
        """Nothing happens before it is submitted.

        Args:
            tell: called from another thread with each piece, its `request` counted within this job, and with how it
                ended; it must return soon.
        """
        self.requests = tuple(requests)
        self.rows = sum(request.count for request in self.requests)
        self.over = False
        """Its client is told no more."""
        self._tell = tell
        self._unfinished = self.rows

    def take(self, piece: Piece) -> None:
        if self.over:
            return
        self._tell(piece)
        self._unfinished -= piece.finished is not None
        if not self._unfinished:
            self.end(Ended("done"))

    def end(self, ended: Ended) -> None:
        if not self.over:
            self.over = True
            self._tell(ended)


class Batcher:
    """Gives jobs to a writer, as many at a time as go into one batch."""

    def __init__(self, writer: Writer, max_rows: int, max_waiting: int) -> None:
        """Start the thread.

        Args:
            max_rows: continuations written at a time.
            max_waiting: jobs that may wait for the batch before them.
        """
        self.max_rows = max_rows
        self._writer = writer
        self._max_waiting = max_waiting
        self._waiting: deque[Job] = deque()
        self._writing: list[Job] = []
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken and written."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Jobs that wait for the batch before them."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Have a job of at most `max_rows` rows wait for its turn.

        Raises:
            Busy: too many wait already, or this is about to end.
        """
        assert job.rows <= self.max_rows
        with self._changed:
            if self._closed:
                raise Busy("the server is about to stop")
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"{len(self._waiting)} requests are waiting already, and no more may: try again later")
            self._waiting.append(job)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """A job's client has gone: it is told no more, and its rows stop at their next token."""
        job.over = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Take no more jobs; those that are here are written to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def abandon(self) -> None:
        """End all jobs now."""
        self.close()
        with self._changed:
            left = [*self._writing, *self._waiting]
            self._waiting.clear()
        for job in left:
            job.end(Ended("stopping", "the server is about to stop"))

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, which it does at its next token once all jobs are over."""
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._write(batch)

    def _next_batch(self) -> list[Job]:
        """As many jobs as fit, in order of arrival; none when it is time to end."""
        while True:
            with self._changed:
                self._writing = []
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
            time.sleep(GATHER)
            with self._changed:
                rows = 0
                while self._waiting and (rows := rows + self._waiting[0].rows) <= self.max_rows:
                    self._writing.append(self._waiting.popleft())
                if self._writing:  # else their clients have gone meanwhile
                    return self._writing

    def _write(self, jobs: Sequence[Job]) -> None:
        """Write one batch; whatever happens, each of its jobs is told how it ended."""
        owners = [(job, place) for job in jobs for place in range(len(job.requests))]
        begun = False
        try:
            for piece in self._writer.stream(
                [job.requests[place] for job, place in owners], lambda at: owners[at][0].over
            ):
                begun = True
                job, place = owners[piece.request]
                job.take(replace(piece, request=place))
            ended = Ended("failed", "the text ended before it was whole")
        except UserError as error:
            if len(jobs) > 1 and not begun:  # one of them is to blame, and the others are not
                for job in jobs:
                    if not job.over:
                        self._write([job])
                return
            log.warning("a batch of %d requests was refused: %s", len(jobs), error)
            ended = Ended("refused", str(error)) if len(jobs) == 1 else Ended("failed", "generation failed")
        except ConnectionError as error:
            log.warning("a batch of %d requests was lost: %s", len(jobs), error)
            ended = Ended("lost", "the process that writes was lost; another takes its place: try again")
        except Exception:
            log.exception("a batch of %d requests failed", len(jobs))
            ended = Ended("failed", "generation failed; the server's log says why")
        for job in jobs:
            job.end(ended)
