"""The overhead of running a task: 10,000 tasks that do nothing, and 10,000 that only write their receipts.

Run by `make bench`; `pytest tests` does not collect it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.made_runs import make_corpus, make_run

from expertmine.run.ledger import (
    Receipt,
    forget_receipts,
    missing_tasks,
    now,
    report_worker,
    worker_name,
    write_receipt,
)
from expertmine.run.open_run import OpenRun, open_run
from expertmine.runtime import dask, ray
from expertmine.runtime.cluster import Cluster
from expertmine.runtime.protocol import Executor
from expertmine.runtime.serial import SerialExecutor
from expertmine.telemetry.progress import track

TASKS = 10_000
TARGET = 0.010
"""Seconds per task."""
WORKERS = 2

COLUMNS = ("nothing done", "receipts kept", "their work", "beyond it", "what is missing")

MakeWorker = Callable[[], Callable[[int], Any]]


@contextmanager
def opened() -> Iterator[dict[str, Executor]]:
    """Every executor as the stages use it, with its cluster started."""
    with ray.cluster(None, cpus=WORKERS), dask.opened(Cluster(workers=WORKERS), TASKS) as on_dask:
        yield {"serial": SerialExecutor(), "ray": ray.RayExecutor(WORKERS), "dask": on_dask}


def idler() -> MakeWorker:
    """Makes workers that do nothing; defined in a function, so that it is pickled by value."""
    return lambda: lambda task: task


def clerk(run: Path) -> MakeWorker:
    """Makes workers that do only a stage's overhead: report what they do, and write a receipt.

    Their answer is the receipt, with the seconds that all of that took.
    """

    def make() -> Callable[[int], Receipt]:
        plan = open_run(run).plan

        def keep(task: int) -> Receipt:
            started = time.perf_counter()
            report_worker(run, "score", "none", f"scoring {task}", task)
            sums = {f"expertise/max/{name}/c/0/{task}": "0" * 64 for name in range(7)}
            fingerprint = plan.task_fingerprint("score", task)
            receipt = Receipt("score", task, fingerprint, sums, 0.0, now(), worker_name(), "none", {"pairs": 1})
            write_receipt(open_run(run), receipt)
            report_worker(run, "score", "none", "waiting", task)
            return replace(receipt, seconds=time.perf_counter() - started)

        return keep

    return make


def test_a_task_costs_less_than_ten_milliseconds_beyond_its_work(tmp_path: Path) -> None:
    """Run tasks that do nothing, and tasks that only write receipts, both with the usual progress display."""
    run = tmp_path / "run"
    plan = make_run(run, make_corpus(tmp_path / "corpus", 20, 2, 5, 5), units=TASKS, block_units=1)
    assert plan.tasks("score") == TASKS
    tasks = range(TASKS)
    beyond: dict[str, float] = {}
    print(f"\n{TASKS:,} tasks; milliseconds a task, {WORKERS} workers (serial: one)")
    print("{:>8} {:>13} {:>14} {:>11} {:>10} {:>16}".format("", *COLUMNS))
    with opened() as executors:
        for name, executor in executors.items():
            list(executor.run(idler(), range(100)))  # workers start, and import what they need
            started = time.perf_counter()
            assert sorted(executor.run(idler(), tasks)) == list(tasks)
            nothing = (time.perf_counter() - started) / TASKS
            forget_receipts(run, "score")
            started = time.perf_counter()
            receipts = list(track(executor.run(clerk(run), tasks), "score", TASKS))
            kept = (time.perf_counter() - started) / TASKS
            started = time.perf_counter()
            assert missing_tasks(OpenRun(run, plan), "score") == []
            finding = (time.perf_counter() - started) / TASKS
            work = sum(receipt.seconds for receipt in receipts) / TASKS / (1 if name == "serial" else WORKERS)
            beyond |= {name: nothing, f"{name}, receipts": kept - work, f"{name}, finding what is missing": finding}
            shown = (1000 * each for each in (nothing, kept, work, kept - work, finding))
            print("{:>8} {:>13.2f} {:>14.2f} {:>11.2f} {:>10.2f} {:>16.2f}".format(name, *shown))
    assert max(beyond.values()) < TARGET, beyond
