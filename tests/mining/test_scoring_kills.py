"""Scoring under fire: workers, scheduler and driver are killed at random moments, and every byte is that of a run that
nobody disturbed. The moments are drawn by a seed that a failure prints."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import succeed
from support.kills import kill_driver, kill_worker, receipts, wait_for_receipts
from support.made_runs import make_corpus, make_run
from support.processes import KILLS, SEED, free_port, kill_family, scheduler

from expertmine.run.open_run import open_run

pytestmark = pytest.mark.slow

STAGES = ("score", "assess")
TASKS = 128


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run scored to its end in one process, and the same run extracted only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus = make_corpus(folder / "corpus", texts=4000, concepts=40, positives=300, pool=800, held_out_percent=10)
    make_run(folder / "extracted", corpus, units=1024, block_units=16, permutations=60, null="own", resamples=40)
    done = Path(shutil.copytree(folder / "extracted", folder / "done"))
    succeed("score", done, "--executor", "serial")
    succeed("reduce", done, "--top-k", 20)
    return done, folder / "extracted"


def assert_same(run: Path, done: Path) -> None:
    succeed("reduce", run, "--top-k", 20)
    for folder in ("store.zarr", "null", "assessment", "selection", "experts"):
        for path in (done / folder).rglob("*"):
            if path.is_file():
                assert (run / path.relative_to(done)).read_bytes() == path.read_bytes(), (SEED, path)
    assert receipts(run, STAGES) == receipts(done, STAGES) == TASKS  # 64 blocks scored, 64 assessed
    assert f"{open_run(run).plan.layout.partitions + TASKS} tasks match" in succeed("verify", run)


def start(run: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "expertmine", "score", str(run), *map(str, options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_killing_workers_and_drivers_changes_no_byte(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    done, extracted = undisturbed
    run, lot = Path(shutil.copytree(extracted, tmp_path / "run")), random.Random(SEED)
    kinds = ["worker", "driver"] * KILLS
    lot.shuffle(kinds)
    process = start(run, "--workers", 2)
    for kind in kinds:
        wait_for_receipts(run, STAGES, lot.randint(1, 20 // KILLS), process)
        time.sleep(lot.random() * 0.2)
        if kind == "worker":
            kill_worker(run, lot)
        else:
            kill_family(process)
            assert process.returncode == -signal.SIGKILL, SEED
        assert receipts(run, STAGES) < TASKS, (SEED, "it was over before it was disturbed")
        if kind == "driver":
            process = start(run, "--workers", 2)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, (SEED, stderr)
    assert_same(run, done)


def test_a_scheduler_that_is_lost_and_started_again_changes_no_byte(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    done, extracted = undisturbed
    run, port = Path(shutil.copytree(extracted, tmp_path / "run")), free_port()
    with scheduler(port) as process:
        driver = start(run, "--address", f"tcp://127.0.0.1:{port}")
        wait_for_receipts(run, STAGES, 15, driver)
        kill_driver(process)
        _, stderr = driver.communicate(timeout=120)
    assert driver.returncode == 2, stderr
    assert "the Dask scheduler was lost" in stderr and "Traceback" not in stderr
    assert 15 <= receipts(run, STAGES) < TASKS
    with scheduler(port):
        driver = start(run, "--address", f"tcp://127.0.0.1:{port}")
        _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 0, stderr
    assert_same(run, done)


def test_a_ray_cluster_needs_nothing_else(undisturbed: tuple[Path, Path], ray_address: str, tmp_path: Path) -> None:
    """Scoring on Ray actors; one of them is killed."""
    done, extracted = undisturbed
    run = Path(shutil.copytree(extracted, tmp_path / "run"))
    process = start(run, "--executor", "ray", "--address", ray_address, "--workers", 2)
    wait_for_receipts(run, STAGES, 5, process)
    kill_worker(run, random.Random(SEED))
    assert receipts(run, STAGES) < TASKS
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, (SEED, stderr)
    assert_same(run, done)
