"""Follows a stage while it runs: reports it as log events, as metrics, and in the record of the stage attempt.

It is fed with the results and events of the runtime; it knows neither who runs the tasks nor what they do, beyond the
counts of their receipts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from expertmine.run.attempts import StageAttempt, write_attempt
from expertmine.run.ledger import Receipt, now, worker_name
from expertmine.runtime.events import Event, Joined, Lost, Queue, Retried
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.protocol import Executor
from expertmine.specs.plan import Stage
from expertmine.storage.locations import Location
from expertmine.telemetry import logs
from expertmine.telemetry.metrics import Meter, Record, unrecorded

COUNTED = {
    name: Meter(f"expertmine_{name}", "counter", f"{what}, of finished tasks")
    for name, what in {
        "sentences": "Sentences run through the model",
        "tokens": "Tokens run through the model",
        "pairs": "Pairs of concept and unit that were scored",
        "experts": "Experts that were assessed",
        "bytes": "Bytes written to the store, compressed",
    }.items()
}
"""Counts of receipts that are followed, and the metric of each."""
DONE = Meter("expertmine_tasks_done", "counter", "Tasks that have their receipt")
FAILED = Meter("expertmine_tasks_failed", "counter", "Tasks that were given up")
RETRIED = Meter(
    "expertmine_tasks_retried", "counter", "Tasks tried again because an attempt failed or their worker died"
)
LOST = Meter("expertmine_workers_lost", "counter", "Workers that died")
WAITING = Meter("expertmine_tasks_waiting", "gauge", "Tasks that no worker has yet")
IN_FLIGHT = Meter("expertmine_tasks_in_flight", "gauge", "Tasks that a worker has")
SECONDS = Meter(
    "expertmine_task_seconds",
    "histogram",
    "How long tasks took, waiting for others in the same process included",
    (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
)

RECORD_INTERVAL = 5.0
"""Seconds between records of an attempt that meets trouble."""


class StageMonitor:
    """Reports one attempt to run a stage."""

    def __init__(self, run: Location, attempt: StageAttempt) -> None:
        self.run = run
        self.attempt = attempt
        self.record: Record = unrecorded
        self.done = 0
        self._retried: set[Any] = set()
        self._written = -RECORD_INTERVAL

    @property
    def tags(self) -> dict[str, str]:
        """Of every metric: few values, however long a cluster lives."""
        return {"stage": self.attempt.stage, "run": self.run.name}

    def began(self, runtime: Executor) -> None:
        """The runtime is open; workers can start."""
        self.record = runtime.recorder(self.tags)
        cpus_each, gpus_each, metrics = runtime.cpus_each, runtime.gpus_each, tuple(runtime.metrics)
        held = replace(self.attempt, cpus_each=cpus_each, gpus_each=gpus_each, metrics=metrics)
        logs.event("cluster ready", executor=held.executor, cpus_each=cpus_each, gpus_each=gpus_each, metrics=metrics)
        self._update(held, at_once=True)

    def on_event(self, event: Event) -> None:
        """Report an event of the runtime."""
        if isinstance(event, Queue):
            self.record(WAITING, event.waiting)
            self.record(IN_FLIGHT, event.in_flight)
        elif isinstance(event, Joined):
            logs.event("worker joined", worker=event.worker)
        elif isinstance(event, Lost):
            self.record(LOST, 1)
            worker = event.worker or None
            logs.event("worker lost", logging.WARNING, worker=worker, tasks=event.tasks, reason=event.reason)
            self._update(replace(self.attempt, lost=self.attempt.lost + 1))
        elif isinstance(event, Retried):
            self.record(RETRIED, 1)
            self._retried.add(event.task)
            worker, reason = event.worker or None, event.reason or None
            logs.event("task retried", logging.WARNING, task=event.task, worker=worker, reason=reason)
            self._update(replace(self.attempt, retried=len(self._retried)))

    def finished(self, receipt: Receipt) -> None:
        """Report a finished task."""
        self.done += 1
        self.record(DONE, 1)
        self.record(SECONDS, receipt.seconds)
        for name, meter in COUNTED.items():
            if count := receipt.counts.get(name):
                self.record(meter, count)
        took, counts = receipt.seconds, receipt.counts
        logs.event("task finished", task=receipt.task, worker=receipt.worker, seconds=took, counts=counts)

    def failed(self, failed: Failed) -> None:
        """Report a task that was given up."""
        self.record(FAILED, 1)
        worker, attempts = failed.worker or None, failed.attempts
        logs.event(
            "task failed", logging.ERROR, task=failed.task, worker=worker, attempts=attempts, reason=failed.reason
        )
        self._update(replace(self.attempt, failed=self.attempt.failed + 1))

    def ended(self) -> None:
        """Record the end of the attempt."""
        self._update(replace(self.attempt, ended=now()), at_once=True)

    def _update(self, attempt: StageAttempt, at_once: bool = False) -> None:
        self.attempt = attempt
        if at_once or time.monotonic() - self._written > RECORD_INTERVAL:
            self._written = time.monotonic()
            write_attempt(self.run, attempt)


@contextmanager
def monitor_stage(run: Location, stage: Stage, total: int, tasks: int, executor: str) -> Iterator[StageMonitor]:
    """While open, a stage runs, and everything that is logged is tagged with it.

    Args:
        total: tasks of the stage.
        tasks: tasks that are still to be done.
    """
    monitor = StageMonitor(run, StageAttempt(stage, worker_name(), executor, began=now(), tasks=tasks))
    with logs.about(run=str(run), stage=stage):
        logs.event("stage started", tasks=tasks, total=total, executor=executor)
        stopped = True
        try:
            yield monitor
            stopped = False
        finally:
            monitor.ended()
            attempt = monitor.attempt
            trouble = {"failed": attempt.failed, "retried": attempt.retried, "lost": attempt.lost}
            seconds = round((attempt.ended or attempt.began) - attempt.began, 3)
            name = "stage stopped" if stopped or attempt.failed else "stage finished"
            logs.event(name, done=monitor.done, **trouble, seconds=seconds)
