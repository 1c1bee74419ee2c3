"""One holder of a run at a time: others are told who it is, one that is gone is followed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from threading import enumerate as enumerate_threads

import pytest
from support.commands import refused
from support.plans import request

from expertmine.errors import StageError, UserError
from expertmine.mining import extract
from expertmine.mining.mine import freeze_plan, run_extract, run_reduce
from expertmine.mining.monitor import StageMonitor
from expertmine.run import lease as locks
from expertmine.run.lease import LeaseHolder, driving
from expertmine.run.ledger import missing_tasks
from expertmine.run.open_run import open_run
from expertmine.runtime.cluster import Cluster
from expertmine.storage import files

HOLD = """
import sys, time
from pathlib import Path
from expertmine.run.lease import driving
from expertmine.errors import UserError
try:
    with driving(Path(sys.argv[1]), "expertmine mine", lambda text: print(text, flush=True)):
        print("driving", flush=True)
        time.sleep(float(sys.argv[2]))
except UserError as error:
    print(error, flush=True)
"""


def start(run: Path, seconds: float = 60) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that drives a run."""
    process = start(run)
    assert process.stdout is not None
    assert process.stdout.readline() == "driving\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def terms(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in (run / "lock").glob("[0-9]*.json"))


def elsewhere(run: Path, term: int, **metadata: object) -> LeaseHolder:
    """A holder of another machine, as its file says."""
    holder = LeaseHolder(term, "far", "far", 7, "1", "expertmine mine", time.time() - 3600)
    holder = replace(holder, **metadata)  # type: ignore[arg-type]
    (run / "lock").mkdir(exist_ok=True)
    (run / "lock" / f"{term:08d}.json").write_text(json.dumps(asdict(holder)))
    return holder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT", 0.2), ("STALE", 1.0), ("POLL", 0.05)):
        monkeypatch.setattr(locks, name, seconds)


def test_the_second_driver_is_told_who_the_first_is(new_run: Path) -> None:
    with holder(new_run) as first:
        with pytest.raises(UserError, match=rf"`expertmine mine`, process {first.pid} on .*Finished tasks are kept"):
            run_extract(new_run, "serial", Cluster())
        message = refused("extract", new_run, "--executor", "serial")
        assert f"process {first.pid}" in message
        assert missing_tasks(open_run(new_run), "extract")


def test_a_killed_driver_of_this_machine_is_followed_at_once(new_run: Path) -> None:
    with holder(new_run) as first:
        first.kill()
        first.wait()
        heard: list[str] = []
        with driving(new_run, "expertmine score", heard.append):
            assert heard == [heard[0]]
            assert f"process {first.pid}" in heard[0] and "is gone" in heard[0]
            assert terms(new_run) == [2]


def test_a_driver_that_was_stopped_for_a_while_is_not_gone(new_run: Path) -> None:
    with holder(new_run) as first:
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match=f"process {first.pid}"), driving(new_run, "expertmine score"):
            pass


def test_another_process_of_the_same_number_is_not_the_driver(new_run: Path) -> None:
    with driving(new_run, "expertmine mine") as lease:
        gone = replace(lease.holder, born="1", ended=False)
    (new_run / "lock" / "00000001.json").write_text(json.dumps(asdict(gone)))
    with driving(new_run, "expertmine score") as lease:
        assert lease.holder.term == 2


def test_a_driver_elsewhere_that_gives_no_sign_is_followed(
    new_run: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(new_run, 4)
    looks, look = [0], locks.children

    def counted(folder: Path) -> list[Path]:
        looks[0] += 1
        return look(folder)

    monkeypatch.setattr(locks, "children", counted)
    with driving(new_run, "expertmine score") as lease:
        assert lease.holder.term == 5
    assert looks[0] > 3  # it is watched, however old its file says it is: no clock but ours counts


def test_a_driver_elsewhere_that_gives_a_sign_is_not(new_run: Path, impatient: None) -> None:
    holder = elsewhere(new_run, 4, since=time.time() - 3600)

    def send_heartbeat() -> None:
        time.sleep(0.15)
        elsewhere(new_run, 4, since=holder.since, heartbeats=1)

    sending = Thread(target=send_heartbeat)
    sending.start()
    with pytest.raises(UserError, match="process 7 on far"), driving(new_run, "expertmine score"):
        pass
    sending.join()
    assert terms(new_run) == [4]


def test_a_driver_says_again_and_again_that_it_is_there(new_run: Path, impatient: None) -> None:
    with driving(new_run, "expertmine mine"):
        path = new_run / "lock" / "00000001.json"
        before = json.loads(path.read_text())["heartbeats"]
        time.sleep(0.7)
        assert json.loads(path.read_text())["heartbeats"] >= before + 2
    assert json.loads(path.read_text())["ended"]


def test_a_driver_that_was_followed_stops(new_run: Path, impatient: None) -> None:
    with driving(new_run, "expertmine mine") as lease:
        elsewhere(new_run, 2)

        def results() -> Iterator[int]:
            for number in range(100):
                time.sleep(0.05)
                yield number

        with pytest.raises(StageError, match=r"driven by `expertmine mine`, process 7 on far"):
            list(lease.keep(results()))
    assert json.loads((new_run / "lock" / "00000002.json").read_text())["machine"] == "far"


@pytest.mark.parametrize("end", ["overtaken", "Ctrl-C"])
def test_no_task_runs_on_after_the_lease(new_run: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    at_work: list[str] = []

    def begin(monitor: StageMonitor, runtime: object) -> None:
        if end == "overtaken":
            lease = locks.held(new_run)
            assert lease is not None
            lease._overtaken = elsewhere(new_run, 2)

    def interrupt(monitor: StageMonitor, receipt: object) -> None:
        raise KeyboardInterrupt

    def see_threads(lease: locks.Lease) -> None:
        at_work.extend(each.name for each in enumerate_threads() if each.name.startswith("ThreadPoolExecutor"))

    monkeypatch.setattr(StageMonitor, "began", begin)
    monkeypatch.setattr(StageMonitor, "finished", interrupt)
    monkeypatch.setattr(locks.Lease, "_write", see_threads)
    with pytest.raises(StageError if end == "overtaken" else KeyboardInterrupt):
        run_extract(new_run, "serial", Cluster())
    assert at_work == []


def test_a_torn_file_is_nobody_in_the_end(new_run: Path, impatient: None) -> None:
    (new_run / "lock").mkdir()
    (new_run / "lock" / "00000003.json").write_bytes(b'{"term": 3, "mach')
    with driving(new_run, "expertmine mine") as lease:
        assert lease.holder.term == 4


def test_one_who_looked_before_another_began_does_not_drive(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = locks.children

    def late(folder: Path) -> list[Path]:
        found = look(folder)
        if not found:  # another begins right after this look
            elsewhere(new_run, 1)
        return found

    monkeypatch.setattr(locks, "children", late)
    with pytest.raises(UserError, match="took the lease at the same moment"), driving(new_run, "expertmine mine"):
        pass
    assert terms(new_run) == [1]


def test_a_driver_beats_on_through_trouble(new_run: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    look, troubles = locks.children, [0]

    def trouble(folder: Path) -> list[Path]:
        troubles[0] += 1
        if troubles[0] < 4:
            raise UserError("the disk is away for a moment")
        return look(folder)

    with driving(new_run, "expertmine mine") as lease:
        monkeypatch.setattr(locks, "children", trouble)
        time.sleep(1.2)
        assert troubles[0] > 4
        elsewhere(new_run, 2)
        with pytest.raises(StageError, match="is driven by"):
            lease.require()


def test_a_driver_that_was_followed_writes_no_index_and_no_plan(
    mined: Path, tiny_corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(mined, tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*.json") if "lock" not in path.parts}
    asked = replace(request(tiny_model), scoring={"permutations": 3})
    for act in (lambda: run_reduce(run, 30), lambda: freeze_plan(run, tiny_corpus, asked)):
        with driving(run, "expertmine mine") as lease:
            elsewhere(run, lease.holder.term + 1)
            with pytest.raises(StageError, match="is driven by"):
                act()
            (run / "lock" / f"{lease.holder.term + 1:08d}.json").unlink()
    assert {path: path.read_bytes() for path in run.rglob("*.json") if "lock" not in path.parts} == before


def test_an_end_that_could_not_be_written_does_not_lock_the_same_process_out(new_run: Path) -> None:
    with driving(new_run, "expertmine mine") as lease:
        unwritten = lease.holder
    (new_run / "lock" / "00000001.json").write_text(json.dumps(asdict(unwritten)))
    with driving(new_run, "expertmine mine") as lease:
        assert lease.holder.term == 2


def test_of_many_who_begin_at_once_one_drives(new_run: Path) -> None:
    processes = [start(new_run, 20) for _ in range(5)]
    said = []
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    for process in processes:
        process.kill()
        process.wait()
    assert said.count("driving\n") == 1, said
    assert sum("driven by" in line or "took the lease at the same moment" in line for line in said) == 4


def test_a_file_system_without_hard_links_will_do(new_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with driving(new_run, "expertmine mine"):
        assert not files.create(new_run / "lock" / "00000001.json", b"{}")
        assert json.loads((new_run / "lock" / "00000001.json").read_text())["process"] == os.getpid()


def test_one_process_may_drive_within_what_it_drives(new_run: Path) -> None:
    with driving(new_run, "expertmine mine") as outer:
        with driving(new_run, "expertmine extract") as inner:
            assert inner is outer
        assert not json.loads((new_run / "lock" / "00000001.json").read_text())["ended"]


def test_nothing_is_left_where_nothing_was_planned(tmp_path: Path, tiny_corpus: Path) -> None:
    with pytest.raises(UserError):
        freeze_plan(tmp_path / "new", tiny_corpus, request(tmp_path / "no model"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.txt").write_text("")
    for act in (
        lambda: freeze_plan(tmp_path / "others", tiny_corpus, request(tmp_path / "no model")),
        lambda: run_extract(tmp_path / "others", "serial", Cluster()),
    ):
        with pytest.raises(UserError):
            act()
    assert [path.name for path in (tmp_path / "others").iterdir()] == ["thesis.txt"]


def test_what_a_task_of_an_earlier_plan_finds_is_not_kept(new_run: Path) -> None:
    extract.plan(open_run(new_run))
    work = extract.Extractor(open_run(new_run))
    plan = open_run(new_run).plan
    other = replace(plan, compression=replace(plan.compression, level=7))
    (new_run / "plan.json").write_text(json.dumps(other.to_json()))
    assert other.task_fingerprint("extract", 0) != plan.task_fingerprint("extract", 0)
    with pytest.raises(StageError, match="planned again while this task ran"):
        work(0)
    assert not (new_run / "receipts" / "extract" / "00000.json").exists()
