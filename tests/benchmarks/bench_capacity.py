"""Scoring against its estimate, in CPU time. Run by `make bench`; `pytest tests` does not collect it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.made_runs import make_corpus, make_run

from expertmine.capacity.calibrate import measure
from expertmine.capacity.estimate import estimate
from expertmine.capacity.hardware import Hardware
from expertmine.capacity.unit_costs import MEASURED
from expertmine.capacity.workloads import ModelDimensions, Sizes, paper_workload
from expertmine.mining import score
from expertmine.run.open_run import open_run
from expertmine.runtime.serial import SerialExecutor
from expertmine.specs.settings import PlanRequest


@pytest.mark.parametrize("concepts, positives, permutations", [(40, 300, 0), (300, 40, 20)])
def test_scoring_takes_what_the_estimate_says(concepts: int, positives: int, permutations: int, tmp_path: Path) -> None:
    """To within a factor of 3, in CPU time, with the kernels measured here."""
    corpus = make_corpus(tmp_path / "corpus", texts=4_000, concepts=concepts, positives=positives, pool=500)
    run = tmp_path / "run"
    plan = make_run(run, corpus, units=2_048, permutations=permutations, resamples=0)
    tasks = score.plan(open_run(run))
    scorer = score.Scorer(open_run(run))
    load = replace(
        paper_workload(
            ModelDimensions.on_paper(plan.layout.units, 1e6),
            Sizes(4_000, 20, concepts, positives, 500),
            PlanRequest("made up", scoring={"permutations": permutations, "resamples": 0}),
        ),
        layout=plan.layout,
        left={"extract": 0, "score": len(tasks), "assess": 0},
    )
    costs = measure("float16", "zstd", 4_000, MEASURED)
    found = estimate(load, Hardware(cpus=1, store_bandwidth=1e12, latency=0.0), costs).stages[0]
    taken = []
    for _ in range(2):
        started = time.process_time()
        assert len(list(SerialExecutor().run(lambda: scorer, tasks))) == len(tasks)
        taken.append(time.process_time() - started)
    assert found.stage == "score"
    assert min(taken) / 3 < sum(found.work.values()) < 3 * min(taken), (found.work, taken)
