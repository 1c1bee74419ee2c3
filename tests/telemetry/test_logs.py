"""Logs: text for people, JSON for programs, and where each goes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.commands import expertmine_process
from support.plans import plan_new

from expertmine.errors import UserError
from expertmine.mining.monitor import monitor_stage
from expertmine.run.attempts import read_attempts
from expertmine.run.ledger import Receipt
from expertmine.runtime.events import Joined, Lost, Queue, Retried
from expertmine.runtime.outcomes import Failed
from expertmine.runtime.serial import SerialExecutor
from expertmine.telemetry import logs, progress
from expertmine.telemetry.metrics import Record


@pytest.fixture
def restored() -> Iterator[None]:
    """Restores this process's logging afterwards."""
    handlers, level = list(logs.logger.handlers), logs.logger.level
    yield
    logs.logger.handlers[:] = handlers
    logs.logger.setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    """Every line is one JSON object; anything else raises."""
    return [json.loads(line) for line in text.splitlines()]


def test_an_event_is_one_json_object_with_what_it_is_about(tmp_path: Path, restored: None) -> None:
    logs.configure("json", tmp_path / "log", Console(file=StringIO()))
    with logs.about(run="/runs/a", stage="extract"):
        logs.event("task finished", task=3, seconds=float("nan"), counts={"tokens": 7}, worker=None)
        with logs.about(stage="score"):
            logs.event("worker lost", logging.WARNING, reason='two\nlines, "quoted"')
    logs.event("costs")
    first, second, third = lines((tmp_path / "log").read_text())
    assert list(first) == ["time", "level", "event", "run", "stage", "task", "seconds", "counts"]
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "info", "event": "task finished", "run": "/runs/a", "stage": "extract",
        "task": 3, "seconds": None, "counts": {"tokens": 7},
    }  # fmt: skip
    assert (second["stage"], second["level"], second["reason"]) == ("score", "warning", 'two\nlines, "quoted"')
    assert {"run", "stage"}.isdisjoint(third)


def test_text_has_one_line_an_event(tmp_path: Path, restored: None) -> None:
    logs.configure("text", tmp_path / "log", Console(file=StringIO()))
    logs.event("worker lost", logging.WARNING, worker="m-1", tasks=(3, 4), reason='two\nlines, "quoted"', empty="")
    (line,) = (tmp_path / "log").read_text().splitlines()
    _, level, text = line.split(maxsplit=2)
    assert level == "WARNING"
    assert text == r'worker lost worker=m-1 tasks=[3,4] reason="two\nlines, \"quoted\"" empty=""'


def test_a_log_is_written_behind_what_it_has(tmp_path: Path, restored: None) -> None:
    for name in ("first", "second"):
        logs.logger.handlers.clear()
        logs.configure("json", tmp_path / "log", Console(file=StringIO()))
        logs.event(name)
    assert [line["event"] for line in lines((tmp_path / "log").read_text())] == ["first", "second"]


def test_people_are_shown_warnings_alone(restored: None) -> None:
    """Bars show progress, and the final message shows the error; only warnings are logged."""
    shown = StringIO()
    logs.configure("text", None, Console(file=shown))
    logs.event("task finished", task=1)
    logs.event("worker lost", logging.WARNING, worker="[bold]m-1")
    logs.event("problem", logging.ERROR, reason="said at the end")
    (line,) = shown.getvalue().splitlines()
    assert line.endswith("WARNING worker lost worker=[bold]m-1")


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path, restored: None) -> None:
    with pytest.raises(UserError, match="the log cannot be written"):
        logs.configure("json", tmp_path / "none" / "log", Console(file=StringIO()))


def test_the_library_says_nothing_unless_asked() -> None:
    code = (
        "import logging; from expertmine.telemetry import logs; logs.event('one', logging.ERROR);"
        "logging.basicConfig(level='INFO', format='%(name)s %(message)s'); logs.event('two', task=3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "expertmine two task=3\n")


def receipt(task: int, **counts: int) -> Receipt:
    return Receipt("extract", task, "", {}, 1.5, 10.0, "m-7", "x86_64", counts)


def test_what_happens_in_workers_is_logged_by_the_driver(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "expertmine")
    recorded: list[tuple[str, float]] = []

    class Recording(SerialExecutor):
        def recorder(self, tags: Mapping[str, str]) -> Record:
            assert tags == {"stage": "extract", "run": tmp_path.name}
            return lambda meter, value: recorded.append((meter.name, value))

    with monitor_stage(tmp_path, "extract", total=9, tasks=4, executor="ray") as watch:
        watch.began(Recording(2, 2, 0.5, ("http://127.0.0.1:1/metrics",)))
        watch.on_event(Joined("m-7"))
        watch.on_event(Queue(2, 2))
        watch.finished(receipt(0, sentences=8, tokens=90, dropped=1))
        watch.on_event(Lost("m-7", "it was killed", (1, 2)))
        for task in (1, 2, 2):
            watch.on_event(Retried(task, "m-7"))
        watch.failed(Failed(2, "a bad sentence", 3, "m-8"))
    events = [(record.__dict__["event"], record.__dict__["fields"]) for record in caplog.records]
    assert [name for name, _ in events] == [
        "stage started", "cluster ready", "worker joined", "task finished", "worker lost",
        "task retried", "task retried", "task retried", "task failed", "stage stopped",
    ]  # fmt: skip
    assert all((fields["run"], fields["stage"]) == (str(tmp_path), "extract") for _, fields in events)
    fields_of = dict(events)
    assert (fields_of["task finished"]["worker"], fields_of["task finished"]["seconds"]) == ("m-7", 1.5)
    assert fields_of["task finished"]["counts"] == {"sentences": 8, "tokens": 90, "dropped": 1}
    assert (fields_of["worker lost"]["worker"], fields_of["worker lost"]["tasks"]) == ("m-7", (1, 2))
    assert (fields_of["task failed"]["worker"], fields_of["task failed"]["attempts"]) == ("m-8", 3)
    assert (fields_of["stage stopped"]["done"], fields_of["stage stopped"]["failed"]) == (1, 1)
    assert recorded == [
        ("expertmine_tasks_waiting", 2),
        ("expertmine_tasks_in_flight", 2),
        ("expertmine_tasks_done", 1),
        ("expertmine_task_seconds", 1.5),
        ("expertmine_sentences", 8),
        ("expertmine_tokens", 90),
        ("expertmine_workers_lost", 1),
        *3 * [("expertmine_tasks_retried", 1)],
        ("expertmine_tasks_failed", 1),
    ]
    (driver,) = read_attempts(tmp_path)
    assert driver.ended is not None
    assert (driver.retried, driver.lost, driver.failed, driver.gpus_each) == (2, 1, 1, 0.5)


def test_a_stage_that_is_interrupted_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "expertmine")
    with pytest.raises(KeyboardInterrupt), monitor_stage(tmp_path, "score", total=1, tasks=1, executor="dask"):
        raise KeyboardInterrupt
    assert caplog.records[-1].__dict__["event"] == "stage stopped"
    assert read_attempts(tmp_path)[0].ended is not None


def test_progress_is_logged_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "console", Console(file=StringIO()))
    caplog.set_level(logging.INFO, "expertmine")
    assert list(progress.track(range(8), "extract", total=20, done=10, amount=lambda _: (5, "pairs"))) == [*range(8)]
    said = [record.__dict__["fields"] for record in caplog.records if record.__dict__["event"] == "progress"]
    assert said
    assert {(fields["what"], fields["total"]) for fields in said} == {("extract", 20)}
    assert [fields["done"] for fields in said] == sorted({fields["done"] for fields in said})
    assert all(fields["seconds_left"] > 0 and fields["per_second"]["pairs"] > 0 for fields in said)


@pytest.mark.slow
def test_a_batch_job_logs_json_and_nothing_else(tmp_path: Path, tiny_model: Path, tiny_corpus: Path) -> None:
    """Standard error is JSON, also when bad input ends the command; standard output does not change."""
    run = tmp_path / "run"
    plan_new(run, tiny_model, tiny_corpus)
    on = ("--max-tokens", 64, "--extract-on", "serial", "--score-on", "serial", "--resamples", 0, "--top-k", 50)
    done = expertmine_process("--log-format", "json", "mine", run, "--model", tiny_model, "--corpus", tiny_corpus, *on)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{run / 'experts'}: expert index"]
    said = lines(done.stderr)
    assert all({"time", "level", "event"} <= line.keys() for line in said)
    names = [line["event"] for line in said]
    assert names.count("stage started") == names.count("stage finished") == 2
    tasks = [line for line in said if line["event"] == "task finished"]
    assert sum(line["counts"].get("sentences", 0) for line in tasks) == 72
    assert all(line["worker"] and line["run"] == str(run) and line["stage"] and line["seconds"] >= 0 for line in tasks)
    costs = {line["stage"]: line for line in said if line["event"] == "costs"}
    assert costs["extract"]["counts"]["sentences"] == 72
    assert costs["score"]["stored_bytes"] > 0

    refused = expertmine_process("--log-format", "json", "extract", tmp_path / "nothing")
    (problem,) = lines(refused.stderr)
    assert (refused.returncode, problem["event"], problem["level"]) == (2, "problem", "error")
    assert "no such file" in problem["reason"]
