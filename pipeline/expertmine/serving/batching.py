"""One thread that owns the model; the requests of many clients wait in its queue and share its batches.

First come, first served. Knows no HTTP and no event loop: a job has the function that notifies its client.
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
"""Seconds that an idle thread waits after a request, so that simultaneous requests share a batch."""
LOST = "the generating process was lost and is being replaced; try again"

log = logging.getLogger(__name__)


class Writer(Protocol):
    """A `Generator`, here or in another process. `stream` is called by one thread, `check` by several."""

    def check(self, request: GenerationRequest) -> int:
        """The prompt's number of tokens.

        Raises:
            UserError: the request is invalid.
            ConnectionError: the generating process was lost.
        """

    def stream(self, requests: Sequence[GenerationRequest], stopped: Callable[[int], bool]) -> Iterator[Piece]:
        """Text as it is generated; ends a request early once `stopped` is true for it.

        Raises:
            UserError: a request is invalid.
            ConnectionError: the generating process was lost.
        """


class Busy(Exception):
    """No more requests are accepted for now; the message says why."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last update of a job."""

    outcome: Literal["done", "refused", "failed", "lost", "stopping"]
    """All text generated; the client's fault; our fault; the generating process is gone; the server is stopping."""
    message: str = ""


Update: TypeAlias = "Piece | Ended"


class Job:
    """The requests of one client, generated in one batch."""

    def __init__(self, requests: Sequence[GenerationRequest], notify: Callable[[Update], None]) -> None:
        """Describe a job; nothing happens until it is submitted.

        Args:
            notify: called from another thread with each piece, whose `request` counts within this job, and finally
                with the end; must return quickly.
        """
        self.requests = tuple(requests)
        self.rows = sum(request.count for request in self.requests)
        self.over = False
        """Whether its client gets no more updates."""
        self._notify = notify
        self._unfinished = self.rows

    def take(self, piece: Piece) -> None:
        if self.over:
            return
        self._notify(piece)
        self._unfinished -= piece.finished is not None
        if not self._unfinished:
            self.end(Ended("done"))

    def end(self, ended: Ended) -> None:
        if not self.over:
            self.over = True
            self._notify(ended)


class Batcher:
    """Passes jobs to a writer, as many at a time as fit into one batch."""

    def __init__(self, writer: Writer, max_rows: int, max_waiting: int) -> None:
        """Start the thread.

        Args:
            max_rows: maximum continuations per batch.
            max_waiting: maximum jobs in the queue.
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
        """Whether jobs are accepted and run."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Jobs that wait for the batch before them."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue a job of at most `max_rows` rows.

        Raises:
            Busy: the queue is full, or the server is stopping.
        """
        assert job.rows <= self.max_rows
        with self._changed:
            if self._closed:
                raise Busy("the server is stopping")
            if len(self._waiting) >= self._max_waiting:
                raise Busy(f"the queue is full with {len(self._waiting)} requests; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Drop a job whose client is gone: no more updates, and its rows stop at their next token."""
        job.over = True
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Accept no more jobs; accepted jobs still run to their end."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def abandon(self) -> None:
        """End all jobs now."""
        self.close()
        with self._changed:
            jobs = [*self._writing, *self._waiting]
            self._waiting.clear()
        for job in jobs:
            job.end(Ended("stopping", "the server is stopping"))

    def join(self, seconds: float) -> None:
        """Wait for the thread to end; it ends at its next token once all jobs are over."""
        self._thread.join(seconds)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._write(batch)

    def _next_batch(self) -> list[Job]:
        """As many jobs as fit, in order of arrival; none once the batcher is closed and its queue is empty."""
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
                if self._writing:  # else all their clients have disconnected
                    return self._writing

    def _write(self, jobs: Sequence[Job]) -> None:
        """Run one batch; whatever happens, each of its jobs is notified of its end."""
        owners = [(job, at) for job in jobs for at in range(len(job.requests))]
        begun = False
        try:
            for piece in self._writer.stream(
                [job.requests[at] for job, at in owners], lambda request: owners[request][0].over
            ):
                begun = True
                job, at = owners[piece.request]
                job.take(replace(piece, request=at))
            ended = Ended("failed", "the text ended before it was complete")
        except UserError as error:
            if len(jobs) > 1 and not begun:  # only one of them may be invalid
                for job in jobs:
                    if not job.over:
                        self._write([job])
                return
            log.warning("a batch of %d requests was refused: %s", len(jobs), error)
            ended = Ended("refused", str(error)) if len(jobs) == 1 else Ended("failed", "generation failed")
        except ConnectionError as error:
            log.warning("a batch of %d requests was lost: %s", len(jobs), error)
            ended = Ended("lost", LOST)
        except Exception:
            log.exception("a batch of %d requests failed", len(jobs))
            ended = Ended("failed", "generation failed; see the server's log")
        for job in jobs:
            job.end(ended)
