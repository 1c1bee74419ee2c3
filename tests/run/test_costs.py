"""What a run has cost: seconds of workers, of CPUs and of GPUs, what was stored, how fast, and what went wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import succeed

from expertmine.run.attempts import StageAttempt, attempt_at, read_attempts, write_attempt
from expertmine.run.costs import costs_of
from expertmine.run.inspection import progress_of
from expertmine.run.ledger import Receipt, read_receipts
from expertmine.run.open_run import open_run
from expertmine.run.store import Store


def receipt(begun: float, finished: float, worker: str = "one", platform: str = "x86_64", **counts: int) -> Receipt:
    return Receipt("extract", 0, "", {}, finished - begun, finished, worker, platform, counts)


def attempt(began: float, ended: float | None = None, **metadata: object) -> StageAttempt:
    return replace(StageAttempt("extract", "head-1", "ray", began, ended), **metadata)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 9)), max_size=12))
def test_seconds_of_a_worker_are_those_in_which_it_had_a_task(tasks: list[tuple[str, int, int]]) -> None:
    receipts = [receipt(begun, begun + long, worker) for worker, begun, long in tasks]
    busy = {(worker, second) for worker, begun, long in tasks for second in range(begun, begun + long)}
    costs = costs_of("extract", receipts, [], cpus=3)
    assert costs.worker_seconds == len(busy)
    assert costs.cpu_seconds == 3 * len(busy)
    assert costs.wall_seconds == len({second for _, second in busy})
    assert costs.workers == len({worker for worker, _, _ in tasks})


def test_gpus_count_as_they_were_held() -> None:
    receipts = [receipt(10, 20), receipt(12, 22), receipt(10, 14, "two"), receipt(110, 115)]
    half, two = attempt(5, 30, gpus_each=0.5, cpus_each=4), attempt(100, 120, gpus_each=2.0, cpus_each=1)
    costs = costs_of("extract", receipts, [half, two], cpus=9)
    assert costs.gpu_seconds == 0.5 * (12 + 4) + 2 * 5
    assert costs.cpu_seconds == 4 * (12 + 4) + 5
    assert costs.elapsed_seconds == 25 + 20


def test_without_a_driver_a_gpu_is_counted_where_one_computed() -> None:
    """Receipts of runs that were begun before attempts left records, and attempts that cannot know."""
    receipts = [receipt(0, 3, platform="NVIDIA H200, CUDA 13.0, torch 2.13.0"), receipt(0, 5, "two")]
    assert costs_of("extract", receipts, [], cpus=2).gpu_seconds == 3
    assert costs_of("extract", receipts, [attempt(-1, gpus_each=None)], cpus=2).gpu_seconds == 3
    assert costs_of("extract", receipts, [attempt(-1, gpus_each=0.0)], cpus=2).gpu_seconds == 0


def test_a_killed_driver_counts_until_its_last_task() -> None:
    attempts = [attempt(0, None), attempt(100, 110), replace(attempt(200, 999), stage="score")]
    costs = costs_of("extract", [receipt(1, 6), receipt(5, 8), receipt(101, 105)], attempts, cpus=1)
    assert costs.elapsed_seconds == 8 + 10
    assert attempt_at(attempts, "extract", 99) == attempts[0]
    assert attempt_at(attempts, "extract", -1) is None


def test_rates_are_of_the_time_at_work_and_trouble_is_added_up() -> None:
    receipts = [receipt(0, 4, sentences=6, bytes=100), receipt(2, 6, "two", sentences=6, bytes=50, halvings=1)]
    costs = costs_of("extract", receipts, [attempt(0, 1, retried=2, failed=1), attempt(1, 7, lost=3)], cpus=1)
    assert costs.per_second == {"sentences": 2.0, "bytes": 25.0}
    assert costs.counts["halvings"] == 1
    assert (costs.stored_bytes, costs.retried, costs.lost, costs.failed) == (150, 2, 3, 1)


def test_bytes_are_not_told_where_a_receipt_does_not_know_them() -> None:
    assert costs_of("extract", [receipt(0, 1, bytes=5), receipt(0, 1)], [], cpus=1).stored_bytes is None
    assert costs_of("extract", [], [], cpus=1).stored_bytes is None


def test_records_of_drivers_are_read_in_order_and_torn_ones_are_not(tmp_path: Path) -> None:
    late = attempt(1234567890.125, 1234567899.5, metrics=("http://127.0.0.1:1/metrics",), retried=1)
    early = attempt(999999999.5)
    for each in (late, early, replace(early, lost=2)):
        write_attempt(tmp_path, each)
    folder = tmp_path / "workers" / "drivers"
    (folder / "torn.json").write_text('{"stage": "extr')
    (folder / "else.json").write_text('{"stage": "extract"}')
    assert read_attempts(tmp_path) == [replace(early, lost=2), late]
    assert read_attempts(tmp_path / "none") == []


def test_a_record_that_cannot_be_written_stays_unsaid(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("a file where a folder should be")
    write_attempt(tmp_path, attempt(0))
    assert (tmp_path / "workers").read_text() == "a file where a folder should be"


def test_a_run_knows_its_costs(mined: Path) -> None:
    plan, stages = open_run(mined).plan, {stage.stage: stage for stage in progress_of(mined)}
    for name in ("extract", "score"):
        keys = [key for each in read_receipts(open_run(mined), name) for key in each.checksums]  # type: ignore[arg-type]
        costs = stages[name].costs
        assert costs is not None
        assert costs.stored_bytes == Store(open_run(mined)).stored_bytes(keys) > 0
        assert 0 < costs.wall_seconds <= costs.worker_seconds <= costs.elapsed_seconds
        assert costs.tasks == plan.tasks(name)  # type: ignore[arg-type]
    extract = stages["extract"].costs
    assert extract is not None
    assert extract.counts["sentences"] == 72
    assert extract.per_second["sentences"] == pytest.approx(72 / extract.wall_seconds, rel=0.01)
    assert extract.cpu_seconds == pytest.approx(plan.responses.threads * extract.worker_seconds, abs=0.01)
    assert stages["reduce"].costs is None


def test_status_tells_costs(mined: Path) -> None:
    printed = succeed("status", mined).splitlines()
    (heading,) = [at for at, line in enumerate(printed) if line.startswith("cost ")]
    assert [line.split()[0] for line in printed[heading + 1 : heading + 4]] == ["extract", "score", "assess"]
    told = json.loads(succeed("status", mined, "--json"))
    costs = {stage["stage"]: stage["costs"] for stage in told["stages"]}
    assert costs["score"]["counts"]["pairs"] == 2 * open_run(mined).plan.layout.units
    assert told["drivers"] == []
    assert costs == json.loads(json.dumps({s.stage: s.costs and asdict(s.costs) for s in progress_of(mined)}))
