"""The batch script under a real Slurm: submitted, killed, requeued, finished, with the bytes of an undisturbed run.
`tests/install_system.sh` installs a Slurm where it can."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.commands import succeed
from support.plans import plan_new
from support.repository import ROOT
from support.slurm_cluster import Slurm, programs_missing, slurm

SCRIPT = ROOT / "deploy" / "slurm" / "expertmine.sbatch"
SENTENCES = 3000
SAME_PLAN = ("--max-tokens", 64, "--batch-tokens", 64)
pytestmark = pytest.mark.slow

STAGES = ("extract", "score", "assess")
COMPARED = ("store.zarr", "null", "assessment", "selection", "experts")

needs_slurm = pytest.mark.skipif(
    bool(programs_missing()),
    reason=f"no {', '.join(programs_missing())}: install Slurm (tests/install_system.sh, or apt-get install slurm-wlm)",
)

DRIVER = f"""#!{sys.executable}
# Stands in for `expertmine`: each start of `mine` does some tasks and ends as its script says.
import json, os, sys, time
from pathlib import Path

run = Path(sys.argv[2] if sys.argv[1] == "status" else sys.argv[-3])
done = run / "done"
so_far = int(done.read_text()) if done.exists() else 0
if sys.argv[1] == "status":
    print(json.dumps({{"stages": [{{"done": so_far}}]}}))
    sys.exit()
tasks, end = json.loads((run / "script.json").read_text())[int(os.environ.get("SLURM_RESTART_COUNT", "0"))]
try:
    if end == "listen":
        import psutil

        family = {{child.pid: child.name() for child in psutil.Process(os.getppid()).children(recursive=True)}}
        heard = [(family[each.pid], each.laddr.ip) for each in psutil.net_connections("inet")
                 if each.status == psutil.CONN_LISTEN and each.pid in family]
        (run / "heard.json").write_text(json.dumps(heard))
    (run / "arguments.json").write_text(json.dumps(sys.argv[1:]))
    done.write_text(str(so_far + tasks))
    if end == "wait":
        time.sleep(600)
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
sys.exit(0 if end == "listen" else end)
"""

RAY = """#!/bin/bash
# Stands in for `ray start`: says that it has started, and blocks.
for word; do case $word in --temp-dir=*) echo 127.0.0.1:1 >"${word#*=}/ray_current_cluster" ;; esac; done
sleep 600
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job, its log, and the run folder that it works on."""

    slurm: Slurm
    number: int
    log: Path
    run: Path

    def wait_for(self, state: str, restarts: int) -> dict[str, str]:
        return self.slurm.wait_for(self.number, state, restarts, self.log)

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def scratch(self) -> list[Path]:
        """Its private folders on all nodes."""
        return sorted(Path("/tmp").glob(f"expertmine-{self.number}-*"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


def receipts(run: Path) -> int:
    return sum(len(list((run / "receipts" / stage).glob("[0-9]*.json"))) for stage in STAGES)


def wait_until(condition: Callable[[], object], job: Job, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (job.slurm.job(job.number), receipts(job.run), job.said())
        time.sleep(0.02)


def commands_folder(folder: Path, **contents: str) -> str:
    """A PATH that finds these programs before all others."""
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


def scripted(
    cluster: Slurm, folder: Path, script: list[tuple[int, int | str]], options: dict[str, object], **environment: str
) -> Job:
    """A job whose driver follows a script: per start, a number of tasks, then an exit code, an endless wait, or a note
    of who listens."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "script.json").write_text(json.dumps(script))
    requested: dict[str, object] = {"cpus-per-task": 1, **options}
    number = cluster.submit(folder / "log", SCRIPT, run, "--top-k", 7, options=requested, **environment)
    return Job(cluster, number, folder / "log", run)


@pytest.fixture(scope="module")
def near_its_limit(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose driver waits, and whose time limit is a minute: Slurm warns it within half of that.

    Submitted first, and looked at last.
    """
    folder = tmp_path_factory.mktemp("limit")
    path = commands_folder(folder / "bin", expertmine=DRIVER, ray=RAY)
    return scripted(cluster, folder, [(3, "wait"), (2, 0)], {"time": 1, "signal": "B:USR1@30"}, PATH=path)


@pytest.fixture(scope="module")
def undisturbed(
    near_its_limit: Job, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A run mined to its end in one process, the same run planned only, and its corpus."""
    folder = tmp_path_factory.mktemp("undisturbed")
    texts = [f"the number {number} and its neighbour {number + 1} are known by name" for number in range(SENTENCES)]
    half = SENTENCES // 2
    document = {"concept": "early", "sentences": {"positive": texts[:half], "negative": texts[half:]}}
    (folder / "early.json").write_text(json.dumps(document))
    succeed("concepts", "json", folder / "early.json", "--out", folder / "corpus")
    plan_new(folder / "planned", tiny_model, folder / "corpus", partition_rows=32, batch_tokens=64)
    done = Path(shutil.copytree(folder / "planned", folder / "done"))
    succeed(
        "mine", done, "--model", tiny_model, "--corpus", folder / "corpus", *SAME_PLAN,
        "--extract-on", "serial", "--score-on", "serial", "--top-k", 20,
    )  # fmt: skip
    return done, folder / "planned", folder / "corpus"


def driver_of(job: Job) -> psutil.Process | None:
    """The process that runs `expertmine mine` on the job's run."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "mine" in words and str(job.run) in words:
            return process
    return None


def assert_token_is_secret(job: Job) -> str:
    """The token is stored in files that only we can read, and is on no command line and not in the log."""
    folders = job.scratch()
    (token,) = {(folder / "token").read_text() for folder in folders}
    assert re.fullmatch("[0-9a-f]{64}", token)
    for folder in folders:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    for process in psutil.process_iter(["cmdline"]):
        assert token not in " ".join(process.info["cmdline"] or [])
    assert token not in job.said()
    return token


def assert_nothing_is_left(job: Job) -> None:
    """No process and no folder of the job, once it has ended."""
    wait_until(lambda: not job.scratch(), job, 20)
    left = [line for line in command_lines() if f"/tmp/expertmine-{job.number}-" in line]
    assert not left, left


def command_lines() -> list[str]:
    return [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]


@needs_slurm
def test_a_job_killed_and_requeued_on_two_nodes_changes_no_byte(
    cluster: Slurm, undisturbed: tuple[Path, Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    """Its driver is killed, and it requeues itself; an administrator requeues it; and then it finishes."""
    done, planned, corpus = undisturbed
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    arguments = (run, "--model", tiny_model, "--corpus", corpus, *SAME_PLAN, "--top-k", 20)
    options = {"nodes": 2, "cpus-per-task": 1}
    job = Job(cluster, cluster.submit(tmp_path / "log", SCRIPT, *arguments, options=options), tmp_path / "log", run)

    def work_on(start: int) -> None:
        job.wait_for("RUNNING", start)
        before = receipts(run)
        wait_until(lambda: receipts(run) >= before + 3 and driver_of(job), job)
        assert receipts(run) < receipts(done), "it was too fast to be disturbed"

    work_on(0)
    first_token = assert_token_is_secret(job)
    assert len(job.scratch()) == 2, "Ray on each of the two nodes"
    driver = driver_of(job)
    assert driver is not None
    driver.kill()
    work_on(1)
    assert assert_token_is_secret(job) != first_token
    cluster.command("scontrol", "requeue", job.number)
    known = job.wait_for("COMPLETED", 2)

    assert known["ExitCode"] == "0:0"
    said = job.said()
    assert "the driver ended with 137; " in said
    assert [f"start {start} on node[1-2]" in said for start in (1, 2, 3)] == [True] * 3
    assert_nothing_is_left(job)
    for folder in COMPARED:
        files = [path for path in (done / folder).rglob("*") if path.is_file()]
        assert files, folder
        for path in files:
            assert (run / path.relative_to(done)).read_bytes() == path.read_bytes(), path
    assert receipts(run) == receipts(done)
    assert "match" in succeed("verify", run)


@needs_slurm
def test_bad_input_ends_the_job_with_2(cluster: Slurm, tmp_path: Path) -> None:
    number = cluster.submit(
        tmp_path / "log", SCRIPT, tmp_path / "run", "--corpus", tmp_path / "nowhere",
        options={"cpus-per-task": 1}, PATH=commands_folder(tmp_path / "bin", ray=RAY),
    )  # fmt: skip
    job = Job(cluster, number, tmp_path / "log", tmp_path / "run")
    known = job.wait_for("FAILED", 0)
    assert known["ExitCode"] == "2:0"
    assert "nowhere" in job.said()
    assert "not requeued: its message above says what is wrong" in job.said()
    assert_nothing_is_left(job)


@needs_slurm
@pytest.mark.parametrize(
    ("script", "most", "restarts", "said"),
    [
        ([(3, 1), (0, 1)], "100", 1, "the driver ended with 1, and nothing new was done since this start"),
        ([(3, 1), (3, 1)], "1", 1, "after 1 restarts (EXPERTMINE_MOST_RESTARTS): not requeued"),
    ],
    ids=["nothing done", "too often"],
)
def test_a_job_is_not_requeued_for_ever(
    cluster: Slurm, tmp_path: Path, script: list[tuple[int, int | str]], most: str, restarts: int, said: str
) -> None:
    path = commands_folder(tmp_path / "bin", expertmine=DRIVER, ray=RAY)
    job = scripted(cluster, tmp_path / "job", script, {}, PATH=path, EXPERTMINE_MOST_RESTARTS=most)
    known = job.wait_for("FAILED", restarts)
    assert known["ExitCode"] == "1:0"
    assert "the driver ended with 1; 3 tasks were done since this start, 3 are; requeued" in job.said()
    assert said in job.said()
    assert_nothing_is_left(job)


@needs_slurm
def test_a_cancelled_job_stops_its_driver_and_stays_away(cluster: Slurm, tmp_path: Path) -> None:
    path = commands_folder(tmp_path / "bin", expertmine=DRIVER, ray=RAY)
    job = scripted(cluster, tmp_path / "job", [(3, "wait")], {}, PATH=path)
    wait_until(lambda: (job.run / "done").exists(), job)
    cluster.command("scancel", job.number)
    job.wait_for("CANCELLED", 0)
    wait_until(lambda: "stopped; finished work is kept" in job.said(), job, 20)
    assert_nothing_is_left(job)


@needs_slurm
def test_a_job_without_a_run_folder_prints_its_usage(cluster: Slurm, tmp_path: Path) -> None:
    number = cluster.submit(tmp_path / "log", SCRIPT, "--model", "gpt2", options={"cpus-per-task": 1})
    job = Job(cluster, number, tmp_path / "log", tmp_path)
    assert job.wait_for("FAILED", 0)["ExitCode"] == "2:0"
    assert "the run folder comes first" in job.said()


@needs_slurm
def test_a_job_of_one_node_listens_on_loopback_alone(cluster: Slurm, tmp_path: Path) -> None:
    """With a real Ray; the driver inspects its surroundings."""
    job = scripted(
        cluster, tmp_path / "job", [(1, "listen")], {}, PATH=commands_folder(tmp_path / "bin", expertmine=DRIVER)
    )
    job.wait_for("COMPLETED", 0)
    heard = json.loads((job.run / "heard.json").read_text())
    assert {"gcs_server", "raylet"} <= {program for program, _ in heard}
    assert {address.removeprefix("::ffff:") for _, address in heard} == {"127.0.0.1"}, heard
    *ours, address, run, option, value = json.loads((job.run / "arguments.json").read_text())
    assert ours == ["mine", "--extract-on", "ray", "--score-on", "ray", "--ray-address"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert (run, option, value) == (str(job.run), "--top-k", "7")
    assert_nothing_is_left(job)


@needs_slurm
def test_a_job_near_its_time_limit_stops_and_goes_on_in_another_start(near_its_limit: Job) -> None:
    """Slurm itself warns the job; its driver is interrupted as by Ctrl-C."""
    job = near_its_limit
    job.wait_for("COMPLETED", 1)
    said = job.said()
    assert "interrupted" in said
    assert "the time limit is near; 3 tasks were done since this start, 3 are; requeued" in said
    assert [f"start {start} on node" in said for start in (1, 2)] == [True] * 2
    assert_nothing_is_left(job)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: run tests/install_system.sh")
@pytest.mark.parametrize("script", [SCRIPT, ROOT / "tests" / "install_system.sh"], ids=lambda path: path.name)
def test_the_scripts_are_free_of_what_shellcheck_finds(script: Path) -> None:
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout
