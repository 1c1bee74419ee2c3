"""Extraction under fire: driver, actors and whole nodes are killed at random moments, over and over, and every byte is
that of a run that nobody disturbed.

The moments are drawn by a seed that the test prints; EXPERTMINE_KILLS sets how many there are of each kind.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import succeed
from support.kills import kill_driver, kill_worker, receipts, wait_for_receipts
from support.plans import plan_new
from support.processes import ENVIRONMENT, KILLS, SEED, ray_nodes

pytestmark = pytest.mark.slow

SENTENCES = 12_000
STAGES = ("extract",)
LAST = 10
"""Receipts before the end of a run from which on it is not disturbed any more."""


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run extracted to its end, and the same run planned only."""
    folder = tmp_path_factory.mktemp("undisturbed")
    texts = [f"the number {number} and its neighbour {number + 1} are known by name" for number in range(SENTENCES)]
    document = {
        "concept": "early",
        "sentences": {"positive": texts[: SENTENCES // 2], "negative": texts[SENTENCES // 2 :]},
    }
    (folder / "early.json").write_text(json.dumps(document))
    succeed("concepts", "json", folder / "early.json", "--out", folder / "corpus")
    plan_new(folder / "planned", tiny_model, folder / "corpus", partition_rows=128, batch_tokens=64)
    done = Path(shutil.copytree(folder / "planned", folder / "done"))
    succeed("extract", done, "--executor", "serial")
    return done, folder / "planned"


def extraction(run: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "expertmine", "extract", str(run), "--address", address, "--workers", "2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def assert_same_bytes(run: Path, done: Path) -> None:
    for path in (done / "store.zarr").rglob("*"):
        if path.is_file():
            assert (run / path.relative_to(done)).read_bytes() == path.read_bytes(), path
    assert receipts(run, STAGES) == receipts(done, STAGES)
    for path in (done / "receipts" / "extract").iterdir():
        ours, theirs = (json.loads((folder / path.relative_to(done)).read_text()) for folder in (run, done))
        assert (ours["checksums"], ours["fingerprint"]) == (theirs["checksums"], theirs["fingerprint"])


def finish(process: subprocess.Popen[str], run: Path, done: Path) -> None:
    """Let an extraction come to its end; what it stored must be what the undisturbed run has."""
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, (SEED, stderr)
    assert_same_bytes(run, done)


def test_killing_drivers_actors_and_nodes_changes_no_byte(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """Kill after kill; a run that got through before its next one is followed by another run."""
    done, planned = undisturbed
    lot = random.Random(SEED)
    kinds = ["driver", "actor", "node"] * KILLS
    lot.shuffle(kinds)
    print(f"seed {SEED}: {', '.join(kinds)}")
    runs, end = 1, receipts(done, STAGES) - LAST
    run = Path(shutil.copytree(planned, tmp_path / "run 1"))
    with ray_nodes() as (address, nodes):
        assert nodes.stdin is not None
        assert nodes.stdout is not None
        process = extraction(run, address)
        while kinds:
            wait_for_receipts(run, STAGES, lot.randint(1, 5), process)
            time.sleep(lot.random() * 0.2)
            if process.poll() is not None or receipts(run, STAGES) >= end:
                finish(process, run, done)  # nothing left to disturb
                runs += 1
                run = Path(shutil.copytree(planned, tmp_path / f"run {runs}"))
                process = extraction(run, address)
                continue
            kind = kinds.pop()
            if kind == "driver":
                kill_driver(process)
            elif kind == "actor":
                kill_worker(run, lot)
            else:
                nodes.stdin.write(f"{lot.randrange(2)}\n")
                nodes.stdin.flush()
                assert nodes.stdout.readline() == "removed\n"
            assert receipts(run, STAGES) < receipts(done, STAGES), (SEED, "it was over before it was disturbed")
            if kind == "driver":
                process = extraction(run, address)
        finish(process, run, done)
    print(f"{runs} runs")


@pytest.mark.parametrize("round_", range(KILLS))
def test_killing_one_process_changes_no_byte(round_: int, undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    """The serial executor, killed with its threads at any moment, until it gets through."""
    done, planned = undisturbed
    run = Path(shutil.copytree(planned, tmp_path / "run"))
    lot = random.Random(SEED + round_)
    command = [sys.executable, "-m", "expertmine", "extract", str(run), "--executor", "serial"]
    for _ in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
        wait_for_receipts(run, STAGES, 1, process)
        time.sleep(lot.random() * 0.5)
        kill_driver(process)
        assert receipts(run, STAGES) < receipts(done, STAGES)
    succeed("extract", run, "--executor", "serial")
    assert_same_bytes(run, done)
