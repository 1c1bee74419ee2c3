"""Metrics as Prometheus would scrape them, from a real Ray node and a real Dask scheduler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from support.workers import new_squarer

from expertmine.mining.mine import run_extract
from expertmine.mining.monitor import DONE, WAITING, StageMonitor
from expertmine.run.attempts import StageAttempt
from expertmine.run.ledger import Receipt, read_receipts
from expertmine.run.open_run import open_run
from expertmine.runtime.cluster import Cluster
from expertmine.runtime.events import Event, Joined, Lost, Queue, Retried
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.serial import SerialExecutor
from expertmine.telemetry import metrics as meters

SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")


def scrape(endpoint: str, run: str) -> dict[tuple[str, str], float]:
    """Our own metrics of a run, by name and stage, without histogram buckets."""
    assert urlsplit(endpoint).hostname == "127.0.0.1"
    found = {}
    for line in urlopen(endpoint, timeout=20).read().decode().splitlines():
        if (sample := SAMPLE.match(line)) and "expertmine_" in sample[1] and not sample[1].endswith("_bucket"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2]))
            if labels["run"] == run:
                found[sample[1].removeprefix("ray_"), labels["stage"]] = float(sample[3])
    return found


@pytest.mark.slow
def test_a_ray_node_shows_what_a_run_does(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    from expertmine.runtime import ray

    with ray.cluster(None, cpus=2):
        run_extract(new_run, "ray", Cluster(workers=1))
        again = ray.recorder({"stage": "score", "run": "run"})  # the next stage creates the same meters again
        (endpoint,) = ray.metrics_endpoints()
        until = time.monotonic() + 60
        again(DONE, 8)
        while (found := scrape(endpoint, "run")).get(("expertmine_tasks_done_total", "score")) != 8:
            assert time.monotonic() < until, found
            again(WAITING, 5)
            time.sleep(0.5)
    receipts = list(read_receipts(open_run(new_run), "extract"))
    assert {name: value for (name, stage), value in found.items() if stage == "extract" and "_task_" not in name} == {
        "expertmine_sentences_total": 72,
        "expertmine_tokens_total": sum(each.counts["tokens"] for each in receipts),
        "expertmine_bytes_total": sum(each.counts["bytes"] for each in receipts),
        "expertmine_tasks_done_total": 3,
        "expertmine_tasks_waiting": 0,
        "expertmine_tasks_in_flight": 0,
    }
    assert found["expertmine_task_seconds_count", "extract"] == 3
    assert found["expertmine_tasks_waiting", "score"] == 5


def test_a_dask_scheduler_of_our_own_shows_what_a_run_does(mined: Path, tmp_path: Path) -> None:
    from expertmine.runtime import dask

    watch = StageMonitor(tmp_path / "on dask", StageAttempt("score", "here", "dask", 0.0))
    plan = open_run(mined).plan
    with dask.opened(Cluster(workers=1), tasks=9) as executor:
        watch.began(executor)
        for done in executor.run(new_counter(), range(plan.tasks("score")), watch.on_event):
            watch.finished(done)
        (endpoint,) = executor.metrics
        found = scrape(endpoint, "on dask")
        assert "dask_scheduler_workers" in urlopen(endpoint).read().decode()
    assert found["expertmine_pairs_total", "score"] == 10 * plan.tasks("score")
    assert found["expertmine_task_seconds_sum", "score"] == 0.5 * plan.tasks("score")
    assert found["expertmine_tasks_waiting", "score"] == found["expertmine_tasks_in_flight", "score"] == 0


def new_counter() -> Callable[[], Callable[[int], Receipt]]:
    """Returns workers that pretend to score ten pairs in 0.5 s."""
    return lambda: lambda task: Receipt("score", task, "", {}, 0.5, 1.0, "m-1", "x86_64", {"pairs": 10})


@pytest.mark.slow
def test_workers_that_die_are_told_of_on_ray(ray_address: str, tmp_path: Path) -> None:
    from expertmine.runtime import ray

    seen: list[Event] = []
    with ray.cluster(ray_address):
        done = list(ray.RayExecutor(actors=1, in_flight=2).run(new_squarer(tmp_path), [2, 3, 13], seen.append))
    first, second = (event.worker for event in seen if isinstance(event, Joined))
    (lost,) = (event for event in seen if isinstance(event, Lost))
    assert lost.worker == first != second
    assert 3 in lost.tasks
    assert {event.task for event in seen if isinstance(event, Retried)} == {*lost.tasks}
    assert seen[-1] == Queue(0, 0)
    (failed,) = (each for each in done if isinstance(each, Failed))
    assert failed.worker == second
    assert {*done} == {4, 9, failed}


def test_workers_that_die_are_told_of_on_dask(tmp_path: Path) -> None:
    from expertmine.runtime import dask

    seen: list[Event] = []
    with dask.opened(Cluster(workers=1), tasks=3) as executor:
        assert {*executor.run(new_squarer(tmp_path), [2, 3, 4], seen.append)} == {4, 9, 16}
    (lost,) = (event for event in seen if isinstance(event, Lost))
    assert lost.worker.startswith("tls://127.0.0.1:")
    assert 3 in lost.tasks
    assert {event.task for event in seen if isinstance(event, Retried)} == {*lost.tasks}
    assert seen[-1] == Queue(0, 0)


def test_one_process_tells_how_much_is_left(tmp_path: Path) -> None:
    seen: list[Event] = []
    (tmp_path / "killed").touch()
    assert len(list(SerialExecutor(in_flight=2).run(new_squarer(tmp_path), range(5), seen.append))) == 5
    left = [event.waiting + event.in_flight for event in seen if isinstance(event, Queue)]
    assert left == sorted(left, reverse=True)
    assert seen[-1] == Queue(0, 0)
    assert all(event.in_flight <= 2 for event in seen if isinstance(event, Queue))


def test_without_prometheus_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert meters.recorder({"run": "a"}) is meters.unrecorded


@pytest.mark.slow
def test_a_ray_that_collects_no_metrics_does_its_work() -> None:
    code = """
from expertmine.runtime import ray
from expertmine.mining.monitor import DONE, SECONDS, WAITING
with ray.cluster(None, cpus=1):
    print(*ray.RayExecutor(actors=1).run(lambda: lambda task: task + 1, [1, 2]))
    record = ray.recorder({"run": "a"})
    for meter in (DONE, SECONDS, WAITING):
        record(meter, 1)
"""
    environment = {**os.environ, "RAY_enable_metrics_collection": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout) == (0, "2 3\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_watching_costs_next_to_nothing(tmp_path: Path) -> None:
    watch = StageMonitor(tmp_path / "cheap", StageAttempt("score", "here", "serial", 0.0))
    watch.began(SerialExecutor())
    make: Any = new_counter()()
    receipts = [make(task) for task in range(2000)]
    started = time.process_time()
    for receipt in receipts:
        watch.on_event(Queue(5, 2))
        watch.finished(receipt)
    assert (time.process_time() - started) / len(receipts) < 0.001
