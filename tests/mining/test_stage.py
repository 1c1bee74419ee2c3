"""The four stages keep one contract: plan the tasks, run one, finish."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from expertmine.errors import StageError, UserError
from expertmine.mining import assess, extract, reduce, score
from expertmine.mining.stage import StageSteps, WorkerOptions
from expertmine.run.ledger import Receipt
from expertmine.run.open_run import OpenRun, open_run
from expertmine.run.paths import index_folder, receipt_file
from expertmine.specs.plan import Stage

WITH_RECEIPTS: dict[Stage, StageSteps[Receipt]] = {"extract": extract, "score": score, "assess": assess}
STAGES = [*WITH_RECEIPTS.values(), reduce]


@pytest.fixture
def run(mined: Path, tmp_path: Path) -> OpenRun:
    return open_run(Path(shutil.copytree(mined, tmp_path / "run")))


@pytest.mark.parametrize("stage", WITH_RECEIPTS)
def test_only_the_missing_task_is_planned_and_finish_names_it(stage: Stage, run: OpenRun) -> None:
    steps = WITH_RECEIPTS[stage]
    assert steps.plan(run) == []
    steps.finish(run)
    file = receipt_file(run.path, stage, 1)
    assert isinstance(file, Path)
    before = file.read_bytes()
    file.unlink()
    assert steps.plan(run) == [1]
    with pytest.raises(UserError, match=rf"1 of {run.plan.tasks(stage)} {stage} tasks are not done \(1\)"):
        steps.finish(run)
    again = steps.new_worker(run, WorkerOptions())()(1)
    assert f'"{next(iter(again.checksums.values()))}"'.encode() in before
    steps.finish(run)


def test_reduce_has_a_task_per_pooling_and_finish_names_a_missing_index(run: OpenRun) -> None:
    assert reduce.plan(run) == [0]
    folder = index_folder(run.path, run.plan, "max")
    assert isinstance(folder, Path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=r"experts is not the index of this run's plan; run `expertmine reduce"):
        reduce.finish(run)
    assert reduce.new_worker(run, WorkerOptions(top_k=40))()(0) == folder
    reduce.finish(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("steps", STAGES)
def test_a_worker_travels_with_the_plan_that_it_works_on(steps: StageSteps[object], run: OpenRun) -> None:
    assert pickle.loads(pickle.dumps(steps.new_worker(run, WorkerOptions(top_k=40))))()
    earlier = replace(run, plan=replace(run.plan, scoring=replace(run.plan.scoring, seed=99)))
    with pytest.raises(StageError, match="was planned again since this stage began"):
        steps.new_worker(earlier, WorkerOptions(top_k=40))()
